//! Tasks of this repository: `cargo xtask setup | demo | kafka | test | fuzz | lint | ci | bench`.

mod bench;
mod demo;
mod fuzz;
mod gate;
mod lint;
mod program;
mod quality;
mod setup;

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use xtask::kafka::Broker;
use xtask::root;

/// Tasks of this repository.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Fetch ONNX Runtime into .onnxruntime/
    Setup,
    /// Train an autoencoder on real data, show its results, and compare them with those of PyTorch
    Demo {
        #[command(subcommand)]
        what: Option<Demo>,
    },
    /// Start a Kafka broker, and run a command with KAFKA_BOOTSTRAP_SERVERS set, or wait for Enter
    Kafka {
        /// The command and its arguments
        #[arg(trailing_var_arg = true)]
        command: Vec<String>,
    },
    /// Run all tests
    Test,
    /// Try mutants of model files, and compare their results with those of ONNX Runtime in Python, row by row
    Fuzz(fuzz::Fuzz),
    /// Check prose, links, files and crates by the rules of this repository
    Lint {
        /// Only findings in these files and folders
        paths: Vec<PathBuf>,
    },
    /// Run everything that a change must pass, and print the time of each step
    Ci,
    /// Run benchmarks
    Bench {
        #[command(subcommand)]
        what: bench::Bench,

        /// Also write the table to docs/benchmarks.md, with date, commit and machine
        #[arg(long, global = true)]
        write: bool,
    },
}

#[derive(Debug, Subcommand)]
enum Demo {
    /// Replay readings of a machine through a pipeline, and show its alerts and its page
    Stream,
}

fn main() -> ExitCode {
    match run_task(Cli::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        // without the backtrace that anyhow adds: a task fails because of what it checks, not because of its code
        Err(e) => {
            drop(writeln!(std::io::stderr(), "error: {e:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run_task(task: Task) -> Result<()> {
    match task {
        Task::Setup => setup::fetch(),
        Task::Demo { what: None } => demo::show(),
        Task::Demo { what: Some(Demo::Stream) } => demo::stream(),
        Task::Kafka { command } => kafka(&command),
        Task::Test => gate::test(),
        Task::Fuzz(fuzz) => fuzz::run(&fuzz),
        Task::Lint { paths } => lint::run(&paths),
        Task::Ci => gate::ci(),
        Task::Bench { what, write } => bench::run(&what, write),
    }
}

fn kafka(command: &[String]) -> Result<()> {
    let broker = Broker::start()?;
    writeln!(std::io::stderr(), "KAFKA_BOOTSTRAP_SERVERS={}", broker.bootstrap())?;
    match command.split_first() {
        Some((program, arguments)) => {
            run(Command::new(program).args(arguments).env("KAFKA_BOOTSTRAP_SERVERS", broker.bootstrap()))
        }
        None => {
            writeln!(std::io::stderr(), "Press Enter to stop the broker")?;
            Ok(std::io::stdin().read_line(&mut String::new()).map(drop)?)
        }
    }
}

fn cargo<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<()> {
    run(cargo_command().args(arguments))
}

/// The cargo that runs this, in the root of the repository.
///
/// Variables about this package are removed. They would change the build of `ring`, and with it that of DataFusion.
fn cargo_command() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    let is_ours = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_ours)) {
        command.env_remove(name);
    }
    command
}

/// Runs a command and waits for it. A status other than 0 is an error.
fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("could not start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}

/// Writes a line to the standard output.
fn say(text: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}
