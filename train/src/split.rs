//! Splits the rows into training, held-out and calibration sets.

use std::sync::Arc;

use datafusion::arrow::array::{Array, AsArray, RecordBatch, StringArray, UInt64Array};
use datafusion::arrow::compute::take_record_batch;
use datafusion::arrow::datatypes::UInt32Type;
use datafusion::common::exec_err;
use datafusion::error::Result;
use datafusion::execution::DiskManager;

use crate::dataset::{Dataset, DatasetWriter};
use crate::deal::{Deal, classes};
use crate::design::Design;
use crate::ingest::{LONGEST_LEVEL, Profile, Table, UNCOUNTED};
use crate::labels::Labels;
use crate::rule::Part;
use crate::watch::{Watch, check};

/// Bytes for the rows of each set.
#[derive(Debug, Clone, Copy)]
struct Memory {
    train: usize,
    held_out: usize,
}

impl Memory {
    /// Shares `bytes` among the sets. Some are already taken: by the rows as the query returned them, and by calibration rows.
    fn of(bytes: usize, taken: usize, held_out_rows: usize) -> Self {
        let left = bytes.saturating_sub(taken).max(bytes / 8);
        let held_out = held_out_rows.min(left / 4);
        Self { train: left - held_out, held_out }
    }
}

/// Bytes of a row of a table in memory.
fn row_bytes(table: &Table) -> usize {
    (table.columns.len() + 2) * size_of::<f64>()
}

/// The most calibration rows: they stay in memory, and take a quarter of the `bytes` at most.
pub(crate) fn most_calibration_rows(bytes: usize, table: &Table) -> usize {
    (bytes / 4 / row_bytes(table)).max(1)
}

/// The three sets. Each row of the table is in one of them, or is set aside and not needed.
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

/// Splits the rows into training, held-out and calibration sets. Together, they take `bytes` bytes of memory at most.
///
/// # Errors
/// An execution error if temporary files fail, or if the training was aborted.
#[allow(clippy::too_many_arguments, reason = "the parts of a training before its rows are scaled")]
pub(crate) fn split(
    table: Table,
    deal: &Deal,
    design: &Design,
    columns: &[usize],
    labels: Option<&Labels>,
    bytes: usize,
    disk: &Arc<DiskManager>,
    watch: &dyn Watch,
) -> Result<Parts> {
    const PARITY_ROWS: usize = 1024;
    let writer = |bytes: usize| DatasetWriter::new(design.fill(), labels.is_some(), bytes, Arc::clone(disk));
    let taken = table.in_memory + deal.calibration * row_bytes(&table);
    let memory = Memory::of(bytes, taken, deal.held_out * design.width * size_of::<f32>());
    let most_calibration = most_calibration_rows(bytes, &table);
    let (mut train, mut held_out) = (writer(memory.train), writer(memory.held_out));
    train.reserve(deal.train);
    held_out.reserve(deal.held_out);
    let (mut calibration, mut parity_rows, mut compared, mut calibrated) = (Vec::new(), Vec::new(), 0, 0);
    let mut scaled = Vec::new();
    let drained = table.drain(|table, batch| {
        check(watch)?;
        design.encode(&batch, columns, &mut scaled);
        check_scales(&scaled, design)?;
        let classes = classes(labels, &batch);
        let (mut calibrating, mut holding): (Vec<u64>, Vec<u64>) = (Vec::new(), Vec::new());
        let parts = deal.parts(table, &batch, &classes);
        for (i, (row, part)) in scaled.chunks_exact(design.width).zip(parts).enumerate() {
            let label = classes.get(i).copied().flatten();
            match part {
                None => {}
                Some(Part::Train) => train.push(row, label)?,
                Some(Part::HeldOut) => {
                    held_out.push(row, label)?;
                    if compared + holding.len() < PARITY_ROWS {
                        holding.push(i as u64);
                    }
                }
                // the sample of calibration rows has about the wanted size, unless most rows are equal
                Some(Part::Calibration) if calibrated + calibrating.len() < most_calibration + most_calibration / 4 => {
                    calibrating.push(i as u64);
                }
                Some(Part::Calibration) => {}
            }
        }
        if !holding.is_empty() {
            compared += holding.len();
            parity_rows.push(take_record_batch(&batch, &UInt64Array::from(holding))?);
        } else if deal.held_out == 0 && parity_rows.is_empty() {
            parity_rows.push(batch.slice(0, batch.num_rows().min(PARITY_ROWS)));
        }
        if !calibrating.is_empty() {
            calibrated += calibrating.len();
            calibration.push(take_record_batch(&batch, &UInt64Array::from(calibrating))?);
        }
        Ok(())
    })?;
    let texts = drained.into_iter().map(|column| match column.profile {
        Profile::Texts(texts) => texts.names,
        Profile::Numbers(_) => Vec::new(),
    });
    let train = train.finish()?;
    // noise goes to the extremes of the training rows, in all sets
    let held_out = held_out.finish()?.with_extremes_of(&train);
    Ok(Parts { train, held_out, calibration, parity_rows, texts: texts.collect() })
}

/// Checks that scaled values are finite. With the scales of an existing model, values of another size may not be.
///
/// # Errors
/// An execution error with the first column that does not fit.
fn check_scales(scaled: &[f32], design: &Design) -> Result<()> {
    match scaled.iter().position(|value| value.is_infinite()).and_then(|at| design.feature_of(at % design.width)) {
        None => Ok(()),
        Some(feature) => exec_err!(
            "column \"{}\" has values that do not fit the scale of the model: mean and deviation are of rows of another size; \
             train without warm_start and base_model",
            feature.name
        ),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_sets_share_one_budget() {
        let sizes = |taken, held_out| {
            let Memory { train, held_out } = Memory::of(1_000, taken, held_out);
            (train, held_out)
        };
        assert_eq!(sizes(0, 100), (900, 100));
        assert_eq!(sizes(500, 100), (400, 100));
        assert_eq!(sizes(500, 10_000), (375, 125), "held-out rows are in a file before training rows are");
        assert_eq!(sizes(750, 10), (240, 10));
        assert_eq!(sizes(5_000, 10), (115, 10), "an eighth is left in any case");
    }
}
