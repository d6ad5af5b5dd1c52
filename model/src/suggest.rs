//! Suggestions for misspelt names: "did you mean …?".

/// Names with a higher similarity (0 to 1) are suggested.
const MIN_SIMILARITY: f64 = 0.6;

/// Similarity of two names, 0 to 1: by the letters to add, remove, replace or swap.
fn similarity(a: &str, b: &str) -> f64 {
    // among f0, f1, f10 … every name is similar to every other
    if a.len().min(b.len()) < 3 && !a.eq_ignore_ascii_case(b) {
        return 0.0;
    }
    strsim::normalized_damerau_levenshtein(a, b)
}

/// The known names nearest to `name`, best first, at most three.
fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let name = name.to_lowercase();
    let mut scored: Vec<(f64, &str)> = known
        .into_iter()
        .map(|known| (similarity(&name, &known.to_lowercase()), known))
        .filter(|(score, _)| *score > MIN_SIMILARITY)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    scored.into_iter().take(3).map(|(_, known)| known).collect()
}

/// `"a", "b" and 3 more`.
pub fn shortened(names: &[&str]) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| format!("\"{name}\"")).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// `; did you mean "a" or "b"?`, or an empty text if no known name is similar.
pub fn hint<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let nearest = nearest(name, known);
    if nearest.is_empty() {
        return String::new();
    }
    let quoted: Vec<String> = nearest.into_iter().map(|name| format!("\"{name}\"")).collect();
    format!("; did you mean {}?", quoted.join(" or "))
}
