//! Rules for Rust files: their length, their doc comments, and the words of their comments and messages.

use super::Finding;
use super::markdown;
use super::prose::{self, Sentence};

/// Lines of a file, at most.
const LINES: usize = 500;

/// Findings of all rules in a Rust file.
pub(super) fn check(path: &str, source: &str) -> Vec<Finding> {
    let pieces = pieces(source);
    let docs = sentences(pieces.iter().filter_map(|(line, piece)| match piece {
        Piece::Doc(text) => Some((*line, text.as_str())),
        _ => None,
    }));
    let comments = sentences(pieces.iter().filter_map(|(line, piece)| match piece {
        Piece::Comment(text) => Some((*line, text.as_str())),
        _ => None,
    }));
    let mut findings = docs.iter().flat_map(|sentence| prose::check(path, sentence)).collect::<Vec<_>>();
    findings.extend(comments.iter().flat_map(|sentence| prose::banned(path, sentence)));
    if !is_test(path) {
        findings.extend(messages(source, &pieces).iter().flat_map(|sentence| prose::banned(path, sentence)));
    }
    let n = source.lines().count();
    if n > LINES {
        findings.push(Finding::new(
            path,
            LINES + 1,
            "long-file",
            format!("{n} lines: split files of more than {LINES}"),
        ));
    }
    findings
}

fn is_test(path: &str) -> bool {
    path.split('/').any(|folder| folder == "tests" || folder == "benches") || path.ends_with("tests.rs")
}

/// A line of a doc comment, a line of another comment, or a string.
#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Doc(String),
    Comment(String),
    String(String),
}

/// Sentences of comments. Lines that follow each other are one text.
fn sentences<'a>(lines: impl Iterator<Item = (usize, &'a str)>) -> Vec<Sentence> {
    let lines: Vec<(usize, &str)> = lines.collect();
    let mut sentences = Vec::new();
    for lines in lines.chunk_by(|(a, _), (b, _)| a + 1 == *b) {
        let text = lines.iter().map(|(_, text)| *text).collect::<Vec<_>>().join("\n");
        let first = lines.first().map_or(1, |(line, _)| *line);
        sentences.extend(markdown::sentences(&text).into_iter().map(|s| Sentence { line: s.line + first - 1, ..s }));
    }
    sentences
}

/// Strings of the program, not of its unit tests, which have at least two words.
fn messages(source: &str, pieces: &[(usize, Piece)]) -> Vec<Sentence> {
    let tests = source.lines().position(|line| line.trim() == "#[cfg(test)]").unwrap_or(usize::MAX);
    let message = |(line, piece): &(usize, Piece)| match piece {
        Piece::String(text) if *line <= tests && text.trim().contains(' ') => {
            Some(Sentence { line: *line, text: text.clone() })
        }
        _ => None,
    };
    pieces.iter().filter_map(message).collect()
}

/// Doc comments and strings of a source, with the lines that they begin in.
fn pieces(source: &str) -> Vec<(usize, Piece)> {
    let mut scanner = Scanner { rest: source, line: 1, before: ' ' };
    let mut pieces = Vec::new();
    while !scanner.rest.is_empty() {
        let line = scanner.line;
        pieces.extend(scanner.next().map(|piece| (line, piece)));
    }
    pieces
}

/// Reads a source from token to token, and knows comments, strings and characters.
struct Scanner<'a> {
    rest: &'a str,
    line: usize,
    /// The character before.
    before: char,
}

impl<'a> Scanner<'a> {
    fn next(&mut self) -> Option<Piece> {
        if self.rest.starts_with("//") {
            let line = self.take(self.rest.find('\n').unwrap_or(self.rest.len()));
            let is_doc = !line.starts_with("////");
            let plain = |text: &str| text.strip_prefix(' ').unwrap_or(text).to_owned();
            let doc = line.strip_prefix("///").or(line.strip_prefix("//!")).filter(|_| is_doc);
            return Some(doc.map_or_else(|| Piece::Comment(plain(&line[2..])), |doc| Piece::Doc(plain(doc))));
        }
        if self.rest.starts_with("/*") {
            self.take_comment();
            return None;
        }
        if self.rest.starts_with('"') {
            return Some(Piece::String(unescaped(self.take_until_quote('"'))));
        }
        if let Some(end) = raw_end(self.rest).filter(|_| !self.before.is_alphanumeric() && self.before != '_') {
            let start = self.rest.find('"').unwrap_or_default() + 1;
            let raw = self.rest.get(start..).and_then(|rest| rest.split_once(end.as_str()));
            let content = raw.map_or("", |(content, _)| content);
            self.take(start + content.len() + end.len());
            return Some(Piece::String(content.to_owned()));
        }
        if self.rest.starts_with('\'') {
            self.take_character();
        } else {
            self.take(self.rest.chars().next().map_or(1, char::len_utf8));
        }
        None
    }

    fn take(&mut self, n: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(n.min(self.rest.len()));
        self.line += taken.matches('\n').count();
        self.before = taken.chars().next_back().unwrap_or(self.before);
        self.rest = rest;
        taken
    }

    /// A string or character from its quote to its next one that no backslash precedes; what is between them.
    fn take_until_quote(&mut self, quote: char) -> &'a str {
        let mut is_escaped = false;
        let end = self.rest.char_indices().skip(1).find(|(_, c)| {
            let is_end = *c == quote && !is_escaped;
            is_escaped = *c == '\\' && !is_escaped;
            is_end
        });
        let end = end.map_or(self.rest.len(), |(i, _)| i + 1);
        let taken = self.take(end);
        taken.get(1..taken.len().saturating_sub(1)).unwrap_or_default()
    }

    /// A character, or the quote of a lifetime.
    fn take_character(&mut self) {
        let mut characters = self.rest.chars().skip(1);
        let (first, second) = (characters.next(), characters.next());
        if first == Some('\\') || second == Some('\'') {
            self.take_until_quote('\'');
        } else {
            self.take(1);
        }
    }

    /// A block comment and those within it.
    fn take_comment(&mut self) {
        let mut depth = 0;
        loop {
            match self.rest.get(..2) {
                Some("/*") => depth += 1,
                Some("*/") => depth -= 1,
                _ if self.rest.is_empty() => return,
                _ => {
                    self.take(self.rest.chars().next().map_or(1, char::len_utf8));
                    continue;
                }
            }
            self.take(2);
            if depth == 0 {
                return;
            }
        }
    }
}

/// The end of the raw string that a text begins with.
fn raw_end(text: &str) -> Option<String> {
    let after = text.strip_prefix("br").or(text.strip_prefix("cr")).or(text.strip_prefix('r'))?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    after.get(hashes..)?.starts_with('"').then(|| format!("\"{}", "#".repeat(hashes)))
}

/// A string without its escapes, which are spaces to a reader.
fn unescaped(text: &str) -> String {
    let mut plain = String::new();
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match c {
            '\\' => {
                let escaped = characters.next();
                plain.push(escaped.filter(|c| matches!(c, '"' | '\'' | '\\')).unwrap_or(' '));
            }
            c => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(path: &str, source: &str) -> Vec<(usize, &'static str)> {
        check(path, source).iter().map(|finding| (finding.line, finding.rule)).collect()
    }

    #[test]
    fn doc_comments_are_prose() {
        let source = "//! The module tells.\n\n/// Fine. It\n/// was told\n/// here.\nfn a() {}\n";
        assert_eq!(rules("src/a.rs", source), [(1, "banned-word"), (3, "banned-word")]);
        let long = format!("/// {}\nfn a() {{}}\n", "word ".repeat(26));
        assert_eq!(rules("src/a.rs", &long), [(1, "long-sentence")]);
        assert_eq!(rules("src/a.rs", "/// ```\n/// told();\n/// ```\nfn a() {}\n"), []);
    }

    #[test]
    fn other_comments_are_searched_for_words() {
        assert_eq!(
            rules("tests/it/a.rs", "fn a() {} // so\n// that was told\n"),
            [(1, "banned-word"), (1, "banned-word")]
        );
        assert_eq!(rules("src/a.rs", &format!("// {}\n", "word ".repeat(26))), []);
    }

    #[test]
    fn messages_are_searched_for_words_unless_they_are_of_tests() {
        let source = "fn a() { bail!(\"was told {x}\") }\nfn b() -> &str { \"told\" }\n#[cfg(test)]\nmod tests {\n    fn c() { d(\"was told\") }\n}\n";
        assert_eq!(rules("src/a.rs", source), [(1, "banned-word")]);
        assert_eq!(rules("tests/it/a.rs", source), []);
    }

    #[test]
    fn a_message_that_is_continued_is_one_text() {
        assert_eq!(rules("src/a.rs", "const A: &str = \"it goes on for \\\n    ever\";\n"), [(1, "banned-word")]);
    }

    #[test]
    fn strings_comments_characters_and_lifetimes_are_kept_apart() {
        let source = "/* \"no\" /* told */ */ fn a<'a>(b: &'a str) -> char { '\"' }\nlet x = r#\"raw \"x\" y\"#; let y = b\"z\\\" w\"; let c = '\\''; \"end\"";
        let strings = [(2, "raw \"x\" y"), (2, "z\" w"), (2, "end")];
        assert_eq!(pieces(source), strings.map(|(line, text)| (line, Piece::String(text.to_owned()))));
    }

    #[test]
    fn a_file_of_more_than_500_lines_is_found() {
        assert_eq!(rules("src/a.rs", &"\n".repeat(500)), []);
        assert_eq!(rules("src/a.rs", &"\n".repeat(501)), [(501, "long-file")]);
    }
}
