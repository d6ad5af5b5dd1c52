//! Random rows at the scale that a graph shows. The same graph gets the same rows.

use std::collections::HashMap;
use std::ops::Range;

use crate::contract::{Contract, TensorSpec, Values, levels, values};
use crate::numbers::f64_from_usize;
use crate::onnx::constants::Constants;
use crate::onnx::proto::{GraphProto, ModelProto, NodeProto};
use crate::random::Random;

/// How much larger the rows are that stand beside the compared rows.
const OTHER_SCALE: f64 = 100.0;

/// How the rows of a sample are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Draw {
    /// Normal numbers, at the scale of the first operators of the graph.
    Normalised,
    /// Normal numbers of deviation 1.
    Plain,
    /// Normal numbers; the deviation of a row is 0.001 to 1000.
    Wide,
    /// Numbers from 0 to 1.
    Unit,
    /// 0, 1 and 2, for numbers that are indices.
    Whole,
    /// 0 and 1.
    Binary,
    /// Normal numbers; the deviation of a row is 10^3 to 10^14.
    Huge,
    /// Normal numbers of this deviation, which a condition of the graph compares with.
    Around(f64),
}

/// Rows with the values of every input.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) values: Vec<Values>,
    /// Whether the numbers have an ordinary size. Otherwise, rounding may be as large as a result.
    pub(super) is_ordinary: bool,
}

/// Operators that compare with a number.
const COMPARISONS: [&str; 6] = ["Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "ThresholdedRelu"];
/// Most numbers of comparisons that samples are drawn around.
const MAX_AROUND: usize = 4;

/// Samples of rows: `compared` rows, and larger ones after them.
pub(super) fn samples(model: &ModelProto, contract: &Contract, compared: usize, others: usize) -> Vec<Sample> {
    let Some(graph) = &model.graph else { return Vec::new() };
    let scales = scales(graph, &contract.inputs);
    let draws = [Draw::Normalised, Draw::Plain, Draw::Wide, Draw::Unit, Draw::Whole];
    let is_plain = scales.iter().all(|scale| *scale == Scale::default());
    let draws = draws.into_iter().filter(|draw| *draw != Draw::Plain || !is_plain);
    let draws = draws.chain(compared_with(graph).into_iter().map(Draw::Around)).chain([Draw::Binary]);
    // the place in a fixed batch changes the rounding, which may change everything here
    let draws = draws.chain(contract.graph_rows.is_none().then_some(Draw::Huge));
    let mut random = Random::new(0);
    let mut sample = |draw: Draw| {
        let mut first = 0;
        let mut drawn = Vec::with_capacity(contract.inputs.len());
        for input in &contract.inputs {
            let scales = &scales[first..first + input.width()];
            first += input.width();
            let columns = match contract.known_row {
                Some(_) => levels(graph, input),
                None => Vec::new(),
            };
            if !columns.is_empty() && columns.iter().all(|levels| !levels.is_empty()) {
                // the graph refuses other values
                let of_row = |_| columns.iter().map(|levels| levels[random.below(levels.len())].clone()).collect();
                let known: Vec<_> = (0..compared + others).flat_map::<Vec<_>, _>(of_row).collect();
                drawn.push(values(input.element, &known));
                continue;
            }
            drawn.push(
                match Values::of_numbers(input.element, &numbers(draw, scales, compared, others, &mut random)) {
                    Some(values) => values,
                    None => texts(graph, input, compared + others, &mut random),
                },
            );
        }
        let is_ordinary = !matches!(draw, Draw::Wide | Draw::Huge | Draw::Around(_));
        Sample { values: drawn, is_ordinary }
    };
    draws.map(&mut sample).collect()
}

/// A sample of codes: those of the compared rows, and larger ones after them.
pub(super) fn of_codes(entry: &TensorSpec, codes: &[f64], others: usize) -> Option<Values> {
    let mut random = Random::new(1);
    let larger = (0..others * entry.width()).map(|_| random.normal() * OTHER_SCALE);
    Values::of_numbers(entry.element, &codes.iter().copied().chain(larger).collect::<Vec<_>>())
}

fn numbers(draw: Draw, scales: &[Scale], compared: usize, others: usize, random: &mut Random) -> Vec<f64> {
    let mut numbers = Vec::with_capacity((compared + others) * scales.len());
    for row in 0..compared + others {
        let size = match (draw, row < compared) {
            (Draw::Wide, _) => 10_f64.powf(random.unit() * 6.0 - 3.0),
            (Draw::Huge, _) => 10_f64.powf(random.unit() * 11.0 + 3.0),
            (_, true) => 1.0,
            (_, false) => OTHER_SCALE,
        };
        numbers.extend(scales.iter().map(|scale| match draw {
            Draw::Normalised => scale.center + scale.deviation * size * random.normal(),
            Draw::Plain | Draw::Wide | Draw::Huge => size * random.normal(),
            Draw::Around(deviation) => deviation * random.normal(),
            Draw::Unit => random.unit(),
            Draw::Whole => f64_from_usize(random.below(3)),
            Draw::Binary => f64_from_usize(random.below(2)),
        }));
    }
    numbers
}

/// Numbers that conditions compare with, if they are larger than other samples.
fn compared_with(graph: &GraphProto) -> Vec<f64> {
    let constants = Constants::of(graph);
    let comparisons = graph.node.iter().filter(|node| COMPARISONS.contains(&node.op_type()));
    let numbers = comparisons.flat_map(|node| &node.input).filter_map(|name| constants.numbers(name)).flatten();
    let mut numbers: Vec<f64> = numbers.map(f64::abs).filter(|number| number.is_finite() && *number > 2.0).collect();
    numbers.sort_by(f64::total_cmp);
    numbers.dedup();
    numbers.truncate(MAX_AROUND);
    numbers
}

/// Texts that the graph knows, and some others.
fn texts(graph: &GraphProto, input: &TensorSpec, rows: usize, random: &mut Random) -> Values {
    let mut known: Vec<String> = vec!["a".to_owned(), "b".to_owned(), "0".to_owned()];
    let levels = |reads: &dyn Fn(&NodeProto) -> bool| -> Vec<String> {
        let attributes = graph.node.iter().filter(|node| reads(node)).flat_map(|node| &node.attribute);
        let texts =
            attributes.flat_map(|attribute| &attribute.strings).filter_map(|text| std::str::from_utf8(text).ok());
        texts.filter(|text| !text.contains('\0')).map(str::to_owned).collect()
    };
    // an encoder may read the texts only after other operators
    let found = [levels(&|node| node.input.contains(&input.name)), levels(&|_| true)];
    if let Some(levels) = found.into_iter().find(|levels| !levels.is_empty()) {
        known = levels;
    }
    Values::String((0..rows * input.width()).map(|_| known[random.below(known.len())].clone()).collect())
}

/// The scale of a feature: the first operators of the graph compute (feature - center) / deviation.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Scale {
    center: f64,
    deviation: f64,
}

impl Default for Scale {
    fn default() -> Self {
        Self { center: 0.0, deviation: 1.0 }
    }
}

impl Scale {
    /// After `- number`.
    fn minus(self, number: f64) -> Self {
        Self { center: self.center + number * self.deviation, ..self }
    }

    /// After `/ number`.
    fn over(self, number: f64) -> Self {
        Self { deviation: self.deviation * number, ..self }
    }

    fn or_default(self) -> Self {
        let is_usable = self.center.is_finite() && self.deviation.is_finite() && self.deviation != 0.0;
        if is_usable { self } else { Self::default() }
    }
}

/// The scale of each feature.
fn scales(graph: &GraphProto, inputs: &[TensorSpec]) -> Vec<Scale> {
    let width: usize = inputs.iter().map(TensorSpec::width).sum();
    let mut scales = vec![Scale::default(); width];
    let constants = Constants::of(graph);
    // tensors that are features after a normalisation: which ones, and the scale so far
    let mut scaled: HashMap<&str, (Range<usize>, Vec<Scale>)> = HashMap::new();
    let mut first = 0;
    for input in inputs {
        let range = first..first + input.width();
        scaled.insert(&input.name, (range.clone(), vec![Scale::default(); input.width()]));
        first = range.end;
    }
    for node in &graph.node {
        let Some(output) = node.output.first() else { continue };
        let Some((range, found)) = normalised(node, &constants, &scaled) else { continue };
        scales[range.clone()].copy_from_slice(&found);
        scaled.insert(output, (range, found));
    }
    scales.into_iter().map(Scale::or_default).collect()
}

/// The features of the first output of a node, if it only normalises features.
fn normalised(
    node: &NodeProto,
    constants: &Constants<'_>,
    scaled: &HashMap<&str, (Range<usize>, Vec<Scale>)>,
) -> Option<(Range<usize>, Vec<Scale>)> {
    let name = |place: usize| node.input.get(place).map(String::as_str);
    let (range, before) = scaled.get(name(0)?)?.clone();
    let each = |numbers: Vec<f64>, change: fn(Scale, f64) -> Scale, before: Vec<Scale>| match numbers.len() {
        0 => None,
        n if n == 1 || n == before.len() => {
            Some(before.into_iter().zip(numbers.into_iter().cycle()).map(|(scale, n)| change(scale, n)).collect())
        }
        _ => None,
    };
    let constant = |place: usize| constants.numbers(name(place)?);
    let attribute = |wanted: &str| -> Option<Vec<f64>> {
        let found = node.attribute.iter().find(|attribute| attribute.name() == wanted)?;
        Some(found.floats.iter().copied().map(f64::from).collect())
    };
    let after = match node.op_type() {
        "Identity" | "Cast" | "Flatten" | "Reshape" | "Squeeze" | "Unsqueeze" => before,
        "Concat" => {
            let parts: Option<Vec<_>> = node.input.iter().map(|name| scaled.get(name.as_str())).collect();
            let parts = parts?;
            if parts.windows(2).any(|pair| pair[0].0.end != pair[1].0.start) {
                return None;
            }
            let all = range.start..parts.last()?.0.end;
            return Some((all, parts.into_iter().flat_map(|(_, scales)| scales.clone()).collect()));
        }
        "Sub" => each(constant(1)?, Scale::minus, before)?,
        "Add" => each(constant(1)?, |scale, n| scale.minus(-n), before)?,
        "Div" => each(constant(1)?, Scale::over, before)?,
        "Mul" => each(constant(1)?, |scale, n| scale.over(1.0 / n), before)?,
        "Scaler" => {
            let moved = each(attribute("offset")?, Scale::minus, before)?;
            each(attribute("scale")?, |scale, n| scale.over(1.0 / n), moved)?
        }
        "BatchNormalization" => {
            let moved = each(constant(3)?, Scale::minus, before)?;
            each(constant(4)?, |scale, variance| scale.over(variance.sqrt()), moved)?
        }
        _ => return None,
    };
    Some((range, after))
}
