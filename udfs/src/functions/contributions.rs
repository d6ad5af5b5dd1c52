//! `ae_contributions`: the contribution of each feature to the error of a row.

use std::sync::{Arc, LazyLock};

use datafusion::arrow::array::{
    ArrayRef, Float64Array, ListArray, StringArray, StructArray, UInt64Array, new_null_array,
};
use datafusion::arrow::buffer::OffsetBuffer;
use datafusion::arrow::compute::{cast, concat, take};
use datafusion::arrow::datatypes::{DataType, Field, Fields};
use datafusion::error::Result;

use super::reconstruct::{as_source, reconstructed};
use super::{BatchCall, Function, Spec, over_features};
use crate::columns::temporal_as_numbers;
use crate::matrix::Form;
use crate::model::Model;
use crate::model::contract::Contract;
use crate::model::metadata::Role;
use crate::model::runtime::Element;
use crate::output::Scores;
use crate::score::Request;

static SPEC: Spec = Spec {
    name: "ae_contributions",
    aliases: &[],
    output: "contributions",
    shown_type: || list_of(entry(DataType::Float64)),
    documentation: LazyLock::new(|| {
        let description = "The contribution of each feature to the reconstruction error of a row, largest first: a \
                           list of structs of feature, value, expected (the reconstruction), error and share. The \
                           errors sum to ae_error (for the metric rmse, to its square). The shares sum to 1.";
        over_features("ae_contributions", description)
            .with_sql_example("SELECT id, ae_contributions('pumps')[1]['feature'] FROM readings")
            .with_related_udf("ae_error")
            .build()
    }),
};

/// See [`SPEC`].
#[derive(Debug)]
pub(crate) struct Contributions;

/// `List<Struct<feature, value, expected, error, share>>`. `value` and `expected` are numbers, or text if the model
/// also reads strings.
fn list_of(entry: Fields) -> DataType {
    DataType::List(Arc::new(Field::new_list_field(DataType::Struct(entry), true)))
}

fn fields(contract: &Contract) -> Fields {
    match contract.inputs.iter().any(|input| input.element == Element::String) {
        true => entry(DataType::Utf8),
        false => entry(DataType::Float64),
    }
}

fn entry(value: DataType) -> Fields {
    Fields::from(vec![
        Field::new("feature", DataType::Utf8, false),
        Field::new("value", value.clone(), true),
        Field::new("expected", value, true),
        Field::new("error", DataType::Float64, true),
        Field::new("share", DataType::Float64, true),
    ])
}

impl Function for Contributions {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn data_type(&self, model: &Model, _: &Form) -> Result<DataType> {
        let contract = model.contract();
        contract.require_error()?;
        contract.require_error_features()?;
        Ok(list_of(fields(contract)))
    }

    fn request(&self, model: &Model, _: &Form) -> Result<Request> {
        let expected = model.contract().tensor(Role::Reconstruction).map(|_| Role::Reconstruction);
        Ok(Request::roles(expected.into_iter().collect::<Vec<_>>()).and(&Request::parts()))
    }

    fn result(&self, call: &BatchCall<'_>, scores: &Scores) -> Result<ArrayRef> {
        let contract = call.model.contract();
        let (n, width) = (call.rows.len(), contract.features.len());
        let valid = &scores.valid_error;
        let fields = fields(contract);
        let value_type = fields[1].data_type();
        // column-major: the value of row r and feature f is at f·n + r
        let shown = |column: &ArrayRef| match value_type {
            DataType::Float64 => Ok(cast(&temporal_as_numbers(column)?, value_type)?),
            _ => Ok(cast(column, value_type)?),
        };
        let stacked = |columns: Vec<ArrayRef>| -> Result<ArrayRef> {
            let columns = columns.iter().map(shown).collect::<Result<Vec<_>>>()?;
            Ok(concat(&columns.iter().map(AsRef::as_ref).collect::<Vec<_>>())?)
        };
        let values = stacked((0..width).map(|i| call.rows.feature(i, width)).collect::<Result<_>>()?)?;
        let expected = match contract.tensor(Role::Reconstruction) {
            None => new_null_array(value_type, n * width),
            Some(_) => {
                // a feature that is not reconstructed, as a condition, has nothing to expect
                let mut expected = vec![new_null_array(value_type, n); width];
                let columns = scores.matrix(Role::Reconstruction)?.columns();
                for (column, (place, feature)) in columns.iter().zip(reconstructed(call.model)) {
                    expected[place] = as_source(column, feature)?;
                }
                stacked(expected)?
            }
        };
        let is_valid = |row: usize| valid.as_ref().is_none_or(|valid| valid.is_valid(row));
        let mut ranked = Ranked::default();
        let lengths = OffsetBuffer::from_lengths((0..n).map(|row| if is_valid(row) { width } else { 0 }));
        for row in (0..n).filter(|row| is_valid(*row)) {
            ranked.push(row, n, &scores.parts[row * width..(row + 1) * width]);
        }
        let names = StringArray::from_iter_values(contract.features.iter().map(|feature| feature.name.as_str()));
        let entries = StructArray::try_new(
            fields.clone(),
            vec![
                take(&names, &UInt64Array::from(ranked.features), None)?,
                take(&values, &UInt64Array::from(ranked.indices.clone()), None)?,
                take(&expected, &UInt64Array::from(ranked.indices), None)?,
                Arc::new(Float64Array::from(ranked.errors)),
                Arc::new(Float64Array::from(ranked.shares)),
            ],
            None,
        )?;
        let item = Arc::new(Field::new_list_field(DataType::Struct(fields), true));
        Ok(Arc::new(ListArray::try_new(item, lengths, Arc::new(entries), valid.clone())?))
    }
}

/// The entries of all rows, row after row.
#[derive(Debug, Default)]
struct Ranked {
    features: Vec<u64>,
    /// Indices into the column-major values.
    indices: Vec<u64>,
    errors: Vec<f64>,
    shares: Vec<Option<f64>>,
}

impl Ranked {
    fn push(&mut self, row: usize, n: usize, parts: &[f64]) {
        let total: f64 = parts.iter().sum();
        let mut order: Vec<usize> = (0..parts.len()).collect();
        // a stable sort: equal parts keep the order of the model
        order.sort_by(|a, b| parts[*b].total_cmp(&parts[*a]));
        for feature in order {
            self.features.push(feature as u64);
            self.indices.push((feature * n + row) as u64);
            self.errors.push(parts[feature]);
            // a perfect reconstruction has no error to share
            self.shares.push((total > 0.0).then(|| parts[feature] / total));
        }
    }
}
