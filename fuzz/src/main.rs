//! The fuzzer, and its worker. `cargo xtask fuzz` starts it: `aefusion-fuzz run ROOT SEED FIRST RUNS JOBS KEEP PROGRAM PYTHON`.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use aefusion_fuzz::campaign::{Campaign, work};
use aefusion_fuzz::mutant::Corpus;
use anyhow::{Result, bail};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match start(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            drop(writeln!(std::io::stderr(), "error: {e:#}"));
            ExitCode::from(2)
        }
    }
}

/// Whether nothing was found.
fn start(arguments: &[&str]) -> Result<bool> {
    match arguments {
        ["work", root, seed] => work(Path::new(root), seed.parse()?).map(|()| true),
        ["write", root, seed, number, file] => {
            let mutant = Corpus::read(Path::new(root))?.mutant(seed.parse()?, number.parse()?);
            std::fs::write(file, mutant.bytes)?;
            Ok(true)
        }
        ["run", root, seed, first, runs, jobs, keep, program, python] => {
            let campaign = Campaign {
                root: root.into(),
                seed: seed.parse()?,
                first: first.parse()?,
                runs: runs.parse()?,
                jobs: jobs.parse()?,
                keep: keep.into(),
                program: program.into(),
                python: python.into(),
            };
            let summary = campaign.run()?;
            write!(std::io::stdout(), "{summary}")?;
            Ok(summary.findings.is_empty())
        }
        other => bail!("unknown arguments {other:?}; start it with cargo xtask fuzz"),
    }
}
