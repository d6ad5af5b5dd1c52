//! The memory of the tensors that live at the same time.

use std::collections::{HashMap, HashSet};

use super::dataflow::reads;
use super::proto::GraphProto;

/// The largest memory of computed tensors that live at the same time, if each has this number of bytes. A tensor lives
/// from its operator to the last one that reads it. Outputs of the graph do not count.
pub(crate) fn peak(graph: &GraphProto, bytes: impl Fn(&str) -> usize) -> usize {
    let mut last: HashMap<&str, usize> = HashMap::new();
    for (index, node) in graph.node.iter().enumerate() {
        last.extend(reads(node).into_iter().map(|name| (name, index)));
    }
    let outputs: HashSet<&str> = graph.output.iter().map(|value| value.name()).collect();
    let mut ends: HashMap<usize, usize> = HashMap::new();
    let (mut live, mut peak) = (0_usize, 0);
    for (index, node) in graph.node.iter().enumerate() {
        for name in node.output.iter().map(String::as_str).filter(|name| !outputs.contains(name)) {
            let size = bytes(name);
            live = live.saturating_add(size);
            let end = ends.entry(last.get(name).copied().unwrap_or(index).max(index)).or_default();
            *end = end.saturating_add(size);
        }
        peak = peak.max(live);
        live = live.saturating_sub(ends.remove(&index).unwrap_or(0));
    }
    peak
}

#[cfg(test)]
mod tests {
    use super::super::proto::{NodeProto, ValueInfoProto};
    use super::*;

    #[test]
    fn tensors_live_until_their_last_reader() {
        let node = |inputs: &[&str], output: &str| NodeProto {
            input: inputs.iter().map(|name| (*name).to_owned()).collect(),
            output: vec![output.to_owned()],
            ..Default::default()
        };
        // a is read twice: it lives beside b and c; e is read by none
        let node =
            vec![node(&["x"], "a"), node(&["a"], "b"), node(&["a", "b"], "c"), node(&["c"], "e"), node(&["c"], "out")];
        let output = vec![ValueInfoProto { name: Some("out".to_owned()), ..Default::default() }];
        let graph = GraphProto { node, output, ..Default::default() };
        let bytes = |name: &str| match name {
            "a" => 100,
            "b" => 10,
            "c" => 1,
            "e" => 5,
            _ => 1000,
        };
        assert_eq!(peak(&graph, bytes), 111);
        assert_eq!(peak(&graph, |name| if name == "e" { 500 } else { 1 }), 501);
        assert_eq!(peak(&GraphProto::default(), |_| 1), 0);
    }
}
