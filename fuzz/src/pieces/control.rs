//! Recurrent networks, branches and loops.

use crate::lists::UNARY;
use crate::random::Random;
use crate::sketch::{Sketch, declared, element, graph, int, undeclared};

/// Largest trip count of an ordinary loop.
const TRIPS: usize = 4;

/// An LSTM, GRU or RNN whose steps are the rows (`axis` 1 becomes the batch) or single (`axis` 0).
pub(super) fn recurrent(sketch: &mut Sketch, x: &str, width: Option<usize>, random: &mut Random, axis: i64) -> String {
    let Some(width) = width else { return sketch.op("Tanh", &[x]) };
    let n = i64::try_from(width).unwrap_or(1);
    let (kind, gates) = random.one([("LSTM", 4), ("GRU", 3), ("RNN", 1)]);
    let size = usize::try_from(gates).unwrap_or(1) * width * width;
    let mut weights = || (0..size).map(|_| 0.5 * random.normal()).collect::<Vec<f64>>();
    let (w, r) = (weights(), weights());
    let (w, r) = (sketch.numbers(&[1, gates * n, n], &w), sketch.numbers(&[1, gates * n, n], &r));
    let axes = sketch.list(&[axis]);
    let steps = sketch.op("Unsqueeze", &[x, &axes]);
    let y = sketch.op_with(kind, &[&steps, &w, &r], vec![int("hidden_size", n)]);
    // [steps, directions, batch, hidden]
    let axes = if axis == 0 { sketch.list(&[0, 1]) } else { sketch.list(&[1, 2]) };
    sketch.op("Squeeze", &[&y, &axes])
}

/// An `If` whose condition the whole block decides.
pub(super) fn branches(sketch: &mut Sketch, x: &str, random: &mut Random) -> String {
    let limit = sketch.numbers(&[], &[random.one([0.0, 2.5, 100.0, 1e5, 1e12])]);
    let largest = sketch.op_with(random.one(["ReduceMax", "ReduceMean"]), &[x], vec![int("keepdims", 0)]);
    let is_large = sketch.op("Greater", &[&largest, &limit]);
    let mut branch = |label: &str| {
        let mut inner = Sketch::new(sketch.name(), sketch.element);
        let y = match random.one_in(3) {
            true => mixing_flat(&mut inner, x, random),
            false => inner.op(random.word(UNARY), &[x]),
        };
        inner.graph.name = Some(label.to_owned());
        inner.graph.output.push(undeclared(&y));
        inner.graph
    };
    let (then, other) = (branch("then"), branch("else"));
    sketch.op_with("If", &[&is_large], vec![graph("then_branch", then), graph("else_branch", other)])
}

/// A piece for the inside of a sub-graph, without a sub-graph of its own.
fn mixing_flat(sketch: &mut Sketch, x: &str, random: &mut Random) -> String {
    match random.below(3) {
        0 => sketch.op_with("Softmax", &[x], vec![int("axis", 0)]),
        1 => {
            let axes = sketch.list(&[0]);
            let mean = sketch.op("ReduceMean", &[x, &axes]);
            sketch.op("Sub", &[x, &mean])
        }
        _ => {
            let axis = sketch.ints(&[], &[0]);
            sketch.op("CumSum", &[x, &axis])
        }
    }
}

/// A `Loop` with a fixed number of rounds, or one that the block decides.
pub(super) fn loops(sketch: &mut Sketch, x: &str, random: &mut Random) -> String {
    let trips = match random.below(3) {
        0 => {
            let largest = sketch.op_with("ReduceMax", &[x], vec![int("keepdims", 0)]);
            let (low, high) = (sketch.numbers(&[], &[0.0]), sketch.numbers(&[], &[8.0]));
            let largest = sketch.op("Clip", &[&largest, &low, &high]);
            sketch.op_with("Cast", &[&largest], vec![int("to", element::INT64.into())])
        }
        1 => {
            let shape = sketch.op("Shape", &[x]);
            let zero = sketch.ints(&[], &[0]);
            sketch.op_with("Gather", &[&shape, &zero], vec![int("axis", 0)])
        }
        _ => sketch.ints(&[], &[i64::try_from(random.below(TRIPS)).unwrap_or(1)]),
    };
    let mut body = Sketch::new(sketch.name(), sketch.element);
    let (round, keep, state) = (body.name(), body.name(), body.name());
    let next = match random.one_in(2) {
        true => body.op(random.word(UNARY), &[&state]),
        false => body.op(random.one(["Add", "Mul", "Sub"]), &[&state, x]),
    };
    let next = if random.one_in(3) { mixing_flat(&mut body, &next, random) } else { next };
    let kept = body.op("Identity", &[&keep]);
    body.graph.name = Some("body".to_owned());
    body.graph.input =
        vec![declared(&round, element::INT64, &[]), declared(&keep, element::BOOL, &[]), undeclared(&state)];
    body.graph.output = vec![declared(&kept, element::BOOL, &[]), undeclared(&next)];
    sketch.op_with("Loop", &[&trips, "", x], vec![graph("body", body.graph)])
}

/// A `Scan` over the rows, with or without a state that goes from row to row.
pub(super) fn scan(sketch: &mut Sketch, x: &str, width: Option<usize>, random: &mut Random) -> String {
    let Some(width) = width else { return sketch.op("Identity", &[x]) };
    let n = i64::try_from(width).unwrap_or(1);
    let start = sketch.numbers(&[n], &vec![0.0; width]);
    let mut body = Sketch::new(sketch.name(), sketch.element);
    let (state, row) = (body.name(), body.name());
    let sum = body.op("Add", &[&state, &row]);
    let mixes = random.one_in(2);
    let next = if mixes { sum.clone() } else { body.op("Identity", &[&state]) };
    let out = body.op(random.word(UNARY), &[if mixes { &sum } else { &row }]);
    body.graph.name = Some("body".to_owned());
    body.graph.input = [&state, &row].map(|name| declared(name, sketch.element, &[Some(n)])).to_vec();
    body.graph.output = [&next, &out].map(|name| declared(name, sketch.element, &[Some(n)])).to_vec();
    let attributes = vec![graph("body", body.graph), int("num_scan_inputs", 1)];
    sketch.ops("Scan", &[&start, x], attributes, 2).swap_remove(1)
}
