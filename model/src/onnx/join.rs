//! Joins tensors of a row to one.

use super::cut::with_onnx;
use super::declared_tensor;
use super::proto::attribute_proto::AttributeType;
use super::proto::{AttributeProto, GraphProto, ModelProto, NodeProto};

/// Prefix of the names of joined tensors.
const PREFIX: &str = "aefusion";

/// Adds a tensor with the numbers of several tensors, row by row, one after the other. Returns its name.
///
/// ```text
/// a [N] ───── Flatten ─ Cast ─┐
///                             Concat ─ aefusion/reconstruction [N, 1 + k]
/// b [N, k] ── Flatten ─ Cast ─┘
/// ```
pub(crate) fn join(model: &mut ModelProto, tensors: &[String], role: &str) -> String {
    const FLOAT: i64 = 1;
    const DOUBLE: i64 = 11;
    let Some(graph) = &mut model.graph else { return String::new() };
    let is_double = |name: &String| {
        let declared = graph.output.iter().find(|output| output.name() == name).and_then(declared_tensor);
        declared.is_some_and(|(element, _)| i64::from(element) == DOUBLE)
    };
    let element = if tensors.iter().all(is_double) { DOUBLE } else { FLOAT };
    let joined = unused(graph, format!("{PREFIX}/{role}"));
    let mut columns = Vec::with_capacity(tensors.len());
    for (place, tensor) in tensors.iter().enumerate() {
        let (flat, cast) = (format!("{joined}/{place}/flat"), format!("{joined}/{place}"));
        graph.node.push(node("Flatten", vec![tensor.clone()], flat.clone(), ("axis", 1)));
        graph.node.push(node("Cast", vec![flat], cast.clone(), ("to", element)));
        columns.push(cast);
    }
    graph.node.push(node("Concat", columns, joined.clone(), ("axis", 1)));
    with_onnx(&mut model.opset_import);
    joined
}

/// The tensors that [`join`] joined to one.
pub(crate) fn heads_of<'a>(graph: &'a GraphProto, joined: &str) -> impl Iterator<Item = String> + use<'a> {
    let prefix = format!("{joined}/");
    let is_flat = move |node: &&NodeProto| {
        node.output.iter().any(|output| output.starts_with(&prefix) && output.ends_with("/flat"))
    };
    graph.node.iter().filter(is_flat).flat_map(|node| node.input.iter().cloned())
}

/// The first of `name`, `name_2`, `name_3` … that the graph does not have.
fn unused(graph: &GraphProto, name: String) -> String {
    let is_used = |name: &String| graph.node.iter().any(|node| node.output.contains(name));
    let others = (2_usize..).map(|number| format!("{name}_{number}"));
    std::iter::once(name.clone()).chain(others).find(|name| !is_used(name)).unwrap_or(name)
}

fn node(kind: &str, inputs: Vec<String>, output: String, (name, value): (&str, i64)) -> NodeProto {
    NodeProto {
        op_type: Some(kind.to_owned()),
        input: inputs,
        output: vec![output],
        attribute: vec![AttributeProto {
            name: Some(name.to_owned()),
            i: Some(value),
            r#type: Some(i32::from(AttributeType::Int)),
            ..Default::default()
        }],
        ..Default::default()
    }
}
