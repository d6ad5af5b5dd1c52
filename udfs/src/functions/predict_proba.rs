//! `ae_predict_proba`: the probability of each class.

use std::sync::{Arc, LazyLock};

use datafusion::arrow::array::{Array, ArrayRef, AsArray, Float64Array, ListArray, StructArray, UInt64Array};
use datafusion::arrow::buffer::OffsetBuffer;
use datafusion::arrow::compute::take;
use datafusion::arrow::datatypes::{DataType, Field, Fields, Float32Type};
use datafusion::error::Result;

use super::predict::labels;
use super::{BatchCall, Function, Spec, over_features};
use crate::matrix::Form;
use crate::model::Model;
use crate::model::metadata::Role;
use crate::output::Scores;
use crate::score::Request;

static SPEC: Spec = Spec {
    name: "ae_predict_proba",
    aliases: &[],
    output: "probabilities",
    shown_type: || list_of(DataType::Utf8),
    documentation: LazyLock::new(|| {
        let description = "The probability of each label for a row, by a classifier: a list of structs of label and \
                           probability, most probable first. The probabilities are the softmax of the logits and sum \
                           to 1.";
        over_features("ae_predict_proba", description)
            .with_sql_example("SELECT id, ae_predict_proba('digit')[1]['probability'] FROM scans")
            .with_related_udf("ae_predict")
            .build()
    }),
};

/// See [`SPEC`].
#[derive(Debug)]
pub(crate) struct PredictProba;

fn entry(label: DataType) -> Fields {
    vec![Field::new("label", label, true), Field::new("probability", DataType::Float64, true)].into()
}

fn list_of(label: DataType) -> DataType {
    DataType::List(Arc::new(Field::new_list_field(DataType::Struct(entry(label)), true)))
}

impl Function for PredictProba {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn data_type(&self, model: &Model, _: &Form) -> Result<DataType> {
        labels(model).map(|labels| list_of(labels.data_type().clone()))
    }

    fn request(&self, _: &Model, _: &Form) -> Result<Request> {
        Ok(Request::roles([Role::Logits]))
    }

    fn result(&self, call: &BatchCall<'_>, scores: &Scores) -> Result<ArrayRef> {
        let labels = labels(call.model)?;
        let logits = scores.matrix(Role::Logits)?;
        let values = logits.to_f32();
        let is_valid = |row: usize| scores.valid.as_ref().is_none_or(|valid| valid.is_valid(row));
        let (mut places, mut probabilities): (Vec<u64>, Vec<f64>) = Default::default();
        let mut lengths = Vec::with_capacity(call.rows.len());
        for (row, logits) in values.as_primitive::<Float32Type>().values().chunks_exact(logits.width).enumerate() {
            lengths.push(if is_valid(row) { logits.len() } else { 0 });
            if is_valid(row) {
                let softmax = softmax(logits);
                let mut order: Vec<usize> = (0..logits.len()).collect();
                // a stable sort: equally probable labels keep their order
                order.sort_by(|a, b| softmax[*b].total_cmp(&softmax[*a]));
                places.extend(order.iter().map(|place| *place as u64));
                probabilities.extend(order.iter().map(|place| softmax[*place]));
            }
        }
        let fields = entry(labels.data_type().clone());
        let columns =
            vec![take(&labels, &UInt64Array::from(places), None)?, Arc::new(Float64Array::from(probabilities))];
        let entries = StructArray::try_new(fields.clone(), columns, None)?;
        let item = Arc::new(Field::new_list_field(DataType::Struct(fields), true));
        let lengths = OffsetBuffer::from_lengths(lengths);
        Ok(Arc::new(ListArray::try_new(item, lengths, Arc::new(entries), scores.valid.clone())?))
    }
}

/// The softmax of logits, in `f64`.
fn softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = logits.iter().map(|value| (f64::from(*value) - f64::from(largest)).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}
