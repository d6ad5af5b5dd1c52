//! Every narrowing of a number, in one place, with what happens to values that do not fit.

#![allow(clippy::cast_possible_truncation, reason = "this is the one file for it")]

/// Nearest `f32`; infinite where it does not fit.
pub(crate) fn f32_from_f64(value: f64) -> f32 {
    value as f32
}

/// Nearest `f32`.
pub(crate) fn f32_from_int(value: i64) -> f32 {
    value as f32
}

/// Exact up to 2^53, else the nearest.
pub(crate) fn f64_from_usize(value: usize) -> f64 {
    value as f64
}

/// Dimensions as ONNX Runtime wants them; a size of memory always fits.
pub(crate) fn dim(value: usize) -> i64 {
    value as i64
}

/// Sizes as Arrow wants them; saturates, which Arrow then refuses.
pub(crate) fn list_size(value: usize) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}
