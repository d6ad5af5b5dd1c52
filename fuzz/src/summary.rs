//! Counts of what became of mutants.

use std::collections::BTreeMap;
use std::fmt;

/// Kinds of refusals that the summary lists.
const LISTED: usize = 20;

/// What a finding is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The kind.
    pub kind: String,
    /// The mutant.
    pub mutant: u64,
    /// What it was before its changes.
    pub origin: String,
    /// What happened.
    pub detail: String,
}

/// Counts of all mutants.
#[derive(Debug, Default)]
pub struct Summary {
    /// Mutants.
    pub mutants: u64,
    /// Models. The oracle compared those with a result, unless they are too wide.
    pub accepted: u64,
    /// Refused files, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Workers that died, and hung.
    pub workers: [u64; 2],
    /// Verdicts of the oracle.
    pub verdicts: BTreeMap<String, u64>,
    /// Remarks that are no findings, by kind.
    pub remarks: BTreeMap<String, u64>,
    /// Findings.
    pub findings: Vec<Finding>,
}

impl Summary {
    /// Adds the counts of another summary.
    pub fn add(&mut self, other: Self) {
        self.mutants += other.mutants;
        self.accepted += other.accepted;
        for (counts, others) in [
            (&mut self.refused, other.refused),
            (&mut self.verdicts, other.verdicts),
            (&mut self.remarks, other.remarks),
        ] {
            for (key, n) in others {
                *counts.entry(key).or_default() += n;
            }
        }
        for (count, n) in self.workers.iter_mut().zip(other.workers) {
            *count += n;
        }
        self.findings.extend(other.findings);
        self.findings.sort();
    }
}

/// The kind of a reason: names and numbers are left out.
pub fn kind(reason: &str) -> String {
    let mut kind = String::new();
    let mut quote: Option<char> = None;
    for c in reason.chars().take(600) {
        match quote {
            Some(end) if c == end => quote = None,
            Some(_) => {}
            None if c == '"' || c == '\'' => {
                quote = Some(c);
                kind.push('…');
            }
            None if c.is_ascii_digit() => {
                if !kind.ends_with('#') {
                    kind.push('#');
                }
            }
            None if c.is_whitespace() => kind.push(' '),
            None => kind.push(c),
        }
    }
    kind.chars().take(150).collect()
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let refused: u64 = self.refused.values().sum();
        writeln!(f, "mutants   {}", self.mutants)?;
        writeln!(f, "accepted  {}", self.accepted)?;
        writeln!(f, "refused   {refused}")?;
        writeln!(f, "workers   {} died, {} hung", self.workers[0], self.workers[1])?;
        writeln!(f, "findings  {}", self.findings.len())?;
        writeln!(f, "\nreasons of refusals")?;
        let mut reasons: Vec<_> = self.refused.iter().collect();
        reasons.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
        for (reason, n) in reasons.iter().take(LISTED) {
            writeln!(f, "{n:8}  {reason}")?;
        }
        for (title, counts) in [("verdicts of the oracle", &self.verdicts), ("remarks", &self.remarks)] {
            writeln!(f, "\n{title}")?;
            for (key, n) in counts {
                writeln!(f, "{n:8}  {key}")?;
            }
        }
        for finding in &self.findings {
            writeln!(f, "\n{} {} ({}): {}", finding.kind, finding.mutant, finding.origin, finding.detail)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_of_a_kind_are_one() {
        assert_eq!(kind("tensor \"a 1\" has 12 of 'x'"), "tensor … has # of …");
        assert_eq!(kind("tensor \"b\" has 3 of 'y'"), kind("tensor \"a 1\" has 12 of 'x'"));
    }

    #[test]
    fn summaries_add_up() {
        let one = |key: &str| Summary {
            mutants: 2,
            refused: BTreeMap::from([(key.to_owned(), 1)]),
            workers: [1, 0],
            ..Summary::default()
        };
        let mut all = one("a");
        all.add(one("a"));
        all.add(one("b"));
        assert_eq!((all.mutants, all.refused["a"], all.refused["b"], all.workers), (6, 2, 1, [3, 0]));
    }
}
