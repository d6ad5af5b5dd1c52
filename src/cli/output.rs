//! Prints rows as a table, CSV, JSON or newline-delimited JSON.

use std::io::{self, Write};
use std::sync::Arc;

use clap::ValueEnum;
use datafusion::arrow::array::{ArrayRef, RecordBatch, StringArray};
use datafusion::arrow::csv;
use datafusion::arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::arrow::json::writer::{ArrayWriter, LineDelimited, WriterBuilder};
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::arrow::util::pretty::pretty_format_batches_with_options;
use datafusion::error::Result;

/// Output format of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// A table with borders
    Table,
    /// Comma-separated values with a header; lists and structs are text
    Csv,
    /// One JSON array of objects
    Json,
    /// One JSON object per line
    Ndjson,
}

/// Prints the batches of one result to standard output.
#[derive(Debug)]
pub(super) struct Writer {
    format: Format,
    schema: SchemaRef,
    max_rows: usize,
    /// Rows of a table. It is printed at the end, when the widths of its columns are known.
    kept: Vec<RecordBatch>,
    n_kept: usize,
    rows: usize,
}

impl Writer {
    pub(super) fn new(format: Format, schema: SchemaRef, max_rows: usize) -> Self {
        let max_rows = if max_rows == 0 { usize::MAX } else { max_rows };
        Self { format, schema, max_rows, kept: Vec::new(), n_kept: 0, rows: 0 }
    }

    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        let is_first = self.rows == 0;
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        match self.format {
            Format::Table => {
                let take = batch.num_rows().min(self.max_rows - self.n_kept);
                self.n_kept += take;
                if take > 0 {
                    self.kept.push(batch.slice(0, take));
                }
            }
            Format::Csv => write_csv(&mut out, batch, is_first)?,
            Format::Json => write!(out, "{}{}", if is_first { "[" } else { ",\n" }, json_objects(batch)?)?,
            Format::Ndjson => {
                let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(&mut out);
                writer.write(batch)?;
                writer.finish()?;
            }
        }
        self.rows += batch.num_rows();
        Ok(())
    }

    /// Prints the remaining rows, and returns the number of all rows.
    pub(super) fn finish(&mut self) -> Result<usize> {
        let mut out = io::stdout().lock();
        let has_columns = !self.schema.fields().is_empty();
        match self.format {
            Format::Table if has_columns => {
                if self.kept.is_empty() {
                    self.kept.push(RecordBatch::new_empty(Arc::clone(&self.schema)));
                }
                let options = FormatOptions::default().with_display_error(true);
                writeln!(out, "{}", pretty_format_batches_with_options(&self.kept, &options)?)?;
                if self.rows > self.n_kept {
                    writeln!(out, "showing {} of {} rows; use --max-rows 0 to show all", self.n_kept, self.rows)?;
                }
            }
            Format::Csv if has_columns && self.rows == 0 => {
                write_csv(&mut out, &RecordBatch::new_empty(Arc::clone(&self.schema)), true)?;
            }
            Format::Json if has_columns => writeln!(out, "{}", if self.rows == 0 { "[]" } else { "]" })?,
            _ => {}
        }
        out.flush()?;
        Ok(self.rows)
    }
}

fn json_objects(batch: &RecordBatch) -> Result<String> {
    let mut text = Vec::new();
    let mut writer: ArrayWriter<_> = WriterBuilder::new().with_explicit_nulls(true).build(&mut text);
    writer.write(batch)?;
    writer.finish()?;
    let text = String::from_utf8_lossy(&text);
    // without the brackets of the array, because all batches form one array
    Ok(text.trim().trim_start_matches('[').trim_end_matches(']').to_owned())
}

fn write_csv(out: &mut impl Write, batch: &RecordBatch, header: bool) -> Result<()> {
    let mut writer = csv::WriterBuilder::new().with_header(header).build(out);
    Ok(writer.write(&flat(batch)?)?)
}

/// Converts lists and structs to text.
fn flat(batch: &RecordBatch) -> Result<RecordBatch> {
    let schema = batch.schema();
    let mut fields = Vec::new();
    let mut columns: Vec<ArrayRef> = Vec::new();
    for (field, column) in schema.fields().iter().zip(batch.columns()) {
        if !field.data_type().is_nested() {
            fields.push(field.as_ref().clone());
            columns.push(Arc::clone(column));
            continue;
        }
        let options = FormatOptions::default();
        let formatter = ArrayFormatter::try_new(column.as_ref(), &options)?;
        let text = (0..column.len()).map(|row| column.is_valid(row).then(|| formatter.value(row).to_string()));
        fields.push(Field::new(field.name(), datafusion::arrow::datatypes::DataType::Utf8, true));
        columns.push(Arc::new(text.collect::<StringArray>()));
    }
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}
