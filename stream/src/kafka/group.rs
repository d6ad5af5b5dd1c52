//! Membership in a consumer group: assigned partitions, and where each of them is committed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use datafusion::error::Result;
use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::statistics::Statistics;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use super::cause;
use crate::failure::Failure;
use crate::stats::Stats;

/// A consumer that is a member of a group. It leaves the group when it is dropped.
pub(crate) type Consumer = BaseConsumer<Group>;

/// Where a pipeline starts to read each partition, for a sink that stores offsets itself.
pub(crate) trait StartOffsets: Send + Sync + std::fmt::Debug {
    /// Offsets by partition. A partition that is missing here starts at the offset of the group, or where
    /// `auto.offset.reset` points.
    ///
    /// # Errors
    /// An error if the store of the offsets fails.
    fn read(&self) -> Result<BTreeMap<i32, i64>>;
}

/// State of a member of a consumer group, updated by callbacks of librdkafka.
pub(crate) struct Group {
    epoch: AtomicU64,
    start_offsets: Option<Arc<dyn StartOffsets>>,
    /// For each assigned partition, the offset after the last record in a micro-batch or a commit.
    pub(super) positions: Mutex<BTreeMap<i32, Option<i64>>>,
    pub(super) metadata: Mutex<Option<Arc<ConsumerGroupMetadata>>>,
    pub(super) failure: Mutex<Option<Failure>>,
    topic: String,
    stats: Arc<Stats>,
}

impl Group {
    pub(super) fn new(topic: &str, start_offsets: Option<Arc<dyn StartOffsets>>, stats: Arc<Stats>) -> Self {
        Self {
            epoch: AtomicU64::new(0),
            start_offsets,
            positions: Mutex::default(),
            metadata: Mutex::default(),
            failure: Mutex::default(),
            topic: topic.to_owned(),
            stats,
        }
    }

    /// The number of the current assignment of partitions.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    fn assign(&self, consumer: &BaseConsumer<Self>, partitions: &mut TopicPartitionList) -> Result<(), Failure> {
        let starts = self.start_offsets.as_ref().map(|offsets| offsets.read()).transpose()?.unwrap_or_default();
        let mut positions = BTreeMap::new();
        for partition in partitions.elements_for_topic(&self.topic) {
            positions.insert(partition.partition(), starts.get(&partition.partition()).copied());
        }
        for (partition, start) in &starts {
            if let Some(mut element) = partitions.find_partition(&self.topic, *partition) {
                let set = element.set_offset(Offset::Offset(*start));
                set.map_err(|e| Failure::transient(cause(&e)))?;
            }
        }
        // Taken here, not at a commit. A member that was removed from the group has no metadata until it joins again,
        // and brokers do not refuse a commit without metadata.
        let metadata = consumer.group_metadata().filter(|_| !consumer.assignment_lost());
        let Some(metadata) = metadata else {
            return Err(Failure::transient("the consumer group removed this instance while it received partitions"));
        };
        tracing::info!(partitions = ?positions.keys().collect::<Vec<_>>(), topic = self.topic, "partitions assigned");
        self.stats.assigned(positions.keys().copied());
        *self.positions.lock() = positions;
        *self.metadata.lock() = Some(Arc::new(metadata));
        let assigned = consumer.assign(partitions);
        assigned.map_err(|e| Failure::transient(format!("could not start to read the partitions: {}", cause(&e))))
    }

    fn revoke(&self, consumer: &BaseConsumer<Self>) -> Result<(), Failure> {
        tracing::info!(topic = self.topic, "partitions revoked");
        self.positions.lock().clear();
        *self.metadata.lock() = None;
        self.stats.revoked();
        consumer.unassign().map_err(|e| Failure::transient(cause(&e)))
    }
}

impl ClientContext for Group {
    fn stats(&self, statistics: Statistics) {
        self.stats.set_reachable(statistics.brokers.values().any(|broker| broker.nodeid >= 0 && broker.state == "UP"));
        let Some(topic) = statistics.topics.get(&self.topic) else { return };
        for (partition, known) in &topic.partitions {
            // before it is active, the offset of the group is unknown
            if known.ls_offset >= 0 && known.fetch_state == "active" {
                // negative: the group has no offset, and starts at the first record
                let committed = known.committed_offset.max(known.lo_offset);
                self.stats.set_end(*partition, known.ls_offset, committed);
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        LogErrors.error(error, reason);
    }
}

impl ConsumerContext for Group {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, what: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        // the next owner of a partition reads again what is not committed
        self.epoch.fetch_add(1, Ordering::AcqRel);
        let done = match what {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => self.assign(consumer, partitions),
            _ => self.revoke(consumer),
        };
        if let Err(failure) = done {
            drop(consumer.unassign());
            *self.failure.lock() = Some(failure);
        }
    }
}

/// Logs the errors that librdkafka reports, except the end of a partition.
#[derive(Debug)]
pub(crate) struct LogErrors;

impl ClientContext for LogErrors {
    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::PartitionEOF) {
            tracing::warn!(error = cause(&error), "{reason}");
        }
    }
}

impl ConsumerContext for LogErrors {}
