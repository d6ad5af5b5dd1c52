//! `cargo xtask test` runs all tests; `cargo xtask ci` runs everything that a change must pass, and prints the time of each
//! step and the size of `target/`.
//!
//! All commands share one set of features (`lint` checks that), so each library is compiled once and checked once. Tests
//! with a broker mostly wait: they run beside the other steps, and compilers beside them have the lowest priority.

use std::collections::HashSet;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use xtask::kafka;
use xtask::python::environment;

use crate::{cargo, cargo_command, demo, fuzz, lint, program, root, run, say, setup};

/// The targets that have tests. The other executables of the workspace have none, and each would be linked with all of
/// DataFusion.
const TESTS: [&str; 7] = ["test", "--workspace", "--lib", "--bin", "xtask", "--test", "it"];

/// Everything that a change must pass.
///
/// # Errors
/// The first step that failed. The times are printed all the same.
pub(crate) fn ci() -> Result<()> {
    let mut times = Times::default();
    let start = Instant::now();
    let passed = steps(&mut times);
    times.print(start.elapsed())?;
    passed
}

fn steps(times: &mut Times) -> Result<()> {
    let tools = Tools::prepare();
    times.step("format", || cargo(["fmt", "--all", "--check"]))?;
    times.step("lint", || lint::run(&[]))?;
    times.step("clippy", || cargo(["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]))?;
    tests(times, tools, true, |times| {
        times.step("example", example)?;
        times.step("demo", demo::show)?;
        times.step("features of the plugin", plugin)?;
        times.step("documentation", || {
            run(patient(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "--deny warnings"))
        })
    })?;
    times.step("demo of the stream", demo::stream)
}

/// All tests.
///
/// # Errors
/// If a test fails or cannot be built.
pub(crate) fn test() -> Result<()> {
    tests(&mut Times::default(), Tools::prepare(), false, |_| Ok(()))
}

/// Runs all tests, and `others` while those with a broker run. Tests that miss a tool fail if `is_ci`.
fn tests(times: &mut Times, tools: Tools, is_ci: bool, others: impl FnOnce(&mut Times) -> Result<()>) -> Result<()> {
    let mut kafka_tests = PathBuf::new();
    times.step("build of the tests", || {
        kafka_tests = build_tests()?;
        cargo(["build", "--workspace", "--bin", "aefusion", "--bin", "aefusion-fuzz", "--bin", "embedded"])
    })?;
    let python = tools.wait()?;
    let with_tools = |command: &mut Command| {
        command.env("AEFUSION_PYTHON", &python);
        if is_ci {
            command.env("CI", "true");
        }
    };
    let mut kafka_tests = Command::new(kafka_tests);
    with_tools(kafka_tests.current_dir(root()).env("ORT_DYLIB_PATH", program::onnx_runtime()));
    let kafka_tests = Beside::start("tests with a broker", kafka_tests);
    let mut command = cargo_command();
    with_tools(command.args(TESTS));
    let passed = times
        .step("tests", || run(&mut command))
        .and_then(|()| times.step("tests in documentation", || run(&mut patient(["test", "--workspace", "--doc"]))))
        .and_then(|()| times.step("mutants", || fuzz::few(&python)))
        .and_then(|()| others(times));
    // waits even if another step failed: a test that is killed leaves its broker behind
    kafka_tests.finish(times).and(passed)
}

/// Builds the tests; returns the executable of those with a broker.
fn build_tests() -> Result<PathBuf> {
    let mut command = cargo_command();
    command.args(TESTS).args(["--test", "kafka", "--no-run", "--message-format", "json-render-diagnostics"]);
    let output = command.stderr(std::process::Stdio::inherit()).output()?;
    if !output.status.success() {
        bail!("{command:?} ended with {}", output.status);
    }
    let printed = String::from_utf8_lossy(&output.stdout);
    let messages = printed.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let executable = messages
        .filter(|message| message["target"]["name"] == "kafka" && message["profile"]["test"] == true)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from));
    executable.context("cargo built no test executable `kafka`")
}

/// Tools of the tests. They are fetched while cargo compiles: one needs the network, the other the processors.
struct Tools(JoinHandle<Result<PathBuf>>);

impl Tools {
    fn prepare() -> Self {
        Self(std::thread::spawn(|| {
            setup::fetch()?;
            // without Java and Maven this fails, and the tests that need a broker report what is missing
            drop(kafka::fetch());
            environment("s3", &root().join("tests/common/requirements.txt"))?;
            environment("exported", &root().join("tests/exported/requirements.txt"))
        }))
    }

    /// The Python that runs exported models.
    fn wait(self) -> Result<PathBuf> {
        self.0.join().map_err(|_| anyhow!("the preparation of tools panicked"))?
    }
}

/// A command that runs beside the steps, and whose output is printed when it has ended.
struct Beside {
    name: &'static str,
    thread: JoinHandle<(std::io::Result<Output>, Duration)>,
}

impl Beside {
    fn start(name: &'static str, mut command: Command) -> Self {
        let start = Instant::now();
        Self { name, thread: std::thread::spawn(move || (command.output(), start.elapsed())) }
    }

    fn finish(self, times: &mut Times) -> Result<()> {
        let name = self.name;
        let (output, time) = self.thread.join().map_err(|_| anyhow!("{name}: the thread panicked"))?;
        times.0.push((format!("{name} (beside the steps above)"), time));
        let output = output.with_context(|| format!("{name}: could not start"))?;
        say(&format!("\n== {name}"))?;
        std::io::stdout().write_all(&output.stdout)?;
        std::io::stderr().write_all(&output.stderr)?;
        if !output.status.success() {
            bail!("{name}: ended with {}", output.status);
        }
        Ok(())
    }
}

/// A cargo with the lowest priority, which leaves the processors to the tests.
fn patient<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let cargo = cargo_command();
    let mut command = Command::new("nice");
    command.args(["-n", "19"]).arg(cargo.get_program()).args(arguments).current_dir(root());
    for (name, value) in cargo.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// That the plugin compiles without what the program adds to DataFusion's features.
///
/// This checks DataFusion once more, because no other command has as few features. The third set of features, with `proto`,
/// is that of the workspace, which clippy has checked.
fn plugin() -> Result<()> {
    for features in ["load-dynamic", ""] {
        let package = ["check", "--package", "aefusion-udfs", "--no-default-features", "--features", features];
        run(&mut patient(package))?;
    }
    Ok(())
}

/// That the program of `examples/embedded` prints what its README shows.
fn example() -> Result<()> {
    let embedded = root().join("target/debug/embedded");
    let output = Command::new(embedded).current_dir(root()).env("ORT_DYLIB_PATH", program::onnx_runtime()).output()?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let readme = std::fs::read_to_string(root().join("examples/embedded/README.md"))?;
    if !output.status.success() || printed.trim().is_empty() || !readme.contains(printed.trim()) {
        bail!(
            "examples/embedded prints what its README does not show:\n{printed}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// Steps and their times.
#[derive(Default)]
struct Times(Vec<(String, Duration)>);

impl Times {
    fn step(&mut self, name: &str, run: impl FnOnce() -> Result<()>) -> Result<()> {
        say(&format!("\n== {name}"))?;
        let start = Instant::now();
        let passed = run();
        self.0.push((name.to_owned(), start.elapsed()));
        passed.with_context(|| name.to_owned())
    }

    fn print(&self, total: Duration) -> Result<()> {
        say("\n| step | minutes |\n| --- | ---: |")?;
        for (name, time) in &self.0 {
            say(&format!("| {name} | {} |", minutes(*time)))?;
        }
        say(&format!("| total | {} |", minutes(total)))?;
        let bytes = disk(&root().join("target"), &mut HashSet::new());
        say(&format!("| disk of target/ | {:.1} GB |", bytes as f64 / 1e9))
    }
}

fn minutes(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

/// Bytes that a folder takes. Files with several names count once: cargo links what it builds to a second place.
fn disk(folder: &Path, counted: &mut HashSet<u64>) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let mut bytes = 0;
    for entry in entries.flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() {
            bytes += disk(&entry.path(), counted);
        } else if counted.insert(metadata.ino()) {
            bytes += metadata.blocks() * 512;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_minutes_and_seconds() {
        assert_eq!(minutes(Duration::from_millis(61_900)), "1:01");
        assert_eq!(minutes(Duration::from_secs(3600)), "60:00");
    }

    #[test]
    fn a_step_that_fails_is_timed_and_named() {
        let mut times = Times::default();
        let failed = times.step("a step", || bail!("a reason")).unwrap_err();
        assert_eq!((format!("{failed:#}").as_str(), times.0.len()), ("a step: a reason", 1));
    }

    #[test]
    fn what_runs_beside_fails_when_its_command_fails() {
        let mut times = Times::default();
        assert!(Beside::start("false", Command::new("false")).finish(&mut times).is_err());
        assert!(Beside::start("true", Command::new("true")).finish(&mut times).is_ok());
        assert!(Beside::start("nothing", Command::new("/nothing")).finish(&mut times).is_err());
        assert_eq!(times.0.len(), 3);
    }

    #[test]
    fn a_file_with_two_names_counts_once() {
        let folder = root().join("target").join(format!("gate-disk-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("a"), vec![1; 100_000]).unwrap();
        let once = disk(&folder, &mut HashSet::new());
        std::fs::hard_link(folder.join("a"), folder.join("b")).unwrap();
        let linked = disk(&folder, &mut HashSet::new());
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(once >= 100_000);
        assert_eq!(once, linked);
    }
}
