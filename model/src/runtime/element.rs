//! Element types of tensors.

use ort::value::TensorElementType;

/// Type of the elements of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Element {
    Float16,
    Float32,
    Float64,
    Int8,
    Int16,
    Int32,
    Int64,
    UInt8,
    UInt16,
    UInt32,
    UInt64,
    Bool,
    String,
}

impl Element {
    /// The type with a number of the ONNX schema (`TensorProto.DataType`).
    pub(crate) fn from_onnx(number: i32) -> Option<Self> {
        Some(match number {
            1 => Self::Float32,
            2 => Self::UInt8,
            3 => Self::Int8,
            4 => Self::UInt16,
            5 => Self::Int16,
            6 => Self::Int32,
            7 => Self::Int64,
            8 => Self::String,
            9 => Self::Bool,
            10 => Self::Float16,
            11 => Self::Float64,
            12 => Self::UInt32,
            13 => Self::UInt64,
            _ => return None,
        })
    }

    /// The number in the ONNX schema.
    pub(crate) fn to_onnx(self) -> i32 {
        (1..=13).find(|number| Self::from_onnx(*number) == Some(self)).unwrap_or_default()
    }

    pub(super) fn from_ort(element: TensorElementType) -> Option<Self> {
        Some(match element {
            TensorElementType::Float16 => Self::Float16,
            TensorElementType::Float32 => Self::Float32,
            TensorElementType::Float64 => Self::Float64,
            TensorElementType::Int8 => Self::Int8,
            TensorElementType::Int16 => Self::Int16,
            TensorElementType::Int32 => Self::Int32,
            TensorElementType::Int64 => Self::Int64,
            TensorElementType::Uint8 => Self::UInt8,
            TensorElementType::Uint16 => Self::UInt16,
            TensorElementType::Uint32 => Self::UInt32,
            TensorElementType::Uint64 => Self::UInt64,
            TensorElementType::Bool => Self::Bool,
            TensorElementType::String => Self::String,
            _ => return None,
        })
    }

    /// Size of one element, bytes; of a string, without its text.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::Int8 | Self::UInt8 | Self::Bool => 1,
            Self::Float16 | Self::Int16 | Self::UInt16 => 2,
            Self::Float32 | Self::Int32 | Self::UInt32 => 4,
            Self::Float64 | Self::Int64 | Self::UInt64 => 8,
            Self::String => size_of::<String>(),
        }
    }

    /// Whether it is a floating-point type.
    pub fn is_float(self) -> bool {
        matches!(self, Self::Float16 | Self::Float32 | Self::Float64)
    }
}
