//! Pieces of graphs, from one tensor to another of the same shape. Many of them mix rows.

mod control;
mod hostile;

use crate::lists::{BINARY, FLOATS, UNARY};
use crate::random::Random;
use crate::sketch::{Sketch, element, int, int_tensor, ints, tensor_attribute, text};
use control::{branches, loops, recurrent, scan};
use hostile::hostile;

/// Adds a piece after the tensor `x`, and returns its result. `width` is the size of the second of two axes, if it is
/// known.
pub fn add(sketch: &mut Sketch, x: &str, width: Option<usize>, random: &mut Random) -> String {
    let y = match random.below(20) {
        0..=3 => apart(sketch, x, width, random),
        4..=18 => mixing(sketch, x, width, random),
        _ => hostile(sketch, x, random),
    };
    match random.below(12) {
        0 => rare(sketch, x, &y, random),
        1 => small(sketch, x, &y, random),
        2 => apart(sketch, &y, width, random),
        _ => y,
    }
}

/// `y` for large numbers only; `x` for all others.
fn rare(sketch: &mut Sketch, x: &str, y: &str, random: &mut Random) -> String {
    let limit = sketch.numbers(&[], &[random.one([0.5, 2.0, 50.0, 1e4, 1e12, -1e9])]);
    let is_large = sketch.op(random.one(["Greater", "Less"]), &[x, &limit]);
    sketch.op("Where", &[&is_large, y, x])
}

/// `x`, and a small part of the way to `y`.
fn small(sketch: &mut Sketch, x: &str, y: &str, random: &mut Random) -> String {
    let share = sketch.numbers(&[], &[random.one([1e-6, 1e-4, 1e-2, 0.1])]);
    let way = sketch.op("Sub", &[y, x]);
    let part = sketch.op("Mul", &[&way, &share]);
    sketch.op("Add", &[x, &part])
}

/// A piece that keeps rows apart, if `x` has them on its first axis.
pub fn apart(sketch: &mut Sketch, x: &str, width: Option<usize>, random: &mut Random) -> String {
    match random.below(14) {
        0..=3 => sketch.op(random.word(UNARY), &[x]),
        4..=5 => {
            let n = random.from_to(1, 3);
            let dims = match (random.below(4), width) {
                (0, Some(width)) => vec![1, i64::try_from(width).unwrap_or(1)],
                (1, Some(width)) => vec![i64::try_from(width).unwrap_or(1)],
                (2, _) => vec![1],
                _ => Vec::new(),
            };
            let size = dims.iter().map(|dim| usize::try_from(*dim).unwrap_or(1)).product();
            let values: Vec<f64> = (0..size).map(|_| number(random)).collect();
            let mut y = x.to_owned();
            for _ in 0..n {
                let weight = sketch.numbers(&dims, &values);
                let kind = random.word(BINARY);
                y = match random.one_in(2) {
                    true => sketch.op(kind, &[&y, &weight]),
                    false => sketch.op(kind, &[&weight, &y]),
                };
            }
            y
        }
        6 => {
            let (low, high) = (sketch.numbers(&[], &[number(random)]), sketch.numbers(&[], &[number(random)]));
            sketch.op("Clip", &[x, &low, &high])
        }
        7 => {
            let to = random.one([
                element::INT32,
                element::INT64,
                element::FLOAT16,
                element::DOUBLE,
                2,
                3,
                16,
                element::BOOL,
            ]);
            let cast = sketch.op_with("Cast", &[x], vec![int("to", to.into())]);
            let back = sketch.element;
            sketch.op_with("Cast", &[&cast], vec![int("to", back.into())])
        }
        8 => {
            let axis = sketch.list(&[-1]);
            let kind = random.one(["ReduceMean", "ReduceMax", "ReduceL2", "ReduceLogSumExp", "ReduceProd"]);
            let reduced = sketch.op(kind, &[x, &axis]);
            sketch.op(random.one(["Sub", "Add", "Mul", "Div"]), &[x, &reduced])
        }
        9 => {
            let pads = random.one([[0, 1, 0, 1], [0, 2, 0, 0], [0, -1, 0, 1], [0, 0, 0, 3]]);
            let pads = sketch.list(&pads);
            let padded = sketch.op("Pad", &[x, &pads]);
            match width {
                Some(width) => {
                    let (from, axes) = (sketch.list(&[0]), sketch.list(&[1]));
                    let to = sketch.list(&[i64::try_from(width).unwrap_or(1)]);
                    sketch.op("Slice", &[&padded, &from, &to, &axes])
                }
                None => padded,
            }
        }
        10 => {
            let shape = sketch.op("Shape", &[x]);
            let flat = sketch.list(&[-1]);
            let flat = sketch.op("Reshape", &[x, &flat]);
            let changed = sketch.op(random.word(UNARY), &[&flat]);
            sketch.op("Reshape", &[&changed, &shape])
        }
        11 => recurrent(sketch, x, width, random, 0),
        12 => {
            let k = match width {
                Some(width) => i64::try_from(width).unwrap_or(1),
                None => 1,
            };
            let k = sketch.list(&[k]);
            sketch.ops("TopK", &[x, &k], vec![int("axis", -1)], 2).swap_remove(0)
        }
        _ => {
            let scale = sketch.numbers(&[], &[random.one([0.1, 0.01, 1.0, 3.0])]);
            let quantised = sketch.op("QuantizeLinear", &[x, &scale]);
            sketch.op("DequantizeLinear", &[&quantised, &scale])
        }
    }
}

/// A number, now and then an extreme one.
pub fn number(random: &mut Random) -> f64 {
    if random.one_in(12) { random.one(FLOATS) } else { random.normal() }
}

/// `x` combined with a statistic of it.
fn combined(sketch: &mut Sketch, x: &str, statistic: &str, random: &mut Random) -> String {
    sketch.op(random.one(["Sub", "Add", "Mul", "Div", "Max"]), &[x, statistic])
}

/// A piece that mixes rows, if `x` has them on its first axis.
pub fn mixing(sketch: &mut Sketch, x: &str, width: Option<usize>, random: &mut Random) -> String {
    let zero = [0_i64];
    match random.below(32) {
        0 => {
            let kind =
                random.one(["ReduceMean", "ReduceSum", "ReduceMin", "ReduceL1", "ReduceLogSumExp", "ReduceProd"]);
            let axes = sketch.list(&zero);
            let statistic = sketch.op(kind, &[x, &axes]);
            combined(sketch, x, &statistic, random)
        }
        1 => {
            let statistic = sketch.op(random.one(["ReduceMax", "ReduceMean", "ReduceSumSquare"]), &[x]);
            combined(sketch, x, &statistic, random)
        }
        2 => {
            let axis = sketch.ints(&[], &[random.one([0, 0, -2, 1])]);
            let attributes = vec![int("reverse", random.one([0, 1])), int("exclusive", random.one([0, 1]))];
            sketch.op_with("CumSum", &[x, &axis], attributes)
        }
        3 => {
            let kind = random.one(["Softmax", "LogSoftmax", "Hardmax", "LpNormalization"]);
            sketch.op_with(kind, &[x], vec![int("axis", random.one([0, 0, -2, 1]))])
        }
        4 => {
            let (from, to) = (sketch.list(&[-1]), sketch.list(&[i64::MIN]));
            let (axes, steps) = (sketch.list(&zero), sketch.list(&[-1]));
            sketch.op("Slice", &[x, &from, &to, &axes, &steps])
        }
        5 => {
            let place = sketch.ints(&[], &[random.one([0, -1, 3])]);
            let row = sketch.op_with("Gather", &[x, &place], vec![int("axis", 0)]);
            combined(sketch, x, &row, random)
        }
        6 => match width {
            Some(width) => {
                let n = i64::try_from(width).unwrap_or(1);
                let [one, zeros] = [1.0, 0.0].map(|value| sketch.numbers(&[n], &vec![value; width]));
                let inputs = [x, &one, &zeros, &zeros, &one];
                let training = vec![int("training_mode", random.one([1, 1, 0]))];
                sketch.ops("BatchNormalization", &inputs, training, 3).swap_remove(0)
            }
            None => sketch.op_with("MeanVarianceNormalization", &[x], vec![ints("axes", &zero)]),
        },
        7 => recurrent(sketch, x, width, random, 1),
        8 => branches(sketch, x, random),
        9 => {
            let shape = sketch.op("Shape", &[x]);
            let rows = count(sketch, &shape);
            let k = if random.one_in(3) { sketch.list(&[16]) } else { rows };
            sketch.ops("TopK", &[x, &k], vec![int("axis", 0)], 2).swap_remove(0)
        }
        10 => {
            let place = places(sketch, x);
            combined(sketch, x, &place, random)
        }
        11 => loops(sketch, x, random),
        12 => scan(sketch, x, width, random),
        13 => {
            let shape = sketch.op("Shape", &[x]);
            let n = if random.one_in(2) { count(sketch, &shape) } else { sketch.op("Size", &[x]) };
            let to = sketch.element;
            let n = sketch.op_with("Cast", &[&n], vec![int("to", to.into())]);
            combined(sketch, x, &n, random)
        }
        14 => {
            let turned = sketch.op("Transpose", &[x]);
            let scores = sketch.op("MatMul", &[x, &turned]);
            let share = if random.one_in(2) { sketch.op("Softmax", &[&scores]) } else { scores };
            sketch.op("MatMul", &[&share, x])
        }
        15 => {
            let (axes, one, end) = (sketch.list(&zero), sketch.list(&[1]), sketch.list(&[i64::MAX]));
            let from = sketch.list(&zero);
            let (first, rest) =
                (sketch.op("Slice", &[x, &from, &one, &axes]), sketch.op("Slice", &[x, &one, &end, &axes]));
            sketch.op_with("Concat", &[&rest, &first], vec![int("axis", 0)])
        }
        16 => {
            let parts = sketch.ops("DynamicQuantizeLinear", &[x], Vec::new(), 3);
            sketch.op("DequantizeLinear", &[&parts[0], &parts[1], &parts[2]])
        }
        17 => sketch.op_with("Trilu", &[x], vec![int("upper", random.one([0, 1]))]),
        18 => {
            let equation = random.one(["ij,kj->ij", "ij,ik->ij", "ij,kl->ij"]);
            sketch.op_with("Einsum", &[x, x], vec![text("equation", equation)])
        }
        19 => paired(sketch, x, width, random),
        20 => {
            let parts = sketch.ops("Split", &[x], vec![int("axis", 0), int("num_outputs", 2)], 2);
            sketch.op_with("Concat", &[&parts[1], &parts[0]], vec![int("axis", 0)])
        }
        21 => neighbours(sketch, x, random),
        22 => {
            let places = sketch.op_with("ArgMax", &[x], vec![int("axis", 0)]);
            let to = sketch.element;
            let places = sketch.op_with("Cast", &[&places], vec![int("to", to.into())]);
            combined(sketch, x, &places, random)
        }
        23 => {
            let parts = sketch.op_with("SplitToSequence", &[x], vec![int("axis", 0)]);
            let place = sketch.ints(&[], &[random.one([0, -1])]);
            let row = sketch.op("SequenceAt", &[&parts, &place]);
            combined(sketch, x, &row, random)
        }
        24 => {
            let updates = sketch.numbers(&[2], &[1.0, 2.0]);
            let at = sketch.ints(&[2, 2], &[0, 0, 1, 0]); // two numbers, by row and column
            sketch.op("ScatterND", &[x, &at, &updates])
        }
        25 => {
            let shape = sketch.op("Shape", &[x]);
            let flat = sketch.list(&[-1]);
            let flat = sketch.op("Reshape", &[x, &flat]);
            let axis = sketch.ints(&[], &[0]);
            let summed = sketch.op("CumSum", &[&flat, &axis]);
            sketch.op("Reshape", &[&summed, &shape])
        }
        26 => {
            let lengths = sketch.op("Shape", &[x]);
            let (from, to) = (sketch.list(&[1]), sketch.list(&[2]));
            let columns = sketch.op("Slice", &[&lengths, &from, &to]);
            let rows = count(sketch, &lengths);
            let lengths = sketch.op("Expand", &[&rows, &columns]);
            let attributes = vec![int("batch_axis", 1), int("time_axis", 0)];
            sketch.op_with("ReverseSequence", &[x, &lengths], attributes)
        }
        27 => {
            let zeros = sketch.op("Shape", &[x]);
            let zero = tensor_attribute("value", int_tensor("", &[1], &[random.one([0, 1, 15])]));
            let zeros = sketch.op_with("ConstantOfShape", &[&zeros], vec![zero]);
            sketch.op_with("GatherElements", &[x, &zeros], vec![int("axis", 0)])
        }
        28 => {
            let turned = sketch.op("Transpose", &[x]);
            let inner = apart(sketch, &turned, None, random);
            sketch.op("Transpose", &[&inner])
        }
        29 => {
            // across all rows: a normalisation from the first axis on
            let one = sketch.numbers(&[1], &[1.0]);
            sketch.op_with("LayerNormalization", &[x, &one], vec![int("axis", random.one([0, 0, 1]))])
        }
        30 => {
            let kept = sketch.op("Shape", &[x]);
            let rows = count(sketch, &kept);
            let end = sketch.list(&[random.one([1, 2, 15, 16])]);
            let from = sketch.list(&zero);
            let axes = sketch.list(&zero);
            let some = sketch.op("Slice", &[x, &from, &end, &axes]);
            let axes = sketch.list(&zero);
            let mean = sketch.op("ReduceMean", &[&some, &axes]);
            let n = sketch.op_with("Cast", &[&rows], vec![int("to", sketch.element.into())]);
            let part = sketch.op(random.one(["Mul", "Div", "Max"]), &[&mean, &n]);
            combined(sketch, x, &part, random)
        }
        _ => {
            let kind = random.one(["Dropout", "Bernoulli", "RandomUniformLike", "RandomNormalLike"]);
            let y = sketch.op(kind, &[x]);
            combined(sketch, x, &y, random)
        }
    }
}

/// The number of rows, `[1]`.
fn count(sketch: &mut Sketch, shape: &str) -> String {
    let (from, to) = (sketch.list(&[0]), sketch.list(&[1]));
    sketch.op("Slice", &[shape, &from, &to])
}

/// The place of each row in its block, `[N, 1]`.
fn places(sketch: &mut Sketch, x: &str) -> String {
    let shape = sketch.op("Shape", &[x]);
    let zero = sketch.ints(&[], &[0]);
    let one = sketch.ints(&[], &[1]);
    let n = sketch.op_with("Gather", &[&shape, &zero], vec![int("axis", 0)]);
    let range = sketch.op("Range", &[&zero, &n, &one]);
    let column = sketch.list(&[-1, 1]);
    let range = sketch.op("Reshape", &[&range, &column]);
    let to = sketch.element.into();
    sketch.op_with("Cast", &[&range], vec![int("to", to)])
}

/// Two or more rows in one: a block of one row fails or has another result.
fn paired(sketch: &mut Sketch, x: &str, width: Option<usize>, random: &mut Random) -> String {
    let shape = sketch.op("Shape", &[x]);
    let n = i64::try_from(width.unwrap_or(4)).unwrap_or(4);
    let wide = sketch.list(&[-1, n * random.one([2, 2, 4, 16])]);
    let pairs = sketch.op("Reshape", &[x, &wide]);
    let changed = match random.below(3) {
        0 => sketch.op_with("Softmax", &[&pairs], vec![int("axis", -1)]),
        1 => sketch.op("Tanh", &[&pairs]),
        _ => {
            let axis = sketch.ints(&[], &[-1]);
            sketch.op("CumSum", &[&pairs, &axis])
        }
    };
    sketch.op("Reshape", &[&changed, &shape])
}

/// A pool or a convolution over neighbouring rows.
fn neighbours(sketch: &mut Sketch, x: &str, random: &mut Random) -> String {
    let axes = sketch.list(&[0, 1]);
    let image = sketch.op("Unsqueeze", &[x, &axes]);
    let (kernel, pads) = (ints("kernel_shape", &[3, 1]), ints("pads", &[1, 0, 1, 0]));
    let y = match random.below(4) {
        0 => sketch.op_with("MaxPool", &[&image], vec![kernel, pads]),
        1 => sketch.op_with("AveragePool", &[&image], vec![kernel, pads]),
        2 => {
            let weight = sketch.numbers(&[1, 1, 3, 1], &[0.25, 0.5, 0.25]);
            sketch.op_with("Conv", &[&image, &weight], vec![kernel, pads])
        }
        _ => {
            // the rows are channels here
            let axes = sketch.list(&[0, 3]);
            let channels = sketch.op("Unsqueeze", &[x, &axes]);
            let y = sketch.op_with("LRN", &[&channels], vec![int("size", 3)]);
            return sketch.op("Squeeze", &[&y, &axes]);
        }
    };
    sketch.op("Squeeze", &[&y, &axes])
}
