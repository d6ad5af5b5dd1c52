//! Rows to train on, rows to stop by, rows to calibrate with.

use std::sync::Arc;

use aefusion_udfs::model::metadata::Classes;
use datafusion::arrow::array::{Array, AsArray, RecordBatch, StringArray, UInt32Array, UInt64Array};
use datafusion::arrow::compute::{cast, take_record_batch};
use datafusion::arrow::datatypes::{DataType, UInt32Type};
use datafusion::common::{exec_err, plan_err};
use datafusion::error::Result;
use datafusion::execution::DiskManager;
use rand::RngExt;

use super::config::Config;
use super::design::Design;
use super::fit::generator;
use super::samples::{NO_LABEL, Samples, SamplesWriter};
use super::table::{Known, LONGEST_LEVEL, Table, UNCOUNTED};
use crate::narrow::to_usize;

/// Rows that are held out at most, of each kind: more make nothing more certain.
const MOST_HELD_OUT: usize = 50_000;

/// Most classes of a classifier.
const MOST_CLASSES: usize = 10_000;

/// The labels of a classifier.
#[derive(Debug, Clone)]
pub(super) struct Labels {
    /// Their column in the table.
    pub(super) column: usize,
    pub(super) classes: Classes,
    /// For each number of a text its class.
    places: Vec<u32>,
}

impl Labels {
    /// The classes that a column holds, in their order: numbers by size, texts by letters.
    ///
    /// # Errors
    /// A planning error if there is no such column, an execution error if it cannot hold labels.
    pub(super) fn of(table: &Table, label: &str) -> Result<Self> {
        let Some(column) = table.columns.iter().position(|column| column.name == label) else {
            let names: Vec<&str> = table.columns.iter().map(|column| column.name.as_str()).collect();
            return plan_err!(
                "input_label_cols names \"{label}\", and the query has no such column{}; it has {}",
                aefusion_udfs::near::hint(label, names.iter().copied()),
                names.join(", ")
            );
        };
        let Known::Texts(texts) = &table.columns[column].known else {
            return exec_err!("labels are read as text");
        };
        let data_type = match &table.columns[column].data_type {
            DataType::Dictionary(_, value) => value.as_ref(),
            other => other,
        };
        if data_type.is_floating() {
            return plan_err!(
                "column \"{label}\" is {data_type}, and labels are classes, not measurements; CAST it to a whole number or to \
                 text"
            );
        }
        let n = texts.names.len();
        if n == 0 && texts.uncounted == 0 {
            return exec_err!("column \"{label}\" is NULL in every row, and a classifier learns from labels");
        }
        if n < 2 || texts.uncounted > 0 || n > MOST_CLASSES {
            let found = if texts.uncounted > 0 { "more".to_owned() } else { n.to_string() };
            return exec_err!("column \"{label}\" must hold from 2 to {MOST_CLASSES} different labels; found {found}");
        }
        let names = StringArray::from_iter_values(texts.names.iter());
        let typed = cast(&names, data_type)?;
        let order = datafusion::arrow::compute::sort_to_indices(&typed, None, None)?;
        let mut places = vec![NO_LABEL; n];
        for (place, number) in order.values().iter().enumerate() {
            places[*number as usize] = u32::try_from(place).unwrap_or(NO_LABEL);
        }
        let labels = order.values().iter().map(|number| texts.names[*number as usize].to_string()).collect();
        let classes = Classes { column: label.to_owned(), type_name: data_type.to_string(), labels };
        Ok(Self { column, classes, places })
    }

    fn place(&self, number: Option<u32>) -> Option<u32> {
        number.map(|number| self.places[number as usize])
    }
}

/// How many rows go where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Split {
    rows: usize,
    seed: u64,
    pub(super) train: usize,
    held_out: usize,
    calibration: usize,
}

impl Split {
    /// Rows to calibrate on stay in memory, so that they take a quarter of it at most.
    pub(super) fn of(table: &Table, config: &Config, memory: usize) -> Self {
        let rows = table.rows;
        let in_memory = memory / 4 / (table.columns.len().max(1) * size_of::<f64>());
        let share = |fraction: f64| to_usize(rows as f64 * fraction).min(MOST_HELD_OUT);
        let held_out = share(config.eval_fraction);
        let calibration = share(config.calibration_fraction).min(in_memory.max(1));
        let train = rows.saturating_sub(held_out + calibration).max(1);
        let rest = rows - train;
        let held_out = held_out.min(rest);
        Self { rows, seed: config.fit.seed, train, held_out, calibration: calibration.min(rest - held_out) }
    }
}

/// The rows of a table, each in one part.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) train: Samples,
    /// Rows that stopping is decided on.
    pub(super) held_out: Samples,
    /// Rows that nothing was decided on, as the table holds them.
    pub(super) calibration: Vec<RecordBatch>,
    /// Some of the rows that stopping is decided on, as the table holds them; of any rows, if there are none.
    pub(super) some: Vec<RecordBatch>,
    /// The texts behind the numbers of each column.
    pub(super) texts: Vec<Vec<Arc<str>>>,
}

/// Deals the rows out at random, just as many to each part as `split` says.
///
/// # Errors
/// An execution error if temporary files fail.
pub(super) fn split(
    table: Table,
    design: &Design,
    columns: &[usize],
    labels: Option<&Labels>,
    split: &Split,
    memory: usize,
    disk: &Arc<DiskManager>,
) -> Result<Parts> {
    const SOME: usize = 1024;
    let writer = || SamplesWriter::new(design.fill(), labels.is_some(), memory, Arc::clone(disk));
    let (mut train, mut held_out) = (writer(), writer());
    train.reserve(split.train);
    held_out.reserve(split.held_out);
    let mut rng = generator(split.seed, &[0]);
    let (mut left, mut to_hold_out, mut to_calibrate) = (split.rows, split.held_out, split.calibration);
    let (mut calibration, mut some, mut compared) = (Vec::new(), Vec::new(), 0);
    let mut scaled = Vec::new();
    let columns_known = table.drain(|batch| {
        design.encode(&batch, columns, &mut scaled);
        let classes: Option<&UInt32Array> =
            labels.map(|labels| batch.column(labels.column).as_primitive::<UInt32Type>());
        let (mut calibrating, mut holding): (Vec<u64>, Vec<u64>) = (Vec::new(), Vec::new());
        for (i, row) in scaled.chunks_exact(design.width).enumerate() {
            let label = match (labels, classes) {
                (Some(labels), Some(classes)) => labels.place(classes.is_valid(i).then(|| classes.value(i))),
                _ => None,
            };
            // Knuth, The Art of Computer Programming, 3.4.2, algorithm S, for two samples at once
            let draw = rng.random_range(0..left);
            left -= 1;
            if draw < to_hold_out {
                to_hold_out -= 1;
                held_out.push(row, label)?;
                if compared + holding.len() < SOME {
                    holding.push(i as u64);
                }
            } else if draw < to_hold_out + to_calibrate {
                to_calibrate -= 1;
                calibrating.push(i as u64);
            } else {
                train.push(row, label)?;
            }
        }
        if !holding.is_empty() {
            compared += holding.len();
            some.push(take_record_batch(&batch, &UInt64Array::from(holding))?);
        } else if split.held_out == 0 && some.is_empty() {
            some.push(batch.slice(0, batch.num_rows().min(SOME)));
        }
        if !calibrating.is_empty() {
            calibration.push(take_record_batch(&batch, &UInt64Array::from(calibrating))?);
        }
        Ok(())
    })?;
    let texts = columns_known.into_iter().map(|column| match column.known {
        Known::Texts(texts) => texts.names,
        Known::Numbers(_) => Vec::new(),
    });
    Ok(Parts { train: train.finish()?, held_out: held_out.finish()?, calibration, some, texts: texts.collect() })
}

impl Parts {
    /// Columns of a batch as the exported file takes them.
    pub(super) fn inputs(&self, batch: &RecordBatch, columns: &[usize]) -> Vec<Arc<dyn Array>> {
        // longer than any level
        let other = "?".repeat(LONGEST_LEVEL + 1);
        let input = |column: &usize| -> Arc<dyn Array> {
            let array = batch.column(*column);
            match array.as_primitive_opt::<UInt32Type>() {
                None => Arc::clone(array),
                Some(numbers) => {
                    let texts = &self.texts[*column];
                    let text = |number: u32| if number == UNCOUNTED { other.as_str() } else { &texts[number as usize] };
                    Arc::new(numbers.iter().map(|number| number.map(text)).collect::<StringArray>())
                }
            }
        };
        columns.iter().map(input).collect()
    }
}
