//! Pipelines: `INSERT INTO sink SELECT … FROM topic`, for ever, in micro-batches.
//!
//! ```text
//! topic ─ Reader ─ micro-batch ─ Query ─ rows ─ Sink ─ topic or files
//!            │                                    │
//!            └── offsets ─────────────────────────┘ committed with the rows
//! ```
//!
//! The three run side by side, one micro-batch each, and hand over through channels with one place: a sink that cannot
//! keep up holds up the query, which holds up the reader. Whatever fails in what is around (a broker, a disk), everything
//! is dropped and opened again, and goes on from what was committed: there is one way to recover, and it is that of a start.

mod check;
mod columns;
mod failure;
mod format;
mod http;
mod job;
mod kafka;
mod metrics;
mod micro_batch;
mod query;
mod records;
mod settings;
mod sink;
mod stats;
mod stop;

pub use settings::StreamOptions;

pub(crate) use http::Server;
pub(crate) use job::{Job, Plan, check_name};
pub(crate) use kafka::KafkaTables;
pub(crate) use metrics::Metrics;
pub(crate) use stats::Stats;
pub(crate) use stop::Stop;
