//! Links of Markdown files to files and headings of this repository.

use std::collections::{HashMap, HashSet};
use std::path::{Component, Path, PathBuf};

use super::Finding;
use super::markdown;

/// Anchors of all pages.
pub(super) struct Links {
    anchors: HashMap<PathBuf, HashSet<String>>,
}

impl Links {
    /// Of pages, by their paths from the root of the repository.
    pub(super) fn new(pages: &[(String, String)]) -> Self {
        Self { anchors: pages.iter().map(|(path, text)| (PathBuf::from(path), anchors(text))).collect() }
    }

    /// Links of a page that lead nowhere. URLs are not followed.
    pub(super) fn dead(&self, path: &str, text: &str, root: &Path) -> Vec<Finding> {
        let links = markdown::links(text).into_iter().filter(|(_, target)| !is_url(target));
        links
            .filter_map(|(line, target)| Some(Finding::new(path, line, "dead-link", self.reason(path, &target, root)?)))
            .collect()
    }

    /// Why a link leads nowhere.
    fn reason(&self, path: &str, target: &str, root: &Path) -> Option<String> {
        let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
        let file = match file {
            "" => PathBuf::from(path),
            file => normal(&Path::new(path).parent().unwrap_or(Path::new("")).join(file)),
        };
        if !root.join(&file).exists() {
            return Some(format!("`{target}`: there is no {}", file.display()));
        }
        let anchors = self.anchors.get(&file)?;
        let is_there = anchor.is_empty() || anchors.contains(anchor);
        (!is_there).then(|| format!("`{target}`: {} has no heading #{anchor}", file.display()))
    }
}

fn is_url(target: &str) -> bool {
    target.contains("://") || target.starts_with("mailto:")
}

/// A path without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => drop(normal.pop()),
            other => normal.push(other),
        }
    }
    normal
}

/// The anchors of headings on GitHub. A heading with the text of another one gets a number.
fn anchors(text: &str) -> HashSet<String> {
    let mut anchors = HashSet::new();
    for heading in markdown::headings(text) {
        let slug = slug(&heading);
        let numbered = (1..).map(|i| format!("{slug}-{i}"));
        let free = std::iter::once(slug.clone()).chain(numbered).find(|anchor| !anchors.contains(anchor));
        anchors.extend(free);
    }
    anchors
}

fn slug(heading: &str) -> String {
    let is_kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    heading.trim().to_lowercase().chars().filter(is_kept).map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dead(text: &str) -> Vec<String> {
        let root = crate::root();
        let page = ("docs/training.md".to_owned(), text.to_owned());
        let other = ("README.md".to_owned(), "# What it is: `aefusion` – a_b\n\n## Twice\n\n## Twice\n".to_owned());
        let links = Links::new(&[page, other]);
        links.dead("docs/training.md", text, &root).into_iter().map(|finding| finding.text).collect()
    }

    #[test]
    fn links_to_files_and_headings_that_exist_are_live() {
        let links = "[a](../README.md) [b](../README.md#what-it-is-aefusion--a_b) [c](../README.md#twice-1) [d](#here) \
                     [e](../xtask/src/lint.rs) [f](https://example.org/nothing) [g](mailto:a@example.org)\n\n# Here\n";
        assert_eq!(dead(links), [""; 0]);
    }

    #[test]
    fn links_to_nothing_are_found() {
        assert_eq!(dead("[a](nothing.md)"), ["`nothing.md`: there is no docs/nothing.md"]);
        assert_eq!(dead("![a](./nothing.svg)"), ["`./nothing.svg`: there is no docs/nothing.svg"]);
        assert_eq!(dead("[a](../README.md#twice-2)"), ["`../README.md#twice-2`: README.md has no heading #twice-2"]);
        assert_eq!(dead("[a](#gone)"), ["`#gone`: docs/training.md has no heading #gone"]);
        assert_eq!(dead("[a][b]\n\n[b]: nothing.md"), ["`nothing.md`: there is no docs/nothing.md"]);
    }
}
