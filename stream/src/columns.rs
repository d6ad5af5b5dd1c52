//! The columns of a table over a topic: columns from the values of records, and metadata columns (`_key`, `_offset`,
//! …).

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatch};
use datafusion::arrow::compute::{CastOptions, can_cast_types, cast_with_options};
use datafusion::arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef};
use datafusion::common::plan_err;
use datafusion::error::Result;

use super::records::{HEADERS, Records, TIMESTAMP};

/// Metadata columns, and the name of each in [`Records`].
const METADATA: [(&str, &str); 5] = [
    ("_key", "key"),
    ("_timestamp", "timestamp"),
    ("_partition", "partition"),
    ("_offset", "offset"),
    ("_headers", "headers"),
];

/// A value that does not fit is an error, not a null.
const EXACT: CastOptions<'static> = CastOptions { safe: false, format_options: FORMAT };
const FORMAT: datafusion::arrow::util::display::FormatOptions<'static> =
    datafusion::arrow::util::display::FormatOptions::new();

/// Casts an array. A value that does not fit is an error, not a null.
pub(crate) fn cast_exactly(array: &ArrayRef, to: &DataType) -> Result<ArrayRef> {
    Ok(cast_with_options(array, to, &EXACT)?)
}

/// Converts rows of a query to the schema of the table that they are written to. Columns match by position.
pub(crate) fn as_table(rows: &RecordBatch, table: &SchemaRef) -> Result<RecordBatch> {
    let columns = rows.columns().iter().zip(table.fields());
    let columns = columns.map(|(column, field)| cast_exactly(column, field.data_type())).collect::<Result<_>>()?;
    Ok(RecordBatch::try_new(Arc::clone(table), columns)?)
}

/// The columns of a table over a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Columns {
    /// All columns, in the order of the table.
    pub(crate) schema: SchemaRef,
    /// The columns from the values of records, in the order of the table.
    pub(crate) values: SchemaRef,
}

impl Columns {
    /// Checks the types of the metadata columns of a table.
    ///
    /// # Errors
    /// A planning error if a metadata column has a type that it cannot have.
    pub(crate) fn try_new(schema: SchemaRef) -> Result<Self> {
        for field in schema.fields().iter().filter(|field| field.name().starts_with('_')) {
            let Some(name) = metadata(field.name()) else { continue };
            let is_possible = match name {
                "key" => matches!(
                    field.data_type(),
                    DataType::Utf8
                        | DataType::LargeUtf8
                        | DataType::Utf8View
                        | DataType::Binary
                        | DataType::LargeBinary
                        | DataType::BinaryView
                ),
                "timestamp" => matches!(field.data_type(), DataType::Timestamp(..) | DataType::Int64),
                "headers" => can_cast_types(&kafka_type(name), field.data_type()),
                _ => field.data_type().is_integer(),
            };
            if !is_possible {
                return plan_err!("{} must be {}; found {}", field.name(), sql_type(name), field.data_type());
            }
        }
        Ok(Self::of(schema))
    }

    fn of(schema: SchemaRef) -> Self {
        let values: Vec<FieldRef> =
            schema.fields().iter().filter(|field| metadata(field.name()).is_none()).cloned().collect();
        Self { schema, values: Arc::new(Schema::new(values)) }
    }

    /// Some of the columns, by index.
    pub(crate) fn project(&self, projection: Option<&Vec<usize>>) -> Result<Self> {
        match projection {
            None => Ok(self.clone()),
            Some(columns) => Ok(Self::of(Arc::new(self.schema.project(columns)?))),
        }
    }

    /// Whether the table has a column of this name.
    pub(crate) fn has(&self, column: &str) -> bool {
        self.schema.index_of(column).is_ok()
    }

    /// Adds the metadata columns to the decoded values of records.
    ///
    /// # Errors
    /// An execution error if a key is not valid UTF-8, but its column is text.
    pub(crate) fn join(&self, records: &Records, values: &RecordBatch) -> Result<RecordBatch> {
        let mut decoded = values.columns().iter();
        let mut columns = Vec::with_capacity(self.schema.fields().len());
        for field in self.schema.fields() {
            let column = match metadata(field.name()).and_then(|name| records.column(name)) {
                Some(metadata) => cast_exactly(metadata, field.data_type())?,
                None => match decoded.next() {
                    Some(column) => Arc::clone(column),
                    None => datafusion::arrow::array::new_null_array(field.data_type(), records.len()),
                },
            };
            columns.push(column);
        }
        let options = datafusion::arrow::array::RecordBatchOptions::new().with_row_count(Some(records.len()));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?)
    }

    /// Splits rows into the columns for the values of records and a function for the metadata. The function returns a
    /// column of [`Records`] by name; the column is null if the table lacks it.
    ///
    /// # Errors
    /// An execution error of the function if a number or time is out of range.
    pub(crate) fn part(&self, rows: &RecordBatch) -> Result<(RecordBatch, impl Fn(&str) -> Result<ArrayRef>)> {
        let is_value = |i: &usize| metadata(self.schema.field(*i).name()).is_none();
        let values: Vec<usize> = (0..self.schema.fields().len()).filter(is_value).collect();
        let values = rows.project(&values)?;
        let metadata = |name: &str| match METADATA.iter().find(|(_, known)| *known == name) {
            Some((column, _)) => match rows.column_by_name(column) {
                Some(column) => cast_exactly(column, &kafka_type(name)),
                None => Ok(datafusion::arrow::array::new_null_array(&kafka_type(name), rows.num_rows())),
            },
            None => Ok(datafusion::arrow::array::new_null_array(&DataType::Null, rows.num_rows())),
        };
        Ok((values, metadata))
    }
}

/// The name in [`Records`] of a metadata column; none for other columns.
fn metadata(column: &str) -> Option<&'static str> {
    METADATA.iter().find(|(name, _)| *name == column).map(|(_, known)| *known)
}

/// The type of metadata in [`Records`].
fn kafka_type(name: &str) -> DataType {
    match name {
        "key" => DataType::Binary,
        "timestamp" => TIMESTAMP,
        "partition" => DataType::Int32,
        "offset" => DataType::Int64,
        _ => HEADERS.clone(),
    }
}

/// The types that a metadata column may have, for errors.
fn sql_type(name: &str) -> &'static str {
    match name {
        "key" => "VARCHAR or BYTEA",
        "timestamp" => "TIMESTAMP or BIGINT (milliseconds)",
        "partition" => "INT",
        "offset" => "BIGINT",
        _ => "STRUCT<key VARCHAR, value BYTEA>[]",
    }
}
