//! The core that every function shares: rows in, the wanted outputs of the model out, block by block.

mod error;

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, AsArray, Float32Array, Float64Array, new_null_array};
use datafusion::arrow::buffer::NullBuffer;
use datafusion::arrow::datatypes::{DataType, Float32Type};
use datafusion::common::{internal_err, plan_err};
use datafusion::error::Result;

use crate::matrix::{Cells, Rows};
use crate::model::contract::TensorSpec;
use crate::model::metadata::{NullPolicy, Role};
use crate::model::pool::Worker;
use crate::model::runtime::{Element, Input, Output, Session};
use crate::model::{Model, ROW_MULTIPLE, Start};
use crate::narrow::f32_from_f64;
use error::{Measure, Values};

/// What is to be computed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Wanted {
    /// Tensors to keep.
    pub(crate) roles: Vec<Role>,
    /// The error of each row.
    pub(crate) error: bool,
    /// Each feature's part of the error.
    pub(crate) parts: bool,
}

impl Wanted {
    pub(crate) fn roles(roles: impl Into<Vec<Role>>) -> Self {
        Self { roles: roles.into(), ..Self::default() }
    }

    pub(crate) fn error() -> Self {
        Self { error: true, ..Self::default() }
    }
}

/// Numbers of one output, row-major.
#[derive(Debug, Clone)]
pub(crate) enum Numbers {
    F32(Vec<f32>),
    F64(Vec<f64>),
}

impl Numbers {
    fn zeros(element: Element, n: usize) -> Self {
        match element {
            Element::Float64 => Self::F64(vec![0.0; n]),
            _ => Self::F32(vec![0.0; n]),
        }
    }

    /// Makes it at least `n` long.
    fn ensure(&mut self, n: usize) {
        match self {
            Self::F32(values) if values.len() < n => values.resize(n, 0.0),
            Self::F64(values) if values.len() < n => values.resize(n, 0.0),
            _ => {}
        }
    }

    fn truncate(&mut self, n: usize) {
        match self {
            Self::F32(values) => values.truncate(n),
            Self::F64(values) => values.truncate(n),
        }
    }

    fn output(&mut self, element: Element, start: usize, end: usize) -> Output<'_> {
        match self {
            Self::F32(values) => match element {
                Element::Float32 => Output::Float32(&mut values[start..end]),
                _ => Output::Converted(&mut values[start..end]),
            },
            Self::F64(values) => Output::Float64(&mut values[start..end]),
        }
    }

    /// As `Float32` values; without a copy where they are that.
    pub(crate) fn into_f32(self) -> ArrayRef {
        match self {
            Self::F32(values) => Arc::new(Float32Array::from(values)),
            Self::F64(values) => Arc::new(Float32Array::from_iter_values(values.into_iter().map(f32_from_f64))),
        }
    }

    /// One column of a matrix of `width` columns, in its own precision.
    pub(crate) fn column(&self, index: usize, width: usize) -> ArrayRef {
        match self {
            Self::F32(values) => {
                Arc::new(Float32Array::from(values.iter().skip(index).step_by(width).copied().collect::<Vec<_>>()))
            }
            Self::F64(values) => {
                Arc::new(Float64Array::from(values.iter().skip(index).step_by(width).copied().collect::<Vec<_>>()))
            }
        }
    }
}

/// One output of a model for all rows.
#[derive(Debug, Clone)]
pub(crate) struct Matrix {
    pub(crate) values: Numbers,
    pub(crate) width: usize,
}

/// What was wanted, for all rows; what stands in rows that are not valid means nothing.
#[derive(Debug, Default)]
pub(crate) struct Scores {
    /// In the order of [`Wanted::roles`].
    pub(crate) matrices: Vec<Matrix>,
    pub(crate) error: Vec<f64>,
    /// `[rows, features]`; a row sums to the mean error before a root is taken.
    pub(crate) parts: Vec<f64>,
    /// Rows with a result; none: all.
    pub(crate) valid: Option<NullBuffer>,
}

impl Scores {
    /// The next of the wanted matrices, in their order.
    pub(crate) fn take(&mut self) -> Result<Matrix> {
        match self.matrices.is_empty() {
            true => internal_err!("an output was taken that was not asked for"),
            false => Ok(self.matrices.remove(0)),
        }
    }
}

/// Runs a model over rows of features.
///
/// The same row gives the same bits whatever rows stand beside it: every run has a multiple of [`ROW_MULTIPLE`] rows,
/// and the error is summed here, in `f64`, in a fixed order (in a graph, ReduceMean differed between batch sizes).
///
/// # Errors
/// A planning error if the model lacks what is wanted, an execution error if the rows do not fit it or a run fails.
pub(crate) fn score(model: &Model, rows: &Rows, wanted: &Wanted, block_rows: Option<usize>) -> Result<Scores> {
    let contract = model.contract();
    let width = contract.features.len();
    let policy = contract.null_policy;
    let mut first = 0;
    let mut cells = Vec::new();
    for input in &contract.inputs {
        cells.push(rows.cells(input, first, width, policy)?);
        first += input.width();
    }
    let run = Run {
        model,
        start: Start::Features,
        inputs: contract.inputs.iter().collect(),
        cells,
        rows,
        valid: rows.valid(policy, width),
        block_rows: model.block_rows(block_rows),
    };
    run.score(wanted)
}

/// Runs the decoder of a model over codes.
///
/// # Errors
/// As [`score`].
pub(crate) fn decode(model: &Model, codes: &Rows, block_rows: Option<usize>) -> Result<Scores> {
    let entry = model.contract().require_decoder()?;
    let width = entry.width();
    let run = Run {
        model,
        start: Start::Code,
        inputs: vec![entry],
        cells: vec![codes.cells(
            &TensorSpec { shape: vec![width], rows_each: 1, ..entry.clone() },
            0,
            width,
            NullPolicy::Propagate,
        )?],
        rows: codes,
        valid: codes.valid(NullPolicy::Propagate, width),
        block_rows: model.block_rows(block_rows),
    };
    run.score(&Wanted::roles([Role::Reconstruction]))
}

/// Runs everything that the functions can ask of a model, over rows of zeros.
pub(crate) fn verify(model: &Arc<Model>) -> Result<()> {
    let contract = model.contract();
    let zeros = Rows::zeros(contract, 1)?;
    let roles: Vec<Role> = Role::ALL.into_iter().filter(|role| contract.tensor(*role).is_some()).collect();
    for role in &roles {
        score(model, &zeros, &Wanted::roles([*role]), None)?;
    }
    let error = contract.require_error().is_ok();
    score(model, &zeros, &Wanted { roles, error, parts: false }, None)?;
    if contract.null_policy == NullPolicy::Impute {
        verify_impute(model)?;
    }
    if let Ok(entry) = contract.require_decoder() {
        let zeros: ArrayRef = Arc::new(Float32Array::from(vec![0.0; entry.width()]));
        let zeros = crate::matrix::list_array(zeros, entry.width(), None)?;
        decode(
            model,
            &Rows::new(&[zeros], &vec![crate::model::metadata::Feature::named(""); entry.width()], 1)?,
            None,
        )?;
    }
    Ok(())
}

/// That a row of nulls gives numbers: the graph does fill them in.
fn verify_impute(model: &Model) -> Result<()> {
    let contract = model.contract();
    let nulls: Vec<ArrayRef> = vec![new_null_array(&DataType::Null, 1); contract.features.len()];
    let rows = Rows::new(&nulls, &contract.features, 1)?;
    for role in [Role::Code, Role::Reconstruction].into_iter().filter(|role| contract.tensor(*role).is_some()) {
        let matrix = score(model, &rows, &Wanted::roles([role]), None)?.take()?;
        if matrix.values.into_f32().as_primitive::<Float32Type>().values().iter().any(|value| value.is_nan()) {
            return plan_err!(
                "null_policy is impute, but the graph does not fill in missing features: a row of NaN has the {role} NaN"
            );
        }
    }
    Ok(())
}

struct Run<'a> {
    model: &'a Model,
    start: Start,
    inputs: Vec<&'a TensorSpec>,
    cells: Vec<Cells>,
    rows: &'a Rows,
    valid: Option<NullBuffer>,
    block_rows: usize,
}

/// A tensor that the graph computes, and where it goes.
struct Fetched<'a> {
    tensor: &'a TensorSpec,
    /// All rows, or where only the error is wanted of it, one block.
    values: Numbers,
    is_kept: bool,
}

impl Fetched<'_> {
    /// Where the rows from `start` on stand in `values`.
    fn offset(&self, start: usize) -> usize {
        if self.is_kept { start * self.tensor.width() } else { 0 }
    }

    fn rows(&self, start: usize, rows: usize) -> Values<'_> {
        let range = self.offset(start)..self.offset(start) + rows * self.tensor.width();
        match &self.values {
            Numbers::F32(values) => Values::F32(&values[range]),
            Numbers::F64(values) => Values::F64(&values[range]),
        }
    }
}

impl<'a> Run<'a> {
    fn score(self, wanted: &Wanted) -> Result<Scores> {
        let contract = self.model.contract();
        let n = self.rows.len();
        let padded_n = n.next_multiple_of(contract.fixed_rows.unwrap_or(ROW_MULTIPLE));
        let block_rows = self.block_rows.min(padded_n.max(1));
        let mut tensors: Vec<&TensorSpec> = Vec::new();
        let mut position = |tensor: &'a TensorSpec| {
            tensors.iter().position(|other| *other == tensor).unwrap_or_else(|| {
                tensors.push(tensor);
                tensors.len() - 1
            })
        };
        let kept =
            wanted.roles.iter().map(|role| contract.require(*role).map(&mut position)).collect::<Result<Vec<_>>>()?;
        let measure = match wanted.error || wanted.parts {
            true => {
                let (from, to) = contract.require_error()?;
                Some(Measure::new(contract, self.rows, from.map(&mut position), position(to), wanted)?)
            }
            false => None,
        };
        let mut fetched: Vec<Fetched<'_>> = tensors
            .iter()
            .enumerate()
            .map(|(index, tensor)| {
                let is_kept = kept.contains(&index);
                let rows = if is_kept { padded_n } else { 0 };
                Fetched { tensor, values: Numbers::zeros(tensor.element, rows * tensor.width()), is_kept }
            })
            .collect();
        let mut scores = Scores { valid: self.valid.clone(), ..Scores::default() };
        if n > 0 {
            let pool = self.model.pool(self.start, &tensors)?;
            pool.with_worker(|worker| {
                lend(worker, &mut fetched, block_rows);
                let ran = self.run(worker, block_rows, &mut fetched, measure, &mut scores);
                give_back(worker, &mut fetched);
                ran
            })?;
        }
        for (i, index) in kept.iter().enumerate() {
            let Fetched { tensor, values, .. } = &mut fetched[*index];
            // two roles can be one tensor: the last one takes it
            let mut values = match kept[i + 1..].contains(index) {
                true => values.clone(),
                false => std::mem::replace(values, Numbers::F32(Vec::new())),
            };
            values.truncate(n * tensor.width());
            scores.matrices.push(Matrix { values, width: tensor.width() });
        }
        Ok(scores)
    }

    fn run(
        &self,
        worker: &mut Worker,
        block_rows: usize,
        fetched: &mut [Fetched<'_>],
        mut measure: Option<Measure<'_>>,
        scores: &mut Scores,
    ) -> Result<()> {
        let n = self.rows.len();
        if worker.blocks.is_empty() {
            worker.blocks = self.cells.iter().map(Cells::new_block).collect();
        }
        for start in (0..n).step_by(block_rows) {
            let rows = start..(start + block_rows).min(n);
            let padded = match self.model.contract().fixed_rows {
                Some(fixed) => fixed,
                None => rows.len().next_multiple_of(ROW_MULTIPLE),
            };
            if self.valid.as_ref().is_some_and(|valid| valid.slice(start, rows.len()).null_count() == rows.len()) {
                if let Some(measure) = &mut measure {
                    measure.skip(rows.len());
                }
                continue;
            }
            let mut inputs = Vec::with_capacity(self.cells.len());
            for (cells, block) in self.cells.iter().zip(&mut worker.blocks) {
                inputs.push(cells.block(rows.clone(), padded, block)?);
            }
            run_block(&mut worker.session, &self.inputs, &inputs, fetched, start, padded)?;
            if let Some(measure) = &mut measure {
                measure.block(rows.clone(), &inputs, |index| fetched[index].rows(start, rows.len()))?;
            }
        }
        if let Some(measure) = measure {
            measure.finish(scores);
        }
        Ok(())
    }
}

/// Gives the outputs that are not kept the worker's memory, enough for a block each.
fn lend(worker: &mut Worker, fetched: &mut [Fetched<'_>], block_rows: usize) {
    for (index, fetched) in fetched.iter_mut().enumerate().filter(|(_, fetched)| !fetched.is_kept) {
        if let Some(scratch) = worker.scratch.remove(&index) {
            fetched.values = scratch;
        }
        fetched.values.ensure(block_rows * fetched.tensor.width());
    }
}

fn give_back(worker: &mut Worker, fetched: &mut [Fetched<'_>]) {
    for (index, fetched) in fetched.iter_mut().enumerate().filter(|(_, fetched)| !fetched.is_kept) {
        worker.scratch.insert(index, std::mem::replace(&mut fetched.values, Numbers::F32(Vec::new())));
    }
}

fn run_block(
    session: &mut Session,
    tensors: &[&TensorSpec],
    inputs: &[Input<'_>],
    fetched: &mut [Fetched<'_>],
    start: usize,
    padded: usize,
) -> Result<()> {
    let shapes: Vec<Vec<i64>> = tensors.iter().map(|tensor| tensor.shape_of(padded)).collect();
    let inputs: Vec<(Input<'_>, &[i64])> = inputs.iter().copied().zip(shapes.iter().map(Vec::as_slice)).collect();
    let shapes: Vec<Vec<i64>> = fetched.iter().map(|fetched| fetched.tensor.shape_of(padded)).collect();
    let mut outputs: Vec<(Output<'_>, &[i64])> = fetched
        .iter_mut()
        .zip(&shapes)
        .map(|(fetched, shape)| {
            let offset = fetched.offset(start);
            let end = offset + padded * fetched.tensor.width();
            (fetched.values.output(fetched.tensor.element, offset, end), shape.as_slice())
        })
        .collect();
    session.run(&inputs, &mut outputs)
}
