//! Rules of a sentence: its length, the words that it avoids, one relative clause.

use std::ops::Range;

use super::Finding;
use super::markdown::CODE;

/// Words of a sentence, at most.
const WORDS: usize = 25;

/// Words that the prose avoids, and what to write.
const BANNED: [(&str, &str); 9] = [
    ("told", "name who reports, shows or records it"),
    ("tells", "write reports, shows or lists"),
    ("usual", "write normal"),
    ("so that", "write “to” and a verb, or begin a new sentence"),
    ("which is so", "begin a new sentence"),
    ("as a whole", "write whole, or name all its parts"),
    ("for ever", "write continuously"),
    ("of one's own", "write own or your own"),
    ("comes to", "write is, reaches or costs"),
];

/// Words before a full stop that end no sentence.
const ABBREVIATIONS: [&str; 9] = ["e.g", "i.e", "al", "vs", "cf", "approx", "no", "fig", "eq"];

/// A sentence and the line that it begins in.
#[derive(Debug)]
pub(super) struct Sentence {
    pub line: usize,
    pub text: String,
}

/// Findings of all rules in a sentence.
pub(super) fn check(path: &str, sentence: &Sentence) -> Vec<Finding> {
    let mut findings = banned(path, sentence);
    let n = words(&sentence.text).count();
    if n > WORDS {
        let text = format!("{n} words: write sentences of at most {WORDS} words: {}", beginning(&sentence.text));
        findings.push(Finding::new(path, sentence.line, "long-sentence", text));
    }
    if words(&sentence.text).filter(|word| word.eq_ignore_ascii_case("that")).count() > 1 {
        let text = format!("“that” twice: begin a new sentence: {}", beginning(&sentence.text));
        findings.push(Finding::new(path, sentence.line, "double-that", text));
    }
    findings
}

/// Findings of words that the prose avoids.
pub(super) fn banned(path: &str, sentence: &Sentence) -> Vec<Finding> {
    let plain = words(&sentence.text).map(str::to_lowercase).collect::<Vec<_>>().join(" ").replace('’', "'");
    let padded = format!(" {plain} ");
    let is_in = |words: &str| padded.contains(&format!(" {words} "));
    let finding = |(words, instead): &(&str, &str)| {
        let text = format!("“{words}”: {instead}: {}", beginning(&sentence.text));
        Finding::new(path, sentence.line, "banned-word", text)
    };
    BANNED.iter().filter(|(words, _)| is_in(words)).map(finding).collect()
}

/// Words without the punctuation around them.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let is_word = |c: char| c.is_alphanumeric() || c == CODE;
    text.split(|c: char| c.is_whitespace() || c == '—')
        .map(move |word| word.trim_matches(|c| !is_word(c)))
        .filter(|word| !word.is_empty())
}

/// The first words of a sentence, to find it by.
fn beginning(text: &str) -> String {
    let mut words = text.split_whitespace();
    let first: Vec<&str> = words.by_ref().take(8).collect();
    let ellipsis = if words.next().is_some() { " …" } else { "" };
    format!("“{}{ellipsis}”", first.join(" ").replace(CODE, "`…`"))
}

/// Sentences of a text: they end at `.`, `!` or `?` before a space, and where the text ends.
pub(super) fn split(text: &str) -> Vec<Range<usize>> {
    let mut sentences = Vec::new();
    let mut start = 0;
    for (space, _) in text.char_indices().filter(|(_, c)| c.is_whitespace()) {
        if ends(&text[start..space]) {
            sentences.push(start..space);
            start = space;
        }
    }
    sentences.push(start..text.len());
    let trimmed = |range: Range<usize>| {
        let sentence = &text[range.clone()];
        range.end - sentence.trim_start().len()..range.start + sentence.trim_end().len()
    };
    sentences.into_iter().filter(|range| !text[range.clone()].trim().is_empty()).map(trimmed).collect()
}

fn ends(text: &str) -> bool {
    let text = text.trim_end_matches([')', ']', '"', '\'', '”', '’', '»']);
    let Some(before) = text.strip_suffix(['.', '!', '?']) else { return false };
    let last = before.rsplit(|c: char| c.is_whitespace() || c == '(').next().unwrap_or_default();
    !ABBREVIATIONS.iter().any(|abbreviation| last.eq_ignore_ascii_case(abbreviation))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Vec<&'static str> {
        check("page.md", &Sentence { line: 7, text: text.to_owned() }).iter().map(|finding| finding.rule).collect()
    }

    #[test]
    fn a_sentence_of_more_than_25_words_is_found() {
        let words = |n: usize| vec!["word"; n].join(" ");
        assert_eq!(rules(&words(25)), [""; 0]);
        assert_eq!(rules(&words(26)), ["long-sentence"]);
        assert_eq!(rules(&format!("{} – {CODE}", words(24))), [""; 0], "a dash is no word, code is one");
    }

    #[test]
    fn every_banned_word_is_found_and_longer_words_are_not() {
        for (words, _) in BANNED {
            assert_eq!(rules(&format!("It is “{words}”, here.")), ["banned-word"], "{words}");
        }
        assert_eq!(rules("It is OF ONE’S OWN making."), ["banned-word"]);
        assert_eq!(rules("Unusual rows are usually untold, and so is that."), [""; 0]);
    }

    #[test]
    fn that_is_found_twice() {
        assert_eq!(rules("A row that has a column that is null."), ["double-that"]);
        assert_eq!(rules("A row that has a null."), [""; 0]);
    }

    #[test]
    fn a_finding_names_place_rule_and_beginning() {
        let found =
            check("a.md", &Sentence { line: 3, text: format!("This tells {CODE} of one two three four five six.") });
        let expected =
            "a.md:3: banned-word: “tells”: write reports, shows or lists: “This tells `…` of one two three four …”";
        assert_eq!(found.iter().map(Finding::to_string).collect::<Vec<_>>(), [expected]);
    }

    #[test]
    fn sentences_end_at_full_stops_and_not_at_abbreviations() {
        let text = "One, e.g. 0.5 (cf. Table 2). aefusion is “two.” Three? Four";
        let sentences: Vec<&str> = split(text).into_iter().map(|range| &text[range]).collect();
        assert_eq!(sentences, ["One, e.g. 0.5 (cf. Table 2).", "aefusion is “two.”", "Three?", "Four"]);
    }
}
