//! Changes of decoded files, one at a time.

mod bytes;
mod file;
mod nodes;
mod values;

pub use bytes::{change_bytes, nest_types, spoil_names};

use aefusion_model::onnx::proto::{AttributeProto, GraphProto, ModelProto, NodeProto};

use crate::random::Random;

/// Changes a file once. `other` is another file, for parts of it.
pub fn change(model: &mut ModelProto, other: &ModelProto, random: &mut Random) {
    match random.below(100) {
        0..=34 => in_graph(model, random, nodes::insert_piece),
        35..=43 => in_graph(model, random, nodes::rewire),
        44..=49 => in_graph(model, random, nodes::swap_operator),
        50..=56 => in_graph(model, random, values::change_attribute),
        57..=66 => in_graph(model, random, values::change_weight),
        67..=71 => in_graph(model, random, values::change_declaration),
        72..=75 => in_graph(model, random, nodes::copy_or_remove),
        76..=77 => in_graph(model, random, |graph, random| nodes::splice(graph, other, random)),
        78..=81 => file::wrap_in_function(model, random),
        82..=83 => in_graph(model, random, nodes::wrap_in_subgraph),
        84..=86 => file::choose_tensor(model, random),
        87..=88 => file::change_metadata(model, random),
        89..=90 => file::change_versions(model, random),
        91..=92 => in_graph(model, random, nodes::rename),
        93..=94 => in_graph(model, random, values::make_sparse),
        95 => in_graph(model, random, values::move_outside),
        96..=97 => in_graph(model, random, nodes::change_outputs),
        98 => file::change_function(model, random),
        _ => file::make_large(model, random),
    }
}

/// Changes one graph of the file: mostly the outer one, else a sub-graph or a function.
fn in_graph(model: &mut ModelProto, random: &mut Random, mut change: impl FnMut(&mut GraphProto, &mut Random)) {
    if !model.functions.is_empty() && random.one_in(4) {
        let place = random.below(model.functions.len());
        let function = &mut model.functions[place];
        let mut graph = GraphProto { node: std::mem::take(&mut function.node), ..GraphProto::default() };
        change(&mut graph, random);
        // a function has no weights, but nodes that give constants
        let constants = graph.initializer.drain(..).map(|tensor| NodeProto {
            op_type: Some("Constant".to_owned()),
            output: vec![tensor.name().to_owned()],
            attribute: vec![crate::sketch::tensor_attribute("value", tensor)],
            ..NodeProto::default()
        });
        function.node = constants.collect();
        function.node.append(&mut graph.node);
        return;
    }
    let Some(graph) = &mut model.graph else { return };
    let inner = count(graph);
    let target = if inner > 0 && random.one_in(3) { random.from_to(1, inner) } else { 0 };
    visit(graph, &mut 0, target, &mut |graph| change(graph, random));
}

/// Sub-graphs of a graph, at any depth.
fn count(graph: &GraphProto) -> usize {
    graph.node.iter().flat_map(|node| &node.attribute).flat_map(subgraphs).map(|graph| 1 + count(graph)).sum()
}

fn subgraphs(attribute: &AttributeProto) -> impl Iterator<Item = &GraphProto> {
    attribute.g.iter().chain(&attribute.graphs)
}

fn visit(graph: &mut GraphProto, number: &mut usize, target: usize, change: &mut dyn FnMut(&mut GraphProto)) {
    if *number == target {
        *number += 1;
        return change(graph);
    }
    *number += 1;
    for attribute in graph.node.iter_mut().flat_map(|node| &mut node.attribute) {
        for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
            if *number <= target {
                visit(graph, number, target, change);
            }
        }
    }
}

/// Every name that a node of the graph could read.
fn names(graph: &GraphProto) -> Vec<String> {
    let weights = graph.initializer.iter().map(|tensor| tensor.name().to_owned());
    let inputs = graph.input.iter().map(|value| value.name().to_owned());
    let computed = graph.node.iter().flat_map(|node| node.output.iter().chain(&node.input).cloned());
    let mut names: Vec<String> = weights.chain(inputs).chain(computed).collect();
    names.sort();
    names.dedup();
    names
}

/// A prefix for new names.
fn prefix(random: &mut Random) -> String {
    format!("m{}", random.below(1 << 20))
}
