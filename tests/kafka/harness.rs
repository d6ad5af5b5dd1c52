//! Topics, and programs that run pipelines over them.

use std::collections::BTreeMap;
use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
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

/// A folder with what a pipeline needs: its file, its models, its output.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) folder: tempfile::TempDir,
    /// Of the program.
    pub(crate) environment: BTreeMap<&'static str, String>,
}

impl Place {
    pub(crate) fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap(), environment: BTreeMap::new() };
        std::fs::create_dir(place.path("out")).unwrap();
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn program(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_aefusion"));
        command.env("AEFUSION_MODELS", self.path("models")).current_dir(self.folder.path()).stdin(Stdio::null());
        command.env_remove("RUST_LOG").envs(&self.environment);
        command
    }

    /// Runs statements, and gives what they print as CSV without header, or the error.
    pub(crate) fn sql(&self, sql: &str) -> Result<String, String> {
        let output = self.program().args(["sql", "--format", "csv", "-c", sql]).output().unwrap();
        match output.status.success() {
            true => {
                let text = String::from_utf8(output.stdout).unwrap();
                Ok(text.lines().skip(1).collect::<Vec<_>>().join("\n"))
            }
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// The ids in the files of a folder.
    pub(crate) fn ids(&self, location: &str) -> Vec<usize> {
        let read = self.sql(&format!("SELECT id FROM '{location}'")).unwrap();
        read.lines().map(|line| line.parse().unwrap()).collect()
    }

    /// Starts a pipeline.
    pub(crate) fn run(&self, sql: &str, arguments: &[&str]) -> Pipeline {
        self.run_as("pipeline", sql, arguments)
    }

    pub(crate) fn run_as(&self, name: &str, sql: &str, arguments: &[&str]) -> Pipeline {
        let file = self.path(&format!("{name}.sql"));
        std::fs::write(&file, sql).unwrap();
        let log = self.path(&format!("{name}-{}.log", TOPICS.fetch_add(1, Ordering::Relaxed)));
        let mut command = self.program();
        command.arg("run").arg(file).args(arguments).stderr(std::fs::File::create(&log).unwrap());
        Pipeline { process: command.spawn().unwrap(), log }
    }

    /// Runs a pipeline up to the end of its topic.
    pub(crate) fn run_to_end(&self, sql: &str) -> String {
        let (status, log) = self.run(sql, &["--until-end"]).wait();
        assert!(status.success(), "{log}");
        log
    }
}

/// An object store that speaks S3, with an empty bucket, which ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Bucket {
    process: Child,
    address: String,
}

impl Bucket {
    pub(crate) fn new() -> Self {
        let scripts = xtask::root().join("tests").join("kafka");
        let python = xtask::python::environment("s3", &scripts.join("requirements.txt")).unwrap();
        let mut command = Command::new(python);
        command.arg(scripts.join("s3.py")).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().unwrap();
        let mut address = String::new();
        std::io::BufReader::new(process.stdout.take().unwrap()).read_line(&mut address).unwrap();
        Self { process, address: address.trim().to_owned() }
    }

    /// What the program needs to know of it.
    pub(crate) fn environment(&self) -> BTreeMap<&'static str, String> {
        let settings = [
            ("AWS_ENDPOINT", self.address.as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "a"),
            ("AWS_SECRET_ACCESS_KEY", "b"),
        ];
        settings.map(|(name, value)| (name, value.to_owned())).into()
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// A running pipeline, which is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Pipeline {
    process: Child,
    log: PathBuf,
}

impl Pipeline {
    /// Without warning.
    pub(crate) fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    pub(crate) fn signal(&self, signal: &str) {
        let done = Command::new("kill").args([signal, &self.process.id().to_string()]).status().unwrap();
        assert!(done.success());
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Where its page is.
    pub(crate) fn address(&self) -> String {
        self.says("metrics at http://");
        self.log().split("page at http://").nth(1).unwrap().split('/').next().unwrap().to_owned()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }

    /// Waits for its end, and gives its log.
    pub(crate) fn wait(mut self) -> (ExitStatus, String) {
        let start = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return (status, self.log());
            }
            assert!(start.elapsed() < Duration::from_secs(300), "the pipeline does not end: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until its log says something.
    pub(crate) fn says(&self, text: &str) {
        until(&format!("the log says {text:?}: {}", self.log.display()), || self.log().contains(text));
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// Waits until something holds.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(90), "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// An HTTP answer: its status and its body.
pub(crate) fn get(address: &str, path: &str) -> (u16, String) {
    use std::io::Write;
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// The names of the files in a folder.
pub(crate) fn files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
    let mut names: Vec<String> = files.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
