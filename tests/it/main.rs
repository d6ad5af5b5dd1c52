//! The tests of the whole, in one executable: `cargo test --test it -- slt::encode` runs one of them.
//!
//! They run side by side, with the root of the repository as current directory. A module lists its tests with
//! `tests!`; a function that is missing in the list is dead code, and `clippy --deny warnings` fails. Files of
//! `tests/slt`, pages of the documentation and cases of `tests/interop` are a test each.
//!
//! A test that needs a tool which this machine lacks is ignored and shows the reason. With `CI=true` it fails.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

#[path = "../common/bucket.rs"]
mod bucket;
#[path = "../common/clone.rs"]
mod clone;
#[path = "../common/harness.rs"]
mod harness;
#[path = "../common/page.rs"]
mod page;
#[path = "../common/program.rs"]
mod program;
#[path = "../common/random_model.rs"]
mod random_model;

mod cli;
mod crashes;
mod determinism;
mod docs;
mod embedding;
mod execution;
mod external_data;
mod hostile;
mod interop;
mod lift_calls;
mod memory;
mod names;
mod paths;
#[cfg(feature = "kafka")]
mod pipelines;
mod plans;
mod publishing;
#[cfg(feature = "kafka")]
mod refused;
mod slt;
mod splits;
mod tables;
mod trainer;
mod training;
mod trials;
mod wire;

use std::process::ExitCode;

use libtest_mimic::Arguments;

fn main() -> ExitCode {
    std::env::set_current_dir(env!("CARGO_MANIFEST_DIR")).unwrap();
    let arguments = Arguments::from_args();
    // those that take longest begin first
    let modules = [
        harness::trials("lift_calls", lift_calls::TESTS),
        harness::trials("execution", execution::TESTS),
        harness::trials("determinism", determinism::TESTS),
        harness::trials("memory", memory::TESTS),
        harness::trials("publishing", publishing::TESTS),
        harness::trials("training", training::TESTS),
        harness::trials("trials", trials::TESTS),
        harness::trials("splits", splits::TESTS),
        harness::trials("tables", tables::TESTS),
        harness::trials("trainer", trainer::TESTS),
        harness::trials("embedding", embedding::TESTS),
        #[cfg(feature = "kafka")]
        harness::trials("pipelines", pipelines::TESTS),
        harness::trials("cli", cli::TESTS),
        harness::trials("crashes", crashes::TESTS),
        harness::trials("docs", docs::TESTS),
        harness::trials("external_data", external_data::TESTS),
        harness::trials("hostile", hostile::TESTS),
        harness::trials("names", names::TESTS),
        harness::trials("paths", paths::TESTS),
        harness::trials("plans", plans::TESTS),
        #[cfg(feature = "kafka")]
        harness::trials("refused", refused::TESTS),
        harness::trials("wire", wire::TESTS),
        docs::trials(),
        interop::trials(),
        slt::trials(),
    ];
    libtest_mimic::run(&arguments, modules.into_iter().flatten().collect()).exit_code()
}
