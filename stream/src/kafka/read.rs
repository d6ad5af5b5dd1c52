//! A topic read by a query: from its earliest records to its ends at the start of the query.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::arrow::array::RecordBatch;
use datafusion::common::exec_err;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::mpsc::Sender;

use super::connection::OnMalformed;
use super::group::LogErrors;
use super::topic::{METADATA_TIMEOUT, partitions_of};
use super::{KafkaTable, failed};
use crate::failure::Failure;
use crate::format::{Decoder, Malformed};
use crate::records::{Records, RecordsBuilder};
use crate::scan::Scan;

/// Time without a record or another sign of the brokers after which a query fails.
const RECORD_TIMEOUT: Duration = Duration::from_secs(30);

/// Reads a topic once.
#[derive(Debug)]
pub(crate) struct TopicScan {
    pub(crate) table: KafkaTable,
    pub(crate) decoder: Decoder,
    /// Records that are decoded together.
    pub(crate) batch_rows: usize,
    pub(crate) limit: Option<usize>,
}

impl Scan for TopicScan {
    const NAME: &'static str = "KafkaExec";

    fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    fn topic(&self) -> String {
        self.table.connection.to_string()
    }

    fn limit(&self) -> Option<usize> {
        self.limit
    }

    fn rows(&self, _: usize) -> Result<SendableRecordBatchStream> {
        let mut stream = RecordBatchReceiverStreamBuilder::new(Arc::clone(self.decoder.schema()), 2);
        let reading = Reading {
            table: self.table.clone(),
            decoder: self.decoder.clone(),
            batch_rows: self.batch_rows,
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
    batch_rows: usize,
    to: Sender<Result<RecordBatch>>,
}

impl Reading {
    fn run(&self, limit: usize) -> Result<()> {
        let connection = &self.table.connection;
        let mut config = connection.client();
        // librdkafka assigns partitions only with a group name; the group is not joined, and nothing is committed
        config.set("group.id", "aefusion").set("enable.auto.commit", "false").set("enable.partition.eof", "true");
        connection.set_default(&mut config, "isolation.level", "read_committed");
        let consumer: BaseConsumer<LogErrors> =
            config.create_with_context(LogErrors).map_err(|e| failed(&connection.to_string(), &e))?;
        let mut open = self.assign(&consumer)?;
        let mut builder = RecordsBuilder::new(self.table.columns.has("_headers"));
        let (mut sent, mut last_answer) = (0, Instant::now());
        while !open.is_empty() && sent < limit {
            match consumer.poll(Duration::from_millis(100)) {
                // the query has ended
                _ if self.to.is_closed() => return Ok(()),
                None if last_answer.elapsed() > RECORD_TIMEOUT => {
                    return exec_err!("{connection}: no answer within {} s", RECORD_TIMEOUT.as_secs());
                }
                None => continue,
                Some(Err(KafkaError::PartitionEOF(partition))) => drop(open.remove(&partition)),
                Some(Err(error)) => return Err(failed(&connection.to_string(), &error)),
                Some(Ok(message)) => {
                    let (partition, offset) = (message.partition(), message.offset());
                    // records that were written after the start of the query are left out
                    if open.get(&partition).is_some_and(|end| offset < *end) {
                        builder.push(&message);
                    }
                    if open.get(&partition).is_some_and(|end| offset + 1 >= *end) {
                        open.remove(&partition);
                    }
                }
            }
            last_answer = Instant::now();
            if builder.len() >= self.batch_rows.min(limit - sent) {
                sent += self.send(&builder.finish()?)?;
            }
        }
        if builder.len() > 0 && sent < limit {
            self.send(&builder.finish()?)?;
        }
        Ok(())
    }

    /// Starts at the earliest record of every partition, and returns the current end of each that has records.
    fn assign(&self, consumer: &BaseConsumer<LogErrors>) -> Result<BTreeMap<i32, i64>> {
        let connection = &self.table.connection;
        let partitions = partitions_of(consumer.client(), connection).map_err(Failure::into_error)?;
        let (mut open, mut list) = (BTreeMap::new(), TopicPartitionList::new());
        for partition in partitions {
            let known = consumer.fetch_watermarks(&connection.topic, partition, METADATA_TIMEOUT);
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

    /// Decodes records, sends the rows to the query, and returns their number.
    fn send(&self, records: &Records) -> Result<usize> {
        let (good, malformed) = self.decoder.decode_good(records);
        if let Some(first) = malformed.first() {
            let error = malformed_error(&self.table.connection.topic, records, first);
            match self.table.on_malformed {
                OnMalformed::Fail => return Err(error),
                OnMalformed::Skip | OnMalformed::DeadLetter => tracing::warn!(
                    "{} malformed records skipped, the first: {}",
                    malformed.len(),
                    aefusion_udfs::message(&error)
                ),
            }
        }
        let rows = good.iter().map(RecordBatch::num_rows).sum();
        for batch in good {
            // sending fails only after the query has ended
            drop(self.to.blocking_send(Ok(batch)));
        }
        Ok(rows)
    }
}

/// The error of a malformed record: where the record is, what is wrong, and how to continue without the record.
pub(crate) fn malformed_error(topic: &str, records: &Records, malformed: &Malformed) -> DataFusionError {
    let (partition, offset) = (records.partitions().value(malformed.record), records.offsets().value(malformed.record));
    DataFusionError::Execution(format!(
        "topic '{topic}', partition {partition}, offset {offset}: the record is malformed: {}; to continue without \
         malformed records, set the option malformed of the table to 'skip' or 'dead_letter'",
        malformed.reason
    ))
}
