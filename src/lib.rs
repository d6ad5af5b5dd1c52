//! The `aefusion` program: train and run autoencoders with SQL.
//!
//! Functions are in the crate `aefusion_udfs`, the trainer is in `aefusion_train`, and pipelines are in `aefusion_stream`.

pub mod cli;
pub mod session;
