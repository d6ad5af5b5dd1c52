//! Topics as tables and pipelines, with a real broker and the real program.
//!
//! `AEFUSION_SOAK=1` makes the runs that are killed long ones: a million records, twenty kills.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

#[path = "kafka/exactly_once.rs"]
mod exactly_once;
#[path = "kafka/faults.rs"]
mod faults;
#[path = "kafka/harness.rs"]
mod harness;
#[path = "kafka/page.rs"]
mod page;
#[path = "kafka/tables.rs"]
mod tables;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};
use xtask::kafka::Broker;

type Test = fn(&Broker);

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let tests: Vec<(&str, Test)> = [exactly_once::TESTS, faults::TESTS, page::TESTS, tables::TESTS].concat();
    if arguments.list {
        let trials = tests.into_iter().map(|(name, _)| Trial::test(name, || Ok(()))).collect();
        return libtest_mimic::run(&arguments, trials).exit_code();
    }
    let broker = match Broker::start() {
        Ok(broker) => Arc::new(broker),
        Err(error) => {
            eprintln!("{error:?}");
            return ExitCode::FAILURE;
        }
    };
    let trial = |(name, test): (&'static str, Test)| {
        let broker = Arc::clone(&broker);
        Trial::test(name, move || {
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(&broker)));
            done.map_err(|_| Failed::without_message())
        })
    };
    let trials = tests.into_iter().map(trial).collect();
    // one after the other: each has a program or two of its own on two cores
    let arguments = Arguments { test_threads: Some(1), ..arguments };
    libtest_mimic::run(&arguments, trials).exit_code()
}
