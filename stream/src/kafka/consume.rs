//! Reads a topic in micro-batches, as a member of a consumer group.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use datafusion::error::Result;
use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::statistics::Statistics;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use tokio::sync::mpsc;

use super::{Connection, cause};
use crate::failure::Failure;
use crate::records::{Records, RecordsBuilder};
use crate::stats::Stats;
use crate::stop::Stop;

/// Bytes of a micro-batch, at most about.
const MAX_BATCH_BYTES: usize = 16 << 20;
/// Records that are taken between two looks at the clock.
const POLLS_PER_CLOCK_CHECK: usize = 1024;
/// How long a poll waits when there is nothing to do.
const IDLE_POLL: Duration = Duration::from_millis(50);
/// Bytes that a fetch waits for, and the part of a micro-batch's time that it waits for them.
const FETCH_BYTES: &str = "262144";
const FETCH_WAIT: u32 = 4;
/// How long it may take until all brokers know a topic that was just made.
const TOPIC_PROPAGATION: Duration = Duration::from_secs(3);
/// How long brokers may take to tell what they have.
pub(crate) const METADATA: Duration = Duration::from_secs(10);

/// Offsets of a partition that a batch takes from, and moves on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    /// Where what is committed ends; none if nothing is.
    pub(crate) from: Option<i64>,
    /// Where the batch ends.
    pub(crate) to: i64,
}

/// Records that were read together.
pub(crate) struct Batch {
    pub(crate) records: Records,
    pub(crate) spans: BTreeMap<i32, Span>,
    /// The assignment of partitions in which they were read.
    pub(crate) epoch: u64,
    /// The group as it was at that assignment: with it brokers refuse a commit once partitions have moved.
    pub(crate) group: Arc<ConsumerGroupMetadata>,
    /// When the first of them was read.
    pub(crate) since: Instant,
    pub(crate) in_flight: InFlight,
}

/// A micro-batch that is not yet written, as long as this lives.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<AtomicUsize>);

impl InFlight {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(count))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Where a pipeline begins to read a partition, where Kafka does not know.
pub(crate) trait StartOffsets: Send + Sync + std::fmt::Debug {
    /// Offsets by partition; a partition that is not among them begins where the group or `auto.offset.reset` says.
    ///
    /// # Errors
    /// If they cannot be read now.
    fn read(&self) -> Result<BTreeMap<i32, i64>>;
}

/// What librdkafka tells while it reads.
pub(crate) struct Group {
    epoch: AtomicU64,
    starts: Option<Arc<dyn StartOffsets>>,
    /// By partition that is assigned: where what is committed ends.
    positions: Mutex<BTreeMap<i32, Option<i64>>>,
    metadata: Mutex<Option<Arc<ConsumerGroupMetadata>>>,
    failure: Mutex<Option<Failure>>,
    topic: String,
    stats: Arc<Stats>,
}

impl Group {
    /// The number of the current assignment of partitions.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    fn assign(&self, consumer: &BaseConsumer<Self>, partitions: &mut TopicPartitionList) -> Result<(), Failure> {
        let starts = self.starts.as_ref().map(|starts| starts.read()).transpose()?.unwrap_or_default();
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
        // Taken here and not at a commit: a member that lost its place is none until it joins again, and a commit of none is not
        // refused.
        let metadata = consumer.group_metadata().filter(|_| !consumer.assignment_lost());
        let Some(metadata) = metadata else { return Err(Failure::transient("the place in the consumer group was lost")) };
        tracing::info!(partitions = ?positions.keys().collect::<Vec<_>>(), topic = self.topic, "partitions assigned");
        self.stats.assigned(positions.keys().copied());
        *self.positions.lock() = positions;
        *self.metadata.lock() = Some(Arc::new(metadata));
        consumer.assign(partitions).map_err(|e| Failure::transient(format!("could not take partitions: {}", cause(&e))))
    }
}

impl ClientContext for Group {
    fn stats(&self, statistics: Statistics) {
        self.stats.reachable(statistics.brokers.values().any(|broker| broker.nodeid >= 0 && broker.state == "UP"));
        let Some(topic) = statistics.topics.get(&self.topic) else { return };
        for (partition, known) in &topic.partitions {
            // before it is active the group's offset is not known
            if known.ls_offset >= 0 && known.fetch_state == "active" {
                // negative: the group has none, and begins with the first record that there is
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
        // whatever was read and is not committed is read again, by whoever has the partition then
        self.epoch.fetch_add(1, Ordering::AcqRel);
        let done = match what {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => self.assign(consumer, partitions),
            _ => {
                tracing::info!(topic = self.topic, "partitions revoked");
                self.positions.lock().clear();
                *self.metadata.lock() = None;
                self.stats.revoked();
                consumer.unassign().map_err(|e| Failure::transient(cause(&e)))
            }
        };
        if let Err(failure) = done {
            drop(consumer.unassign());
            *self.failure.lock() = Some(failure);
        }
    }
}

/// A member of a consumer group, which leaves it when this is dropped.
pub(crate) type Consumer = BaseConsumer<Group>;

/// Logs what librdkafka calls errors, all but the end of a partition.
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

/// Reads a topic in micro-batches.
pub(crate) struct Reader {
    pub(crate) consumer: Arc<Consumer>,
    topic: String,
    with_headers: bool,
    max_rows: usize,
    max_age: Duration,
    /// End when every partition was read up to its end.
    until_end: bool,
    /// Micro-batches that are not yet written.
    in_flight: Arc<AtomicUsize>,
    stop: Stop,
    stats: Arc<Stats>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("topic", &self.topic).finish_non_exhaustive()
    }
}

/// How a [`Reader`] reads.
#[derive(Debug)]
pub(crate) struct ReaderOptions<'a> {
    pub(crate) connection: &'a Connection,
    pub(crate) group: &'a str,
    pub(crate) with_headers: bool,
    pub(crate) max_rows: usize,
    pub(crate) max_age: Duration,
    pub(crate) until_end: bool,
    pub(crate) starts: Option<Arc<dyn StartOffsets>>,
}

impl Reader {
    /// Joins the group.
    ///
    /// # Errors
    /// Passing ones if no broker answers; a last one if there is no such topic.
    pub(crate) fn open(what: ReaderOptions<'_>, stop: Stop, stats: Arc<Stats>) -> Result<Self, Failure> {
        let connection = what.connection;
        let mut config = connection.client();
        config.set("group.id", what.group);
        config.set("enable.auto.commit", "false").set("enable.auto.offset.store", "false");
        config.set("enable.partition.eof", "true").set("statistics.interval.ms", "1000");
        connection.set_default(&mut config, "isolation.level", "read_committed");
        connection.set_default(&mut config, "auto.offset.reset", "earliest");
        // how soon the partitions of an instance that died are given to another, or to itself
        connection.set_default(&mut config, "session.timeout.ms", "10000");
        // what is read ahead of a pipeline that cannot keep up
        connection.set_default(&mut config, "queued.max.messages.kbytes", "16384");
        // a fetch of every few records would take more of the brokers' time and of this program's than the records
        connection.set_default(&mut config, "fetch.min.bytes", FETCH_BYTES);
        let wait = (what.max_age / FETCH_WAIT).as_millis().clamp(1, 100).to_string();
        connection.set_default(&mut config, "fetch.wait.max.ms", &wait);
        // how long a fetch waits once that much was read ahead; librdkafka's second is one in which nothing comes
        connection.set_default(&mut config, "fetch.queue.backoff.ms", "5");
        let group = Group {
            epoch: AtomicU64::new(0),
            starts: what.starts,
            positions: Mutex::default(),
            metadata: Mutex::default(),
            failure: Mutex::default(),
            topic: connection.topic.clone(),
            stats: Arc::clone(&stats),
        };
        let consumer: Consumer = config.create_with_context(group).map_err(|e| Failure::permanent(cause(&e)))?;
        connection.create_topic()?;
        topic_exists(consumer.client(), connection)?;
        consumer.subscribe(&[&connection.topic]).map_err(|e| Failure::transient(cause(&e)))?;
        Ok(Self {
            consumer: Arc::new(consumer),
            topic: connection.topic.clone(),
            with_headers: what.with_headers,
            max_rows: what.max_rows,
            max_age: what.max_age,
            until_end: what.until_end,
            in_flight: Arc::default(),
            stop,
            stats,
        })
    }

    /// Reads until it is asked to stop, or fails; a batch that is not taken holds it up.
    ///
    /// # Errors
    /// See [`Failure`].
    pub(crate) fn run(&self, batches: &mpsc::Sender<Batch>) -> Result<(), Failure> {
        let group = self.consumer.context();
        let mut builder = RecordsBuilder::new(self.with_headers);
        // partitions at whose end it is, and those of them of which that was not malformed_error yet
        let (mut at_end, mut unreported) = (BTreeSet::new(), Vec::new());
        let (mut epoch, mut since) = (group.epoch(), None::<Instant>);
        loop {
            let age = since.map_or(Duration::ZERO, |since| since.elapsed());
            let is_full = self.is_full(&builder);
            let is_last = self.stop.is_requested() || (self.until_end && self.is_at_end(&at_end));
            if let Some(first) = since
                && (is_full || is_last || age >= self.max_age)
            {
                // One that is not full grows until the one before it is written: in a queue it would be as late, and smaller.
                // Full ones are read, queried and written side by side.
                let place = match is_full || is_last {
                    true => batches.blocking_reserve_or_closed(),
                    false if self.in_flight.load(Ordering::Acquire) > 0 => Place::Full,
                    false => batches.try_reserve_or_closed(),
                };
                match place {
                    Place::Free(place) => {
                        since = None;
                        place.send(self.batch(&mut builder, epoch, first)?);
                    }
                    Place::Closed => return Ok(()),
                    Place::Full => {}
                }
            }
            if (is_last && since.is_none()) || batches.is_closed() {
                return Ok(());
            }
            // of whole milliseconds: a poll waits the rest of one by asking again and again
            let left = self.max_age.saturating_sub(age).as_millis().max(1);
            let mut poll_time = match since {
                None => IDLE_POLL,
                Some(_) => u64::try_from(left).map_or(IDLE_POLL, Duration::from_millis).min(IDLE_POLL),
            };
            // what is at hand is taken without a look at the clock
            for _ in 0..POLLS_PER_CLOCK_CHECK {
                let polled = self.consumer.poll(poll_time);
                if group.epoch() != epoch {
                    if let Some(failure) = group.failure.lock().take() {
                        return Err(failure);
                    }
                    epoch = group.epoch();
                    builder = RecordsBuilder::new(self.with_headers);
                    at_end.clear();
                    unreported.clear();
                    since = None;
                }
                poll_time = Duration::ZERO;
                match polled {
                    None => break,
                    Some(Ok(message)) => {
                        builder.push(&message);
                        if !at_end.is_empty() {
                            at_end.remove(&message.partition());
                        }
                        since.get_or_insert_with(Instant::now);
                        if self.is_full(&builder) {
                            break;
                        }
                    }
                    Some(Err(KafkaError::PartitionEOF(partition))) => {
                        at_end.insert(partition);
                        unreported.push(partition);
                    }
                    Some(Err(error)) => self.judge(&error)?,
                }
            }
            if builder.len() == 0 {
                let positions = group.positions.lock();
                for partition in unreported.drain(..).filter(|partition| at_end.contains(partition)) {
                    self.stats.at_end(partition, positions.get(&partition).copied().flatten());
                }
            }
        }
    }

    fn is_full(&self, builder: &RecordsBuilder) -> bool {
        builder.len() >= self.max_rows || builder.bytes() >= MAX_BATCH_BYTES
    }

    /// What was collected, with the spans that it moves partitions on by.
    fn batch(&self, builder: &mut RecordsBuilder, epoch: u64, since: Instant) -> Result<Batch, Failure> {
        let records = builder.finish()?;
        tracing::debug!(records = records.len(), took = ?since.elapsed(), "read");
        let group = self.consumer.context();
        let Some(metadata) = group.metadata.lock().clone() else {
            return Err(Failure::transient("records came before an assignment of partitions"));
        };
        let mut spans: BTreeMap<i32, Span> = BTreeMap::new();
        let mut positions = group.positions.lock();
        let places = records.partitions().values().iter().zip(records.offsets().values());
        for (partition, offset) in places {
            let to = *offset + 1;
            let span = spans.entry(*partition).or_insert_with(|| {
                let from = positions.get(partition).copied().flatten();
                Span { from, to }
            });
            span.to = to;
        }
        positions.extend(spans.iter().map(|(partition, span)| (*partition, Some(span.to))));
        drop(positions);
        let in_flight = InFlight::new(&self.in_flight);
        Ok(Batch { records, spans, epoch, group: metadata, since, in_flight })
    }

    /// An instance that has got no partition is at the end of all that it has.
    fn is_at_end(&self, at_end: &BTreeSet<i32>) -> bool {
        let group = self.consumer.context();
        let is_assigned = group.metadata.lock().is_some();
        is_assigned && group.positions.lock().keys().all(|partition| at_end.contains(partition))
    }

    /// librdkafka connects again by itself; what a person must mend ends the pipeline.
    fn judge(&self, error: &KafkaError) -> Result<(), Failure> {
        use RDKafkaErrorCode as Code;
        let text = format!("reading topic '{}': {}", self.topic, cause(error));
        match error.rdkafka_error_code() {
            Some(
                Code::TopicAuthorizationFailed
                | Code::GroupAuthorizationFailed
                | Code::ClusterAuthorizationFailed
                | Code::SaslAuthenticationFailed
                | Code::Authentication
                | Code::AutoOffsetReset
                | Code::UnsupportedFeature,
            ) => Err(Failure::permanent(text)),
            _ if matches!(error, KafkaError::MessageConsumptionFatal(_)) => Err(Failure::transient(text)),
            _ => {
                tracing::warn!("{text}");
                Ok(())
            }
        }
    }
}

/// A place in a channel.
enum Place<'a> {
    Free(mpsc::Permit<'a, Batch>),
    Full,
    Closed,
}

trait Reserve {
    fn blocking_reserve_or_closed(&self) -> Place<'_>;
    fn try_reserve_or_closed(&self) -> Place<'_>;
}

impl Reserve for mpsc::Sender<Batch> {
    fn blocking_reserve_or_closed(&self) -> Place<'_> {
        match futures::executor::block_on(self.reserve()) {
            Ok(place) => Place::Free(place),
            Err(_) => Place::Closed,
        }
    }

    fn try_reserve_or_closed(&self) -> Place<'_> {
        match self.try_reserve() {
            Ok(place) => Place::Free(place),
            Err(mpsc::error::TrySendError::Full(())) => Place::Full,
            Err(mpsc::error::TrySendError::Closed(())) => Place::Closed,
        }
    }
}

/// That a broker knows the topic.
pub(crate) fn topic_exists<C: ClientContext>(
    client: &rdkafka::client::Client<C>,
    connection: &Connection,
) -> Result<Vec<i32>, Failure> {
    let topic = &connection.topic;
    let begun = Instant::now();
    let (partitions, error) = loop {
        let metadata = client
            .fetch_metadata(Some(topic), METADATA)
            .map_err(|e| Failure::transient(format!("no answer from {}: {}", connection.brokers, cause(&e))))?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let error = match found {
            Some(found) => found.error(),
            None => Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART),
        };
        let is_missing = error == Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART);
        if !is_missing || begun.elapsed() > TOPIC_PROPAGATION {
            let partitions = found.map(|found| found.partitions().iter().map(|p| p.id()).collect::<Vec<i32>>());
            break (partitions.unwrap_or_default(), error);
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    if error == Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART) {
        let missing = format!("{} has no topic '{topic}'", connection.brokers);
        return Err(match connection.creates_topic() {
            // it was just made, and not every broker has heard of it
            true => Failure::transient(missing),
            false => Failure::permanent(format!(
                "{missing}; create it, or give the table the option partitions for a pipeline to create it"
            )),
        });
    }
    match error {
        Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED) => {
            Err(Failure::permanent(format!("{} does not allow this user to use the topic '{topic}'", connection.brokers)))
        }
        Some(error) => Err(Failure::transient(format!("topic '{topic}': {}", RDKafkaErrorCode::from(error)))),
        None => Ok(partitions),
    }
}
