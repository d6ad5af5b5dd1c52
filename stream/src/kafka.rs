//! Topics as tables: `CREATE EXTERNAL TABLE … STORED AS KAFKA LOCATION 'kafka://broker:9092/topic'`.

pub(crate) mod connection;
mod consume;
mod produce;
mod read;
mod table;
mod write;

pub(crate) use connection::{Connection, OnMalformed};
pub(crate) use consume::{Batch, ReaderOptions, Consumer, Reader, Span, StartOffsets, InFlight};
pub(crate) use produce::{Failure, Producer, offsets};
pub(crate) use read::malformed_error;
pub(crate) use table::KafkaTable;
pub use table::KafkaTables;

use datafusion::error::DataFusionError;
use rdkafka::error::KafkaError;

/// An error of Kafka as one of execution, with what was being done.
pub(crate) fn failed(what: &str, error: &KafkaError) -> DataFusionError {
    DataFusionError::Execution(format!("{what}: {}", cause(error)))
}

/// What Kafka says, its own words for who said it left out.
fn cause(error: &KafkaError) -> String {
    match error.rdkafka_error_code() {
        Some(code) => code.to_string(),
        None => error.to_string(),
    }
}
