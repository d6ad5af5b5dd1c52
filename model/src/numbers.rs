//! Lossy conversions of numbers. Each documents what happens to values that do not fit.

#![allow(clippy::cast_possible_truncation, reason = "only this file may do it")]

use half::f16;

/// Numbers of a tensor or a column that convert to `f32`.
pub trait ToF32: Copy {
    /// The nearest `f32`; infinity if it does not fit.
    fn to_f32(self) -> f32;
}

macro_rules! to_f32 {
    ($($number:ty),*) => { $(impl ToF32 for $number {
        fn to_f32(self) -> f32 {
            self as f32
        }
    })* };
}
to_f32!(f32, f64, i8, i16, i32, i64, u8, u16, u32);

impl ToF32 for f16 {
    fn to_f32(self) -> f32 {
        f32::from(self)
    }
}

impl ToF32 for bool {
    fn to_f32(self) -> f32 {
        f32::from(u8::from(self))
    }
}

/// Integers of a tensor that a number is rounded to.
pub(crate) trait Rounded {
    /// The nearest integer; the smallest or largest if it does not fit.
    fn rounded(number: f64) -> Self;
}

macro_rules! rounded {
    ($($integer:ty),*) => { $(impl Rounded for $integer {
        #[allow(clippy::cast_sign_loss, reason = "negative numbers become 0")]
        fn rounded(number: f64) -> Self {
            number.round() as Self
        }
    })* };
}
rounded!(i8, i16, i32, i64, u8, u16, u32, u64);

/// Numbers of a tensor or a column that convert to `f64`.
pub(crate) trait ToF64: Copy {
    /// The nearest `f64`; exact for floating-point numbers, and for integers up to 2^53.
    fn to_f64(self) -> f64;
}

macro_rules! to_f64 {
    ($($number:ty),*) => { $(impl ToF64 for $number {
        fn to_f64(self) -> f64 {
            self as f64
        }
    })* };
}
to_f64!(f32, f64, i8, i16, i32, i64, u8, u16, u32, u64);

impl ToF64 for f16 {
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
}

impl ToF64 for bool {
    fn to_f64(self) -> f64 {
        f64::from(u8::from(self))
    }
}

/// The nearest `f64`; exact up to 2^53.
pub fn f64_from_usize(value: usize) -> f64 {
    value as f64
}

/// The nearest `f64`; exact up to 2^53.
pub(crate) fn f64_from_i64(value: i64) -> f64 {
    value as f64
}

/// A dimension for ONNX Runtime. Sizes in memory always fit.
pub fn dim(value: usize) -> i64 {
    value as i64
}

/// A list size for Arrow. Saturates; Arrow then refuses the size.
pub fn list_size(value: usize) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

/// A whole number from 0 up; none for any other number.
pub fn whole(value: f64) -> Option<u64> {
    #[allow(clippy::cast_sign_loss, reason = "checked")]
    (value >= 0.0 && value.fract() == 0.0 && value < 1.8e19).then_some(value as u64)
}

/// A count from a file; at most `usize::MAX`.
pub fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// The nearest `f32`; infinity if it does not fit.
pub fn to_f32(value: f64) -> f32 {
    value as f32
}

/// The nearest whole number; 0 for negative numbers, `usize::MAX` for numbers that do not fit.
pub fn rounded(value: f64) -> usize {
    #[allow(clippy::cast_sign_loss, reason = "negative numbers become 0")]
    let whole = value.round() as usize;
    whole
}
