//! What a running pipeline shows of itself: health, metrics, its page in a browser.

use std::process::Command;

use nix::sys::signal::Signal;
use xtask::kafka::Broker;

use crate::harness::needed;
use crate::place::{Place, get, until};
use crate::program::is_installed;
use crate::topics::{Record, produce, topic};

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    ("health_and_metrics", |broker| run_and_look(broker, health_and_metrics)),
    ("in_a_browser", in_a_browser),
    ("log_as_json", log_as_json),
];

/// An autoencoder of normal readings: `a` and `b` are alike.
const MODEL: &str =
    "CREATE MODEL m OPTIONS (hidden_units = [1], activation_fn = 'linear', contamination = 0.01, seed = 1) AS
    SELECT value / 100.0 AS a, value / 100.0 + (value % 7) / 1000.0 AS b FROM generate_series(1, 2000);";

/// Runs a pipeline over 990 normal readings, 7 anomalies and 3 malformed records, and looks at what it serves.
fn run_and_look(broker: &Broker, look: impl Fn(&Place, &str)) {
    let place = Place::new();
    place.sql(MODEL).unwrap();
    let (from, to) = (topic(broker, "readings", 2), topic(broker, "alerts", 1));
    let b = broker.bootstrap();
    let sql = format!(
        "CREATE EXTERNAL TABLE readings (id BIGINT, a DOUBLE, b DOUBLE) STORED AS KAFKA LOCATION 'kafka://{b}/{from}'
           OPTIONS ('malformed' 'skip');
         CREATE EXTERNAL TABLE alerts (id BIGINT, error DOUBLE) STORED AS KAFKA LOCATION 'kafka://{b}/{to}';
         INSERT INTO alerts SELECT id, ae_error('m') FROM readings WHERE ae_is_anomaly('m');"
    );
    let pipeline = place.run(&sql, &["--http", "127.0.0.1:0"]);
    let address = pipeline.address();
    until("it is ready", || get(&address, "/readyz") == (200, "ready\n".to_owned()));
    let reading = |i: usize| match i % 1000 {
        10 | 20 | 30 | 40 | 50 | 60 | 70 => format!("{{\"id\":{i},\"a\":3,\"b\":17}}"),
        500..503 => "{".to_owned(),
        _ => format!("{{\"id\":{i},\"a\":5,\"b\":5.003}}"),
    };
    produce(broker, &from, (0..1000).map(|i| Record::of(reading(i))));
    until("all is read", || metric(&address, "records_in_total").is_some_and(|n| (n - 1000.0).abs() < 0.5));
    look(&place, &address);
    pipeline.signal(Signal::SIGTERM);
    assert!(pipeline.wait().0.success());
}

fn metric(address: &str, name: &str) -> Option<f64> {
    let (status, text) = get(address, "/metrics");
    assert!(status == 200 && text.ends_with("# EOF\n"), "{text}");
    let line = text.lines().find(|line| line.starts_with(&format!("aefusion_{name}")));
    line.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
}

fn health_and_metrics(_: &Place, address: &str) {
    assert_eq!(get(address, "/healthz"), (200, "ok\n".to_owned()));
    let metric = |name: &str| metric(address, name);
    let expected = [
        ("records_out_total", 7.0),
        ("records_skipped_total", 3.0),
        ("anomalies_total{pipeline=\"pipeline-alerts\",model=\"m@1\"}", 7.0),
        ("error_count", 997.0),
        ("batch_rows_sum", 1000.0),
    ];
    for (name, n) in expected {
        assert!(metric(name).is_some_and(|found| (found - n).abs() < 0.5), "{name}: {:?}", metric(name));
    }
    assert!(metric("onnx_runtime_seconds_total").is_some_and(|time| time > 0.0));
    until("the lag is known", || metric("lag_records").is_some_and(|lag| lag.abs() < 0.5));
}

fn in_a_browser(broker: &Broker) {
    needed(is_installed("chromium").map_err(|_| "needs Chromium (on Debian: apt-get install chromium)".to_owned()));
    run_and_look(broker, draw);
}

/// The page as Chromium draws it; its picture stays in `target/page.png`.
fn draw(place: &Place, address: &str) {
    let picture = xtask::root().join("target").join("page.png");
    drop(std::fs::remove_file(&picture));
    let chromium = |profile: &str, what: &[&str]| {
        let mut command = Command::new("chromium");
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]);
        command.args(["--disable-background-networking", "--disable-component-update", "--enable-logging=stderr"]);
        command.args(["--window-size=1300,1100", "--virtual-time-budget=5000"]);
        command.arg(format!("--user-data-dir={}", place.path(profile).display())).args(what);
        let output = command.arg(format!("http://{address}/")).output();
        let output = output.unwrap();
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!log.contains("CONSOLE"), "the page has errors: {log}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let drawn = chromium("first", &["--dump-dom"]);
    let expected = [
        "<span class=\"name\">pipeline-alerts</span>",
        "<dt>read</dt><dd>1,000</dd>",
        "<dt>written</dt><dd>7</dd>",
        "<dt>skipped</dt><dd>3</dd>",
        "Errors of m@1: threshold ",
        ", 7 anomalous</figcaption>",
        ">live</span>",
        "\"b\":17",
    ];
    for text in expected {
        assert!(drawn.contains(text), "the page has no {text}: {drawn}");
    }
    // throughput, lag, anomalies, errors
    assert_eq!(drawn.matches("<canvas").count(), 4, "{drawn}");
    chromium("second", &[&format!("--screenshot={}", picture.display())]);
    let size = std::fs::metadata(&picture).unwrap().len();
    assert!(size > 20_000, "the picture of the page is empty: {size} bytes");
}

fn log_as_json(broker: &Broker) {
    let place = Place::new();
    let (from, to) = (topic(broker, "readings", 1), topic(broker, "copy", 1));
    let b = broker.bootstrap();
    let sql = format!(
        "CREATE EXTERNAL TABLE readings (id BIGINT) STORED AS KAFKA LOCATION 'kafka://{b}/{from}';
         CREATE EXTERNAL TABLE copy (id BIGINT) STORED AS KAFKA LOCATION 'kafka://{b}/{to}';
         INSERT INTO copy SELECT id FROM readings;"
    );
    let pipeline = place.run(&sql, &["--log", "json"]);
    pipeline.says("partitions assigned");
    pipeline.signal(Signal::SIGINT);
    let (status, log) = pipeline.wait();
    assert!(status.success(), "{log}");
    for line in log.lines() {
        let entry: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"));
        assert!(entry["level"].is_string() && entry["timestamp"].is_string(), "{line}");
    }
    assert!(log.contains("\"pipeline\":\"pipeline-copy\""), "{log}");
    // the end, too
    let (status, log) = place.run(&sql.replace(&from, "nowhere"), &["--log", "json"]).wait();
    assert_eq!(status.code(), Some(1));
    let last: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert_eq!(last["level"], "ERROR");
    assert!(last["fields"]["message"].as_str().unwrap().contains("has no topic 'nowhere'"), "{log}");
}
