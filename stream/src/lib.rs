//! Pipelines for Apache DataFusion: `INSERT INTO sink SELECT … FROM topic`, continuously, in micro-batches.
//!
//! ```text
//! topic ─ Reader ─ micro-batch ─ Query ─ rows ─ Sink ─ topic or files
//!            │                                    │
//!            └── offsets ─────────────────────────┘ committed with the rows
//! ```
//!
//! The three stages run in parallel, one micro-batch each. Each hands over through a channel with one place, so a slow
//! sink slows down the query, and the query slows down the reader (backpressure). After a failure of a broker or a
//! disk, the pipeline drops all three, opens them again and continues from the last commit. A start takes the same way.
//!
//! An application adds topics and pipelines to its own session, and runs a script:
//!
//! ```no_run
//! # #[cfg(feature = "kafka")]
//! # async fn run(script: &str) -> datafusion::error::Result<()> {
//! use aefusion_stream::{Pipelines, RunOptions, SessionStateBuilderExt as _};
//! use aefusion_udfs::SessionStateBuilderExt as _;
//! use aefusion_udfs::{catalog::Models, store::ModelStore};
//! use datafusion::execution::SessionStateBuilder;
//! use datafusion::prelude::SessionContext;
//!
//! let state = SessionStateBuilder::new()
//!     .with_default_features()
//!     .with_autoencoders(Models::new(ModelStore::open("models")?))
//!     .with_pipelines()
//!     .build();
//! let context = SessionContext::new_with_state(state);
//!
//! // CREATE EXTERNAL TABLE payments (…) STORED AS KAFKA …; INSERT INTO alerts SELECT … FROM payments;
//! let pipelines = Pipelines::plan(&context, script, "payments").await?;
//!
//! // call stop.stop() from a signal handler; the pipelines then finish and commit what they have read
//! let stop = pipelines.stop_handle();
//! pipelines.run(&RunOptions::default()).await?;
//! # drop(stop);
//! # Ok(())
//! # }
//! ```
//!
//! [`Stats`] and [`Metrics`] report on running pipelines. The crate writes its log with `tracing`.
//!
//! Without the cargo feature `kafka`, only the settings exist, and tables that are `STORED AS KAFKA` are refused.

#[cfg(feature = "kafka")]
mod check;
#[cfg(feature = "kafka")]
mod columns;
#[cfg(feature = "kafka")]
mod failure;
#[cfg(feature = "kafka")]
mod format;
#[cfg(feature = "kafka")]
mod job;
#[cfg(feature = "kafka")]
mod kafka;
#[cfg(feature = "kafka")]
mod metrics;
#[cfg(feature = "kafka")]
mod micro_batch;
#[cfg(not(feature = "kafka"))]
mod no_kafka;
#[cfg(feature = "kafka")]
mod pipelines;
#[cfg(feature = "kafka")]
mod query;
#[cfg(feature = "kafka")]
mod records;
#[cfg(feature = "kafka")]
mod scan;
mod session;
mod settings;
#[cfg(feature = "kafka")]
mod sink;
#[cfg(feature = "kafka")]
mod stats;
#[cfg(feature = "kafka")]
mod stop;

#[cfg(feature = "kafka")]
pub use kafka::KafkaTables;
#[cfg(feature = "kafka")]
pub use metrics::Metrics;
#[cfg(not(feature = "kafka"))]
pub use no_kafka::KafkaTables;
#[cfg(feature = "kafka")]
pub use pipelines::{Pipelines, RunOptions};
pub use session::SessionStateBuilderExt;
pub use settings::{StreamOptions, StreamSettings};
#[cfg(feature = "kafka")]
pub use stats::{Snapshot, Stats};
#[cfg(feature = "kafka")]
pub use stop::StopHandle;
