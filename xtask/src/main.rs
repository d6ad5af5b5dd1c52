//! Tasks of this repository: `cargo xtask setup | demo | test | ci | bench`.

mod bench;
mod demo;
mod lint;
mod quality;
mod setup;

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use xtask::kafka::Broker;
use xtask::python::environment;
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
    /// Score a real data set with a real autoencoder, and show what comes out
    Demo {
        #[command(subcommand)]
        what: Option<Demo>,
    },
    /// Start a Kafka broker, and run a command with KAFKA_BOOTSTRAP_SERVERS set to it, or wait to be stopped
    Kafka {
        /// The command and its arguments
        #[arg(trailing_var_arg = true)]
        command: Vec<String>,
    },
    /// Run all tests
    Test,
    /// Check prose, links, files and crates by the rules of this repository
    Lint {
        /// Only findings in these files and folders
        paths: Vec<PathBuf>,
    },
    /// Everything a change must pass: format, lints, features, documentation, tests, demo
    Ci,
    /// Run benchmarks
    Bench {
        #[command(subcommand)]
        what: bench::Bench,
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
        Task::Test => test(),
        Task::Lint { paths } => lint::run(&paths),
        Task::Ci => ci(),
        Task::Bench { what } => bench::run(&what),
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
            writeln!(std::io::stderr(), "Enter stops the broker")?;
            Ok(std::io::stdin().read_line(&mut String::new()).map(drop)?)
        }
    }
}

fn test() -> Result<()> {
    setup::fetch()?;
    // for the test that runs exported models in other programs
    let python = environment("exported", &root().join("tests").join("exported").join("requirements.txt"))?;
    run(cargo_command().args(["test", "--workspace", "--all-targets"]).env("AEFUSION_PYTHON", python))?;
    cargo(["test", "--workspace", "--doc"])
}

fn ci() -> Result<()> {
    cargo(["fmt", "--all", "--check"])?;
    cargo(["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"])?;
    // the plugin alone, without what the program adds: each feature must compile by itself
    for features in ["", "load-dynamic", "proto"] {
        cargo(["check", "--package", "aefusion-udfs", "--no-default-features", "--features", features])?;
    }
    one_version("datafusion")?;
    one_version("arrow")?;
    test()?;
    example()?;
    demo::show()?;
    demo::stream()?;
    cargo(["doc", "--workspace", "--no-deps"])
}

/// That the program of `examples/embedded` prints what its README says.
fn example() -> Result<()> {
    let output = cargo_command().args(["run", "--quiet", "--package", "embedded"]).output()?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let readme = std::fs::read_to_string(root().join("examples/embedded/README.md"))?;
    if !output.status.success() || printed.is_empty() || !readme.contains(printed.trim()) {
        bail!("examples/embedded prints\n{printed}{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// That the dependency tree holds a crate once: two versions of Arrow cannot share arrays.
fn one_version(name: &str) -> Result<()> {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).context("could not read Cargo.lock")?;
    let n = lock.lines().filter(|line| *line == format!("name = \"{name}\"")).count();
    if n != 1 {
        bail!("Cargo.lock holds {n} versions of {name}, and must hold one");
    }
    Ok(())
}

fn cargo<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<()> {
    run(cargo_command().args(arguments))
}

/// The cargo that runs this, in the root of the repository.
///
/// What it told this program about itself is not passed on: `ring` is built anew when that differs, and DataFusion with it.
fn cargo_command() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    let is_told = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_told)) {
        command.env_remove(name);
    }
    command
}

/// Runs a command and waits for it.
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
