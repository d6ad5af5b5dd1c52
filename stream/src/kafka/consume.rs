//! Reads a topic in micro-batches, as a member of a consumer group.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rdkafka::consumer::{Consumer as _, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use tokio::sync::mpsc;

use super::group::{Consumer, Group, StartOffsets};
use super::topic::{create_topic, partitions_of};
use super::{Connection, cause};
use crate::failure::Failure;
use crate::records::{Records, RecordsBuilder};
use crate::stats::Stats;
use crate::stop::StopHandle;

/// Approximate size limit of a micro-batch, bytes.
const MAX_BATCH_BYTES: usize = 16 << 20;
/// Records that are taken between two readings of the clock.
const POLLS_PER_CLOCK_CHECK: usize = 1024;
/// How long a poll waits while no record is available.
const IDLE_POLL: Duration = Duration::from_millis(50);
/// Bytes that a fetch waits for.
const FETCH_BYTES: &str = "262144";
/// The maximum age of a micro-batch divided by this is how long a fetch waits for its bytes.
const FETCH_WAIT_DIVISOR: u32 = 4;

/// Offsets of one partition that a micro-batch covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    /// Offset at which the previous commit or micro-batch ends; none if there is none.
    pub(crate) from: Option<i64>,
    /// Offset after the last record of the micro-batch.
    pub(crate) to: i64,
}

/// A micro-batch: records that were read together.
pub(crate) struct Batch {
    pub(crate) records: Records,
    pub(crate) spans: BTreeMap<i32, Span>,
    /// Number of the assignment of partitions in which the records were read.
    pub(crate) epoch: u64,
    /// Metadata of the group at that assignment: with it, brokers refuse a commit after partitions have moved.
    pub(crate) group: Arc<ConsumerGroupMetadata>,
    /// When the first of the records was read.
    pub(crate) since: Instant,
    pub(crate) in_flight: InFlight,
}

/// Counts a micro-batch as not yet written until it is dropped.
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

/// Reads a topic in micro-batches.
pub(crate) struct Reader {
    pub(crate) consumer: Arc<Consumer>,
    topic: String,
    with_headers: bool,
    max_rows: usize,
    max_age: Duration,
    /// Whether the reader ends after every partition was read to its end.
    until_end: bool,
    /// Number of micro-batches that are not yet written.
    in_flight: Arc<AtomicUsize>,
    stop: StopHandle,
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
    pub(crate) start_offsets: Option<Arc<dyn StartOffsets>>,
}

impl Reader {
    /// Joins the consumer group.
    ///
    /// # Errors
    /// A transient failure if no broker answers, a permanent one if the topic does not exist.
    pub(crate) fn open(options: ReaderOptions<'_>, stop: StopHandle, stats: Arc<Stats>) -> Result<Self, Failure> {
        let connection = options.connection;
        let mut config = connection.client();
        config.set("group.id", options.group);
        config.set("enable.auto.commit", "false").set("enable.auto.offset.store", "false");
        config.set("enable.partition.eof", "true").set("statistics.interval.ms", "1000");
        connection.set_default(&mut config, "isolation.level", "read_committed");
        connection.set_default(&mut config, "auto.offset.reset", "earliest");
        // how soon the partitions of a dead instance are assigned to another one, or to its own restart
        connection.set_default(&mut config, "session.timeout.ms", "10000");
        // how much is read ahead of a slow pipeline
        connection.set_default(&mut config, "queued.max.messages.kbytes", "16384");
        // fetching every few records would take more time, of the brokers and of this program, than the records
        // themselves
        connection.set_default(&mut config, "fetch.min.bytes", FETCH_BYTES);
        let wait = (options.max_age / FETCH_WAIT_DIVISOR).as_millis().clamp(1, 100).to_string();
        connection.set_default(&mut config, "fetch.wait.max.ms", &wait);
        // how long fetching pauses once the queue is full; nothing arrives during librdkafka's default of one second
        connection.set_default(&mut config, "fetch.queue.backoff.ms", "5");
        let group = Group::new(&connection.topic, options.start_offsets, Arc::clone(&stats));
        let consumer: Consumer = config.create_with_context(group).map_err(|e| Failure::permanent(cause(&e)))?;
        create_topic(connection)?;
        partitions_of(consumer.client(), connection)?;
        consumer.subscribe(&[&connection.topic]).map_err(|e| Failure::transient(cause(&e)))?;
        Ok(Self {
            consumer: Arc::new(consumer),
            topic: connection.topic.clone(),
            with_headers: options.with_headers,
            max_rows: options.max_rows,
            max_age: options.max_age,
            until_end: options.until_end,
            in_flight: Arc::default(),
            stop,
            stats,
        })
    }

    /// Reads until a stop is requested or reading fails. It waits while the channel has no room for a full micro-batch.
    ///
    /// # Errors
    /// See [`Failure`].
    pub(crate) fn run(&self, batches: &mpsc::Sender<Batch>) -> Result<(), Failure> {
        let group = self.consumer.context();
        let mut builder = RecordsBuilder::new(self.with_headers);
        // partitions at their ends, and those among them to report to the statistics
        let (mut at_end, mut unreported) = (BTreeSet::new(), Vec::new());
        let (mut epoch, mut since) = (group.epoch(), None::<Instant>);
        loop {
            let age = since.map_or(Duration::ZERO, |since| since.elapsed());
            let is_full = self.is_full(&builder);
            let is_last = self.stop.is_stopping() || (self.until_end && self.is_at_end(&at_end));
            if let Some(first) = since
                && (is_full || is_last || age >= self.max_age)
            {
                // A batch that is not full grows until the one before it is written. In the channel it would wait as
                // long, and be smaller. Full batches are read, queried and written in parallel.
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
            // in whole milliseconds: librdkafka waits for a fraction of one in a busy loop
            let left = self.max_age.saturating_sub(age).as_millis().max(1);
            let mut poll_time = match since {
                None => IDLE_POLL,
                Some(_) => u64::try_from(left).map_or(IDLE_POLL, Duration::from_millis).min(IDLE_POLL),
            };
            // available records are taken without reading the clock
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
                    Some(Err(error)) => self.check(&error)?,
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

    /// The collected records, with the span of each partition.
    fn batch(&self, builder: &mut RecordsBuilder, epoch: u64, since: Instant) -> Result<Batch, Failure> {
        let records = builder.finish()?;
        tracing::debug!(records = records.len(), took = ?since.elapsed(), "read");
        let group = self.consumer.context();
        let Some(metadata) = group.metadata.lock().clone() else {
            return Err(Failure::transient("records arrived before partitions were assigned"));
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

    /// Whether all assigned partitions were read to their ends; an instance without partitions counts as at the end.
    fn is_at_end(&self, at_end: &BTreeSet<i32>) -> bool {
        let group = self.consumer.context();
        let is_assigned = group.metadata.lock().is_some();
        is_assigned && group.positions.lock().keys().all(|partition| at_end.contains(partition))
    }

    /// Ends the pipeline for errors that somebody must fix. librdkafka recovers from others by itself; they are logged.
    fn check(&self, error: &KafkaError) -> Result<(), Failure> {
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

/// Room for a micro-batch in a channel.
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
