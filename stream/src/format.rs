//! Formats of records: how the value of a record encodes a row. One file per format.

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

/// The values of the option `format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case", ascii_case_insensitive)]
enum FormatName {
    Json,
    Csv,
    Avro,
    Raw,
}

/// A format with its options.
#[derive(Debug, Clone)]
pub(crate) enum Format {
    /// The value is a JSON object with the columns as its fields.
    Json,
    /// The value is a line without header, with the columns as its fields, in their order.
    Csv { delimiter: u8 },
    /// The value is an Avro record with the columns as its fields.
    Avro(Avro),
    /// The bytes of the value are the only column.
    Raw,
}

impl Format {
    /// Reads the options of the format, and removes them from the options of the table.
    ///
    /// # Errors
    /// A planning error if an option is wrong or the format does not support the columns.
    pub(crate) fn take(options: &mut BTreeMap<String, String>, values: &SchemaRef) -> Result<Self> {
        let name = options.remove("format").unwrap_or_else(|| "json".to_owned());
        Ok(match FormatName::parse("the option format", &name)? {
            FormatName::Json => Self::Json,
            FormatName::Csv => Self::Csv { delimiter: csv::delimiter(options.remove("delimiter"))? },
            FormatName::Avro => Self::Avro(Avro::take(options, values)?),
            FormatName::Raw => {
                raw::check(values)?;
                Self::Raw
            }
        })
    }

    /// Decodes each value into a row. Columns are found by name, and in CSV by their position in `all`.
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

/// A record that cannot be decoded into a row.
#[derive(Debug, Clone)]
pub(crate) struct Malformed {
    /// Index among the decoded records.
    pub(crate) record: usize,
    pub(crate) reason: String,
}

/// Decodes records into rows.
#[derive(Debug, Clone)]
pub(crate) struct Decoder {
    format: Format,
    all: SchemaRef,
    columns: Columns,
}

impl Decoder {
    /// `columns` are the columns of the table that the query reads.
    pub(crate) fn new(format: Format, table: &Columns, columns: Columns) -> Self {
        Self { format, all: Arc::clone(&table.values), columns }
    }

    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.columns.schema
    }

    /// Decodes each record into a row.
    ///
    /// # Errors
    /// An execution error if any record is malformed. The error does not identify the record.
    fn decode(&self, records: &Records) -> Result<RecordBatch> {
        let values = self.format.decode(records.values(), &self.all, &self.columns.values)?;
        if values.num_rows() != records.len() {
            return exec_err!("{} values hold {} rows", records.len(), values.num_rows());
        }
        self.columns.join(records, &values)
    }

    /// Decodes each well-formed record into a row, and returns the malformed records beside the rows.
    ///
    /// Malformed records are found by bisection, which is cheap while there are few.
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

/// The text of an error without its kind.
pub(crate) fn reason(error: &DataFusionError) -> String {
    let text = message(error);
    text.split_once(": ").map_or(text.as_str(), |(_, reason)| reason).trim().to_owned()
}

/// Encodes rows into records.
#[derive(Debug, Clone)]
pub(crate) struct Encoder {
    format: Format,
    columns: Columns,
}

impl Encoder {
    /// An encoder of rows with these columns.
    ///
    /// # Errors
    /// A planning error if the table has a column that only the broker can set.
    pub(crate) fn try_new(format: Format, columns: Columns) -> Result<Self> {
        if columns.has("_offset") {
            return plan_err!("the column _offset of the table cannot be written: brokers assign offsets");
        }
        Ok(Self { format, columns })
    }

    /// Encodes each row into a record. The columns of the rows are the columns of the table, in the same order.
    ///
    /// # Errors
    /// An execution error if the format cannot represent a value.
    pub(crate) fn encode(&self, rows: &RecordBatch) -> Result<Records> {
        let rows = as_table(rows, &self.columns.schema)?;
        let (values, metadata) = self.columns.part(&rows)?;
        let values = self.format.encode(&values)?;
        let (key, timestamp) = (metadata("key")?, metadata("timestamp")?);
        Records::try_new(values, key, timestamp, metadata("partition")?, metadata("headers")?)
    }
}

/// An array of values that are consecutive in a buffer. `ends` are their end positions.
fn values_of(buffer: Vec<u8>, ends: impl Iterator<Item = usize>) -> Result<BinaryArray> {
    let too_large =
        || DataFusionError::Execution("the encoded rows of one batch exceed 2 GiB; use smaller batches".to_owned());
    let end = |end: usize| i32::try_from(end).map_err(|_| too_large());
    let offsets = std::iter::once(Ok(0)).chain(ends.map(end)).collect::<Result<Vec<i32>>>()?;
    let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
    Ok(BinaryArray::try_new(offsets, buffer.into(), None)?)
}

/// The lines of a text, without their line feeds. `ends` returns the positions of the line feeds that end a line.
fn lines(text: Vec<u8>, ends: impl Fn(&[u8]) -> Vec<usize>) -> Result<BinaryArray> {
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

/// The bytes of a value; empty for a record without a value.
fn bytes(values: &BinaryArray, i: usize) -> &[u8] {
    if values.is_null(i) { &[] } else { values.value(i) }
}
