//! `cargo xtask demo stream`: replays readings of a machine through a pipeline, and shows its alerts.

use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use xtask::kafka::Broker;
use xtask::{remove, terminate};

use crate::program::Program;
use crate::{root, run, say, setup};

/// Readings that are replayed.
const READINGS: &str = "22695";
/// Readings a second, for somebody who watches the page.
const WATCHED_RATE: &str = "2500";
/// Records of the replay. The first eleven readings have no full hour before them and are left out; 22 truncated records are
/// added.
const RECORDS: u64 = 22_695 - 11 + 22;
/// How long the pipeline may take until it has committed them.
const COMMIT: Duration = Duration::from_secs(60);

/// Queries of the alerts, with headings.
const ALERTS: [(&str, &str); 2] = [
    (
        "The ten readings with the largest errors",
        "SELECT ts, round(temperature, 1) AS temperature, round(error, 2) AS error, p, worst
         FROM alerts ORDER BY error DESC LIMIT 10",
    ),
    (
        "All alerts, those in failures that the benchmark documents, and those in faults that the replay added",
        "SELECT count(*) AS alerts, sum(CASE WHEN label = 1 THEN 1 ELSE 0 END) AS known,
                sum(CASE WHEN label = 0 AND (i % 1500 BETWEEN 1400 AND 1411 OR i % 4000 BETWEEN 2500 AND 2522) THEN 1 ELSE 0 END) AS added
         FROM alerts JOIN (SELECT *, row_number() OVER (ORDER BY ts) AS i FROM 'examples/demo/machine_temperature.parquet')
           USING (ts)",
    ),
];

/// Starts a broker if there is none, replays readings through a pipeline, and shows its alerts.
pub(crate) fn stream() -> Result<()> {
    setup::fetch()?;
    let program = Program::debug()?;
    let broker = Broker::start()?;
    let models = root().join("target/demo-stream-models");
    remove(&models)?;
    let mut pipeline = Pipeline::start(&program, &broker, &models)?;
    say(&format!("The pipeline runs. Its page is at {}", pipeline.page))?;
    say("examples/replay.sh replays 22,695 readings. Some of them have faults.")?;
    let is_watched = std::io::stdin().is_terminal();
    let mut replay = Command::new(root().join("examples/replay.sh"));
    replay.args([if is_watched { WATCHED_RATE } else { READINGS }, READINGS]).env("AEFUSION", &program.path);
    run(replay
        .envs(program.command().get_envs().filter_map(|(name, value)| Some((name, value?))))
        .envs(address(&broker)))?;
    pipeline.wait_for_commit()?;
    let pipeline_sql = std::fs::read_to_string(root().join("examples/pipeline.sql"))?;
    let table = pipeline_sql.split_once("CREATE EXTERNAL TABLE alerts").and_then(|(_, rest)| rest.split_once(';'));
    let (table, _) = table.context("examples/pipeline.sql creates no table alerts")?;
    for (heading, sql) in ALERTS {
        say(&format!("\n{heading}\n"))?;
        let sql = format!("CREATE EXTERNAL TABLE alerts{table}; {sql}");
        let mut query = program.command();
        query.args(["sql", "--quiet", "--models"]).arg(&models).arg("--command").arg(sql);
        run(query.envs(address(&broker)))?;
    }
    if is_watched {
        say(&format!("\nThe page stays at {}. Press Enter to end the demo.", pipeline.page))?;
        std::io::stdin().read_line(&mut String::new())?;
    }
    pipeline.stop()
}

fn address(broker: &Broker) -> [(&'static str, &str); 1] {
    [("KAFKA_BOOTSTRAP_SERVERS", broker.bootstrap())]
}

/// The pipeline of the demo, which ends when this is dropped.
struct Pipeline {
    process: Child,
    page: String,
}

impl Pipeline {
    fn start(program: &Program, broker: &Broker, models: &Path) -> Result<Self> {
        let mut command = program.command();
        command.args(["run", "examples/pipeline.sql", "--http", "127.0.0.1:0", "--models"]).arg(models);
        let mut process = command.envs(address(broker)).stderr(Stdio::piped()).spawn()?;
        let mut log = BufReader::new(process.stderr.take().context("the pipeline has no log")?);
        let mut pipeline = Self { process, page: String::new() };
        let mut lines = String::new();
        while !lines.contains("partitions assigned") {
            let mut line = String::new();
            if log.read_line(&mut line)? == 0 {
                bail!("the pipeline ended: {lines}");
            }
            let address = line.split("page at ").nth(1).and_then(|rest| rest.split(',').next());
            pipeline.page = address.map_or(std::mem::take(&mut pipeline.page), str::to_owned);
            lines.push_str(&line);
        }
        // reads the log to its end: a full pipe would block the pipeline
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Ok(pipeline)
    }

    /// Waits until all records are scored and committed.
    fn wait_for_commit(&self) -> Result<()> {
        let start = Instant::now();
        loop {
            let state = self.state()?;
            if is_committed(&state) {
                return Ok(());
            }
            if start.elapsed() > COMMIT {
                bail!("the pipeline has not committed {RECORDS} records after {} s: {state}", COMMIT.as_secs());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The pipeline in `/pipelines.json` of its page.
    fn state(&self) -> Result<Value> {
        let host = self.page.trim_start_matches("http://").trim_end_matches('/');
        let mut stream = TcpStream::connect(host).with_context(|| format!("no page at {host}"))?;
        write!(stream, "GET /pipelines.json HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
        let mut response = String::new();
        stream.read_to_string(&mut response)?;
        let (_, body) = response.split_once("\r\n\r\n").context("the page answered without a body")?;
        let mut state: Value =
            serde_json::from_str(body).with_context(|| format!("{host}/pipelines.json: {response}"))?;
        Ok(state["pipelines"][0].take())
    }

    fn stop(&mut self) -> Result<()> {
        terminate(&self.process)?;
        let status = self.process.wait()?;
        if !status.success() {
            bail!("the pipeline ended with {status}");
        }
        say("\nThe pipeline has committed what it had read, and has stopped.")
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// Whether a pipeline has read all records and committed them. Rows are counted as written when they are committed.
fn is_committed(state: &Value) -> bool {
    let total = |name: &str| state["total"][name].as_u64().unwrap_or(0);
    let lags = state["lag"].as_object().into_iter().flatten();
    let lag: i64 = lags.filter_map(|(_, lag)| lag.as_i64()).sum();
    total("records_in") >= RECORDS && total("records_out") > 0 && lag == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipeline_has_committed_when_nothing_is_left() {
        let state = |read: u64, written: u64, lag: i64| {
            let total = serde_json::json!({"records_in": read, "records_out": written});
            serde_json::json!({"total": total, "lag": {"0": 0, "1": lag}})
        };
        assert!(is_committed(&state(RECORDS, 5, 0)));
        assert!(!is_committed(&state(RECORDS - 1, 5, 0)));
        assert!(!is_committed(&state(RECORDS, 0, 0)));
        assert!(!is_committed(&state(RECORDS, 5, 1)));
        assert!(!is_committed(&Value::Null));
    }
}
