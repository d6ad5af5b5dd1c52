//! Pieces that fail, crash or take long.

use aefusion_model::onnx::proto::TensorProto;

use crate::lists::INTS;
use crate::random::Random;
use crate::sketch::{
    Sketch, declared, element, float, floats, graph, int, ints, tensor, tensor_attribute, text, texts, undeclared,
};

/// A piece that fails, crashes or takes long in some versions of ONNX Runtime.
pub(super) fn hostile(sketch: &mut Sketch, x: &str, random: &mut Random) -> String {
    match random.below(10) {
        0 => {
            let kind = random.one(["Sum", "Mean", "Max", "Min", "Concat"]);
            sketch.op(kind, &[x, ""])
        }
        1 => sketch.op_with("Einsum", &[x, ""], vec![text("equation", random.one(["ij,jk->ik", "ij", "edge"]))]),
        2 => {
            let (a, b) = (int32(sketch, i32::MIN), int32(sketch, -1));
            let quotient = sketch.op(random.one(["Div", "Mod"]), &[&a, &b]);
            let to = sketch.element.into();
            let quotient = sketch.op_with("Cast", &[&quotient], vec![int("to", to)]);
            sketch.op("Add", &[x, &quotient])
        }
        3 => {
            let values = [random.one(INTS), random.one(INTS)];
            let shape = sketch.list(&values);
            sketch.op(random.one(["Expand", "Tile", "Reshape"]), &[x, &shape])
        }
        4 => {
            let values = [0, random.one(INTS), 0, random.one(INTS)];
            let pads = sketch.list(&values);
            sketch.op("Pad", &[x, &pads])
        }
        5 => {
            let bounds = vec![float("low", random.one([1.0, 3.4e38])), float("high", random.one([1.0, -1.0]))];
            sketch.op_with("RandomUniformLike", &[x], bounds)
        }
        6 => {
            let trips = sketch.ints(&[], &[random.one([1000, 1_000_000, i64::MAX])]);
            let trips = if random.one_in(4) { String::new() } else { trips };
            let mut body = Sketch::new(sketch.name(), sketch.element);
            let (round, keep, state) = (body.name(), body.name(), body.name());
            let next = body.op("Neg", &[&state]);
            let kept = body.op("Identity", &[&keep]);
            body.graph.name = Some("body".to_owned());
            body.graph.input =
                vec![declared(&round, element::INT64, &[]), declared(&keep, element::BOOL, &[]), undeclared(&state)];
            body.graph.output = vec![declared(&kept, element::BOOL, &[]), undeclared(&next)];
            // one of 30 is endless: each takes as long as the deadline
            if !random.one_in(30) {
                let few = sketch.ints(&[], &[10]);
                return sketch.op_with("Loop", &[&few, "", x], vec![graph("body", body.graph)]);
            }
            sketch.op_with("Loop", &[&trips, "", x], vec![graph("body", body.graph)])
        }
        7 => {
            let nodes = [0_i64, 1, 2, random.one(INTS)];
            let attributes = vec![
                ints("nodes_treeids", &[0, 0, 0]),
                ints("nodes_nodeids", &nodes[..3]),
                ints("nodes_featureids", &[0, 0, nodes[3]]),
                floats("nodes_values", &[0.5, 0.0, 0.0]),
                texts("nodes_modes", &["BRANCH_LEQ", "LEAF", "LEAF"]),
                ints("nodes_truenodeids", &[random.one([1, 1, 0, 9]), 0, 0]),
                ints("nodes_falsenodeids", &[random.one([2, 2, 0, -1]), 0, 0]),
                ints("target_treeids", &[0, 0]),
                ints("target_nodeids", &[1, 2]),
                ints("target_ids", &[0, random.one([0, 0, 5])]),
                floats("target_weights", &[1.0, 2.0]),
                int("n_targets", random.one([1, 1, 2, -1])),
            ];
            sketch.op_with("ai.onnx.ml::TreeEnsembleRegressor", &[x], attributes)
        }
        8 => {
            let size = random.one([1_i64, 1 << 20, 1 << 40, -1]);
            let value = tensor_attribute("value", tensor("", sketch.element, &[1], &[1.0]));
            let shape = sketch.list(&[size]);
            let large = sketch.op_with("ConstantOfShape", &[&shape], vec![value]);
            let sum = sketch.op("ReduceSum", &[&large]);
            sketch.op("Add", &[x, &sum])
        }
        _ => {
            let to = sketch.element.into();
            let indices = sketch.op_with("Cast", &[x], vec![int("to", element::INT64.into())]);
            let table = sketch.numbers(&[3], &[1.0, 3.0, 5.0]);
            let y = sketch.op_with("Gather", &[&table, &indices], Vec::new());
            sketch.op_with("Cast", &[&y], vec![int("to", to)])
        }
    }
}

fn int32(sketch: &mut Sketch, value: i32) -> String {
    let name = sketch.name();
    sketch.graph.initializer.push(TensorProto {
        name: Some(name.clone()),
        data_type: Some(element::INT32),
        dims: vec![1],
        int32_data: vec![value],
        ..TensorProto::default()
    });
    name
}
