//! Writes records to topics, with or without transactions.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use datafusion::arrow::array::Array;
use datafusion::error::DataFusionError;
use parking_lot::Mutex;
use rdkafka::bindings::rd_kafka_flush;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientConfig, ClientContext, Offset, TopicPartitionList};

use super::consume::Span;
use super::topic::{create_topic, partitions_of};
use super::{Connection, cause};
use crate::failure::{FENCED, Failure};
use crate::records::Records;
use crate::stop::StopHandle;

/// Timeout of one call to the brokers. A call that times out is repeated.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Time between two checks for delivery failures during a flush, milliseconds.
const FLUSH_MS: i32 = 10;
/// Records between two checks for delivery failures while records are sent.
const RECORDS_PER_POLL: usize = 4096;
/// How long a pipeline that is stopping still waits for brokers.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// Keeps the first delivery failure.
#[derive(Debug, Default)]
struct Deliveries {
    failed: Mutex<Option<KafkaError>>,
}

impl ClientContext for Deliveries {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(error = cause(&error), "{reason}");
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            self.failed.lock().get_or_insert_with(|| error.clone());
        }
    }
}

/// A producer of records.
pub(crate) struct Producer {
    inner: BaseProducer<Deliveries>,
    stop: StopHandle,
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer").finish_non_exhaustive()
    }
}

impl Producer {
    /// A producer whose internal retries do not duplicate records.
    ///
    /// # Errors
    /// A transient failure if no broker answers; a permanent one if the topic does not exist or access is denied.
    pub(crate) fn idempotent(connection: &Connection, stop: StopHandle) -> Result<Self, Failure> {
        let mut config = config(connection);
        config.set("enable.idempotence", "true");
        Self::open(&config, connection, stop)
    }

    /// A producer that writes in transactions. Brokers fence an earlier producer of the same name.
    ///
    /// # Errors
    /// See [`Producer::idempotent`].
    pub(crate) fn transactional(connection: &Connection, name: &str, stop: StopHandle) -> Result<Self, Failure> {
        let mut config = config(connection);
        config.set("transactional.id", name);
        // how long the open transaction of a dead instance keeps its partitions from other instances
        connection.set_default(&mut config, "transaction.timeout.ms", "15000");
        // Brokers that still end the previous transaction ask for a retry. librdkafka's default delay is a tenth of a
        // second.
        connection.set_default(&mut config, "retry.backoff.ms", "2");
        let producer = Self::open(&config, connection, stop)?;
        producer.call("initializing transactions", || producer.inner.init_transactions(CALL_TIMEOUT))?;
        Ok(producer)
    }

    fn open(config: &ClientConfig, connection: &Connection, stop: StopHandle) -> Result<Self, Failure> {
        let created = config.create_with_context(Deliveries::default());
        let inner: BaseProducer<Deliveries> = created.map_err(|e| Failure::permanent(cause(&e)))?;
        create_topic(connection)?;
        partitions_of(inner.client(), connection)?;
        Ok(Self { inner, stop })
    }

    /// Checks that a topic exists, and creates it if its table allows it.
    ///
    /// # Errors
    /// See [`Producer::idempotent`].
    pub(crate) fn check(&self, topic: &Connection) -> Result<(), Failure> {
        create_topic(topic)?;
        partitions_of(self.inner.client(), topic).map(drop)
    }

    /// Queues records, which are written in the background.
    ///
    /// # Errors
    /// See [`Failure`]: for example, a record is too large.
    pub(crate) fn send(&self, topic: &str, records: &Records) -> Result<(), Failure> {
        let (values, keys) = (records.values(), records.keys());
        let (timestamps, partitions) = (records.timestamps(), records.partitions());
        let has_headers = records.headers().null_count() < records.len();
        // without it, librdkafka reads the clock for each record that has no timestamp
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok().and_then(|now| i64::try_from(now.as_millis()).ok());
        for i in 0..records.len() {
            let mut record = BaseRecord::<[u8], [u8]>::to(topic);
            if values.is_valid(i) {
                record = record.payload(values.value(i));
            }
            if keys.is_valid(i) {
                record = record.key(keys.value(i));
            }
            record.timestamp = if timestamps.is_valid(i) { Some(timestamps.value(i)) } else { now };
            if partitions.is_valid(i) {
                record = record.partition(partitions.value(i));
            }
            if has_headers {
                record = record.headers(headers(&records.headers_of(i)));
            }
            self.enqueue(topic, record)?;
            if i % RECORDS_PER_POLL == 0 {
                self.inner.poll(Duration::ZERO);
            }
        }
        Ok(())
    }

    /// Queues one record.
    ///
    /// # Errors
    /// See [`Producer::send`].
    pub(crate) fn send_one(
        &self,
        topic: &str,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        with: &[(String, Option<Vec<u8>>)],
    ) -> Result<(), Failure> {
        let mut record = BaseRecord::<[u8], [u8]>::to(topic).headers(headers(with));
        record.key = key;
        record.payload = value;
        self.enqueue(topic, record)
    }

    /// Queues a record, and waits while the queue is full.
    fn enqueue(&self, topic: &str, mut record: BaseRecord<'_, [u8], [u8]>) -> Result<(), Failure> {
        loop {
            record = match self.inner.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), record)) => record,
                Err((error, _)) => return Err(write_failure(topic, &error)),
            };
            self.flush_briefly();
        }
    }

    /// Waits up to [`FLUSH_MS`] until brokers have acknowledged all records, and returns whether they have.
    ///
    /// The flush of `BaseProducer` waits for delivery reports, and here only failed records have one. It also waits for
    /// the last millisecond in a busy loop.
    fn flush_briefly(&self) -> RDKafkaRespErr {
        // SAFETY: the producer lives as long as `inner`.
        let answer = unsafe { rd_kafka_flush(self.inner.client().native_ptr(), FLUSH_MS) };
        self.inner.poll(Duration::ZERO);
        answer
    }

    /// Waits until all records are written.
    ///
    /// # Errors
    /// See [`Failure`]: for example, brokers refused a record.
    pub(crate) fn flush(&self) -> Result<(), Failure> {
        self.drain()?;
        match self.inner.context().failed.lock().take() {
            Some(error) => Err(write_failure("", &error)),
            None => Ok(()),
        }
    }

    /// Waits until brokers have accepted or refused every record.
    fn drain(&self) -> Result<(), Failure> {
        let started = Instant::now();
        loop {
            let must_stop = self.stop.is_stopping() && started.elapsed() > STOP_TIMEOUT;
            match self.flush_briefly() {
                RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR => return Ok(()),
                RDKafkaRespErr::RD_KAFKA_RESP_ERR__TIMED_OUT if !must_stop => {}
                error => return Err(classify("writing", &KafkaError::Flush(error.into()))),
            }
        }
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// [`Failure::Fenced`] if another producer has the same name.
    pub(crate) fn begin(&self) -> Result<(), Failure> {
        self.call("beginning a transaction", || self.inner.begin_transaction())
    }

    /// Commits a transaction: its records and the offsets of the group become visible together, or neither does.
    ///
    /// # Errors
    /// A transient failure if partitions have moved or brokers do not answer; [`Failure::Fenced`] if another producer
    /// has the same name.
    pub(crate) fn commit(
        &self,
        topic: &str,
        spans: &BTreeMap<i32, Span>,
        group: &ConsumerGroupMetadata,
    ) -> Result<(), Failure> {
        let offsets = offsets(topic, spans)?;
        let done = self
            .call("committing offsets", || self.inner.send_offsets_to_transaction(&offsets, group, CALL_TIMEOUT))
            .and_then(|()| self.drain())
            .and_then(|()| self.call("committing a transaction", || self.inner.commit_transaction(CALL_TIMEOUT)));
        // a failed delivery is the cause of the failed transaction
        match (done, self.inner.context().failed.lock().take()) {
            (Err(Failure::Transient(_)), Some(error)) => Err(write_failure(topic, &error)),
            (done, _) => done,
        }
    }

    /// Aborts a transaction. If this fails, the next producer of the same name aborts it.
    pub(crate) fn abort(&self) {
        if let Err(error) = self.inner.abort_transaction(CALL_TIMEOUT) {
            tracing::debug!("could not abort a transaction: {}", cause(&error));
        }
    }

    /// Calls a function, and retries it as long as the error allows it.
    fn call<T>(&self, what: &str, f: impl Fn() -> KafkaResult<T>) -> Result<T, Failure> {
        let mut stopping_since: Option<Instant> = None;
        loop {
            let error = match f() {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let may_retry = match &error {
                KafkaError::Transaction(error) if is_fenced(error) => {
                    return Err(Failure::Fenced(DataFusionError::Execution(format!("{what}: {FENCED}"))));
                }
                KafkaError::Transaction(error) => error.is_retriable() && !error.txn_requires_abort(),
                other => other.rdkafka_error_code() == Some(RDKafkaErrorCode::OperationTimedOut),
            };
            let is_late =
                self.stop.is_stopping() && stopping_since.get_or_insert_with(Instant::now).elapsed() > STOP_TIMEOUT;
            if !may_retry || is_late {
                return Err(classify(what, &error));
            }
            tracing::warn!("{what}: {}; retrying", cause(&error));
            self.stop.sleep(Duration::from_millis(100));
        }
    }
}

fn config(connection: &Connection) -> ClientConfig {
    let mut config = connection.client();
    // a delivery report for each written record costs as much as writing it
    config.set("delivery.report.only.error", "true");
    // a key goes to the same partition as with the Java client of Kafka
    connection.set_default(&mut config, "partitioner", "murmur2_random");
    connection.set_default(&mut config, "queue.buffering.max.messages", "200000");
    connection.set_default(&mut config, "queue.buffering.max.kbytes", "65536");
    config
}

fn is_fenced(error: &RDKafkaError) -> bool {
    matches!(error.code(), RDKafkaErrorCode::Fenced | RDKafkaErrorCode::ProducerFenced)
}

/// A retry may solve some errors; others need a person, and end the pipeline.
fn classify(what: &str, error: &KafkaError) -> Failure {
    use RDKafkaErrorCode as Code;
    let text = format!("{what}: {}", cause(error));
    match error.rdkafka_error_code() {
        Some(
            Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
            | Code::SaslAuthenticationFailed
            | Code::Authentication
            | Code::UnsupportedFeature
            | Code::MessageSizeTooLarge
            | Code::UnknownPartition,
        ) => Failure::permanent(text),
        _ => Failure::transient(text),
    }
}

fn write_failure(topic: &str, error: &KafkaError) -> Failure {
    let topic = if topic.is_empty() { String::new() } else { format!(" to topic '{topic}'") };
    classify(&format!("writing{topic}"), error)
}

fn headers(headers: &[(String, Option<Vec<u8>>)]) -> OwnedHeaders {
    let insert = |headers: OwnedHeaders, (key, value): &(String, Option<Vec<u8>>)| {
        headers.insert(Header { key, value: value.as_deref() })
    };
    headers.iter().fold(OwnedHeaders::new_with_capacity(headers.len()), insert)
}

/// The ends of spans as offsets of a group.
pub(crate) fn offsets(topic: &str, spans: &BTreeMap<i32, Span>) -> Result<TopicPartitionList, Failure> {
    let mut offsets = TopicPartitionList::with_capacity(spans.len());
    for (partition, span) in spans {
        let added = offsets.add_partition_offset(topic, *partition, Offset::Offset(span.to));
        added.map_err(|e| Failure::transient(cause(&e)))?;
    }
    Ok(offsets)
}
