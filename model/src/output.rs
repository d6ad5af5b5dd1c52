//! What a run computes: numbers, matrices, errors.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Array, Float64Array};
use arrow::buffer::{NullBuffer, ScalarBuffer};
use datafusion_common::error::Result;
use datafusion_common::internal_err;

use crate::matrix::split_columns;
use crate::metadata::Role;
use crate::numbers::ToF32;
use crate::runtime::{Element, Output};

/// Numbers that a run computes, row-major.
#[derive(Debug, Clone)]
pub(crate) enum Numbers {
    F32(Vec<f32>),
    F64(Vec<f64>),
}

impl Numbers {
    pub(crate) fn zeros(element: Element, n: usize) -> Self {
        match element {
            Element::Float64 => Self::F64(vec![0.0; n]),
            _ => Self::F32(vec![0.0; n]),
        }
    }

    /// Extends it to at least `n` numbers.
    pub(crate) fn ensure(&mut self, n: usize) {
        match self {
            Self::F32(values) if values.len() < n => values.resize(n, 0.0),
            Self::F64(values) if values.len() < n => values.resize(n, 0.0),
            _ => {}
        }
    }

    /// The slice that ONNX Runtime writes a tensor of this element type to.
    pub(crate) fn output(&mut self, element: Element, start: usize, end: usize) -> Output<'_> {
        match self {
            Self::F32(values) => match element {
                Element::Float32 => Output::Float32(&mut values[start..end]),
                _ => Output::Converted(&mut values[start..end]),
            },
            Self::F64(values) => Output::Float64(&mut values[start..end]),
        }
    }

    /// Memory, bytes.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::F32(values) => values.capacity() * size_of::<f32>(),
            Self::F64(values) => values.capacity() * size_of::<f64>(),
        }
    }
}

/// One output of a model for all rows, `[rows, width]`, row-major. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Matrix {
    values: SharedNumbers,
    /// Numbers of a row.
    pub width: usize,
}

#[derive(Debug, Clone)]
enum SharedNumbers {
    F32(ScalarBuffer<f32>),
    F64(ScalarBuffer<f64>),
}

impl Matrix {
    pub(crate) fn new(values: Numbers, width: usize, n: usize) -> Self {
        let values = match values {
            Numbers::F32(values) => SharedNumbers::F32(ScalarBuffer::from(values).slice(0, n * width)),
            Numbers::F64(values) => SharedNumbers::F64(ScalarBuffer::from(values).slice(0, n * width)),
        };
        Self { values, width }
    }

    /// All values as `Float32`; without a copy if they have that type.
    pub fn to_f32(&self) -> ArrayRef {
        match &self.values {
            SharedNumbers::F32(values) => Arc::new(Float32Array::new(values.clone(), None)),
            SharedNumbers::F64(values) => {
                Arc::new(Float32Array::from_iter_values(values.iter().copied().map(ToF32::to_f32)))
            }
        }
    }

    /// The columns, in the precision of the model.
    pub fn columns(&self) -> Vec<ArrayRef> {
        match &self.values {
            SharedNumbers::F32(values) => split_columns(values, self.width)
                .into_iter()
                .map(|column| Arc::new(Float32Array::from(column)) as ArrayRef)
                .collect(),
            SharedNumbers::F64(values) => split_columns(values, self.width)
                .into_iter()
                .map(|column| Arc::new(Float64Array::from(column)) as ArrayRef)
                .collect(),
        }
    }
}

/// What was requested, for all rows. The numbers of rows that are not valid have no meaning.
#[derive(Debug, Default)]
pub struct Scores {
    pub(crate) matrices: Vec<(Role, Matrix)>,
    /// The error of each row.
    pub error: ScalarBuffer<f64>,
    /// Part of each feature in the error, `[rows, features]`. A row sums to the error, for `rmse` to its square.
    pub parts: Vec<f64>,
    /// Rows with a result; none if all have one.
    pub valid: Option<NullBuffer>,
    /// Rows with an error: valid rows with at least one feature to compare.
    pub valid_error: Option<NullBuffer>,
}

impl Scores {
    /// The matrix of a role.
    ///
    /// # Errors
    /// An internal error if the role was not requested.
    pub fn matrix(&self, role: Role) -> Result<&Matrix> {
        match self.matrices.iter().find(|(found, _)| *found == role) {
            Some((_, matrix)) => Ok(matrix),
            None => internal_err!("the {role} was read but not requested"),
        }
    }
}
