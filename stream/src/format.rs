//! How the values of records hold rows: one file a format.

mod avro;
mod csv;
mod json;
mod raw;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use aefusion_udfs::choice::Choice;
use datafusion::arrow::array::{Array, BinaryArray, RecordBatch};
use datafusion::arrow::buffer::{OffsetBuffer, ScalarBuffer};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::{exec_err, plan_err};
use datafusion::error::{DataFusionError, Result};
use strum::{EnumString, IntoStaticStr, VariantNames};

pub(crate) use avro::Avro;

use super::columns::{Columns, as_table};
use super::records::Records;
use aefusion_udfs::message;

/// The formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case", ascii_case_insensitive)]
enum Name {
    Json,
    Csv,
    Avro,
    Raw,
}

/// A format with its options.
#[derive(Debug, Clone)]
pub(crate) enum Format {
    /// An object; its fields are the columns.
    Json,
    /// A line without header; its fields are the columns in their order.
    Csv { delimiter: u8 },
    /// A record of Avro.
    Avro(Avro),
    /// The bytes are the one column.
    Raw,
}

impl Format {
    /// Takes what it needs out of a table's options.
    ///
    /// # Errors
    /// A planning error if an option is wrong, or the columns cannot be held in this format.
    pub(crate) fn take(options: &mut BTreeMap<String, String>, values: &SchemaRef) -> Result<Self> {
        let name = options.remove("format").unwrap_or_else(|| "json".to_owned());
        Ok(match Name::parse("the option format", &name)? {
            Name::Json => Self::Json,
            Name::Csv => Self::Csv { delimiter: csv::delimiter(options.remove("delimiter"))? },
            Name::Avro => Self::Avro(Avro::take(options, values)?),
            Name::Raw => {
                raw::check(values)?;
                Self::Raw
            }
        })
    }

    /// The rows that values hold, one a value; columns are found by name, in CSV by their place in `all`.
    fn decode(&self, values: &BinaryArray, all: &SchemaRef, wanted: &SchemaRef) -> Result<RecordBatch> {
        match self {
            Self::Json => json::decode(values, wanted),
            Self::Csv { delimiter } => csv::decode(values, *delimiter, all, wanted),
            Self::Avro(avro) => avro.decode(values, wanted),
            Self::Raw => raw::decode(values, wanted),
        }
    }

    fn encode(&self, rows: &RecordBatch) -> Result<BinaryArray> {
        match self {
            Self::Json => json::encode(rows),
            Self::Csv { delimiter } => csv::encode(rows, *delimiter),
            Self::Avro(avro) => avro.encode(rows),
            Self::Raw => raw::encode(rows),
        }
    }
}

/// A record that no row can be made of.
#[derive(Debug, Clone)]
pub(crate) struct Malformed {
    /// Its place among the records that were decoded.
    pub(crate) record: usize,
    pub(crate) reason: String,
}

/// Makes rows of records.
#[derive(Debug, Clone)]
pub(crate) struct Decoder {
    format: Format,
    all: SchemaRef,
    columns: Columns,
}

impl Decoder {
    /// `columns` are those that are wanted of a table's.
    pub(crate) fn new(format: Format, table: &Columns, columns: Columns) -> Self {
        Self { format, all: Arc::clone(&table.values), columns }
    }

    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.columns.schema
    }

    /// One row a record.
    ///
    /// # Errors
    /// An execution error if one of them is malformed, without saying which.
    fn decode(&self, records: &Records) -> Result<RecordBatch> {
        let values = self.format.decode(records.values(), &self.all, &self.columns.values)?;
        if values.num_rows() != records.len() {
            return exec_err!("{} values hold {} rows", records.len(), values.num_rows());
        }
        self.columns.join(records, &values)
    }

    /// One row a record that is well formed, and the records that are not.
    ///
    /// Where any is malformed it is looked for by halves, so that few of them cost little.
    pub(crate) fn decode_good(&self, records: &Records) -> (Vec<RecordBatch>, Vec<Malformed>) {
        let (mut good, mut malformed) = (Vec::new(), Vec::new());
        if records.len() > 0 {
            self.split(records, &(0..records.len()), &mut good, &mut malformed);
        }
        (good, malformed)
    }

    fn split(
        &self,
        records: &Records,
        range: &Range<usize>,
        good: &mut Vec<RecordBatch>,
        malformed: &mut Vec<Malformed>,
    ) {
        match self.decode(&records.slice(range)) {
            Ok(rows) => good.push(rows),
            Err(error) if range.len() == 1 => malformed.push(Malformed { record: range.start, reason: reason(&error) }),
            Err(_) => {
                let middle = range.start + range.len() / 2;
                self.split(records, &(range.start..middle), good, malformed);
                self.split(records, &(middle..range.end), good, malformed);
            }
        }
    }
}

/// What is wrong, without whose fault it is.
pub(crate) fn reason(error: &DataFusionError) -> String {
    let text = message(error);
    text.split_once(": ").map_or(text.as_str(), |(_, reason)| reason).trim().to_owned()
}

/// Makes records of rows.
#[derive(Debug, Clone)]
pub(crate) struct Encoder {
    format: Format,
    columns: Columns,
}

impl Encoder {
    /// # Errors
    /// A planning error if the table has a column that only the broker can fill.
    pub(crate) fn try_new(format: Format, columns: Columns) -> Result<Self> {
        if columns.has("_offset") {
            return plan_err!("its column _offset cannot be written: the broker numbers records");
        }
        Ok(Self { format, columns })
    }

    /// One record a row; the columns are those of the table, in its order.
    ///
    /// # Errors
    /// An execution error if a value cannot be held in this format.
    pub(crate) fn encode(&self, rows: &RecordBatch) -> Result<Records> {
        let rows = as_table(rows, &self.columns.schema)?;
        let (values, own) = self.columns.part(&rows)?;
        let values = self.format.encode(&values)?;
        Records::try_new(values, own("key")?, own("timestamp")?, own("partition")?, own("headers")?)
    }
}

/// Values that lie one after the other in a buffer; `ends` are where they end.
fn values_of(buffer: Vec<u8>, ends: impl Iterator<Item = usize>) -> Result<BinaryArray> {
    let too_large = || DataFusionError::Execution("the rows of a micro-batch are more than 2 GiB".to_owned());
    let end = |end: usize| i32::try_from(end).map_err(|_| too_large());
    let offsets = std::iter::once(Ok(0)).chain(ends.map(end)).collect::<Result<Vec<i32>>>()?;
    let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
    Ok(BinaryArray::try_new(offsets, buffer.into(), None)?)
}

/// Where the lines of a text end, its line feeds not included, given which line feeds end a line.
fn lines(text: Vec<u8>, ends: impl Fn(&[u8]) -> Vec<usize>) -> Result<BinaryArray> {
    // each line feed stays with the line after it, and is cut off there
    let ends = ends(&text);
    let starts = std::iter::once(0).chain(ends.iter().map(|end| end + 1));
    let mut values = Vec::with_capacity(text.len());
    let mut value_ends = Vec::with_capacity(ends.len());
    for (start, end) in starts.zip(&ends) {
        values.extend_from_slice(&text[start..*end]);
        value_ends.push(values.len());
    }
    values_of(values, value_ends.into_iter())
}

/// The bytes of a value; a record without one is empty.
fn bytes(values: &BinaryArray, i: usize) -> &[u8] {
    if values.is_null(i) { &[] } else { values.value(i) }
}
