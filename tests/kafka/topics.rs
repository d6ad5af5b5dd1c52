//! Topics and their records.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, Headers, OwnedHeaders, OwnedMessage};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use xtask::kafka::Broker;

static TOPICS: AtomicUsize = AtomicUsize::new(0);

/// A topic that no other test has.
pub(crate) fn topic(broker: &Broker, name: &str, partitions: i32) -> String {
    let started = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    let topic = format!("{name}-{started}-{}", TOPICS.fetch_add(1, Ordering::Relaxed));
    let admin: AdminClient<_> = config(broker).create().unwrap();
    let new = NewTopic::new(&topic, partitions, TopicReplication::Fixed(1));
    let made = futures::executor::block_on(admin.create_topics([&new], &AdminOptions::new())).unwrap();
    made.into_iter().for_each(|made| drop(made.unwrap()));
    topic
}

pub(crate) fn config(broker: &Broker) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", broker.bootstrap());
    config
}

/// A record to write.
#[derive(Debug, Default, Clone)]
pub(crate) struct Record {
    pub(crate) key: Option<String>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) timestamp: Option<i64>,
}

impl Record {
    pub(crate) fn of(value: impl Into<Vec<u8>>) -> Self {
        Self { value: Some(value.into()), ..Self::default() }
    }
}

/// `{"id": 7, "a": 3.5}`, spread over the partitions.
pub(crate) fn number(id: usize) -> Record {
    let half = if id.is_multiple_of(2) { ".0" } else { ".5" };
    Record { key: Some(id.to_string()), ..Record::of(format!("{{\"id\":{id},\"a\":{}{half}}}", id / 2)) }
}

/// Writes records, and waits until they are there.
pub(crate) fn produce(broker: &Broker, topic: &str, records: impl IntoIterator<Item = Record>) {
    let mut config = config(broker);
    config.set("queue.buffering.max.messages", "500000").set("enable.idempotence", "true");
    let producer: ThreadedProducer<DefaultProducerContext> = config.create().unwrap();
    for record in records {
        loop {
            let mut sent = BaseRecord::<[u8], [u8]>::to(topic);
            sent.key = record.key.as_deref().map(str::as_bytes);
            sent.payload = record.value.as_deref();
            sent.timestamp = record.timestamp;
            if !record.headers.is_empty() {
                let headers = record.headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
                    headers.insert(Header { key, value: Some(value) })
                });
                sent = sent.headers(headers);
            }
            match producer.send(sent) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err((error, _)) => panic!("{error}"),
            }
        }
    }
    producer.flush(Duration::from_secs(60)).unwrap();
}

/// All committed records of a topic.
pub(crate) fn consume(broker: &Broker, topic: &str) -> Vec<OwnedMessage> {
    let mut records = Vec::new();
    each(broker, topic, "read_committed", |record| records.push(record));
    records
}

fn each(broker: &Broker, topic: &str, isolation: &str, mut f: impl FnMut(OwnedMessage)) {
    let mut config = config(broker);
    config.set("group.id", "test").set("enable.partition.eof", "true").set("enable.auto.commit", "false");
    let consumer: BaseConsumer = config.set("isolation.level", isolation).create().unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(20)).unwrap();
    let (mut list, mut open) = (TopicPartitionList::new(), std::collections::BTreeSet::new());
    for partition in metadata.topics()[0].partitions() {
        list.add_partition_offset(topic, partition.id(), Offset::Beginning).unwrap();
        open.insert(partition.id());
    }
    consumer.assign(&list).unwrap();
    let start = Instant::now();
    while !open.is_empty() {
        assert!(start.elapsed() < Duration::from_secs(120), "the topic {topic} does not end");
        match consumer.poll(Duration::from_secs(1)) {
            Some(Ok(message)) => f(message.detach()),
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(open.remove(&partition)),
            Some(Err(error)) => panic!("{error}"),
            None => {}
        }
    }
}

/// The values of records, in order of partition and offset.
pub(crate) fn texts(records: &[OwnedMessage]) -> Vec<String> {
    let mut records: Vec<&OwnedMessage> = records.iter().collect();
    records.sort_by_key(|record| (record.partition(), record.offset()));
    records.iter().map(|r| String::from_utf8_lossy(r.payload().unwrap_or_default()).into_owned()).collect()
}

/// The headers of a record.
pub(crate) fn headers(record: &OwnedMessage) -> BTreeMap<String, String> {
    let text = |value: Option<&[u8]>| String::from_utf8_lossy(value.unwrap_or_default()).into_owned();
    let headers = record.headers().map(|h| h.iter().map(|h| (h.key.to_owned(), text(h.value))).collect());
    headers.unwrap_or_default()
}

/// The `id` of each JSON value.
pub(crate) fn ids(records: &[OwnedMessage]) -> Vec<usize> {
    let id = |record: &OwnedMessage| {
        let value: serde_json::Value = serde_json::from_slice(record.payload().unwrap()).unwrap();
        usize::try_from(value["id"].as_u64().unwrap()).unwrap()
    };
    records.iter().map(id).collect()
}

/// That every number up to `n` is there once.
pub(crate) fn assert_each_once(ids: &[usize], n: usize) {
    let mut counts = vec![0_usize; n];
    ids.iter().for_each(|id| counts[*id] += 1);
    let lost: Vec<usize> = (0..n).filter(|id| counts[*id] == 0).collect();
    let repeated: Vec<usize> = (0..n).filter(|id| counts[*id] > 1).collect();
    let shown = |ids: &[usize]| format!("{} ({:?} …)", ids.len(), &ids[..ids.len().min(10)]);
    assert!(lost.is_empty() && repeated.is_empty(), "lost {}, repeated {}", shown(&lost), shown(&repeated));
}
