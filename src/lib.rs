//! The aefusion program: autoencoders in SQL. The functions themselves are in the crate `aefusion_udfs`.

pub mod cli;
mod message;
pub mod session;

pub use message::message;
