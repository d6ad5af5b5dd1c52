//! Random dense autoencoders as ONNX files. A module of other tests.

#![allow(dead_code, reason = "each test uses a part")]

use aefusion_udfs::model::onnx::proto::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
    tensor_shape_proto, type_proto,
};
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng};
use prost::Message;
use prost::bytes::Bytes;

const FLOAT: i32 = 1;
const ACTIVATIONS: [&str; 7] = ["Relu", "Relu6", "Elu", "Selu", "Sigmoid", "Tanh", "Linear"];

/// A dense network of random weights.
#[derive(Debug, Clone)]
pub(crate) struct RandomModel {
    /// Features, hidden layer, code; the decoder mirrors them.
    widths: [usize; 3],
    activation: &'static str,
    seed: [u8; 32],
}

/// Odd and even widths, every activation.
pub(crate) fn any() -> impl Strategy<Value = RandomModel> {
    let widths = (3_usize..80, 2_usize..130, 1_usize..40).prop_map(|(features, hidden, code)| [features, hidden, code]);
    (widths, prop::sample::select(ACTIVATIONS.to_vec()), prop::array::uniform32(any_byte()))
        .prop_map(|(widths, activation, seed)| RandomModel { widths, activation, seed })
}

fn any_byte() -> impl Strategy<Value = u8> {
    proptest::num::u8::ANY
}

impl RandomModel {
    pub(crate) fn new(widths: [usize; 3], activation: &'static str, seed: [u8; 32]) -> Self {
        Self { widths, activation, seed }
    }

    pub(crate) fn n_features(&self) -> usize {
        self.widths[0]
    }

    /// Values between -2 and 2, row-major.
    pub(crate) fn rows(&self, n: usize) -> Vec<f32> {
        let mut random = self.random();
        (0..n * self.n_features()).map(|_| uniform(&mut random) * 2.0).collect()
    }

    fn random(&self) -> TestRng {
        TestRng::from_seed(RngAlgorithm::ChaCha, &self.seed)
    }

    /// The file.
    pub(crate) fn onnx(&self) -> Vec<u8> {
        let [features, hidden, code] = self.widths;
        let layers = [features, hidden, code, hidden, features];
        let mut random = self.random();
        let mut graph = GraphProto { name: Some("random".to_owned()), ..Default::default() };
        let mut input = "x".to_owned();
        for (i, pair) in layers.windows(2).enumerate() {
            let weight = tensor(&format!("w{i}"), &[pair[0], pair[1]], &mut random);
            let bias = tensor(&format!("b{i}"), &[pair[1]], &mut random);
            let product = format!("z{i}");
            graph.node.push(node("Gemm", &[&input, weight.name(), bias.name()], &product));
            graph.initializer.extend([weight, bias]);
            input = match i {
                1 => "code".to_owned(),
                3 => "reconstruction".to_owned(),
                i => format!("h{i}"),
            };
            self.activate(&mut graph, &product, &input, i == 3);
        }
        graph.input.push(declared("x", features));
        graph.output.extend([declared("code", code), declared("reconstruction", features)]);
        let opset = OperatorSetIdProto { domain: Some(String::new()), version: Some(18) };
        let model =
            ModelProto { ir_version: Some(9), opset_import: vec![opset], graph: Some(graph), ..Default::default() };
        model.encode_to_vec()
    }

    fn activate(&self, graph: &mut GraphProto, from: &str, to: &str, is_last: bool) {
        let operator = if is_last { "Linear" } else { self.activation };
        let node = match operator {
            "Linear" => node("Identity", &[from], to),
            "Relu6" => {
                for (name, value) in [("zero", 0.0_f32), ("six", 6.0)] {
                    if graph.initializer.iter().all(|tensor| tensor.name() != name) {
                        graph.initializer.push(floats(name, &[], &[value]));
                    }
                }
                node("Clip", &[from, "zero", "six"], to)
            }
            operator => node(operator, &[from], to),
        };
        graph.node.push(node);
    }
}

/// An operator with one output.
pub(crate) fn node(operator: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        op_type: Some(operator.to_owned()),
        input: inputs.iter().map(|name| (*name).to_owned()).collect(),
        output: vec![output.to_owned()],
        ..Default::default()
    }
}

/// Between -1 and 1.
fn uniform(random: &mut TestRng) -> f32 {
    let bits = u16::try_from(random.next_u32() >> 16).unwrap_or_default();
    f32::from(bits) / 32_768.0 - 1.0
}

fn tensor(name: &str, shape: &[usize], random: &mut TestRng) -> TensorProto {
    let n: usize = shape.iter().product();
    floats(name, shape, &(0..n).map(|_| uniform(random) * 0.5).collect::<Vec<_>>())
}

fn floats(name: &str, shape: &[usize], values: &[f32]) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(FLOAT),
        dims: shape.iter().filter_map(|n| i64::try_from(*n).ok()).collect(),
        raw_data: Some(Bytes::from(values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())),
        ..Default::default()
    }
}

fn declared(name: &str, width: usize) -> ValueInfoProto {
    let dim = |value| tensor_shape_proto::Dimension { value: Some(value), ..Default::default() };
    let width = tensor_shape_proto::dimension::Value::DimValue(i64::try_from(width).unwrap_or_default());
    let shape = vec![dim(tensor_shape_proto::dimension::Value::DimParam("N".to_owned())), dim(width)];
    let tensor = type_proto::Tensor { elem_type: Some(FLOAT), shape: Some(TensorShapeProto { dim: shape }) };
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() }),
        ..Default::default()
    }
}
