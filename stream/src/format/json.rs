//! The format `json`: the value is an object, and its fields are the columns.

use datafusion::arrow::array::{Array, BinaryArray, RecordBatch};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::json::{ReaderBuilder, WriterBuilder, writer::LineDelimited};
use datafusion::common::exec_err;
use datafusion::error::Result;

use super::lines;

/// Decodes each value into a row. Fields without a column are ignored, and columns without a field are null. A record
/// without a value has only nulls.
pub(super) fn decode(values: &BinaryArray, wanted: &SchemaRef) -> Result<RecordBatch> {
    // one row more than there are values, to detect a value with two objects
    let builder = ReaderBuilder::new(SchemaRef::clone(wanted)).with_batch_size(values.len() + 1);
    let mut decoder = builder.build_decoder()?;
    for i in 0..values.len() {
        let value = if values.is_null(i) { b"{}" } else { values.value(i).trim_ascii() };
        let used = decoder.decode(value)?;
        if decoder.has_partial_record() {
            return exec_err!("the JSON object is incomplete");
        }
        if used != value.len() || decoder.len() != i + 1 {
            return exec_err!("the value must be one JSON object");
        }
    }
    Ok(decoder.flush()?.unwrap_or_else(|| RecordBatch::new_empty(SchemaRef::clone(wanted))))
}

/// Encodes each row into a value. Null columns are left out.
pub(super) fn encode(rows: &RecordBatch) -> Result<BinaryArray> {
    let mut writer = WriterBuilder::new().build::<_, LineDelimited>(Vec::new());
    writer.write(rows)?;
    writer.finish()?;
    // line feeds inside strings are escaped
    lines(writer.into_inner(), |text| memchr::memchr_iter(b'\n', text).collect())
}
