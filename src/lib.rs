//! The aefusion program: autoencoders in SQL. The functions themselves are in the crate `aefusion_udfs`.

pub mod cli;
mod message;
mod narrow;
pub mod session;
#[cfg(feature = "kafka")]
pub mod stream;
mod temporary;
pub mod train;

pub use message::message;
use temporary::temporary_file;
