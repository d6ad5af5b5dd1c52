//! Errors of rows that a model has not seen: what makes an error a p-value.

use datafusion::common::exec_err;
use datafusion::error::Result;
use serde::{Deserialize, Serialize};

/// Errors that are kept, at most.
const MOST: usize = 10_000;

/// Reconstruction errors of held-out rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Rows that were measured.
    pub rows: u64,
    /// Their errors, ascending; of more than 10,000, as many at equal distances of rank.
    errors: Vec<f64>,
}

impl Calibration {
    /// Keeps what is needed of some errors.
    ///
    /// # Errors
    /// An execution error if there are none, or if one is not a number.
    pub fn of(mut errors: Vec<f64>) -> Result<Self> {
        if errors.is_empty() {
            return exec_err!("there are no rows to calibrate on");
        }
        let strange = errors.iter().filter(|error| !error.is_finite()).count();
        if strange > 0 {
            return exec_err!(
                "the error of {strange} rows to calibrate on is not a finite number; leave those rows out"
            );
        }
        errors.sort_by(f64::total_cmp);
        let rows = errors.len();
        if rows > MOST {
            // the middle of each of MOST equal shares of the ranks
            errors = (0..MOST).map(|i| errors[(2 * i + 1) * rows / (2 * MOST)]).collect();
        }
        Ok(Self { rows: rows as u64, errors })
    }

    /// Share of the held-out rows with an error at least this large, 0 to 1; 0 for one that is not a number, which no row
    /// had.
    pub fn p_value(&self, error: f64) -> f64 {
        if error.is_nan() {
            return 0.0;
        }
        let smaller = self.errors.partition_point(|other| *other < error);
        let n = self.errors.len().max(1);
        crate::narrow::f64_from_usize(n - smaller.min(n)) / crate::narrow::f64_from_usize(n)
    }

    /// The smallest error whose p-value is at most `share`; infinite if none of those measured is large enough.
    pub fn threshold(&self, share: f64) -> f64 {
        let place = self.errors.partition_point(|error| self.p_value(*error) > share);
        self.errors.get(place).copied().unwrap_or(f64::INFINITY)
    }

    /// The errors that were kept, ascending.
    pub fn errors(&self) -> &[f64] {
        &self.errors
    }

    /// That what a file says makes sense.
    pub(crate) fn check(&self) -> Result<()> {
        if self.errors.is_empty() || !self.errors.is_sorted() || self.errors.iter().any(|error| !error.is_finite()) {
            return exec_err!("the errors of a calibration must be finite, ascending numbers");
        }
        Ok(())
    }
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
        assert_eq!(calibration.threshold(0.25), 3.0);
        assert_eq!(calibration.threshold(0.8), 2.0);
        assert_eq!(calibration.threshold(0.1), f64::INFINITY);
    }

    #[test]
    fn many_errors_are_thinned_out_evenly() {
        let calibration = Calibration::of((0..50_000).map(f64::from).collect()).unwrap();
        assert_eq!((calibration.rows, calibration.errors.len()), (50_000, 10_000));
        assert!((calibration.p_value(12_500.0) - 0.75).abs() < 1e-4);
    }

    #[test]
    fn errors_that_are_no_numbers_are_refused() {
        let refused = Calibration::of(vec![1.0, f64::NAN]).unwrap_err().to_string();
        assert!(refused.contains("the error of 1 rows"), "{refused}");
        assert!(Calibration::of(Vec::new()).is_err());
    }
}
