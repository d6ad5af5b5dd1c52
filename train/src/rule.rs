//! The rule by which rows are split: into training, held-out and calibration rows.

use aefusion_udfs::numbers::rounded;
use datafusion::common::plan_err;
use datafusion::error::Result;
use serde::{Deserialize, Serialize};

use crate::config::{Config, SplitBy};
use crate::key::{mix, uniform};

/// Default of `calibration_share`.
pub(crate) const CALIBRATION_SHARE: f64 = 0.1;

/// The use of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Train,
    HeldOut,
    Calibration,
}

/// A rule that decides on each row alone. A row therefore keeps its part, whatever other rows the query returns.
///
/// The file of a model records the rule. A training that starts from the model keeps it: no row of an earlier training
/// calibrates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Rule {
    /// The key of the hash; the seed of the first training.
    key: u64,
    pub(crate) by: SplitBy,
    /// Share of held-out rows.
    pub(crate) held_out: f64,
    /// Share of calibration rows; 0 if all others were trained on.
    pub(crate) calibration: f64,
    /// Rows before this time are training rows. With [`SplitBy::Time`] only.
    held_out_from: Option<f64>,
    /// Rows from this time on are calibration rows. With [`SplitBy::Time`] only.
    calibrated_from: Option<f64>,
    /// Whether calibration rows may be rows of an earlier training, whose split is not known.
    #[serde(default)]
    pub(crate) may_have_trained: bool,
}

impl Rule {
    /// A rule with these shares of held-out rows and of calibration rows.
    pub(crate) fn new(key: u64, by: SplitBy, held_out: f64, calibration: f64) -> Self {
        Self { key, by, held_out, calibration, held_out_from: None, calibrated_from: None, may_have_trained: false }
    }

    /// The rule for a training that starts from a model with the rule `base`, if any. `option` is the option that names the
    /// model.
    ///
    /// # Errors
    /// A planning error if the options differ from the rule of the base, such that rows of an earlier training could
    /// calibrate.
    pub(crate) fn of(config: &Config, base: Option<&Self>, option: &str) -> Result<Self> {
        let Some(base) = base else {
            let calibration = config.calibration_share.unwrap_or(CALIBRATION_SHARE);
            return Ok(Self::new(config.fit.seed, config.split_by.clone(), config.eval_fraction, calibration));
        };
        if config.split_by != SplitBy::Row && config.split_by != base.by {
            return plan_err!(
                "option {option}: the existing model splits its rows by {}, not by {}; rows that it was trained on could \
                 calibrate; leave the option out",
                base.by,
                config.split_by
            );
        }
        let calibration = config.calibration_share.unwrap_or(base.calibration);
        if calibration > base.calibration {
            return plan_err!(
                "option calibration_share must be at most {} with {option}, found {calibration}: the existing model set \
                 this share of the rows aside, and was trained on the others",
                base.calibration
            );
        }
        Ok(Self { held_out: config.eval_fraction, calibration, ..base.clone() })
    }

    /// The rule that trains on all rows.
    pub(crate) fn of_training_rows_alone(&self) -> Self {
        Self { held_out: 0.0, calibration: 0.0, ..self.clone() }
    }

    /// Decides from which time on rows are held out, and calibrate. `times` are those of a sample of the rows, ascending, and
    /// `last` is the latest of all rows.
    ///
    /// Calibration rows are later than all rows that an earlier training was fitted to.
    pub(crate) fn cut_times(&mut self, times: &[f64], last: f64) {
        let earlier = self.calibrated_from.unwrap_or(f64::NEG_INFINITY);
        let calibrated_from = cut(times, self.calibration).unwrap_or_else(|| last.next_up()).max(earlier);
        let others = &times[..times.partition_point(|time| *time < calibrated_from)];
        let held_out = (self.held_out * times.len() as f64 / others.len().max(1) as f64).min(1.0);
        self.held_out_from = Some(cut(others, held_out).unwrap_or(calibrated_from));
        self.calibrated_from = Some(calibrated_from);
    }

    /// The hash of a key of a row or of a group. Each of the `uses` has its own hash.
    pub(crate) fn hash(&self, key: u64, uses: u64) -> f64 {
        uniform(mix(mix(self.key, uses), key))
    }

    /// The part of a row by the hash of its key.
    pub(crate) fn part_by_hash(&self, hash: f64) -> Part {
        match hash {
            _ if hash < self.held_out => Part::HeldOut,
            _ if hash >= 1.0 - self.calibration => Part::Calibration,
            _ => Part::Train,
        }
    }

    /// The part of a row by its time.
    pub(crate) fn part_by_time(&self, time: f64) -> Part {
        let is_from = |first: Option<f64>| first.is_some_and(|first| time >= first);
        match time {
            _ if self.calibration > 0.0 && is_from(self.calibrated_from) => Part::Calibration,
            _ if self.held_out > 0.0 && is_from(self.held_out_from) => Part::HeldOut,
            _ => Part::Train,
        }
    }
}

/// The time from which on the last `share` of the `times` are; none if it is after all of them. Equal times stay together.
fn cut(times: &[f64], share: f64) -> Option<f64> {
    let place = rounded(times.len() as f64 * (1.0 - share));
    let time = times.get(place)?;
    // all rows with this time, or none of them
    let (first, after) = (times.partition_point(|other| other < time), times.partition_point(|other| other <= time));
    if place - first <= after - place { Some(*time) } else { times.get(after).copied() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn rule(by: SplitBy) -> Rule {
        Rule::new(3, by, 0.1, 0.2)
    }

    fn days(days: std::ops::Range<u32>) -> Vec<f64> {
        days.map(f64::from).collect()
    }

    #[test]
    fn the_last_rows_calibrate_and_the_rows_before_them_are_held_out() {
        let mut rule = rule(SplitBy::Time("day".to_owned()));
        rule.cut_times(&days(0..100), 99.0);
        let parts = [0.0, 69.0, 70.0, 79.0, 80.0, 99.0, 1000.0].map(|day| rule.part_by_time(day));
        use Part::{Calibration, HeldOut, Train};
        assert_eq!(parts, [Train, Train, HeldOut, HeldOut, Calibration, Calibration, Calibration]);
    }

    #[test]
    fn rows_of_an_earlier_training_never_calibrate() {
        let mut rule = rule(SplitBy::Time("day".to_owned()));
        rule.cut_times(&days(0..100), 99.0);
        // ten days later
        rule.cut_times(&days(10..110), 109.0);
        assert_eq!([89.0, 90.0].map(|day| rule.part_by_time(day)), [Part::HeldOut, Part::Calibration]);
        // the same rows, without the latest ones
        rule.cut_times(&days(0..90), 89.0);
        assert_eq!(rule.part_by_time(89.0), Part::HeldOut, "it was fitted to");
        let stored: Rule = serde_json::from_str(&serde_json::to_string(&rule).unwrap()).unwrap();
        assert_eq!(stored, rule);
    }

    #[test]
    fn equal_times_are_in_one_part() {
        let mut rule = rule(SplitBy::Time("day".to_owned()));
        rule.cut_times(&[1.0; 10], 1.0);
        assert_eq!(rule.part_by_time(1.0), Part::Train);
        rule.calibrated_from = None;
        rule.cut_times(&[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0], 2.0);
        assert_eq!([1.0, 2.0].map(|time| rule.part_by_time(time)), [Part::Train, Part::Calibration]);
    }

    #[test]
    fn a_smaller_share_calibrates_on_fewer_of_the_same_rows() {
        let (base, mut smaller) = (rule(SplitBy::Row), rule(SplitBy::Row));
        smaller.calibration = 0.05;
        let part = |rule: &Rule, row: u64| rule.part_by_hash(rule.hash(row, 0));
        let count = |part_of: Part| (0..20_000).filter(|row| part(&base, *row) == part_of).count();
        // four deviations of binomial counts
        assert!(count(Part::Calibration).abs_diff(4_000) < 230 && count(Part::HeldOut).abs_diff(2_000) < 170);
        let fewer: Vec<u64> = (0..20_000).filter(|row| part(&smaller, *row) == Part::Calibration).collect();
        assert!(fewer.len().abs_diff(1_000) < 130);
        assert!(fewer.iter().all(|row| part(&base, *row) == Part::Calibration));
    }
}
