//! `ae_is_anomaly`: whether the p-value of a row is at most the contamination.

use std::sync::{Arc, LazyLock};

use datafusion::arrow::array::{ArrayRef, BooleanArray};
use datafusion::arrow::datatypes::DataType;
use datafusion::common::plan_err;
use datafusion::error::Result;

use super::pvalue::calibration;
use super::{BatchCall, Function, Spec, over_features};
use crate::matrix::Form;
use crate::model::Model;
use crate::output::Scores;
use crate::score::Request;

static SPEC: Spec = Spec {
    name: "ae_is_anomaly",
    aliases: &[],
    output: "is_anomaly",
    shown_type: || DataType::Boolean,
    documentation: LazyLock::new(|| {
        let description = "Whether each row is an anomaly, Boolean: its p-value is at most the contamination of the \
                           model. The contamination is the expected share of anomalies.";
        over_features("ae_is_anomaly", description)
            .with_sql_example("SELECT * FROM payments WHERE ae_is_anomaly('fraud')")
            .with_related_udf("ae_pvalue")
            .build()
    }),
};

/// See [`SPEC`].
#[derive(Debug)]
pub(crate) struct IsAnomaly;

impl Function for IsAnomaly {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn data_type(&self, model: &Model, _: &Form) -> Result<DataType> {
        model.contract().require_error()?;
        calibration(model)?;
        contamination(model).map(|_| DataType::Boolean)
    }

    fn request(&self, _: &Model, _: &Form) -> Result<Request> {
        Ok(Request::error())
    }

    fn result(&self, call: &BatchCall<'_>, scores: &Scores) -> Result<ArrayRef> {
        let (calibration, share) = (calibration(call.model)?, contamination(call.model)?);
        let is_anomaly = scores.error.iter().map(|error| calibration.p_value(*error) <= share).collect();
        Ok(Arc::new(BooleanArray::new(is_anomaly, scores.valid_error.clone())))
    }
}

fn contamination(model: &Model) -> Result<f64> {
    match model.contract().contamination {
        Some(share) => Ok(share),
        None => plan_err!(
            "model {model} has no contamination, the expected share of anomalies; set it with ALTER MODEL {} SET \
             OPTIONS (contamination = 0.01)",
            model.name()
        ),
    }
}
