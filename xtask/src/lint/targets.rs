//! Tests that the gate would not run.

use std::path::Path;

use serde_json::Value;

use super::Finding;

/// Executables of integration tests, which the gate names.
const TESTS: [&str; 2] = ["it", "kafka"];
/// Programs with unit tests, which the gate names.
const PROGRAMS: [&str; 1] = ["xtask"];

/// Targets with tests that the gate does not run.
///
/// The gate names its targets, because each other program would be linked with all of DataFusion for no test.
pub(super) fn check(metadata: &Value, root: &Path) -> Vec<Finding> {
    let targets = metadata["packages"].as_array().into_iter().flatten().flat_map(|package| {
        let manifest = Path::new(package["manifest_path"].as_str().unwrap_or_default());
        let path = manifest.strip_prefix(root).unwrap_or(manifest).to_string_lossy().into_owned();
        package["targets"].as_array().into_iter().flatten().map(move |target| (path.clone(), target))
    });
    targets.filter_map(|(path, target)| Some(Finding::new(&path, 1, "test-target", reason(target)?))).collect()
}

fn reason(target: &Value) -> Option<String> {
    let name = target["name"].as_str().unwrap_or_default();
    let is = |kind: &str| target["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|found| found == kind));
    let is_tested = target["test"] == true;
    if is("test") && !TESTS.contains(&name) {
        return Some(format!("the gate does not run the test executable {name}: make it a module of tests/it"));
    }
    if is_tested && (is("bin") || is("example")) && !PROGRAMS.contains(&name) {
        return Some(format!(
            "the gate does not run unit tests of the program {name}: move them to a library, and set test = false"
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(kind: &str, name: &str, is_tested: bool) -> usize {
        let target = serde_json::json!({"name": name, "kind": [kind], "test": is_tested});
        let package = serde_json::json!({"manifest_path": "/r/m/Cargo.toml", "targets": [target]});
        check(&serde_json::json!({"packages": [package]}), Path::new("/r")).len()
    }

    #[test]
    fn targets_that_the_gate_does_not_run_are_found() {
        assert_eq!((found("test", "other", true), found("bin", "other", true), found("example", "x", true)), (1, 1, 1));
    }

    #[test]
    fn targets_that_the_gate_runs_are_not() {
        let run = [("test", "it", true), ("test", "kafka", true), ("bin", "xtask", true), ("lib", "any", true)];
        let untested = [("bin", "aefusion", false), ("bench", "functions", false)];
        for (kind, name, is_tested) in run.into_iter().chain(untested) {
            assert_eq!(found(kind, name, is_tested), 0, "{kind} {name}");
        }
    }
}
