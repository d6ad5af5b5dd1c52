//! Changes of nodes and edges.

use aefusion_model::onnx::proto::{GraphProto, ModelProto, NodeProto};

use super::{names, prefix};
use crate::lists::{BINARY, FOREIGN, NAMES, OTHERS, UNARY};
use crate::pieces;
use crate::random::Random;
use crate::sketch::{Sketch, element, graph as graph_attribute, int, tensor, undeclared};

/// Puts a piece of a graph on an edge.
pub(super) fn insert_piece(graph: &mut GraphProto, random: &mut Random) {
    let edges: Vec<(usize, usize)> = graph
        .node
        .iter()
        .enumerate()
        .flat_map(|(node, of)| (0..of.input.len()).map(move |input| (node, input)))
        .filter(|(node, input)| !is_weight(graph, &graph.node[*node].input[*input]))
        .collect();
    let Some((node, input)) = random.of(&edges) else { return };
    let from = graph.node[node].input[input].clone();
    let mut sketch = Sketch::new(prefix(random), number_type(graph));
    let width = width(graph, &graph.node[node], &from);
    let y = match random.one_in(4) {
        true => pieces::apart(&mut sketch, &from, width, random),
        false => pieces::add(&mut sketch, &from, width, random),
    };
    graph.node[node].input[input] = y;
    graph.node.splice(node..node, sketch.graph.node);
    graph.initializer.append(&mut sketch.graph.initializer);
}

fn is_weight(graph: &GraphProto, name: &str) -> bool {
    graph.initializer.iter().any(|tensor| tensor.name() == name)
}

/// The type of the weights.
fn number_type(graph: &GraphProto) -> i32 {
    let is_number = |kind: &i32| [element::FLOAT, element::FLOAT16, element::DOUBLE].contains(kind);
    graph.initializer.iter().map(|tensor| tensor.data_type()).find(is_number).unwrap_or(element::FLOAT)
}

/// The second axis of a tensor, from the matrix that a node multiplies it with, or from a declaration.
fn width(graph: &GraphProto, node: &NodeProto, name: &str) -> Option<usize> {
    if let ("MatMul" | "Gemm", Some(weight)) = (node.op_type(), node.input.get(1))
        && let Some(tensor) = graph.initializer.iter().find(|tensor| tensor.name() == weight)
    {
        let is_turned = node.attribute.iter().any(|attribute| attribute.name() == "transB" && attribute.i() == 1);
        return usize::try_from(*tensor.dims.get(usize::from(is_turned))?).ok();
    }
    let declared = graph.input.iter().chain(&graph.output).find(|value| value.name() == name)?;
    let (_, dims) = aefusion_model::onnx::declared_tensor(declared)?;
    match dims?.as_slice() {
        [_, Some(width)] => usize::try_from(*width).ok(),
        _ => None,
    }
}

/// Makes a node read another tensor, the same tensor twice, or nothing.
pub(super) fn rewire(graph: &mut GraphProto, random: &mut Random) {
    let all = names(graph);
    let place = random.below(graph.node.len());
    let Some(node) = graph.node.get_mut(place) else { return };
    let other = match random.below(8) {
        0 => String::new(),
        1 => node.output.first().cloned().unwrap_or_default(),
        _ => random.of(&all).unwrap_or_default(),
    };
    match (random.below(6), node.input.len()) {
        (0, _) | (_, 0) => node.input.push(other),
        (1, n) => {
            node.input.remove(random.below(n));
        }
        (2, n) => node.input.swap(random.below(n), 0),
        (_, n) => node.input[random.below(n)] = other,
    }
}

/// Gives a node another operator.
pub(super) fn swap_operator(graph: &mut GraphProto, random: &mut Random) {
    let place = random.below(graph.node.len());
    let Some(node) = graph.node.get_mut(place) else { return };
    let kind = match (random.below(6), node.input.len()) {
        (0, _) => random.word(FOREIGN),
        (1, _) => random.word(OTHERS),
        (_, 1) => random.word(UNARY),
        (_, 2) => random.word(BINARY),
        _ => random.word(OTHERS),
    };
    let (domain, kind) = kind.split_once("::").unwrap_or(("", kind));
    node.op_type = Some(kind.to_owned());
    node.domain = Some(domain.to_owned());
}

/// Copies, removes or moves a node.
pub(super) fn copy_or_remove(graph: &mut GraphProto, random: &mut Random) {
    let n = graph.node.len();
    if n == 0 {
        return;
    }
    let place = random.below(n);
    match random.below(6) {
        0 => drop(graph.node.remove(place)),
        1 => {
            // the same outputs twice
            let node = graph.node[place].clone();
            graph.node.insert(random.below(n), node);
        }
        2 => graph.node.swap(place, random.below(n)),
        3 => {
            // what read the output reads the input
            let node = graph.node.remove(place);
            let (Some(from), Some(to)) = (node.output.first(), node.input.first()) else { return };
            for name in graph.node.iter_mut().flat_map(|node| &mut node.input).filter(|name| *name == from) {
                to.clone_into(name);
            }
        }
        _ => {
            // once more behind itself
            let mut node = graph.node[place].clone();
            let (Some(from), Some(input)) = (node.output.first().cloned(), node.input.first_mut()) else { return };
            input.clone_from(&from);
            let new = format!("{}_{from}", prefix(random));
            node.output = vec![new.clone()];
            for name in graph.node.iter_mut().skip(place + 1).flat_map(|node| &mut node.input) {
                if *name == from {
                    name.clone_from(&new);
                }
            }
            graph.node.insert(place + 1, node);
        }
    }
}

/// Takes a node with its weights from another file.
pub(super) fn splice(graph: &mut GraphProto, other: &ModelProto, random: &mut Random) {
    let Some(other) = &other.graph else { return };
    let Some(mut node) = random.of(&other.node) else { return };
    let weights = other.initializer.iter().filter(|tensor| node.input.iter().any(|name| name == tensor.name()));
    let weights: Vec<_> = weights.cloned().collect();
    let all = names(graph);
    let prefix = prefix(random);
    for name in node.input.iter_mut().filter(|name| !weights.iter().any(|tensor| tensor.name() == name.as_str())) {
        *name = random.of(&all).unwrap_or_default();
    }
    let outputs = node.output.len();
    node.output = (0..outputs).map(|output| format!("{prefix}_{output}")).collect();
    let place = random.below(graph.node.len());
    let reader = graph.node.get_mut(place).and_then(|reader| reader.input.first_mut());
    if let (Some(input), Some(new)) = (reader, node.output.first()) {
        if let Some(first) = node.input.first_mut() {
            first.clone_from(input);
        }
        input.clone_from(new);
    }
    graph.initializer.extend(weights);
    graph.node.insert(place.min(graph.node.len()), node);
}

/// Puts a node into a branch, the body of a loop, or that of a scan.
pub(super) fn wrap_in_subgraph(graph: &mut GraphProto, random: &mut Random) {
    let place = random.below(graph.node.len());
    let Some(node) = graph.node.get(place).cloned() else { return };
    let prefix = prefix(random);
    let outputs = node.output.clone();
    let mut inner = node.clone();
    inner.output = outputs.iter().map(|name| format!("{prefix}_{name}")).collect();
    let body = |name: &str, node: &NodeProto, outputs: &[String]| GraphProto {
        name: Some(name.to_owned()),
        node: vec![node.clone()],
        output: outputs.iter().map(|name| undeclared(name)).collect(),
        ..GraphProto::default()
    };
    let wrapped = if random.one_in(3) {
        // one round, whose results are stacked: an axis more
        let mut body = body("body", &inner, &inner.output);
        let (round, keep) = (format!("{prefix}_round"), format!("{prefix}_keep"));
        body.input = vec![
            crate::sketch::declared(&round, element::INT64, &[]),
            crate::sketch::declared(&keep, element::BOOL, &[]),
        ];
        let kept = format!("{prefix}_kept");
        body.node.push(NodeProto {
            op_type: Some("Identity".to_owned()),
            input: vec![keep],
            output: vec![kept.clone()],
            ..NodeProto::default()
        });
        body.output.insert(0, undeclared(&kept));
        let trips = format!("{prefix}_trips");
        graph.initializer.push(crate::sketch::int_tensor(&trips, &[], &[1]));
        NodeProto {
            op_type: Some("Loop".to_owned()),
            input: vec![trips, String::new()],
            output: outputs,
            attribute: vec![graph_attribute("body", body)],
            ..NodeProto::default()
        }
    } else {
        let condition = format!("{prefix}_condition");
        let mut weight = tensor(&condition, element::BOOL, &[], &[]);
        weight.raw_data = Some(vec![u8::from(random.one_in(2))].into());
        graph.initializer.push(weight);
        let mut other = inner.clone();
        other.output = inner.output.iter().map(|name| format!("{name}_else")).collect();
        let (then, other) = (body("then", &inner, &inner.output), body("else", &other, &other.output));
        NodeProto {
            op_type: Some("If".to_owned()),
            input: vec![condition],
            output: outputs,
            attribute: vec![graph_attribute("then_branch", then), graph_attribute("else_branch", other)],
            ..NodeProto::default()
        }
    };
    graph.node[place] = wrapped;
}

/// Renames a tensor at some or all of its places.
pub(super) fn rename(graph: &mut GraphProto, random: &mut Random) {
    let Some(old) = random.of(&names(graph)) else { return };
    let new = match random.below(8) {
        0 => "n".repeat(random.one([200, 70_000])),
        1 | 2 => random.of(&names(graph)).unwrap_or_default(),
        _ => random.one(NAMES).to_owned(),
    };
    let is_partial = random.one_in(4);
    let nodes = graph.node.iter_mut().flat_map(|node| node.input.iter_mut().chain(&mut node.output));
    let values = graph.input.iter_mut().chain(&mut graph.output).filter_map(|value| value.name.as_mut());
    let weights = graph.initializer.iter_mut().filter_map(|tensor| tensor.name.as_mut());
    for name in nodes.chain(values).chain(weights).filter(|name| **name == old) {
        if !is_partial || random.one_in(2) {
            name.clone_from(&new);
        }
    }
}

/// Adds an inner tensor as an output, or changes the list of outputs.
pub(super) fn change_outputs(graph: &mut GraphProto, random: &mut Random) {
    let all = names(graph);
    match random.below(5) {
        0 if !graph.output.is_empty() => drop(graph.output.remove(random.below(graph.output.len()))),
        1 if !graph.output.is_empty() => {
            let n = graph.output.len();
            graph.output.swap(random.below(n), 0);
        }
        2 => {
            let again = random.of(&graph.output);
            graph.output.extend(again);
        }
        _ => graph.output.push(undeclared(&random.of(&all).unwrap_or_default())),
    }
    if random.one_in(8) {
        // the versions before 13 have the axis of Softmax as an attribute only
        graph.node.iter_mut().for_each(|node| node.attribute.retain(|attribute| attribute.name() != "axis"));
        if let Some(node) = graph.node.first_mut() {
            node.attribute.push(int("axis", 0));
        }
    }
}
