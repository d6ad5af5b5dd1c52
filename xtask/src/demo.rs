//! `cargo xtask demo`: `examples/demo/demo.sql`, part by part; `cargo xtask demo stream`: `examples/pipeline.sql`.

use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use xtask::kafka::Broker;
use xtask::remove;

use crate::{cargo, cargo_command, root, run, setup};

/// A line that begins a part of the script, and says what it shows.
const HEADING: &str = "-- # ";

/// Builds the program and runs each part of the script, its text before its rows.
pub(crate) fn show() -> Result<()> {
    setup::fetch()?;
    cargo(["build"])?;
    let script = root().join("examples").join("demo").join("demo.sql");
    let script = std::fs::read_to_string(&script).with_context(|| format!("could not read {}", script.display()))?;
    let models = root().join("target").join("demo-models");
    remove(&models)?;
    for part in script.split(HEADING).skip(1) {
        let (heading, sql) = part.split_once('\n').unwrap_or((part, ""));
        let mut out = std::io::stdout().lock();
        writeln!(out, "\n{heading}\n\n{}\n", indented(sql.trim()))?;
        out.flush()?;
        drop(out);
        run(cargo_command().args(["run", "--quiet", "--", "sql", "--models"]).arg(&models).arg("--command").arg(sql))?;
    }
    Ok(())
}

/// Readings that the stream's demo replays a second, and in all.
const REPLAYED: [&str; 2] = ["2500", "22695"];

/// What the stream's demo asks of its alerts.
const ALERTS: [(&str, &str); 2] = [
    (
        "The readings that went least with the hour before them",
        "SELECT ts, round(temperature, 1) AS temperature, round(error, 2) AS error, p, worst
         FROM alerts ORDER BY error DESC LIMIT 10",
    ),
    (
        "Alerts, and how many of them are in what the benchmark knows of, or faults that were added",
        "SELECT count(*) AS alerts, sum(CASE WHEN label = 1 THEN 1 ELSE 0 END) AS known,
                sum(CASE WHEN label = 0 AND (i % 1500 BETWEEN 1400 AND 1411 OR i % 4000 BETWEEN 2500 AND 2522) THEN 1 ELSE 0 END) AS added
         FROM alerts JOIN (SELECT *, row_number() OVER (ORDER BY ts) AS i FROM 'examples/demo/machine_temperature.parquet')
           USING (ts)",
    ),
];

/// Starts a broker if there is none, replays readings through a pipeline, and shows its alerts.
pub(crate) fn stream() -> Result<()> {
    setup::fetch()?;
    cargo(["build"])?;
    let broker = Broker::start()?;
    let models = root().join("target").join("demo-stream-models");
    let mut pipeline = Pipeline::start(&broker, &models)?;
    tell(&format!("The pipeline runs, its page is at {}", pipeline.page))?;
    tell("examples/replay.sh replays 22,695 readings, some of them with faults …")?;
    let program = root().join("target").join("debug").join("aefusion");
    let mut replay = Command::new(root().join("examples").join("replay.sh"));
    run(with_broker(replay.args(REPLAYED).env("AEFUSION", &program), &broker))?;
    // what was replayed last is scored within a second
    std::thread::sleep(std::time::Duration::from_secs(2));
    let pipeline_sql = std::fs::read_to_string(root().join("examples").join("pipeline.sql"))?;
    let table = pipeline_sql.split_once("CREATE EXTERNAL TABLE alerts").and_then(|(_, rest)| rest.split_once(';'));
    let (table, _) = table.context("examples/pipeline.sql makes no table alerts")?;
    for (heading, sql) in ALERTS {
        tell(&format!("\n{heading}\n"))?;
        let sql = format!("CREATE EXTERNAL TABLE alerts{table}; {sql}");
        let mut query = cargo_command();
        query.args(["run", "--quiet", "--", "sql", "--quiet", "--models"]).arg(&models).arg("--command").arg(sql);
        run(with_broker(&mut query, &broker))?;
    }
    if std::io::stdin().is_terminal() {
        tell(&format!("\nThe page stays at {}; Enter ends the demo", pipeline.page))?;
        std::io::stdin().read_line(&mut String::new())?;
    }
    pipeline.stop()
}

fn with_broker<'a>(command: &'a mut Command, broker: &Broker) -> &'a mut Command {
    let library = root().join(".onnxruntime").join("lib").join("libonnxruntime.so");
    command.env("KAFKA_BOOTSTRAP_SERVERS", broker.bootstrap()).env("ORT_DYLIB_PATH", library).current_dir(root())
}

/// The pipeline of the demo, which ends when this is dropped.
struct Pipeline {
    process: Child,
    page: String,
}

impl Pipeline {
    fn start(broker: &Broker, models: &Path) -> Result<Self> {
        let mut command = Command::new(root().join("target").join("debug").join("aefusion"));
        command.args(["run", "examples/pipeline.sql", "--http", "127.0.0.1:0", "--models"]).arg(models);
        let mut process = with_broker(&mut command, broker).stderr(Stdio::piped()).spawn()?;
        let mut log = BufReader::new(process.stderr.take().context("the pipeline has no log")?);
        let mut pipeline = Self { process, page: String::new() };
        let mut said = String::new();
        while !said.contains("partitions assigned") {
            let mut line = String::new();
            if log.read_line(&mut line)? == 0 {
                bail!("the pipeline ended: {said}");
            }
            let address = line.split("page at ").nth(1).and_then(|rest| rest.split(',').next());
            pipeline.page = address.map_or(std::mem::take(&mut pipeline.page), str::to_owned);
            said.push_str(&line);
        }
        // read to its end, so that the pipeline can write it
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Ok(pipeline)
    }

    fn stop(&mut self) -> Result<()> {
        run(Command::new("kill").arg(self.process.id().to_string()))?;
        let status = self.process.wait()?;
        if !status.success() {
            bail!("the pipeline ended with {status}");
        }
        tell("\nThe pipeline has finished what it had read, and ended.")
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn tell(text: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}

fn indented(sql: &str) -> String {
    sql.lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}
