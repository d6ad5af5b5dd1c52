//! Rows in the scaled space. Beyond a budget of memory, they are in a temporary Arrow file, and are read back in shuffled
//! blocks.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use datafusion::arrow::array::{ArrayRef, AsArray, FixedSizeListArray, Float32Array, RecordBatch, UInt32Array};
use datafusion::arrow::buffer::ScalarBuffer;
use datafusion::arrow::datatypes::{DataType, Field, Float32Type, Schema, SchemaRef, UInt32Type};
use datafusion::arrow::ipc::reader::FileReader;
use datafusion::common::internal_err;
use datafusion::error::Result;
use datafusion::execution::DiskManager;
use rand::seq::SliceRandom;
use rand_pcg::Pcg64Mcg;

use crate::gradient::Rows;
use crate::noise::Extremes;
use crate::spill::{Spilled, Writer};

/// The label of a row without one.
pub(crate) const NO_LABEL: u32 = u32::MAX;

/// Bytes of one block of the file.
const BLOCK_BYTES: usize = 8 << 20;

/// Rows with their labels, in memory or in a temporary file.
#[derive(Debug)]
pub(crate) struct Dataset {
    width: usize,
    n: usize,
    /// The value that a network reads instead of a missing one, for each column.
    fill: Vec<f32>,
    extremes: Extremes,
    has_missing: bool,
    store: Store,
}

#[derive(Debug)]
enum Store {
    Memory(Block),
    File {
        spilled: Spilled,
        /// Number of blocks that are in memory, and shuffled, together. The next blocks are read meanwhile.
        together: usize,
    },
}

/// Some rows in memory.
#[derive(Debug, Default)]
struct Block {
    values: Vec<f32>,
    labels: Vec<u32>,
}

impl Dataset {
    /// Number of rows.
    pub(crate) fn len(&self) -> usize {
        self.n
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    pub(crate) fn extremes(&self) -> &Extremes {
        &self.extremes
    }

    /// The same rows with the extremes of the rows of `other`.
    pub(crate) fn with_extremes_of(self, other: &Self) -> Self {
        Self { extremes: other.extremes.clone(), ..self }
    }

    /// Whether a value is missing.
    pub(crate) fn has_missing(&self) -> bool {
        self.has_missing
    }

    /// Visits all rows part by part, until `visit` returns false. `visit` receives the rows of a part, and their indices in
    /// the order to use: shuffled with `shuffle`, in the order of the file otherwise. Rows in memory are one part.
    ///
    /// # Errors
    /// Those of `visit`, and an execution error if the file cannot be read back.
    pub(crate) fn visit(
        &self,
        mut shuffle: Option<&mut Pcg64Mcg>,
        mut visit: impl FnMut(&Rows<'_>, &[u32]) -> Result<bool>,
    ) -> Result<()> {
        let mut part = |block: &Block, shuffle: Option<&mut Pcg64Mcg>| {
            let n = u32::try_from(block.values.len() / self.width.max(1)).unwrap_or(u32::MAX);
            let mut indices: Vec<u32> = (0..n).collect();
            if let Some(rng) = shuffle {
                indices.shuffle(rng);
            }
            let rows = Rows {
                values: &block.values,
                width: self.width,
                fill: &self.fill,
                extremes: &self.extremes,
                labels: &block.labels,
            };
            visit(&rows, &indices)
        };
        let (spilled, together) = match &self.store {
            Store::Memory(block) => return part(block, shuffle).map(drop),
            Store::File { spilled, together } => (spilled, *together),
        };
        let mut order: Vec<usize> = (0..spilled.batches).collect();
        if let Some(rng) = shuffle.as_deref_mut() {
            order.shuffle(rng);
        }
        std::thread::scope(|scope| {
            let (sender, receiver) = sync_channel(0);
            scope.spawn(move || {
                for group in order.chunks(together) {
                    let block = spilled.open().and_then(|mut reader| read_blocks(&mut reader, group));
                    let failed = block.is_err();
                    if sender.send(block).is_err() || failed {
                        return;
                    }
                }
            });
            for block in receiver {
                if !part(&block?, shuffle.as_deref_mut())? {
                    break;
                }
            }
            Ok(())
        })
    }
}

fn read_blocks(reader: &mut FileReader<File>, blocks: &[usize]) -> Result<Block> {
    let mut read = Block::default();
    // a vector that grows by doubling would take twice as much
    read.values.reserve_exact(blocks.len() * BLOCK_BYTES / size_of::<f32>());
    for block in blocks {
        reader.set_index(*block)?;
        let Some(batch) = reader.next().transpose()? else {
            return internal_err!("block {block} of the temporary file of training rows is missing");
        };
        let values = batch.column(0).as_fixed_size_list().values().as_primitive::<Float32Type>();
        read.values.extend_from_slice(values.values());
        if let Some(labels) = batch.columns().get(1) {
            read.labels.extend_from_slice(labels.as_primitive::<UInt32Type>().values());
        }
    }
    Ok(read)
}

/// Collects the rows of a [`Dataset`].
#[derive(Debug)]
pub(crate) struct DatasetWriter {
    width: usize,
    n: usize,
    fill: Vec<f32>,
    extremes: Extremes,
    has_missing: bool,
    has_labels: bool,
    budget: usize,
    disk: Arc<DiskManager>,
    /// Rows that are not in the file yet.
    pending: Block,
    file: Option<Writer>,
}

impl DatasetWriter {
    /// A writer for rows as wide as `fill`, the values that a network reads instead of missing ones. Rows stay in memory up
    /// to `budget` bytes.
    pub(crate) fn new(fill: Vec<f32>, has_labels: bool, budget: usize, disk: Arc<DiskManager>) -> Self {
        let width = fill.len();
        let extremes = Extremes::new(width);
        Self {
            width,
            n: 0,
            fill,
            extremes,
            has_missing: false,
            has_labels,
            budget,
            disk,
            pending: Block::default(),
            file: None,
        }
    }

    /// Reserves memory for `rows` rows, at most for the budget. A vector that grows by doubling would take twice as much.
    pub(crate) fn reserve(&mut self, rows: usize) {
        let most = self.budget / size_of::<f32>() + self.width;
        self.pending.values.reserve_exact(rows.saturating_mul(self.width).min(most));
    }

    /// Adds a row.
    ///
    /// # Errors
    /// An execution error if the file cannot be written.
    pub(crate) fn push(&mut self, row: &[f32], label: Option<u32>) -> Result<()> {
        self.pending.values.extend_from_slice(row);
        self.extremes.add(row);
        self.has_missing |= row.iter().any(|value| value.is_nan());
        if self.has_labels {
            self.pending.labels.push(label.unwrap_or(NO_LABEL));
        }
        self.n += 1;
        let bytes = self.pending.values.len() * size_of::<f32>();
        let is_full = match self.file {
            None => bytes > self.budget,
            Some(_) => bytes >= BLOCK_BYTES,
        };
        if is_full { self.spill() } else { Ok(()) }
    }

    fn schema(&self) -> SchemaRef {
        let width = i32::try_from(self.width).unwrap_or(i32::MAX);
        let mut fields = vec![Field::new("row", DataType::new_fixed_size_list(DataType::Float32, width, false), false)];
        if self.has_labels {
            fields.push(Field::new("label", DataType::UInt32, false));
        }
        Arc::new(Schema::new(fields))
    }

    /// Writes the pending rows to the file.
    fn spill(&mut self) -> Result<()> {
        let schema = self.schema();
        let mut writer = match self.file.take() {
            Some(writer) => writer,
            None => Writer::new(&self.disk, &schema)?,
        };
        let block_rows = (BLOCK_BYTES / (self.width * size_of::<f32>()).max(1)).max(1);
        let pending = std::mem::take(&mut self.pending);
        let rows = pending.values.len() / self.width.max(1);
        let values: ScalarBuffer<f32> = pending.values.into();
        let labels: ScalarBuffer<u32> = pending.labels.into();
        for start in (0..rows).step_by(block_rows) {
            let range = start..(start + block_rows).min(rows);
            writer.write(&self.batch(&schema, &values, &labels, range)?)?;
        }
        self.file = Some(writer);
        Ok(())
    }

    fn batch(
        &self,
        schema: &SchemaRef,
        values: &ScalarBuffer<f32>,
        labels: &ScalarBuffer<u32>,
        rows: Range<usize>,
    ) -> Result<RecordBatch> {
        let DataType::FixedSizeList(item, width) = schema.field(0).data_type() else {
            return internal_err!("training rows must be lists of one length");
        };
        let values = values.slice(rows.start * self.width, rows.len() * self.width);
        let values = Arc::new(Float32Array::new(values, None));
        let mut columns: Vec<ArrayRef> =
            vec![Arc::new(FixedSizeListArray::try_new(Arc::clone(item), *width, values, None)?)];
        if self.has_labels {
            columns.push(Arc::new(UInt32Array::new(labels.slice(rows.start, rows.len()), None)));
        }
        Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
    }

    /// Completes the dataset.
    ///
    /// # Errors
    /// An execution error if the file cannot be written.
    pub(crate) fn finish(mut self) -> Result<Dataset> {
        if self.file.is_some() && !self.pending.values.is_empty() {
            self.spill()?;
        }
        let store = match self.file {
            None => Store::Memory(self.pending),
            // one part is trained on while the next is read, and a third may wait to be received
            Some(writer) => Store::File { spilled: writer.finish()?, together: (self.budget / 3 / BLOCK_BYTES).max(1) },
        };
        let Self { width, n, fill, extremes, has_missing, .. } = self;
        Ok(Dataset { width, n, fill, extremes, has_missing, store })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::float_cmp, reason = "tests; whole numbers are exact")]
mod tests {
    use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};

    use super::*;
    use crate::fit::generator;

    const WIDTH: usize = 64;
    const ROWS: u32 = 100_000;

    /// Rows that begin with their number, and have it as their label.
    fn written(budget: usize, disk: &Arc<DiskManager>) -> Result<Dataset> {
        let mut writer = DatasetWriter::new(vec![0.0; WIDTH], true, budget, Arc::clone(disk));
        for number in 0..ROWS {
            let mut row = [0.5; WIDTH];
            row[0] = aefusion_udfs::numbers::to_f32(f64::from(number));
            writer.push(&row, Some(number))?;
        }
        writer.finish()
    }

    /// The labels in the order of a visit; each must be that of its row.
    fn visited(dataset: &Dataset, mut shuffle: Option<Pcg64Mcg>) -> (Vec<u32>, usize) {
        let (mut labels, mut parts) = (Vec::new(), 0);
        dataset
            .visit(shuffle.as_mut(), |rows, indices| {
                parts += 1;
                for index in indices {
                    let label = rows.labels[*index as usize];
                    assert_eq!(f64::from(rows.values[*index as usize * WIDTH]), f64::from(label));
                    labels.push(label);
                }
                Ok(true)
            })
            .unwrap();
        (labels, parts)
    }

    #[test]
    fn rows_beyond_the_budget_are_on_disk_and_come_back() {
        let disk = Arc::new(DiskManager::builder().build().unwrap());
        let in_memory = written(usize::MAX, &disk).unwrap();
        assert_eq!(disk.used_disk_space(), 0);
        let spilled = written(1 << 20, &disk).unwrap();
        let bytes = u64::from(ROWS) * (WIDTH as u64 + 1) * 4;
        assert!((bytes..bytes + bytes / 50).contains(&disk.used_disk_space()), "{} of {bytes}", disk.used_disk_space());

        let all: Vec<u32> = (0..ROWS).collect();
        assert_eq!(visited(&in_memory, None), (all.clone(), 1));
        let (labels, parts) = visited(&spilled, None);
        assert!(labels == all && parts == 4, "{parts} parts: 1 MiB, then blocks of 8 MiB");
        let (first, _) = visited(&spilled, Some(generator(1, &[0])));
        let (second, _) = visited(&spilled, Some(generator(1, &[1])));
        assert!(first != second && first != all);
        for mut shuffled in [first, second] {
            shuffled.sort_unstable();
            assert!(shuffled == all, "each row once");
        }
        drop(spilled);
        assert_eq!(disk.used_disk_space(), 0, "the file is deleted");
    }

    #[test]
    fn without_temporary_files_an_error_names_the_setting() {
        let disk = DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled).build().unwrap();
        let error = written(1 << 20, &Arc::new(disk)).unwrap_err().to_string();
        assert!(error.contains("ae.train_memory") && error.contains("DiskManager is disabled"), "{error}");
    }
}
