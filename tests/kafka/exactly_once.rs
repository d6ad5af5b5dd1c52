//! Each record once, however often the pipeline is killed.

use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use xtask::kafka::Broker;

use crate::harness::{Place, assert_each_once, consume, ids, number, produce, topic};

pub(crate) const TESTS: &[(&str, crate::Test)] = &[("killed_to_topic", to_topic), ("killed_to_parquet", to_parquet)];

struct Size {
    records: usize,
    kills: usize,
    batch_rows: usize,
}

fn size() -> Size {
    match std::env::var_os("AEFUSION_SOAK") {
        None => Size { records: 100_000, kills: 5, batch_rows: 500 },
        Some(_) => Size { records: 1_000_000, kills: 20, batch_rows: 2_000 },
    }
}

/// Runs a pipeline over records that are written meanwhile, kills it at random moments of its work, and runs it to the end.
fn run_and_kill(broker: &Broker, topic: &str, sql: &str, seed: u64) -> Place {
    let Size { records, kills, .. } = size();
    let place = Place::new();
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
    produce(broker, topic, part(kills));
    place.run_to_end(sql);
    place
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
    run_and_kill(broker, &from, &sql, 1);
    let read = consume(broker, &to);
    assert_each_once(&ids(&read), records);
    // what a query made of a number is its own
    let value: serde_json::Value = serde_json::from_slice(rdkafka::Message::payload(&read[0]).unwrap()).unwrap();
    assert_eq!(value["twice"].as_f64(), value["id"].as_f64());
}

fn to_parquet(broker: &Broker) {
    let Size { records, batch_rows, .. } = size();
    let from = topic(broker, "numbers", 4);
    let sql = format!(
        "{} CREATE EXTERNAL TABLE files (id BIGINT, twice DOUBLE) STORED AS PARQUET LOCATION 'out/';
         SET stream.max_batch_rows = {batch_rows};
         SET stream.file_ms = 200;
         INSERT INTO files SELECT id, a * 2 FROM numbers;",
        source(broker, &from)
    );
    let place = run_and_kill(broker, &from, &sql, 2);
    let read = place.sql("SELECT id FROM 'out/'").unwrap();
    let ids: Vec<usize> = read.lines().map(|line| line.parse().unwrap()).collect();
    assert_each_once(&ids, records);
}
