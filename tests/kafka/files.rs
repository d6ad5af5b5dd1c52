//! What can happen to a folder that a pipeline writes to.

use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use xtask::kafka::Broker;

use crate::faults::tables;
use crate::harness::needed;
use crate::place::{Place, files, until};
use crate::topics::{assert_each_once, number, produce, topic};

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    ("disk_is_full", disk_is_full),
    ("disk_is_read_only", disk_is_read_only),
    ("folder_holds_what_no_manifest_names", left_overs),
    ("folder_of_another_topic", folder_of_another_topic),
    ("instances_of_a_file_sink", instances_of_a_file_sink),
    ("manifests_of_years", many_manifests),
];

/// A small file system in memory.
struct Tmpfs<'a>(&'a Path);

impl<'a> Tmpfs<'a> {
    fn mount(at: &'a Path) -> Result<Self, String> {
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=512k", "tmpfs"]).arg(at).status();
        let reason = "needs root, who may mount the small file system that is to fail";
        if mounted.is_ok_and(|status| status.success()) { Ok(Self(at)) } else { Err(reason.to_owned()) }
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

/// The pipeline retries until the disk works again.
fn disk_that_fails(broker: &Broker, reason: &str, spoil: impl Fn(&Path), mend: impl Fn(&Path)) {
    let from = topic(broker, "numbers", 2);
    let place = Place::new();
    let out = place.path("out");
    let _disk = needed(Tmpfs::mount(&out));
    spoil(&out);
    let sql = tables(broker, &from, &from, "")
        + "CREATE EXTERNAL TABLE files (id BIGINT) STORED AS JSON LOCATION 'out/'; SET stream.file_ms = 300;
           INSERT INTO files SELECT id FROM numbers;";
    produce(broker, &from, (0..10_000).map(number));
    let mut pipeline = place.run(&sql, &[]);
    pipeline.says("retrying from the last commit");
    assert!(pipeline.log().contains(reason), "{}", pipeline.log());
    assert!(pipeline.is_running());
    mend(&out);
    let count = || place.sql("SELECT count(*) FROM 'out/'").unwrap_or_default();
    until("it goes on", || count() == "10000");
    pipeline.signal(Signal::SIGTERM);
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
    second.signal(Signal::SIGTERM);
    assert!(second.wait().0.success());
    produce(broker, &from, (10_000..20_000).map(number));
    until("the other one has written the others", || count() == "20000");
    first.signal(Signal::SIGTERM);
    let (status, log) = first.wait();
    assert!(status.success() && !log.contains("retrying"), "{log}");
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
    let expected =
        format!("from the topic '{from}', and cannot continue from the topic '{other}'; use SET stream.name");
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

/// Manifests of two instances, in the documented format.
///
/// A start reads the last ten thousand and a few before them. It removes what the last run of its instance left.
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
