//! `cargo xtask demo`: `examples/demo/demo.sql`, part by part.

use anyhow::{Context, Result};
use std::io::Write;

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
    if models.exists() {
        std::fs::remove_dir_all(&models)?;
    }
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

fn indented(sql: &str) -> String {
    sql.lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}
