//! The list of exceptions: a rule, a path, words of the finding, and the reason.

use std::path::Path;

use anyhow::{Context, Result, bail};

use super::Finding;

/// The list, from the root of the repository.
pub(super) const FILE: &str = "xtask/lint.exceptions";

/// A finding that is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Exception {
    /// Of the list.
    line: usize,
    rule: String,
    path: String,
    /// Part of the finding's text.
    text: String,
}

/// Reads the list.
///
/// # Errors
/// If the file cannot be read, or a line has not four parts.
pub(super) fn read(file: &Path) -> Result<Vec<Exception>> {
    parse(&std::fs::read_to_string(file).with_context(|| format!("could not read {}", file.display()))?)
}

fn parse(list: &str) -> Result<Vec<Exception>> {
    let lines = list.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
    let exception = |(i, line): (usize, &str)| {
        let parts: Vec<&str> = line.split('|').map(str::trim).collect();
        match parts.as_slice() {
            [rule, path, text, reason] if !reason.is_empty() => {
                Ok(Exception { line: i + 1, rule: (*rule).into(), path: (*path).into(), text: (*text).into() })
            }
            _ => bail!("{FILE}:{}: expected `rule | path | part of the finding | reason`, found `{line}`", i + 1),
        }
    };
    lines.map(exception).collect()
}

/// Findings without the allowed ones, and with a finding for each unused exception.
pub(super) fn apply(exceptions: &[Exception], findings: Vec<Finding>) -> Vec<Finding> {
    let allows = |exception: &Exception, finding: &Finding| {
        exception.rule == finding.rule && exception.path == finding.path && finding.text.contains(&exception.text)
    };
    let is_unused = |exception: &&Exception| !findings.iter().any(|finding| allows(exception, finding));
    let unused = exceptions.iter().filter(is_unused).map(|exception| {
        let text = format!("{} has no finding of {}: remove this line", exception.path, exception.rule);
        Finding::new(FILE, exception.line, "unused-exception", text)
    });
    let unused: Vec<Finding> = unused.collect();
    let is_allowed = |finding: &Finding| exceptions.iter().any(|exception| allows(exception, finding));
    findings.into_iter().filter(|finding| !is_allowed(finding)).chain(unused).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exception_hides_its_finding_and_no_other() {
        let exceptions = parse("# rule | path\n\nlong-line | a.md | 120 | a title\n").unwrap();
        let allowed = Finding::new("a.md", 3, "long-line", "wrap at 120");
        let others =
            [Finding::new("b.md", 3, "long-line", "wrap at 120"), Finding::new("a.md", 3, "banned-word", "120")];
        let all = [vec![allowed], others.to_vec()].concat();
        assert_eq!(apply(&exceptions, all), others);
    }

    #[test]
    fn an_exception_that_is_not_used_is_a_finding() {
        let exceptions = parse("long-line | a.md | 120 | a title\n").unwrap();
        let found = apply(&exceptions, Vec::new());
        let text = "a.md has no finding of long-line: remove this line";
        assert_eq!(found, [Finding::new(FILE, 1, "unused-exception", text)]);
    }

    #[test]
    fn an_exception_without_a_reason_is_an_error() {
        assert!(parse("long-line | a.md | 120 | \n").is_err());
        assert!(parse("long-line | a.md | 120\n").is_err());
    }
}
