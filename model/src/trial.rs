//! A test run of a file before its publication.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float64Array};
use arrow::datatypes::Float32Type;
use bytes::Bytes;
use datafusion_common::error::Result;

use crate::matrix::Rows;
use crate::metadata::Role;
use crate::model::{Model, Start};
use crate::name::ModelName;
use crate::onnx::Limits;
use crate::registration::verified;
use crate::score::{Request, score};

/// A model that is not in the store.
#[derive(Debug)]
pub struct Trial(Arc<Model>);

impl From<Arc<Model>> for Trial {
    /// A model whose file was registered.
    fn from(model: Arc<Model>) -> Self {
        Self(model)
    }
}

impl Trial {
    /// Loads a file, and runs everything that the functions can run.
    ///
    /// # Errors
    /// A planning error if the store would refuse the file.
    pub fn load(name: &ModelName, bytes: Bytes, limits: &Limits) -> Result<Self> {
        verified(name, 0, bytes, limits).map(|model| Self(Arc::new(model)))
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.0
    }

    /// The values of a tensor for rows.
    ///
    /// # Shapes
    /// - `columns`: one column for each feature, in the order of the model
    /// - returns `[rows, width]`, row-major
    ///
    /// # Errors
    /// A planning error if there is no such tensor, an execution error if the rows do not fit.
    pub fn run(&self, role: Role, columns: &[ArrayRef]) -> Result<Vec<f32>> {
        let scores = score(&self.0, Start::Features, &self.rows(columns)?, &Request::roles([role]), None)?;
        Ok(scores.matrix(role)?.to_f32().as_primitive::<Float32Type>().values().to_vec())
    }

    /// The columns of a tensor for rows, in the precision of the model.
    ///
    /// # Errors
    /// As [`Trial::run`].
    pub fn columns(&self, role: Role, columns: &[ArrayRef]) -> Result<Vec<ArrayRef>> {
        let scores = score(&self.0, Start::Features, &self.rows(columns)?, &Request::roles([role]), None)?;
        Ok(scores.matrix(role)?.columns())
    }

    /// The reconstruction error of rows, the same as `ae_error`.
    ///
    /// # Errors
    /// As [`Trial::run`].
    pub fn errors(&self, columns: &[ArrayRef]) -> Result<Float64Array> {
        let scores = score(&self.0, Start::Features, &self.rows(columns)?, &Request::error(), None)?;
        Ok(Float64Array::try_new(scores.error.clone(), scores.valid_error.clone())?)
    }

    fn rows(&self, columns: &[ArrayRef]) -> Result<Rows> {
        let n = columns.first().map_or(0, |column| column.len());
        Rows::new(columns, &self.0.contract().features, n)
    }
}
