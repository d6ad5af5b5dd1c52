//! Graphs, node by node.

use aefusion_model::onnx::proto::attribute_proto::AttributeType;
use aefusion_model::onnx::proto::{
    AttributeProto, GraphProto, NodeProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
    tensor_shape_proto, type_proto,
};
use prost::bytes::Bytes;

/// Element types of ONNX.
pub mod element {
    /// float32
    pub const FLOAT: i32 = 1;
    /// int32
    pub const INT32: i32 = 6;
    /// int64
    pub const INT64: i32 = 7;
    /// Text.
    pub const STRING: i32 = 8;
    /// bool
    pub const BOOL: i32 = 9;
    /// float16
    pub const FLOAT16: i32 = 10;
    /// float64
    pub const DOUBLE: i32 = 11;
}

/// A part of a graph that grows.
#[derive(Debug, Clone)]
pub struct Sketch {
    /// Nodes and weights.
    pub graph: GraphProto,
    /// The type of its numbers.
    pub element: i32,
    prefix: String,
    named: usize,
}

impl Sketch {
    /// An empty part, whose names begin with `prefix`.
    pub fn new(prefix: impl Into<String>, element: i32) -> Self {
        Self { graph: GraphProto::default(), element, prefix: prefix.into(), named: 0 }
    }

    /// A new name.
    pub fn name(&mut self) -> String {
        self.named += 1;
        format!("{}_{}", self.prefix, self.named)
    }

    /// Adds a node with one output, and returns the output.
    pub fn op(&mut self, kind: &str, inputs: &[&str]) -> String {
        self.op_with(kind, inputs, Vec::new())
    }

    /// [`Sketch::op`] with attributes.
    pub fn op_with(&mut self, kind: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        self.ops(kind, inputs, attributes, 1).swap_remove(0)
    }

    /// Adds a node with several outputs, and returns the outputs; at least one.
    pub fn ops(&mut self, kind: &str, inputs: &[&str], attributes: Vec<AttributeProto>, outputs: usize) -> Vec<String> {
        let outputs: Vec<String> = (0..outputs.max(1)).map(|_| self.name()).collect();
        // "domain::Operator" is an operator of another domain
        let (domain, kind) = kind.split_once("::").unwrap_or(("", kind));
        self.graph.node.push(NodeProto {
            domain: Some(domain.to_owned()).filter(|domain| !domain.is_empty()),
            op_type: Some(kind.to_owned()),
            input: inputs.iter().map(|name| (*name).to_owned()).collect(),
            output: outputs.clone(),
            attribute: attributes,
            ..NodeProto::default()
        });
        outputs
    }

    /// Adds a weight of the type of the numbers, and returns its name.
    pub fn numbers(&mut self, dims: &[i64], values: &[f64]) -> String {
        let name = self.name();
        self.graph.initializer.push(tensor(&name, self.element, dims, values));
        name
    }

    /// Adds a weight of int64, and returns its name.
    pub fn ints(&mut self, dims: &[i64], values: &[i64]) -> String {
        let name = self.name();
        self.graph.initializer.push(int_tensor(&name, dims, values));
        name
    }

    /// Adds a weight of int64 with one axis.
    pub fn list(&mut self, values: &[i64]) -> String {
        self.ints(&[i64::try_from(values.len()).unwrap_or(0)], values)
    }
}

/// A tensor of numbers.
pub fn tensor(name: &str, element: i32, dims: &[i64], values: &[f64]) -> TensorProto {
    #[allow(clippy::cast_possible_truncation, reason = "the nearest float32")]
    let single = |value: &f64| *value as f32;
    let raw: Vec<u8> = match element {
        element::DOUBLE => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        element::FLOAT16 => values.iter().flat_map(|value| half_bits(single(value)).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|value| single(value).to_le_bytes()).collect(),
    };
    TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(element),
        dims: dims.to_vec(),
        raw_data: Some(Bytes::from(raw)),
        ..TensorProto::default()
    }
}

/// The bits of a float16, cut off; 0 for numbers that it does not have.
fn half_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = u16::try_from(bits >> 31).unwrap_or(0) << 15;
    let exponent = i32::try_from((bits >> 23) & 0xff).unwrap_or(0) - 127 + 15;
    let fraction = u16::try_from((bits >> 13) & 0x3ff).unwrap_or(0);
    match exponent {
        1..=30 => sign | (u16::try_from(exponent).unwrap_or(0) << 10) | fraction,
        exponent if exponent > 30 => sign | 0x7bff,
        _ => sign,
    }
}

/// A tensor of int64.
pub fn int_tensor(name: &str, dims: &[i64], values: &[i64]) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(element::INT64),
        dims: dims.to_vec(),
        raw_data: Some(Bytes::from(values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())),
        ..TensorProto::default()
    }
}

fn attribute(name: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto { name: Some(name.to_owned()), r#type: Some(kind.into()), ..AttributeProto::default() }
}

/// An attribute with a whole number.
pub fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto { i: Some(value), ..attribute(name, AttributeType::Int) }
}

/// An attribute with whole numbers.
pub fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto { ints: values.to_vec(), ..attribute(name, AttributeType::Ints) }
}

/// An attribute with a number.
pub fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto { f: Some(value), ..attribute(name, AttributeType::Float) }
}

/// An attribute with numbers.
pub fn floats(name: &str, values: &[f32]) -> AttributeProto {
    AttributeProto { floats: values.to_vec(), ..attribute(name, AttributeType::Floats) }
}

/// An attribute with a text.
pub fn text(name: &str, value: &str) -> AttributeProto {
    AttributeProto { s: Some(Bytes::copy_from_slice(value.as_bytes())), ..attribute(name, AttributeType::String) }
}

/// An attribute with texts.
pub fn texts(name: &str, values: &[&str]) -> AttributeProto {
    let strings = values.iter().map(|value| Bytes::copy_from_slice(value.as_bytes())).collect();
    AttributeProto { strings, ..attribute(name, AttributeType::Strings) }
}

/// An attribute with a tensor.
pub fn tensor_attribute(name: &str, value: TensorProto) -> AttributeProto {
    AttributeProto { t: Some(value), ..attribute(name, AttributeType::Tensor) }
}

/// An attribute with a graph.
pub fn graph(name: &str, value: GraphProto) -> AttributeProto {
    AttributeProto { g: Some(value), ..attribute(name, AttributeType::Graph) }
}

/// A declared tensor; none for a dimension that is free.
pub fn declared(name: &str, element: i32, dims: &[Option<i64>]) -> ValueInfoProto {
    use tensor_shape_proto::dimension::Value;
    let dimension = |(place, dim): (usize, &Option<i64>)| tensor_shape_proto::Dimension {
        value: Some(dim.map_or_else(|| Value::DimParam(format!("N{place}")), Value::DimValue)),
        ..tensor_shape_proto::Dimension::default()
    };
    let shape = TensorShapeProto { dim: dims.iter().enumerate().map(dimension).collect() };
    let tensor = type_proto::Tensor { elem_type: Some(element), shape: Some(shape) };
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() }),
        ..ValueInfoProto::default()
    }
}

/// A name without a type.
pub fn undeclared(name: &str) -> ValueInfoProto {
    ValueInfoProto { name: Some(name.to_owned()), ..ValueInfoProto::default() }
}
