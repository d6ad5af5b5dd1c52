//! `cargo xtask bench`: parts by Criterion, whole jobs beside what people use today.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::setup::environment;
use crate::{cargo, quality, root, run as run_command, setup};

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
        Bench::Quality { filter, program } => quality::run(program.clone(), filter.as_deref()),
    }
}

/// Runs a script of `benches/peers/` with the program, on data that is made once.
fn beside_python(script: &str, rows: &Rows) -> Result<()> {
    let scripts = root().join("benches").join("peers");
    let python = environment("peers", &scripts.join("requirements.txt"))?;
    cargo(["build", "--release", "--bin", "aefusion"])?;
    let data = root().join("target").join("peers").join(rows.rows.to_string());
    run_command(Command::new(&python).arg(scripts.join("data.py")).arg(&data).arg(rows.rows.to_string()))?;
    run_command(
        Command::new(&python)
            .arg(scripts.join(script))
            .arg(root().join("target").join("release").join("aefusion"))
            .arg(&data)
            .args(["--rounds", &rows.rounds.to_string()])
            .env("ORT_DYLIB_PATH", root().join(".onnxruntime").join("lib").join("libonnxruntime.so")),
    )
}

/// Runs `benches/train/compare.py` with the program.
fn train(rounds: usize) -> Result<()> {
    let scripts = root().join("benches").join("train");
    let python = environment("train", &scripts.join("requirements.txt"))?;
    cargo(["build", "--release", "--bin", "aefusion"])?;
    run_command(
        Command::new(&python)
            .arg(scripts.join("compare.py"))
            .arg(root().join("target").join("release").join("aefusion"))
            .arg(root().join("target").join("train").join("data"))
            .args(["--rounds", &rounds.to_string()])
            .env("ORT_DYLIB_PATH", root().join(".onnxruntime").join("lib").join("libonnxruntime.so")),
    )
}
