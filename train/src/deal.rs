//! Decides the part of each row, and profiles the training rows.

use datafusion::arrow::array::{AsArray, BooleanArray, RecordBatch};
use datafusion::arrow::compute::filter;
use datafusion::arrow::datatypes::{Float64Type, UInt32Type};
use datafusion::common::exec_err;
use datafusion::error::Result;

use aefusion_udfs::numbers::rounded;

use crate::config::SplitBy;
use crate::ingest::{Groups, Numbers, Profile, Table, UNCOUNTED};
use crate::key::{mix, uniform};
use crate::labels::Labels;
use crate::rule::{Part, Rule};
use crate::watch::{Watch, check};

/// Largest number of held-out rows, and of calibration rows; more rows would add little certainty.
const MOST_HELD_OUT: usize = 50_000;

/// Rows from which the times of a split are taken.
const TIMES: usize = 1 << 20;

/// Classes with more rows are not split by class: the shares of their parts are near the options anyway.
const RARE: usize = 1_000;

/// The uses of hashes of keys.
const SPLIT: u64 = 0;
const SAMPLE: u64 = 1;

/// The values of a column in the training rows.
#[derive(Debug, Clone)]
pub(crate) enum Seen {
    Numbers(Numbers),
    /// For each number of a text, its rows.
    Texts(Vec<usize>),
}

/// The parts of all rows of a table.
#[derive(Debug, Clone)]
pub(crate) struct Deal {
    pub(crate) rule: Rule,
    /// For each class, the hash below which its rows are held out; none where the rule decides.
    cuts: Vec<Option<f64>>,
    /// Share of the held-out rows and of the calibration rows that are used.
    kept: [f64; 2],
    /// Training rows.
    pub(crate) train: usize,
    /// Held-out rows that are used, about.
    pub(crate) held_out: usize,
    /// Calibration rows that are used, about.
    pub(crate) calibration: usize,
    /// For each class, its training rows.
    pub(crate) of_class: Vec<usize>,
    /// The training rows, column by column.
    pub(crate) seen: Vec<Seen>,
}

impl Deal {
    /// Deals the rows of a table, at most `most_calibration` for the calibration.
    ///
    /// # Errors
    /// An execution error if the rows cannot be read back, if a class has no training row, or if the training was aborted.
    pub(crate) fn of(
        table: &Table,
        mut rule: Rule,
        labels: Option<&Labels>,
        most_calibration: usize,
        watch: &dyn Watch,
    ) -> Result<Self> {
        if let SplitBy::Time(_) = rule.by {
            rule.cut_times(&times(table)?, table.last);
        }
        let cuts = match labels {
            Some(labels) if rule.by == SplitBy::Row => class_cuts(table, &rule, labels)?,
            _ => Vec::new(),
        };
        let deal = Self {
            rule,
            cuts,
            kept: [1.0; 2],
            train: 0,
            held_out: 0,
            calibration: 0,
            of_class: Vec::new(),
            seen: Vec::new(),
        };
        let mut deal = match deal.counted(table, labels, most_calibration, watch)? {
            // a few rows, or equal ones
            Self { train: 0, rule, .. } => {
                let rule = rule.of_training_rows_alone();
                Self { rule, cuts: Vec::new(), ..deal }.counted(table, labels, most_calibration, watch)?
            }
            deal => deal,
        };
        deal.seen.shrink_to_fit();
        if let Some(labels) = labels {
            deal.check_classes(labels)?;
        }
        Ok(deal)
    }

    /// Counts the rows of the parts, and profiles the training rows.
    fn counted(
        &self,
        table: &Table,
        labels: Option<&Labels>,
        most_calibration: usize,
        watch: &dyn Watch,
    ) -> Result<Self> {
        let mut deal = Self { of_class: vec![0; labels.map_or(0, Labels::count)], ..self.clone() };
        let seen = |column: &Profile| match column {
            Profile::Numbers(_) => Seen::Numbers(Numbers::default()),
            Profile::Texts(texts) => Seen::Texts(vec![0; texts.names.len()]),
        };
        deal.seen = table.columns.iter().map(|column| seen(&column.profile)).collect();
        let (mut held_out, mut calibration) = (0, 0);
        table.visit(|batch| {
            check(watch)?;
            let classes = classes(labels, batch);
            let parts = self.parts(table, batch, &classes);
            let is_train: Vec<bool> = parts.iter().map(|part| *part == Some(Part::Train)).collect();
            deal.train += is_train.iter().filter(|is_train| **is_train).count();
            held_out += parts.iter().filter(|part| **part == Some(Part::HeldOut)).count();
            calibration += parts.iter().filter(|part| **part == Some(Part::Calibration)).count();
            for class in
                classes.iter().zip(&is_train).filter(|(_, is_train)| **is_train).filter_map(|(class, _)| *class)
            {
                deal.of_class[class as usize] += 1;
            }
            let mask = BooleanArray::from(is_train.clone());
            for (seen, array) in deal.seen.iter_mut().zip(batch.columns()) {
                match seen {
                    Seen::Numbers(numbers) => numbers.add(filter(array, &mask)?.as_primitive::<Float64Type>()),
                    Seen::Texts(counts) => {
                        let numbers = array.as_primitive::<UInt32Type>().iter().zip(&is_train);
                        for number in numbers.filter(|(_, is_train)| **is_train).filter_map(|(number, _)| number) {
                            if number != UNCOUNTED {
                                counts[number as usize] += 1;
                            }
                        }
                    }
                }
            }
            Ok(())
        })?;
        let kept = |rows: usize, most: usize| if rows > most { most as f64 / rows as f64 } else { 1.0 };
        deal.kept = [kept(held_out, MOST_HELD_OUT), kept(calibration, MOST_HELD_OUT.min(most_calibration))];
        deal.held_out = rounded(held_out as f64 * deal.kept[0]);
        deal.calibration = rounded(calibration as f64 * deal.kept[1]);
        Ok(deal)
    }

    /// The part of each row of a batch with these classes; none for a row that is set aside and not needed.
    pub(crate) fn parts(&self, table: &Table, batch: &RecordBatch, classes: &[Option<u32>]) -> Vec<Option<Part>> {
        let (keys, groups) = (table.keys(batch), table.groups(batch));
        let part = |i: usize| match groups {
            Groups::Times(times) => self.rule.part_by_time(times[i]),
            Groups::Keys(groups) => {
                let hash = self.rule.hash(groups[i], SPLIT);
                let class = classes.get(i).copied().flatten();
                let cut = class.and_then(|class| self.cuts.get(class as usize).copied().flatten());
                match (self.rule.part_by_hash(hash), cut) {
                    (Part::Calibration, _) => Part::Calibration,
                    (_, Some(cut)) => {
                        if hash < cut {
                            Part::HeldOut
                        } else {
                            Part::Train
                        }
                    }
                    (part, None) => part,
                }
            }
        };
        let is_kept = |i: usize, part: Part| match part {
            Part::Train => true,
            Part::HeldOut => self.is_sampled(keys[i], self.kept[0]),
            Part::Calibration => self.is_sampled(keys[i], self.kept[1]),
        };
        (0..batch.num_rows()).map(|i| Some(part(i)).filter(|part| is_kept(i, *part))).collect()
    }

    fn is_sampled(&self, key: u64, share: f64) -> bool {
        share >= 1.0 || self.rule.hash(key, SAMPLE) < share
    }

    /// Checks that a network can learn each class.
    fn check_classes(&self, labels: &Labels) -> Result<()> {
        let missing = self.of_class.iter().zip(&labels.classes.labels).filter(|(rows, _)| **rows == 0);
        let missing: Vec<&str> = missing.map(|(_, label)| label.as_str()).collect();
        if let Some((first, others)) = missing.split_first() {
            let others = if others.is_empty() { String::new() } else { format!(" and {} others", others.len()) };
            return exec_err!(
                "label '{first}'{others} of column \"{}\" has no training row: all of its rows are held out or calibrate; \
                 add rows with this label, remove them with WHERE, or set calibration_share = 0",
                labels.classes.column
            );
        }
        Ok(())
    }
}

/// The class of each row of a batch; empty without labels.
pub(crate) fn classes(labels: Option<&Labels>, batch: &RecordBatch) -> Vec<Option<u32>> {
    labels.map_or_else(Vec::new, |labels| labels.of_rows(batch).collect())
}

/// The times of rows, ascending; of a sample of many rows.
fn times(table: &Table) -> Result<Vec<f64>> {
    let share = TIMES as f64 / table.rows as f64;
    let mut sample = Vec::with_capacity(table.rows.min(2 * TIMES));
    table.visit(|batch| {
        let Groups::Times(times) = table.groups(batch) else { return Ok(()) };
        let rows = times.iter().zip(table.keys(batch));
        // the time is part of the hash: equal rows have different times
        let is_sampled = |(time, key): &(&f64, &u64)| uniform(mix(**key, time.to_bits())) < share;
        sample.extend(rows.filter(is_sampled).map(|(time, _)| *time));
        Ok(())
    })?;
    sample.sort_by(f64::total_cmp);
    Ok(sample)
}

/// For each rare class, the hash below which its rows are held out. The share of these rows is exact, and at least one row
/// is left to train on.
fn class_cuts(table: &Table, rule: &Rule, labels: &Labels) -> Result<Vec<Option<f64>>> {
    let mut hashes: Vec<Vec<f64>> = vec![Vec::new(); labels.count()];
    table.visit(|batch| {
        let Groups::Keys(keys) = table.groups(batch) else { return Ok(()) };
        for (key, class) in keys.iter().zip(labels.of_rows(batch)) {
            let Some(hashes) = class.and_then(|class| hashes.get_mut(class as usize)) else { continue };
            let hash = rule.hash(*key, SPLIT);
            if hashes.len() <= RARE && rule.part_by_hash(hash) != Part::Calibration {
                hashes.push(hash);
            }
        }
        Ok(())
    })?;
    let share = rule.held_out / (1.0 - rule.calibration);
    let cut = |mut hashes: Vec<f64>| {
        if hashes.len() > RARE {
            return None;
        }
        hashes.sort_by(f64::total_cmp);
        let held_out = rounded(hashes.len() as f64 * share).min(hashes.len().saturating_sub(1));
        hashes.get(held_out).copied()
    };
    Ok(hashes.into_iter().map(cut).collect())
}
