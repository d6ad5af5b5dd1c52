//! The fenced blocks of a page, and how an output is compared with a block.

#![allow(dead_code, reason = "each test executable uses a part")]

use std::ops::Range;
use std::path::{Path, PathBuf};

/// A page that lives as long as the tests.
pub(crate) struct Page {
    path: PathBuf,
    lines: Vec<&'static str>,
    pub(crate) blocks: Vec<Block<'static>>,
}

/// A fenced block: ```` ```language modifier ````, its text, and where its lines are.
#[derive(Debug, Clone)]
pub(crate) struct Block<'a> {
    pub(crate) language: &'a str,
    pub(crate) modifier: &'a str,
    pub(crate) text: String,
    /// Columns before the fence, as in a list.
    indent: usize,
    lines: Range<usize>,
}

impl Block<'_> {
    /// Its first line in the page, from 1.
    pub(crate) fn line(&self) -> usize {
        self.lines.start + 1
    }

    /// As it stands in messages.
    pub(crate) fn shown(&self) -> String {
        format!("line {}, {} {}\n{}", self.line(), self.language, self.modifier, self.text)
    }
}

impl Page {
    pub(crate) fn read(path: &Path) -> Self {
        let text: &'static str = std::fs::read_to_string(path).unwrap().leak();
        let lines: Vec<&'static str> = text.lines().collect();
        let mut blocks = Vec::new();
        let mut open: Option<(usize, usize, &'static str)> = None;
        for (i, line) in lines.iter().enumerate() {
            let indent = line.len() - line.trim_start().len();
            match (open, line.trim_start().strip_prefix("```")) {
                (None, Some(kind)) => open = Some((i, indent, kind.trim())),
                (Some((start, indent, kind)), Some(rest)) if rest.trim().is_empty() => {
                    let (language, modifier) = kind.split_once(' ').unwrap_or((kind, ""));
                    let unindented = lines[start + 1..i].iter().map(|line| line.get(indent..).unwrap_or_default());
                    let text = unindented.collect::<Vec<_>>().join("\n");
                    blocks.push(Block { language, modifier, text, indent, lines: start + 1..i });
                    open = None;
                }
                _ => {}
            }
        }
        assert!(open.is_none(), "{}: a block is not closed", path.display());
        Self { path: path.to_owned(), lines, blocks }
    }

    /// Writes the page with other texts for some blocks.
    pub(crate) fn write(&self, anew: Vec<(&Block<'_>, String)>) {
        if anew.is_empty() {
            return;
        }
        let mut lines: Vec<String> = self.lines.iter().map(|line| (*line).to_owned()).collect();
        for (block, text) in anew.into_iter().rev() {
            let indent = " ".repeat(block.indent);
            lines.splice(block.lines.clone(), text.trim().lines().map(|line| format!("{indent}{line}")));
        }
        std::fs::write(&self.path, lines.join("\n") + "\n").unwrap();
    }
}

fn trimmed(text: &str) -> String {
    text.trim().lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// Whether an output is what a page says; `…` stands for any text.
pub(crate) fn matches(expected: &str, found: &str) -> bool {
    let (expected, found) = (trimmed(expected), trimmed(found));
    let parts: Vec<&str> = expected.split('…').collect();
    let [first, middle @ .., last] = parts.as_slice() else { return expected == found };
    let Some(mut rest) = found.strip_prefix(first) else { return false };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// The output most like the text of a block, of all outputs that the block may show.
pub(crate) fn nearest(expected: &str, found: Vec<String>) -> String {
    let first_line = |text: &str| text.trim().lines().next().map(|line| line.chars().take(6).collect::<String>());
    let wanted = first_line(expected);
    let like = found.iter().position(|found| first_line(found) == wanted).unwrap_or_default();
    found.into_iter().nth(like).unwrap_or_default()
}
