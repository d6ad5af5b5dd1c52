//! Every narrowing of a number in this package, in one place.

#![allow(clippy::cast_possible_truncation, reason = "this is the one file for it")]

/// The nearest `f32`; infinite where it does not fit.
pub(crate) fn to_f32(value: f64) -> f32 {
    value as f32
}
