//! Each record once, however often the pipeline is killed.

use std::time::Duration;

use nix::sys::signal::Signal;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use xtask::kafka::Broker;

use crate::bucket::Bucket;
use crate::place::Place;
use crate::topics::{assert_each_once, consume, ids, number, produce, topic};

pub(crate) const TESTS: &[(&str, crate::Test)] =
    &[("killed_to_topic", to_topic), ("killed_to_parquet", to_parquet), ("killed_to_bucket", to_bucket)];

struct Size {
    records: usize,
    kills: usize,
    batch_rows: usize,
    /// Whether another instance runs meanwhile, and is not killed.
    with_another: bool,
}

fn size() -> Size {
    match std::env::var_os("AEFUSION_SOAK") {
        None => Size { records: 100_000, kills: 5, batch_rows: 500, with_another: false },
        Some(_) => Size { records: 1_000_000, kills: 20, batch_rows: 2_000, with_another: false },
    }
}

/// Runs a pipeline over records that are written meanwhile, kills it at random moments of its work, and runs it to the end.
fn run_and_kill(broker: &Broker, place: &Place, topic: &str, sql: &str, size: Size, seed: u64) {
    let Size { records, kills, with_another, .. } = size;
    let another = with_another.then(|| place.run(sql, &["--instance", "another"]));
    let mut random = Pcg64::seed_from_u64(seed);
    let part = |i: usize| (i * records / (kills + 1)..(i + 1) * records / (kills + 1)).map(number);
    for i in 0..kills {
        produce(broker, topic, part(i));
        let mut pipeline = place.run(sql, &[]);
        pipeline.says("partitions assigned");
        std::thread::sleep(Duration::from_millis(random.random_range(0..800)));
        assert!(pipeline.is_running(), "{}", pipeline.log());
        pipeline.kill();
    }
    if let Some(another) = another {
        another.signal(Signal::SIGTERM);
        let (status, log) = another.wait();
        assert!(status.success(), "{log}");
    }
    produce(broker, topic, part(kills));
    place.run_to_end(sql);
}

fn source(broker: &Broker, topic: &str) -> String {
    format!(
        "CREATE EXTERNAL TABLE numbers (id BIGINT, a DOUBLE) STORED AS KAFKA LOCATION 'kafka://{}/{topic}' \
         OPTIONS ('session.timeout.ms' '1500', 'heartbeat.interval.ms' '300');",
        broker.bootstrap()
    )
}

fn to_topic(broker: &Broker) {
    let Size { records, batch_rows, .. } = size();
    let (from, to) = (topic(broker, "numbers", 4), topic(broker, "doubled", 4));
    let sql = format!(
        "{} CREATE EXTERNAL TABLE doubled (id BIGINT, twice DOUBLE, _key VARCHAR) STORED AS KAFKA
           LOCATION 'kafka://{}/{to}';
         SET stream.max_batch_rows = {batch_rows};
         INSERT INTO doubled SELECT id, a * 2, CAST(id AS VARCHAR) AS key FROM numbers;",
        source(broker, &from),
        broker.bootstrap()
    );
    run_and_kill(broker, &Place::new(), &from, &sql, size(), 1);
    let read = consume(broker, &to);
    assert_each_once(&ids(&read), records);
    // what a query made of a number is its own
    let value: serde_json::Value = serde_json::from_slice(rdkafka::Message::payload(&read[0]).unwrap()).unwrap();
    assert_eq!(value["twice"].as_f64(), value["id"].as_f64());
}

fn to_parquet(broker: &Broker) {
    to_files(broker, &Place::new(), "out/", size());
}

/// Another instance writes to the same bucket meanwhile.
fn to_bucket(broker: &Broker) {
    let bucket = Bucket::new();
    let place = Place { environment: bucket.environment(), ..Place::new() };
    let Size { records, kills, .. } = size();
    let size = Size { records: records / 5, kills, batch_rows: 500, with_another: true };
    to_files(broker, &place, "s3://bucket/out/", size);
}

fn to_files(broker: &Broker, place: &Place, location: &str, size: Size) {
    let (from, records) = (topic(broker, "numbers", 4), size.records);
    let sql = format!(
        "{} CREATE EXTERNAL TABLE files (id BIGINT, twice DOUBLE) STORED AS PARQUET LOCATION '{location}';
         SET stream.max_batch_rows = {};
         SET stream.file_ms = 200;
         INSERT INTO files SELECT id, a * 2 FROM numbers;",
        source(broker, &from),
        size.batch_rows
    );
    run_and_kill(broker, place, &from, &sql, size, 2);
    assert_each_once(&place.ids(location), records);
}
