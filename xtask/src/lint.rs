//! `cargo xtask lint`: rules of prose, links, files and crates that neither rustc nor clippy checks.
//!
//! Every finding names its place, the rule and what to do. `xtask/lint.exceptions` lists the exceptions with their reasons.

mod crates;
mod exceptions;
mod features;
mod files;
mod links;
mod markdown;
mod order;
mod prose;
mod rust;
mod targets;

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{root, say};

/// What a rule found in one place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    /// Path from the root of the repository.
    path: String,
    line: usize,
    /// The name that an exception uses.
    rule: &'static str,
    text: String,
}

impl Finding {
    fn new(path: &str, line: usize, rule: &'static str, text: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, rule, text: text.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.path, self.line, self.rule, self.text)
    }
}

/// Checks the repository, or only the files and folders in `only`, and lists all findings at once.
///
/// # Errors
/// If there is a finding, or a file cannot be read.
pub(crate) fn run(only: &[PathBuf]) -> Result<()> {
    let paths = files::list(&root())?;
    let texts = Texts::read(&paths)?;
    let mut findings = texts.findings();
    findings.extend(files::duplicates(&root(), &paths)?);
    let metadata = crates::metadata()?;
    findings.extend(crates::check(&metadata, &root())?);
    findings.extend(targets::check(&metadata, &root()));
    findings.extend(order::check_names(&root()));
    findings.extend(features::check(&root())?);
    let exceptions = exceptions::read(&root().join(exceptions::FILE))?;
    let mut findings = exceptions::apply(&exceptions, findings);
    if !only.is_empty() {
        let wanted = relative(only)?;
        findings.retain(|finding| wanted.iter().any(|path| Path::new(&finding.path).starts_with(path)));
    }
    report(findings)
}

fn report(mut findings: Vec<Finding>) -> Result<()> {
    findings.sort();
    for finding in &findings {
        say(&finding.to_string())?;
    }
    let n_files = findings.iter().map(|finding| &finding.path).collect::<HashSet<_>>().len();
    match findings.len() {
        0 => say("lint: no findings"),
        n => bail!("{n} findings in {n_files} files; rules that need an exception are listed in {}", exceptions::FILE),
    }
}

/// Paths from the root of the repository, of paths from the current folder or from the root.
fn relative(only: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let root = root().canonicalize()?;
    let relative = |path: &PathBuf| {
        let found = path.canonicalize().or_else(|_| root.join(path).canonicalize());
        let found = found.with_context(|| format!("there is no {}", path.display()))?;
        Ok(found.strip_prefix(&root).unwrap_or(&found).to_owned())
    };
    only.iter().map(relative).collect()
}

/// The texts that rules of prose read: Markdown and Rust.
struct Texts {
    markdown: Vec<(String, String)>,
    rust: Vec<(String, String)>,
}

impl Texts {
    fn read(paths: &[String]) -> Result<Self> {
        let read = |extension: &str| {
            let wanted =
                paths.iter().filter(|path| Path::new(path).extension().is_some_and(|found| found == extension));
            let read = |path: &String| {
                let text =
                    std::fs::read_to_string(root().join(path)).with_context(|| format!("could not read {path}"))?;
                Ok((path.clone(), text))
            };
            wanted.map(read).collect::<Result<Vec<_>>>()
        };
        Ok(Self { markdown: read("md")?, rust: read("rs")? })
    }

    fn findings(&self) -> Vec<Finding> {
        let links = links::Links::new(&self.markdown);
        let markdown = self.markdown.iter().flat_map(|(path, text)| {
            let prose = markdown::sentences(text).into_iter().flat_map(|sentence| prose::check(path, &sentence));
            let lines = markdown::long_lines(text).into_iter().map(|line| {
                Finding::new(path, line, "long-line", format!("wrap this line at {} characters", markdown::LINE))
            });
            prose.chain(lines).chain(links.dead(path, text, &root())).collect::<Vec<_>>()
        });
        let rust = self.rust.iter().flat_map(|(path, text)| {
            let order = order::check(path, text);
            rust::check(path, text).into_iter().chain(order)
        });
        markdown.chain(rust).collect()
    }
}
