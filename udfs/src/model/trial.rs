//! A file that is not published yet, tried out on rows.

use std::sync::Arc;

use bytes::Bytes;
use datafusion::arrow::array::{ArrayRef, AsArray, Float64Array};
use datafusion::arrow::datatypes::Float32Type;
use datafusion::error::Result;

use super::metadata::Role;
use super::store::ModelName;
use super::{Limits, Model, Start};
use crate::matrix::Rows;
use crate::score::{Wanted, score};

/// A model outside of the store.
#[derive(Debug)]
pub struct Trial(Arc<Model>);

impl Trial {
    /// Loads a file, and runs all that the functions could run of it.
    ///
    /// # Errors
    /// A planning error that says why the file would be refused.
    pub fn load(name: &ModelName, bytes: Bytes, limits: &Limits) -> Result<Self> {
        let model = Arc::new(Model::load(name, 0, bytes, limits)?);
        model.verify()?;
        Ok(Self(model))
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.0
    }

    /// What a tensor holds for rows: `[rows, width]`, row-major. The columns are those of the features, in their order.
    ///
    /// # Errors
    /// A planning error if there is no such tensor, an execution error if the rows do not fit.
    pub fn run(&self, role: Role, columns: &[ArrayRef]) -> Result<Vec<f32>> {
        let scores = score(&self.0, Start::Features, &self.rows(columns)?, &Wanted::roles([role]), None)?;
        Ok(scores.matrix(role)?.to_f32().as_primitive::<Float32Type>().values().to_vec())
    }

    /// The reconstruction error of rows, as `ae_error` gives it.
    ///
    /// # Errors
    /// As [`Trial::run`].
    pub fn errors(&self, columns: &[ArrayRef]) -> Result<Float64Array> {
        let scores = score(&self.0, Start::Features, &self.rows(columns)?, &Wanted::error(), None)?;
        Ok(Float64Array::try_new(scores.error.clone(), scores.valid_error.clone())?)
    }

    fn rows(&self, columns: &[ArrayRef]) -> Result<Rows> {
        let n = columns.first().map_or(0, |column| column.len());
        Rows::new(columns, &self.0.contract().features, n)
    }
}
