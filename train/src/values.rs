//! The values of columns of a query, as numbers and as texts.

use aefusion_udfs::columns::to_numbers;
use datafusion::arrow::array::{ArrayRef, AsArray, Float64Array};
use datafusion::arrow::datatypes::Float64Type;
use datafusion::error::Result;

/// The numbers of the column `name`; NaN becomes null.
///
/// # Errors
/// An execution error if a value is not a number.
pub(crate) fn numbers(name: &str, array: &ArrayRef) -> Result<Float64Array> {
    let numbers = to_numbers(array).map_err(|e| e.context(format!("column \"{name}\" cannot be read as numbers")))?;
    Ok(without_nan(numbers.as_primitive::<Float64Type>()))
}

/// Replaces NaN with null.
fn without_nan(numbers: &Float64Array) -> Float64Array {
    if !numbers.values().iter().any(|value| value.is_nan()) {
        return numbers.clone();
    }
    numbers.iter().map(|value| value.filter(|value| !value.is_nan())).collect()
}
