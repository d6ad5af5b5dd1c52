//! `ae_error`: the reconstruction error.

use std::sync::{Arc, LazyLock};

use datafusion::arrow::array::{ArrayRef, Float64Array};
use datafusion::arrow::datatypes::DataType;
use datafusion::error::Result;

use super::{BatchCall, Function, Spec, over_features};
use crate::matrix::Form;
use crate::model::Model;
use crate::output::Scores;
use crate::score::Request;

static SPEC: Spec = Spec {
    name: "ae_error",
    aliases: &[],
    output: "error",
    shown_type: || DataType::Float64,
    documentation: LazyLock::new(|| {
        let description = "The reconstruction error of each row, Float64: the mean squared difference between input \
                           and reconstruction over the features, or the error_metric of the model. The difference is \
                           taken in the scaled space if the model has one.";
        over_features("ae_error", description)
            .with_sql_example("SELECT * FROM payments WHERE ae_error('fraud') > 0.5")
            .with_related_udf("ae_contributions")
            .build()
    }),
};

/// See [`SPEC`].
#[derive(Debug)]
pub(crate) struct ReconstructionError;

impl Function for ReconstructionError {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn data_type(&self, model: &Model, _: &Form) -> Result<DataType> {
        model.contract().require_error().map(|_| DataType::Float64)
    }

    fn request(&self, _: &Model, _: &Form) -> Result<Request> {
        Ok(Request::error())
    }

    fn result(&self, _: &BatchCall<'_>, scores: &Scores) -> Result<ArrayRef> {
        Ok(Arc::new(Float64Array::try_new(scores.error.clone(), scores.valid_error.clone())?))
    }
}
