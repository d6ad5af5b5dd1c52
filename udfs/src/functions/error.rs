//! `ae_error`: the reconstruction error.

use std::sync::{Arc, LazyLock};

use datafusion::arrow::array::{ArrayRef, Float64Array};
use datafusion::arrow::datatypes::DataType;
use datafusion::error::Result;
use datafusion::logical_expr::Documentation;

use super::{Call, Function, over_features};
use crate::matrix::Form;
use crate::model::Model;
use crate::score::{Scores, Wanted};

static DOCUMENTATION: LazyLock<Documentation> = LazyLock::new(|| {
    let gives = "The reconstruction error of each row, Float64: the mean over the features of the squared difference between \
                 input and reconstruction, in the scaled space if the model has one (or the model's own error_metric).";
    over_features("ae_error", gives)
        .with_sql_example("SELECT * FROM payments WHERE ae_error('fraud') > 0.5")
        .with_related_udf("ae_contributions")
        .build()
});

/// See [`DOCUMENTATION`].
#[derive(Debug)]
pub(crate) struct ReconstructionError;

impl Function for ReconstructionError {
    fn name(&self) -> &'static str {
        "ae_error"
    }

    fn documentation(&self) -> &'static Documentation {
        &DOCUMENTATION
    }

    fn shown_type(&self) -> DataType {
        DataType::Float64
    }

    fn data_type(&self, model: &Model, _: &Form) -> Result<DataType> {
        model.contract().require_error().map(|_| DataType::Float64)
    }

    fn output(&self) -> &'static str {
        "error"
    }

    fn wanted(&self, _: &Model, _: &Form) -> Result<Wanted> {
        Ok(Wanted::error())
    }

    fn result(&self, _: &Call<'_>, scores: &Scores) -> Result<ArrayRef> {
        Ok(Arc::new(Float64Array::try_new(scores.error.clone(), scores.valid_error.clone())?))
    }
}
