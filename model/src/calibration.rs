//! Errors of calibration rows, which turn an error into a p-value. The model was not trained on these rows.

mod errors;

use std::io;

use datafusion_common::error::Result;
use datafusion_common::exec_err;
use serde::{Deserialize, Serialize};

use crate::numbers::{f64_from_usize, to_usize};
pub use errors::Errors;

/// Errors that are kept below the largest [`TAIL`], at equal distances of rank, if there are more.
const BODY: usize = 9_000;

/// Largest errors that are all kept: rare alerts depend on them.
const TAIL: usize = 1_000;

/// Reconstruction errors of calibration rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Number of calibration rows.
    pub rows: u64,
    /// Their errors, ascending; a sample of them if there are more than 10,000.
    errors: Vec<f64>,
    /// For each error of a sample, the number of rows with an error at least as large; empty if all errors are kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    at_least: Vec<u64>,
}

impl Calibration {
    /// A calibration by the errors of rows.
    ///
    /// # Errors
    /// An execution error if there are no errors, or if one is not finite.
    pub fn of(mut errors: Vec<f64>) -> Result<Self> {
        if errors.is_empty() {
            return exec_err!("there are no rows to calibrate on");
        }
        all_finite(errors.iter().filter(|error| !error.is_finite()).count())?;
        errors.sort_by(f64::total_cmp);
        let rows = errors.len();
        Self::of_sorted(rows, errors.into_iter().map(Ok))
    }

    /// A calibration by errors in ascending order.
    fn of_sorted(rows: usize, errors: impl Iterator<Item = io::Result<f64>>) -> Result<Self> {
        if rows <= BODY + TAIL {
            return Ok(Self { rows: rows as u64, errors: errors.collect::<io::Result<_>>()?, at_least: Vec::new() });
        }
        // the middle of each of BODY equal shares of the ranks below the tail
        let tail = rows - TAIL;
        let mut ranks = (0..BODY).map(|i| (2 * i + 1) * tail / (2 * BODY)).chain(tail..rows).peekable();
        let (mut kept, mut at_least) = (Vec::with_capacity(BODY + TAIL), Vec::with_capacity(BODY + TAIL));
        // rank of the first error that equals the current one
        let (mut first, mut last) = (0, f64::NEG_INFINITY);
        for (rank, error) in errors.enumerate() {
            let error = error?;
            if error > last {
                (first, last) = (rank, error);
            }
            if ranks.next_if_eq(&rank).is_some() {
                kept.push(error);
                at_least.push((rows - first) as u64);
            }
        }
        Ok(Self { rows: rows as u64, errors: kept, at_least })
    }

    /// Share of the calibration rows with an error at least as large, 0 to 1; 0 for NaN.
    ///
    /// Exact for the largest 1,000 errors. For smaller errors of a sample, accurate to 0.0002.
    pub fn p_value(&self, error: f64) -> f64 {
        if error.is_nan() {
            return 0.0;
        }
        let smaller = self.errors.partition_point(|other| *other < error);
        let rows = match (self.at_least.is_empty(), smaller) {
            (_, smaller) if smaller >= self.errors.len() => 0,
            (true, smaller) => self.errors.len() - smaller,
            (false, smaller) => to_usize(self.at_least[smaller]),
        };
        f64_from_usize(rows) / f64_from_usize(to_usize(self.rows).max(1))
    }

    /// The smallest error with a p-value of at most `share`: the next number above the largest kept error with a larger
    /// p-value.
    pub fn threshold(&self, share: f64) -> f64 {
        let place = self.errors.partition_point(|error| self.p_value(*error) > share);
        self.errors[..place].last().map_or(0.0, |normal| normal.next_up())
    }

    /// The rows that a p-value of `share` needs, if there are fewer: `1 / share`.
    pub fn rows_wanted(&self, share: f64) -> Option<u64> {
        let wanted = crate::numbers::whole((1.0 / share).ceil())?;
        (self.rows < wanted).then_some(wanted)
    }

    /// Errors at equal distances of rank, ascending, at most 10,000; a picture of their distribution.
    pub fn sample(&self) -> Vec<f64> {
        if self.at_least.is_empty() {
            return self.errors.clone();
        }
        let rows = to_usize(self.rows);
        let error = |i: usize| {
            let at_least = rows - (2 * i + 1) * rows / (2 * (BODY + TAIL));
            let place = self.at_least.partition_point(|rows| to_usize(*rows) > at_least);
            self.errors.get(place).or(self.errors.last()).copied()
        };
        (0..BODY + TAIL).filter_map(error).collect()
    }

    /// Checks a calibration from a file.
    ///
    /// # Errors
    /// An execution error if the errors are not finite or not sorted, or the counts do not fit.
    pub fn check(&self) -> Result<()> {
        if self.errors.is_empty() || !self.errors.is_sorted() || self.errors.iter().any(|error| !error.is_finite()) {
            return exec_err!("the errors of a calibration must be finite, ascending numbers");
        }
        let counts = &self.at_least;
        let are_ranks = counts.is_sorted_by(|a, b| a >= b) && counts.first().is_none_or(|most| *most <= self.rows);
        let as_many = if counts.is_empty() { to_usize(self.rows) } else { counts.len() };
        if !are_ranks || as_many != self.errors.len() {
            return exec_err!(
                "a calibration must have, for each error, the number of rows with an error at least as large"
            );
        }
        Ok(())
    }
}

fn all_finite(others: usize) -> Result<()> {
    if others > 0 {
        return exec_err!("the error of {others} rows to calibrate on is not a finite number; leave these rows out");
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::float_cmp, reason = "tests; quarters are exact")]
mod tests {
    use super::*;

    #[test]
    fn p_values_by_hand() {
        let calibration = Calibration::of(vec![3.0, 1.0, 2.0, 2.0]).unwrap();
        let expected = [(0.5, 1.0), (1.0, 1.0), (1.5, 0.75), (2.0, 0.75), (2.5, 0.25), (3.0, 0.25), (3.5, 0.0)];
        for (error, p) in expected {
            assert_eq!(calibration.p_value(error), p, "{error}");
        }
        assert_eq!(calibration.p_value(f64::NAN), 0.0);
        // 2.5 and 3 have the same p-value, and no row has the error 2.5
        for (share, normal) in [(0.25, 2.0_f64), (0.8, 1.0), (0.1, 3.0)] {
            assert_eq!(calibration.threshold(share), normal.next_up());
            assert!(calibration.p_value(normal) > share && calibration.p_value(normal.next_up()) <= share);
        }
        assert_eq!(calibration.threshold(1.0), 0.0);
        assert_eq!([0.25, 0.1, 0.0].map(|share| calibration.rows_wanted(share)), [None, Some(10), None]);
    }

    #[test]
    fn many_errors_are_sampled_evenly() {
        let calibration = Calibration::of((0..50_000).map(f64::from).collect()).unwrap();
        assert_eq!((calibration.rows, calibration.errors.len()), (50_000, 10_000));
        assert!((calibration.p_value(12_500.0) - 0.75).abs() < 2e-4);
        let sample = calibration.sample();
        assert_eq!(sample.len(), 10_000);
        assert!((sample.iter().sum::<f64>() / 10_000.0 - 25_000.0).abs() < 5.0, "the sample keeps the mean");
        calibration.check().unwrap();
    }

    #[test]
    fn the_largest_errors_are_kept_exactly() {
        let calibration = Calibration::of((0..50_000).map(f64::from).collect()).unwrap();
        assert_eq!(calibration.p_value(49_999.0), 1.0 / 50_000.0);
        assert_eq!(calibration.p_value(49_998.5), 1.0 / 50_000.0);
        assert_eq!(calibration.p_value(49_950.0), 50.0 / 50_000.0);
        assert_eq!(calibration.p_value(50_000.0), 0.0);
        assert_eq!(calibration.threshold(50.0 / 50_000.0), 49_949.0_f64.next_up());
        // many rows with the same error
        let tied = Calibration::of((0..50_000).map(|i| f64::from(i / 100)).collect()).unwrap();
        assert_eq!(tied.p_value(499.0), 100.0 / 50_000.0);
    }

    #[test]
    fn errors_that_are_not_finite_are_refused() {
        let refused = Calibration::of(vec![1.0, f64::NAN]).unwrap_err().to_string();
        assert!(refused.contains("the error of 1 rows"), "{refused}");
        assert!(Calibration::of(Vec::new()).is_err());
    }
}
