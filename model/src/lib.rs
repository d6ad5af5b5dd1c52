//! Autoencoders in ONNX files: what a file contains, and its runs over Arrow arrays.
//!
//! This crate knows rows and no SQL. Each module uses only those above it in this table:
//!
//! | what | where |
//! | --- | --- |
//! | numbers, near names, enums with names, types of columns | [`numbers`], [`suggest`], [`choice`], [`columns`] |
//! | names and versions | [`name`] |
//! | graphs: reading, cutting, merging | [`onnx`] |
//! | ONNX Runtime | [`runtime`] |
//! | errors of held-out rows | [`calibration`] |
//! | what a file says about itself | [`metadata`], [`contract`], [`mod@file`], [`describe`] |
//! | rows of features as tensors | [`matrix`] |
//! | results of a run | [`output`] |
//! | models that can run | `pool`, [`model`] |
//! | runs over rows, with errors | [`score`] |
//! | test runs before publication | [`registration`], [`child`], [`trial`] |

pub mod calibration;
pub mod child;
pub mod choice;
pub mod columns;
pub mod contract;
pub mod describe;
mod extremes;
pub mod file;
mod independence;
pub mod matrix;
pub mod metadata;
pub mod model;
pub mod name;
pub mod numbers;
pub mod onnx;
pub mod output;
mod pool;
mod random;
pub mod registration;
pub mod runtime;
pub mod score;
pub mod suggest;
pub mod trial;

pub use file::ModelFile;
pub use model::{Model, Start};
pub use onnx::Limits;
pub use trial::Trial;
