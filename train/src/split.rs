//! Splits the rows into training, held-out and calibration sets.

use std::sync::Arc;

use aefusion_udfs::model::metadata::Classes;
use datafusion::arrow::array::{Array, AsArray, RecordBatch, StringArray, UInt32Array, UInt64Array};
use datafusion::arrow::compute::{cast, take_record_batch};
use datafusion::arrow::datatypes::{DataType, UInt32Type};
use datafusion::common::{exec_err, plan_err};
use datafusion::error::Result;
use datafusion::execution::DiskManager;
use rand::RngExt;

use crate::config::Config;
use crate::dataset::{Dataset, DatasetWriter, NO_LABEL};
use crate::design::Design;
use crate::fit::generator;
use crate::ingest::{LONGEST_LEVEL, Profile, Table, UNCOUNTED};
use aefusion_udfs::numbers::rounded;

/// Largest number of held-out rows, and of calibration rows; more rows would add little certainty.
const MOST_HELD_OUT: usize = 50_000;

/// Largest number of classes of a classifier.
const MOST_CLASSES: usize = 10_000;

/// The labels of a classifier.
#[derive(Debug, Clone)]
pub(crate) struct Labels {
    /// The column of the table that holds them.
    pub(crate) column: usize,
    pub(crate) classes: Classes,
    /// For each number of a text, its class.
    places: Vec<u32>,
}

impl Labels {
    /// The classes of a label column, in order: numbers by size, texts by letters.
    ///
    /// # Errors
    /// A planning error if there is no such column or it has a floating-point type. An execution error if it has too few or
    /// too many distinct labels.
    pub(crate) fn of(table: &Table, label: &str) -> Result<Self> {
        let Some(column) = table.columns.iter().position(|column| column.name == label) else {
            let names: Vec<&str> = table.columns.iter().map(|column| column.name.as_str()).collect();
            return plan_err!(
                "option input_label_cols: the query has no column \"{label}\"{}; its columns are {}",
                aefusion_udfs::suggest::hint(label, names.iter().copied()),
                names.join(", ")
            );
        };
        let Profile::Texts(texts) = &table.columns[column].profile else {
            return exec_err!("column \"{label}\" was not read as text");
        };
        let data_type = match &table.columns[column].data_type {
            DataType::Dictionary(_, value) => value.as_ref(),
            other => other,
        };
        if data_type.is_floating() {
            return plan_err!(
                "column \"{label}\" is {data_type}, but labels must be classes; CAST the column to an integer or to text"
            );
        }
        let n = texts.names.len();
        if n == 0 && texts.uncounted == 0 {
            return exec_err!("column \"{label}\" is NULL in every row; a classifier needs rows with labels");
        }
        if n < 2 || texts.uncounted > 0 || n > MOST_CLASSES {
            let found = if texts.uncounted > 0 { "more".to_owned() } else { n.to_string() };
            return exec_err!("column \"{label}\" must have from 2 to {MOST_CLASSES} distinct labels; found {found}");
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

/// The sizes of the three sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizes {
    rows: usize,
    seed: u64,
    pub(crate) train: usize,
    held_out: usize,
    calibration: usize,
}

impl Sizes {
    /// The sizes for a table. Calibration rows stay in memory, and take a quarter of `memory` (bytes) at most.
    pub(crate) fn of(table: &Table, config: &Config, memory: usize) -> Self {
        let rows = table.rows;
        let in_memory = memory / 4 / (table.columns.len().max(1) * size_of::<f64>());
        let share = |fraction: f64| rounded(rows as f64 * fraction).min(MOST_HELD_OUT);
        let held_out = share(config.eval_fraction);
        let calibration = share(config.calibration_share).min(in_memory.max(1));
        let train = rows.saturating_sub(held_out + calibration).max(1);
        let set_aside = rows - train;
        let held_out = held_out.min(set_aside);
        Self { rows, seed: config.fit.seed, train, held_out, calibration: calibration.min(set_aside - held_out) }
    }
}

/// The three sets. Each row of the table is in one of them.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) train: Dataset,
    /// Rows that decide when to stop.
    pub(crate) held_out: Dataset,
    /// Rows that took part in no decision, as the table holds them.
    pub(crate) calibration: Vec<RecordBatch>,
    /// Some held-out rows, as the table holds them, to compare the file with the network. Any rows if none are held out.
    pub(crate) parity_rows: Vec<RecordBatch>,
    /// For each column, the texts behind its numbers.
    pub(crate) texts: Vec<Vec<Arc<str>>>,
}

/// Splits the rows at random into training, held-out and calibration sets of the given sizes.
///
/// # Errors
/// An execution error if temporary files fail.
pub(crate) fn split(
    table: Table,
    design: &Design,
    columns: &[usize],
    labels: Option<&Labels>,
    sizes: &Sizes,
    memory: usize,
    disk: &Arc<DiskManager>,
) -> Result<Parts> {
    const PARITY_ROWS: usize = 1024;
    let writer = || DatasetWriter::new(design.fill(), labels.is_some(), memory, Arc::clone(disk));
    let (mut train, mut held_out) = (writer(), writer());
    train.reserve(sizes.train);
    held_out.reserve(sizes.held_out);
    let mut rng = generator(sizes.seed, &[0]);
    let (mut left, mut to_hold_out, mut to_calibrate) = (sizes.rows, sizes.held_out, sizes.calibration);
    let (mut calibration, mut parity_rows, mut compared) = (Vec::new(), Vec::new(), 0);
    let mut scaled = Vec::new();
    let drained = table.drain(|batch| {
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
                if compared + holding.len() < PARITY_ROWS {
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
            parity_rows.push(take_record_batch(&batch, &UInt64Array::from(holding))?);
        } else if sizes.held_out == 0 && parity_rows.is_empty() {
            parity_rows.push(batch.slice(0, batch.num_rows().min(PARITY_ROWS)));
        }
        if !calibrating.is_empty() {
            calibration.push(take_record_batch(&batch, &UInt64Array::from(calibrating))?);
        }
        Ok(())
    })?;
    let texts = drained.into_iter().map(|column| match column.profile {
        Profile::Texts(texts) => texts.names,
        Profile::Numbers(_) => Vec::new(),
    });
    Ok(Parts { train: train.finish()?, held_out: held_out.finish()?, calibration, parity_rows, texts: texts.collect() })
}

impl Parts {
    /// The columns of a batch as the exported file reads them.
    pub(crate) fn inputs(&self, batch: &RecordBatch, columns: &[usize]) -> Vec<Arc<dyn Array>> {
        // longer than any level: the file reads it as one of the others
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
