//! A topic read by a query: from its earliest records to those that are there when the query begins.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::arrow::array::RecordBatch;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{exec_err, internal_err};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, PlanProperties};
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::mpsc::Sender;

use super::connection::OnMalformed;
use super::consume::{METADATA, LogErrors, topic_exists};
use super::{KafkaTable, failed};
use crate::failure::Failure;
use crate::format::{Decoder, Malformed};
use crate::records::{Records, RecordsBuilder};

/// How long the next record may take to come.
const RECORD_TIMEOUT: Duration = Duration::from_secs(30);

/// Reads a topic once.
#[derive(Debug)]
pub(crate) struct ReadExec {
    table: KafkaTable,
    decoder: Decoder,
    batch_rows: usize,
    limit: Option<usize>,
    properties: Arc<PlanProperties>,
}

impl ReadExec {
    pub(crate) fn new(table: KafkaTable, decoder: Decoder, batch_rows: usize, limit: Option<usize>) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(decoder.schema())),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self { table, decoder, batch_rows, limit, properties: Arc::new(properties) }
    }
}

impl DisplayAs for ReadExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns: Vec<&str> = self.decoder.schema().fields().iter().map(|field| field.name().as_str()).collect();
        write!(f, "KafkaExec: {}, columns=[{}]", self.table.connection, columns.join(", "))?;
        match self.limit {
            Some(limit) => write!(f, ", limit={limit}"),
            None => Ok(()),
        }
    }
}

impl ExecutionPlan for ReadExec {
    fn name(&self) -> &'static str {
        "KafkaExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        if children.is_empty() { Ok(self) } else { internal_err!("KafkaExec has no input") }
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn execute(&self, _: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let mut stream = RecordBatchReceiverStreamBuilder::new(Arc::clone(self.decoder.schema()), 2);
        let reading = Reading {
            table: self.table.clone(),
            decoder: self.decoder.clone(),
            rows: self.batch_rows,
            to: stream.tx(),
        };
        let limit = self.limit.unwrap_or(usize::MAX);
        stream.spawn_blocking(move || reading.run(limit));
        Ok(stream.build())
    }
}

struct Reading {
    table: KafkaTable,
    decoder: Decoder,
    rows: usize,
    to: Sender<Result<RecordBatch>>,
}

impl Reading {
    fn run(&self, limit: usize) -> Result<()> {
        let connection = &self.table.connection;
        let mut config = connection.client();
        // nothing is committed and no group is joined; without a name librdkafka assigns nothing
        config.set("group.id", "aefusion").set("enable.auto.commit", "false").set("enable.partition.eof", "true");
        connection.set_default(&mut config, "isolation.level", "read_committed");
        let consumer: BaseConsumer<LogErrors> =
            config.create_with_context(LogErrors).map_err(|e| failed(&connection.to_string(), &e))?;
        let mut open = self.assign(&consumer)?;
        let mut builder = RecordsBuilder::new(self.table.columns.has("_headers"));
        let (mut sent, mut heard) = (0, Instant::now());
        while !open.is_empty() && sent < limit {
            match consumer.poll(Duration::from_millis(100)) {
                // the query has ended
                _ if self.to.is_closed() => return Ok(()),
                None if heard.elapsed() > RECORD_TIMEOUT => {
                    return exec_err!("{connection}: no answer within {} s", RECORD_TIMEOUT.as_secs());
                }
                None => continue,
                Some(Err(KafkaError::PartitionEOF(partition))) => drop(open.remove(&partition)),
                Some(Err(error)) => return Err(failed(&connection.to_string(), &error)),
                Some(Ok(message)) => {
                    let (partition, offset) = (message.partition(), message.offset());
                    // what came after the query began is left out
                    if open.get(&partition).is_some_and(|end| offset < *end) {
                        builder.push(&message);
                    }
                    if open.get(&partition).is_some_and(|end| offset + 1 >= *end) {
                        open.remove(&partition);
                    }
                }
            }
            heard = Instant::now();
            if builder.len() >= self.rows.min(limit - sent) {
                sent += self.send(&builder.finish()?)?;
            }
        }
        if builder.len() > 0 && sent < limit {
            self.send(&builder.finish()?)?;
        }
        Ok(())
    }

    /// Begins at the earliest records of every partition, and tells where each of them ends now.
    fn assign(&self, consumer: &BaseConsumer<LogErrors>) -> Result<BTreeMap<i32, i64>> {
        let connection = &self.table.connection;
        let partitions = topic_exists(consumer.client(), connection).map_err(Failure::into_error)?;
        let (mut open, mut list) = (BTreeMap::new(), TopicPartitionList::new());
        for partition in partitions {
            let known = consumer.fetch_watermarks(&connection.topic, partition, METADATA);
            let (low, high) = known.map_err(|e| failed(&connection.to_string(), &e))?;
            if low < high {
                open.insert(partition, high);
                let added = list.add_partition_offset(&connection.topic, partition, Offset::Beginning);
                added.map_err(|e| failed(&connection.to_string(), &e))?;
            }
        }
        consumer.assign(&list).map_err(|e| failed(&connection.to_string(), &e))?;
        Ok(open)
    }

    /// Tells how many rows that were.
    fn send(&self, records: &Records) -> Result<usize> {
        let (good, malformed) = self.decoder.decode_good(records);
        if let Some(first) = malformed.first() {
            match self.table.on_malformed {
                OnMalformed::Fail => return Err(malformed_error(&self.table.connection.topic, records, first)),
                OnMalformed::Skip | OnMalformed::DeadLetter => {
                    let first = malformed_error(&self.table.connection.topic, records, first);
                    tracing::warn!("{} records skipped, the first: {}", malformed.len(), aefusion_udfs::message(&first));
                }
            }
        }
        let rows = good.iter().map(RecordBatch::num_rows).sum();
        for batch in good {
            // nobody listens any more: the query has ended
            drop(self.to.blocking_send(Ok(batch)));
        }
        Ok(rows)
    }
}

/// The error of a malformed record.
pub(crate) fn malformed_error(topic: &str, records: &Records, malformed: &Malformed) -> DataFusionError {
    let (partition, offset) = (records.partitions().value(malformed.record), records.offsets().value(malformed.record));
    DataFusionError::Execution(format!(
        "topic '{topic}', partition {partition}, offset {offset}: the record is malformed: {}; the table's option malformed \
         may be 'skip' or 'dead_letter' instead of 'fail'",
        malformed.reason
    ))
}
