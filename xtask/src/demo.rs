//! `cargo xtask demo` runs `examples/demo/demo.sql`, part by part; `cargo xtask demo stream` runs `examples/pipeline.sql`.

mod figures;
mod stream;

use std::io::Write;

use anyhow::{Context, Result};
use xtask::remove;

use crate::program::Program;
use crate::{root, run, say, setup};

pub(crate) use stream::stream;

/// A line that begins a part of the script, and says what it shows.
const HEADING: &str = "-- # ";

/// Builds the program, runs each part of the script, its text before its rows, and compares the figures.
pub(crate) fn show() -> Result<()> {
    setup::fetch()?;
    let program = Program::debug()?;
    let script = root().join("examples/demo/demo.sql");
    let script = std::fs::read_to_string(&script).with_context(|| format!("could not read {}", script.display()))?;
    let models = root().join("target/demo-models");
    remove(&models)?;
    for part in script.split(HEADING).skip(1) {
        let (heading, sql) = part.split_once('\n').unwrap_or((part, ""));
        say(&format!("\n{heading}\n\n{}\n", indented(sql.trim())))?;
        std::io::stdout().flush()?;
        run(program.command().args(["sql", "--models"]).arg(&models).arg("--command").arg(sql))?;
    }
    figures::compare(&program, &models)
}

fn indented(sql: &str) -> String {
    sql.lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}
