//! The format `raw`: the bytes of the value are the only column.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, BinaryArray, RecordBatch, RecordBatchOptions};
use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::plan_err;
use datafusion::error::Result;

use crate::columns::cast_exactly;

/// Checks that the table has exactly one column for the value, of text or bytes.
///
/// # Errors
/// A planning error that lists the columns.
pub(super) fn check(values: &SchemaRef) -> Result<()> {
    let is_text_or_bytes = |data_type: &DataType| data_type.is_string() || data_type.is_binary();
    match values.fields().as_ref() {
        [field] if is_text_or_bytes(field.data_type()) => Ok(()),
        fields => plan_err!(
            "format = 'raw' requires exactly one column for the value, VARCHAR or BYTEA; found {}",
            fields.iter().map(|field| format!("{} {}", field.name(), field.data_type())).collect::<Vec<_>>().join(", ")
        ),
    }
}

/// Decodes each value into a row.
pub(super) fn decode(values: &BinaryArray, wanted: &SchemaRef) -> Result<RecordBatch> {
    let bytes: ArrayRef = Arc::new(values.clone());
    let columns = wanted.fields().iter().map(|field| cast_exactly(&bytes, field.data_type())).collect::<Result<_>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(values.len()));
    Ok(RecordBatch::try_new_with_options(SchemaRef::clone(wanted), columns, &options)?)
}

/// Encodes each row into a value.
pub(super) fn encode(rows: &RecordBatch) -> Result<BinaryArray> {
    Ok(cast_exactly(rows.column(0), &DataType::Binary)?.as_binary().clone())
}
