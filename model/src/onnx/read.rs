//! Reads an untrusted ONNX file.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use datafusion_common::error::Result;
use datafusion_common::plan_err;
use prost::Message;
use serde::{Deserialize, Serialize};

use super::external::{JOIN, bits, elements};
use super::functions::check_expanded;
use super::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, tensor_proto};

/// Operators of graphs that ONNX Runtime optimised for its own machine.
const MACHINE_DOMAIN: &str = "com.microsoft.nchwc";

/// Operator domains that a file may use. Any other domain needs a library of custom operators.
const DOMAINS: [&str; 4] = ["", "ai.onnx", "ai.onnx.ml", "com.microsoft"];

/// Operators of the allowed domains that read outside of the file.
const FORBIDDEN: [&str; 2] = ["EPContext", "PyOp"];

/// Longest name in a file, bytes.
const MAX_NAME: usize = 4096;

/// Seconds for the test runs of a file, unless the session sets more.
pub const DEFAULT_REGISTRATION_SECONDS: u64 = 45;

/// Limits for an untrusted file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Size of the file, bytes.
    pub bytes: u64,
    /// Operators in all graphs of the file.
    pub nodes: usize,
    /// Elements of one stored tensor.
    pub elements: u64,
    /// Time of all test runs before a file is registered, if a child process makes them.
    pub registration: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 512 << 20,
            nodes: 100_000,
            elements: 1 << 30,
            registration: Duration::from_secs(DEFAULT_REGISTRATION_SECONDS),
        }
    }
}

/// Largest protobuf, and so the largest model file, bytes.
const LARGEST: u64 = (1 << 31) - 1;

impl Limits {
    /// Checks the size of a file. `what` begins the text of the error.
    ///
    /// # Errors
    /// A planning error if it is too large.
    pub fn check_size(&self, what: &str, size: u64) -> Result<()> {
        if size > LARGEST {
            return plan_err!(
                "{what} has {size} bytes, but a model is stored as one protobuf, which holds at most 2 GiB; store its \
                 weights as float16 or int8, or leave out what the autoencoder does not need"
            );
        }
        if size > self.bytes {
            return plan_err!(
                "{what} has {size} bytes, at most {} are allowed for a model (ae.max_model_bytes)",
                self.bytes
            );
        }
        Ok(())
    }
}

/// Decodes a file and checks it without a run.
///
/// The protobuf decoder limits nesting to 100 levels.
///
/// # Errors
/// A planning error if the file is too large or no protobuf, stores data outside, or uses another operator domain.
pub(crate) fn parse(bytes: &Bytes, limits: &Limits) -> Result<ModelProto> {
    limits.check_size("the ONNX file", bytes.len() as u64)?;
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
    let mut check = Check { limits, functions, nodes: 0, dense: 0 };
    check.graph(graph)?;
    for function in &model.functions {
        check_name("function", function.name())?;
        check.nodes(&function.node)?;
        for attribute in &function.attribute_proto {
            check.attribute(attribute)?;
        }
    }
    check_expanded(model, limits.nodes)
}

/// Checks the length of a name, which errors and `DESCRIBE MODEL` show.
fn check_name(what: &str, name: &str) -> Result<()> {
    if name.len() > MAX_NAME {
        let start: String = name.chars().take(40).collect();
        return plan_err!(
            "a {what} of the ONNX file has a name of {} bytes, at most {MAX_NAME} are allowed: \"{start}…\"",
            name.len()
        );
    }
    Ok(())
}

struct Check<'a> {
    limits: &'a Limits,
    functions: HashSet<(String, String)>,
    nodes: usize,
    /// Size of all sparse tensors when ONNX Runtime made them dense, bytes.
    dense: u64,
}

impl Check<'_> {
    fn graph(&mut self, graph: &GraphProto) -> Result<()> {
        for tensor in &graph.initializer {
            self.tensor(tensor)?;
        }
        for sparse in &graph.sparse_initializer {
            self.sparse(sparse)?;
        }
        for value in graph.input.iter().chain(&graph.output) {
            check_name("tensor", value.name())?;
        }
        self.nodes(&graph.node)
    }

    fn nodes(&mut self, nodes: &[NodeProto]) -> Result<()> {
        self.nodes += nodes.len();
        if self.nodes > self.limits.nodes {
            return plan_err!("the ONNX file holds more than {} operators", self.limits.nodes);
        }
        for node in nodes {
            check_name("node", node.name())?;
            for name in [node.op_type(), node.domain()] {
                check_name("operator", name)?;
            }
            for name in node.input.iter().chain(&node.output) {
                check_name("tensor", name)?;
            }
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
        if node.domain() == MACHINE_DOMAIN {
            return plan_err!(
                "the ONNX file uses operator {} of the domain \"{MACHINE_DOMAIN}\": ONNX Runtime optimised it for one \
                 machine; use the original file, or optimise it at most with ORT_ENABLE_EXTENDED",
                node.op_type()
            );
        }
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
        for sparse in attribute.sparse_tensor.iter().chain(&attribute.sparse_tensors) {
            self.sparse(sparse)?;
        }
        for graph in attribute.g.iter().chain(&attribute.graphs) {
            self.graph(graph)?;
        }
        Ok(())
    }

    /// ONNX Runtime makes a sparse tensor dense when it loads a graph, so the dense shape counts.
    fn sparse(&mut self, sparse: &SparseTensorProto) -> Result<()> {
        for tensor in sparse.values.iter().chain(&sparse.indices) {
            self.tensor(tensor)?;
        }
        let name = sparse.values.as_ref().map_or("", |values| values.name());
        let elements = self.elements(name, &sparse.dims)?;
        let bits = sparse.values.as_ref().and_then(|values| bits(values.data_type())).unwrap_or(128);
        self.dense = self.dense.saturating_add(elements.saturating_mul(bits) / 8);
        self.limits.check_size("the ONNX file, with its sparse tensors made dense,", self.dense)
    }

    fn tensor(&self, tensor: &TensorProto) -> Result<()> {
        check_name("tensor", tensor.name())?;
        if tensor.data_location() == tensor_proto::DataLocation::External || !tensor.external_data.is_empty() {
            return plan_err!(
                "tensor \"{}\" of the ONNX file stores its data in another file, and only its own bytes are at hand; \
                 save the model as one file: {JOIN}",
                tensor.name()
            );
        }
        self.elements(tensor.name(), &tensor.dims).map(drop)
    }

    /// The elements of a shape that is allowed.
    fn elements(&self, name: &str, dims: &[i64]) -> Result<u64> {
        match elements(dims) {
            Some(elements) if elements <= self.limits.elements => Ok(elements),
            _ => plan_err!("tensor \"{name}\" of the ONNX file has the impossible shape {dims:?}"),
        }
    }
}
