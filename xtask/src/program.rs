//! The program that demos and benchmarks run, and what it prints.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{cargo, root};

/// The library that `cargo xtask setup` fetches.
pub(crate) fn onnx_runtime() -> PathBuf {
    root().join(".onnxruntime/lib/libonnxruntime.so")
}

/// The program, built.
#[derive(Debug)]
pub(crate) struct Program {
    pub path: PathBuf,
}

impl Program {
    /// Built as the tests build it: after them, nothing is compiled.
    pub(crate) fn debug() -> Result<Self> {
        cargo(["build", "--workspace", "--bin", "aefusion"])?;
        Ok(Self { path: root().join("target/debug/aefusion") })
    }

    pub(crate) fn release() -> Result<Self> {
        cargo(["build", "--release", "--bin", "aefusion"])?;
        Ok(Self { path: root().join("target/release/aefusion") })
    }

    /// The program with ONNX Runtime, in the root of the repository.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.env("ORT_DYLIB_PATH", onnx_runtime()).current_dir(root());
        command
    }

    /// Runs statements on a store of models; returns the rows of numbers that they print.
    pub(crate) fn numbers(&self, models: &Path, sql: &str) -> Result<Vec<Vec<f64>>> {
        let mut command = self.command();
        command.args(["sql", "--quiet", "--format", "csv", "--models"]).arg(models).args(["--command", sql]);
        let output = command.output().with_context(|| format!("could not start {}", self.path.display()))?;
        if !output.status.success() {
            bail!("{sql}\n{}", String::from_utf8_lossy(&output.stderr));
        }
        let printed = String::from_utf8(output.stdout)?;
        let row = |line: &str| line.split(',').map(|cell| cell.parse().ok()).collect::<Option<Vec<f64>>>();
        Ok(printed.lines().filter_map(row).collect())
    }
}

/// The query of the AUROC of a model's errors, from ranks, with ties.
///
/// `table` has a column `label`, 1 for anomalies; `rows` is the condition of WHERE.
pub(crate) fn auroc(model: &str, table: &str, rows: &str) -> String {
    format!(
        "WITH scored AS (SELECT label, ae_error('{model}') AS error FROM {table} WHERE {rows}),
         ranked AS (SELECT label, rank() OVER (ORDER BY error)
                                  + (count(*) OVER (PARTITION BY error) - 1) / 2.0 AS rank FROM scored)
         SELECT (sum(rank) FILTER (WHERE label = 1) - sum(label) * (sum(label) + 1) / 2.0)
                / (sum(label) * (count(*) - sum(label))) FROM ranked"
    )
}
