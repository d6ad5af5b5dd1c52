//! Functions as tests of one executable: they run side by side, and a filter selects them by name.
//!
//! A module lists its tests with [`tests!`]. A function that the list leaves out is dead code, and the lints fail.

#![allow(dead_code, unused_macros, unused_imports, reason = "each test executable uses a part")]

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::Command;

use libtest_mimic::{Completion, Failed, Trial};

/// The variable that names the one test of a process of its own.
const ALONE: &str = "AEFUSION_TEST_ALONE";

/// The list `TESTS` of a module.
///
/// `fn` runs a function, and `async` runs it on a runtime. `alone` runs it in a process of its own, where nothing else takes
/// memory or changes the state of the process.
macro_rules! tests {
    (@ fn $name:ident) => { $name };
    (@ async $name:ident) => { || crate::harness::block_on($name()) };
    (@ alone $name:ident) => { || crate::harness::alone(concat!(module_path!(), "::", stringify!($name)), $name) };
    ($($(#[$attribute:meta])* $kind:ident $name:ident),* $(,)?) => {
        pub(crate) const TESTS: &[(&str, fn())] =
            &[$($(#[$attribute])* (stringify!($name), crate::harness::tests!(@ $kind $name))),*];
    };
}
pub(crate) use tests;

/// The tests of a module, named `module::test`.
pub(crate) fn trials(module: &str, tests: &[(&str, fn())]) -> Vec<Trial> {
    tests.iter().map(|(name, test)| trial(format!("{module}::{name}"), *test)).collect()
}

/// A test that fails with the text of its panic. It is ignored if [`needed`] misses a tool.
pub(crate) fn trial(name: String, test: impl FnOnce() + Send + 'static) -> Trial {
    Trial::ignorable_test(name, move || match catch_unwind(AssertUnwindSafe(test)) {
        Ok(()) => Ok(Completion::Completed),
        Err(panic) => match panic.downcast::<Missing>() {
            Ok(missing) => Ok(Completion::ignored_with(missing.0)),
            Err(panic) => Err(Failed::from(text(panic.as_ref()))),
        },
    })
}

/// What a panic says.
fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without a text").to_owned()
}

/// Why a test cannot run on this machine.
struct Missing(String);

/// A tool that a test needs. Without the tool, the test is shown as ignored with the reason; with `CI=true` it fails.
pub(crate) fn needed<T>(tool: Result<T, String>) -> T {
    match tool {
        Ok(tool) => tool,
        Err(reason) if std::env::var("CI").is_ok_and(|ci| ci == "true") => panic!("{reason}"),
        Err(reason) => resume_unwind(Box::new(Missing(reason))),
    }
}

/// Runs a future to its end on a runtime of several threads.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Runtime::new().unwrap().block_on(future)
}

/// Runs a test in a process of its own: this executable again, with the one test.
///
/// `path` is the name of the test after the name of the executable, as in `it::hostile::changed_files`.
pub(crate) fn alone(path: &str, test: fn()) {
    let name = path.split_once("::").map_or(path, |(_, name)| name);
    if std::env::var_os(ALONE).is_some_and(|running| running == name) {
        return test();
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", name, "--test-threads", "1"]).env(ALONE, name).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && printed.contains("1 passed"), "{printed}");
}
