//! `ae_pvalue`: how rare an error is.

use std::sync::{Arc, LazyLock};

use datafusion::arrow::array::{ArrayRef, Float64Array};
use datafusion::arrow::datatypes::DataType;
use datafusion::common::plan_err;
use datafusion::error::Result;
use datafusion::logical_expr::Documentation;

use super::{Call, Function, over_features};
use crate::matrix::Form;
use crate::model::Model;
use crate::model::calibration::Calibration;
use crate::score::{Scores, Wanted};

static DOCUMENTATION: LazyLock<Documentation> = LazyLock::new(|| {
    let gives = "The p-value of each row, Float64, 0 to 1: the share of the held-out rows that the model was calibrated on \
                 whose reconstruction error is at least as large. For rows like those it was trained on, it is uniform.";
    over_features("ae_pvalue", gives)
        .with_sql_example("SELECT * FROM payments WHERE ae_pvalue('fraud') < 0.001")
        .with_related_udf("ae_is_anomaly")
        .with_related_udf("ae_error")
        .build()
});

/// See [`DOCUMENTATION`].
#[derive(Debug)]
pub(crate) struct PValue;

impl Function for PValue {
    fn name(&self) -> &'static str {
        "ae_pvalue"
    }

    fn documentation(&self) -> &'static Documentation {
        &DOCUMENTATION
    }

    fn shown_type(&self) -> DataType {
        DataType::Float64
    }

    fn data_type(&self, model: &Model, _: &Form) -> Result<DataType> {
        model.contract().require_error()?;
        calibration(model).map(|_| DataType::Float64)
    }

    fn output(&self) -> &'static str {
        "pvalue"
    }

    fn wanted(&self, _: &Model, _: &Form) -> Result<Wanted> {
        Ok(Wanted::error())
    }

    fn result(&self, call: &Call<'_>, scores: &Scores) -> Result<ArrayRef> {
        let calibration = calibration(call.model)?;
        let p_values = scores.error.iter().map(|error| calibration.p_value(*error)).collect::<Vec<f64>>();
        Ok(Arc::new(Float64Array::try_new(p_values.into(), scores.valid_error.clone())?))
    }
}

/// The calibration of a model.
///
/// # Errors
/// A planning error that says how to get one.
pub(super) fn calibration(model: &Model) -> Result<&Calibration> {
    match &model.metadata().calibration {
        Some(calibration) => Ok(calibration),
        None => plan_err!(
            "model {model} is not calibrated: no errors of held-out rows are known; register it with AS SELECT …, whose \
             rows calibrate it, or train it with more rows or a larger calibration_fraction"
        ),
    }
}
