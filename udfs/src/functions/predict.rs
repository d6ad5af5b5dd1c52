//! `ae_predict`: the class of a row.

use std::sync::{Arc, LazyLock};

use datafusion::arrow::array::{Array, ArrayRef, AsArray, Int64Array, StringArray, UInt64Array};
use datafusion::arrow::compute::{cast, take};
use datafusion::arrow::datatypes::{DataType, Float32Type};
use datafusion::common::plan_err;
use datafusion::error::Result;

use super::{BatchCall, Function, Spec, over_features};
use crate::matrix::Form;
use crate::model::Model;
use crate::model::metadata::Role;
use crate::numbers::dim;
use crate::output::Scores;
use crate::score::Request;

static SPEC: Spec = Spec {
    name: "ae_predict",
    aliases: &[],
    output: "label",
    shown_type: || DataType::Utf8,
    documentation: LazyLock::new(|| {
        let description = "The most probable label of each row, by a classifier. It has the type of the labels in the \
                           training. A model of another program gives the number of the class, from 0.";
        over_features("ae_predict", description)
            .with_sql_example("SELECT id, ae_predict('digit') FROM scans")
            .with_related_udf("ae_predict_proba")
            .build()
    }),
};

/// See [`SPEC`].
#[derive(Debug)]
pub(crate) struct Predict;

impl Function for Predict {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn data_type(&self, model: &Model, _: &Form) -> Result<DataType> {
        labels(model).map(|labels| labels.data_type().clone())
    }

    fn request(&self, _: &Model, _: &Form) -> Result<Request> {
        Ok(Request::roles([Role::Logits]))
    }

    fn result(&self, call: &BatchCall<'_>, scores: &Scores) -> Result<ArrayRef> {
        let logits = scores.matrix(Role::Logits)?;
        let values = logits.to_f32();
        let largest = values.as_primitive::<Float32Type>().values().chunks_exact(logits.width).map(largest);
        let indices = UInt64Array::new(largest.collect(), scores.valid.clone());
        Ok(take(&labels(call.model)?, &indices, None)?)
    }
}

/// Index of the largest number; the first if several are equal.
fn largest(logits: &[f32]) -> u64 {
    let better = |best: usize, (i, value): (usize, &f32)| if *value > logits[best] { i } else { best };
    logits.iter().enumerate().fold(0, better) as u64
}

/// The label of each logit.
///
/// # Errors
/// A planning error if the model is not a classifier.
pub(super) fn labels(model: &Model) -> Result<ArrayRef> {
    let Some(logits) = model.contract().tensor(Role::Logits) else {
        return plan_err!(
            "model {model} is not a classifier: it has no logits; train one with CREATE MODEL … OPTIONS (model_type = \
             'classifier', …)"
        );
    };
    let Some(classes) = &model.metadata().classes else {
        return Ok(Arc::new(Int64Array::from_iter_values((0..logits.width()).map(dim))));
    };
    let labels = StringArray::from_iter_values(&classes.labels);
    if labels.len() != logits.width() {
        return plan_err!("model {model} has {} logits, but labels for {} classes", logits.width(), labels.len());
    }
    match classes.type_name.parse::<DataType>() {
        Ok(data_type) => Ok(cast(&labels, &data_type)?),
        Err(_) => plan_err!("model {model}: '{}' is not the name of a type of labels", classes.type_name),
    }
}
