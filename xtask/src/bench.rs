//! `cargo xtask bench`: functions with Criterion, whole jobs compared with other libraries.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};

use xtask::kafka::Broker;
use xtask::python::environment;

use crate::program::{Program, onnx_runtime};
use crate::{cargo, cargo_command, quality, root, run as run_command, say, setup};

/// The page of results. `--write` replaces the part between the two lines of a benchmark.
const PAGE: &str = "docs/benchmarks.md";
const END: &str = "<!-- /bench -->";

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Functions and conversions, one by one
    Functions {
        /// Only those whose names contain this
        filter: Option<String>,
    },
    /// Whole jobs (score, etl, filter), compared with pyarrow and Polars with ONNX Runtime
    Peers(Rows),
    /// Time of queries, compared with ONNX Runtime alone
    Limit(Rows),
    /// Training, compared with PyTorch
    Train {
        /// Runs of each
        #[arg(long, default_value_t = 3)]
        rounds: usize,
    },
    /// A pipeline from topic to topic, compared with a consumer in Python on the same broker
    Stream {
        /// Records of the full topic
        #[arg(long, default_value_t = 6_000_000)]
        records: usize,

        /// Runs of each
        #[arg(long, default_value_t = 3)]
        rounds: usize,

        /// Only the latency of the pipeline, at this number of records per second
        #[arg(long)]
        rate: Option<u32>,
    },
    /// Quality of trained models on real data, compared with other libraries
    Quality {
        /// Only the part whose name contains this: anomaly, digits, denoising, sparse, linear
        filter: Option<String>,

        /// A program to measure, instead of a new release build
        #[arg(long)]
        program: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Rows {
    /// Rows of the file
    #[arg(long, default_value_t = 2_000_000)]
    rows: usize,

    /// Runs of each
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

impl Bench {
    /// The name in the page; none if the benchmark, or the part that is asked for, has no table there.
    fn name(&self) -> Option<&'static str> {
        match self {
            Self::Peers(_) => Some("peers"),
            Self::Limit(_) => Some("limit"),
            Self::Train { .. } => Some("train"),
            Self::Stream { rate: None, .. } => Some("stream"),
            Self::Quality { filter: None, .. } => Some("quality"),
            Self::Functions { .. } | Self::Stream { .. } | Self::Quality { .. } => None,
        }
    }
}

/// Runs a benchmark, prints its table, and writes it to the page if `is_written`.
pub(crate) fn run(bench: &Bench, is_written: bool) -> Result<()> {
    ensure!(
        !is_written || bench.name().is_some(),
        "--write: {PAGE} has no table for this part; run peers, limit, train, stream or quality without a filter or a rate"
    );
    setup::fetch()?;
    let table = match bench {
        Bench::Functions { filter } => {
            return cargo(["bench", "--bench", "functions", "--"].into_iter().chain(filter.as_deref()));
        }
        Bench::Peers(rows) => peers("compare.py", rows)?,
        Bench::Limit(rows) => peers("limit.py", rows)?,
        Bench::Train { rounds } => train(*rounds)?,
        Bench::Stream { records, rounds, rate } => stream(*records, *rounds, *rate)?,
        Bench::Quality { filter, program } => quality::run(program.clone(), filter.as_deref())?,
    };
    match bench.name().filter(|_| is_written) {
        Some(name) => write(name, &table),
        None => Ok(()),
    }
}

/// Runs a script of `benches/peers/` with the program, on data that is made once.
fn peers(script: &str, rows: &Rows) -> Result<String> {
    let data = root().join("target").join("peers").join(rows.rows.to_string());
    compare("peers", script, &data, rows.rounds, |python, scripts| {
        run_command(Command::new(python).arg(scripts.join("data.py")).arg(&data).arg(rows.rows.to_string()))
    })
}

/// Runs the package `benches/stream` with a broker, the program and the environment of the consumer in Python.
fn stream(records: usize, rounds: usize, rate: Option<u32>) -> Result<String> {
    let python = environment("stream", &root().join("benches/stream/requirements.txt"))?;
    let broker = Broker::start_measured()?;
    let program = Program::release()?;
    printed(
        cargo_command()
            .args(["run", "--release", "--package", "stream-bench"])
            .env("AEFUSION", program.path)
            .env("ORT_DYLIB_PATH", onnx_runtime())
            .env("FOLDER", root().join("target/stream"))
            .env("KAFKA_BOOTSTRAP_SERVERS", broker.bootstrap())
            .env("AEFUSION_PYTHON", python)
            .env("RECORDS", records.to_string())
            .env("ROUNDS", rounds.to_string())
            .envs(rate.map(|rate| ("RATE", rate.to_string()))),
    )
}

/// Runs `benches/train/compare.py` with the program. The script makes its data.
fn train(rounds: usize) -> Result<String> {
    compare("train", "compare.py", &root().join("target/train/data"), rounds, |_, _| Ok(()))
}

/// Runs a script of a folder of `benches/` with the program, in the environment of the folder. `prepare` makes its data.
fn compare(
    folder: &str,
    script: &str,
    data: &Path,
    rounds: usize,
    prepare: impl FnOnce(&Path, &Path) -> Result<()>,
) -> Result<String> {
    let scripts = root().join("benches").join(folder);
    let python = environment(folder, &scripts.join("requirements.txt"))?;
    let program = Program::release()?;
    prepare(&python, &scripts)?;
    let mut command = Command::new(&python);
    command.arg(scripts.join(script)).arg(&program.path).arg(data).args(["--rounds", &rounds.to_string()]);
    printed(command.env("ORT_DYLIB_PATH", onnx_runtime()))
}

/// Runs a command, passes its output on, and returns it.
fn printed(command: &mut Command) -> Result<String> {
    let mut process = command.stdout(Stdio::piped()).spawn().with_context(|| format!("could not start {command:?}"))?;
    let output = BufReader::new(process.stdout.take().context("the command has no output")?);
    let mut printed = String::new();
    for line in output.lines() {
        let line = line?;
        say(&line)?;
        printed.push_str(&line);
        printed.push('\n');
    }
    let status = process.wait()?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(printed)
}

/// Writes a table to the page, with date, commit and machine.
fn write(name: &str, table: &str) -> Result<()> {
    let page = std::fs::read_to_string(root().join(PAGE)).with_context(|| format!("could not read {PAGE}"))?;
    let date = output(Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
    let commit = output(Command::new("git").args(["rev-parse", "--short=7", "HEAD"]).current_dir(root()))?;
    let about = format!("{date}, commit {commit}, {}.", machine());
    std::fs::write(root().join(PAGE), replaced(&page, name, &format!("{about}\n\n{}", table.trim()))?)?;
    say(&format!("{PAGE} has the new table"))
}

/// The page with another text between the two lines of a benchmark.
fn replaced(page: &str, name: &str, text: &str) -> Result<String> {
    let start = format!("<!-- bench:{name} -->");
    let parts = page.split_once(&start).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    match parts {
        Some((before, after)) => Ok(format!("{before}{start}\n{text}\n{END}{after}")),
        None => bail!("{PAGE} has no lines {start} and {END}"),
    }
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("could not start {command:?}"))?;
    ensure!(output.status.success(), "{command:?} ended with {}", output.status);
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Cores, architecture and processor of this machine.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).and_then(|line| line.split_once(": "));
    let model = model.map(|(_, name)| format!(" ({})", name.trim())).unwrap_or_default();
    format!("{cores} cores, {}{model}", std::env::consts::ARCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_replaces_the_one_of_its_benchmark() {
        let page = "a\n<!-- bench:peers -->\nold\n<!-- /bench -->\nb\n<!-- bench:train -->\nkept\n<!-- /bench -->\n";
        let expected = page.replace("old", "new\nlines");
        assert_eq!(replaced(page, "peers", "new\nlines").unwrap(), expected);
        assert!(replaced(page, "stream", "new").is_err());
    }

    #[test]
    fn the_page_has_a_place_for_each_table() {
        let page = std::fs::read_to_string(root().join(PAGE)).unwrap();
        for name in ["peers", "limit", "train", "stream", "quality"] {
            assert!(replaced(&page, name, "table").is_ok(), "{name}");
        }
    }
}
