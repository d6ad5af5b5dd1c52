//! Rows in the scaled space: in memory, or, beyond a budget, in a temporary Arrow file that is read back in shuffled
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

use super::gradient::Rows;
use super::noise::Extremes;
use super::spill::{Spilled, Writer};

/// The label of a row that has none.
pub(super) const NO_LABEL: u32 = u32::MAX;

/// Bytes of one block of a file.
const BLOCK_BYTES: usize = 8 << 20;

/// Rows, their labels if they have some, and where they are kept.
#[derive(Debug)]
pub(super) struct Samples {
    width: usize,
    n: usize,
    /// What a network reads in place of a missing value, one number a column.
    fill: Vec<f32>,
    extremes: Extremes,
    store: Store,
}

#[derive(Debug)]
enum Store {
    Memory(Block),
    File {
        spilled: Spilled,
        /// Blocks that are held in memory, and shuffled together, at a time; the next ones are read meanwhile.
        together: usize,
    },
}

/// Some rows in memory.
#[derive(Debug, Default)]
struct Block {
    values: Vec<f32>,
    labels: Vec<u32>,
}

impl Samples {
    /// Number of rows.
    pub(super) fn len(&self) -> usize {
        self.n
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    pub(super) fn extremes(&self) -> &Extremes {
        &self.extremes
    }

    /// Gives all rows, a part at a time, until `visit` says that it is enough: with `shuffle` in an order of its own, in
    /// which `visit` gets the numbers of the part's rows.
    ///
    /// # Errors
    /// Those of `visit`, and an execution error if the file cannot be read back.
    pub(super) fn visit(
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
    for block in blocks {
        reader.set_index(*block)?;
        let Some(batch) = reader.next().transpose()? else {
            return internal_err!("block {block} of the rows for training is gone");
        };
        let values = batch.column(0).as_fixed_size_list().values().as_primitive::<Float32Type>();
        read.values.extend_from_slice(values.values());
        if let Some(labels) = batch.columns().get(1) {
            read.labels.extend_from_slice(labels.as_primitive::<UInt32Type>().values());
        }
    }
    Ok(read)
}

/// Collects [`Samples`].
#[derive(Debug)]
pub(super) struct SamplesWriter {
    width: usize,
    n: usize,
    fill: Vec<f32>,
    extremes: Extremes,
    has_labels: bool,
    budget: usize,
    disk: Arc<DiskManager>,
    /// Rows that are not in the file.
    pending: Block,
    file: Option<Writer>,
}

impl SamplesWriter {
    /// For rows as wide as `fill`, which holds what a network reads in place of a missing value; `budget` are the bytes
    /// up to which they stay in memory.
    pub(super) fn new(fill: Vec<f32>, has_labels: bool, budget: usize, disk: Arc<DiskManager>) -> Self {
        let width = fill.len();
        let extremes = Extremes::new(width);
        Self { width, n: 0, fill, extremes, has_labels, budget, disk, pending: Block::default(), file: None }
    }

    /// Makes room for so many rows, or for those that stay in memory: what grows by doubling would take twice as much.
    pub(super) fn reserve(&mut self, rows: usize) {
        let most = self.budget / size_of::<f32>() + self.width;
        self.pending.values.reserve_exact(rows.saturating_mul(self.width).min(most));
    }

    /// Adds a row.
    ///
    /// # Errors
    /// An execution error if the file cannot be written.
    pub(super) fn push(&mut self, row: &[f32], label: Option<u32>) -> Result<()> {
        self.pending.values.extend_from_slice(row);
        self.extremes.add(row);
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

    /// Writes what is pending to the file.
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
            return internal_err!("rows are lists");
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

    /// The rows that were added.
    ///
    /// # Errors
    /// An execution error if the file cannot be written.
    pub(super) fn finish(mut self) -> Result<Samples> {
        if self.file.is_some() && !self.pending.values.is_empty() {
            self.spill()?;
        }
        let store = match self.file {
            None => Store::Memory(self.pending),
            // one part is trained on while the next is read, and a third may wait for it
            Some(writer) => Store::File { spilled: writer.finish()?, together: (self.budget / 3 / BLOCK_BYTES).max(1) },
        };
        Ok(Samples { width: self.width, n: self.n, fill: self.fill, extremes: self.extremes, store })
    }
}
