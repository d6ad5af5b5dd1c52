//! The column by which rows are split: `split_by` or `split_by_time`.

use std::sync::Arc;

use aefusion_udfs::columns::ColumnKind;
use aefusion_udfs::suggest;
use datafusion::arrow::array::{Array, ArrayRef, AsArray, UInt64Array};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::{exec_err, plan_err};
use datafusion::error::Result;

use crate::config::SplitBy;
use crate::key;
use crate::values::numbers;

/// The column by which rows are split. It is not a feature.
#[derive(Debug)]
pub(crate) struct Splitting {
    /// Its place in the query; none if the values of the features decide.
    pub(crate) column: Option<usize>,
    name: String,
    is_time: bool,
    kind: ColumnKind,
    /// The latest time.
    pub(crate) last: f64,
    missing: usize,
}

impl Splitting {
    /// Finds the column in a query.
    ///
    /// # Errors
    /// A planning error if there is no such column, or if it has an unsupported type.
    pub(crate) fn new(schema: &Schema, split_by: &SplitBy) -> Result<Self> {
        let (option, name, is_time) = match split_by {
            SplitBy::Row => ("", "", false),
            SplitBy::Group(column) => ("split_by", column.as_str(), false),
            SplitBy::Time(column) => ("split_by_time", column.as_str(), true),
        };
        let none = Self {
            column: None,
            name: name.to_owned(),
            is_time,
            kind: ColumnKind::Number,
            last: f64::NEG_INFINITY,
            missing: 0,
        };
        if *split_by == SplitBy::Row {
            return Ok(none);
        }
        let Some((place, field)) = schema.fields().iter().enumerate().find(|(_, field)| field.name() == name) else {
            let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
            return plan_err!(
                "option {option}: the query has no column \"{name}\"{}; its columns are {}",
                suggest::hint(name, names.iter().copied()),
                names.join(", ")
            );
        };
        match ColumnKind::of(field.data_type()) {
            Some(kind) if kind == ColumnKind::Number || !is_time => Ok(Self { column: Some(place), kind, ..none }),
            _ => plan_err!(
                "option {option}: column \"{name}\" is {}, expected {}; CAST it",
                field.data_type(),
                if is_time {
                    "a timestamp, a date or a number"
                } else {
                    "numbers, booleans, text, dates or timestamps"
                }
            ),
        }
    }

    /// The column of a table that [`Splitting::add`] gives.
    pub(crate) fn field(&self) -> Field {
        Field::new("split", if self.is_time { DataType::Float64 } else { DataType::UInt64 }, self.is_time)
    }

    /// The times of some rows, or the keys of their groups.
    ///
    /// # Errors
    /// An execution error if a value is not a number.
    pub(crate) fn add(&mut self, array: &ArrayRef) -> Result<ArrayRef> {
        if self.is_time {
            let times = numbers(&self.name, array)?;
            self.missing += times.null_count();
            self.last = times.iter().flatten().fold(self.last, f64::max);
            return Ok(Arc::new(times));
        }
        let mut keys = vec![0; array.len()];
        match self.kind {
            ColumnKind::Number => key::add_numbers(&mut keys, &self.name, &numbers(&self.name, array)?),
            ColumnKind::Text => {
                key::add_texts(&mut keys, &self.name, cast(array, &DataType::Utf8View)?.as_string_view());
            }
        }
        Ok(Arc::new(UInt64Array::from(keys)))
    }

    /// Checks the column after all rows.
    ///
    /// # Errors
    /// An execution error if a row has no time.
    pub(crate) fn check(&self) -> Result<()> {
        if self.missing > 0 {
            return exec_err!(
                "option split_by_time: column \"{}\" is NULL in {} rows; remove these rows with WHERE",
                self.name,
                self.missing
            );
        }
        Ok(())
    }
}
