//! Where the rows of a pipeline go.

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
use super::kafka::{Consumer, KafkaTable, Span, StartOffsets, InFlight};
use super::records::Records;
use super::stats::Counts;

/// A micro-batch after the query.
pub(crate) struct Scored {
    pub(crate) output: Output,
    /// Rows in the output.
    pub(crate) rows: usize,
    /// Malformed records that are to be kept.
    pub(crate) dead: Vec<DeadLetter>,
    pub(crate) counts: Counts,
    pub(crate) spans: BTreeMap<i32, Span>,
    pub(crate) epoch: u64,
    pub(crate) group: Arc<ConsumerGroupMetadata>,
    /// Dropped when the sink is done with it.
    #[expect(dead_code, reason = "what counts is when it is dropped")]
    pub(crate) in_flight: InFlight,
}

/// Rows as a sink takes them.
#[derive(Debug)]
pub(crate) enum Output {
    Records(Vec<Records>),
    Rows(Vec<RecordBatch>),
}

/// A record that no row could be made of, and why.
#[derive(Debug)]
pub(crate) struct DeadLetter {
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
}

/// Writes micro-batches, so that rows and offsets are committed together.
pub(crate) trait Sink: Send {
    /// Writes a micro-batch; it may be committed later, together with others.
    ///
    /// # Errors
    /// See [`Failure`]; nothing of what is not committed can be read then.
    fn write(&mut self, scored: Scored) -> Result<(), Failure>;

    /// When what was written must be committed, if anything was.
    fn deadline(&self) -> Option<Instant>;

    /// Commits what was written.
    ///
    /// # Errors
    /// See [`Failure`].
    fn commit(&mut self) -> Result<(), Failure>;

    /// Gives up what was written and is not committed.
    fn discard(&mut self);

    /// The consumer that reads what is written: it is malformed_error what is committed where that is not in a transaction.
    fn tell(&mut self, consumer: Arc<Consumer>);
}

/// The table that a pipeline writes.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    Topic(Box<KafkaTable>),
    Files(files::Folder),
}

impl Target {
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
                "a pipeline writes to a table that is STORED AS KAFKA, or STORED AS PARQUET or JSON with a folder as its LOCATION"
            ),
        }
    }

    /// Offsets that the target knows better than Kafka does.
    pub(crate) fn starts(&self, pipeline: &str, topic: &str) -> Option<Arc<dyn StartOffsets>> {
        match self {
            Self::Topic(_) => None,
            Self::Files(folder) => Some(Arc::new(folder.chain(pipeline, topic))),
        }
    }
}
