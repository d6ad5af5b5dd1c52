//! `ae_pvalue`: the p-value of the reconstruction error.

use std::sync::{Arc, LazyLock};

use datafusion::arrow::array::{ArrayRef, Float64Array};
use datafusion::arrow::datatypes::DataType;
use datafusion::common::plan_err;
use datafusion::error::Result;

use super::{BatchCall, Function, Spec, over_features};
use crate::matrix::Form;
use crate::model::Model;
use crate::model::calibration::Calibration;
use crate::output::Scores;
use crate::score::Request;

static SPEC: Spec = Spec {
    name: "ae_pvalue",
    aliases: &[],
    output: "pvalue",
    shown_type: || DataType::Float64,
    documentation: LazyLock::new(|| {
        let description = "The p-value of each row, Float64, above 0 and at most 1: the rank of its reconstruction error \
                           among those of n calibration rows, (k + 1) / (n + 1) if k of them are at least as large. For \
                           rows like the training data, it is uniformly distributed.";
        over_features("ae_pvalue", description)
            .with_sql_example("SELECT * FROM payments WHERE ae_pvalue('fraud') < 0.001")
            .with_related_udf("ae_is_anomaly")
            .with_related_udf("ae_error")
            .build()
    }),
};

/// See [`SPEC`].
#[derive(Debug)]
pub(crate) struct PValue;

impl Function for PValue {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn data_type(&self, model: &Model, _: &Form) -> Result<DataType> {
        model.contract().require_error()?;
        calibration(model).map(|_| DataType::Float64)
    }

    fn request(&self, _: &Model, _: &Form) -> Result<Request> {
        Ok(Request::error())
    }

    fn result(&self, call: &BatchCall<'_>, scores: &Scores) -> Result<ArrayRef> {
        let calibration = calibration(call.model)?;
        let p_values = scores.error.iter().map(|error| calibration.p_value(*error)).collect::<Vec<f64>>();
        Ok(Arc::new(Float64Array::try_new(p_values.into(), scores.valid_error.clone())?))
    }
}

/// The calibration of a model.
///
/// # Errors
/// A planning error if the model has none; it says how to get one.
pub(super) fn calibration(model: &Model) -> Result<&Calibration> {
    match &model.metadata().calibration {
        Some(calibration) => Ok(calibration),
        None => plan_err!(
            "model {model} is not calibrated: it has no errors of calibration rows; register it with AS SELECT … over \
             rows to calibrate on, or train it with more rows or a larger calibration_share"
        ),
    }
}
