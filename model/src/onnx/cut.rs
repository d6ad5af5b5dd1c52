//! Cuts a part out of a graph: the encoder alone, or the decoder after the code.

use std::collections::HashSet;

use datafusion_common::error::Result;
use datafusion_common::plan_err;

use super::proto::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto, ValueInfoProto};
use super::{Dataflow, undeclared};

/// Operators that change the shape of a tensor, but not its values or their order.
const RESHAPES: [&str; 5] = ["Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze"];

/// Prefix of the copies of inputs and weights that are outputs.
const COPY_PREFIX: &str = "aefusion/copy/";
/// Version of the operators of ONNX for a file that imports none.
const COPY_VERSION: i64 = 13;

/// A part of a graph.
#[derive(Debug, Clone)]
pub(crate) struct Cut {
    /// Tensors to compute.
    pub(crate) outputs: Vec<String>,
    /// Tensors to start at; empty for the inputs of the file.
    pub(crate) inputs: Vec<ValueInfoProto>,
}

/// The smallest graph that computes `cut.outputs`:
///
/// ```text
/// x ─ Gemm ─ code ─ Gemm ─ reconstruction      outputs [code]:                  x ─ Gemm ─ code
///                                              inputs [code], outputs [recon…]:  code ─ Gemm ─ reconstruction
/// ```
///
/// ONNX Runtime leaves the memory of an output empty if the output is an input or a weight. The graph therefore
/// computes a copy of it, with another name.
///
/// # Errors
/// A planning error if an output is not in the graph, or depends on an input that is cut away.
pub(crate) fn cut(model: &ModelProto, cut: &Cut) -> Result<ModelProto> {
    let Some(graph) = &model.graph else { return plan_err!("the ONNX file holds no graph") };
    let flow = Dataflow::new(model, graph);
    let inputs = if cut.inputs.is_empty() { file_inputs(graph) } else { cut.inputs.clone() };
    let given: Vec<&str> = inputs.iter().map(ValueInfoProto::name).collect();
    let outputs: Vec<&str> = cut.outputs.iter().map(String::as_str).collect();
    let (nodes, leaves) = flow.needed(&outputs, &given);
    let is_copied = |name: &str| given.contains(&name) || flow.producer(name).is_none();
    let copied: Vec<&str> = outputs.iter().copied().filter(|name| is_copied(name)).collect();
    for leaf in leaves.iter().chain(&copied) {
        if !is_weight(graph, leaf) && !given.contains(leaf) {
            return plan_err!("{:?} also depends on \"{leaf}\"", cut.outputs);
        }
    }
    let keep = |name: &str| leaves.contains(name) || outputs.contains(&name);
    let copies = copied.iter().map(|name| NodeProto {
        op_type: Some("Identity".to_owned()),
        input: vec![(*name).to_owned()],
        output: vec![format!("{COPY_PREFIX}{name}")],
        ..Default::default()
    });
    let output = |name: &str| match copied.contains(&name) {
        true => undeclared(&format!("{COPY_PREFIX}{name}")),
        false => declared_or_not(graph, name),
    };
    let part = GraphProto {
        node: nodes.iter().map(|index| graph.node[*index].clone()).chain(copies).collect(),
        name: graph.name.clone(),
        initializer: graph.initializer.iter().filter(|t| keep(t.name())).cloned().collect(),
        sparse_initializer: graph
            .sparse_initializer
            .iter()
            .filter(|t| t.values.as_ref().is_some_and(|t| keep(t.name())))
            .cloned()
            .collect(),
        input: inputs,
        output: outputs.iter().map(|name| output(name)).collect(),
        quantization_annotation: graph.quantization_annotation.clone(),
        ..Default::default()
    };
    let mut opset_import = model.opset_import.clone();
    if !copied.is_empty() {
        with_onnx(&mut opset_import);
    }
    Ok(ModelProto {
        graph: Some(part),
        opset_import,
        training_info: Vec::new(),
        metadata_props: Vec::new(),
        doc_string: None,
        // since IR version 4, weights need not be inputs
        ir_version: model.ir_version.max(Some(4)),
        ..model.clone()
    })
}

/// Imports the operators of ONNX, if a file does not.
pub(super) fn with_onnx(opset_import: &mut Vec<OperatorSetIdProto>) {
    if !opset_import.iter().any(|import| matches!(import.domain(), "" | "ai.onnx")) {
        opset_import.push(OperatorSetIdProto { version: Some(COPY_VERSION), ..Default::default() });
    }
}

/// Inputs of the file that are not weights (before IR version 4 every weight was also an input).
pub(super) fn file_inputs(graph: &GraphProto) -> Vec<ValueInfoProto> {
    let weights: HashSet<&str> = graph.initializer.iter().map(|t| t.name()).collect();
    graph.input.iter().filter(|input| !weights.contains(input.name())).cloned().collect()
}

fn is_weight(graph: &GraphProto, name: &str) -> bool {
    graph.initializer.iter().any(|tensor| tensor.name() == name)
        || graph.sparse_initializer.iter().any(|t| t.values.as_ref().is_some_and(|t| t.name() == name))
}

fn declared_or_not(graph: &GraphProto, name: &str) -> ValueInfoProto {
    // Only outputs of the file: after an export with a fixed batch size, declarations of inner tensors are often wrong.
    graph.output.iter().find(|value| value.name() == name).cloned().unwrap_or_else(|| undeclared(name))
}

/// The tensor at which the decoder of `outputs` starts: `code`, or the tensor that `code` is a reshaped view of.
///
/// # Errors
/// A planning error if the decoder also reads another tensor that depends on the features.
pub(crate) fn decoder_entry(model: &ModelProto, code: &str, outputs: &[&str]) -> Result<String> {
    let Some(graph) = &model.graph else { return plan_err!("the ONNX file holds no graph") };
    let flow = Dataflow::new(model, graph);
    let mut entry = code;
    loop {
        let (_, leaves) = flow.needed(outputs, &[entry]);
        let other = leaves.iter().find(|leaf| !is_weight(graph, leaf));
        let Some(other) = other else { return Ok(entry.to_owned()) };
        match flow.producer(entry) {
            Some(node) if RESHAPES.contains(&node.op_type()) && !node.input.is_empty() => entry = &node.input[0],
            _ => {
                return plan_err!("the decoder also reads \"{other}\", and cannot decode a row from its code alone");
            }
        }
    }
}
