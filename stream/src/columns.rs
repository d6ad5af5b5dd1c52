//! The columns of a table over a topic: those of the values, and what Kafka itself knows of a record.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatch};
use datafusion::arrow::compute::{CastOptions, can_cast_types, cast_with_options};
use datafusion::arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef};
use datafusion::common::plan_err;
use datafusion::error::Result;

use super::records::{HEADERS, Records, TIMESTAMP};

/// What is no part of a record's value.
const METADATA: [(&str, &str); 5] = [
    ("_key", "key"),
    ("_timestamp", "timestamp"),
    ("_partition", "partition"),
    ("_offset", "offset"),
    ("_headers", "headers"),
];

/// A wrong value is an error, and no null.
const EXACT: CastOptions<'static> = CastOptions { safe: false, format_options: FORMAT };
const FORMAT: datafusion::arrow::util::display::FormatOptions<'static> =
    datafusion::arrow::util::display::FormatOptions::new();

/// Casts, and never makes a null of a value that does not fit.
pub(crate) fn cast_exactly(array: &ArrayRef, to: &DataType) -> Result<ArrayRef> {
    Ok(cast_with_options(array, to, &EXACT)?)
}

/// Rows of a query as those of the table that they are written to: columns in its order, of its names and types.
pub(crate) fn as_table(rows: &RecordBatch, table: &SchemaRef) -> Result<RecordBatch> {
    let columns = rows.columns().iter().zip(table.fields());
    let columns = columns.map(|(column, field)| cast_exactly(column, field.data_type())).collect::<Result<_>>()?;
    Ok(RecordBatch::try_new(Arc::clone(table), columns)?)
}

/// The columns of a table, which are of two kinds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Columns {
    /// All, in the table's order.
    pub(crate) schema: SchemaRef,
    /// Those that the values of records hold, in the table's order.
    pub(crate) values: SchemaRef,
}

impl Columns {
    /// # Errors
    /// A planning error if a column of Kafka's own is unknown or of a type that it cannot have.
    pub(crate) fn try_new(schema: SchemaRef) -> Result<Self> {
        for field in schema.fields().iter().filter(|field| field.name().starts_with('_')) {
            let Some(of_record) = metadata(field.name()) else { continue };
            let natural = natural_type(of_record);
            let is_possible = match of_record {
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
                "headers" => can_cast_types(&natural, field.data_type()),
                _ => field.data_type().is_integer(),
            };
            if !is_possible {
                return plan_err!("{} must be {}; found {}", field.name(), sql_type(of_record), field.data_type());
            }
        }
        Ok(Self::of(schema))
    }

    fn of(schema: SchemaRef) -> Self {
        let values: Vec<FieldRef> =
            schema.fields().iter().filter(|field| metadata(field.name()).is_none()).cloned().collect();
        Self { schema, values: Arc::new(Schema::new(values)) }
    }

    /// Some of them.
    pub(crate) fn project(&self, projection: Option<&Vec<usize>>) -> Result<Self> {
        match projection {
            None => Ok(self.clone()),
            Some(columns) => Ok(Self::of(Arc::new(self.schema.project(columns)?))),
        }
    }

    /// Whether one of Kafka's own is among them.
    pub(crate) fn has(&self, metadata: &str) -> bool {
        self.schema.index_of(metadata).is_ok()
    }

    /// The rows of records, given what their values hold.
    ///
    /// # Errors
    /// An execution error if a key is not the text that it should be.
    pub(crate) fn join(&self, records: &Records, values: &RecordBatch) -> Result<RecordBatch> {
        let mut decoded = values.columns().iter();
        let mut columns = Vec::with_capacity(self.schema.fields().len());
        for field in self.schema.fields() {
            let column = match metadata(field.name()).and_then(|name| records.column(name)) {
                Some(own) => cast_exactly(own, field.data_type())?,
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

    /// What is to be the values of records, and a column of Kafka's own as Kafka has it; null where the table has none.
    ///
    /// # Errors
    /// An execution error if a number or time is out of range.
    pub(crate) fn part(&self, rows: &RecordBatch) -> Result<(RecordBatch, impl Fn(&str) -> Result<ArrayRef>)> {
        let is_value = |i: &usize| metadata(self.schema.field(*i).name()).is_none();
        let values: Vec<usize> = (0..self.schema.fields().len()).filter(is_value).collect();
        let values = rows.project(&values)?;
        let own = |name: &str| match METADATA.iter().find(|(_, own)| *own == name) {
            Some((column, _)) => match rows.column_by_name(column) {
                Some(column) => cast_exactly(column, &natural_type(name)),
                None => Ok(datafusion::arrow::array::new_null_array(&natural_type(name), rows.num_rows())),
            },
            None => Ok(datafusion::arrow::array::new_null_array(&DataType::Null, rows.num_rows())),
        };
        Ok((values, own))
    }
}

/// What a column shows of a record.
fn metadata(column: &str) -> Option<&'static str> {
    METADATA.iter().find(|(name, _)| *name == column).map(|(_, own)| *own)
}

fn natural_type(own: &str) -> DataType {
    match own {
        "key" => DataType::Binary,
        "timestamp" => TIMESTAMP,
        "partition" => DataType::Int32,
        "offset" => DataType::Int64,
        _ => HEADERS.clone(),
    }
}

fn sql_type(own: &str) -> &'static str {
    match own {
        "key" => "VARCHAR or BYTEA",
        "timestamp" => "TIMESTAMP or BIGINT (milliseconds)",
        "partition" => "INT",
        "offset" => "BIGINT",
        _ => "STRUCT<key VARCHAR, value BYTEA>[]",
    }
}
