//! Whole autoencoders, at random.

use aefusion_model::onnx::proto::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto};

use crate::pieces;
use crate::random::Random;
use crate::sketch::{Sketch, declared, element, int, texts};

/// The forms that features have.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Features {
    /// `[N, width]`.
    Matrix,
    /// One input `[N, 1]` for each.
    Columns,
    /// `[N, 1, width]`, flattened.
    Deep,
    /// `[N, width]` of whole numbers.
    Whole,
    /// One input of numbers, one of texts.
    Texts,
}

/// A file with an autoencoder.
pub fn any(random: &mut Random) -> ModelProto {
    let element = match random.below(16) {
        0 => element::DOUBLE,
        1 => element::FLOAT16,
        _ => element::FLOAT,
    };
    let mut sketch = Sketch::new("t", element);
    let width = random.one([1, 2, 3, 4, 4, 4, 5, 7, 8, 16, 33]);
    let rows = if random.one_in(6) { Some(random.one([1_i64, 2, 3, 4, 16, 17])) } else { None };
    let kind = random.one([
        Features::Matrix,
        Features::Matrix,
        Features::Matrix,
        Features::Matrix,
        Features::Columns,
        Features::Deep,
        Features::Whole,
        Features::Texts,
    ]);
    let x = features(&mut sketch, kind, width, rows, random);
    let width = if kind == Features::Texts { width + 3 } else { width };
    let mut y = x.clone();
    for _ in 0..random.from_to(0, 2) {
        y = match random.one_in(3) {
            true => pieces::apart(&mut sketch, &y, Some(width), random),
            false => pieces::add(&mut sketch, &y, Some(width), random),
        };
    }
    let code_width = random.from_to(1, width);
    let code = dense(&mut sketch, &y, width, code_width, random);
    let code = activated(&mut sketch, &code, random);
    named(&mut sketch.graph, &code, "code");
    let mut decoded = dense(&mut sketch, "code", code_width, width, random);
    for _ in 0..random.below(2) {
        decoded = pieces::add(&mut sketch, &decoded, Some(width), random);
    }
    named(&mut sketch.graph, &decoded, "decoded");
    outputs(&mut sketch, &x, width, code_width, rows, random);
    if random.one_in(5) {
        sketch.graph.output.remove(0);
    }
    sketch.graph.name = Some("fuzz".to_owned());
    let metadata_props = metadata(random);
    let opset = random.one([11, 13, 15, 17, 18, 18, 18, 19, 20, 21, 22, 23]);
    ModelProto {
        ir_version: Some(random.one([4, 7, 8, 9, 10])),
        opset_import: ["", "ai.onnx.ml", "com.microsoft"]
            .into_iter()
            .zip([opset, 3, 1])
            .map(|(domain, version)| OperatorSetIdProto { domain: Some(domain.to_owned()), version: Some(version) })
            .collect(),
        producer_name: Some("fuzz".to_owned()),
        graph: Some(sketch.graph),
        metadata_props,
        ..ModelProto::default()
    }
}

/// Adds the inputs, and returns all features as one tensor.
fn features(sketch: &mut Sketch, kind: Features, width: usize, rows: Option<i64>, random: &mut Random) -> String {
    let n = i64::try_from(width).unwrap_or(1);
    let element = sketch.element;
    let to_numbers = |sketch: &mut Sketch, x: &str| sketch.op_with("Cast", &[x], vec![int("to", element.into())]);
    match kind {
        Features::Matrix => {
            sketch.graph.input.push(declared("x", element, &[rows, Some(n)]));
            "x".to_owned()
        }
        Features::Columns => {
            let names: Vec<String> = (0..width).map(|column| format!("x{column}")).collect();
            sketch.graph.input.extend(names.iter().map(|name| declared(name, element, &[rows, Some(1)])));
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            sketch.op_with("Concat", &names, vec![int("axis", 1)])
        }
        Features::Deep => {
            sketch.graph.input.push(declared("x", element, &[rows, Some(1), Some(n)]));
            sketch.op("Flatten", &["x"])
        }
        Features::Whole => {
            let kind = random.one([element::INT64, element::INT32, 2, 3, element::BOOL, 13]);
            sketch.graph.input.push(declared("x", kind, &[rows, Some(n)]));
            to_numbers(sketch, "x")
        }
        Features::Texts => {
            sketch.graph.input.push(declared("x", element, &[rows, Some(n)]));
            sketch.graph.input.push(declared("country", element::STRING, &[rows, Some(1)]));
            let attributes = vec![texts("cats_strings", &["DE", "FR", "IT"]), int("zeros", 1)];
            let places = sketch.op_with("ai.onnx.ml::OneHotEncoder", &["country"], attributes);
            let flat = sketch.op("Flatten", &[&places]);
            let flat = to_numbers(sketch, &flat);
            sketch.op_with("Concat", &["x", &flat], vec![int("axis", 1)])
        }
    }
}

fn dense(sketch: &mut Sketch, x: &str, from: usize, to: usize, random: &mut Random) -> String {
    let [rows, columns] = [from, to].map(|n| i64::try_from(n).unwrap_or(1));
    let weights: Vec<f64> = (0..from * to).map(|_| 0.6 * random.normal()).collect();
    let weight = sketch.numbers(&[rows, columns], &weights);
    match random.one_in(2) {
        true => sketch.op("MatMul", &[x, &weight]),
        false => {
            let bias: Vec<f64> = (0..to).map(|_| 0.1 * random.normal()).collect();
            let bias = sketch.numbers(&[columns], &bias);
            sketch.op("Gemm", &[x, &weight, &bias])
        }
    }
}

fn activated(sketch: &mut Sketch, x: &str, random: &mut Random) -> String {
    match random.below(4) {
        0 => sketch.op("Relu", &[x]),
        1 => sketch.op("Tanh", &[x]),
        2 => pieces::apart(sketch, x, None, random),
        _ => sketch.op("Identity", &[x]),
    }
}

/// Gives a computed tensor another name.
fn named(graph: &mut GraphProto, old: &str, new: &str) {
    for node in &mut graph.node {
        for name in node.input.iter_mut().chain(&mut node.output).filter(|name| *name == old) {
            new.clone_into(name);
        }
    }
}

/// Adds the outputs: a reconstruction, or a scaled pair, or both.
fn outputs(sketch: &mut Sketch, x: &str, width: usize, code_width: usize, rows: Option<i64>, random: &mut Random) {
    let [n, code] = [width, code_width].map(|n| Some(i64::try_from(n).unwrap_or(1)));
    let element = sketch.element;
    sketch.graph.output.push(declared("code", element, &[rows, code]));
    let is_scaled = random.one_in(4);
    if is_scaled {
        let scaled = if random.one_in(4) { x.to_owned() } else { pieces::apart(sketch, x, Some(width), random) };
        sketch.graph.node.push(identity(&scaled, "scaled"));
        sketch.graph.node.push(identity("decoded", "scaled_reconstruction"));
        for name in ["scaled", "scaled_reconstruction"] {
            sketch.graph.output.push(declared(name, element, &[rows, n]));
        }
    }
    if !is_scaled || random.one_in(2) {
        sketch.graph.node.push(identity("decoded", "reconstruction"));
        sketch.graph.output.push(declared("reconstruction", element, &[rows, n]));
    }
}

fn identity(from: &str, to: &str) -> NodeProto {
    NodeProto {
        op_type: Some("Identity".to_owned()),
        input: vec![from.to_owned()],
        output: vec![to.to_owned()],
        ..NodeProto::default()
    }
}

fn metadata(random: &mut Random) -> Vec<StringStringEntryProto> {
    let mut entries: Vec<(&str, &str)> = Vec::new();
    if random.one_in(4) {
        entries.push(("aefusion.error_metric", random.one(["mse", "mae", "rmse"])));
    }
    if random.one_in(16) {
        entries.push(("aefusion.rows", "alone"));
    }
    if random.one_in(24) {
        entries.push(("aefusion.null_policy", "impute"));
    }
    let entry = |(key, value): (&str, &str)| StringStringEntryProto {
        key: Some(key.to_owned()),
        value: Some(value.to_owned()),
    };
    entries.into_iter().map(entry).collect()
}
