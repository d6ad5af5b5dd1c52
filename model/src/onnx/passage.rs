//! Tensors through which all paths between the inputs and an output pass.

use std::collections::HashMap;

use super::dependence::Need;
use super::{Dataflow, dependence};

impl<'a> Dataflow<'a> {
    /// The tensors through which all values pass on their way from the inputs to `output`, in the order of the way.
    ///
    /// `is_start` says which tensors are inputs. These and `output` are left out. The nodes are sorted first: each comes
    /// after those from which it reads. A tensor on all paths is then alone at some place: no other one is computed
    /// before it and read after it.
    pub(crate) fn passages(&self, output: &str, is_start: &dyn Fn(&str) -> bool) -> Vec<&'a str> {
        // place of the producer, and of the last reader, of each tensor on the way
        let mut spans: HashMap<&'a str, (usize, usize)> = HashMap::new();
        let (mut place, mut from_start) = (0, 0);
        for index in self.sorted(output) {
            let node = self.node(index);
            let mut is_on_way = false;
            for (name, need) in dependence::needs(node, Need::Values, self.is_known(index)) {
                if need != Need::Values {
                    continue;
                }
                if let Some((_, last)) = spans.get_mut(name) {
                    (*last, is_on_way) = (place + 1, true);
                } else if self.producer(name).is_none() && is_start(name) {
                    (from_start, is_on_way) = (place + 1, true);
                }
            }
            if is_on_way {
                place += 1;
                let outputs = node.output.iter().filter(|name| !name.is_empty());
                spans.extend(outputs.map(|name| (name.as_str(), (place, place))));
            }
        }
        // how many tensors are computed up to each place and read after it
        let mut changes = vec![0_isize; place + 2];
        let live = |(from, to): (usize, usize), changes: &mut Vec<isize>| {
            changes[from] += 1;
            changes[to] -= 1;
        };
        live((0, from_start), &mut changes);
        for span in spans.values() {
            live(*span, &mut changes);
        }
        let mut counts = Vec::with_capacity(changes.len());
        let mut count = 0;
        for change in changes {
            count += change;
            counts.push(count);
        }
        let is_alone = |(from, to): (usize, usize)| counts[from..to].contains(&1);
        let mut found: Vec<(usize, &str)> = spans
            .into_iter()
            .filter(|(name, span)| *name != output && span.0 < span.1 && is_alone(*span))
            .map(|(name, span)| (span.0, name))
            .collect();
        found.sort_unstable();
        found.into_iter().map(|(_, name)| name).collect()
    }

    /// The nodes on whose values a tensor depends, each after those that it reads.
    fn sorted(&self, output: &str) -> Vec<usize> {
        let nodes = self.reached(&[output], &[]).nodes;
        let mut missing: HashMap<usize, usize> = nodes.iter().map(|index| (*index, 0)).collect();
        let mut readers: HashMap<usize, Vec<usize>> = HashMap::new();
        for index in &nodes {
            for (name, _) in dependence::needs(self.node(*index), Need::Values, self.is_known(*index)) {
                let Some(producer) = self.producer_index(name).filter(|producer| missing.contains_key(producer)) else {
                    continue;
                };
                readers.entry(producer).or_default().push(*index);
                *missing.entry(*index).or_default() += 1;
            }
        }
        let mut ready: Vec<usize> = nodes.into_iter().filter(|index| missing.get(index) == Some(&0)).collect();
        let mut sorted = Vec::with_capacity(missing.len());
        while let Some(index) = ready.pop() {
            sorted.push(index);
            for reader in readers.remove(&index).unwrap_or_default() {
                let left = missing.entry(reader).or_default();
                *left = left.saturating_sub(1);
                if *left == 0 {
                    ready.push(reader);
                }
            }
        }
        sorted
    }
}

#[cfg(test)]
mod tests {
    use super::super::proto::{GraphProto, ModelProto, NodeProto};
    use super::*;

    fn passages(nodes: &[(&str, &[&str], &[&str])]) -> Vec<String> {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let node = |(kind, inputs, outputs): &(&str, &[&str], &[&str])| NodeProto {
            op_type: Some((*kind).to_owned()),
            input: own(inputs),
            output: own(outputs),
            ..NodeProto::default()
        };
        let graph = GraphProto { node: nodes.iter().map(node).collect(), ..GraphProto::default() };
        let model = ModelProto::default();
        let flow = Dataflow::new(&model, &graph);
        flow.passages("y", &|name| name == "x" || name == "x2").into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn passages_are_tensors_on_all_paths() {
        // a chain, in any order of the file
        let chain: [(&str, &[&str], &[&str]); 3] =
            [("Neg", &["x"], &["a"]), ("MatMul", &["a", "w"], &["b"]), ("Neg", &["b"], &["y"])];
        assert_eq!(passages(&chain), ["a", "b"]);
        assert_eq!(passages(&[chain[2], chain[0], chain[1]]), ["a", "b"]);
        // two paths that meet in c
        let meet: [(&str, &[&str], &[&str]); 4] =
            [("Neg", &["x"], &["a"]), ("Exp", &["x"], &["b"]), ("Add", &["a", "b"], &["c"]), ("Neg", &["c"], &["y"])];
        assert_eq!(passages(&meet), ["c"]);
        // another input goes around
        assert_eq!(passages(&[chain[0], chain[1], ("Add", &["b", "x2"], &["y"])]), [""; 0]);
        // the first input goes around
        assert_eq!(passages(&[chain[0], chain[1], ("Add", &["b", "x"], &["y"])]), [""; 0]);
        // both outputs of a node are read
        let split: [(&str, &[&str], &[&str]); 2] = [("Split", &["x"], &["a", "b"]), ("Add", &["a", "b"], &["y"])];
        assert_eq!(passages(&split), [""; 0]);
        // one output is not read, and weights do not count
        let one: [(&str, &[&str], &[&str]); 2] = [("Split", &["x"], &["a", "b"]), ("MatMul", &["a", "w"], &["y"])];
        assert_eq!(passages(&one), ["a"]);
        // a shape goes around
        let shape: [(&str, &[&str], &[&str]); 3] =
            [("Neg", &["x"], &["a"]), ("Shape", &["x"], &["s"]), ("Reshape", &["a", "s"], &["y"])];
        assert_eq!(passages(&shape), ["a"]);
    }

    #[test]
    fn long_chains_take_linear_time() {
        const LENGTH: usize = 20_000;
        let names: Vec<String> = (0..=LENGTH).map(|i| format!("t{i}")).collect();
        let name = |i: usize| match i {
            0 => "x",
            LENGTH => "y",
            i => names[i].as_str(),
        };
        let nodes: Vec<_> = (0..LENGTH).map(|i| ([name(i)], [name(i + 1)])).collect();
        let nodes: Vec<(&str, &[&str], &[&str])> =
            nodes.iter().map(|(from, to)| ("Neg", from.as_slice(), to.as_slice())).collect();
        assert_eq!(passages(&nodes).len(), LENGTH - 1);
    }
}
