//! Follows the rows through a graph: which axis of each tensor has them, and where an operator combines rows.
//!
//! Samples miss a branch that few rows take. This analysis finds the operators that combine rows in any branch. It
//! knows common operators; after another operator, nothing is known.

use std::collections::HashMap;

use crate::onnx::constants::Constants;
use crate::onnx::proto::{AttributeProto, GraphProto, ModelProto, NodeProto};

/// Where a tensor has the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rows {
    /// Nowhere: it depends on the number of rows at most.
    Same,
    /// On an axis. Each row has `per` entries of it, one after the other.
    Axis {
        /// The axis.
        axis: usize,
        /// Entries of a row.
        per: usize,
    },
    /// It has some rows of the block, taken by their place.
    Picked,
    /// Its values combine rows of the block.
    Mixed,
    /// Not known.
    Unknown,
}

/// Operators that work on each element.
const ELEMENTWISE: [&str; 70] = [
    "Abs",
    "Acos",
    "Acosh",
    "Add",
    "And",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "BitShift",
    "Cast",
    "CastLike",
    "Ceil",
    "Celu",
    "Clip",
    "Cos",
    "Cosh",
    "DequantizeLinear",
    "Div",
    "Dropout",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "FastGelu",
    "Floor",
    "Gelu",
    "Greater",
    "GreaterOrEqual",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Less",
    "LessOrEqual",
    "Log",
    "Max",
    "Mean",
    "Min",
    "Mish",
    "Mod",
    "Mul",
    "Neg",
    "Not",
    "Or",
    "PRelu",
    "Pow",
    "QuantizeLinear",
    "QuickGelu",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Sub",
    "Sum",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "Where",
    "Xor",
];

/// Operators of images: the first axis has the images, and the second the channels.
const IMAGES: [&str; 13] = [
    "Conv",
    "ConvTranspose",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "LpPool",
    "GlobalLpPool",
    "InstanceNormalization",
    "GroupNormalization",
    "DepthToSpace",
    "SpaceToDepth",
    "LRN",
];

/// Operators of classical models: one row of the input gives one row of each output.
const TABULAR: [&str; 15] = [
    "Scaler",
    "Normalizer",
    "Imputer",
    "OneHotEncoder",
    "LabelEncoder",
    "Binarizer",
    "CategoryMapper",
    "LinearRegressor",
    "LinearClassifier",
    "SVMRegressor",
    "SVMClassifier",
    "TreeEnsemble",
    "TreeEnsembleRegressor",
    "TreeEnsembleClassifier",
    "FeatureVectorizer",
];

/// The rows in each tensor of a graph.
///
/// # Shapes
/// - `shapes`: of each tensor, in a run over `rows` rows
pub(super) fn follow(
    model: &ModelProto,
    inputs: &[&str],
    shapes: &HashMap<String, Vec<usize>>,
    rows: usize,
) -> HashMap<String, Rows> {
    let Some(graph) = &model.graph else { return HashMap::new() };
    let versions = model.opset_import.iter().filter(|import| matches!(import.domain(), "" | "ai.onnx"));
    let version = versions.map(|import| import.version()).max().unwrap_or(1);
    let functions = model.functions.iter().map(|function| function.name()).collect();
    let known = inputs.iter().map(|name| ((*name).to_owned(), Rows::Axis { axis: 0, per: 1 })).collect();
    let mut walk = Walk { shapes, rows, version, functions, known };
    walk.graph(graph, &Constants::default());
    walk.known
}

struct Walk<'a> {
    shapes: &'a HashMap<String, Vec<usize>>,
    rows: usize,
    version: i64,
    functions: Vec<&'a str>,
    known: HashMap<String, Rows>,
}

impl Walk<'_> {
    fn graph(&mut self, graph: &GraphProto, outer: &Constants<'_>) {
        let constants = outer.clone().and(graph);
        for node in &graph.node {
            let found = self.node(node, &constants);
            for (place, name) in node.output.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
                let rows = found.get(place).or(found.last()).copied().unwrap_or(Rows::Unknown);
                self.known.insert(name.clone(), rows);
            }
        }
    }

    fn rows_of(&self, name: &str) -> Rows {
        self.known.get(name).copied().unwrap_or(Rows::Same)
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.shapes.get(name).map(Vec::as_slice)
    }

    /// The rows in each output of a node; the last one also stands for outputs after it.
    fn node(&mut self, node: &NodeProto, constants: &Constants<'_>) -> Vec<Rows> {
        let kind = node.op_type();
        let inputs: Vec<Rows> = node.input.iter().map(|name| self.rows_of(name)).collect();
        if matches!(kind, "Shape" | "Size" | "ConstantOfShape") {
            return vec![Rows::Same];
        }
        if kind == "If" {
            return self.branches(node, inputs.first().copied().unwrap_or(Rows::Unknown), constants);
        }
        if inputs.contains(&Rows::Mixed) {
            return vec![Rows::Mixed];
        }
        let has_graph = node.attribute.iter().any(|attribute| attribute.g.is_some());
        if has_graph || self.functions.contains(&kind) {
            return vec![Rows::Unknown];
        }
        if inputs.iter().all(|rows| *rows == Rows::Same) {
            return vec![Rows::Same];
        }
        if inputs.contains(&Rows::Unknown) {
            return vec![Rows::Unknown];
        }
        if ELEMENTWISE.contains(&kind) {
            return vec![self.elementwise(node, &inputs)];
        }
        if inputs.contains(&Rows::Picked) {
            let is_only = inputs.iter().all(|rows| matches!(rows, Rows::Picked | Rows::Same));
            return vec![if is_only && kind != "Concat" { Rows::Picked } else { Rows::Unknown }];
        }
        self.operator(node, &inputs, constants).unwrap_or_else(|| vec![Rows::Unknown])
    }

    /// Both branches may run. A condition that combines rows decides for all rows of a block.
    fn branches(&mut self, node: &NodeProto, condition: Rows, constants: &Constants<'_>) -> Vec<Rows> {
        let condition = if condition == Rows::Picked { Rows::Mixed } else { condition };
        let mut outputs = vec![condition; node.output.len()];
        for graph in node.attribute.iter().filter_map(|attribute| attribute.g.as_ref()) {
            self.graph(graph, constants);
            for (output, value) in outputs.iter_mut().zip(&graph.output) {
                *output = match (*output, self.rows_of(value.name())) {
                    (Rows::Mixed, _) | (_, Rows::Mixed) => Rows::Mixed,
                    (Rows::Same, rows) => rows,
                    (rows, other) if rows == other => rows,
                    _ => Rows::Unknown,
                };
            }
        }
        outputs
    }

    fn elementwise(&self, node: &NodeProto, inputs: &[Rows]) -> Rows {
        // axes count from the end: broadcasting aligns them there
        let mut found: Option<(usize, usize)> = None;
        let mut is_picked = false;
        for (rows, name) in inputs.iter().zip(&node.input) {
            match *rows {
                Rows::Axis { axis, per } => {
                    let Some(rank) = self.shape(name).map(<[usize]>::len) else { return Rows::Unknown };
                    let Some(from_end) = rank.checked_sub(axis) else { return Rows::Unknown };
                    match found {
                        Some(other) if other != (from_end, per) => return Rows::Mixed,
                        _ => found = Some((from_end, per)),
                    }
                }
                Rows::Picked => is_picked = true,
                _ => {}
            }
        }
        let rank = node.output.first().and_then(|name| self.shape(name)).map(<[usize]>::len);
        match (found, is_picked) {
            (Some(_), true) => Rows::Mixed,
            (None, _) => Rows::Picked,
            (Some((from_end, per)), false) => {
                // inside a branch, no shape was seen: the largest input has it
                let largest = node.input.iter().filter_map(|name| self.shape(name)).map(<[usize]>::len).max();
                match rank.or(largest).and_then(|rank| rank.checked_sub(from_end)) {
                    Some(axis) => Rows::Axis { axis, per },
                    None => Rows::Unknown,
                }
            }
        }
    }

    /// None if nothing is known.
    fn operator(&self, node: &NodeProto, inputs: &[Rows], constants: &Constants<'_>) -> Option<Vec<Rows>> {
        let name = |place: usize| node.input.get(place).map(String::as_str).filter(|name| !name.is_empty());
        let number = |wanted: &str| attribute(node, wanted).map(|attribute| attribute.i());
        let kind = node.op_type();
        match kind {
            "MatMul" | "MatMulInteger" => return self.matrices(node, inputs, (0, 1)).map(|rows| vec![rows]),
            "QLinearMatMul" => return self.matrices(node, inputs, (0, 3)).map(|rows| vec![rows]),
            "Gemm" => return gemm(node, inputs).map(|rows| vec![rows]),
            _ => {}
        }
        let Rows::Axis { axis, per } = *inputs.first()? else {
            // a table of weights, read at the indices of the rows
            let Rows::Axis { axis, per } = *inputs.get(1)? else { return None };
            let of = usize::try_from(number("axis").unwrap_or(0)).ok()?;
            return (kind == "Gather").then(|| vec![Rows::Axis { axis: of + axis, per }]);
        };
        if inputs[1..].iter().any(|rows| *rows != Rows::Same) && !matches!(kind, "Concat" | "FeatureVectorizer") {
            return None;
        }
        let input = self.shape(name(0)?)?;
        let rank = input.len();
        let stays = Rows::Axis { axis, per };
        let place = |axis: i64| usize::try_from(if axis < 0 { axis + i64::try_from(rank).ok()? } else { axis }).ok();
        // whether an operator that combines the entries of some axes combines rows
        let combines = |axes: &[usize]| if axes.contains(&axis) { Rows::Mixed } else { stays };
        let from = |first: usize| if axis >= first { Rows::Mixed } else { stays };
        let rows = match kind {
            "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => {
                self.reshaped(axis, per, input, self.shape(node.output.first()?)?)?
            }
            "Transpose" => {
                let given = attribute(node, "perm").map(|attribute| attribute.ints.clone());
                let order: Vec<usize> = match given {
                    Some(order) => order.into_iter().map(place).collect::<Option<_>>()?,
                    None => (0..rank).rev().collect(),
                };
                Rows::Axis { axis: order.iter().position(|from| *from == axis)?, per }
            }
            "Softmax" | "LogSoftmax" | "Hardmax" if self.version < 13 => from(place(number("axis").unwrap_or(1))?),
            "Softmax" | "LogSoftmax" | "Hardmax" | "LpNormalization" => {
                combines(&[place(number("axis").unwrap_or(-1))?])
            }
            "LayerNormalization" | "RMSNormalization" | "SimplifiedLayerNormalization" => {
                from(place(number("axis").unwrap_or(-1))?)
            }
            "CumSum" => combines(&[place(whole(constants.numbers(name(1)?)?.first()?)?)?]),
            "TopK" => combines(&[place(number("axis").unwrap_or(-1))?]),
            "MeanVarianceNormalization" => {
                let axes = attribute(node, "axes").map_or_else(|| vec![0, 2, 3], |axes| axes.ints.clone());
                combines(&axes.into_iter().map(place).collect::<Option<Vec<_>>>()?)
            }
            "BatchNormalization" if number("training_mode").unwrap_or(0) != 0 => Rows::Mixed,
            "BatchNormalization" if axis == 0 => stays,
            "DynamicQuantizeLinear" => Rows::Mixed,
            "ReverseSequence" => match number("time_axis").unwrap_or(0) == i64::try_from(axis).ok()? {
                true => Rows::Mixed,
                false => stays,
            },
            kind if kind.starts_with("Reduce") || matches!(kind, "ArgMax" | "ArgMin") => {
                reduced(node, constants, rank, axis, per)?
            }
            kind if IMAGES.contains(&kind) && axis == 0 => stays,
            kind if kind.contains("Pool") && axis == 1 => stays,
            kind if (kind.contains("Pool") || kind.starts_with("Conv")) && axis > 1 => Rows::Mixed,
            kind if TABULAR.contains(&kind) && axis == 0 => stays,
            "Concat" => {
                let is_beside = inputs.iter().all(|rows| *rows == stays || *rows == Rows::Same);
                let has_rows = place(number("axis")?)? == axis;
                if !is_beside || has_rows {
                    return None;
                }
                stays
            }
            "Split" if place(number("axis").unwrap_or(0))? != axis => stays,
            "Split" if per == 1 => Rows::Picked,
            "Gather" => {
                let of = place(number("axis").unwrap_or(0))?;
                let indices = self.shape(name(1)?).map_or(0, <[usize]>::len);
                match (of == axis, of < axis) {
                    (true, _) if per == 1 => Rows::Picked,
                    (true, _) => return None,
                    (_, true) => Rows::Axis { axis: (axis + indices).checked_sub(1)?, per },
                    _ => stays,
                }
            }
            "Slice" => {
                let output = self.shape(node.output.first()?)?;
                let steps = name(4).and_then(|name| constants.numbers(name)).unwrap_or_default();
                match output.get(axis) == input.get(axis) {
                    true if steps.iter().any(|step| *step < 0.0) => return None,
                    true => stays,
                    false if per == 1 => Rows::Picked,
                    false => return None,
                }
            }
            "Pad" | "Expand" | "Tile" | "Resize" => {
                let output = self.shape(node.output.first()?)?;
                let axis = (axis + output.len()).checked_sub(rank)?;
                if output.get(axis) != Some(&(self.rows * per)) {
                    return None;
                }
                Rows::Axis { axis, per }
            }
            "LSTM" | "GRU" | "RNN" if number("layout").unwrap_or(0) == 0 => match axis {
                0 => Rows::Mixed,
                1 => return Some(vec![Rows::Axis { axis: 2, per }, Rows::Axis { axis: 1, per }]),
                _ => return None,
            },
            "OneHot" => {
                let at = number("axis").unwrap_or(-1);
                let at = if at < 0 { rank } else { usize::try_from(at).ok()? };
                Rows::Axis { axis: if at <= axis { axis + 1 } else { axis }, per }
            }
            _ => return None,
        };
        Some(vec![rows])
    }

    /// The axis of the rows after a change of the shape. The number of entries before it stays, and each row has whole
    /// entries.
    fn reshaped(&self, axis: usize, per: usize, from: &[usize], to: &[usize]) -> Option<Rows> {
        let before: usize = from.get(..axis)?.iter().product();
        let of_row = per * from.get(axis + 1..)?.iter().product::<usize>();
        (0..to.len()).find_map(|axis| {
            let after: usize = to[axis + 1..].iter().product();
            let is_there = to[..axis].iter().product::<usize>() == before && after > 0 && of_row.is_multiple_of(after);
            let per = of_row.checked_div(after)?;
            (is_there && to[axis] == self.rows * per).then_some(Rows::Axis { axis, per })
        })
    }

    /// The rows of a product of matrices, whose factors are two inputs of the node.
    fn matrices(&self, node: &NodeProto, inputs: &[Rows], (left, right): (usize, usize)) -> Option<Rows> {
        let rank = |place: usize| Some(self.shape(node.input.get(place)?)?.len());
        let output = self.shape(node.output.first()?)?.len();
        let (left_rank, right_rank) = (rank(left)?, rank(right)?);
        let others = inputs.iter().enumerate().filter(|(place, _)| ![left, right].contains(place));
        if others.into_iter().any(|(_, rows)| *rows != Rows::Same) {
            return None;
        }
        Some(match (*inputs.get(left)?, *inputs.get(right)?) {
            (Rows::Axis { axis, .. }, Rows::Same) if axis + 1 == left_rank => Rows::Mixed,
            (Rows::Axis { axis, per }, Rows::Same) => {
                // a vector on the right takes an axis away
                let lost = usize::from(right_rank == 1);
                Rows::Axis { axis: (output + lost + axis).checked_sub(left_rank)?, per }
            }
            (Rows::Same, Rows::Axis { .. }) if right_rank == 1 => Rows::Mixed,
            (Rows::Same, Rows::Axis { axis, .. }) if axis + 2 == right_rank => Rows::Mixed,
            (Rows::Same, Rows::Axis { axis, per }) => {
                let lost = usize::from(left_rank == 1);
                Rows::Axis { axis: (output + lost + axis).checked_sub(right_rank)?, per }
            }
            (Rows::Axis { axis, per }, Rows::Axis { axis: other, per: per_other }) => {
                let (from_end, other) = (left_rank.checked_sub(axis)?, right_rank.checked_sub(other)?);
                match from_end == other && from_end > 2 && per == per_other {
                    true => Rows::Axis { axis: output.checked_sub(from_end)?, per },
                    false => Rows::Mixed,
                }
            }
            _ => return None,
        })
    }
}

fn gemm(node: &NodeProto, inputs: &[Rows]) -> Option<Rows> {
    let is_turned = |name: &str| attribute(node, name).is_some_and(|attribute| attribute.i() != 0);
    let turned = |rows: Rows, name: &str| match rows {
        Rows::Axis { axis, per } if is_turned(name) => Rows::Axis { axis: 1_usize.saturating_sub(axis), per },
        rows => rows,
    };
    let product = match (turned(*inputs.first()?, "transA"), turned(*inputs.get(1)?, "transB")) {
        (Rows::Axis { axis: 0, per }, Rows::Same) => Rows::Axis { axis: 0, per },
        (Rows::Same, Rows::Axis { axis: 1, per }) => Rows::Axis { axis: 1, per },
        (Rows::Same, Rows::Same) => Rows::Same,
        _ => return Some(Rows::Mixed),
    };
    match inputs.get(2) {
        None | Some(Rows::Same) => Some(product),
        Some(added) if *added == product => Some(product),
        Some(_) => None,
    }
}

/// The rows after an operator that combines the entries of some axes, and may take these axes away.
fn reduced(node: &NodeProto, constants: &Constants<'_>, rank: usize, axis: usize, per: usize) -> Option<Rows> {
    let is_arg = node.op_type().starts_with("Arg");
    let number = |wanted: &str| attribute(node, wanted).map(|attribute| attribute.i());
    let given: Vec<i64> = match (is_arg, attribute(node, "axes"), node.input.get(1).filter(|name| !name.is_empty())) {
        (true, _, _) => vec![number("axis").unwrap_or(0)],
        (_, Some(axes), _) => axes.ints.clone(),
        (_, None, Some(name)) => constants.numbers(name)?.iter().map(whole).collect::<Option<_>>()?,
        (_, None, None) => Vec::new(),
    };
    if given.is_empty() {
        let is_kept = number("noop_with_empty_axes").unwrap_or(0) != 0;
        return Some(if is_kept { Rows::Axis { axis, per } } else { Rows::Mixed });
    }
    let place = |axis: i64| usize::try_from(if axis < 0 { axis + i64::try_from(rank).ok()? } else { axis }).ok();
    let axes: Vec<usize> = given.into_iter().map(place).collect::<Option<_>>()?;
    if axes.contains(&axis) {
        return Some(Rows::Mixed);
    }
    let lost = match number("keepdims").unwrap_or(1) {
        0 => axes.iter().filter(|lost| **lost < axis).count(),
        _ => 0,
    };
    Some(Rows::Axis { axis: axis - lost, per })
}

fn attribute<'a>(node: &'a NodeProto, name: &str) -> Option<&'a AttributeProto> {
    node.attribute.iter().find(|attribute| attribute.name() == name)
}

fn whole(number: &f64) -> Option<i64> {
    let magnitude = i64::try_from(crate::numbers::whole(number.abs())?).ok()?;
    Some(if *number < 0.0 { -magnitude } else { magnitude })
}
