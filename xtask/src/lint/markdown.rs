//! Prose, links and headings of a Markdown text; code, HTML and the targets of links are left out.

use std::ops::Range;

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use super::prose::{self, Sentence};

/// Characters of a line, at most.
pub(super) const LINE: usize = 120;
/// Stands for a code span, which counts as one word.
pub(super) const CODE: char = '\u{fffc}';

fn parse(text: &str) -> impl Iterator<Item = (Event<'_>, Range<usize>)> {
    let options =
        Options::ENABLE_TABLES | Options::ENABLE_FOOTNOTES | Options::ENABLE_STRIKETHROUGH | Options::ENABLE_GFM;
    Parser::new_ext(text, options).into_offset_iter()
}

/// Text of a paragraph, heading, list item or cell, with the places where its parts stand in the source.
#[derive(Default)]
struct Block {
    text: String,
    /// Offset in `text`, offset in the source.
    places: Vec<(usize, usize)>,
}

impl Block {
    fn push(&mut self, text: &str, place: usize) {
        self.places.push((self.text.len(), place));
        self.text.push_str(text);
    }

    /// Offset in the source of an offset in the text.
    fn place(&self, offset: usize) -> usize {
        let (text, source) = self.places.iter().rev().find(|(text, _)| *text <= offset).copied().unwrap_or_default();
        source + offset - text
    }
}

/// Sentences of a text with their lines, counted from 1.
pub(super) fn sentences(text: &str) -> Vec<Sentence> {
    let mut found = Vec::new();
    for block in blocks(text) {
        for range in prose::split(&block.text) {
            let line = line_of(text, block.place(range.start));
            found.push(Sentence { line, text: block.text[range].to_owned() });
        }
    }
    found
}

fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = vec![Block::default()];
    let mut is_code = false;
    for (event, range) in parse(text) {
        let place = range.start;
        match (event, blocks.last_mut()) {
            (Event::Start(tag), _) => {
                is_code |= matches!(tag, Tag::CodeBlock(_) | Tag::HtmlBlock);
                if !is_inline(&tag.to_end()) {
                    blocks.push(Block::default());
                }
            }
            (Event::End(tag), _) => {
                is_code &= !matches!(tag, TagEnd::CodeBlock | TagEnd::HtmlBlock);
                if !is_inline(&tag) {
                    blocks.push(Block::default());
                }
            }
            (Event::Text(part), Some(block)) if !is_code => block.push(&part, place),
            (Event::Code(_), Some(block)) => block.push(CODE.encode_utf8(&mut [0; 4]), place),
            (Event::SoftBreak | Event::HardBreak, Some(block)) => block.push(" ", place),
            _ => {}
        }
    }
    blocks.retain(|block| !block.text.trim().is_empty());
    blocks
}

fn is_inline(tag: &TagEnd) -> bool {
    matches!(tag, TagEnd::Emphasis | TagEnd::Strong | TagEnd::Strikethrough | TagEnd::Link | TagEnd::Image)
}

/// Lines over [`LINE`] characters without their URLs; code, HTML and tables may be wider.
pub(super) fn long_lines(text: &str) -> Vec<usize> {
    let mut is_free = vec![false; text.lines().count() + 1];
    for (event, range) in parse(text) {
        if matches!(event, Event::Start(Tag::CodeBlock(_) | Tag::HtmlBlock | Tag::Table(_))) {
            let last = line_of(text, range.end.saturating_sub(1));
            is_free[line_of(text, range.start) - 1..last].fill(true);
        }
    }
    let url = |word: &&str| word.contains("://");
    let width =
        |line: &str| line.chars().count() - line.split(' ').filter(url).map(|url| url.chars().count()).sum::<usize>();
    let is_long = |line: &str| width(line) > LINE;
    let lines = text.lines().zip(&is_free).enumerate();
    lines.filter(|(_, (line, is_free))| !**is_free && is_long(line)).map(|(i, _)| i + 1).collect()
}

/// Targets of links and images, with their lines.
pub(super) fn links(text: &str) -> Vec<(usize, String)> {
    let target = |(event, range): (Event<'_>, Range<usize>)| match event {
        Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
            Some((line_of(text, range.start), dest_url.into_string()))
        }
        _ => None,
    };
    parse(text).filter_map(target).collect()
}

/// Texts of headings, in their order.
pub(super) fn headings(text: &str) -> Vec<String> {
    let mut headings: Vec<String> = Vec::new();
    let mut is_heading = false;
    for (event, _) in parse(text) {
        match (event, headings.last_mut()) {
            (Event::Start(Tag::Heading { .. }), _) => {
                headings.push(String::new());
                is_heading = true;
            }
            (Event::End(TagEnd::Heading(_)), _) => is_heading = false,
            (Event::Text(part) | Event::Code(part), Some(heading)) if is_heading => heading.push_str(&part),
            _ => {}
        }
    }
    headings
}

/// The line of an offset, counted from 1.
fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<(usize, String)> {
        sentences(text).into_iter().map(|sentence| (sentence.line, sentence.text)).collect()
    }

    #[test]
    fn sentences_have_the_line_that_they_begin_in() {
        let text = "# A title\n\nOne. Two is **longer\nthan** one.\nThree.\n\n- an item\n- [a link](x.md) here\n";
        let expected = [
            (1, "A title"),
            (3, "One."),
            (3, "Two is longer than one."),
            (5, "Three."),
            (7, "an item"),
            (8, "a link here"),
        ];
        assert_eq!(texts(text), expected.map(|(line, text)| (line, text.to_owned())));
    }

    #[test]
    fn code_is_one_word_and_blocks_of_code_are_none() {
        let text = "Run `SELECT a. FROM b` now.\n\n```sql\nSELECT told;\n```\n\n<p>told</p>\n\n| a | b |\n| --- | --- |\n| c | d |\n";
        let found: Vec<String> = texts(text).into_iter().map(|(_, text)| text).collect();
        assert_eq!(found, [&format!("Run {CODE} now."), "a", "b", "c", "d"]);
    }

    #[test]
    fn lines_of_prose_are_measured_and_those_of_tables_code_and_urls_are_not() {
        let long = "word ".repeat(25);
        let text = format!(
            "{long}\n\n```text\n{long}\n```\n\n| a |\n| --- |\n| {long} |\n\nshort https://example.org/{}\n",
            "x".repeat(200)
        );
        assert_eq!(long_lines(&text), [1]);
        assert_eq!(long_lines(&"a".repeat(LINE)), [0; 0]);
        assert_eq!(long_lines(&"a".repeat(LINE + 1)), [1]);
    }

    #[test]
    fn links_and_headings_are_found() {
        let text = "# The `code` of a\n\nSee [this](other.md#part), ![picture](a.svg), `[not](this)`.\n\n## Part\n";
        assert_eq!(links(text), [(3, "other.md#part".to_owned()), (3, "a.svg".to_owned())]);
        assert_eq!(headings(text), ["The code of a", "Part"]);
    }
}
