//! Dependencies between the tensors of a graph.

use std::collections::{HashMap, HashSet};

use super::WITH_MEAN;
use super::dependence::{KNOWN_VERSION, Need, needs};
use super::proto::{FunctionProto, GraphProto, NodeProto, TensorProto};

/// Operators whose result differs from run to run.
const RANDOM: [&str; 6] =
    ["RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"];

/// Tensors that a node reads: its inputs, and the outer tensors in its sub-graphs.
pub(super) fn reads(node: &NodeProto) -> HashSet<&str> {
    let mut names: HashSet<&str> = node.input.iter().map(String::as_str).filter(|name| !name.is_empty()).collect();
    for graph in subgraphs(node) {
        let own: HashSet<&str> = graph
            .input
            .iter()
            .map(|value| value.name())
            .chain(graph.initializer.iter().map(|tensor| tensor.name()))
            .chain(graph.node.iter().flat_map(|node| node.output.iter().map(String::as_str)))
            .collect();
        let outside = graph.node.iter().flat_map(reads).chain(graph.output.iter().map(|value| value.name()));
        names.extend(outside.filter(|name| !own.contains(name)));
    }
    names
}

pub(super) fn subgraphs(node: &NodeProto) -> impl Iterator<Item = &GraphProto> {
    node.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs))
}

/// Whether a node has a sub-graph, as `If` and `Loop` do.
pub(super) fn has_subgraph(node: &NodeProto) -> bool {
    subgraphs(node).next().is_some()
}

/// Facts about a file that identify random operators.
#[derive(Default)]
struct Random<'a> {
    /// Functions of the file that contain a random operator, and the operator.
    functions: HashMap<&'a str, &'a str>,
    /// Stored tensors with the value false.
    falses: HashSet<&'a str>,
}

impl<'a> Random<'a> {
    /// The random operator that a node is or contains. One without a mean comes first.
    fn operator(&self, node: &'a NodeProto) -> Option<&'a str> {
        let kind = node.op_type();
        let own = match RANDOM.contains(&kind) || (kind == "Dropout" && self.is_training(node)) {
            true => Some(kind),
            false => self.functions.get(kind).copied(),
        };
        let inner = subgraphs(node).flat_map(|graph| &graph.node).filter_map(|node| self.operator(node));
        first_without_mean(own.into_iter().chain(inner))
    }

    /// Whether the third input of Dropout, `training_mode`, exists and may be true.
    fn is_training(&self, dropout: &NodeProto) -> bool {
        dropout.input.get(2).is_some_and(|name| !name.is_empty() && !self.falses.contains(name.as_str()))
    }
}

fn first_without_mean<'a>(operators: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    operators.min_by_key(|operator| WITH_MEAN.contains(operator))
}

fn is_false(tensor: &TensorProto) -> bool {
    let raw = tensor.raw_data.iter().flatten().all(|byte| *byte == 0);
    raw && tensor.int32_data.iter().all(|value| *value == 0)
}

/// The tensors that the nodes of the top graph compute, in the order of the file.
pub(crate) fn computed_tensors(graph: &GraphProto) -> impl Iterator<Item = &str> {
    graph.node.iter().flat_map(|node| node.output.iter().map(String::as_str)).filter(|name| !name.is_empty())
}

/// The producer of every tensor of a graph.
#[derive(Debug)]
pub(crate) struct Dataflow<'a> {
    graph: &'a GraphProto,
    functions: &'a [FunctionProto],
    producer: HashMap<&'a str, usize>,
    /// For each node, the random operator that it is or contains.
    random: Vec<Option<&'a str>>,
    /// For each node, whether it is an operator of ONNX, in a version that [`needs`] knows.
    known: Vec<bool>,
}

/// The part of a graph on whose values some tensors depend.
#[derive(Debug)]
pub(crate) struct Reached<'a> {
    /// The nodes, by index, in the order of the file. Nodes that give no more than a shape are left out.
    pub(crate) nodes: Vec<usize>,
    /// Inputs and weights, and what of each counts.
    pub(crate) leaves: HashMap<&'a str, Need>,
}

fn has_property(node: &NodeProto, property: &dyn Fn(&NodeProto) -> bool) -> bool {
    property(node) || subgraphs(node).flat_map(|graph| &graph.node).any(|node| has_property(node, property))
}

impl<'a> Dataflow<'a> {
    pub(crate) fn new(model: &'a super::proto::ModelProto, graph: &'a GraphProto) -> Self {
        let mut producer = HashMap::new();
        for (index, node) in graph.node.iter().enumerate() {
            for name in node.output.iter().filter(|name| !name.is_empty()) {
                producer.insert(name.as_str(), index);
            }
        }
        // A function is random if it contains a random operator or calls a random function. Functions cannot recurse:
        // one pass for each function finds all.
        let mut random_kinds = Random::default();
        for _ in &model.functions {
            for function in &model.functions {
                let operators = function.node.iter().filter_map(|node| random_kinds.operator(node));
                if let Some(operator) = first_without_mean(operators) {
                    random_kinds.functions.insert(function.name(), operator);
                }
            }
        }
        let stored = graph.initializer.iter().map(|tensor| (tensor.name(), tensor));
        let constants = graph.node.iter().filter(|node| node.op_type() == "Constant").filter_map(|node| {
            let tensor = node.attribute.iter().find_map(|attribute| attribute.t.as_ref())?;
            Some((node.output.first()?.as_str(), tensor))
        });
        let falses = stored.chain(constants).filter(|(_, tensor)| is_false(tensor));
        random_kinds.falses = falses.map(|(name, _)| name).collect();
        let random = graph.node.iter().map(|node| random_kinds.operator(node)).collect();
        let own: HashSet<&str> = model.functions.iter().map(FunctionProto::name).collect();
        let versions = model.opset_import.iter().filter(|import| matches!(import.domain(), "" | "ai.onnx"));
        let is_recent = versions.map(|import| import.version()).all(|version| version <= KNOWN_VERSION);
        let is_known = |node: &NodeProto| {
            is_recent && matches!(node.domain(), "" | "ai.onnx" | "ai.onnx.ml") && !own.contains(node.op_type())
        };
        let known = graph.node.iter().map(is_known).collect();
        Self { graph, functions: &model.functions, producer, random, known }
    }

    /// The node that computes a tensor; none for inputs and weights.
    pub(crate) fn producer(&self, name: &str) -> Option<&'a NodeProto> {
        self.producer.get(name).map(|index| &self.graph.node[*index])
    }

    /// The index of the node that computes a tensor; none for inputs and weights.
    pub(super) fn producer_index(&self, name: &str) -> Option<usize> {
        self.producer.get(name).copied()
    }

    /// A node by its index.
    pub(super) fn node(&self, index: usize) -> &'a NodeProto {
        &self.graph.node[index]
    }

    /// Whether a node is an operator of ONNX, in a version that [`needs`] knows.
    pub(super) fn is_known(&self, index: usize) -> bool {
        self.known[index]
    }

    /// The nodes that compute `outputs` from the tensors `given`, by index, and their inputs and weights.
    pub(crate) fn needed(&self, outputs: &[&str], given: &[&str]) -> (Vec<usize>, HashSet<&'a str>) {
        let mut nodes = HashSet::new();
        let mut leaves = HashSet::new();
        let mut seen: HashSet<&str> = given.iter().copied().collect();
        let mut todo: Vec<usize> = Vec::new();
        let given: HashSet<&str> = given.iter().copied().collect();
        for name in outputs.iter().filter(|name| !given.contains(*name)) {
            todo.extend(self.producer.get(name));
        }
        while let Some(index) = todo.pop() {
            if !nodes.insert(index) {
                continue;
            }
            for name in reads(&self.graph.node[index]) {
                if !seen.insert(name) {
                    continue;
                }
                match self.producer.get(name) {
                    Some(producer) => todo.push(*producer),
                    None => {
                        leaves.insert(name);
                    }
                }
            }
        }
        let mut nodes: Vec<usize> = nodes.into_iter().collect();
        nodes.sort_unstable();
        (nodes, leaves)
    }

    /// What `outputs` depend on, computed from the tensors `given`. Of some tensors only the shape counts: the first
    /// state of an LSTM may read how many rows the features have. Sub-graphs and functions of the file need the values
    /// of all that they read.
    pub(crate) fn reached(&self, outputs: &[&str], given: &[&str]) -> Reached<'a> {
        let given: HashSet<&str> = given.iter().copied().collect();
        let mut seen: HashMap<usize, Need> = HashMap::new();
        let mut leaves: HashMap<&'a str, Need> = HashMap::new();
        let first = outputs.iter().filter(|name| !given.contains(*name)).filter_map(|name| self.producer.get(name));
        let mut todo: Vec<(usize, Need)> = first.map(|index| (*index, Need::Values)).collect();
        while let Some((index, wanted)) = todo.pop() {
            if seen.get(&index).is_some_and(|seen| *seen >= wanted) {
                continue;
            }
            seen.insert(index, wanted);
            for (name, need) in needs(&self.graph.node[index], wanted, self.known[index]) {
                match self.producer.get(name) {
                    _ if given.contains(name) => {}
                    Some(producer) => todo.push((*producer, need)),
                    None => {
                        let found = leaves.entry(name).or_insert(need);
                        *found = need.max(*found);
                    }
                }
            }
        }
        let with_values = seen.into_iter().filter(|(_, need)| *need == Need::Values);
        let mut nodes: Vec<usize> = with_values.map(|(index, _)| index).collect();
        nodes.sort_unstable();
        Reached { nodes, leaves }
    }

    /// Whether a node that `output` depends on has a property, also inside sub-graphs and functions.
    pub(crate) fn depends_on(&self, output: &str, property: &dyn Fn(&NodeProto) -> bool) -> bool {
        let (nodes, _) = self.needed(&[output], &[]);
        nodes.into_iter().any(|index| {
            let node = &self.graph.node[index];
            let mut functions = self.functions.iter().filter(|function| function.name() == node.op_type());
            // a function may call another one: then the nodes of all of them count
            has_property(node, property)
                || functions
                    .any(|_| self.functions.iter().flat_map(|f| &f.node).any(|node| has_property(node, property)))
        })
    }

    /// The random operator on whose values `output` depends, if any. One without a mean comes first.
    pub(crate) fn random_source(&self, output: &str) -> Option<&'a str> {
        let nodes = self.reached(&[output], &[]).nodes;
        first_without_mean(nodes.into_iter().filter_map(|index| self.random[index]))
    }
}

#[cfg(test)]
mod tests {
    use super::super::proto::ModelProto;
    use super::*;

    fn node(kind: &str, inputs: &[&str], output: &str) -> NodeProto {
        NodeProto {
            op_type: Some(kind.to_owned()),
            input: inputs.iter().map(|name| (*name).to_owned()).collect(),
            output: vec![output.to_owned()],
            ..Default::default()
        }
    }

    /// What of `x` the tensor `y` depends on.
    fn need_of_x(nodes: Vec<NodeProto>, functions: Vec<FunctionProto>) -> Option<Need> {
        let model = ModelProto { functions, ..Default::default() };
        let graph = GraphProto { node: nodes, ..Default::default() };
        Dataflow::new(&model, &graph).reached(&["y"], &[]).leaves.get("x").copied()
    }

    #[test]
    fn shapes_differ_from_values() {
        let ends = |kind, inputs: &[&str]| vec![node(kind, inputs, "t"), node("ConstantOfShape", &["t"], "y")];
        let shape_of = |kind, inputs: &[&str]| vec![node(kind, inputs, "t"), node("Shape", &["t"], "y")];
        let cases = [
            (ends("Shape", &["x"]), Some(Need::Shape)),
            (ends("Size", &["x"]), Some(Need::Shape)),
            (ends("Cast", &["x"]), Some(Need::Values)),
            (shape_of("LSTM", &["x", "w", "r"]), Some(Need::Shape)),
            (shape_of("NonZero", &["x"]), Some(Need::Values)),
            (shape_of("Compress", &["w", "x"]), Some(Need::Values)),
            (shape_of("Compress", &["x", "w"]), Some(Need::Shape)),
            (shape_of("Reshape", &["x", "w"]), Some(Need::Shape)),
            (shape_of("Reshape", &["w", "x"]), Some(Need::Values)),
            (shape_of("RandomNormalLike", &["x"]), Some(Need::Shape)),
            (vec![node("RandomNormalLike", &["x"], "y")], Some(Need::Shape)),
            (vec![node("Expand", &["w", "x"], "y")], Some(Need::Values)),
            // both edges
            (vec![node("Shape", &["x"], "t"), node("Reshape", &["x", "t"], "y")], Some(Need::Values)),
            (vec![node("Reshape", &["x", "t"], "y"), node("Shape", &["x"], "t")], Some(Need::Values)),
            (vec![node("Identity", &["w"], "y")], None),
        ];
        for (nodes, expected) in cases {
            let kinds: Vec<String> = nodes.iter().map(|node| node.op_type().to_owned()).collect();
            assert_eq!(need_of_x(nodes, Vec::new()), expected, "{kinds:?}");
        }
    }

    #[test]
    fn a_function_with_the_name_of_an_operator_may_read_values() {
        let function = FunctionProto { name: Some("Shape".to_owned()), ..Default::default() };
        assert_eq!(need_of_x(vec![node("Shape", &["x"], "y")], vec![function]), Some(Need::Values));
        let other = NodeProto { domain: Some("com.microsoft".to_owned()), ..node("Shape", &["x"], "y") };
        assert_eq!(need_of_x(vec![other], Vec::new()), Some(Need::Values));
    }

    #[test]
    fn nodes_that_give_a_shape_are_left_out() {
        let nodes =
            vec![node("MatMul", &["x", "w"], "a"), node("Shape", &["a"], "s"), node("Reshape", &["b", "s"], "y")];
        let graph = GraphProto { node: nodes, ..Default::default() };
        let model = ModelProto::default();
        let reached = Dataflow::new(&model, &graph).reached(&["y"], &["b"]);
        assert_eq!(reached.nodes, [1, 2]);
    }
}
