//! Writes records to topics, in transactions or without.

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

use super::consume::{Span, topic_exists};
use super::{Connection, cause};
pub(crate) use crate::failure::{Failure, FENCED};
use crate::records::Records;
use crate::stop::Stop;

/// How long one call may wait for brokers; it is made again.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Milliseconds after which a wait for brokers looks for records that they have not taken.
const STEP: i32 = 10;
/// Records between two such looks.
const RECORDS_PER_POLL: usize = 4096;
/// How long a pipeline that is to stop still waits for brokers.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// Keeps the first record that brokers did not take.
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

/// Writes records.
pub(crate) struct Producer {
    inner: BaseProducer<Deliveries>,
    stop: Stop,
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer").finish_non_exhaustive()
    }
}

impl Producer {
    /// One whose records are written once each, as long as it lives.
    ///
    /// # Errors
    /// Passing ones if no broker answers; last ones if there is no such topic, or it may not be written.
    pub(crate) fn idempotent(connection: &Connection, stop: Stop) -> Result<Self, Failure> {
        let mut config = config(connection);
        config.set("enable.idempotence", "true");
        Self::open(&config, connection, stop)
    }

    /// One that writes in transactions under a name; another one of this name can no longer write.
    ///
    /// # Errors
    /// See [`Producer::idempotent`].
    pub(crate) fn transactional(connection: &Connection, name: &str, stop: Stop) -> Result<Self, Failure> {
        let mut config = config(connection);
        config.set("transactional.id", name);
        // how long what an instance had begun when it died keeps its partitions from others
        connection.set_default(&mut config, "transaction.timeout.ms", "15000");
        // A transaction that begins while brokers still end the one before it is asked to come again: not only after a
        // tenth of a second.
        connection.set_default(&mut config, "retry.backoff.ms", "2");
        let producer = Self::open(&config, connection, stop)?;
        producer.call("beginning to write", || producer.inner.init_transactions(CALL_TIMEOUT))?;
        Ok(producer)
    }

    fn open(config: &ClientConfig, connection: &Connection, stop: Stop) -> Result<Self, Failure> {
        let created = config.create_with_context(Deliveries::default());
        let inner: BaseProducer<Deliveries> = created.map_err(|e| Failure::permanent(cause(&e)))?;
        connection.create_topic()?;
        topic_exists(inner.client(), connection)?;
        Ok(Self { inner, stop })
    }

    /// That a topic is there.
    ///
    /// # Errors
    /// See [`Producer::idempotent`].
    pub(crate) fn check(&self, topic: &Connection) -> Result<(), Failure> {
        topic.create_topic()?;
        topic_exists(self.inner.client(), topic).map(drop)
    }

    /// Hands over records; they are written later.
    ///
    /// # Errors
    /// If one is too large, or an earlier one could not be written.
    pub(crate) fn send(&self, topic: &str, records: &Records) -> Result<(), Failure> {
        let (values, keys) = (records.values(), records.keys());
        let (timestamps, partitions) = (records.timestamps(), records.partitions());
        let has_headers = records.headers().null_count() < records.len();
        // librdkafka asks for the time of each record that has none
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
            self.hand_over(topic, record)?;
            if i % RECORDS_PER_POLL == 0 {
                self.inner.poll(Duration::ZERO);
            }
        }
        Ok(())
    }

    /// One record.
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
        self.hand_over(topic, record)
    }

    /// Waits while the queue is full.
    fn hand_over(&self, topic: &str, mut record: BaseRecord<'_, [u8], [u8]>) -> Result<(), Failure> {
        loop {
            record = match self.inner.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), record)) => record,
                Err((error, _)) => return Err(write_failure(topic, &error)),
            };
            self.wait();
        }
    }

    /// Waits until brokers have taken everything, but not for long; tells whether they have.
    ///
    /// The flush of `BaseProducer` waits for reports, which only records that were not taken have, and waits a last
    /// millisecond by asking again and again.
    fn wait(&self) -> RDKafkaRespErr {
        // SAFETY: the producer lives as long as `inner`.
        let answer = unsafe { rd_kafka_flush(self.inner.client().native_ptr(), STEP) };
        self.inner.poll(Duration::ZERO);
        answer
    }

    /// Waits until all records are written.
    ///
    /// # Errors
    /// If one could not be written.
    pub(crate) fn flush(&self) -> Result<(), Failure> {
        self.drain()?;
        match self.inner.context().failed.lock().take() {
            Some(error) => Err(write_failure("", &error)),
            None => Ok(()),
        }
    }

    /// Waits until brokers have taken everything, or have not.
    fn drain(&self) -> Result<(), Failure> {
        let begun = Instant::now();
        loop {
            let must_stop = self.stop.is_requested() && begun.elapsed() > STOP_TIMEOUT;
            match self.wait() {
                RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR => return Ok(()),
                RDKafkaRespErr::RD_KAFKA_RESP_ERR__TIMED_OUT if !must_stop => {}
                error => return Err(classify("writing", &KafkaError::Flush(error.into()))),
            }
        }
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// If another producer has taken the name.
    pub(crate) fn begin(&self) -> Result<(), Failure> {
        self.call("beginning a transaction", || self.inner.begin_transaction())
    }

    /// Ends a transaction: its records can be read, and the group has read up to these offsets; or neither.
    ///
    /// # Errors
    /// If partitions have moved meanwhile; if another producer has taken the name; if brokers do not answer.
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
        // why the transaction failed
        match (done, self.inner.context().failed.lock().take()) {
            (Err(Failure::Transient(_)), Some(error)) => Err(write_failure(topic, &error)),
            (done, _) => done,
        }
    }

    /// Gives up a transaction, as far as that can be done now: the next one of this name does it otherwise.
    pub(crate) fn abort(&self) {
        if let Err(error) = self.inner.abort_transaction(CALL_TIMEOUT) {
            tracing::debug!("could not abort a transaction: {}", cause(&error));
        }
    }

    /// Calls again what may be called again.
    fn call<T>(&self, what: &str, f: impl Fn() -> KafkaResult<T>) -> Result<T, Failure> {
        let mut last: Option<Instant> = None;
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
            let is_late = self.stop.is_requested() && last.get_or_insert_with(Instant::now).elapsed() > STOP_TIMEOUT;
            if !may_retry || is_late {
                return Err(classify(what, &error));
            }
            tracing::warn!("{what}: {}; trying again", cause(&error));
            self.stop.sleep(Duration::from_millis(100));
        }
    }
}

fn config(connection: &Connection) -> ClientConfig {
    let mut config = connection.client();
    // a report of each record that was written costs as much as to write it
    config.set("delivery.report.only.error", "true");
    // keys go to the partitions that Kafka's own clients choose
    connection.set_default(&mut config, "partitioner", "murmur2_random");
    connection.set_default(&mut config, "queue.buffering.max.messages", "200000");
    connection.set_default(&mut config, "queue.buffering.max.kbytes", "65536");
    config
}

fn is_fenced(error: &RDKafkaError) -> bool {
    matches!(error.code(), RDKafkaErrorCode::Fenced | RDKafkaErrorCode::ProducerFenced)
}

/// What a person must mend ends the pipeline.
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

fn headers(of: &[(String, Option<Vec<u8>>)]) -> OwnedHeaders {
    let insert = |headers: OwnedHeaders, (key, value): &(String, Option<Vec<u8>>)| {
        headers.insert(Header { key, value: value.as_deref() })
    };
    of.iter().fold(OwnedHeaders::new_with_capacity(of.len()), insert)
}

/// Where a group has read up to.
pub(crate) fn offsets(topic: &str, spans: &BTreeMap<i32, Span>) -> Result<TopicPartitionList, Failure> {
    let mut offsets = TopicPartitionList::with_capacity(spans.len());
    for (partition, span) in spans {
        let added = offsets.add_partition_offset(topic, *partition, Offset::Offset(span.to));
        added.map_err(|e| Failure::transient(cause(&e)))?;
    }
    Ok(offsets)
}
