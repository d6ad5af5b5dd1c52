//! A record is an object, whose fields are the columns.

use datafusion::arrow::array::{Array, BinaryArray, RecordBatch};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::json::{ReaderBuilder, WriterBuilder, writer::LineDelimited};
use datafusion::common::exec_err;
use datafusion::error::Result;

use super::lines;

/// Fields that are no column are ignored, columns that are no field are null; so are all those of a record without value.
pub(super) fn decode(values: &BinaryArray, wanted: &SchemaRef) -> Result<RecordBatch> {
    // one more than there may be: a value with two objects is seen
    let builder = ReaderBuilder::new(SchemaRef::clone(wanted)).with_batch_size(values.len() + 1);
    let mut decoder = builder.build_decoder()?;
    for i in 0..values.len() {
        let value = if values.is_null(i) { b"{}" } else { values.value(i).trim_ascii() };
        let used = decoder.decode(value)?;
        if decoder.has_partial_record() {
            return exec_err!("the JSON ends too early");
        }
        if used != value.len() || decoder.len() != i + 1 {
            return exec_err!("a value must be one JSON object");
        }
    }
    Ok(decoder.flush()?.unwrap_or_else(|| RecordBatch::new_empty(SchemaRef::clone(wanted))))
}

/// A column that is null is left out.
pub(super) fn encode(rows: &RecordBatch) -> Result<BinaryArray> {
    let mut writer = WriterBuilder::new().build::<_, LineDelimited>(Vec::new());
    writer.write(rows)?;
    writer.finish()?;
    // line feeds in texts are escaped
    lines(writer.into_inner(), |text| memchr::memchr_iter(b'\n', text).collect())
}
