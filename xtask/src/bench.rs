//! `cargo xtask bench`: parts by Criterion, whole jobs beside what people use today.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use clap::{Args, Subcommand};

use xtask::kafka::Broker;
use xtask::python::environment;

use crate::{cargo, cargo_command, quality, root, run as run_command, setup};

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Functions and conversion, part by part
    Functions {
        /// Only those whose name holds this
        filter: Option<String>,
    },
    /// Whole jobs (score, etl, filter), beside pyarrow and Polars with ONNX Runtime, interleaved
    Peers(Rows),
    /// How near a query comes to ONNX Runtime alone
    Limit(Rows),
    /// Training, beside PyTorch, interleaved
    Train {
        /// Runs of each
        #[arg(long, default_value_t = 3)]
        rounds: usize,
    },
    /// A pipeline from topic to topic, beside a consumer in Python, on the same broker
    Stream {
        /// Records of the full topic
        #[arg(long, default_value_t = 6_000_000)]
        records: usize,

        /// Runs of each
        #[arg(long, default_value_t = 3)]
        rounds: usize,

        /// Only the latency of the pipeline, at so many records a second
        #[arg(long)]
        rate: Option<u32>,
    },
    /// What trained models come to on real data, beside what others come to
    Quality {
        /// Only the part whose name holds this: anomaly, digits, denoising, sparse, linear
        filter: Option<String>,

        /// The program, where it is not to be built for release
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

pub(crate) fn run(bench: &Bench) -> Result<()> {
    setup::fetch()?;
    match bench {
        Bench::Functions { filter } => {
            cargo(["bench", "--bench", "functions", "--"].into_iter().chain(filter.as_deref()))
        }
        Bench::Peers(rows) => beside_python("compare.py", rows),
        Bench::Limit(rows) => beside_python("limit.py", rows),
        Bench::Train { rounds } => train(*rounds),
        Bench::Stream { records, rounds, rate } => stream(*records, *rounds, *rate),
        Bench::Quality { filter, program } => quality::run(program.clone(), filter.as_deref()),
    }
}

/// Runs a script of `benches/peers/` with the program, on data that is made once.
fn beside_python(script: &str, rows: &Rows) -> Result<()> {
    let data = root().join("target").join("peers").join(rows.rows.to_string());
    compare("peers", script, &data, rows.rounds, |python, scripts| {
        run_command(Command::new(python).arg(scripts.join("data.py")).arg(&data).arg(rows.rows.to_string()))
    })
}

/// Runs the package `benches/stream` with a broker and with what the other contender needs.
fn stream(records: usize, rounds: usize, rate: Option<u32>) -> Result<()> {
    let python = environment("stream", &root().join("benches").join("stream").join("requirements.txt"))?;
    let broker = Broker::start_measured()?;
    cargo(["build", "--release", "--bin", "aefusion"])?;
    let folder = root().join("target").join("stream");
    run_command(
        cargo_command()
            .args(["run", "--release", "--package", "stream-bench"])
            .env("AEFUSION", root().join("target").join("release").join("aefusion"))
            .env("ORT_DYLIB_PATH", root().join(".onnxruntime").join("lib").join("libonnxruntime.so"))
            .env("FOLDER", folder)
            .env("KAFKA_BOOTSTRAP_SERVERS", broker.bootstrap())
            .env("AEFUSION_PYTHON", python)
            .env("RECORDS", records.to_string())
            .env("ROUNDS", rounds.to_string())
            .envs(rate.map(|rate| ("RATE", rate.to_string()))),
    )
}

/// Runs `benches/train/compare.py` with the program; it makes its data itself.
fn train(rounds: usize) -> Result<()> {
    let data = root().join("target").join("train").join("data");
    compare("train", "compare.py", &data, rounds, |_, _| Ok(()))
}

/// Runs a script of a folder of `benches/` with the program, in an environment of its own, after what prepares its data.
fn compare(
    folder: &str,
    script: &str,
    data: &Path,
    rounds: usize,
    prepare: impl FnOnce(&Path, &Path) -> Result<()>,
) -> Result<()> {
    let scripts = root().join("benches").join(folder);
    let python = environment(folder, &scripts.join("requirements.txt"))?;
    cargo(["build", "--release", "--bin", "aefusion"])?;
    prepare(&python, &scripts)?;
    run_command(
        Command::new(&python)
            .arg(scripts.join(script))
            .arg(root().join("target").join("release").join("aefusion"))
            .arg(data)
            .args(["--rounds", &rounds.to_string()])
            .env("ORT_DYLIB_PATH", root().join(".onnxruntime").join("lib").join("libonnxruntime.so")),
    )
}
