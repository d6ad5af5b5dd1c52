//! Whether rows influence each other: the same rows run alone, in another order and beside other rows.

mod rows_axis;
mod samples;

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion_common::error::Result;

use crate::contract::{Contract, DECODER, PROBE_ROWS, TensorSpec, Values, shapes};
use crate::metadata::{Role, RowMode};
use crate::numbers::f64_from_usize;
use crate::onnx::proto::{AttributeProto, ModelProto, NodeProto};
use crate::onnx::{Cut, Dataflow, cut, declare, inline};
use crate::runtime::{Input, Purpose, Session, Weights};
use rows_axis::{Rows, follow};
use samples::{of_codes, samples};

/// Rows whose results are compared.
const COMPARED: usize = 48;
/// Rows of the run whose shapes show the axes of the rows: a prime, so nothing else has this size by chance.
const FOLLOWED: usize = 19;
/// Largest difference that another kernel of ONNX Runtime may make where no operator combines rows, as a share of the
/// largest number of the row.
const KERNEL: f64 = 1e-5;
/// Largest difference that another number of rows may make, as a share of the largest number of the row. One row has
/// other kernels than a block, and quantised numbers may jump.
const COUNT: f64 = 1e-2;
/// Rows that run alone and in a block of copies.
const SINGLE: usize = 8;
/// Rows that stand beside them.
const OTHERS: usize = 16;
/// Rows of the largest block.
const LARGE_BLOCK: usize = 256;
/// Widest tensor of a graph that also runs as a large block.
const LARGE_BLOCK_WIDTH: usize = 4096;
/// Operators that take the range of a tensor from all of its rows. The result of a row alone is close to that beside
/// similar rows.
const DYNAMIC_QUANTISATION: [&str; 3] = ["DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"];
/// Largest difference of a row alone and beside similar rows, as a share of the deviation between rows, with which rows
/// may run alone.
const CLOSE: f64 = 0.25;

/// Roles, or [`DECODER`], whose rows influence each other, and the reason why each is not used.
///
/// # Errors
/// An error if ONNX Runtime cannot load the graph.
pub(crate) fn mixed_roles(
    model: &ModelProto,
    contract: &Contract,
    weights: &Arc<Weights>,
) -> Result<BTreeMap<String, String>> {
    let mut mixed = BTreeMap::new();
    let rows = contract.graph_rows.unwrap_or(FOLLOWED);
    // the analysis sees the operators of functions
    let expanded = inline(model);
    let analysed = expanded.as_ref().unwrap_or(model);
    let Some(graph) = &analysed.graph else { return Ok(mixed) };
    let flow = Dataflow::new(analysed, graph);
    for role in Role::ALL {
        let Some(tensor) = contract.tensor(role).filter(|tensor| flow.depends_on(&tensor.name, &is_training)) else {
            continue;
        };
        mixed.insert(role.name().to_owned(), training(tensor));
    }
    if contract.graph_rows == Some(1) {
        return Ok(mixed);
    }
    let mut add = |name: &str, tensor: &TensorSpec, is_close: bool| {
        let is_cured = is_close
            && contract.graph_rows.is_none()
            && flow.depends_on(&tensor.name, &|node| DYNAMIC_QUANTISATION.contains(&node.op_type()))
            && !flow.depends_on(&tensor.name, &is_training);
        if !is_cured || contract.row_mode != RowMode::Alone {
            mixed.entry(name.to_owned()).or_insert_with(|| reason(tensor, is_cured));
        }
    };
    let (roles, tensors): (Vec<Role>, Vec<&TensorSpec>) =
        Role::ALL.into_iter().filter_map(|role| Some((role, contract.tensor(role)?))).unzip();
    let code = roles.iter().position(|role| *role == Role::Code);
    let mut codes: Vec<Vec<f64>> = Vec::new();
    let mut unchecked: Vec<(&str, &TensorSpec)> = Vec::new();
    let inputs: Vec<&str> = contract.inputs.iter().map(|input| input.name.as_str()).collect();
    let shapes = shapes(analysed, weights, &contract.inputs, rows, contract.known_row.as_deref());
    let followed = follow(analysed, &inputs, &shapes, rows);
    let where_rows = |tensor: &TensorSpec| followed.get(&tensor.name).copied().unwrap_or(Rows::Unknown);
    let mut runs = Runs::new(model, contract, weights, None, tensors.clone())?;
    runs.are_apart = tensors.iter().map(|tensor| matches!(where_rows(tensor), Rows::Axis { .. })).collect();
    // one tensor may fail for rows that the others take
    let mut apart: Vec<Option<Runs<'_>>> = tensors.iter().map(|_| None).collect();
    let places = if tensors.len() > 1 { 0..tensors.len() } else { 0..0 };
    let known_apart = runs.are_apart.clone();
    let own = |place: usize| -> Result<Runs<'_>> {
        let own = Runs::new(model, contract, weights, None, vec![tensors[place]])?;
        Ok(Runs { are_apart: vec![known_apart[place]], ..own })
    };
    for (number, sample) in samples(analysed, contract, runs.compared, OTHERS).iter().enumerate() {
        let base = runs.check(&sample.values, sample.is_ordinary);
        if base.is_none() || (runs.failed_alone && sample.is_ordinary) {
            for place in places.clone() {
                if apart[place].is_none() {
                    apart[place] = Some(own(place)?);
                }
                let found = apart[place].as_mut().and_then(|own| own.check(&sample.values, sample.is_ordinary));
                codes.extend(found.filter(|_| base.is_none() && code == Some(place)).into_iter().flatten());
            }
        }
        let Some(base) = base else { continue };
        if number == 0 && contract.graph_rows.is_none() && runs.mixes.contains(&true) {
            runs.measure_alone(&sample.values, &base);
        }
        codes.extend(code.map(|place| base[place].clone()));
    }
    for (place, (role, tensor)) in roles.iter().zip(&tensors).enumerate() {
        let own = apart[place].as_ref();
        match runs.verdict(place).or_else(|| own?.verdict(0)) {
            Some(is_close) => add(role.name(), tensor, is_close),
            None if where_rows(tensor) == Rows::Mixed => add(role.name(), tensor, false),
            // all rows of such a block give the range; similar rows of samples can hide it
            None if contract.graph_rows.is_some()
                && where_rows(tensor) == Rows::Unknown
                && flow.depends_on(&tensor.name, &|node| DYNAMIC_QUANTISATION.contains(&node.op_type())) =>
            {
                add(role.name(), tensor, false);
            }
            None if runs.checked + own.map_or(0, |own| own.checked) == 0 && !runs.are_apart[place] => {
                unchecked.push((role.name(), *tensor));
            }
            None => {}
        }
    }
    let decoded = contract.decoder().tensor().zip(contract.tensor(Role::Reconstruction));
    if let Some((entry, reconstruction)) = decoded {
        let mut decoder = Runs::new(model, contract, weights, Some(entry), vec![reconstruction])?;
        decoder.are_apart = vec![matches!(where_rows(reconstruction), Rows::Axis { .. })];
        for (number, codes) in codes.iter().enumerate() {
            let Some(sample) = of_codes(entry, codes, OTHERS) else { continue };
            let Some(base) = decoder.check(std::slice::from_ref(&sample), false) else { continue };
            if number == 0 && contract.graph_rows.is_none() && decoder.mixes.contains(&true) {
                decoder.measure_alone(std::slice::from_ref(&sample), &base);
            }
        }
        if let Some(is_close) = decoder.verdict(0) {
            add(DECODER, reconstruction, is_close);
        }
    }
    for (name, tensor) in unchecked {
        mixed.entry(name.to_owned()).or_insert_with(|| {
            format!(
                "rows may influence each other in {tensor}: its operators do not show that they are independent, and no \
                 rows that were tried give a result; export a graph that takes any numbers"
            )
        });
    }
    Ok(mixed)
}

/// Whether a node takes its statistics from the rows of a block, or may do so.
fn is_training(node: &NodeProto) -> bool {
    let of_function = |attribute: &AttributeProto| !attribute.ref_attr_name().is_empty();
    let is_set = |attribute: &AttributeProto| attribute.i() != 0 || of_function(attribute);
    let mode = node.attribute.iter().find(|attribute| attribute.name() == "training_mode");
    node.op_type() == "BatchNormalization" && mode.is_some_and(is_set)
}

/// ONNX Runtime also writes the statistics of a block over the stored ones, so a row depends on earlier blocks.
fn training(tensor: &TensorSpec) -> String {
    format!(
        "rows influence each other in {tensor}: it depends on BatchNormalization in training mode; export a graph \
         whose operators keep rows apart, in PyTorch after model.eval()"
    )
}

fn reason(tensor: &TensorSpec, is_cured: bool) -> String {
    let remedy = match is_cured {
        true => "the option rows = 'alone' runs each row alone, which is slow",
        false => "export a graph whose operators keep rows apart, in PyTorch after model.eval()",
    };
    format!("rows influence each other in {tensor}: a row gives other values beside other rows; {remedy}")
}

/// Runs of one part of a graph over the same rows in different blocks.
struct Runs<'a> {
    session: Session,
    inputs: Vec<TensorSpec>,
    outputs: Vec<&'a TensorSpec>,
    /// Rows of a run are a multiple of this.
    multiple: usize,
    /// Whether the graph takes any number of rows.
    is_free: bool,
    /// Whether the graph refuses rows of zeros. The first row of a sample then takes their place.
    refuses_zeros: bool,
    /// The first rows of a sample are compared; the others stand beside them.
    compared: usize,
    layouts: Vec<Layout>,
    /// Samples that the graph took.
    checked: usize,
    /// Whether a row could not run alone.
    failed_alone: bool,
    /// For each output, whether the analysis found no operator that combines rows.
    are_apart: Vec<bool>,
    /// For each output, whether two results of a row differed.
    mixes: Vec<bool>,
    /// For each output, the largest difference between rows alone and beside others.
    distance: Vec<f64>,
}

/// The rows of a block, by their place in the sample; none for a row of zeros.
type Layout = Vec<Option<usize>>;

impl<'a> Runs<'a> {
    fn new(
        model: &ModelProto,
        contract: &Contract,
        weights: &Arc<Weights>,
        start: Option<&TensorSpec>,
        outputs: Vec<&'a TensorSpec>,
    ) -> Result<Self> {
        let declared = start.iter().map(|entry| declare(&entry.name, entry.element.to_onnx(), &entry.shape)).collect();
        let names = outputs.iter().map(|tensor| tensor.name.clone()).collect();
        let part = cut(model, &Cut { outputs: names, inputs: declared })?;
        let (compared, n) = (COMPARED.min(contract.graph_rows.unwrap_or(COMPARED)), outputs.len());
        Ok(Self {
            session: weights.part(part).load(Purpose::Score)?,
            inputs: start.map_or_else(|| contract.inputs.clone(), |entry| vec![entry.clone()]),
            outputs,
            multiple: contract.graph_rows.unwrap_or(PROBE_ROWS),
            is_free: contract.graph_rows.is_none(),
            refuses_zeros: start.is_none() && contract.known_row.is_some(),
            compared,
            layouts: layouts(contract.graph_rows, compared, contract.widest),
            checked: 0,
            failed_alone: false,
            are_apart: vec![false; n],
            mixes: vec![false; n],
            distance: vec![0.0; n],
        })
    }

    /// Whether the rows of an output influence each other; then also whether a row alone gives nearly the same.
    fn verdict(&self, output: usize) -> Option<bool> {
        self.mixes[output].then_some(self.distance[output] <= CLOSE)
    }

    /// Compares the results of a sample in all layouts. Returns the results of the first one; none if the graph does
    /// not take these rows.
    fn check(&mut self, values: &[Values], is_ordinary: bool) -> Option<Vec<Vec<f64>>> {
        let first: Layout = (0..self.compared).map(Some).collect();
        let base = self.run(values, &first, self.multiple).ok()?;
        self.checked += 1;
        for layout in self.layouts.clone() {
            if let Ok(found) = self.run(values, &layout, self.multiple) {
                self.compare(&base, &found, &layout);
            }
        }
        if self.is_free && is_ordinary {
            self.compare_alone(values, &base);
        }
        Some(base)
    }

    /// Compares rows in a block with a run of one row, without rows of zeros. A graph that counts its rows shows itself
    /// here. A few rows may differ: where a number jumps, rounding decides.
    fn compare_alone(&mut self, values: &[Values], base: &[Vec<f64>]) {
        let rows = singles(self.compared);
        let alone: Vec<_> = rows.iter().map(|row| self.run(values, &[Some(*row)], 1).ok()).collect();
        self.failed_alone |= alone.iter().any(Option::is_none);
        for (output, tensor) in self.outputs.iter().enumerate() {
            let width = tensor.width();
            let is_other = |(row, alone): (&usize, &Option<Vec<Vec<f64>>>)| {
                let alone = alone.as_ref().and_then(|outputs| outputs[output].get(..width));
                let beside = base[output].get(row * width..(row + 1) * width);
                alone.zip(beside).is_some_and(|(alone, beside)| !within(COUNT, alone, beside))
            };
            self.mixes[output] |= rows.iter().zip(&alone).filter(|pair| is_other(*pair)).count() > rows.len() / 4;
        }
    }

    fn compare(&mut self, base: &[Vec<f64>], found: &[Vec<f64>], layout: &[Option<usize>]) {
        for (output, tensor) in self.outputs.iter().enumerate() {
            let row = |values: &[Vec<f64>], row: usize| -> Option<Vec<f64>> {
                Some(values[output].get(row * tensor.width()..(row + 1) * tensor.width())?.to_vec())
            };
            let is_same = |(place, source): (usize, &Option<usize>)| match source {
                Some(source) if *source < self.compared => match (row(base, *source), row(found, place)) {
                    (Some(a), Some(b)) if self.are_apart[output] => within(KERNEL, &a, &b),
                    (Some(a), Some(b)) => a.iter().zip(&b).all(|(a, b)| same(*a, *b)),
                    _ => false,
                },
                _ => true,
            };
            self.mixes[output] |= !layout.iter().enumerate().all(is_same);
        }
    }

    /// Measures how far the results of rows that run alone are from those beside the other compared rows.
    fn measure_alone(&mut self, values: &[Values], base: &[Vec<f64>]) {
        let alone: Option<Vec<Vec<Vec<f64>>>> =
            (0..self.compared.min(OTHERS)).map(|row| self.run(values, &[Some(row)], 1).ok()).collect();
        for (output, tensor) in self.outputs.iter().enumerate() {
            let Some(alone) = &alone else {
                self.distance[output] = f64::INFINITY;
                continue;
            };
            let width = tensor.width();
            let alone: Vec<f64> = alone.iter().flat_map(|outputs| &outputs[output]).copied().collect();
            let beside = base[output].get(..alone.len()).unwrap_or_default();
            let rows = f64_from_usize(alone.len() / width);
            let mean = |column: usize| beside.iter().skip(column).step_by(width).sum::<f64>() / rows;
            let means: Vec<f64> = (0..width).map(mean).collect();
            let spread: f64 = beside.iter().zip(means.iter().cycle()).map(|(value, mean)| (value - mean).powi(2)).sum();
            let distance: f64 = beside.iter().zip(&alone).map(|(beside, alone)| (beside - alone).powi(2)).sum();
            let share = (distance / spread).sqrt();
            self.distance[output] = match share.is_nan() {
                true => f64::INFINITY,
                false => share.max(self.distance[output]),
            };
        }
    }

    fn run(&mut self, values: &[Values], rows: &[Option<usize>], multiple: usize) -> Result<Vec<Vec<f64>>> {
        let mut rows = rows.to_vec();
        rows.resize(rows.len().next_multiple_of(multiple), self.refuses_zeros.then_some(0));
        let blocks: Vec<Values> =
            self.inputs.iter().zip(values).map(|(input, values)| values.rows(input.width(), &rows)).collect();
        let shapes: Vec<Vec<i64>> = self.inputs.iter().map(|input| input.shape_of(rows.len())).collect();
        let inputs: Vec<(Input<'_>, &[i64])> =
            blocks.iter().zip(&shapes).map(|(block, shape)| (block.input(), shape.as_slice())).collect();
        self.session.numbers(&inputs)
    }
}

/// Whether two numbers have the same bits, or both are NaN.
fn same(a: f64, b: f64) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

/// Whether two rows differ by no more than a share of the largest number.
fn within(share: f64, a: &[f64], b: &[f64]) -> bool {
    let largest = a.iter().filter(|number| number.is_finite()).fold(0_f64, |largest, number| largest.max(number.abs()));
    a.iter().zip(b).all(|(a, b)| same(*a, *b) || (a - b).abs() <= share * largest)
}

/// Rows of a sample that run alone and in a block of copies.
fn singles(compared: usize) -> Vec<usize> {
    (0..compared).step_by(compared.div_ceil(SINGLE).max(1)).collect()
}

/// The blocks in which the compared rows run: backwards, alone, shifted, among others and among copies, and in smaller and
/// larger blocks.
fn layouts(fixed: Option<usize>, compared: usize, widest: usize) -> Vec<Layout> {
    let rows = |rows: std::ops::Range<usize>| rows.map(Some);
    let others = |n: usize| (0..n).map(move |other| Some(compared + other % OTHERS));
    let last = compared.saturating_sub(1);
    let mut layouts: Vec<Layout> =
        vec![rows(0..compared).rev().collect(), vec![Some(0)], vec![Some(last / 2)], rows(1..compared).collect()];
    // among copies, a row shows what it is without the others, also where one of them spoils the whole block
    layouts
        .extend(singles(compared).into_iter().map(|row| vec![Some(row); fixed.unwrap_or(PROBE_ROWS).min(LARGE_BLOCK)]));
    match fixed {
        Some(fixed) => {
            let few = (compared / 2).max(1);
            layouts.push(others(fixed - few).chain(rows(0..few)).collect());
            layouts.push(rows(last..compared).chain(others(fixed - 1)).collect());
        }
        None => {
            layouts.push(rows(0..16).collect());
            layouts.push(rows(10..26).collect());
            layouts.push(others(8).chain(rows(0..16)).chain(others(8)).collect());
            if widest <= LARGE_BLOCK_WIDTH {
                let row = |place: usize| {
                    Some(if place.is_multiple_of(5) { place / 5 % compared } else { compared + place % OTHERS })
                };
                layouts.push((0..LARGE_BLOCK).map(row).collect());
            }
        }
    }
    layouts
}
