//! Watching what models give, while queries run.

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
use crate::score::Scores;

/// Sees the rows that plans score; it runs between two batches, so it should be quick.
pub trait Observer: fmt::Debug + Send + Sync {
    /// Some rows were scored.
    fn scored(&self, scored: &Scored<'_>);
}

/// The observer of a session, an extension of its configuration.
#[derive(Debug, Clone)]
pub struct ObserverHandle(pub Arc<dyn Observer>);

/// Rows that a model was run on, and what it made of them.
#[derive(Debug)]
pub struct Scored<'a> {
    /// The model.
    pub model: &'a Arc<Model>,
    /// The rows as they came to the model: every column that the query reads.
    pub rows: &'a RecordBatch,
    /// Time that ONNX Runtime took for them.
    pub runtime: Duration,
    pub(crate) arguments: &'a [ArrayRef],
    pub(crate) form: &'a Form,
    pub(crate) scores: &'a Scores,
}

impl Scored<'_> {
    /// The reconstruction error of each row and which rows have one; none if the query asks for nothing that needs it.
    pub fn errors(&self) -> Option<(&[f64], Option<&NullBuffer>)> {
        let errors = self.scores.error.as_ref();
        let n = self.rows.num_rows();
        (n > 0 && errors.len() == n).then_some((errors, self.scores.valid_error.as_ref()))
    }

    /// What `ae_contributions` gives for some of the rows; the model is run on these again.
    ///
    /// # Errors
    /// A planning error if the model cannot tell.
    pub fn contributions(&self, rows: &UInt32Array) -> Result<ArrayRef> {
        Contributions.data_type(self.model, self.form)?;
        let some = self.arguments.iter().map(|column| Ok(take(column, rows, None)?)).collect::<Result<Vec<_>>>()?;
        let some = Rows::new(&some, &Contributions.arguments(self.model)?, rows.len())?;
        evaluate(&Contributions, &BatchCall { model: self.model, form: self.form, rows: &some }, None)
    }
}
