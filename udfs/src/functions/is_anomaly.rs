//! `ae_is_anomaly`: whether an error is as rare as anomalies are expected to be.

use std::sync::{Arc, LazyLock};

use datafusion::arrow::array::{ArrayRef, BooleanArray};
use datafusion::arrow::datatypes::DataType;
use datafusion::common::plan_err;
use datafusion::error::Result;
use datafusion::logical_expr::Documentation;

use super::pvalue::calibration;
use super::{Call, Function, over_features};
use crate::matrix::Form;
use crate::model::Model;
use crate::score::{Scores, Wanted};

static DOCUMENTATION: LazyLock<Documentation> = LazyLock::new(|| {
    let gives = "Whether each row is an anomaly, Boolean: its p-value is at or under the model's contamination, the share of \
                 rows that are expected to be anomalies.";
    over_features("ae_is_anomaly", gives)
        .with_sql_example("SELECT * FROM payments WHERE ae_is_anomaly('fraud')")
        .with_related_udf("ae_pvalue")
        .build()
});

/// See [`DOCUMENTATION`].
#[derive(Debug)]
pub(crate) struct IsAnomaly;

impl Function for IsAnomaly {
    fn name(&self) -> &'static str {
        "ae_is_anomaly"
    }

    fn documentation(&self) -> &'static Documentation {
        &DOCUMENTATION
    }

    fn shown_type(&self) -> DataType {
        DataType::Boolean
    }

    fn data_type(&self, model: &Model, _: &Form) -> Result<DataType> {
        model.contract().require_error()?;
        calibration(model)?;
        contamination(model).map(|_| DataType::Boolean)
    }

    fn output(&self) -> &'static str {
        "is_anomaly"
    }

    fn wanted(&self, _: &Model, _: &Form) -> Result<Wanted> {
        Ok(Wanted::error())
    }

    fn result(&self, call: &Call<'_>, scores: &Scores) -> Result<ArrayRef> {
        let (calibration, share) = (calibration(call.model)?, contamination(call.model)?);
        let is_anomaly = scores.error.iter().map(|error| calibration.p_value(*error) <= share).collect();
        Ok(Arc::new(BooleanArray::new(is_anomaly, scores.valid_error.clone())))
    }
}

fn contamination(model: &Model) -> Result<f64> {
    match model.contract().contamination {
        Some(share) => Ok(share),
        None => plan_err!(
            "model {model} does not say which share of rows are anomalies; set it by ALTER MODEL {} SET OPTIONS \
             (contamination = 0.01)",
            model.name()
        ),
    }
}
