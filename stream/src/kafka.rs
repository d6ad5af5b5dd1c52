//! Topics as tables: `CREATE EXTERNAL TABLE … STORED AS KAFKA LOCATION 'kafka://broker:9092/topic'`.

pub(crate) mod connection;
mod consume;
mod group;
mod produce;
mod read;
mod table;
mod topic;
mod write;

pub(crate) use connection::{Connection, OnMalformed};
pub(crate) use consume::{Batch, InFlight, Reader, ReaderOptions, Span};
pub(crate) use group::{Consumer, StartOffsets};
pub(crate) use produce::{Producer, offsets};
pub(crate) use read::malformed_error;
pub(crate) use table::KafkaTable;
pub use table::KafkaTables;

use datafusion::error::DataFusionError;
use rdkafka::error::KafkaError;

/// An error of Kafka as an execution error. `action` says what failed.
pub(crate) fn failed(action: &str, error: &KafkaError) -> DataFusionError {
    DataFusionError::Execution(format!("{action}: {}", cause(error)))
}

/// The reason that Kafka gives, without rdkafka's name for the failed operation.
fn cause(error: &KafkaError) -> String {
    match error.rdkafka_error_code() {
        Some(code) => code.to_string(),
        None => error.to_string(),
    }
}
