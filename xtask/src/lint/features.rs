//! One set of features in all commands of the gate, and one version of the crates whose types meet.
//!
//! `cargo test` and `cargo clippy` build with development dependencies, `cargo build` and `cargo doc` without. Where these
//! change the features of a crate, everything above it, and thus DataFusion, is compiled once for each.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::Finding;
use crate::cargo_command;

/// Crates of which there must be one version: two versions of Arrow cannot share arrays.
const ONE_VERSION: [&str; 2] = ["arrow", "datafusion"];

/// Crates that commands without development dependencies compile with other features, and crates with two versions.
pub(super) fn check(root: &Path) -> Result<Vec<Finding>> {
    let lock = std::fs::read_to_string(root.join("Cargo.lock")).context("could not read Cargo.lock")?;
    let differences = differences(&tree("normal,build")?, &tree("normal,build,dev")?);
    Ok(differences.into_iter().chain(versions(&lock)).collect())
}

fn versions(lock: &str) -> Vec<Finding> {
    let count = |name: &str| lock.lines().filter(|line| *line == format!("name = \"{name}\"")).count();
    let finding = |(name, n): (&str, usize)| {
        let text = format!("{n} versions of {name}: hold all crates at versions that use one");
        Finding::new("Cargo.lock", 1, "two-versions", text)
    };
    ONE_VERSION.into_iter().map(|name| (name, count(name))).filter(|(_, n)| *n != 1).map(finding).collect()
}

/// A line for each crate with its features, as cargo resolves them for some kinds of dependencies.
fn tree(kinds: &str) -> Result<String> {
    let format = ["--prefix", "none", "--format", "{p} [{f}]"];
    let output = cargo_command().args(["tree", "--workspace", "--edges", kinds]).args(format).output()?;
    ensure!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn differences(without: &str, with: &str) -> Vec<Finding> {
    let crates = |tree: &str| -> BTreeSet<String> {
        tree.lines().map(|line| line.trim_end_matches(" (*)").to_owned()).filter(|line| !line.is_empty()).collect()
    };
    let (without, with) = (crates(without), crates(with));
    let finding = |line: &String| {
        let text = format!(
            "development dependencies change the features of {line}: turn on the same features in [dependencies] of the root"
        );
        Finding::new("Cargo.toml", 1, "two-feature-sets", text)
    };
    without.difference(&with).map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_versions_are_found() {
        let one = "name = \"arrow\"\nname = \"arrow-array\"\nname = \"datafusion\"\n";
        assert_eq!(versions(one), []);
        assert_eq!(versions(&format!("{one}name = \"arrow\"\n")).len(), 1);
        assert_eq!(versions("").len(), 2);
    }

    #[test]
    fn other_features_are_found_and_other_crates_are_not() {
        let with =
            "a v1.0.0 (/r) [default]\nserde v1.0.0 [alloc,std]\ncriterion v0.8.0 []\nserde v1.0.0 [alloc,std] (*)\n";
        assert_eq!(differences("a v1.0.0 (/r) [default]\nserde v1.0.0 [alloc,std] (*)\n\n", with), []);
        let found = differences("serde v1.0.0 [std]\n", with);
        assert_eq!(found.len(), 1);
        assert!(found[0].text.contains("serde v1.0.0 [std]"));
    }
}
