//! Builds ONNX graphs node by node.

use aefusion_udfs::model::onnx::declare;
use aefusion_udfs::model::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, attribute_proto, tensor_proto,
};

/// Versions of the operator sets. Runtimes since 2022 support them.
const OPSET: i64 = 17;
const ML_OPSET: i64 = 3;
const ML_DOMAIN: &str = "ai.onnx.ml";
const IR_VERSION: i64 = 8;

/// ONNX numbers of element types.
pub(crate) const FLOAT: i32 = tensor_proto::DataType::Float as i32;
pub(crate) const DOUBLE: i32 = tensor_proto::DataType::Double as i32;
const INT64: i32 = tensor_proto::DataType::Int64 as i32;
pub(crate) const STRING: i32 = tensor_proto::DataType::String as i32;

/// A graph under construction.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    graph: GraphProto,
}

/// The value of an attribute.
#[derive(Debug, Clone)]
pub(crate) enum Attribute<'a> {
    Whole(i64),
    Number(f32),
    Wholes(Vec<i64>),
    Texts(&'a [String]),
}

impl Graph {
    /// Declares an input `[N, width]`.
    pub(crate) fn input(&mut self, name: &str, element: i32, width: usize) {
        self.graph.input.push(declare(name, element, &[width]));
    }

    /// Declares an output `[N, width]`.
    pub(crate) fn output(&mut self, name: &str, element: i32, width: usize) {
        self.graph.output.push(declare(name, element, &[width]));
    }

    /// Adds a node with one output. The output names the node.
    pub(crate) fn node(&mut self, operator: &str, inputs: &[&str], output: &str, attributes: &[(&str, Attribute<'_>)]) {
        let domain = if operator == "LabelEncoder" { ML_DOMAIN } else { "" };
        self.graph.node.push(NodeProto {
            op_type: Some(operator.to_owned()),
            domain: Some(domain.to_owned()),
            name: Some(output.to_owned()),
            input: inputs.iter().map(|name| (*name).to_owned()).collect(),
            output: vec![output.to_owned()],
            attribute: attributes.iter().map(|(name, value)| attribute(name, value)).collect(),
            ..Default::default()
        });
    }

    /// Adds a constant of type `f32`.
    pub(crate) fn floats(&mut self, name: &str, dims: &[usize], values: &[f32]) {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        self.constant(name, FLOAT, dims, bytes);
    }

    /// Adds a constant of type `f64`.
    pub(crate) fn doubles(&mut self, name: &str, dims: &[usize], values: &[f64]) {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        self.constant(name, DOUBLE, dims, bytes);
    }

    /// Adds a constant of type `i64`.
    pub(crate) fn wholes(&mut self, name: &str, dims: &[usize], values: &[i64]) {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        self.constant(name, INT64, dims, bytes);
    }

    fn constant(&mut self, name: &str, element: i32, dims: &[usize], bytes: Vec<u8>) {
        self.graph.initializer.push(TensorProto {
            name: Some(name.to_owned()),
            data_type: Some(element),
            dims: dims.iter().map(|dim| i64::try_from(*dim).unwrap_or(i64::MAX)).collect(),
            raw_data: Some(bytes.into()),
            ..Default::default()
        });
    }

    /// The graph as a file.
    pub(crate) fn into_model(self, name: &str) -> ModelProto {
        let opset =
            |domain: &str, version| OperatorSetIdProto { domain: Some(domain.to_owned()), version: Some(version) };
        ModelProto {
            ir_version: Some(IR_VERSION),
            opset_import: vec![opset("", OPSET), opset(ML_DOMAIN, ML_OPSET)],
            producer_name: Some("aefusion".to_owned()),
            producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            graph: Some(GraphProto { name: Some(name.to_owned()), ..self.graph }),
            ..Default::default()
        }
    }
}

fn attribute(name: &str, value: &Attribute<'_>) -> AttributeProto {
    use attribute_proto::AttributeType as Type;
    let plain = AttributeProto { name: Some(name.to_owned()), ..Default::default() };
    let of = |kind: Type| Some(kind as i32);
    match value {
        Attribute::Whole(value) => AttributeProto { i: Some(*value), r#type: of(Type::Int), ..plain },
        Attribute::Number(value) => AttributeProto { f: Some(*value), r#type: of(Type::Float), ..plain },
        Attribute::Wholes(values) => AttributeProto { ints: values.clone(), r#type: of(Type::Ints), ..plain },
        Attribute::Texts(values) => AttributeProto {
            strings: values.iter().map(|text| text.clone().into_bytes().into()).collect(),
            r#type: of(Type::Strings),
            ..plain
        },
    }
}
