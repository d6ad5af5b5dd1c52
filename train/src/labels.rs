//! The labels of a classifier.

use aefusion_udfs::model::metadata::Classes;
use datafusion::arrow::array::{AsArray, RecordBatch, StringArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, UInt32Type};
use datafusion::common::{exec_err, plan_err};
use datafusion::error::Result;

use crate::dataset::NO_LABEL;
use crate::ingest::{LONGEST_LEVEL, Profile, Table};

/// Largest number of classes of a classifier.
const MOST_CLASSES: usize = 10_000;

/// The labels of a classifier.
#[derive(Debug, Clone)]
pub(crate) struct Labels {
    /// The column of the table that holds them.
    pub(crate) column: usize,
    pub(crate) classes: Classes,
    /// For each number of a text, its class.
    places: Vec<u32>,
}

impl Labels {
    /// The classes of a label column, in order: numbers by size, texts by letters.
    ///
    /// # Errors
    /// A planning error if there is no such column or it has a floating-point type. An execution error if it has too few or
    /// too many distinct labels.
    pub(crate) fn of(table: &Table, label: &str) -> Result<Self> {
        let Some(column) = table.columns.iter().position(|column| column.name == label) else {
            let names: Vec<&str> = table.columns.iter().map(|column| column.name.as_str()).collect();
            return plan_err!(
                "option input_label_cols: the query has no column \"{label}\"{}; its columns are {}",
                aefusion_udfs::suggest::hint(label, names.iter().copied()),
                names.join(", ")
            );
        };
        let Profile::Texts(texts) = &table.columns[column].profile else {
            return exec_err!("column \"{label}\" was not read as text");
        };
        let data_type = match &table.columns[column].data_type {
            DataType::Dictionary(_, value) => value.as_ref(),
            other => other,
        };
        if data_type.is_floating() {
            return plan_err!(
                "column \"{label}\" is {data_type}, but labels must be classes; CAST the column to an integer or to text"
            );
        }
        let n = texts.names.len();
        if n == 0 && texts.uncounted == 0 {
            return exec_err!("column \"{label}\" is NULL in every row; a classifier needs rows with labels");
        }
        if texts.uncounted > 0 {
            return exec_err!(
                "column \"{label}\" has labels that cannot be counted in {} rows: labels of more than {LONGEST_LEVEL} bytes, with \
                 a zero byte, or beyond a quarter of ae.train_memory; a classifier needs short labels",
                texts.uncounted
            );
        }
        if !(2..=MOST_CLASSES).contains(&n) {
            return exec_err!("column \"{label}\" must have from 2 to {MOST_CLASSES} distinct labels; found {n}");
        }
        let names = StringArray::from_iter_values(texts.names.iter());
        let typed = cast(&names, data_type)?;
        let order = datafusion::arrow::compute::sort_to_indices(&typed, None, None)?;
        let mut places = vec![NO_LABEL; n];
        for (place, number) in order.values().iter().enumerate() {
            places[*number as usize] = u32::try_from(place).unwrap_or(NO_LABEL);
        }
        let labels = order.values().iter().map(|number| texts.names[*number as usize].to_string()).collect();
        let classes = Classes { column: label.to_owned(), type_name: data_type.to_string(), labels };
        Ok(Self { column, classes, places })
    }

    /// Number of classes.
    pub(crate) fn count(&self) -> usize {
        self.classes.labels.len()
    }

    /// The class of each row of a batch; none for a row without a label.
    pub(crate) fn of_rows<'a>(&'a self, batch: &'a RecordBatch) -> impl Iterator<Item = Option<u32>> + 'a {
        let numbers = batch.column(self.column).as_primitive::<UInt32Type>();
        numbers.iter().map(|number| number.map(|number| self.places[number as usize]))
    }
}
