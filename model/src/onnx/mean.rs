//! A graph at the mean of its random operators.

use datafusion_common::error::Result;
use datafusion_common::plan_err;
use half::f16;

use super::proto::attribute_proto::AttributeType;
use super::proto::{AttributeProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto};

/// Types of elements in the ONNX schema.
const FLOAT: i32 = 1;
const INT64: i32 = 7;
const BOOL: i32 = 9;
const FLOAT16: i32 = 10;
const DOUBLE: i32 = 11;

/// The first version of the operators of ONNX with `ConstantOfShape`.
const FIRST_VERSION: i64 = 9;
/// The first version with `CastLike`.
const CAST_LIKE_VERSION: i64 = 15;

/// Random operators that this module replaces.
pub(crate) const WITH_MEAN: [&str; 5] =
    ["RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Dropout"];

/// Replaces random operators by their mean, also in sub-graphs and functions of the file:
///
/// ```text
/// mean ─ Shape ─┐                           mean ─ Shape ─ ConstantOfShape (0) ─┐
///   RandomNormalLike ─ Mul ─ Add ─ z   →                              Mul ─ Add ─ z
/// x ─ Dropout (training_mode) ─ y      →   x ─ Identity ─ y
/// ```
///
/// # Errors
/// A planning error if the operators are older than `ConstantOfShape`, or the type of a random tensor is not a float. Also
/// if a function has the mean as a parameter.
pub(crate) fn at_mean(model: &mut ModelProto) -> Result<()> {
    let version = version_of(&model.opset_import);
    if let Some(graph) = &mut model.graph {
        nodes_at_mean(&mut graph.node, version)?;
    }
    for function in &mut model.functions {
        let own = version_of(&function.opset_import);
        nodes_at_mean(&mut function.node, own)?;
    }
    Ok(())
}

fn version_of(imports: &[OperatorSetIdProto]) -> i64 {
    let versions = imports.iter().filter(|import| matches!(import.domain(), "" | "ai.onnx"));
    versions.map(OperatorSetIdProto::version).max().unwrap_or(1)
}

fn nodes_at_mean(nodes: &mut Vec<NodeProto>, version: i64) -> Result<()> {
    let mut found = Vec::with_capacity(nodes.len());
    for mut node in std::mem::take(nodes) {
        for attribute in &mut node.attribute {
            let mut graphs = attribute.g.iter_mut().chain(&mut attribute.graphs);
            graphs.try_for_each(|graph| nodes_at_mean(&mut graph.node, version))?;
        }
        match replaced(&node, version)? {
            Some(others) => found.extend(others),
            None => found.push(node),
        }
    }
    *nodes = found;
    Ok(())
}

/// The nodes in place of a random one; none if the node stays.
fn replaced(node: &NodeProto, version: i64) -> Result<Option<Vec<NodeProto>>> {
    let kind = node.op_type();
    let is_onnx = matches!(node.domain(), "" | "ai.onnx") && WITH_MEAN.contains(&kind);
    let is_trained = node.input.get(2).is_some_and(|training| !training.is_empty());
    if !is_onnx || (kind == "Dropout" && !is_trained) {
        return Ok(None);
    }
    if version < FIRST_VERSION {
        return plan_err!(
            "random = 'mean' needs operators of ONNX from version {FIRST_VERSION} on, but the file uses version \
             {version}; export it with a newer opset_version"
        );
    }
    if node.attribute.iter().any(|attribute| !attribute.ref_attr_name().is_empty()) {
        return plan_err!(
            "random = 'mean' cannot replace {kind} in a function of the file that has its mean as a parameter; export \
             the model without functions"
        );
    }
    let output = node.output.first().map(String::as_str).unwrap_or_default();
    let number = |name: &str, default: f32| attribute(node, name).map_or(default, AttributeProto::f);
    let mean = match kind {
        "RandomNormal" | "RandomNormalLike" => number("mean", 0.0),
        _ => f32::midpoint(number("low", 0.0), number("high", 1.0)),
    };
    let input = node.input.first().cloned().unwrap_or_default();
    let shape = format!("{output}/aefusion/shape");
    Ok(Some(match kind {
        "Dropout" => dropout(node, &input, output),
        "RandomNormal" | "RandomUniform" => {
            let sizes = attribute(node, "shape").map(|shape| shape.ints.clone()).unwrap_or_default();
            let dtype = element(node)?.unwrap_or(FLOAT);
            vec![constant(&sizes, &shape), filled(&shape, scalar(mean, dtype), output)]
        }
        _ => {
            let read = operator("Shape", vec![input.clone()], &shape, Vec::new());
            match element(node)? {
                Some(dtype) => vec![read, filled(&shape, scalar(mean, dtype), output)],
                // the type of the input
                None if version >= CAST_LIKE_VERSION => {
                    let float = format!("{output}/aefusion/float");
                    let cast = operator("CastLike", vec![float.clone(), input], output, Vec::new());
                    vec![read, filled(&shape, scalar(mean, FLOAT), &float), cast]
                }
                None => vec![read, filled(&shape, scalar(mean, FLOAT), output)],
            }
        }
    }))
}

/// The identity, and a mask that keeps all.
fn dropout(node: &NodeProto, input: &str, output: &str) -> Vec<NodeProto> {
    let mut nodes = Vec::new();
    if !output.is_empty() {
        nodes.push(operator("Identity", vec![input.to_owned()], output, Vec::new()));
    }
    if let Some(mask) = node.output.get(1).filter(|mask| !mask.is_empty()) {
        let shape = format!("{mask}/aefusion/shape");
        let all =
            TensorProto { data_type: Some(BOOL), dims: vec![1], raw_data: Some(vec![1].into()), ..Default::default() };
        nodes.push(operator("Shape", vec![input.to_owned()], &shape, Vec::new()));
        nodes.push(filled(&shape, all, mask));
    }
    nodes
}

/// The type of a random tensor, if the node gives it.
fn element(node: &NodeProto) -> Result<Option<i32>> {
    match attribute(node, "dtype").map(|dtype| i32::try_from(dtype.i()).unwrap_or_default()) {
        None => Ok(None),
        Some(dtype @ (FLOAT | FLOAT16 | DOUBLE)) => Ok(Some(dtype)),
        Some(other) => plan_err!(
            "random = 'mean' cannot replace {} of the element type {other}; export float32, float16 or float64",
            node.op_type()
        ),
    }
}

fn scalar(value: f32, dtype: i32) -> TensorProto {
    let bytes = match dtype {
        DOUBLE => f64::from(value).to_le_bytes().to_vec(),
        FLOAT16 => f16::from_f32(value).to_le_bytes().to_vec(),
        _ => value.to_le_bytes().to_vec(),
    };
    TensorProto { data_type: Some(dtype), dims: vec![1], raw_data: Some(bytes.into()), ..Default::default() }
}

/// A node that gives the numbers of a shape.
fn constant(sizes: &[i64], output: &str) -> NodeProto {
    let bytes: Vec<u8> = sizes.iter().flat_map(|size| size.to_le_bytes()).collect();
    let rank = i64::try_from(sizes.len()).unwrap_or_default();
    let value =
        TensorProto { data_type: Some(INT64), dims: vec![rank], raw_data: Some(bytes.into()), ..Default::default() };
    operator("Constant", Vec::new(), output, vec![tensor(value)])
}

/// A node that gives a tensor of a shape, with one value everywhere.
fn filled(shape: &str, value: TensorProto, output: &str) -> NodeProto {
    operator("ConstantOfShape", vec![shape.to_owned()], output, vec![tensor(value)])
}

fn tensor(value: TensorProto) -> AttributeProto {
    AttributeProto {
        name: Some("value".to_owned()),
        t: Some(value),
        r#type: Some(i32::from(AttributeType::Tensor)),
        ..Default::default()
    }
}

fn operator(kind: &str, input: Vec<String>, output: &str, attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        op_type: Some(kind.to_owned()),
        input,
        output: vec![output.to_owned()],
        attribute,
        ..Default::default()
    }
}

fn attribute<'a>(node: &'a NodeProto, name: &str) -> Option<&'a AttributeProto> {
    node.attribute.iter().find(|attribute| attribute.name() == name)
}
