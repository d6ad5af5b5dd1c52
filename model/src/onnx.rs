//! ONNX graphs as protobuf: reads untrusted files, joins their parts, cuts parts out of graphs, merges two files.
//!
//! [`super::runtime`] runs graphs.

pub(crate) mod constants;
mod cut;
mod dataflow;
mod dependence;
mod external;
mod functions;
mod inline;
mod join;
mod large;
mod mean;
mod merge;
mod passage;
mod peak;
mod read;

pub(crate) use cut::{Cut, cut, decoder_entry};
pub(crate) use dataflow::{Dataflow, computed_tensors};
pub(crate) use dependence::Need;
pub use external::{ScatteredFile, check_length};
pub(crate) use inline::inline;
pub(crate) use join::{heads_of, join};
pub(crate) use large::LargeTensors;
pub(crate) use mean::{WITH_MEAN, at_mean};
pub(crate) use merge::{DECODER_PREFIX, merge};
pub(crate) use peak::peak;
pub use read::{DEFAULT_REGISTRATION_SECONDS, Limits};
pub(crate) use read::{encode, parse};

/// The protobuf types of the official ONNX schema (`proto/onnx-ml.proto`). Exporters use them too.
#[allow(
    clippy::all,
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    unused_qualifications,
    reason = "generated code"
)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
}

use proto::{TypeProto, ValueInfoProto, tensor_shape_proto::dimension, type_proto};

/// Element type and dimensions of a declared tensor; `None` for a dimension without a number.
pub fn declared_tensor(value: &ValueInfoProto) -> Option<(i32, Option<Vec<Option<i64>>>)> {
    let type_proto::Value::TensorType(tensor) = value.r#type.as_ref()?.value.as_ref()? else {
        return None;
    };
    let dims = tensor.shape.as_ref().map(|shape| {
        let value = |dim: &proto::tensor_shape_proto::Dimension| match dim.value {
            Some(dimension::Value::DimValue(n)) if n > 0 => Some(n),
            _ => None,
        };
        shape.dim.iter().map(value).collect()
    });
    Some((tensor.elem_type(), dims))
}

/// A tensor declaration `name: element[N, shape…]` with a free first dimension.
pub fn declare(name: &str, element: i32, shape: &[usize]) -> ValueInfoProto {
    let free = dimension::Value::DimParam("N".to_owned());
    let fixed = shape.iter().map(|n| dimension::Value::DimValue(i64::try_from(*n).unwrap_or(i64::MAX)));
    let dim = std::iter::once(free)
        .chain(fixed)
        .map(|value| proto::tensor_shape_proto::Dimension { value: Some(value), ..Default::default() })
        .collect();
    let tensor = type_proto::Tensor { elem_type: Some(element), shape: Some(proto::TensorShapeProto { dim }) };
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() }),
        ..Default::default()
    }
}

/// A declaration by name only: ONNX Runtime infers the type.
pub fn undeclared(name: &str) -> ValueInfoProto {
    ValueInfoProto { name: Some(name.to_owned()), ..Default::default() }
}
