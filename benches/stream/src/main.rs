//! A full topic through `ae_error` to a topic, and the time from a record to its visible result, beside a consumer in
//! Python: `cargo xtask bench stream`.
//!
//! Both read the same records from the same broker, one after the other, round by round. The brokers, the program under
//! test, and what writes and reads beside it share the cores of the machine.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a benchmark")]

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

const PARTITIONS: i32 = 4;
/// How long a latency is measured, and how long nothing is kept before: a broker compiles what it does often while it runs,
/// which takes a fifth of a core for two minutes at a quarter of a million records a second.
const MEASURED: Duration = Duration::from_secs(60);
const WARM_UP: Duration = Duration::from_secs(120);
/// How long a contender may take to give its first result.
const START: Duration = Duration::from_secs(60);
/// Records without keys are written to one partition for a while, and then to the next, as Kafka's clients do: so many of
/// them, or all that is due in a step.
const RECORDS_A_TURN: usize = 1_000;
const STEP: Duration = Duration::from_millis(5);
/// What is kept of a partition that is written to for minutes: its last seconds, so that a broker writes to memory that it
/// wrote to before, of which there is enough.
const KEPT: [(&str, &str); 2] = [("segment.bytes", "67108864"), ("retention.bytes", "134217728")];
/// Values of the features: different numbers of usual lengths.
const VALUES: usize = 5_000;

struct Bench {
    brokers: String,
    python: PathBuf,
    program: PathBuf,
    folder: PathBuf,
    values: Vec<String>,
}

#[derive(Clone, Copy, PartialEq)]
enum Contender {
    Aefusion,
    Python,
    PythonOrjson,
}

impl Contender {
    fn name(self) -> &'static str {
        match self {
            Self::Aefusion => "aefusion",
            Self::Python => "Python, json",
            Self::PythonOrjson => "Python, orjson",
        }
    }
}

fn main() {
    let variable =
        |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("run cargo xtask bench stream: no {name}"));
    let number = |name: &str, default| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let folder = PathBuf::from(variable("FOLDER"));
    std::fs::create_dir_all(&folder).unwrap();
    let bench = Bench {
        brokers: variable("KAFKA_BOOTSTRAP_SERVERS"),
        python: variable("AEFUSION_PYTHON").into(),
        program: variable("AEFUSION").into(),
        values: values(),
        folder,
    };
    let (records, rounds) = (number("RECORDS", 6_000_000), number("ROUNDS", 3));
    bench.make_model();
    if let Ok(rate) = std::env::var("RATE") {
        return bench.tell_latency(Contender::Aefusion, rate.parse().unwrap());
    }
    let from = bench.topic("readings", &[]);
    bench.fill(&from, records);
    println!("{records} JSON records of eight features, {PARTITIONS} partitions, {rounds} rounds\n");
    let contenders = [Contender::Aefusion, Contender::Python, Contender::PythonOrjson];
    // a broker that has just been started is slow
    for contender in contenders {
        bench.throughput(contender, &from, records);
    }
    let mut rates = [const { Vec::new() }; 3];
    for _ in 0..rounds {
        for (contender, rates) in contenders.iter().zip(&mut rates) {
            let rate = bench.throughput(*contender, &from, records);
            println!("{:<16} {rate:>10.0} records/s", contender.name());
            rates.push(rate);
        }
    }
    let medians = rates.map(median);
    let [ours, json, orjson] = medians;
    println!("\nratio of the medians: {:.2} with json, {:.2} with orjson\n", ours / json, ours / orjson);
    bench.remove(&[&from]);
    // All of them at half of what the slowest can, and then each at half of what it can: the higher a rate, the longer a
    // broker was warmed for it.
    let slowest = medians.into_iter().fold(f64::INFINITY, f64::min);
    contenders.into_iter().for_each(|contender| bench.tell_latency(contender, slowest / 2.0));
    let mut own: Vec<_> = contenders.into_iter().zip(medians).filter(|(_, rate)| *rate > slowest).collect();
    own.sort_by(|(_, a), (_, b)| a.total_cmp(b));
    own.into_iter().for_each(|(contender, rate)| bench.tell_latency(contender, rate / 2.0));
}

/// `"f0":-0.1234,…}`, from a generator that is the same everywhere.
fn values() -> Vec<String> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let thousandths = u32::try_from(state >> 33).unwrap() % 40_000;
        f64::from(thousandths) / 10_000.0 - 2.0
    };
    let value = |_| (0..8).map(|i| format!("\"f{i}\":{:.4}", next())).collect::<Vec<_>>().join(",") + "}";
    (0..VALUES).map(value).collect()
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

fn micros() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap()
}

impl Bench {
    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers);
        config
    }

    fn model(&self) -> PathBuf {
        self.folder.join("model.onnx")
    }

    fn make_model(&self) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("make_model.py");
        assert!(Command::new(&self.python).arg(script).arg(self.model()).status().unwrap().success());
    }

    fn topic(&self, name: &str, settings: &[(&str, &str)]) -> String {
        let topic = format!("{name}-{}", micros());
        let admin: AdminClient<_> = self.config().create().unwrap();
        let new = NewTopic::new(&topic, PARTITIONS, TopicReplication::Fixed(1));
        let new = settings.iter().fold(new, |new, (name, value)| new.set(name, value));
        let made = futures::executor::block_on(admin.create_topics([&new], &AdminOptions::new())).unwrap();
        made.into_iter().for_each(|made| drop(made.unwrap()));
        topic
    }

    /// Removes topics, so that their pages are not written to disk while something else is measured.
    fn remove(&self, topics: &[&str]) {
        let admin: AdminClient<_> = self.config().create().unwrap();
        let removed = futures::executor::block_on(admin.delete_topics(topics, &AdminOptions::new())).unwrap();
        removed.into_iter().for_each(|removed| drop(removed.unwrap()));
    }

    fn producer(&self) -> BaseProducer {
        let mut config = self.config();
        config.set("queue.buffering.max.messages", "1000000").set("linger.ms", "1");
        config.set("delivery.report.only.error", "true").create().unwrap()
    }

    /// To the partition whose turn it is.
    fn send(&self, producer: &BaseProducer, topic: &str, turn: usize, id: usize, sent: u64) {
        let value = format!("{{\"id\":{id},\"sent\":{sent},{}", self.values[id % VALUES]);
        let partition = i32::try_from(turn % usize::try_from(PARTITIONS).unwrap()).unwrap();
        let sent = i64::try_from(sent / 1000).unwrap();
        loop {
            match producer.send(BaseRecord::<(), str>::to(topic).partition(partition).timestamp(sent).payload(&value)) {
                Ok(()) => return,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                    producer.poll(Duration::from_millis(1));
                }
                Err((error, _)) => panic!("{error}"),
            }
        }
    }

    fn fill(&self, topic: &str, records: usize) {
        let (producer, sent) = (self.producer(), micros());
        for id in 0..records {
            self.send(&producer, topic, id / RECORDS_A_TURN, id, sent);
            if id % 10_000 == 0 {
                producer.poll(Duration::ZERO);
            }
        }
        producer.flush(Duration::from_secs(60)).unwrap();
    }

    fn start(&self, contender: Contender, from: &str, to: &str, until_end: bool) -> Child {
        let name = format!("bench-{}", micros());
        let mut command = match contender {
            Contender::Aefusion => {
                let file = self.folder.join("pipeline.sql");
                std::fs::write(&file, self.pipeline(from, to, &name)).unwrap();
                let mut command = Command::new(&self.program);
                command.arg("run").arg(file).arg("--quiet").arg("--models").arg(self.folder.join("models"));
                command
            }
            Contender::Python | Contender::PythonOrjson => {
                let mut command = Command::new(&self.python);
                command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("peer.py"));
                command.arg(&self.brokers).arg(self.model()).args([from, to, &name]);
                if contender == Contender::PythonOrjson {
                    command.arg("--orjson");
                }
                command
            }
        };
        if until_end {
            command.arg("--until-end");
        }
        command.stdin(Stdio::null()).spawn().unwrap()
    }

    fn pipeline(&self, from: &str, to: &str, name: &str) -> String {
        let (brokers, model) = (&self.brokers, self.model());
        let features: Vec<String> = (0..8).map(|i| format!("f{i}")).collect();
        let columns: Vec<String> = features.iter().map(|feature| format!("{feature} REAL")).collect();
        format!(
            "CREATE OR REPLACE MODEL bench OPTIONS (model_type = 'onnx', model_path = '{}', input_cols = ['{}']);
             CREATE EXTERNAL TABLE readings (id BIGINT, sent BIGINT, {}) STORED AS KAFKA
               LOCATION 'kafka://{brokers}/{from}';
             CREATE EXTERNAL TABLE errors (id BIGINT, sent BIGINT, error DOUBLE) STORED AS KAFKA
               LOCATION 'kafka://{brokers}/{to}';
             SET stream.name = '{name}';
             SET stream.max_batch_ms = 20;
             INSERT INTO errors SELECT id, sent, ae_error('bench') FROM readings;",
            model.display(),
            features.join("', '"),
            columns.join(", ")
        )
    }

    /// Records a second, the start of the program and its end included.
    fn throughput(&self, contender: Contender, from: &str, records: usize) -> f64 {
        let to = self.topic("errors", &[]);
        let start = Instant::now();
        let status = self.start(contender, from, &to, true).wait().unwrap();
        let took = start.elapsed();
        assert!(status.success(), "{}", contender.name());
        let mut n = 0;
        self.consume(&to, 0..PARTITIONS, || false, |_| n += 1);
        assert_eq!(n, records, "{}", contender.name());
        self.remove(&[&to]);
        f64::from(u32::try_from(records).unwrap()) / took.as_secs_f64()
    }

    /// Reads committed records of partitions from their beginning, to their end or until it is told to stop.
    fn consume(&self, topic: &str, of: Range<i32>, endless: impl Fn() -> bool, mut f: impl FnMut(&[u8])) {
        let mut config = self.config();
        config.set("group.id", "bench").set("enable.auto.commit", "false").set("enable.partition.eof", "true");
        // librdkafka rests for a second once enough was read ahead
        config.set("fetch.queue.backoff.ms", "5");
        let consumer: BaseConsumer = config.set("isolation.level", "read_committed").create().unwrap();
        let mut list = TopicPartitionList::new();
        of.clone().for_each(|partition| list.add_partition_offset(topic, partition, Offset::Beginning).unwrap());
        consumer.assign(&list).unwrap();
        let mut ended = std::collections::BTreeSet::new();
        while endless() || ended.len() < of.len() {
            match consumer.poll(Duration::from_millis(20)) {
                Some(Ok(message)) => f(message.payload().unwrap()),
                Some(Err(KafkaError::PartitionEOF(partition))) => drop(ended.insert(partition)),
                Some(Err(error)) => panic!("{error}"),
                None => {}
            }
        }
    }

    fn tell_latency(&self, contender: Contender, rate: f64) {
        let [p50, p99, most] = self.latency(contender, rate);
        let name = contender.name();
        println!("{name:<16} at {rate:>7.0} records/s: p50 {p50:.1} ms, p99 {p99:.1} ms, most {most:.1} ms");
    }

    /// Median, 99th percentile and maximum of the milliseconds from a record to its visible result.
    ///
    /// The results of one partition are read: a sample, so that reading takes little from what is measured.
    fn latency(&self, contender: Contender, rate: f64) -> [f64; 3] {
        let [from, to] = ["readings", "errors"].map(|name| self.topic(name, &KEPT));
        let mut running = self.start(contender, &from, &to, false);
        let (is_over, has_begun) = (AtomicBool::new(false), AtomicBool::new(false));
        let mut results = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let endless = || !is_over.load(Ordering::Relaxed);
                self.consume(&to, 0..1, endless, |value| {
                    has_begun.store(true, Ordering::Relaxed);
                    results.push((field(value, b"\"sent\":"), micros()));
                });
            });
            let producer = self.producer();
            let start = Instant::now();
            while !has_begun.load(Ordering::Relaxed) && start.elapsed() < START {
                self.send(&producer, &from, 0, 0, micros());
                producer.flush(Duration::from_secs(1)).unwrap();
                std::thread::sleep(Duration::from_millis(50));
            }
            if has_begun.load(Ordering::Relaxed) {
                self.pace(&producer, &from, rate);
                std::thread::sleep(Duration::from_secs(3));
            }
            is_over.store(true, Ordering::Relaxed);
        });
        drop(running.kill());
        drop(running.wait());
        self.remove(&[&from, &to]);
        assert!(!results.is_empty(), "{} gave no result within {START:?}", contender.name());
        let last = results.iter().map(|(sent, _)| *sent).max().unwrap();
        let is_kept = |sent: u64| last - sent < u64::try_from(MEASURED.as_micros()).unwrap();
        let kept = results.into_iter().filter(|(sent, _)| is_kept(*sent));
        let mut times: Vec<u64> = kept.map(|(sent, seen)| seen - sent).collect();
        times.sort_unstable();
        let share = |share: usize| times[(times.len() - 1) * share / 100];
        [share(50), share(99), share(100)].map(|micros| Duration::from_micros(micros).as_secs_f64() * 1000.0)
    }

    /// Writes at a rate, a little in each step.
    fn pace(&self, producer: &BaseProducer, topic: &str, rate: f64) {
        let start = Instant::now();
        let (mut id, mut turn) = (0_u32, 0);
        while start.elapsed() < WARM_UP + MEASURED {
            let (due, sent) = (start.elapsed().as_secs_f64() * rate, micros());
            while f64::from(id) < due {
                self.send(producer, topic, turn, id.try_into().unwrap(), sent);
                id += 1;
            }
            turn += 1;
            producer.poll(Duration::ZERO);
            std::thread::sleep(STEP);
        }
        producer.flush(Duration::from_secs(60)).unwrap();
    }
}

/// The number after a name.
fn field(value: &[u8], name: &[u8]) -> u64 {
    let start = value.windows(name.len()).position(|window| window == name).unwrap() + name.len();
    // Python writes a space before it
    value[start..]
        .trim_ascii_start()
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .fold(0, |n, digit| n * 10 + u64::from(digit - b'0'))
}
