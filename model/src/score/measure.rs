//! The reconstruction error of rows, and the part of each feature in it.

use std::ops::Range;

use arrow::buffer::NullBuffer;
use datafusion_common::error::Result;
use datafusion_common::exec_err;
use multiversion::multiversion;

use crate::contract::{Contract, TensorSpec};
use crate::matrix::Rows;
use crate::metadata::{ErrorMetric, NullPolicy};
use crate::numbers::{ToF64, f64_from_usize};
use crate::output::Scores;
use crate::runtime::{Element, Input};

/// Partial sums of a row. Another number of sums would round differently, so this one defines the result.
const LANES: usize = 8;

/// Some rows of numbers, row-major.
#[derive(Debug, Clone, Copy)]
pub(super) enum Floats<'a> {
    F32(&'a [f32]),
    F64(&'a [f64]),
}

/// What the error compares the reconstruction with.
#[derive(Debug)]
enum Original {
    /// An output of the graph, by index.
    Output(usize),
    /// The only input of the graph, after the cast to its type.
    Input,
    /// Features, after the casts to the types of their inputs: the places of each input's columns, and a block of rows as
    /// `f64`.
    Inputs(Vec<Places>, Vec<f64>),
}

/// Where the columns of an input are compared.
#[derive(Debug)]
struct Places {
    /// Columns of the input.
    width: usize,
    /// A column of the input, and the column of the reconstruction that is compared with it.
    pairs: Vec<(usize, usize)>,
}

/// The places of all inputs. `reconstructed` is the feature of each column of the reconstruction.
fn places(inputs: &[TensorSpec], reconstructed: &[usize]) -> Vec<Places> {
    let mut first = 0;
    let of_input = |input: &TensorSpec| {
        let range = first..first + input.width();
        first = range.end;
        let pairs = reconstructed.iter().enumerate().filter(|(_, feature)| range.contains(feature));
        Places { width: input.width(), pairs: pairs.map(|(column, feature)| (feature - range.start, column)).collect() }
    };
    inputs.iter().map(of_input).collect()
}

/// Measures errors block by block.
#[derive(Debug)]
pub(super) struct Measure<'a> {
    metric: ErrorMetric,
    original: Original,
    reconstruction: usize,
    width: usize,
    n_features: usize,
    /// The feature of each compared column.
    features: Option<&'a [usize]>,
    /// For each feature, the rows with a value; empty if no value is missing, or nothing depends on it.
    given: Vec<Option<NullBuffer>>,
    /// Whether NaN in the original is a missing value.
    skips_nan: bool,
    wants_error: bool,
    wants_parts: bool,
    error: Vec<f64>,
    parts: Vec<f64>,
    /// Whether each row has a value to compare. Ends at the last row that has none.
    has_error: Vec<bool>,
    /// Rows that were skipped or measured.
    measured: usize,
}

impl<'a> Measure<'a> {
    /// `original` and `reconstruction` are indices of fetched outputs. Without `original`, the error compares the
    /// inputs of the graph.
    ///
    /// # Errors
    /// A planning error if parts are requested and the feature of a compared column is unknown.
    pub(super) fn new(
        contract: &'a Contract,
        rows: &Rows,
        original: Option<usize>,
        reconstruction: usize,
        wants_error: bool,
        wants_parts: bool,
    ) -> Result<Self> {
        let n_features = contract.features.len();
        let policy = contract.null_policy;
        let original = match (original, contract.inputs.as_slice()) {
            (Some(index), _) => Original::Output(index),
            (None, [input])
                if matches!(input.element, Element::Float32 | Element::Float64)
                    && contract.reconstructed.iter().copied().eq(0..n_features) =>
            {
                Original::Input
            }
            (None, inputs) => Original::Inputs(places(inputs, &contract.reconstructed), Vec::new()),
        };
        let features = match wants_parts {
            true => Some(contract.require_error_features()?),
            false => contract.error_features.as_deref(),
        };
        let given = match (policy, features) {
            (NullPolicy::Impute, Some(_)) => {
                (0..n_features).map(|index| rows.feature_nulls(index, n_features)).collect()
            }
            _ => Vec::new(),
        };
        Ok(Self {
            metric: contract.error_metric,
            original,
            reconstruction,
            width: contract.error_width(),
            n_features,
            features,
            given: if given.iter().all(Option::is_none) { Vec::new() } else { given },
            skips_nan: policy == NullPolicy::Impute,
            wants_error,
            wants_parts,
            error: Vec::with_capacity(if wants_error { rows.len() } else { 0 }),
            parts: Vec::with_capacity(if wants_parts { rows.len() * n_features } else { 0 }),
            has_error: Vec::new(),
            measured: 0,
        })
    }

    /// Skips rows without a result.
    pub(super) fn skip(&mut self, rows: usize) {
        if self.wants_error {
            self.error.resize(self.error.len() + rows, 0.0);
        }
        if self.wants_parts {
            self.parts.resize(self.parts.len() + rows * self.n_features, 0.0);
        }
        self.measured += rows;
    }

    /// Measures the rows of the block that ran last.
    ///
    /// # Errors
    /// An execution error if an input has strings.
    pub(super) fn block<'v>(
        &mut self,
        rows: Range<usize>,
        inputs: &[Input<'v>],
        output: impl Fn(usize) -> Floats<'v>,
    ) -> Result<()> {
        let n = rows.len() * self.width;
        let reconstruction = output(self.reconstruction);
        // `self.rows` below borrows all of `self`
        let mut original = std::mem::replace(&mut self.original, Original::Input);
        let values = match &mut original {
            Original::Output(index) => output(*index),
            Original::Input => values_of(inputs.first(), n)?,
            Original::Inputs(places, block) => {
                side_by_side(inputs, places, rows.len(), self.width, block)?;
                Floats::F64(block)
            }
        };
        match (values, reconstruction) {
            (Floats::F32(a), Floats::F32(b)) => self.rows(rows, a, b),
            (Floats::F32(a), Floats::F64(b)) => self.rows(rows, a, b),
            (Floats::F64(a), Floats::F32(b)) => self.rows(rows, a, b),
            (Floats::F64(a), Floats::F64(b)) => self.rows(rows, a, b),
        }
        self.original = original;
        Ok(())
    }

    fn rows<A: Copy + Into<f64>, B: Copy + Into<f64>>(&mut self, rows: Range<usize>, a: &[A], b: &[B]) {
        if self.given.is_empty() && !self.wants_parts {
            let first = self.error.len();
            errors(self.metric, self.width, a, b, &mut self.error);
            if self.skips_nan {
                self.without_nan(first, a, b);
            }
            self.measured += rows.len();
            return;
        }
        let pairs = a.chunks_exact(self.width).zip(b.chunks_exact(self.width));
        let mut terms = vec![0.0; self.width];
        for (row, (a, b)) in rows.zip(pairs) {
            let mut n = 0_usize;
            for (column, term) in terms.iter_mut().enumerate() {
                let value: f64 = a[column].into();
                let is_given = !(self.skips_nan && value.is_nan()) && self.is_given(row, column);
                n += usize::from(is_given);
                *term = if is_given { difference(self.metric, a[column], b[column]) } else { 0.0 };
            }
            let n_compared = f64_from_usize(n.max(1));
            if self.wants_error {
                self.error.push(finished(self.metric, sum_terms(&terms) / n_compared));
            }
            if n == 0 {
                self.record_empty(self.measured);
            }
            self.measured += 1;
            if let (true, Some(features)) = (self.wants_parts, self.features) {
                let first = self.parts.len();
                self.parts.resize(first + self.n_features, 0.0);
                for (feature, term) in features.iter().zip(&terms) {
                    self.parts[first + feature] += term / n_compared;
                }
            }
        }
    }

    /// Measures rows with the error NaN again, without their missing values. A model that fills in missing values has
    /// NaN there in its original.
    fn without_nan<A: Copy + Into<f64>, B: Copy + Into<f64>>(&mut self, first: usize, a: &[A], b: &[B]) {
        let pairs = a.chunks_exact(self.width).zip(b.chunks_exact(self.width));
        for (row, (a, b)) in pairs.enumerate() {
            if !self.error[first + row].is_nan() {
                continue;
            }
            let is_given = |value: A| -> bool { !<A as Into<f64>>::into(value).is_nan() };
            let term = |(a, b): (&A, &B)| if is_given(*a) { difference(self.metric, *a, *b) } else { 0.0 };
            let terms: Vec<f64> = a.iter().zip(b).map(term).collect();
            let n = a.iter().filter(|value| is_given(**value)).count();
            match n {
                0 => self.record_empty(self.measured + row),
                _ => self.error[first + row] = finished(self.metric, sum_terms(&terms) / f64_from_usize(n)),
            }
        }
    }

    /// Records a row without any value to compare.
    fn record_empty(&mut self, row: usize) {
        self.has_error.resize(row, true);
        self.has_error.push(false);
    }

    fn is_given(&self, row: usize, column: usize) -> bool {
        let feature = self.features.map_or(column, |features| features[column]);
        self.given.get(feature).is_none_or(|given| given.as_ref().is_none_or(|given| given.is_valid(row)))
    }

    /// Moves the results to `scores`.
    pub(super) fn finish(mut self, scores: &mut Scores) {
        if !self.has_error.is_empty() {
            self.has_error.resize(self.measured, true);
        }
        scores.error = self.error.into();
        scores.parts = self.parts;
        scores.valid_error = match self.has_error.is_empty() {
            true => scores.valid.clone(),
            false => NullBuffer::union(scores.valid.as_ref(), Some(&NullBuffer::from(self.has_error))),
        };
    }
}

fn values_of<'v>(input: Option<&Input<'v>>, n: usize) -> Result<Floats<'v>> {
    match input {
        Some(Input::Float32(values)) => Ok(Floats::F32(&values[..n])),
        Some(Input::Float64(values)) => Ok(Floats::F64(&values[..n])),
        other => exec_err!("cannot compare a reconstruction with {other:?}"),
    }
}

/// Writes the compared columns of several tensors to `block`, in rows of `total` numbers.
fn side_by_side(
    inputs: &[Input<'_>],
    places: &[Places],
    rows: usize,
    total: usize,
    block: &mut Vec<f64>,
) -> Result<()> {
    block.resize(rows * total, 0.0);
    for (input, places) in inputs.iter().zip(places).filter(|(_, places)| !places.pairs.is_empty()) {
        match input {
            Input::Float16(values) => copy(values, places, total, block),
            Input::Float32(values) => copy(values, places, total, block),
            Input::Float64(values) => copy(values, places, total, block),
            Input::Int8(values) => copy(values, places, total, block),
            Input::Int16(values) => copy(values, places, total, block),
            Input::Int32(values) => copy(values, places, total, block),
            Input::Int64(values) => copy(values, places, total, block),
            Input::UInt8(values) => copy(values, places, total, block),
            Input::UInt16(values) => copy(values, places, total, block),
            Input::UInt32(values) => copy(values, places, total, block),
            Input::UInt64(values) => copy(values, places, total, block),
            Input::Bool(values) => copy(values, places, total, block),
            Input::String(_) => return exec_err!("cannot compare a reconstruction with strings"),
        }
    }
    Ok(())
}

/// Copies columns of rows of `places.width` numbers to rows of `total` numbers.
fn copy<T: ToF64>(values: &[T], places: &Places, total: usize, block: &mut [f64]) {
    for (row, values) in block.chunks_exact_mut(total).zip(values.chunks_exact(places.width)) {
        places.pairs.iter().for_each(|(from, to)| row[*to] = values[*from].to_f64());
    }
}

/// Errors of rows of `width` numbers. Compiled for several vector widths, all of which add in the same order. Its
/// callees must be inlined; iterators with closures are not always.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn errors<A: Copy + Into<f64>, B: Copy + Into<f64>>(
    metric: ErrorMetric,
    width: usize,
    a: &[A],
    b: &[B],
    into: &mut Vec<f64>,
) {
    let n = f64_from_usize(width);
    let start = into.len();
    let rows = a.len().min(b.len()).checked_div(width).unwrap_or_default();
    into.resize(start + rows, 0.0);
    for ((error, a), b) in into[start..].iter_mut().zip(a.chunks_exact(width)).zip(b.chunks_exact(width)) {
        *error = finished(metric, sum(metric, a, b) / n);
    }
}

fn difference<A: Copy + Into<f64>, B: Copy + Into<f64>>(metric: ErrorMetric, a: A, b: B) -> f64 {
    let difference: f64 = a.into() - b.into();
    match metric {
        ErrorMetric::Mse | ErrorMetric::Rmse => difference * difference,
        ErrorMetric::Mae => difference.abs(),
    }
}

#[inline(always)]
fn finished(metric: ErrorMetric, mean: f64) -> f64 {
    match metric {
        ErrorMetric::Rmse => mean.sqrt(),
        ErrorMetric::Mse | ErrorMetric::Mae => mean,
    }
}

#[inline(always)]
fn sum<A: Copy + Into<f64>, B: Copy + Into<f64>>(metric: ErrorMetric, a: &[A], b: &[B]) -> f64 {
    // one loop for each metric: the compiler then vectorises each
    match metric {
        ErrorMetric::Mse | ErrorMetric::Rmse => lanes(a, b, |difference| difference * difference),
        ErrorMetric::Mae => lanes(a, b, f64::abs),
    }
}

#[inline(always)]
fn lanes<A: Copy + Into<f64>, B: Copy + Into<f64>>(a: &[A], b: &[B], term: impl Fn(f64) -> f64) -> f64 {
    let mut sums = [0.0; LANES];
    let (a_lanes, a_rest) = a.as_chunks::<LANES>();
    let (b_lanes, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_lanes.iter().zip(b_lanes) {
        for lane in 0..LANES {
            sums[lane] += term(a[lane].into() - b[lane].into());
        }
    }
    for (sum, (a, b)) in sums.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *sum += term((*a).into() - (*b).into());
    }
    fold(sums)
}

/// The sum of terms, in the order of [`lanes`].
fn sum_terms(terms: &[f64]) -> f64 {
    let mut sums = [0.0; LANES];
    for chunk in terms.chunks(LANES) {
        sums.iter_mut().zip(chunk).for_each(|(sum, term)| *sum += term);
    }
    fold(sums)
}

fn fold(s: [f64; LANES]) -> f64 {
    ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]))
}
