//! `ae_reconstruct`: the reconstruction of a row, in the units of the input.

use std::sync::{Arc, LazyLock};

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, StringArray, StructArray, make_array,
};
use datafusion::arrow::buffer::NullBuffer;
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, Fields, Float64Type, UInt32Type};
use datafusion::common::plan_err;
use datafusion::error::Result;

use super::{BatchCall, Function, Spec, over_features};
use crate::columns::{ColumnKind, from_numbers, is_temporal};
use crate::matrix::{Form, list_array, list_type};
use crate::model::Model;
use crate::model::metadata::{Feature, Role};
use crate::output::{Matrix, Scores};
use crate::score::Request;

static SPEC: Spec = Spec {
    name: "ae_reconstruct",
    aliases: &["ae_denoise"],
    output: "reconstruction",
    shown_type: || DataType::new_list(DataType::Float32, true),
    documentation: LazyLock::new(|| {
        let description = "The reconstruction of each row, in the units of the input. A list gives a list of Float32. \
                           Columns or a struct give a struct with the names of the features and the types of the \
                           columns.";
        over_features("ae_reconstruct", description)
            .with_sql_example("SELECT id, r['flow'] FROM (SELECT id, ae_reconstruct('pumps') AS r FROM readings)")
            .with_alternative_syntax("ae_denoise(['model'] [, features])")
            .with_related_udf("ae_encode")
            .build()
    }),
};

/// See [`SPEC`].
#[derive(Debug)]
pub(crate) struct Reconstruct;

impl Function for Reconstruct {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn data_type(&self, model: &Model, form: &Form) -> Result<DataType> {
        reconstruction_type(model, form)
    }

    fn request(&self, _: &Model, _: &Form) -> Result<Request> {
        Ok(Request::roles([Role::Reconstruction]))
    }

    fn result(&self, call: &BatchCall<'_>, scores: &Scores) -> Result<ArrayRef> {
        reconstruction_array(call, scores.matrix(Role::Reconstruction)?, scores.valid.clone())
    }
}

/// Type of a reconstruction: a list if the features are a list, otherwise a struct of the source columns.
///
/// # Errors
/// A planning error if the model has no reconstruction in the units of the input.
pub(super) fn reconstruction_type(model: &Model, form: &Form) -> Result<DataType> {
    let contract = model.contract();
    contract.require(Role::Reconstruction)?;
    if let Form::List(_) = form {
        return Ok(list_type(contract.reconstructed.len()));
    }
    let types = form.data_types(&contract.features);
    let field = |(feature, found): (&Feature, Option<DataType>)| {
        let data_type = match found.or_else(|| feature.data_type()) {
            None | Some(DataType::Null) => DataType::Float32,
            Some(DataType::Dictionary(_, value)) => *value,
            Some(data_type) => data_type,
        };
        let is_held = match ColumnKind::of(&data_type) {
            Some(ColumnKind::Number) => feature.levels.is_empty(),
            Some(ColumnKind::Text) => !feature.levels.is_empty(),
            None => false,
        };
        match is_held {
            true => Ok(Field::new(&feature.name, data_type, true)),
            false => plan_err!("feature \"{}\" is {data_type}, but model {model} reconstructs numbers", feature.name),
        }
    };
    let columns = reconstructed(model).map(|(place, feature)| (feature, types.get(place).cloned().flatten()));
    Ok(DataType::Struct(columns.map(field).collect::<Result<Fields>>()?))
}

/// The features that a model reconstructs, with their places, in the order of the reconstruction.
pub(super) fn reconstructed(model: &Model) -> impl Iterator<Item = (usize, &Feature)> {
    let contract = model.contract();
    contract.reconstructed.iter().filter_map(|place| Some((*place, contract.features.get(*place)?)))
}

/// A reconstruction, of the type that [`reconstruction_type`] gives.
pub(super) fn reconstruction_array(
    call: &BatchCall<'_>,
    reconstruction: &Matrix,
    valid: Option<NullBuffer>,
) -> Result<ArrayRef> {
    let DataType::Struct(fields) = reconstruction_type(call.model, call.form)? else {
        return list_array(reconstruction.to_f32(), reconstruction.width, valid);
    };
    // a field of a null struct has its own nulls, and an expression that takes the field sees only these
    let column = |((values, field), (_, feature)): ((ArrayRef, &Arc<Field>), (usize, &Feature))| {
        let typed = match feature.levels.is_empty() {
            true => source_typed(&values, field.data_type())?,
            false => cast(&texts(&values, &feature.levels)?, field.data_type())?,
        };
        null_where(typed, valid.as_ref())
    };
    let columns = reconstruction.columns().into_iter().zip(&fields).zip(reconstructed(call.model));
    let columns = columns.map(column).collect::<Result<Vec<_>>>()?;
    Ok(Arc::new(StructArray::try_new(fields, columns, valid)?))
}

/// The values, with nulls in the rows that are not valid.
fn null_where(values: ArrayRef, valid: Option<&NullBuffer>) -> Result<ArrayRef> {
    if valid.is_none() {
        return Ok(values);
    }
    let nulls = NullBuffer::union(values.nulls(), valid);
    Ok(make_array(values.to_data().into_builder().nulls(nulls).build()?))
}

/// The values of a feature as the source column shows them: a text, a date, a timestamp, or a number.
pub(super) fn as_source(values: &ArrayRef, feature: &Feature) -> Result<ArrayRef> {
    match feature.data_type() {
        _ if !feature.levels.is_empty() => texts(values, &feature.levels),
        Some(data_type) if is_temporal(&data_type) => source_typed(values, &data_type),
        _ => Ok(Arc::clone(values)),
    }
}

/// The text of each row; `values` holds its index in `levels`.
fn texts(values: &ArrayRef, levels: &[String]) -> Result<ArrayRef> {
    let indices = cast(values, &DataType::UInt32)?;
    let indices = indices.as_primitive::<UInt32Type>();
    let text = |index: Option<u32>| levels.get(index? as usize).map(String::as_str);
    Ok(Arc::new(indices.iter().map(text).collect::<StringArray>()))
}

/// Numbers as a source type. Integers are rounded and clamped to their range, and a boolean is true from 0.5 up. NaN
/// is null, except in a floating-point type.
fn source_typed(values: &ArrayRef, to: &DataType) -> Result<ArrayRef> {
    if to.is_floating() {
        return Ok(cast(values, to)?);
    }
    if let DataType::Dictionary(_, value) = to {
        return Ok(cast(&source_typed(values, value)?, to)?);
    }
    let values = cast(values, &DataType::Float64)?;
    let values = values.as_primitive::<Float64Type>();
    if is_temporal(to) {
        return from_numbers(values, to);
    }
    let given = |value: f64| (!value.is_nan()).then_some(value);
    if *to == DataType::Boolean {
        let booleans: BooleanArray =
            values.values().iter().map(|value| given(*value).map(|value| value >= 0.5)).collect();
        return Ok(Arc::new(booleans));
    }
    let (low, high) = whole_range(to);
    let rounded: Float64Array = values
        .values()
        .iter()
        .map(|value| given(*value).map(|value| if to.is_integer() { value.round().clamp(low, high) } else { value }))
        .collect();
    Ok(cast(&rounded, to)?)
}

/// Smallest and largest `f64` that an integer type holds.
fn whole_range(data_type: &DataType) -> (f64, f64) {
    const BELOW_2_63: f64 = 9_223_372_036_854_774_784.0;
    const BELOW_2_64: f64 = 18_446_744_073_709_549_568.0;
    match data_type {
        DataType::Int8 => (f64::from(i8::MIN), f64::from(i8::MAX)),
        DataType::Int16 => (f64::from(i16::MIN), f64::from(i16::MAX)),
        DataType::Int32 => (f64::from(i32::MIN), f64::from(i32::MAX)),
        DataType::UInt8 => (0.0, f64::from(u8::MAX)),
        DataType::UInt16 => (0.0, f64::from(u16::MAX)),
        DataType::UInt32 => (0.0, f64::from(u32::MAX)),
        DataType::UInt64 => (0.0, BELOW_2_64),
        _ => (-9_223_372_036_854_775_808.0, BELOW_2_63),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use datafusion::arrow::datatypes::{Int8Type, Int64Type, UInt64Type};

    #[test]
    fn whole_numbers_are_rounded_and_stay_in_range() {
        let values: ArrayRef = Arc::new(Float64Array::from(vec![-1e30, -1.5, 0.4, 126.6, 1e30, f64::NAN]));
        let bytes = source_typed(&values, &DataType::Int8).unwrap();
        let expected = [Some(-128), Some(-2), Some(0), Some(127), Some(127), None];
        assert_eq!(bytes.as_primitive::<Int8Type>().iter().collect::<Vec<_>>(), expected);
        let longs = source_typed(&values, &DataType::Int64).unwrap();
        assert_eq!(longs.as_primitive::<Int64Type>().value(0), i64::MIN);
        let unsigned = source_typed(&values, &DataType::UInt64).unwrap();
        assert_eq!(unsigned.as_primitive::<UInt64Type>().value(0), 0);
        assert_eq!(unsigned.null_count(), 1);
    }
}
