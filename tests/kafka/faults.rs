//! What happens when something around a pipeline fails.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rdkafka::Message;
use xtask::kafka::Broker;

use crate::place::{Place, get, until};
use crate::topics::{Record, assert_each_once, consume, ids, number, produce, topic};

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    ("broker_stopped_and_started", broker_stopped_and_started),
    ("instance_killed", instance_killed),
    ("instance_without_partitions", instance_without_partitions),
    ("second_instance_of_a_topic_sink", |broker| second_instance(broker, true)),
    ("second_instance_of_a_file_sink", |broker| second_instance(broker, false)),
    ("terminated", terminated),
    ("at_least_once_loses_nothing", at_least_once),
    ("model_published_meanwhile", model_published_meanwhile),
    ("memory_is_bounded", memory_is_bounded),
];

/// Statements that make `numbers` of one topic and `copy` of another.
pub(crate) fn tables(broker: &Broker, from: &str, to: &str, options: &str) -> String {
    let broker = broker.bootstrap();
    format!(
        "CREATE EXTERNAL TABLE numbers (id BIGINT, a DOUBLE) STORED AS KAFKA LOCATION 'kafka://{broker}/{from}'
           OPTIONS ('session.timeout.ms' '1500', 'heartbeat.interval.ms' '300'{options});
         CREATE EXTERNAL TABLE copy (id BIGINT, a DOUBLE) STORED AS KAFKA LOCATION 'kafka://{broker}/{to}'
           OPTIONS ('transaction.timeout.ms' '{}');",
        TRANSACTION_TIMEOUT.as_millis()
    )
}

const TRANSACTION_TIMEOUT: Duration = Duration::from_millis(3_000);

pub(crate) const COPY: &str = "SET stream.max_batch_rows = 500; INSERT INTO copy SELECT id, a FROM numbers;";

fn broker_stopped_and_started(_: &Broker) {
    let mut broker = crate::own_broker();
    let (from, to) = (topic(&broker, "numbers", 2), topic(&broker, "copy", 2));
    produce(&broker, &from, (0..20_000).map(number));
    let place = Place::new();
    let mut pipeline = place.run(&(tables(&broker, &from, &to, "") + COPY), &[]);
    pipeline.says("partitions assigned");
    for (is_killed, begin) in [(true, 20_000), (false, 30_000)] {
        let (stopped, logged) = (Instant::now(), pipeline.log().len());
        broker.pause(is_killed).unwrap();
        until("the pipeline finds no broker", || pipeline.log()[logged..].contains("Connection refused"));
        // what was open when the broker stopped is too old to be committed when it starts again
        until("a transaction has timed out", || stopped.elapsed() > TRANSACTION_TIMEOUT);
        assert!(pipeline.is_running(), "{}", pipeline.log());
        broker.resume().unwrap();
        produce(&broker, &from, (begin..begin + 10_000).map(number));
        until("the pipeline has caught up", || consume(&broker, &to).len() >= begin + 10_000);
    }
    pipeline.signal(Signal::SIGTERM);
    let (status, log) = pipeline.wait();
    assert!(status.success(), "{log}");
    assert_each_once(&ids(&consume(&broker, &to)), 40_000);
}

fn instance_killed(broker: &Broker) {
    let (from, to) = (topic(broker, "numbers", 4), topic(broker, "copy", 4));
    let sql = tables(broker, &from, &to, "") + COPY;
    let place = Place::new();
    let first = place.run(&sql, &["--instance", "first"]);
    first.says("partitions assigned partitions=[0, 1, 2, 3]");
    produce(broker, &from, (0..20_000).map(number));
    // it comes in the middle of the work of the other one
    let second = place.run(&sql, &["--instance", "second"]);
    second.says("partitions assigned");
    produce(broker, &from, (20_000..40_000).map(number));
    until("both have two partitions", || {
        [&first, &second].iter().all(|pipeline| {
            let log = pipeline.log();
            let last = log.lines().rfind(|line| line.contains("partitions assigned"));
            last.is_some_and(|line| line.contains("[0, 1]") || line.contains("[2, 3]"))
        })
    });
    first.kill();
    produce(broker, &from, (40_000..60_000).map(number));
    until("the other one has done all", || consume(broker, &to).len() >= 60_000);
    second.signal(Signal::SIGTERM);
    let (status, log) = second.wait();
    assert!(status.success(), "{log}");
    assert_each_once(&ids(&consume(broker, &to)), 60_000);
}

/// An instance without partitions is ready to take some, and is at the end of all that it has.
fn instance_without_partitions(broker: &Broker) {
    let (from, to) = (topic(broker, "numbers", 1), topic(broker, "copy", 1));
    let sql = tables(broker, &from, &to, "") + COPY;
    let place = Place::new();
    let run = |name| place.run(&sql, &["--instance", name, "--http", "127.0.0.1:0"]);
    let both = [run("first"), run("second")];
    until("one has the partition and one has none", || {
        let mut last = both.each_ref().map(|pipeline| {
            let log = pipeline.log();
            log.lines()
                .rfind(|line| line.contains("partitions assigned"))
                .map_or(0, |line| 1 + usize::from(line.contains("[0]")))
        });
        last.sort_unstable();
        last == [1, 2]
    });
    for pipeline in &both {
        until("it is ready", || get(&pipeline.address(), "/readyz") == (200, "ready\n".to_owned()));
    }
    let (status, log) = place.run(&sql, &["--instance", "third", "--until-end"]).wait();
    assert!(status.success(), "{log}");
    for pipeline in both {
        pipeline.signal(Signal::SIGTERM);
        let (status, log) = pipeline.wait();
        assert!(status.success(), "{log}");
    }
}

/// A second one of the same name takes the place of the first, which ends.
fn second_instance(broker: &Broker, to_topic: bool) {
    let (from, to) = (topic(broker, "numbers", 2), topic(broker, "copy", 2));
    let place = Place::new();
    let sink = match to_topic {
        true => COPY.to_owned(),
        false => "CREATE EXTERNAL TABLE files (id BIGINT) STORED AS JSON LOCATION 'out/'; SET stream.file_ms = 300;
                  INSERT INTO files SELECT id FROM numbers;"
            .to_owned(),
    };
    let sql = tables(broker, &from, &to, "") + &sink;
    let first = place.run(&sql, &[]);
    first.says("partitions assigned");
    produce(broker, &from, (0..5_000).map(number));
    let second = place.run(&sql, &[]);
    second.says("partitions assigned");
    let mut next = 5_000;
    let mut first = Some(first);
    until("the first one has ended", || {
        produce(broker, &from, (next..next + 500).map(number));
        next += 500;
        !first.as_mut().unwrap().is_running()
    });
    let (status, log) = first.take().unwrap().wait();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("another instance of this pipeline with the same name has replaced this one"), "{log}");
    drop(second);
    place.run_to_end(&sql);
    let ids = match to_topic {
        true => ids(&consume(broker, &to)),
        false => place.ids("out/"),
    };
    assert_each_once(&ids, next);
}

fn terminated(broker: &Broker) {
    let (from, to) = (topic(broker, "numbers", 2), topic(broker, "copy", 2));
    let sql = tables(broker, &from, &to, "") + COPY;
    let place = Place::new();
    produce(broker, &from, (0..20_000).map(number));
    let pipeline = place.run(&sql, &[]);
    until("it has begun", || !consume(broker, &to).is_empty());
    pipeline.signal(Signal::SIGTERM);
    let (status, log) = pipeline.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("partitions revoked"), "it has left the group: {log}");
    // the next one goes on at once: nobody waits for a member that has left
    place.run_to_end(&sql);
    assert_each_once(&ids(&consume(broker, &to)), 20_000);
}

fn at_least_once(broker: &Broker) {
    let (from, to) = (topic(broker, "numbers", 2), topic(broker, "copy", 2));
    let sql = tables(broker, &from, &to, "") + "SET stream.delivery = 'at_least_once';" + COPY;
    let place = Place::new();
    for part in 0..3 {
        produce(broker, &from, (part * 10_000..(part + 1) * 10_000).map(number));
        let pipeline = place.run(&sql, &[]);
        let before = consume(broker, &to).len();
        until("it writes", || consume(broker, &to).len() > before);
        pipeline.kill();
    }
    place.run_to_end(&sql);
    let mut ids = ids(&consume(broker, &to));
    ids.sort_unstable();
    ids.dedup();
    assert_each_once(&ids, 30_000);
}

/// A new version is taken up between two micro-batches, if that is asked for.
fn model_published_meanwhile(broker: &Broker) {
    let place = Place::new();
    let model = "CREATE MODEL m OPTIONS (hidden_units = [1], max_iterations = 1, seed = 1) AS
                 SELECT CAST(value % 7 AS DOUBLE) AS a, CAST(value % 5 AS DOUBLE) AS b FROM generate_series(1, 500);";
    place.sql(model).unwrap();
    let (from, to) = (topic(broker, "readings", 1), topic(broker, "errors", 1));
    let pipeline = |reload: &str| {
        format!(
            "CREATE EXTERNAL TABLE readings (id BIGINT, a DOUBLE, b DOUBLE) STORED AS KAFKA
               LOCATION 'kafka://{b}/{from}' OPTIONS ('session.timeout.ms' '1500', 'heartbeat.interval.ms' '300');
             CREATE EXTERNAL TABLE errors (id BIGINT, error DOUBLE) STORED AS KAFKA LOCATION 'kafka://{b}/{to}';
             SET stream.reload = '{reload}'; SET stream.reload_ms = 100;
             INSERT INTO errors SELECT id, ae_error('m', a, b) FROM readings;",
            b = broker.bootstrap()
        )
    };
    let reading = |id: usize| Record::of(format!("{{\"id\":{id},\"a\":30,\"b\":-2}}"));
    let error_of = |version: usize| {
        place.sql(&format!("SELECT ae_error('m@{version}', 30.0, -2.0)")).unwrap().parse::<f64>().unwrap().to_bits()
    };
    let last = || {
        let read = consume(broker, &to);
        let value: serde_json::Value = serde_json::from_slice(read.last().unwrap().payload().unwrap()).unwrap();
        value["error"].as_f64().unwrap().to_bits()
    };
    let mut sent = 0;
    let mut send = || {
        produce(broker, &from, [reading(sent)]);
        sent += 1;
        until("it is scored", || consume(broker, &to).len() == sent);
        last()
    };
    let running = place.run(&pipeline("none"), &[]);
    running.says("partitions assigned");
    assert_eq!(send(), error_of(1));
    place.sql("ALTER MODEL m SET OPTIONS (error_metric = 'mae')").unwrap();
    assert_ne!(error_of(1), error_of(2));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(send(), error_of(1), "without reload the version stays");
    running.signal(Signal::SIGTERM);
    assert!(running.wait().0.success());
    let running = place.run(&pipeline("poll"), &[]);
    running.says("partitions assigned");
    assert_eq!(send(), error_of(2));
    place.sql("ALTER MODEL m SET OPTIONS (error_metric = 'mse')").unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(send(), error_of(3));
    // one that takes other columns cannot be used: the one before stays
    place.sql(&model.replace("CREATE MODEL", "CREATE OR REPLACE MODEL").replace(" AS b ", " AS b, 1.5 AS c ")).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(send(), error_of(3));
    running.says("a new version of a model cannot be used");
}

/// The resident memory of a process at its largest, bytes; none once it has ended.
fn most_memory(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().unwrap() << 10)
}

fn memory_is_bounded(broker: &Broker) {
    let records = if std::env::var_os("AEFUSION_SOAK").is_some() { 10_000_000 } else { 500_000 };
    let (from, to) = (topic(broker, "numbers", 4), topic(broker, "copy", 4));
    produce(broker, &from, (0..records).map(number));
    let place = Place::new();
    let sql = tables(broker, &from, &to, "") + "INSERT INTO copy SELECT id, a FROM numbers;";
    let mut pipeline = place.run(&sql, &["--until-end"]);
    let mut most = 0;
    while pipeline.is_running() {
        most = most_memory(pipeline.id()).unwrap_or_default().max(most);
        std::thread::sleep(Duration::from_millis(20));
    }
    let (status, log) = pipeline.wait();
    assert!(status.success(), "{log}");
    eprintln!("{} MB at most over {records} records", most >> 20);
    assert!(most > 0 && most < 512 << 20, "{} MB", most >> 20);
    assert!(log.contains(&format!("{records} written")), "{log}");
}
