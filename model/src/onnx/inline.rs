//! Puts the functions of a file in the place of their calls, for analyses of the graph.

use std::collections::HashMap;

use super::proto::{AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto};

/// Most nodes of a graph whose functions are put in place.
const MAX_NODES: usize = 20_000;
/// Deepest nesting of calls.
const MAX_DEPTH: usize = 64;
/// Prefix of tensors inside of a call.
const PREFIX: &str = "aefusion/inline/";

/// The file without functions. Tensors of its graph keep their names. None if there are no functions, if a function has
/// overloads or operators of another version, or if the graph would become too large.
pub(crate) fn inline(model: &ModelProto) -> Option<ModelProto> {
    if model.functions.is_empty() {
        return None;
    }
    let version = |imports: &[super::proto::OperatorSetIdProto], domain: &str| {
        let same = |name: &str| name == domain || (matches!(name, "" | "ai.onnx") && matches!(domain, "" | "ai.onnx"));
        imports.iter().find(|import| same(import.domain())).map(|import| import.version())
    };
    let mut functions = HashMap::new();
    for function in &model.functions {
        if !function.overload().is_empty() {
            return None;
        }
        for import in &function.opset_import {
            let own = version(&model.opset_import, import.domain());
            if own.is_some_and(|own| own != import.version()) {
                return None;
            }
        }
        functions.insert((function.domain(), function.name()), function);
    }
    let mut inliner = Inliner { functions, calls: 0, nodes: 0 };
    let graph = inliner.graph(model.graph.as_ref()?, &Scope::default(), 0)?;
    Some(ModelProto { graph: Some(graph), functions: Vec::new(), ..model.clone() })
}

struct Inliner<'a> {
    functions: HashMap<(&'a str, &'a str), &'a FunctionProto>,
    calls: usize,
    nodes: usize,
}

/// What names and attributes of a function stand for in a call.
#[derive(Debug, Default)]
struct Scope<'a> {
    /// Prefix of the tensors that the function computes; none outside of functions.
    prefix: Option<String>,
    names: HashMap<&'a str, String>,
    attributes: HashMap<&'a str, &'a AttributeProto>,
}

impl Scope<'_> {
    fn name(&self, name: &str) -> String {
        match (&self.prefix, self.names.get(name)) {
            (_, Some(actual)) => actual.clone(),
            (Some(prefix), None) if !name.is_empty() => format!("{prefix}{name}"),
            _ => name.to_owned(),
        }
    }

    fn attribute(&self, attribute: &AttributeProto) -> Option<AttributeProto> {
        if self.prefix.is_none() || attribute.ref_attr_name().is_empty() {
            return Some(attribute.clone());
        }
        let given = *self.attributes.get(attribute.ref_attr_name())?;
        Some(AttributeProto { name: attribute.name.clone(), ..given.clone() })
    }
}

impl<'a> Inliner<'a> {
    fn graph(&mut self, graph: &GraphProto, scope: &Scope<'_>, depth: usize) -> Option<GraphProto> {
        let mut inlined = GraphProto { node: self.nodes(&graph.node, scope, depth)?, ..graph.clone() };
        if scope.prefix.is_some() {
            let values = inlined.input.iter_mut().chain(&mut inlined.output).chain(&mut inlined.value_info);
            let weights = inlined.initializer.iter_mut().map(|tensor| &mut tensor.name);
            for name in values.map(|value| &mut value.name).chain(weights) {
                *name = name.as_deref().map(|name| scope.name(name));
            }
        }
        Some(inlined)
    }

    fn nodes(&mut self, nodes: &[NodeProto], scope: &Scope<'_>, depth: usize) -> Option<Vec<NodeProto>> {
        let mut inlined = Vec::with_capacity(nodes.len());
        for node in nodes {
            let mut own = NodeProto {
                input: node.input.iter().map(|name| scope.name(name)).collect(),
                output: node.output.iter().map(|name| scope.name(name)).collect(),
                attribute: node.attribute.iter().filter_map(|attribute| scope.attribute(attribute)).collect(),
                ..node.clone()
            };
            if let Some(function) = self.functions.get(&(node.domain(), node.op_type())).copied() {
                if depth >= MAX_DEPTH {
                    return None;
                }
                inlined.extend(self.call(function, &own, depth + 1)?);
                continue;
            }
            for attribute in &mut own.attribute {
                for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                    *graph = self.graph(graph, scope, depth)?;
                }
            }
            self.nodes += 1;
            if self.nodes > MAX_NODES {
                return None;
            }
            inlined.push(own);
        }
        Some(inlined)
    }

    fn call(&mut self, function: &'a FunctionProto, call: &NodeProto, depth: usize) -> Option<Vec<NodeProto>> {
        self.calls += 1;
        let mut scope = Scope { prefix: Some(format!("{PREFIX}{}/", self.calls)), ..Scope::default() };
        for (place, formal) in function.input.iter().enumerate() {
            scope.names.insert(formal, call.input.get(place).cloned().unwrap_or_default());
        }
        for (formal, actual) in function.output.iter().zip(&call.output).filter(|(_, actual)| !actual.is_empty()) {
            // a function may pass on an input, which has a name of the caller already
            if function.input.contains(formal) {
                return None;
            }
            scope.names.insert(formal, actual.clone());
        }
        scope.attributes.extend(function.attribute_proto.iter().map(|attribute| (attribute.name(), attribute)));
        scope.attributes.extend(call.attribute.iter().map(|attribute| (attribute.name(), attribute)));
        self.nodes(&function.node, &scope, depth)
    }
}

#[cfg(test)]
mod tests {
    use super::super::proto::OperatorSetIdProto;
    use super::*;

    fn node(kind: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        NodeProto { op_type: Some(kind.to_owned()), input: names(inputs), output: names(outputs), ..Default::default() }
    }

    fn call(kind: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
        NodeProto { domain: Some("own".to_owned()), ..node(kind, inputs, outputs) }
    }

    fn function(name: &str, nodes: Vec<NodeProto>) -> FunctionProto {
        FunctionProto {
            name: Some(name.to_owned()),
            domain: Some("own".to_owned()),
            input: vec!["a".to_owned(), "b".to_owned()],
            output: vec!["c".to_owned()],
            opset_import: vec![OperatorSetIdProto { domain: None, version: Some(18) }],
            node: nodes,
            ..Default::default()
        }
    }

    fn model(nodes: Vec<NodeProto>, functions: Vec<FunctionProto>) -> ModelProto {
        ModelProto {
            graph: Some(GraphProto { node: nodes, ..Default::default() }),
            opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(18) }],
            functions,
            ..Default::default()
        }
    }

    fn lines(model: &ModelProto) -> Vec<String> {
        let line =
            |node: &NodeProto| format!("{} = {}({})", node.output.join(", "), node.op_type(), node.input.join(", "));
        model.graph.iter().flat_map(|graph| &graph.node).map(line).collect()
    }

    #[test]
    fn calls_become_nodes_with_their_own_names() {
        let inner = function("Inner", vec![node("Neg", &["a"], &["t"]), node("Add", &["t", "b"], &["c"])]);
        let outer = function("Outer", vec![call("Inner", &["b", "a"], &["u"]), node("Tanh", &["u"], &["c"])]);
        let file = model(vec![call("Outer", &["x", "w"], &["y"]), call("Inner", &["y"], &["z"])], vec![inner, outer]);
        assert_eq!(
            lines(&inline(&file).unwrap()),
            [
                "aefusion/inline/2/t = Neg(w)",
                "aefusion/inline/1/u = Add(aefusion/inline/2/t, x)",
                "y = Tanh(aefusion/inline/1/u)",
                "aefusion/inline/3/t = Neg(y)",
                "z = Add(aefusion/inline/3/t, )",
            ]
        );
    }

    #[test]
    fn attributes_come_from_the_call() {
        let reference = AttributeProto {
            name: Some("axis".to_owned()),
            ref_attr_name: Some("along".to_owned()),
            ..Default::default()
        };
        let mut softmax = node("Softmax", &["a"], &["c"]);
        softmax.attribute.push(reference);
        let mut with = call("F", &["x"], &["y"]);
        with.attribute.push(AttributeProto { name: Some("along".to_owned()), i: Some(-1), ..Default::default() });
        let file = model(vec![with, call("F", &["y"], &["z"])], vec![function("F", vec![softmax])]);
        let inlined = inline(&file).unwrap();
        let axes: Vec<Vec<(&str, i64)>> = inlined
            .graph
            .iter()
            .flat_map(|graph| &graph.node)
            .map(|node| node.attribute.iter().map(|attribute| (attribute.name(), attribute.i())).collect())
            .collect();
        assert_eq!(axes, [vec![("axis", -1)], vec![]]);
    }

    #[test]
    fn what_grows_without_end_is_left() {
        let twice = function("F", vec![call("F", &["a"], &["t"]), call("F", &["t"], &["c"])]);
        assert!(inline(&model(vec![call("F", &["x"], &["y"])], vec![twice])).is_none());
        assert!(inline(&model(vec![node("Neg", &["x"], &["y"])], Vec::new())).is_none());
        let mut other = function("F", vec![node("Neg", &["a"], &["c"])]);
        other.opset_import[0].version = Some(11);
        assert!(inline(&model(vec![call("F", &["x"], &["y"])], vec![other])).is_none());
    }

    #[test]
    fn functions_that_multiply_stop_at_the_limit() {
        let twice = |place: usize| {
            let next = format!("F{}", place + 1);
            function(&format!("F{place}"), vec![call(&next, &["a"], &["t"]), call(&next, &["t"], &["c"])])
        };
        let mut functions: Vec<_> = (0..40).map(twice).collect();
        functions.push(function("F40", vec![node("Neg", &["a"], &["c"])]));
        assert!(inline(&model(vec![call("F0", &["x"], &["y"])], functions)).is_none());
    }
}
