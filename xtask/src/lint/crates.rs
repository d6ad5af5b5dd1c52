//! Which member of the workspace may use which, and the crates that only some members may use.
//!
//! `docs/architecture.md` draws the same. Development dependencies are free: they are in nothing that is shipped.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::Finding;
use crate::cargo_command;

/// A member, and the members that it may use.
const MAY_USE: [(&str, &[&str]); 9] = [
    ("aefusion-model", &[]),
    ("aefusion-udfs", &["aefusion-model"]),
    ("aefusion-train", &["aefusion-udfs"]),
    ("aefusion-stream", &["aefusion-udfs"]),
    ("aefusion", &["aefusion-udfs", "aefusion-train", "aefusion-stream"]),
    ("embedded", &["aefusion-udfs", "aefusion-train", "aefusion-stream"]),
    ("aefusion-fuzz", &["aefusion-model"]),
    ("stream-bench", &[]),
    ("xtask", &[]),
];

/// A crate, and the only members that may use it. `*` at the end stands for any ending.
const CONFINED: [(&str, &[&str]); 13] = [
    ("axum", &["aefusion"]),
    ("clap", &["aefusion", "xtask"]),
    ("gemm*", &["aefusion-train"]),
    ("indicatif", &["aefusion"]),
    ("maud", &["aefusion"]),
    ("multiversion", &["aefusion-model", "aefusion-train"]),
    ("nalgebra", &["aefusion-train"]),
    ("ort", &["aefusion-model"]),
    ("plotters", &["aefusion"]),
    ("rand*", &["aefusion-train"]),
    ("rayon", &["aefusion-train"]),
    ("rdkafka", &["aefusion-stream", "stream-bench"]),
    ("rustyline", &["aefusion"]),
];

/// What cargo knows of the workspace.
pub(super) fn metadata() -> Result<Value> {
    let output = cargo_command().args(["metadata", "--no-deps", "--format-version", "1"]).output()?;
    anyhow::ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Dependencies of members that the rules forbid.
pub(super) fn check(metadata: &Value, root: &Path) -> Result<Vec<Finding>> {
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let mut findings = Vec::new();
    for package in packages {
        let member = package["name"].as_str().unwrap_or_default();
        let manifest = Path::new(package["manifest_path"].as_str().unwrap_or_default());
        let path = manifest.strip_prefix(root).unwrap_or(manifest).to_string_lossy();
        let text = std::fs::read_to_string(manifest).unwrap_or_default();
        let dependencies = package["dependencies"].as_array().context("cargo metadata lists no dependencies")?;
        let is_shipped = |dependency: &&Value| dependency["kind"] != "dev";
        for dependency in dependencies.iter().filter(is_shipped).filter_map(|dependency| dependency["name"].as_str()) {
            if let Some(reason) = forbidden(member, dependency) {
                findings.push(Finding::new(&path, line_of(&text, dependency), "crate-rule", reason));
            }
        }
        if !MAY_USE.iter().any(|(name, _)| *name == member) {
            let text =
                format!("add {member} to the table in xtask/src/lint/crates.rs, with the members that it may use");
            findings.push(Finding::new(&path, 1, "crate-rule", text));
        }
    }
    Ok(findings)
}

/// Why a member must not use a crate.
fn forbidden(member: &str, dependency: &str) -> Option<String> {
    let (_, allowed) = MAY_USE.iter().find(|(name, _)| *name == member)?;
    let is_member = MAY_USE.iter().any(|(name, _)| *name == dependency);
    if is_member && !allowed.contains(&dependency) {
        return Some(format!("{member} must not depend on {dependency}: move what both use below both"));
    }
    let matches = |name: &str| name.strip_suffix('*').map_or(name == dependency, |start| dependency.starts_with(start));
    let (_, only) = CONFINED.iter().find(|(name, _)| matches(name))?;
    (!only.contains(&member))
        .then(|| format!("{member} must not depend on {dependency}, which is for {} only", only.join(" and ")))
}

/// The line of a manifest that begins with a crate's name.
fn line_of(manifest: &str, dependency: &str) -> usize {
    let is_it = |line: &str| line.strip_prefix(dependency).is_some_and(|rest| rest.starts_with([' ', '.', '=']));
    manifest.lines().position(is_it).map_or(1, |i| i + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found in a workspace of one member with one dependency.
    fn found(member: &str, dependency: &str, kind: Option<&str>) -> Vec<String> {
        let dependency = serde_json::json!({"name": dependency, "kind": kind});
        let package =
            serde_json::json!({"name": member, "manifest_path": "/r/m/Cargo.toml", "dependencies": [dependency]});
        let findings = check(&serde_json::json!({"packages": [package]}), Path::new("/r")).unwrap();
        findings.iter().map(Finding::to_string).collect()
    }

    #[test]
    fn a_member_below_must_not_use_one_above() {
        let cases = [
            ("aefusion-udfs", "aefusion-train"),
            ("aefusion-udfs", "aefusion"),
            ("aefusion-train", "aefusion-stream"),
            ("aefusion-stream", "aefusion-train"),
            ("aefusion-stream", "aefusion"),
            ("embedded", "aefusion"),
        ];
        for (member, dependency) in cases {
            let text = format!("{member} must not depend on {dependency}: move what both use below both");
            assert_eq!(found(member, dependency, None), [format!("m/Cargo.toml:1: crate-rule: {text}")]);
            assert_eq!(found(member, dependency, Some("build")).len(), 1);
            assert_eq!(found(member, dependency, Some("dev")), [""; 0]);
        }
        assert_eq!(found("aefusion", "aefusion-train", None), [""; 0]);
    }

    #[test]
    fn every_confined_crate_is_kept_from_other_members() {
        for (name, only) in CONFINED {
            let dependency = name.replace('*', "_x");
            for (member, _) in MAY_USE {
                let is_allowed = only.contains(&member);
                assert_eq!(found(member, &dependency, None).is_empty(), is_allowed, "{member} {dependency}");
            }
        }
        assert_eq!(found("aefusion", "random", Some("dev")), [""; 0]);
    }

    #[test]
    fn a_member_without_a_rule_is_found() {
        assert_eq!(found("new", "serde", None).len(), 1);
    }

    #[test]
    fn findings_have_the_line_of_the_dependency() {
        let manifest = "[dependencies]\nclap-x = \"1\"\nclap.workspace = true\nort = { workspace = true }\n";
        assert_eq!((line_of(manifest, "clap"), line_of(manifest, "ort"), line_of(manifest, "axum")), (3, 4, 1));
    }
}
