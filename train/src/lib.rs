//! Trains autoencoders with SQL, in any DataFusion session: the trainer behind `CREATE MODEL … AS SELECT`.
//!
//! A training reads the rows of a query and fits a dense network to most of them on the CPU. It calibrates the network on
//! the others. Its result is one ONNX file, which holds the preprocessing and the network. `aefusion-udfs` stores that file as
//! a model, and the functions `ae_error`, `ae_encode` and others run it.
//!
//! To train in your own application, add the functions and the trainer to its session:
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use aefusion_train::{SessionStateBuilderExt as _, Unwatched};
//! use aefusion_udfs::SessionStateBuilderExt as _;
//! use aefusion_udfs::{catalog::Models, store::ModelStore};
//! use aefusion_udfs::sql::SessionContextExt;
//! use datafusion::execution::SessionStateBuilder;
//! use datafusion::prelude::SessionContext;
//!
//! # async fn run() -> datafusion::error::Result<()> {
//! let state = SessionStateBuilder::new()
//!     .with_default_features()
//!     .with_autoencoders(Models::new(ModelStore::open("models")?))
//!     .with_trainer(Arc::new(Unwatched))
//!     .build();
//! let session = SessionContext::new_with_state(state);
//! session.ae_sql("CREATE MODEL pumps AS SELECT pressure, flow FROM readings").await?;
//! # Ok(())
//! # }
//! ```
//!
//! Pass your own [`Watch`] instead of [`Unwatched`] to show the progress, or to stop a training. Dropping the future of
//! the statement stops its training too. `examples/embedded` is a whole program.
//!
//! A training moves through these modules:
//!
//! | module | step |
//! | --- | --- |
//! | `trainer` | the statement, from its options to the file |
//! | `config`, `defaults`, `warm_start` | options, their defaults, and those of a model to start from |
//! | `ingest`, `values`, `key`, `splitting` | rows of the query, and the hashes of their values |
//! | `rule`, `deal`, `labels`, `split` | the three parts, and the classes of a classifier |
//! | `design`, `dataset`, `spill` | scales, memory and temporary files |
//! | `recipe` | the kinds of training: all layers together, layer by layer, linear, with a classifier |
//! | `fit`, `step`, `evaluate`, `optimizer` | epochs, batches, losses |
//! | `network`, `gradient`, `loss`, `activation`, `noise`, `gemm`, `pca` | the arithmetic |
//! | `export`, `onnx`, `validate`, `finish`, `summary` | the ONNX file, its check against the network, calibration, results |
//! | `watch`, `session` | progress and stopping, the session of an application |

mod activation;
mod config;
mod dataset;
mod deal;
mod defaults;
mod design;
mod evaluate;
mod export;
mod finish;
mod fit;
mod gemm;
mod gradient;
mod ingest;
mod key;
mod labels;
mod loss;
mod network;
mod noise;
mod onnx;
mod optimizer;
mod pca;
mod recipe;
#[cfg(test)]
mod reference_tests;
mod rule;
mod session;
mod spill;
mod split;
mod splitting;
mod step;
mod summary;
mod trainer;
mod validate;
mod values;
mod warm_start;
mod watch;

pub use pca::two_axes;
pub use session::SessionStateBuilderExt;
pub use trainer::SqlTrainer;
pub use watch::{Control, Unwatched, Watch};
