//! Observes the outputs of models while queries run.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::array::{ArrayRef, RecordBatch, UInt32Array};
use datafusion::arrow::buffer::NullBuffer;
use datafusion::arrow::compute::take;
use datafusion::error::Result;

use crate::functions::{BatchCall, Contributions, Function, evaluate};
use crate::matrix::{Form, Rows};
use crate::model::Model;
use crate::output::Scores;

/// Receives the rows that queries score. It runs between two batches: keep it fast.
pub trait Observer: fmt::Debug + Send + Sync {
    /// Called after rows were scored.
    fn scored(&self, scored: &Scored<'_>);
}

/// The observer of a session, as an extension of its configuration.
#[derive(Debug, Clone)]
pub struct ObserverHandle(pub Arc<dyn Observer>);

/// Rows and the outputs of a model for them.
#[derive(Debug)]
pub struct Scored<'a> {
    /// The model.
    pub model: &'a Arc<Model>,
    /// The rows before the model: all columns that the query reads.
    pub rows: &'a RecordBatch,
    /// Time in ONNX Runtime for these rows.
    pub runtime: Duration,
    pub(crate) arguments: &'a [ArrayRef],
    pub(crate) form: &'a Form,
    pub(crate) scores: &'a Scores,
}

impl Scored<'_> {
    /// The reconstruction error of each row, and the rows that have one; none if the query does not compute errors.
    pub fn errors(&self) -> Option<(&[f64], Option<&NullBuffer>)> {
        let errors = self.scores.error.as_ref();
        let n = self.rows.num_rows();
        (n > 0 && errors.len() == n).then_some((errors, self.scores.valid_error.as_ref()))
    }

    /// The result of `ae_contributions` for the rows with these indices. This runs the model on them again.
    ///
    /// # Errors
    /// A planning error if the model has no contributions.
    pub fn contributions(&self, rows: &UInt32Array) -> Result<ArrayRef> {
        Contributions.data_type(self.model, self.form)?;
        let some = self.arguments.iter().map(|column| Ok(take(column, rows, None)?)).collect::<Result<Vec<_>>>()?;
        let some = Rows::new(&some, &Contributions.arguments(self.model)?, rows.len())?;
        evaluate(&Contributions, &BatchCall { model: self.model, form: self.form, rows: &some }, None)
    }
}
