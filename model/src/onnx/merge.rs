//! Merges an encoder file and a decoder file into one graph.

use datafusion_common::error::Result;
use datafusion_common::plan_err;

use super::cut::file_inputs;
use super::proto::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto};

/// Prefix of all names of the decoder. Two separate exports use the same names for different tensors.
pub(crate) const DECODER_PREFIX: &str = "decoder/";

/// One model that runs both files. The decoder reads the `code` of the encoder.
///
/// Outputs of the decoder get the names `decoder/…`.
///
/// # Errors
/// A planning error if the decoder does not have exactly one input, or the versions of an operator set differ.
pub(crate) fn merge(encoder: &ModelProto, decoder: &ModelProto, code: &str) -> Result<ModelProto> {
    let (Some(first), Some(second)) = (&encoder.graph, &decoder.graph) else {
        return plan_err!("the ONNX file holds no graph");
    };
    let inputs = file_inputs(second);
    let [input] = inputs.as_slice() else {
        let names: Vec<&str> = inputs.iter().map(|input| input.name()).collect();
        return plan_err!("the decoder file must have one input, the code; found {}: {names:?}", names.len());
    };
    let opset_import = merge_opsets(&encoder.opset_import, &decoder.opset_import)?;
    let renamed = Rename { input: input.name(), code }.graph(second);
    let mut graph = first.clone();
    graph.node.extend(renamed.node);
    graph.initializer.extend(renamed.initializer);
    graph.sparse_initializer.extend(renamed.sparse_initializer);
    graph.output.extend(renamed.output);
    graph.quantization_annotation.extend(renamed.quantization_annotation);
    graph.value_info.clear();
    let mut functions = encoder.functions.clone();
    for function in &decoder.functions {
        match functions.iter().find(|f| f.domain() == function.domain() && f.name() == function.name()) {
            Some(same) if same == function => {}
            Some(_) => return plan_err!("encoder and decoder define the function {} differently", function.name()),
            None => functions.push(function.clone()),
        }
    }
    Ok(ModelProto {
        ir_version: encoder.ir_version.max(decoder.ir_version),
        opset_import,
        functions,
        graph: Some(graph),
        ..encoder.clone()
    })
}

fn merge_opsets(first: &[OperatorSetIdProto], second: &[OperatorSetIdProto]) -> Result<Vec<OperatorSetIdProto>> {
    let domain = |id: &OperatorSetIdProto| match id.domain() {
        "ai.onnx" => String::new(),
        domain => domain.to_owned(),
    };
    let mut merged = first.to_vec();
    for id in second {
        match merged.iter().find(|other| domain(other) == domain(id)) {
            Some(other) if other.version() == id.version() => {}
            Some(other) => {
                return plan_err!(
                    "encoder and decoder use versions {} and {} of the operator set \"{}\"; export both with the same \
                     opset_version",
                    other.version(),
                    id.version(),
                    domain(id)
                );
            }
            None => merged.push(id.clone()),
        }
    }
    Ok(merged)
}

struct Rename<'a> {
    input: &'a str,
    code: &'a str,
}

impl Rename<'_> {
    fn name(&self, name: &str) -> String {
        match name {
            "" => String::new(),
            name if name == self.input => self.code.to_owned(),
            name => format!("{DECODER_PREFIX}{name}"),
        }
    }

    fn graph(&self, graph: &GraphProto) -> GraphProto {
        let mut graph = graph.clone();
        let rename = |name: &mut Option<String>| *name = name.as_deref().map(|name| self.name(name));
        for tensor in &mut graph.initializer {
            rename(&mut tensor.name);
        }
        for tensor in graph.sparse_initializer.iter_mut().filter_map(|sparse| sparse.values.as_mut()) {
            rename(&mut tensor.name);
        }
        for value in graph.input.iter_mut().chain(&mut graph.output).chain(&mut graph.value_info) {
            rename(&mut value.name);
        }
        for annotation in &mut graph.quantization_annotation {
            rename(&mut annotation.tensor_name);
            for entry in &mut annotation.quant_parameter_tensor_names {
                rename(&mut entry.value);
            }
        }
        graph.node.iter_mut().for_each(|node| self.node(node));
        graph
    }

    fn node(&self, node: &mut NodeProto) {
        node.name = node.name.as_deref().filter(|name| !name.is_empty()).map(|name| format!("{DECODER_PREFIX}{name}"));
        for name in node.input.iter_mut().chain(&mut node.output) {
            *name = self.name(name);
        }
        for attribute in &mut node.attribute {
            for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                *graph = self.graph(graph);
            }
        }
    }
}
