//! Reads an untrusted ONNX file.

use std::collections::HashSet;

use bytes::Bytes;
use datafusion_common::error::Result;
use datafusion_common::plan_err;
use prost::Message;

use super::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, tensor_proto};

/// Operator domains that a file may use. Any other domain needs a library of custom operators.
const DOMAINS: [&str; 4] = ["", "ai.onnx", "ai.onnx.ml", "com.microsoft"];

/// Operators of the allowed domains that read outside of the file.
const FORBIDDEN: [&str; 2] = ["EPContext", "PyOp"];

/// Limits for an untrusted file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Size of the file, bytes.
    pub bytes: u64,
    /// Operators in all graphs of the file.
    pub nodes: usize,
    /// Elements of one stored tensor.
    pub elements: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 512 << 20, nodes: 100_000, elements: 1 << 30 }
    }
}

/// Decodes a file and checks it without a run.
///
/// The protobuf decoder limits nesting to 100 levels.
///
/// # Errors
/// A planning error if the file is too large or no protobuf, stores data outside, or uses another operator domain.
pub(crate) fn parse(bytes: &Bytes, limits: &Limits) -> Result<ModelProto> {
    if bytes.len() as u64 > limits.bytes {
        return plan_err!(
            "the ONNX file has {} bytes, at most {} are allowed (ae.max_model_bytes)",
            bytes.len(),
            limits.bytes
        );
    }
    let mut model = match ModelProto::decode(bytes.clone()) {
        Ok(model) => model,
        Err(e) => return plan_err!("not an ONNX file, or an incomplete one: {e}"),
    };
    model.training_info.clear();
    check(&model, limits)?;
    Ok(model)
}

/// Serialises a graph.
pub(crate) fn encode(model: &ModelProto) -> Bytes {
    Bytes::from(model.encode_to_vec())
}

fn check(model: &ModelProto, limits: &Limits) -> Result<()> {
    let Some(graph) = &model.graph else {
        return plan_err!("not an ONNX model: the file holds no graph");
    };
    if graph.node.is_empty() {
        return plan_err!("not an autoencoder: the graph of the file holds no operators");
    }
    let functions = model.functions.iter().map(|f| (f.domain().to_owned(), f.name().to_owned())).collect();
    let mut check = Check { limits, functions, nodes: 0 };
    check.graph(graph)?;
    for function in &model.functions {
        check.nodes(&function.node)?;
        for attribute in &function.attribute_proto {
            check.attribute(attribute)?;
        }
    }
    Ok(())
}

struct Check<'a> {
    limits: &'a Limits,
    functions: HashSet<(String, String)>,
    nodes: usize,
}

impl Check<'_> {
    fn graph(&mut self, graph: &GraphProto) -> Result<()> {
        for tensor in &graph.initializer {
            self.tensor(tensor)?;
        }
        for sparse in &graph.sparse_initializer {
            for tensor in sparse.values.iter().chain(&sparse.indices) {
                self.tensor(tensor)?;
            }
        }
        self.nodes(&graph.node)
    }

    fn nodes(&mut self, nodes: &[NodeProto]) -> Result<()> {
        self.nodes += nodes.len();
        if self.nodes > self.limits.nodes {
            return plan_err!("the ONNX file holds more than {} operators", self.limits.nodes);
        }
        for node in nodes {
            self.operator(node)?;
            for attribute in &node.attribute {
                self.attribute(attribute)?;
            }
        }
        Ok(())
    }

    fn operator(&self, node: &NodeProto) -> Result<()> {
        let known = DOMAINS.contains(&node.domain())
            || self.functions.contains(&(node.domain().to_owned(), node.op_type().to_owned()));
        if !known {
            return plan_err!(
                "the ONNX file uses operator {} of the domain \"{}\"; only the domains \"\", ai.onnx, ai.onnx.ml and \
                 com.microsoft are allowed: custom operator libraries are never loaded",
                node.op_type(),
                node.domain()
            );
        }
        if FORBIDDEN.contains(&node.op_type()) {
            return plan_err!("the ONNX file uses operator {}, which reads outside of the file", node.op_type());
        }
        Ok(())
    }

    fn attribute(&mut self, attribute: &AttributeProto) -> Result<()> {
        for tensor in attribute.t.iter().chain(&attribute.tensors) {
            self.tensor(tensor)?;
        }
        for graph in attribute.g.iter().chain(&attribute.graphs) {
            self.graph(graph)?;
        }
        Ok(())
    }

    fn tensor(&self, tensor: &TensorProto) -> Result<()> {
        if tensor.data_location() == tensor_proto::DataLocation::External || !tensor.external_data.is_empty() {
            return plan_err!(
                "tensor \"{}\" of the ONNX file stores its data in another file; save the model as one file \
                 (in PyTorch: torch.onnx.export(…, external_data=False))",
                tensor.name()
            );
        }
        let elements = tensor
            .dims
            .iter()
            .try_fold(1_u64, |product, dim| u64::try_from(*dim).ok().and_then(|dim| product.checked_mul(dim)));
        match elements {
            Some(elements) if elements <= self.limits.elements => Ok(()),
            _ => plan_err!("tensor \"{}\" of the ONNX file has the impossible shape {:?}", tensor.name(), tensor.dims),
        }
    }
}
