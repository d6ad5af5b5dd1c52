//! Sinks: where a pipeline writes its rows.

mod files;
mod manifest;
mod topic;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use datafusion::arrow::array::RecordBatch;
use datafusion::catalog::TableProvider;
use datafusion::common::plan_err;
use datafusion::datasource::listing::ListingTable;
use datafusion::error::Result;
use rdkafka::consumer::ConsumerGroupMetadata;

pub(crate) use files::FileSink;
pub(crate) use topic::{DeadLetters, TopicSink};

use super::failure::Failure;
use super::kafka::{Consumer, InFlight, KafkaTable, Span, StartOffsets};
use super::records::Records;
use super::stats::Counts;

/// A micro-batch that the query has processed.
pub(crate) struct Processed {
    pub(crate) output: Output,
    /// Rows in the output.
    pub(crate) rows: usize,
    /// Malformed records for the dead-letter topic.
    pub(crate) dead_letters: Vec<DeadLetter>,
    pub(crate) counts: Counts,
    pub(crate) spans: BTreeMap<i32, Span>,
    pub(crate) epoch: u64,
    pub(crate) group: Arc<ConsumerGroupMetadata>,
    /// Dropped when the sink has written the micro-batch.
    #[expect(dead_code, reason = "dropping it updates a count")]
    pub(crate) in_flight: InFlight,
}

/// Rows in the form that a sink needs.
#[derive(Debug)]
pub(crate) enum Output {
    Records(Vec<Records>),
    Rows(Vec<RecordBatch>),
}

/// A malformed record for the dead-letter topic, with the reason in its headers.
#[derive(Debug)]
pub(crate) struct DeadLetter {
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
}

/// Writes micro-batches, and commits rows and offsets together.
pub(crate) trait Sink: Send {
    /// Writes a micro-batch. The sink may commit it later, together with others.
    ///
    /// # Errors
    /// See [`Failure`]. After a failure, readers see no uncommitted rows.
    fn write(&mut self, batch: Processed) -> Result<(), Failure>;

    /// When the written micro-batches must be committed; none if there are none.
    fn deadline(&self) -> Option<Instant>;

    /// Commits the written micro-batches.
    ///
    /// # Errors
    /// See [`Failure`].
    fn commit(&mut self) -> Result<(), Failure>;

    /// Discards micro-batches that are written but not committed.
    fn discard(&mut self);

    /// Sets the consumer of the pipeline, for committing offsets outside of transactions.
    fn set_consumer(&mut self, consumer: Arc<Consumer>);
}

/// The table that a pipeline writes to.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    Topic(Box<KafkaTable>),
    Files(files::Folder),
}

impl Target {
    /// Checks that a pipeline can write to a table.
    ///
    /// # Errors
    /// A planning error if the table is neither a topic nor a folder of Parquet or NDJSON files.
    pub(crate) fn of(table: &Arc<dyn TableProvider>, state: &datafusion::execution::SessionState) -> Result<Self> {
        if let Some(table) = table.downcast_ref::<KafkaTable>() {
            table.encoder()?;
            return Ok(Self::Topic(Box::new(table.clone())));
        }
        match table.downcast_ref::<ListingTable>() {
            Some(table) => Ok(Self::Files(files::Folder::of(table, state)?)),
            None => plan_err!(
                "a pipeline must write to a table that is STORED AS KAFKA, or STORED AS PARQUET or JSON with a folder \
                 as its LOCATION"
            ),
        }
    }

    /// Offsets to start from, if the sink stores them itself.
    pub(crate) fn start_offsets(&self, pipeline: &str, topic: &str) -> Option<Arc<dyn StartOffsets>> {
        match self {
            Self::Topic(_) => None,
            Self::Files(folder) => Some(Arc::new(folder.chain(pipeline, topic))),
        }
    }
}
