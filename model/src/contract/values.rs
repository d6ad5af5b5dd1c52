//! Rows for test runs.

use half::f16;

use crate::numbers::{Rounded, to_f32};
use crate::runtime::{Element, Input};

macro_rules! values {
    ($($kind:ident: $native:ty),*) => {
        /// Rows of a tensor, row-major.
        #[derive(Debug, Clone)]
        pub(crate) enum Values {
            $(#[allow(missing_docs, reason = "the name says it")] $kind(Vec<$native>)),*
        }

        impl Values {
            /// Zeros, or empty strings.
            pub(crate) fn zeros(element: Element, n: usize) -> Self {
                match element { $(Element::$kind => Self::$kind(vec![<$native>::default(); n])),* }
            }

            pub(crate) fn input(&self) -> Input<'_> {
                match self { $(Self::$kind(data) => Input::$kind(data)),* }
            }

            /// Rows by index, in this order; a row of zeros for none.
            pub(crate) fn rows(&self, width: usize, rows: &[Option<usize>]) -> Self {
                match self {
                    $(Self::$kind(data) => Self::$kind(
                        rows.iter()
                            .flat_map(|row| (0..width).map(move |column| row.map(|row| row * width + column)))
                            .map(|place| place.and_then(|place| data.get(place)).cloned().unwrap_or_default())
                            .collect(),
                    )),*
                }
            }
        }
    };
}
values!(
    Float16: f16, Float32: f32, Float64: f64, Int8: i8, Int16: i16, Int32: i32, Int64: i64, UInt8: u8, UInt16: u16,
    UInt32: u32, UInt64: u64, Bool: bool, String: String
);

impl Values {
    /// The nearest values of a type; none for strings.
    pub(crate) fn of_numbers(element: Element, numbers: &[f64]) -> Option<Self> {
        macro_rules! of {
            ($($kind:ident: $native:ty),*) => {
                match element {
                    $(Element::$kind => Self::$kind(numbers.iter().map(|number| <$native>::rounded(*number)).collect()),)*
                    Element::Float16 => Self::Float16(numbers.iter().map(|number| f16::from_f64(*number)).collect()),
                    Element::Float32 => Self::Float32(numbers.iter().copied().map(to_f32).collect()),
                    Element::Float64 => Self::Float64(numbers.to_vec()),
                    Element::Bool => Self::Bool(numbers.iter().map(|number| *number > 0.5).collect()),
                    Element::String => return None,
                }
            };
        }
        Some(of!(
            Int8: i8, Int16: i16, Int32: i32, Int64: i64, UInt8: u8, UInt16: u16, UInt32: u32, UInt64: u64
        ))
    }
}
