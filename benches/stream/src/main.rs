//! `cargo xtask bench stream`: throughput and latency of a pipeline from topic to topic, and of a consumer in Python.
//!
//! Both read the same records from the same broker, in turns. The broker, the contender and this program share the cores of
//! the machine. Tables in Markdown go to the standard output, rounds to the standard error.

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
/// How long a latency is measured, and how long the broker is warmed up before. At 250,000 records a second, its compiler takes
/// a fifth of a core for two minutes.
const MEASURED: Duration = Duration::from_secs(60);
const WARM_UP: Duration = Duration::from_secs(120);
/// How long a contender may take until its first result.
const START: Duration = Duration::from_secs(60);
/// Records are written to one partition after the other, in turns, as Kafka's clients write records without keys. A turn has
/// this many records, or all that are due in a step.
const RECORDS_A_TURN: usize = 1_000;
const STEP: Duration = Duration::from_millis(5);
/// Settings of topics that are written to for minutes. The broker keeps the last seconds and reuses their memory.
const KEPT: [(&str, &str); 2] = [("segment.bytes", "67108864"), ("retention.bytes", "134217728")];
/// Number of different values of the features.
const VALUES: usize = 5_000;
/// The head of the table of latencies.
const LATENCY: &str = "| contender | records/s | p50, ms | p99 | maximum |\n| --- | --- | --- | --- | --- |";

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
            Self::Python => "Python, `json`",
            Self::PythonOrjson => "Python, `orjson`",
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
        println!("{LATENCY}");
        return bench.print_latency(Contender::Aefusion, rate.parse().unwrap());
    }
    let from = bench.topic("readings", &[]);
    bench.fill(&from, records);
    eprintln!("{records} JSON records of eight features, {PARTITIONS} partitions, {rounds} rounds");
    let contenders = [Contender::Aefusion, Contender::Python, Contender::PythonOrjson];
    // a broker is slow just after its start
    for contender in contenders {
        bench.throughput(contender, &from, records);
    }
    let mut rates = [const { Vec::new() }; 3];
    for _ in 0..rounds {
        for (contender, rates) in contenders.iter().zip(&mut rates) {
            let rate = bench.throughput(*contender, &from, records);
            eprintln!("{:<16} {rate:>10.0} records/s", contender.name());
            rates.push(rate);
        }
    }
    let medians = rates.map(median);
    let [ours, json, orjson] = medians;
    println!("| contender | records/s | aefusion, times |\n| --- | --- | --- |\n| aefusion | {ours:.0} | |");
    println!(
        "| Python, `json` | {json:.0} | {:.2} |\n| Python, `orjson` | {orjson:.0} | {:.2} |\n",
        ours / json,
        ours / orjson
    );
    bench.remove(&[&from]);
    // all contenders at half the throughput of the slowest one, then each at half of its own: low rates come first, while the
    // broker still warms up
    println!("{LATENCY}");
    let slowest = medians.into_iter().fold(f64::INFINITY, f64::min);
    contenders.into_iter().for_each(|contender| bench.print_latency(contender, slowest / 2.0));
    let mut own: Vec<_> = contenders.into_iter().zip(medians).filter(|(_, rate)| *rate > slowest).collect();
    own.sort_by(|(_, a), (_, b)| a.total_cmp(b));
    own.into_iter().for_each(|(contender, rate)| bench.print_latency(contender, rate / 2.0));
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

    /// Removes topics. Otherwise the broker would write their pages to disk during the next measurement.
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

    /// Sends a record to the partition whose turn it is.
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

    /// Records per second. The time includes the start of the program and its end.
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

    /// Reads committed records of partitions from their beginning, to their end or as long as `endless` holds.
    fn consume(&self, topic: &str, of: Range<i32>, endless: impl Fn() -> bool, mut f: impl FnMut(&[u8])) {
        let mut config = self.config();
        config.set("group.id", "bench").set("enable.auto.commit", "false").set("enable.partition.eof", "true");
        // the default of librdkafka pauses for a second when its queue is full
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

    fn print_latency(&self, contender: Contender, rate: f64) {
        let [p50, p99, most] = self.latency(contender, rate);
        let name = contender.name();
        println!("| {name} | {rate:.0} | {p50:.1} | {p99:.1} | {most:.1} |");
    }

    /// Median, 99th percentile and maximum of the milliseconds from a record to its visible result.
    ///
    /// Only results of one partition are read, because reading takes CPU time from what is measured.
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
        assert!(!results.is_empty(), "{} wrote no result within {START:?}", contender.name());
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
