//! Columns as a model reads them: their types, and dates and timestamps as numbers.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array};
use arrow::compute::{CastOptions, cast, cast_with_options};
use arrow::datatypes::{DataType, Int64Type, TimeUnit};
use datafusion_common::error::Result;
use datafusion_common::exec_err;

/// The kind of a column for a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnKind {
    /// Numbers, booleans (0 and 1), dates (days since 1970-01-01) and timestamps (seconds since then, UTC).
    Number,
    /// Text.
    Text,
}

impl ColumnKind {
    /// The kind of a type; none if no model reads it.
    pub fn of(data_type: &DataType) -> Option<Self> {
        match data_type {
            DataType::Dictionary(_, value) => Self::of(value),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Some(Self::Text),
            DataType::Boolean | DataType::Null => Some(Self::Number),
            other => (other.is_numeric() || ticks(other).is_some()).then_some(Self::Number),
        }
    }
}

/// Ticks a day for a date, ticks a second for a timestamp; none for other types.
fn ticks(data_type: &DataType) -> Option<f64> {
    match data_type {
        DataType::Date32 => Some(1.0),
        DataType::Date64 => Some(86_400_000.0),
        DataType::Timestamp(TimeUnit::Second, _) => Some(1.0),
        DataType::Timestamp(TimeUnit::Millisecond, _) => Some(1e3),
        DataType::Timestamp(TimeUnit::Microsecond, _) => Some(1e6),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => Some(1e9),
        _ => None,
    }
}

/// Whether a type is a date or a timestamp.
pub fn is_temporal(data_type: &DataType) -> bool {
    match data_type {
        DataType::Dictionary(_, value) => is_temporal(value),
        other => ticks(other).is_some(),
    }
}

/// A column of numbers, booleans, dates or timestamps as `Float64`: dates in days, timestamps in seconds, both since
/// 1970-01-01 UTC.
///
/// # Errors
/// An execution error for any other type.
pub fn to_numbers(array: &ArrayRef) -> Result<ArrayRef> {
    if let DataType::Dictionary(_, value) = array.data_type() {
        return to_numbers(&cast(array, value)?);
    }
    let Some(per_unit) = ticks(array.data_type()) else {
        if ColumnKind::of(array.data_type()) != Some(ColumnKind::Number) {
            return exec_err!("expected a column of numbers, found {}", array.data_type());
        }
        let options = CastOptions { safe: false, ..Default::default() };
        return Ok(cast_with_options(array, &DataType::Float64, &options)?);
    };
    // Arrow casts a date only to the integer of its own width
    let ticks = match array.data_type() {
        DataType::Date32 => cast(&cast(array, &DataType::Int32)?, &DataType::Int64)?,
        _ => cast(array, &DataType::Int64)?,
    };
    let numbers: Float64Array = ticks.as_primitive::<Int64Type>().unary(|tick| tick as f64 / per_unit);
    Ok(Arc::new(numbers))
}

/// Numbers as dates, to the nearest day, or timestamps, to the nearest tick: the inverse of [`to_numbers`]. NaN becomes
/// null.
///
/// # Errors
/// An execution error if the type is neither, or a number is beyond its range.
pub fn from_numbers(numbers: &Float64Array, to: &DataType) -> Result<ArrayRef> {
    let Some(per_unit) = ticks(to) else { return exec_err!("{to} is neither a date nor a timestamp") };
    let ticks = |value: f64| match to {
        // milliseconds, of whole days
        DataType::Date64 => value.round() * per_unit,
        _ => (value * per_unit).round(),
    };
    let rounded: Float64Array = numbers.iter().map(|value| value.filter(|value| !value.is_nan()).map(ticks)).collect();
    let ticks = cast(&rounded, &DataType::Int64)?;
    let narrow = if *to == DataType::Date32 { cast(&ticks, &DataType::Int32)? } else { ticks };
    Ok(cast(&narrow, to)?)
}

/// Dates and timestamps as numbers; other columns unchanged.
///
/// # Errors
/// An error if Arrow cannot cast the column.
pub fn temporal_as_numbers(array: &ArrayRef) -> Result<ArrayRef> {
    if is_temporal(array.data_type()) { to_numbers(array) } else { Ok(Arc::clone(array)) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use arrow::array::{Date32Array, Date64Array, TimestampMillisecondArray};
    use arrow::datatypes::Float64Type;

    use super::*;

    #[test]
    fn dates_are_whole_days() {
        // 0.5 rounds away from 0
        let numbers = Float64Array::from(vec![Some(10957.4), Some(10957.5), Some(-0.6), Some(f64::NAN), None]);
        let days = [Some(10957), Some(10958), Some(-1), None, None];
        let date32: ArrayRef = Arc::new(Date32Array::from_iter(days));
        let milliseconds = days.map(|day| day.map(|day| i64::from(day) * 86_400_000));
        let date64: ArrayRef = Arc::new(Date64Array::from_iter(milliseconds));
        assert_eq!(&from_numbers(&numbers, &DataType::Date32).unwrap(), &date32);
        assert_eq!(&from_numbers(&numbers, &DataType::Date64).unwrap(), &date64);
    }

    #[test]
    fn dates_and_timestamps_become_numbers_and_come_back() {
        // 2000-01-01 is day 10957; 2001-09-09T01:46:40.5Z is second 1,000,000,000.5
        let dates: ArrayRef = Arc::new(Date32Array::from(vec![Some(10957), None]));
        let times: ArrayRef =
            Arc::new(TimestampMillisecondArray::from(vec![Some(1_000_000_000_500), None]).with_timezone("+02:00"));
        for (array, expected) in [(dates, 10957.0), (times, 1_000_000_000.5)] {
            let numbers = to_numbers(&array).unwrap();
            let numbers = numbers.as_primitive::<Float64Type>();
            assert_eq!(numbers.iter().collect::<Vec<_>>(), [Some(expected), None]);
            assert_eq!(&from_numbers(numbers, array.data_type()).unwrap(), &array);
        }
    }
}
