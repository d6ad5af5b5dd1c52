//! Reads the rows of a query once, and profiles their columns. Beyond a budget of memory, the rows go to a temporary Arrow
//! file.

use std::collections::HashMap;
use std::sync::Arc;

use aefusion_udfs::columns::ColumnKind;
use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, Float64Array, RecordBatch, StringViewArray, UInt32Array, UInt64Array,
};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, Float64Type, Schema, SchemaRef, UInt64Type};
use datafusion::common::{exec_err, plan_err};
use datafusion::error::Result;
use datafusion::execution::{DiskManager, SendableRecordBatchStream};
use futures::StreamExt;

use crate::config::SplitBy;
use crate::key;
use crate::spill::{Spilled, Writer};
use crate::splitting::Splitting;
use crate::values::numbers;

/// Largest number of distinct texts of a column; later ones count as one of the others.
const MOST_LEVELS: usize = 100_000;

/// Longest text that can be a level, bytes.
pub(crate) const LONGEST_LEVEL: usize = 1024;

/// Bytes that a level takes in addition to its text.
const LEVEL_BYTES: usize = 96;

/// The number of a text that counts as one of the others. It came after [`MOST_LEVELS`] texts or when memory was full, is
/// too long, or contains a zero byte, which ONNX Runtime rejects.
pub(crate) const UNCOUNTED: u32 = u32::MAX;

/// The profile of a number column.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Numbers {
    pub(crate) given: usize,
    pub(crate) nulls: usize,
    /// One of the values. Sums are of differences to it, which keeps the digits of large numbers.
    origin: f64,
    /// The mean of the differences to `origin`.
    shift: f64,
    /// The sum of the squared differences to the mean.
    squares: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    infinite: usize,
}

impl Default for Numbers {
    fn default() -> Self {
        Self {
            given: 0,
            nulls: 0,
            origin: f64::NAN,
            shift: 0.0,
            squares: 0.0,
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            infinite: 0,
        }
    }
}

impl Numbers {
    /// The mean of the values; NaN without values.
    pub(crate) fn mean(&self) -> f64 {
        self.origin + self.shift
    }

    /// The standard deviation of the population: the divisor is the number of values.
    pub(crate) fn deviation(&self) -> f64 {
        if self.min < self.max { (self.squares / self.given.max(1) as f64).sqrt() } else { 0.0 }
    }

    /// Adds values: their mean and variance by two passes, then merged with the earlier ones.
    ///
    /// # Source
    /// Chan, Golub and LeVeque (1983).
    pub(crate) fn add(&mut self, values: &Float64Array) {
        self.nulls += values.null_count();
        if self.origin.is_nan() {
            self.origin = values.iter().flatten().next().unwrap_or(f64::NAN);
        }
        let origin = self.origin;
        let (mut n, mut sum) = (0_usize, 0.0);
        for value in values.iter().flatten() {
            if value.is_infinite() {
                self.infinite += 1;
            }
            n += 1;
            sum += value - origin;
            self.min = self.min.min(value);
            self.max = self.max.max(value);
        }
        if n == 0 {
            return;
        }
        let mean = sum / n as f64;
        let squares: f64 = values.iter().flatten().map(|value| (value - origin - mean).powi(2)).sum();
        let difference = mean - self.shift;
        let total = (self.given + n) as f64;
        self.squares += squares + difference * difference * self.given as f64 * n as f64 / total;
        self.shift += difference * n as f64 / total;
        self.given += n;
    }
}

/// The profile of a text column: its distinct texts, numbered in the order of their first row.
#[derive(Debug, Clone, Default)]
pub(crate) struct Texts {
    numbers: HashMap<Arc<str>, u32>,
    pub(crate) names: Vec<Arc<str>>,
    pub(crate) counts: Vec<usize>,
    pub(crate) nulls: usize,
    pub(crate) uncounted: usize,
    /// Bytes left for texts.
    room: usize,
}

impl Texts {
    fn with_room(room: usize) -> Self {
        Self { room, ..Self::default() }
    }

    fn number(&mut self, text: &str) -> u32 {
        if let Some(number) = self.numbers.get(text) {
            self.counts[*number as usize] += 1;
            return *number;
        }
        let bytes = text.len() + LEVEL_BYTES;
        if self.names.len() >= MOST_LEVELS || text.len() > LONGEST_LEVEL || bytes > self.room || text.contains('\0') {
            self.uncounted += 1;
            return UNCOUNTED;
        }
        self.room -= bytes;
        let number = u32::try_from(self.names.len()).unwrap_or(UNCOUNTED);
        let name: Arc<str> = Arc::from(text);
        self.names.push(Arc::clone(&name));
        self.counts.push(1);
        self.numbers.insert(name, number);
        number
    }

    fn add(&mut self, texts: &StringViewArray) -> UInt32Array {
        let numbers: UInt32Array = texts.iter().map(|text| text.map(|text| self.number(text))).collect();
        self.nulls += numbers.null_count();
        numbers
    }

    /// The numbers of the texts, most frequent first; texts of one frequency by name.
    pub(crate) fn by_frequency(&self) -> Vec<u32> {
        self.by_counts(&self.counts)
    }

    /// The numbers of the texts that have a count, largest count first; texts of one count by name.
    pub(crate) fn by_counts(&self, counts: &[usize]) -> Vec<u32> {
        let numbers = (0..self.names.len()).filter(|number| counts[*number] > 0);
        let mut numbers: Vec<u32> = numbers.filter_map(|number| u32::try_from(number).ok()).collect();
        let key = |number: &u32| (std::cmp::Reverse(counts[*number as usize]), &self.names[*number as usize]);
        numbers.sort_by(|a, b| key(a).cmp(&key(b)));
        numbers
    }
}

/// The profile of a column.
#[derive(Debug, Clone)]
pub(crate) enum Profile {
    Numbers(Numbers),
    Texts(Texts),
}

/// A column of the query.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    pub(crate) name: String,
    /// Its type in the query.
    pub(crate) data_type: DataType,
    pub(crate) profile: Profile,
}

/// The columns of a query that are not features.
#[derive(Debug, Clone)]
pub(crate) struct Roles {
    /// A column that is read as text, whatever its type.
    pub(crate) label: Option<String>,
    /// The column of [`SplitBy::Group`] or [`SplitBy::Time`] is not one of the columns of the table.
    pub(crate) split_by: SplitBy,
}

/// All rows of a query. In its batches, a number column is `Float64` without NaN, a text column the `UInt32` numbers of
/// its texts. Two more columns follow: see [`Table::keys`] and [`Table::groups`].
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) columns: Vec<Column>,
    pub(crate) rows: usize,
    /// The latest time, with [`SplitBy::Time`].
    pub(crate) last: f64,
    /// Bytes of the rows in memory; 0 if they are in a file.
    pub(crate) in_memory: usize,
    storage: Storage,
}

#[derive(Debug)]
enum Storage {
    Memory(Vec<RecordBatch>),
    File(Spilled),
}

/// Reads a stream to its end. Rows stay in memory up to half of the `budget` bytes: the other half is for the same rows in the
/// scaled space.
///
/// # Errors
/// A planning error for a column of an unsupported type, an execution error for values that cannot be trained on.
pub(crate) async fn read(
    mut stream: SendableRecordBatchStream,
    roles: &Roles,
    budget: usize,
    disk: Arc<DiskManager>,
) -> Result<Table> {
    let mut splitting = Splitting::new(&stream.schema(), &roles.split_by)?;
    // the texts of all columns may take a quarter of the memory
    let mut columns = columns(&stream.schema(), roles, splitting.column, budget / 4)?;
    let mut fields: Vec<Field> = columns.iter().map(stored_field).collect();
    fields.extend([Field::new("key", DataType::UInt64, false), splitting.field()]);
    let schema = Arc::new(Schema::new(fields));
    let mut writer = TableWriter { schema, budget, disk, bytes: 0, pending: Vec::new(), file: None };
    let mut rows = 0;
    while let Some(batch) = stream.next().await {
        let mut batch = batch?;
        rows += batch.num_rows();
        if u32::try_from(rows).is_err() {
            return exec_err!("training supports at most {} rows; select fewer rows with LIMIT or WHERE", u32::MAX);
        }
        let split = splitting.column.map(|column| batch.remove_column(column));
        let mut keys = vec![0; batch.num_rows()];
        let mut stored = Vec::with_capacity(columns.len() + 2);
        for (column, array) in columns.iter_mut().zip(batch.columns()) {
            // whether a row has a label, and which, does not change its part
            let keys = (Some(&column.name) != roles.label.as_ref()).then_some(keys.as_mut_slice());
            stored.push(column.add(array, keys)?);
        }
        let keys: ArrayRef = Arc::new(UInt64Array::from(keys));
        let groups = match split {
            Some(split) => splitting.add(&split)?,
            None => Arc::clone(&keys),
        };
        stored.extend([keys, groups]);
        writer.write(stored)?;
    }
    if rows == 0 {
        return exec_err!("the query returns no rows to train on");
    }
    columns.iter().filter(|column| Some(&column.name) != roles.label.as_ref()).try_for_each(Column::check)?;
    splitting.check()?;
    let in_memory = if writer.file.is_none() { writer.bytes } else { 0 };
    Ok(Table { columns, rows, last: splitting.last, in_memory, storage: writer.finish()? })
}

/// Columns without rows, except the column `split`. `room` is the number of bytes for the texts of all columns.
fn columns(schema: &Schema, roles: &Roles, split: Option<usize>, room: usize) -> Result<Vec<Column>> {
    let kind = |field: &Arc<Field>| match ColumnKind::of(field.data_type()) {
        Some(_) if Some(field.name()) == roles.label.as_ref() => Some(ColumnKind::Text),
        kind => kind,
    };
    let fields = || schema.fields().iter().enumerate().filter(|(i, _)| Some(*i) != split).map(|(_, field)| field);
    let n_texts = fields().filter(|field| kind(field) == Some(ColumnKind::Text)).count();
    let column = |field: &Arc<Field>| {
        let profile = match kind(field) {
            Some(ColumnKind::Text) => Profile::Texts(Texts::with_room(room / n_texts.max(1))),
            Some(ColumnKind::Number) => Profile::Numbers(Numbers::default()),
            None => {
                return plan_err!(
                    "column \"{}\" is {}, but training needs numbers, booleans, text, dates or timestamps; leave the column \
                     out, or CAST it",
                    field.name(),
                    field.data_type()
                );
            }
        };
        Ok(Column { name: field.name().clone(), data_type: field.data_type().clone(), profile })
    };
    let columns = fields().map(column).collect::<Result<Vec<_>>>()?;
    for (i, column) in columns.iter().enumerate() {
        if columns[..i].iter().any(|other| other.name == column.name) {
            return plan_err!("the query returns two columns named \"{}\"; rename one with AS", column.name);
        }
    }
    Ok(columns)
}

fn stored_field(column: &Column) -> Field {
    let data_type = match column.profile {
        Profile::Numbers(_) => DataType::Float64,
        Profile::Texts(_) => DataType::UInt32,
    };
    Field::new(&column.name, data_type, true)
}

impl Column {
    /// Adds the values of some rows to the profile, and to the keys of the rows.
    fn add(&mut self, array: &ArrayRef, keys: Option<&mut [u64]>) -> Result<ArrayRef> {
        match &mut self.profile {
            Profile::Texts(texts) => {
                let array = cast(array, &DataType::Utf8View)?;
                if let Some(keys) = keys {
                    key::add_texts(keys, &self.name, array.as_string_view());
                }
                Ok(Arc::new(texts.add(array.as_string_view())))
            }
            Profile::Numbers(profile) => {
                let numbers = numbers(&self.name, array)?;
                if let Some(keys) = keys {
                    key::add_numbers(keys, &self.name, &numbers);
                }
                profile.add(&numbers);
                Ok(Arc::new(numbers))
            }
        }
    }

    fn check(&self) -> Result<()> {
        match &self.profile {
            Profile::Numbers(numbers) if numbers.infinite > 0 => exec_err!(
                "column \"{}\" is infinite in {} rows; remove these rows with WHERE, or replace the values with NULLIF",
                self.name,
                numbers.infinite
            ),
            Profile::Numbers(Numbers { given: 0, .. }) => {
                exec_err!("column \"{}\" is NULL in every row; leave it out of the query", self.name)
            }
            Profile::Numbers(numbers) if !(numbers.mean().is_finite() && numbers.squares.is_finite()) => exec_err!(
                "column \"{}\" has values from {:e} to {:e}, and their variance overflows a double; divide the column",
                self.name,
                numbers.min,
                numbers.max
            ),
            Profile::Texts(texts) if texts.names.iter().all(|name| name.is_empty()) => match texts.uncounted {
                0 => exec_err!("column \"{}\" is NULL or empty in every row; leave it out of the query", self.name),
                _ => exec_err!(
                    "column \"{}\" has only texts of more than {LONGEST_LEVEL} bytes, which cannot be categories; leave it \
                     out of the query",
                    self.name
                ),
            },
            _ => Ok(()),
        }
    }
}

/// Collects the rows of a [`Table`].
struct TableWriter {
    schema: SchemaRef,
    budget: usize,
    disk: Arc<DiskManager>,
    bytes: usize,
    pending: Vec<RecordBatch>,
    file: Option<Writer>,
}

impl TableWriter {
    fn write(&mut self, columns: Vec<ArrayRef>) -> Result<()> {
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns)?;
        if let Some(writer) = &mut self.file {
            return writer.write(&batch);
        }
        self.bytes += batch.get_array_memory_size();
        self.pending.push(batch);
        if self.bytes > self.budget / 2 {
            let mut writer = Writer::new(&self.disk, &self.schema)?;
            for batch in std::mem::take(&mut self.pending) {
                writer.write(&batch)?;
            }
            self.file = Some(writer);
        }
        Ok(())
    }

    fn finish(self) -> Result<Storage> {
        match self.file {
            None => Ok(Storage::Memory(self.pending)),
            Some(writer) => writer.finish().map(Storage::File),
        }
    }
}

/// What decides the part of a row, for each row of a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Groups<'a> {
    /// Rows with the same key stay together.
    Keys(&'a [u64]),
    Times(&'a [f64]),
}

impl Table {
    /// The keys of the rows of a batch, by the values of their features.
    pub(crate) fn keys<'a>(&self, batch: &'a RecordBatch) -> &'a [u64] {
        batch.column(self.columns.len()).as_primitive::<UInt64Type>().values()
    }

    /// The keys of the groups of rows, or their times.
    pub(crate) fn groups<'a>(&self, batch: &'a RecordBatch) -> Groups<'a> {
        let groups = batch.column(self.columns.len() + 1);
        match groups.as_primitive_opt::<Float64Type>() {
            Some(times) => Groups::Times(times.values()),
            None => Groups::Keys(groups.as_primitive::<UInt64Type>().values()),
        }
    }

    /// Visits the batches in their order.
    ///
    /// # Errors
    /// Those of `visit`, and an execution error if the file cannot be read back.
    pub(crate) fn visit(&self, mut visit: impl FnMut(&RecordBatch) -> Result<()>) -> Result<()> {
        match &self.storage {
            Storage::Memory(batches) => batches.iter().try_for_each(visit),
            Storage::File(file) => {
                for batch in file.open()? {
                    visit(&batch?)?;
                }
                Ok(())
            }
        }
    }

    /// Hands over the batches in their order, and returns the columns.
    ///
    /// # Errors
    /// Those of `visit`, and an execution error if the file cannot be read back.
    pub(crate) fn drain(mut self, mut visit: impl FnMut(&Self, RecordBatch) -> Result<()>) -> Result<Vec<Column>> {
        match std::mem::replace(&mut self.storage, Storage::Memory(Vec::new())) {
            Storage::Memory(batches) => batches.into_iter().try_for_each(|batch| visit(&self, batch))?,
            Storage::File(file) => {
                for batch in file.open()? {
                    visit(&self, batch?)?;
                }
            }
        }
        Ok(self.columns)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn statistics_of_large_numbers_are_exact() {
        let mut numbers = Numbers::default();
        numbers.add(&Float64Array::from(vec![Some(0.0), None]));
        numbers.add(&(0..1000).map(|i| Some(1.7e9 + f64::from(i % 10))).collect::<Float64Array>());
        let mut late = Numbers::default();
        late.add(&(0..1000).map(|i| Some(1.7e9 + f64::from(i % 10))).collect::<Float64Array>());
        assert_eq!((numbers.given, numbers.nulls, numbers.min, late.max), (1001, 1, 0.0, 1.7e9 + 9.0));
        let mut larger = Numbers::default();
        for _ in 0..50 {
            larger.add(&(0..1000).map(|i| Some(9e15 + f64::from(2 * (i % 10)))).collect::<Float64Array>());
        }
        assert!((larger.mean() - 9e15 - 9.0).abs() <= 1.0 && (larger.deviation() - 33.0_f64.sqrt()).abs() < 1e-9);
        // of the whole numbers 0 to 9: mean 4.5, variance 8.25
        assert!((late.mean() - 1.7e9 - 4.5).abs() < 1e-6 && (late.deviation() - 8.25_f64.sqrt()).abs() < 1e-9);
    }

    #[test]
    fn texts_are_numbered_and_ranked() {
        let mut texts = Texts::with_room(1000);
        let array = StringViewArray::from(vec![Some("b"), Some("a"), None, Some("c"), Some("c")]);
        let numbers = texts.add(&array);
        assert_eq!(numbers.iter().collect::<Vec<_>>(), [Some(0), Some(1), None, Some(2), Some(2)]);
        assert_eq!(texts.by_frequency(), [2, 1, 0]);
        assert_eq!(texts.nulls, 1);
    }

    #[test]
    fn texts_take_no_more_than_their_room() {
        let mut texts = Texts::with_room(2 * (LEVEL_BYTES + 1));
        let numbers: Vec<u32> = ["a", "b", "c", "a"].into_iter().map(|text| texts.number(text)).collect();
        assert_eq!(numbers, [0, 1, UNCOUNTED, 0]);
        let mut texts = Texts::with_room(1 << 20);
        assert_eq!((texts.number("x\0"), texts.number(&"x".repeat(LONGEST_LEVEL + 1))), (UNCOUNTED, UNCOUNTED));
    }
}
