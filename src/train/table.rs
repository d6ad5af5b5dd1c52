//! The rows of a query, read once: numbers and categories, what they are like, and the rows themselves, in memory or,
//! beyond a budget, in a temporary Arrow file.

use std::collections::HashMap;
use std::sync::Arc;

use aefusion_udfs::columns::{ColumnKind, to_numbers};
use datafusion::arrow::array::{Array, ArrayRef, AsArray, Float64Array, RecordBatch, UInt32Array};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, Float64Type, Schema, SchemaRef};
use datafusion::common::{exec_err, plan_err};
use datafusion::error::Result;
use datafusion::execution::{DiskManager, SendableRecordBatchStream};
use futures::StreamExt;

use super::spill::{Spilled, Writer};

/// Different values of a column of text that are counted; what comes after them is one of the others.
const MOST_LEVELS: usize = 100_000;

/// Longest text that is a level of its own, bytes.
pub(super) const LONGEST_LEVEL: usize = 1024;

/// Bytes that a level takes beside its text.
const LEVEL_BYTES: usize = 96;

/// The number of a text that is counted as one of the others: it came after [`MOST_LEVELS`] others, or after as many as
/// there is room for, is too long, or holds a zero byte, which ONNX Runtime does not take.
pub(super) const UNCOUNTED: u32 = u32::MAX;

/// What is known of a column of numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Numbers {
    pub(super) given: usize,
    pub(super) nulls: usize,
    /// One of the values; what is summed is the difference to it, which keeps the digits of large numbers.
    origin: f64,
    /// The mean of these differences.
    shift: f64,
    /// Sum of the squared differences to the mean.
    squares: f64,
    pub(super) min: f64,
    pub(super) max: f64,
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
    /// The mean; NaN without values.
    pub(super) fn mean(&self) -> f64 {
        self.origin + self.shift
    }

    /// Standard deviation, of the rows as they are (divided by their number).
    pub(super) fn deviation(&self) -> f64 {
        if self.min < self.max { (self.squares / self.given.max(1) as f64).sqrt() } else { 0.0 }
    }

    /// Adds values; two passes over them, then both parts together.
    ///
    /// # Source
    /// Chan, Golub and LeVeque (1983).
    pub(super) fn add(&mut self, values: &Float64Array) {
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

/// The different texts of a column, numbered as they came.
#[derive(Debug, Clone, Default)]
pub(super) struct Texts {
    numbers: HashMap<Arc<str>, u32>,
    pub(super) names: Vec<Arc<str>>,
    pub(super) counts: Vec<usize>,
    pub(super) nulls: usize,
    pub(super) uncounted: usize,
    /// Bytes that may still be taken.
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

    fn add(&mut self, array: &ArrayRef) -> Result<UInt32Array> {
        let texts = cast(array, &DataType::Utf8View)?;
        let numbers: UInt32Array =
            texts.as_string_view().iter().map(|text| text.map(|text| self.number(text))).collect();
        self.nulls += numbers.null_count();
        Ok(numbers)
    }

    /// Numbers of the texts, the most frequent first, equally frequent ones by name.
    pub(super) fn by_frequency(&self) -> Vec<u32> {
        let mut numbers: Vec<u32> = (0..self.names.len()).filter_map(|i| u32::try_from(i).ok()).collect();
        let key = |number: &u32| (std::cmp::Reverse(self.counts[*number as usize]), &self.names[*number as usize]);
        numbers.sort_by(|a, b| key(a).cmp(&key(b)));
        numbers
    }
}

/// What is known of a column.
#[derive(Debug, Clone)]
pub(super) enum Known {
    Numbers(Numbers),
    Texts(Texts),
}

/// A column of the query.
#[derive(Debug, Clone)]
pub(super) struct Column {
    pub(super) name: String,
    /// As the query gives it.
    pub(super) data_type: DataType,
    pub(super) known: Known,
}

/// All rows of a query. In a batch of them, a column of numbers is `Float64` without NaN, one of text the `UInt32`
/// numbers of its texts.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) columns: Vec<Column>,
    pub(super) rows: usize,
    kept: Kept,
}

#[derive(Debug)]
enum Kept {
    Memory(Vec<RecordBatch>),
    File(Spilled),
}

/// Reads a stream to its end. A column named in `as_texts` is one of text whatever its type.
///
/// # Errors
/// A planning error for a column that cannot be trained on, an execution error for rows that cannot.
pub(super) async fn read(
    mut stream: SendableRecordBatchStream,
    as_texts: &[String],
    budget: usize,
    disk: Arc<DiskManager>,
) -> Result<Table> {
    // the texts of all columns together take a quarter of the memory at most
    let mut columns = columns(&stream.schema(), as_texts, budget / 4)?;
    let schema = Arc::new(Schema::new(columns.iter().map(kept_field).collect::<Vec<_>>()));
    let mut keeper = Keeper { schema, budget, disk, bytes: 0, pending: Vec::new(), file: None };
    let mut rows = 0;
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        rows += batch.num_rows();
        if u32::try_from(rows).is_err() {
            return exec_err!("a training takes at most {} rows; take some of them with LIMIT or WHERE", u32::MAX);
        }
        let kept = columns.iter_mut().zip(batch.columns()).map(|(column, array)| column.add(array));
        keeper.keep(kept.collect::<Result<_>>()?)?;
    }
    if rows == 0 {
        return exec_err!("the query gives no rows to train on");
    }
    columns.iter().filter(|column| !as_texts.contains(&column.name)).try_for_each(Column::check)?;
    Ok(Table { columns, rows, kept: keeper.finish()? })
}

/// Columns of which nothing is known yet; `room` are the bytes that the texts of all of them may take.
fn columns(schema: &Schema, as_texts: &[String], room: usize) -> Result<Vec<Column>> {
    let kind = |field: &Arc<Field>| match ColumnKind::of(field.data_type()) {
        Some(_) if as_texts.contains(field.name()) => Some(ColumnKind::Text),
        kind => kind,
    };
    let n_texts = schema.fields().iter().filter(|field| kind(field) == Some(ColumnKind::Text)).count();
    let column = |field: &Arc<Field>| {
        let known = match kind(field) {
            Some(ColumnKind::Text) => Known::Texts(Texts::with_room(room / n_texts.max(1))),
            Some(ColumnKind::Number) => Known::Numbers(Numbers::default()),
            None => {
                return plan_err!(
                    "column \"{}\" is {}; a training takes numbers, booleans, text, dates and timestamps: leave the column \
                     out, or CAST it",
                    field.name(),
                    field.data_type()
                );
            }
        };
        Ok(Column { name: field.name().clone(), data_type: field.data_type().clone(), known })
    };
    let columns = schema.fields().iter().map(column).collect::<Result<Vec<_>>>()?;
    for (i, column) in columns.iter().enumerate() {
        if columns[..i].iter().any(|other| other.name == column.name) {
            return plan_err!("the query gives two columns named \"{}\"; rename one with AS", column.name);
        }
    }
    Ok(columns)
}

fn kept_field(column: &Column) -> Field {
    let data_type = match column.known {
        Known::Numbers(_) => DataType::Float64,
        Known::Texts(_) => DataType::UInt32,
    };
    Field::new(&column.name, data_type, true)
}

impl Column {
    fn add(&mut self, array: &ArrayRef) -> Result<ArrayRef> {
        match &mut self.known {
            Known::Texts(texts) => Ok(Arc::new(texts.add(array)?)),
            Known::Numbers(known) => {
                let numbers = to_numbers(array)
                    .map_err(|e| e.context(format!("column \"{}\" cannot be read as numbers", self.name)))?;
                let numbers = without_nan(numbers.as_primitive::<Float64Type>());
                known.add(&numbers);
                Ok(Arc::new(numbers))
            }
        }
    }

    fn check(&self) -> Result<()> {
        match &self.known {
            Known::Numbers(numbers) if numbers.infinite > 0 => exec_err!(
                "column \"{}\" is infinite in {} rows; leave those out with WHERE, or make them NULL with NULLIF",
                self.name,
                numbers.infinite
            ),
            Known::Numbers(Numbers { given: 0, .. }) => {
                exec_err!("column \"{}\" is NULL in every row; leave it out of the query", self.name)
            }
            Known::Numbers(numbers) if !(numbers.mean().is_finite() && numbers.squares.is_finite()) => exec_err!(
                "column \"{}\" holds numbers from {:e} to {:e}, whose variance is not a double any more; divide it",
                self.name,
                numbers.min,
                numbers.max
            ),
            Known::Texts(texts) if texts.names.iter().all(|name| name.is_empty()) => match texts.uncounted {
                0 => exec_err!("column \"{}\" is NULL or empty in every row; leave it out of the query", self.name),
                _ => exec_err!(
                    "column \"{}\" holds only texts of more than {LONGEST_LEVEL} bytes, which are no categories; leave it \
                     out of the query",
                    self.name
                ),
            },
            _ => Ok(()),
        }
    }
}

/// NaN as null.
fn without_nan(numbers: &Float64Array) -> Float64Array {
    if !numbers.values().iter().any(|value| value.is_nan()) {
        return numbers.clone();
    }
    numbers.iter().map(|value| value.filter(|value| !value.is_nan())).collect()
}

struct Keeper {
    schema: SchemaRef,
    budget: usize,
    disk: Arc<DiskManager>,
    bytes: usize,
    pending: Vec<RecordBatch>,
    file: Option<Writer>,
}

impl Keeper {
    fn keep(&mut self, columns: Vec<ArrayRef>) -> Result<()> {
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns)?;
        if let Some(writer) = &mut self.file {
            return writer.write(&batch);
        }
        self.bytes += batch.get_array_memory_size();
        self.pending.push(batch);
        if self.bytes > self.budget {
            let mut writer = Writer::new(&self.disk, &self.schema)?;
            for batch in std::mem::take(&mut self.pending) {
                writer.write(&batch)?;
            }
            self.file = Some(writer);
        }
        Ok(())
    }

    fn finish(self) -> Result<Kept> {
        match self.file {
            None => Ok(Kept::Memory(self.pending)),
            Some(writer) => writer.finish().map(Kept::File),
        }
    }
}

impl Table {
    /// Gives the batches in their order, each of them away for good; none is left afterwards.
    ///
    /// # Errors
    /// Those of `visit`, and an execution error if the file cannot be read back.
    pub(super) fn drain(self, mut visit: impl FnMut(RecordBatch) -> Result<()>) -> Result<Vec<Column>> {
        match self.kept {
            Kept::Memory(batches) => batches.into_iter().try_for_each(visit)?,
            Kept::File(file) => {
                for batch in file.open()? {
                    visit(batch?)?;
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
        let array: ArrayRef = Arc::new(datafusion::arrow::array::StringArray::from(vec![
            Some("b"),
            Some("a"),
            None,
            Some("c"),
            Some("c"),
        ]));
        let numbers = texts.add(&array).unwrap();
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
