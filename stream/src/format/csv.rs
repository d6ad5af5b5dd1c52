//! The format `csv`: the value is a line, and its fields are the columns in their order.

use datafusion::arrow::array::{Array, BinaryArray, RecordBatch};
use datafusion::arrow::csv::{ReaderBuilder, WriterBuilder};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::{exec_err, plan_err};
use datafusion::error::Result;

use super::{bytes, lines};

/// The value of the option `delimiter`.
///
/// # Errors
/// A planning error if it is not one byte, or is a quote or a line end.
pub(super) fn delimiter(option: Option<String>) -> Result<u8> {
    match option.as_deref().map(str::as_bytes) {
        None => Ok(b','),
        Some([b'\\', b't']) => Ok(b'\t'),
        Some([delimiter]) if !matches!(delimiter, b'"' | b'\n' | b'\r') => Ok(*delimiter),
        Some(_) => plan_err!("the option delimiter must be one byte that is neither a quote nor a line end, or \\t"),
    }
}

/// Decodes each value into a row. An empty field is null.
pub(super) fn decode(values: &BinaryArray, delimiter: u8, all: &SchemaRef, wanted: &SchemaRef) -> Result<RecordBatch> {
    let columns = wanted.fields().iter().map(|field| all.index_of(field.name())).collect::<Result<Vec<_>, _>>()?;
    // one row more than there are values, to detect a value with two lines
    let builder = ReaderBuilder::new(SchemaRef::clone(all)).with_delimiter(delimiter).with_projection(columns);
    let mut decoder = builder.with_batch_size(values.len() + 1).build_decoder();
    for i in 0..values.len() {
        let line = bytes(values, i);
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            return exec_err!("the line is empty");
        }
        let before = decoder.capacity();
        for part in [line, b"\n".as_slice()] {
            if decoder.decode(part)? != part.len() {
                return exec_err!("the value must be one line");
            }
        }
        if before - decoder.capacity() != 1 {
            return exec_err!("the value must be one line");
        }
    }
    Ok(decoder.flush()?.unwrap_or_else(|| RecordBatch::new_empty(SchemaRef::clone(wanted))))
}

/// Encodes each row into a value. A null is an empty field.
pub(super) fn encode(rows: &RecordBatch, delimiter: u8) -> Result<BinaryArray> {
    let mut writer = WriterBuilder::new().with_header(false).with_delimiter(delimiter).build(Vec::new());
    writer.write(rows)?;
    lines(writer.into_inner(), line_ends)
}

/// Positions of the line feeds outside of quotes.
fn line_ends(text: &[u8]) -> Vec<usize> {
    let mut is_quoted = false;
    let ends_line = |(at, byte): (usize, &u8)| {
        is_quoted ^= *byte == b'"';
        (*byte == b'\n' && !is_quoted).then_some(at)
    };
    text.iter().enumerate().filter_map(ends_line).collect()
}
