//! A fuzzer of model files. `cargo xtask fuzz` starts it.
//!
//! A mutant is an ONNX file that a seed and a number determine. A worker process registers it and runs its functions; a
//! process of Python runs the same file with ONNX Runtime, one row at a time. The results must agree. Each module uses only
//! those above it:
//!
//! | what | where |
//! | --- | --- |
//! | random numbers | [`random`] |
//! | graphs node by node | [`sketch`] |
//! | lists of operators and values; pieces of graphs, many of which mix rows | [`lists`], [`pieces`] |
//! | whole graphs | [`graphs`] |
//! | changes of decoded files, and of bytes | [`mutate`] |
//! | mutants, and the files that they begin with | [`mutant`] |
//! | rows, and the results of a mutant for them | [`rows`], [`trial`] |
//! | processes that are watched | [`watch`] |
//! | all mutants, and the summary | [`campaign`], [`summary`] |

pub mod campaign;
pub mod graphs;
pub mod lists;
pub mod mutant;
pub mod mutate;
pub mod pieces;
pub mod random;
pub mod rows;
pub mod sketch;
pub mod summary;
pub mod trial;
pub mod watch;
