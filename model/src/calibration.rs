//! Errors of calibration rows, which turn an error into a p-value. The model was not trained on these rows.

mod errors;

use std::io;

use datafusion_common::error::Result;
use datafusion_common::exec_err;
use serde::{Deserialize, Serialize};

use crate::numbers::to_usize;
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

    /// The conformal p-value of an error, above 0 and at most 1: its rank among the errors of the calibration rows.
    ///
    /// If `k` of `n` calibration rows have an error at least as large, it is `(k + 1) / (n + 1)`: the row itself counts too.
    /// NaN counts as larger than every error. The rank is exact for the largest 1,000 errors. For smaller errors of a
    /// sample, the p-value is accurate to 0.0002.
    ///
    /// # Source
    /// Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World" (2005). Phipson and Smyth, "Permutation P-values
    /// Should Never Be Zero", SAGMB 9 (2010). Bates et al., "Testing for outliers with conformal p-values", Annals of
    /// Statistics 51 (2023).
    pub fn p_value(&self, error: f64) -> f64 {
        let smaller = match error.is_nan() {
            true => self.errors.len(),
            false => self.errors.partition_point(|other| *other < error),
        };
        let at_least = match self.at_least.get(smaller) {
            Some(rows) => *rows,
            None => (self.errors.len() - smaller) as u64,
        };
        conformal(at_least, self.rows)
    }

    /// The smallest possible p-value: that of an error above the errors of all calibration rows.
    pub fn smallest_p_value(&self) -> f64 {
        conformal(0, self.rows)
    }

    /// The smallest error with a p-value of at most `share`: the next number above the largest kept error with a larger
    /// p-value. None if no error has so small a p-value.
    pub fn threshold(&self, share: f64) -> Option<f64> {
        if self.smallest_p_value() > share {
            return None;
        }
        let place = self.errors.partition_point(|error| self.p_value(*error) > share);
        Some(self.errors[..place].last().map_or(0.0, |normal| normal.next_up()))
    }

    /// The calibration rows that a p-value of at most `share` needs, if there are fewer.
    pub fn rows_wanted(&self, share: f64) -> Option<u64> {
        rows_for(share, |p| p <= share).filter(|wanted| self.rows < *wanted)
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

/// The calibration rows that a p-value below `share` needs; none if no number of rows is enough.
pub fn rows_below(share: f64) -> Option<u64> {
    rows_for(share, |p| p < share)
}

/// The smallest number of calibration rows whose smallest p-value is `small`; it is about `1 / share`.
fn rows_for(share: f64, small: impl Fn(f64) -> bool) -> Option<u64> {
    let about = crate::numbers::whole((1.0 / share).floor())?;
    // the division may have been rounded
    (about.saturating_sub(2)..about.saturating_add(2)).find(|rows| small(conformal(0, *rows)))
}

/// The p-value of an error if `at_least` of `rows` calibration rows have an error at least as large.
fn conformal(at_least: u64, rows: u64) -> f64 {
    (at_least as f64 + 1.0) / (rows as f64 + 1.0)
}

fn all_finite(others: usize) -> Result<()> {
    if others > 0 {
        return exec_err!("the error of {others} rows to calibrate on is not a finite number; leave these rows out");
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::float_cmp, reason = "tests; equal fractions are equal numbers")]
mod tests {
    use super::*;

    #[test]
    fn p_values_by_hand() {
        let calibration = Calibration::of(vec![3.0, 1.0, 2.0, 2.0]).unwrap();
        let expected = [(0.5, 1.0), (1.0, 1.0), (1.5, 0.8), (2.0, 0.8), (2.5, 0.4), (3.0, 0.4), (3.5, 0.2)];
        for (error, p) in expected {
            assert_eq!(calibration.p_value(error), p, "{error}");
        }
        for largest in [f64::INFINITY, f64::NAN] {
            assert_eq!(calibration.p_value(largest), 0.2, "one in five is the largest");
        }
        assert_eq!(calibration.smallest_p_value(), 0.2);
        // 2.5 and 3 have the same p-value, and no row has the error 2.5
        for (share, normal) in [(0.4, 2.0_f64), (0.9, 1.0), (0.2, 3.0)] {
            assert_eq!(calibration.threshold(share), Some(normal.next_up()));
            assert!(calibration.p_value(normal) > share && calibration.p_value(normal.next_up()) <= share);
        }
        assert_eq!([1.0, 0.19, 0.0].map(|share| calibration.threshold(share)), [Some(0.0), None, None]);
    }

    #[test]
    fn small_p_values_need_rows() {
        let four = Calibration::of(vec![1.0; 4]).unwrap();
        for share in [0.5, 0.3, 0.2, 0.1, 0.05, 0.01, 0.003, 1e-3, 1e-5, 1e-7] {
            let wanted = rows_for(share, |p| p <= share).unwrap();
            assert!(conformal(0, wanted) <= share && conformal(0, wanted - 1) > share, "{share}: {wanted}");
            assert_eq!(four.rows_wanted(share), (wanted > 4).then_some(wanted));
            let below = rows_below(share).unwrap();
            assert!(conformal(0, below) < share && conformal(0, below - 1) >= share, "{share}: {below}");
        }
        assert_eq!([0.2, 0.1, 0.01, 0.0].map(|share| four.rows_wanted(share)), [None, Some(9), Some(99), None]);
        assert_eq!([0.2, 1e-3, 0.0].map(rows_below), [Some(5), Some(1_000), None]);
    }

    /// Of exchangeable errors, a share of at most `a` has a p-value of at most `a`. With `l = floor(a (n + 1))`, the share
    /// of one calibration is a Beta(l, n + 1 - l) variable.
    #[test]
    fn p_values_of_exchangeable_errors_hold_on_average() {
        let mut state = 1_u64;
        let mut next = || {
            // SplitMix64
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
        };
        for n in [50_u32, 287, 2_000, 12_000] {
            let calibrations = if n > 10_000 { 100 } else { 400 };
            const FRESH: u32 = 1_000;
            let shares = [0.2, 0.05, 0.01, 0.003, 0.001];
            let mut found = [0_u32; 5];
            for _ in 0..calibrations {
                let calibration = Calibration::of((0..n).map(|_| next()).collect()).unwrap();
                for _ in 0..FRESH {
                    let p = calibration.p_value(next());
                    found.iter_mut().zip(shares).for_each(|(found, share)| *found += u32::from(p <= share));
                }
            }
            for (found, share) in found.into_iter().zip(shares) {
                let rows = f64::from(calibrations * FRESH);
                let place = (share * f64::from(n + 1) + 1e-9).floor();
                let expected = place / f64::from(n + 1);
                assert!(expected <= share + 1e-12);
                // the variance of a Beta variable, and that of counting rows; a sample is off by at most 0.0002
                let beta = expected * (1.0 - expected) / f64::from(n + 2);
                let bound = 4.0 * (beta / f64::from(calibrations) + expected / rows).sqrt()
                    + if n > 10_000 && share > 0.09 { 2e-4 } else { 0.0 };
                let mean = f64::from(found) / rows;
                assert!((mean - expected).abs() <= bound, "{n} rows, {share}: {mean}, not {expected} within {bound}");
            }
        }
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
        assert_eq!(calibration.p_value(49_999.0), 2.0 / 50_001.0);
        assert_eq!(calibration.p_value(49_998.5), 2.0 / 50_001.0);
        assert_eq!(calibration.p_value(49_950.0), 51.0 / 50_001.0);
        assert_eq!(calibration.p_value(50_000.0), 1.0 / 50_001.0);
        assert_eq!(calibration.threshold(51.0 / 50_001.0), Some(49_949.0_f64.next_up()));
        // many rows with the same error
        let tied = Calibration::of((0..50_000).map(|i| f64::from(i / 100)).collect()).unwrap();
        assert_eq!(tied.p_value(499.0), 101.0 / 50_001.0);
    }

    #[test]
    fn errors_that_are_not_finite_are_refused() {
        let refused = Calibration::of(vec![1.0, f64::NAN]).unwrap_err().to_string();
        assert!(refused.contains("the error of 1 rows"), "{refused}");
        assert!(Calibration::of(Vec::new()).is_err());
    }
}
