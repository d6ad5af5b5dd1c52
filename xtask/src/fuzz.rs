//! `cargo xtask fuzz` tries mutants of model files, and compares their results with those of ONNX Runtime in Python.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};
use clap::Args;
use xtask::python::environment;

use crate::program::onnx_runtime;
use crate::{cargo, root, setup};

/// Mutants that the gate tries.
const FEW: u64 = 300;

#[derive(Debug, Args)]
pub(crate) struct Fuzz {
    /// Number of mutants
    #[arg(long, default_value_t = 100_000)]
    runs: u64,

    /// Number of the first mutant: to try one again, use it with --runs 1
    #[arg(long, default_value_t = 0)]
    first: u64,

    /// Seed: the same seed and files give the same mutants
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Mutants at the same time
    #[arg(long, default_value_t = 2)]
    jobs: usize,

    /// Folder for the files of findings [default: target/fuzz]
    #[arg(long)]
    keep: Option<PathBuf>,
}

/// Builds for release, and tries mutants.
///
/// # Errors
/// If something was found.
pub(crate) fn run(fuzz: &Fuzz) -> Result<()> {
    setup::fetch()?;
    let python = environment("exported", &root().join("tests/exported/requirements.txt"))?;
    cargo(["build", "--release", "--workspace", "--bin", "aefusion", "--bin", "aefusion-fuzz"])?;
    start(fuzz, "release", &python)
}

/// Tries a few mutants with the programs of the tests.
///
/// # Errors
/// As [`run`].
pub(crate) fn few(python: &Path) -> Result<()> {
    start(&Fuzz { runs: FEW, first: 0, seed: 1, jobs: 2, keep: None }, "debug", python)
}

fn start(fuzz: &Fuzz, profile: &str, python: &Path) -> Result<()> {
    let built = root().join("target").join(profile);
    let keep = fuzz.keep.clone().unwrap_or_else(|| root().join("target/fuzz"));
    let mut command = Command::new(built.join("aefusion-fuzz"));
    command.arg("run").arg(root());
    command.args([fuzz.seed, fuzz.first, fuzz.runs].map(|number| number.to_string())).arg(fuzz.jobs.to_string());
    command.arg(&keep).arg(built.join("aefusion")).arg(python);
    let status = command.env("ORT_DYLIB_PATH", onnx_runtime()).current_dir(root()).status()?;
    if !status.success() {
        bail!("the fuzzer ended with {status}; {} has the files of findings", keep.display());
    }
    Ok(())
}
