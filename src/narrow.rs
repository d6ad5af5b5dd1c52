//! Every narrowing of a number in this package, in one place.

#![allow(clippy::cast_possible_truncation, reason = "this is the one file for it")]

/// The nearest `f32`; infinite where it does not fit.
pub(crate) fn to_f32(value: f64) -> f32 {
    value as f32
}

/// The nearest whole number; 0 for a negative one, the largest for one that does not fit.
pub(crate) fn to_usize(value: f64) -> usize {
    #[allow(clippy::cast_sign_loss, reason = "negative ones are 0")]
    let whole = value.round() as usize;
    whole
}
