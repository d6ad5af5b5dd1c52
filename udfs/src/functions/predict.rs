//! `ae_predict`: the class of a row.

use std::sync::{Arc, LazyLock};

use datafusion::arrow::array::{Array, ArrayRef, AsArray, Int64Array, StringArray, UInt64Array};
use datafusion::arrow::compute::{cast, take};
use datafusion::arrow::datatypes::{DataType, Float32Type};
use datafusion::common::plan_err;
use datafusion::error::Result;
use datafusion::logical_expr::Documentation;

use super::{Call, Function, over_features};
use crate::matrix::Form;
use crate::model::Model;
use crate::model::metadata::Role;
use crate::narrow::dim;
use crate::score::{Scores, Wanted};

static DOCUMENTATION: LazyLock<Documentation> = LazyLock::new(|| {
    let gives = "The most probable label of each row, by a classifier; of the type that the labels had in training. A model \
                 made elsewhere gives the number of the class, from 0.";
    over_features("ae_predict", gives)
        .with_sql_example("SELECT id, ae_predict('digit') FROM scans")
        .with_related_udf("ae_predict_proba")
        .build()
});

/// See [`DOCUMENTATION`].
#[derive(Debug)]
pub(crate) struct Predict;

impl Function for Predict {
    fn name(&self) -> &'static str {
        "ae_predict"
    }

    fn documentation(&self) -> &'static Documentation {
        &DOCUMENTATION
    }

    fn shown_type(&self) -> DataType {
        DataType::Utf8
    }

    fn data_type(&self, model: &Model, _: &Form) -> Result<DataType> {
        labels(model).map(|labels| labels.data_type().clone())
    }

    fn output(&self) -> &'static str {
        "label"
    }

    fn wanted(&self, _: &Model, _: &Form) -> Result<Wanted> {
        Ok(Wanted::roles([Role::Logits]))
    }

    fn result(&self, call: &Call<'_>, scores: &Scores) -> Result<ArrayRef> {
        let logits = scores.matrix(Role::Logits)?;
        let values = logits.to_f32();
        let largest = values.as_primitive::<Float32Type>().values().chunks_exact(logits.width).map(largest);
        let places = UInt64Array::new(largest.collect(), scores.valid.clone());
        Ok(take(&labels(call.model)?, &places, None)?)
    }
}

/// Place of the largest number; of equal ones the first.
fn largest(logits: &[f32]) -> u64 {
    let place = |best: usize, (i, value): (usize, &f32)| if *value > logits[best] { i } else { best };
    logits.iter().enumerate().fold(0, place) as u64
}

/// The label of each logit.
///
/// # Errors
/// A planning error if the model is not a classifier.
pub(super) fn labels(model: &Model) -> Result<ArrayRef> {
    let Some(logits) = model.contract().tensor(Role::Logits) else {
        return plan_err!(
            "model {model} is not a classifier: it has no logits; train one by CREATE MODEL … OPTIONS (model_type = \
             'classifier', …)"
        );
    };
    let Some(classes) = &model.metadata().classes else {
        return Ok(Arc::new(Int64Array::from_iter_values((0..logits.width()).map(dim))));
    };
    let labels = StringArray::from_iter_values(&classes.labels);
    if labels.len() != logits.width() {
        return plan_err!("model {model} has {} logits and the labels of {} classes", logits.width(), labels.len());
    }
    match classes.type_name.parse::<DataType>() {
        Ok(data_type) => Ok(cast(&labels, &data_type)?),
        Err(_) => plan_err!("model {model}: '{}' is not the name of a type of labels", classes.type_name),
    }
}
