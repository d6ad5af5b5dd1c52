//! The aefusion program: autoencoders in SQL.
//!
//! The functions are in the crate `aefusion_udfs`, the trainer in `aefusion_train`, pipelines in `aefusion_stream`.

pub mod cli;
pub mod session;
