//! What happens when something around a pipeline fails.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rdkafka::Message;
use xtask::kafka::Broker;

use crate::harness::{
    Place, Record, assert_each_once, consume, files, get, headers, ids, number, produce, texts, topic, until,
};

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    ("broker_stopped_and_started", broker_stopped_and_started),
    ("instance_killed", instance_killed),
    ("instance_without_partitions", instance_without_partitions),
    ("second_instance_of_a_topic_sink", |broker| second_instance(broker, true)),
    ("second_instance_of_a_file_sink", |broker| second_instance(broker, false)),
    ("terminated", terminated),
    ("at_least_once_loses_nothing", at_least_once),
    ("malformed_fails", malformed_fails),
    ("malformed_is_skipped", malformed_is_skipped),
    ("malformed_goes_to_dead_letters", malformed_goes_to_dead_letters),
    ("poison_goes_to_dead_letters", poison_goes_to_dead_letters),
    ("record_that_a_model_cannot_run", record_that_a_model_cannot_run),
    ("disk_is_full", disk_is_full),
    ("disk_is_read_only", disk_is_read_only),
    ("folder_holds_what_no_manifest_names", left_overs),
    ("folder_of_another_topic", folder_of_another_topic),
    ("instances_of_a_file_sink", instances_of_a_file_sink),
    ("manifests_of_years", many_manifests),
    ("model_published_meanwhile", model_published_meanwhile),
    ("memory_is_bounded", memory_is_bounded),
];

/// Statements that make `numbers` of one topic and `copy` of another.
fn tables(broker: &Broker, from: &str, to: &str, options: &str) -> String {
    let broker = broker.bootstrap();
    format!(
        "CREATE EXTERNAL TABLE numbers (id BIGINT, a DOUBLE) STORED AS KAFKA LOCATION 'kafka://{broker}/{from}'
           OPTIONS ('session.timeout.ms' '1500', 'heartbeat.interval.ms' '300'{options});
         CREATE EXTERNAL TABLE copy (id BIGINT, a DOUBLE) STORED AS KAFKA LOCATION 'kafka://{broker}/{to}'
           OPTIONS ('transaction.timeout.ms' '3000');"
    )
}

const COPY: &str = "SET stream.max_batch_rows = 500; INSERT INTO copy SELECT id, a FROM numbers;";

fn broker_stopped_and_started(_: &Broker) {
    let mut broker = Broker::java().unwrap();
    let (from, to) = (topic(&broker, "numbers", 2), topic(&broker, "copy", 2));
    produce(&broker, &from, (0..20_000).map(number));
    let place = Place::new();
    let mut pipeline = place.run(&(tables(&broker, &from, &to, "") + COPY), &[]);
    pipeline.says("partitions assigned");
    for (is_killed, begin) in [(true, 20_000), (false, 30_000)] {
        broker.pause(is_killed).unwrap();
        // longer than a transaction may take
        std::thread::sleep(Duration::from_secs(6));
        assert!(pipeline.is_running(), "{}", pipeline.log());
        broker.resume().unwrap();
        produce(&broker, &from, (begin..begin + 10_000).map(number));
        until("the pipeline has caught up", || consume(&broker, &to).len() >= begin + 10_000);
    }
    pipeline.signal("-TERM");
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
    second.signal("-TERM");
    let (status, log) = second.wait();
    assert!(status.success(), "{log}");
    assert_each_once(&ids(&consume(broker, &to)), 60_000);
}

/// It is ready to take some, and at the end of all that it has.
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
        pipeline.signal("-TERM");
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
    // what a log says of the end goes to standard error, which is the same file
    assert!(log.contains("another instance of this pipeline has taken its place"), "{log}");
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
    pipeline.signal("-TERM");
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
        pipeline.says("partitions assigned");
        std::thread::sleep(Duration::from_millis(300));
        pipeline.kill();
    }
    place.run_to_end(&sql);
    let mut ids = ids(&consume(broker, &to));
    ids.sort_unstable();
    ids.dedup();
    assert_each_once(&ids, 30_000);
}

/// Every hundredth record is not what the table says.
fn with_malformed(n: usize) -> impl Iterator<Item = Record> {
    const WRONG: [&str; 5] = ["{\"id\":1,\"a\":", "{\"id\":\"no\"}", "[1]", "", "{\"id\":1}{\"id\":2}"];
    (0..n).map(|i| match i % 100 {
        42 => Record { key: Some(i.to_string()), ..Record::of(WRONG[i / 100 % WRONG.len()]) },
        _ => number(i),
    })
}

fn good(n: usize) -> usize {
    n - n / 100
}

fn malformed_fails(broker: &Broker) {
    let (from, to) = (topic(broker, "numbers", 1), topic(broker, "copy", 1));
    produce(broker, &from, with_malformed(1_000));
    let place = Place::new();
    let (status, log) = place.run(&(tables(broker, &from, &to, "") + COPY), &["--until-end"]).wait();
    assert_eq!(status.code(), Some(1));
    let expected = format!("topic '{from}', partition 0, offset 42: the record is malformed");
    assert!(log.contains(&expected), "{log}");
    // its batch is not committed
    assert_eq!(consume(broker, &to).len(), 0);
    let read = place.sql(&(tables(broker, &from, &to, "") + "SELECT count(a) FROM numbers;")).unwrap_err();
    assert!(read.contains(&expected), "{read}");
}

fn malformed_is_skipped(broker: &Broker) {
    let (from, to) = (topic(broker, "numbers", 2), topic(broker, "copy", 2));
    produce(broker, &from, with_malformed(10_000));
    let place = Place::new();
    let log = place.run_to_end(&(tables(broker, &from, &to, ", 'malformed' 'skip'") + COPY));
    assert!(log.contains("10000 records") && log.contains("100 skipped"), "{log}");
    assert_eq!(consume(broker, &to).len(), good(10_000));
}

fn malformed_goes_to_dead_letters(broker: &Broker) {
    let (from, to) = (topic(broker, "numbers", 1), topic(broker, "copy", 1));
    let dead = topic(broker, "dead", 1);
    let with_header = |record: Record| Record { headers: vec![("of".to_owned(), "before".to_owned())], ..record };
    produce(broker, &from, with_malformed(10_000).map(with_header));
    let place = Place::new();
    let options = format!(", 'malformed' 'dead_letter', 'dead_letter_topic' '{dead}'");
    place.run_to_end(&(tables(broker, &from, &to, &options) + COPY));
    assert_eq!(consume(broker, &to).len(), good(10_000));
    let letters = consume(broker, &dead);
    assert_eq!(letters.len(), 100);
    let first = &letters[0];
    assert_eq!(first.key(), Some(b"42".as_slice()));
    assert_eq!(first.payload(), Some(b"{\"id\":1,\"a\":".as_slice()));
    let told = headers(first);
    assert_eq!(told["of"], "before");
    assert_eq!(told["aefusion.topic"], from);
    assert_eq!(told["aefusion.pipeline"], "pipeline-copy");
    assert_eq!((told["aefusion.partition"].as_str(), told["aefusion.offset"].as_str()), ("0", "42"));
    assert_eq!(told["aefusion.reason"], "the JSON ends too early");
}

/// Records that are well formed, and that the query cannot compute.
fn poison_goes_to_dead_letters(broker: &Broker) {
    let (from, to, dead) = (topic(broker, "texts", 1), topic(broker, "copy", 1), topic(broker, "dead", 1));
    let text = |i: usize| if i % 1_000 == 7 { "x".to_owned() } else { i.to_string() };
    produce(broker, &from, (0..5_000).map(|i| Record::of(format!("{{\"id\":\"{}\"}}", text(i)))));
    let place = Place::new();
    let sql = format!(
        "CREATE EXTERNAL TABLE texts (id VARCHAR) STORED AS KAFKA LOCATION 'kafka://{b}/{from}'
           OPTIONS ('malformed' 'dead_letter', 'dead_letter_topic' '{dead}');
         CREATE EXTERNAL TABLE copy (id BIGINT) STORED AS KAFKA LOCATION 'kafka://{b}/{to}';
         INSERT INTO copy SELECT CAST(id AS BIGINT) FROM texts;",
        b = broker.bootstrap()
    );
    place.run_to_end(&sql);
    assert_eq!(consume(broker, &to).len(), 4_995);
    // in their order
    let expected: Vec<String> = (0..5_000).filter(|i| i % 1_000 != 7).map(|i| format!("{{\"id\":{i}}}")).collect();
    assert_eq!(texts(&consume(broker, &to)), expected);
    let letters = consume(broker, &dead);
    let offsets: Vec<String> = letters.iter().map(|letter| headers(letter)["aefusion.offset"].clone()).collect();
    assert_eq!(offsets, ["7", "1007", "2007", "3007", "4007"]);
    assert!(headers(&letters[0])["aefusion.reason"].contains("Cannot cast string 'x'"), "{:?}", headers(&letters[0]));
}

/// A model that looks up its input has no answer for some.
fn record_that_a_model_cannot_run(broker: &Broker) {
    let (from, to, dead) = (topic(broker, "indices", 1), topic(broker, "errors", 1), topic(broker, "dead", 1));
    produce(broker, &from, (0..4_000).map(|i| Record::of(format!("{{\"id\":{i},\"a\":{}}}", i % 3 + i / 3_999 * 9))));
    let place = Place::new();
    let sql = format!(
        "CREATE MODEL lookup OPTIONS (model_type = 'onnx', model_path = '{}');
         CREATE EXTERNAL TABLE indices (id BIGINT, a REAL) STORED AS KAFKA LOCATION 'kafka://{b}/{from}'
           OPTIONS ('malformed' 'dead_letter', 'dead_letter_topic' '{dead}');
         CREATE EXTERNAL TABLE errors (id BIGINT, error DOUBLE) STORED AS KAFKA LOCATION 'kafka://{b}/{to}';
         INSERT INTO errors SELECT id, ae_error('lookup') FROM indices;",
        xtask::root().join("tests").join("models").join("lookup.onnx").display(),
        b = broker.bootstrap()
    );
    place.run_to_end(&sql);
    // 0 gives 1, 1 gives 3, 2 gives 5
    let expected = (0..3_999).map(|i| format!("{{\"id\":{i},\"error\":{}.0}}", [1, 4, 9][i % 3]));
    assert_eq!(texts(&consume(broker, &to)), expected.collect::<Vec<_>>());
    let letters = consume(broker, &dead);
    assert_eq!(texts(&letters), ["{\"id\":3999,\"a\":9}"]);
    assert!(headers(&letters[0])["aefusion.reason"].contains("indices element out of data bounds"), "{letters:?}");
}

/// A small file system in memory.
struct Tmpfs<'a>(&'a Path);

impl<'a> Tmpfs<'a> {
    fn mount(at: &'a Path) -> Option<Self> {
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=512k", "tmpfs"]).arg(at).status().unwrap();
        mounted.success().then_some(Self(at))
    }
}

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        drop(Command::new("umount").args(["--lazy"]).arg(self.0).status());
    }
}

fn disk_is_full(broker: &Broker) {
    // nearly all of it
    let fill = |out: &Path| std::fs::write(out.join("ballast"), vec![1_u8; 450 << 10]).unwrap();
    disk_that_fails(broker, "No space left on device", fill, |out| std::fs::remove_file(out.join("ballast")).unwrap());
}

fn disk_is_read_only(broker: &Broker) {
    let remount = |out: &Path, how| {
        let done = Command::new("mount").args(["-o", how]).arg(out).status().unwrap();
        assert!(done.success());
    };
    let (close, open) = (|out: &Path| remount(out, "remount,ro"), |out: &Path| remount(out, "remount,rw"));
    disk_that_fails(broker, "Read-only file system", close, open);
}

/// The pipeline tries again until somebody has mended it.
fn disk_that_fails(broker: &Broker, reason: &str, spoil: impl Fn(&Path), mend: impl Fn(&Path)) {
    let from = topic(broker, "numbers", 2);
    let place = Place::new();
    let out = place.path("out");
    let Some(_disk) = Tmpfs::mount(&out) else {
        eprintln!("skipped: only root may mount the small file system that is to fail");
        return;
    };
    spoil(&out);
    let sql = tables(broker, &from, &from, "")
        + "CREATE EXTERNAL TABLE files (id BIGINT) STORED AS JSON LOCATION 'out/'; SET stream.file_ms = 300;
           INSERT INTO files SELECT id FROM numbers;";
    produce(broker, &from, (0..10_000).map(number));
    let mut pipeline = place.run(&sql, &[]);
    pipeline.says("trying again from what is committed");
    assert!(pipeline.log().contains(reason), "{}", pipeline.log());
    assert!(pipeline.is_running());
    mend(&out);
    let count = || place.sql("SELECT count(*) FROM 'out/'").unwrap_or_default();
    until("it goes on", || count() == "10000");
    pipeline.signal("-TERM");
    let (status, log) = pipeline.wait();
    assert!(status.success(), "{log}");
    assert_each_once(&place.ids("out/"), 10_000);
}

/// The other instance takes over where one has stopped, and does not begin anew for that.
fn instances_of_a_file_sink(broker: &Broker) {
    let from = topic(broker, "numbers", 4);
    let place = Place::new();
    let sql = tables(broker, &from, &from, "")
        + "CREATE EXTERNAL TABLE files (id BIGINT) STORED AS PARQUET LOCATION 'out/'; SET stream.file_ms = 200;
           INSERT INTO files SELECT id FROM numbers;";
    let [first, second] = ["first", "second"].map(|name| place.run(&sql, &["--instance", name]));
    first.says("partitions assigned");
    second.says("partitions assigned");
    let count = || place.sql("SELECT count(*) FROM 'out/'").unwrap_or_default();
    produce(broker, &from, (0..10_000).map(number));
    until("both have written", || count() == "10000");
    second.signal("-TERM");
    assert!(second.wait().0.success());
    produce(broker, &from, (10_000..20_000).map(number));
    until("the other one has written the rest", || count() == "20000");
    first.signal("-TERM");
    let (status, log) = first.wait();
    assert!(status.success() && !log.contains("trying again"), "{log}");
    assert_each_once(&place.ids("out/"), 20_000);
}

/// What a folder was written from stays: another topic has other offsets.
fn folder_of_another_topic(broker: &Broker) {
    let (from, other) = (topic(broker, "numbers", 1), topic(broker, "others", 1));
    let place = Place::new();
    let sql = |from: &str| {
        tables(broker, from, from, "")
            + "CREATE EXTERNAL TABLE files (id BIGINT) STORED AS JSON LOCATION 'out/';
               INSERT INTO files SELECT id FROM numbers;"
    };
    produce(broker, &from, (0..100).map(number));
    place.run_to_end(&sql(&from));
    let (status, log) = place.run(&sql(&other), &["--until-end"]).wait();
    let expected = format!("from the topic '{from}', and is to go on from '{other}': SET stream.name");
    assert!(!status.success() && log.contains(&expected), "{log}");
}

/// A start removes files of its own that no manifest names, and no others.
fn left_overs(broker: &Broker) {
    let from = topic(broker, "numbers", 1);
    let place = Place::new();
    produce(broker, &from, (0..100).map(number));
    let sql = tables(broker, &from, &from, "")
        + "CREATE EXTERNAL TABLE files (id BIGINT) STORED AS JSON LOCATION 'out/';
           INSERT INTO files SELECT id FROM numbers;";
    place.run_to_end(&sql);
    let committed = files(&place.path("out"));
    assert_eq!(committed.len(), 1);
    // the last one is of a run that no manifest knows of
    let others = ["mine.json", "pipeline-files.other.1.0000000002.json", "pipeline-files.main.1.0000000002.json"];
    let run = committed[0].split('.').nth(2).unwrap();
    let own = ["", "#1"].map(|end| format!("pipeline-files.main.{run}.0000000003.json{end}"));
    for name in others.into_iter().chain(own.each_ref().map(String::as_str)) {
        std::fs::write(place.path("out").join(name), "{\"id\":1}\n").unwrap();
    }
    place.run_to_end(&sql);
    let mut expected = committed.clone();
    expected.extend(others.map(str::to_owned));
    expected.sort();
    assert_eq!(files(&place.path("out")), expected);
}

/// Manifests as they are documented, of two instances: those of the last ten thousand, and a few before, are all that a start
/// looks at, and it removes what the last run of its instance had left.
fn many_manifests(broker: &Broker) {
    let from = topic(broker, "numbers", 1);
    let place = Place::new();
    produce(broker, &from, (0..100).map(number));
    let name = |run: usize, number: usize| format!("pipeline-files.main.{run}.{number:010}.json");
    let manifest = |number: usize| {
        let (run, last) = if number < 6 { (1, number) } else { (2, number.min(10_001)) };
        let mut instances = serde_json::json!({ "main": { "run": run.to_string(), "last": last } });
        if number > 10_001 {
            instances["other"] = serde_json::json!({ "run": "3", "last": number });
        }
        let file = if number > 10_001 { format!("theirs.{number}.json") } else { name(run, number) };
        let files = serde_json::json!([{ "name": file, "rows": 1, "bytes": 9 }]);
        serde_json::json!({
            "number": number, "pipeline": "pipeline-files", "topic": from, "instances": instances, "files": files,
            "offsets": { "0": 50 }
        })
    };
    let folder = place.path("out/_aefusion/pipeline-files");
    let path = |number: usize| {
        let digits = format!("{number:020}");
        folder.join(&digits[..16]).join(format!("{digits}.manifest"))
    };
    for number in 1..=20_003 {
        std::fs::create_dir_all(path(number).parent().unwrap()).unwrap();
        std::fs::write(path(number), manifest(number).to_string()).unwrap();
    }
    let counted = [name(1, 4), name(1, 5), name(2, 10_000), name(2, 10_001)];
    let left_over = name(2, 10_002);
    for name in counted.iter().chain([&left_over]) {
        std::fs::write(place.path("out").join(name), "{\"id\":-1}\n").unwrap();
    }
    // in the way of whoever reads them all
    std::fs::write(path(7), "no manifest").unwrap();
    let sql = tables(broker, &from, &from, "")
        + "CREATE EXTERNAL TABLE files (id BIGINT) STORED AS JSON LOCATION 'out/';
           INSERT INTO files SELECT id FROM numbers;";
    place.run_to_end(&sql);
    let files = files(&place.path("out"));
    assert!(counted.iter().all(|name| files.contains(name)), "{files:?}");
    assert!(!files.contains(&left_over), "{files:?}");
    assert!(path(20_005).exists());
    let read = place.sql("SELECT id FROM 'out/' WHERE id >= 0 ORDER BY id").unwrap();
    let expected: Vec<String> = (50..100).map(|id| id.to_string()).collect();
    assert_eq!(read.lines().collect::<Vec<_>>(), expected);
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
    running.signal("-TERM");
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
