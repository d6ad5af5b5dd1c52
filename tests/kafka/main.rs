//! Topics as tables and pipelines, with a real broker and the real program.
//!
//! `AEFUSION_SOAK=1` makes the runs that are killed long ones: a million records, twenty kills.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

#[path = "../common/bucket.rs"]
mod bucket;
#[path = "../common/clone.rs"]
mod clone;
#[path = "../common/harness.rs"]
mod harness;
#[path = "../common/page.rs"]
mod page_text;
#[path = "../common/program.rs"]
mod program;

mod exactly_once;
mod faults;
mod files;
mod malformed;
mod page;
mod place;
mod tables;
mod topics;
mod tutorial;

use std::process::{Command, ExitCode};
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};
use xtask::kafka::Broker;

type Test = fn(&Broker);

fn main() -> ExitCode {
    std::env::set_current_dir(env!("CARGO_MANIFEST_DIR")).unwrap();
    let arguments = Arguments::from_args();
    let modules = [
        ("exactly_once", exactly_once::TESTS),
        ("faults", faults::TESTS),
        ("files", files::TESTS),
        ("malformed", malformed::TESTS),
        ("page", page::TESTS),
        ("tables", tables::TESTS),
        ("tutorial", tutorial::TESTS),
    ];
    let named = |(module, tests): (&'static str, &'static [(&'static str, Test)])| {
        tests.iter().map(move |(name, test)| (format!("{module}::{name}"), *test))
    };
    let tests: Vec<(String, Test)> = modules.into_iter().flat_map(named).collect();
    let broker = match (arguments.list, has_broker()) {
        (true, _) | (false, Err(_)) => None,
        (false, Ok(())) => match Broker::start() {
            Ok(broker) => Some(Arc::new(broker)),
            Err(error) => {
                eprintln!("{error:?}");
                return ExitCode::FAILURE;
            }
        },
    };
    let trial = |(name, test): (String, Test)| -> Trial {
        let broker = broker.clone();
        harness::trial(name, move || match &broker {
            Some(broker) => test(broker),
            None => harness::needed(has_broker()),
        })
    };
    let trials = tests.into_iter().map(trial).collect();
    // one after another: each has a program or two of its own on two cores
    let arguments = Arguments { test_threads: Some(1), ..arguments };
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// That a broker is given, or can be started.
fn has_broker() -> Result<(), String> {
    let is_given = std::env::var_os("KAFKA_BOOTSTRAP_SERVERS").is_some();
    let has_docker = Command::new("docker").arg("version").output().is_ok_and(|output| output.status.success());
    if is_given || has_docker { Ok(()) } else { has_java() }
}

fn has_java() -> Result<(), String> {
    let has = |program: &str| Command::new(program).arg("-version").output().is_ok();
    let reason =
        "needs Java 17 and Maven (on Debian: apt-get install openjdk-17-jre-headless maven) for a Kafka broker";
    if has("java") && has("mvn") { Ok(()) } else { Err(reason.to_owned()) }
}

/// A broker of a test's own, which it may stop.
fn own_broker() -> Broker {
    harness::needed(has_java());
    Broker::java().unwrap()
}
