//! Operators of a file after its functions are written out, as ONNX Runtime does when it loads the file.

use std::collections::HashMap;

use datafusion_common::error::Result;
use datafusion_common::plan_err;

use super::proto::{FunctionProto, GraphProto, ModelProto, NodeProto};

/// Functions that call each other, one in the other.
const MAX_DEPTH: usize = 64;

/// Checks the number of operators after the functions are written out. A function that calls another one twice, which
/// calls a third one twice, doubles the number with every step.
///
/// # Errors
/// A planning error if there are more than `limit`, or if a function calls itself.
pub(super) fn check_expanded(model: &ModelProto, limit: usize) -> Result<()> {
    let Some(graph) = &model.graph else { return Ok(()) };
    let mut functions: HashMap<Name<'_>, Vec<&FunctionProto>> = HashMap::new();
    for function in &model.functions {
        functions.entry((function.domain(), function.name())).or_default().push(function);
    }
    let mut count = Count { functions, sizes: HashMap::new() };
    let size = count.graph(graph, 0)?;
    if size > limit {
        return plan_err!("the functions of the ONNX file stand for {size} operators, at most {limit} are allowed");
    }
    Ok(())
}

/// Domain and name of a function. Overloads of a function have the same.
type Name<'a> = (&'a str, &'a str);

struct Count<'a> {
    functions: HashMap<Name<'a>, Vec<&'a FunctionProto>>,
    /// Operators of each function that was seen.
    sizes: HashMap<Name<'a>, usize>,
}

impl<'a> Count<'a> {
    fn graph(&mut self, graph: &'a GraphProto, depth: usize) -> Result<usize> {
        self.nodes(&graph.node, depth)
    }

    fn nodes(&mut self, nodes: &'a [NodeProto], depth: usize) -> Result<usize> {
        nodes.iter().try_fold(0, |sum: usize, node| Ok(sum.saturating_add(self.node(node, depth)?)))
    }

    fn node(&mut self, node: &'a NodeProto, depth: usize) -> Result<usize> {
        let mut size = self.function((node.domain(), node.op_type()), depth)?;
        for graph in node.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs)) {
            size = size.saturating_add(self.graph(graph, depth)?);
        }
        Ok(size)
    }

    /// Operators of a function; 1 for an operator.
    fn function(&mut self, name: Name<'a>, depth: usize) -> Result<usize> {
        let Some(overloads) = self.functions.get(&name) else { return Ok(1) };
        if let Some(size) = self.sizes.get(&name) {
            return Ok(*size);
        }
        if depth == MAX_DEPTH {
            return plan_err!(
                "function {} of the ONNX file calls itself, or is nested more than {MAX_DEPTH} deep",
                name.1
            );
        }
        let mut size: usize = 1;
        for function in overloads.clone() {
            size = size.saturating_add(self.nodes(&function.node, depth + 1)?);
        }
        self.sizes.insert(name, size);
        Ok(size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(function: &str) -> NodeProto {
        NodeProto { op_type: Some(function.to_owned()), domain: Some("f".to_owned()), ..NodeProto::default() }
    }

    fn function(name: &str, node: Vec<NodeProto>) -> FunctionProto {
        FunctionProto { name: Some(name.to_owned()), domain: Some("f".to_owned()), node, ..FunctionProto::default() }
    }

    fn model(functions: Vec<FunctionProto>) -> ModelProto {
        let graph = GraphProto { node: vec![call("f0")], ..GraphProto::default() };
        ModelProto { graph: Some(graph), functions, ..ModelProto::default() }
    }

    #[test]
    fn doubled_calls_are_counted_without_writing_them_out() {
        let double = |i: usize| function(&format!("f{i}"), vec![call(&format!("f{}", i + 1)); 2]);
        let bomb = model((0..40).map(double).chain([function("f40", vec![call("Neg")])]).collect());
        let error = check_expanded(&bomb, 100_000).unwrap_err().to_string();
        assert!(error.contains("at most 100000"), "{error}");
        let small = model((0..10).map(double).chain([function("f10", vec![call("Neg")])]).collect());
        check_expanded(&small, 100_000).unwrap();
    }

    #[test]
    fn circles_and_long_chains_are_refused() {
        for length in [1, 2, 50_000] {
            let circle = (0..length).map(|i| function(&format!("f{i}"), vec![call(&format!("f{}", (i + 1) % length))]));
            let error = check_expanded(&model(circle.collect()), 100_000).unwrap_err().to_string();
            assert!(error.contains("calls itself"), "{error}");
        }
    }
}
