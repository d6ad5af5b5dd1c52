//! The core that every function shares: rows in, the wanted outputs of the model out, block by block.

mod error;

use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::arrow::array::{ArrayRef, AsArray, Float32Array, Float64Array, new_null_array};
use datafusion::arrow::buffer::{NullBuffer, ScalarBuffer};
use datafusion::arrow::datatypes::{DataType, Float32Type};
use datafusion::common::{internal_err, plan_err};
use datafusion::error::Result;

use crate::matrix::{Cells, Rows, split_columns};
use crate::model::contract::{Contract, TensorSpec};
use crate::model::metadata::{NullPolicy, Role};
use crate::model::pool::{Lent, Pool};
use crate::model::runtime::{Element, Input, Output, Session};
use crate::model::{Model, ROW_MULTIPLE, Start};
use crate::narrow::ToF32;
use error::{Measure, Values};

/// What is to be computed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Wanted {
    /// Tensors to keep, each once, in the order of [`Role::ALL`].
    roles: Vec<Role>,
    /// The error of each row.
    error: bool,
    /// Each feature's part of the error.
    parts: bool,
}

impl Wanted {
    pub(crate) fn roles(roles: impl Into<Vec<Role>>) -> Self {
        Self { roles: roles.into(), ..Self::default() }.sorted()
    }

    pub(crate) fn error() -> Self {
        Self { error: true, ..Self::default() }
    }

    pub(crate) fn parts() -> Self {
        Self { parts: true, ..Self::default() }
    }

    /// Both.
    pub(crate) fn and(mut self, other: &Self) -> Self {
        self.roles.extend(&other.roles);
        Self { error: self.error || other.error, parts: self.parts || other.parts, ..self }.sorted()
    }

    fn sorted(mut self) -> Self {
        self.roles = Role::ALL.into_iter().filter(|role| self.roles.contains(role)).collect();
        self
    }
}

/// Numbers that a run writes, row-major.
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

    fn output(&mut self, element: Element, start: usize, end: usize) -> Output<'_> {
        match self {
            Self::F32(values) => match element {
                Element::Float32 => Output::Float32(&mut values[start..end]),
                _ => Output::Converted(&mut values[start..end]),
            },
            Self::F64(values) => Output::Float64(&mut values[start..end]),
        }
    }

    /// Memory that it takes.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::F32(values) => values.capacity() * size_of::<f32>(),
            Self::F64(values) => values.capacity() * size_of::<f64>(),
        }
    }
}

/// One output of a model for all rows, row-major. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Matrix {
    values: ScalarValues,
    pub(crate) width: usize,
}

#[derive(Debug, Clone)]
enum ScalarValues {
    F32(ScalarBuffer<f32>),
    F64(ScalarBuffer<f64>),
}

impl Matrix {
    fn new(values: Numbers, width: usize, n: usize) -> Self {
        let values = match values {
            Numbers::F32(values) => ScalarValues::F32(ScalarBuffer::from(values).slice(0, n * width)),
            Numbers::F64(values) => ScalarValues::F64(ScalarBuffer::from(values).slice(0, n * width)),
        };
        Self { values, width }
    }

    /// All values as `Float32`; without a copy where they are that.
    pub(crate) fn to_f32(&self) -> ArrayRef {
        match &self.values {
            ScalarValues::F32(values) => Arc::new(Float32Array::new(values.clone(), None)),
            ScalarValues::F64(values) => {
                Arc::new(Float32Array::from_iter_values(values.iter().copied().map(ToF32::to_f32)))
            }
        }
    }

    /// Its columns, in their own precision.
    pub(crate) fn columns(&self) -> Vec<ArrayRef> {
        match &self.values {
            ScalarValues::F32(values) => split_columns(values, self.width)
                .into_iter()
                .map(|column| Arc::new(Float32Array::from(column)) as ArrayRef)
                .collect(),
            ScalarValues::F64(values) => split_columns(values, self.width)
                .into_iter()
                .map(|column| Arc::new(Float64Array::from(column)) as ArrayRef)
                .collect(),
        }
    }
}

/// What was wanted, for all rows; what stands in rows that are not valid means nothing.
#[derive(Debug, Default)]
pub(crate) struct Scores {
    matrices: Vec<(Role, Matrix)>,
    pub(crate) error: ScalarBuffer<f64>,
    /// `[rows, features]`; a row sums to the mean error before a root is taken.
    pub(crate) parts: Vec<f64>,
    /// Rows with a result; none: all.
    pub(crate) valid: Option<NullBuffer>,
    /// Rows with an error: valid ones that have at least one feature to compare.
    pub(crate) valid_error: Option<NullBuffer>,
}

impl Scores {
    /// A matrix that was wanted.
    pub(crate) fn matrix(&self, role: Role) -> Result<&Matrix> {
        match self.matrices.iter().find(|(found, _)| *found == role) {
            Some((_, matrix)) => Ok(matrix),
            None => internal_err!("the {role} was taken and not asked for"),
        }
    }
}

/// Where a run took its time, and what went through it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Meter {
    /// Runs of ONNX Runtime.
    pub(crate) blocks: usize,
    /// Rows that went through it, without padding.
    pub(crate) rows: usize,
    /// Bytes of the tensors that went in and came out.
    pub(crate) bytes: usize,
    /// Time in ONNX Runtime.
    pub(crate) runtime: Duration,
    /// Time to put blocks together and to take results apart.
    pub(crate) conversion: Duration,
    /// Time to measure errors.
    pub(crate) error: Duration,
    /// Time until a session was there: loading it, if none was idle.
    pub(crate) wait: Duration,
}

/// A model over rows of features, block by block.
///
/// The same row gives the same bits whatever rows stand beside it: every run has a multiple of [`ROW_MULTIPLE`] rows,
/// and the error is summed here, in `f64`, in a fixed order (in a graph, ReduceMean differed between batch sizes).
#[derive(Debug)]
pub(crate) struct Scoring<'a> {
    model: &'a Model,
    contract: &'a Contract,
    inputs: Vec<&'a TensorSpec>,
    cells: Vec<Cells>,
    n: usize,
    valid: Option<NullBuffer>,
    block_rows: usize,
    fetched: Vec<Fetched<'a>>,
    /// For each role that is wanted, its place among what is fetched.
    kept: Vec<(Role, usize)>,
    measure: Option<Measure<'a>>,
    /// None if there are no rows.
    worker: Option<Lent>,
    next: usize,
    pub(crate) meter: Meter,
}

/// Runs a model over rows of features, or its decoder over rows of codes.
///
/// # Errors
/// A planning error if the model lacks what is wanted, an execution error if the rows do not fit it or a run fails.
pub(crate) fn score(
    model: &Model,
    start: Start,
    rows: &Rows,
    wanted: &Wanted,
    block_rows: Option<usize>,
) -> Result<Scores> {
    let mut scoring = Scoring::new(model, start, rows, wanted, block_rows)?;
    while scoring.step()? {}
    scoring.finish()
}

/// Runs everything that the functions can ask of a model, over rows of zeros.
pub(crate) fn verify(model: &Arc<Model>) -> Result<()> {
    let contract = model.contract();
    let zeros = Rows::zeros(contract, 1)?;
    let mut all = match contract.require_error().is_ok() {
        true => Wanted::error(),
        false => Wanted::default(),
    };
    for role in Role::ALL.into_iter().filter(|role| contract.tensor(*role).is_some()) {
        let one = Wanted::roles([role]);
        score(model, Start::Features, &zeros, &one, None)?;
        all = all.and(&one);
    }
    score(model, Start::Features, &zeros, &all, None)?;
    if contract.null_policy == NullPolicy::Impute {
        verify_impute(model)?;
    }
    if let Ok(entry) = contract.require_decoder() {
        let zeros: ArrayRef = Arc::new(Float32Array::from(vec![0.0; entry.width()]));
        let zeros = crate::matrix::list_array(zeros, entry.width(), None)?;
        let features = vec![crate::model::metadata::Feature::named(""); entry.width()];
        let codes = Rows::new(&[zeros], &features, 1)?;
        score(model, Start::Code, &codes, &Wanted::roles([Role::Reconstruction]), None)?;
    }
    Ok(())
}

/// That a row of nulls gives numbers: the graph does fill them in.
fn verify_impute(model: &Model) -> Result<()> {
    let contract = model.contract();
    let nulls: Vec<ArrayRef> = vec![new_null_array(&DataType::Null, 1); contract.features.len()];
    let rows = Rows::new(&nulls, &contract.features, 1)?;
    for role in [Role::Code, Role::Reconstruction].into_iter().filter(|role| contract.tensor(*role).is_some()) {
        let scores = score(model, Start::Features, &rows, &Wanted::roles([role]), None)?;
        let values = scores.matrix(role)?.to_f32();
        if values.as_primitive::<Float32Type>().values().iter().any(|value| value.is_nan()) {
            return plan_err!(
                "null_policy is impute, but the graph does not fill in missing features: a row of NaN has the {role} NaN"
            );
        }
    }
    Ok(())
}

/// A tensor that the graph computes, and where it goes.
#[derive(Debug)]
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

/// The tensors that are compared for the error: the original, if the graph gives it, and the reconstruction.
type Compared<'a> = (Option<&'a TensorSpec>, &'a TensorSpec);

/// What the graph must give for what is wanted: the tensors, each once, and the two that are compared for the error.
///
/// # Errors
/// A planning error if the model lacks one.
fn tensors<'a>(contract: &'a Contract, wanted: &Wanted) -> Result<(Vec<&'a TensorSpec>, Option<Compared<'a>>)> {
    let mut tensors = wanted.roles.iter().map(|role| contract.require(*role)).collect::<Result<Vec<_>>>()?;
    let compared = match wanted.error || wanted.parts {
        true => Some(contract.require_error()?),
        false => None,
    };
    tensors.extend(compared.iter().flat_map(|(original, reconstruction)| original.iter().chain([reconstruction])));
    // one order, so that the same outputs share their sessions however they were asked for
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    tensors.dedup();
    Ok((tensors, compared))
}

impl<'a> Scoring<'a> {
    /// Gets ready; nothing runs yet.
    ///
    /// # Errors
    /// As [`score`].
    pub(crate) fn new(
        model: &'a Model,
        start: Start,
        rows: &Rows,
        wanted: &Wanted,
        block_rows: Option<usize>,
    ) -> Result<Self> {
        let begun = Instant::now();
        let contract = model.contract();
        let (inputs, cells, valid) = inputs(contract, start, rows)?;
        let n = rows.len();
        let padded_n = n.next_multiple_of(contract.fixed_rows.unwrap_or(ROW_MULTIPLE));
        let block_rows = model.block_rows(block_rows).min(padded_n.max(1));
        let (tensors, compared) = tensors(contract, wanted)?;
        let place = |tensor: &TensorSpec| tensors.iter().position(|other| *other == tensor).unwrap_or_default();
        let kept =
            wanted.roles.iter().map(|role| Ok((*role, place(contract.require(*role)?)))).collect::<Result<Vec<_>>>()?;
        let measure = match compared {
            Some((from, to)) => {
                Some(Measure::new(contract, rows, from.map(place), place(to), wanted.error, wanted.parts)?)
            }
            None => None,
        };
        let fetched = |(index, tensor): (usize, &&'a TensorSpec)| {
            let is_kept = kept.iter().any(|(_, place)| *place == index);
            let rows = if is_kept { padded_n } else { 0 };
            Fetched { tensor, values: Numbers::zeros(tensor.element, rows * tensor.width()), is_kept }
        };
        let fetched: Vec<Fetched<'a>> = tensors.iter().enumerate().map(fetched).collect();
        let mut meter = Meter { conversion: begun.elapsed(), ..Meter::default() };
        let worker = match n {
            0 => None,
            _ => {
                let waiting = Instant::now();
                let worker = Pool::lend(&model.pool(start, &tensors)?)?;
                meter.wait = waiting.elapsed();
                Some(worker)
            }
        };
        let mut scoring = Self {
            model,
            contract,
            inputs,
            cells,
            n,
            valid,
            block_rows,
            fetched,
            kept,
            measure,
            worker,
            next: 0,
            meter,
        };
        scoring.take_scratch()?;
        Ok(scoring)
    }

    /// Runs the next block, and tells whether there was one.
    ///
    /// # Errors
    /// An execution error if it fails.
    pub(crate) fn step(&mut self) -> Result<bool> {
        let Some(lent) = &mut self.worker else { return Ok(false) };
        if self.next >= self.n {
            return Ok(false);
        }
        let start = self.next;
        let rows = start..(start + self.block_rows).min(self.n);
        self.next = rows.end;
        if self.valid.as_ref().is_some_and(|valid| valid.slice(start, rows.len()).null_count() == rows.len()) {
            if let Some(measure) = &mut self.measure {
                measure.skip(rows.len());
            }
            return Ok(true);
        }
        let padded = match self.contract.fixed_rows {
            Some(fixed) => fixed,
            None => rows.len().next_multiple_of(ROW_MULTIPLE),
        };
        let worker = lent.worker()?;
        let begun = Instant::now();
        let mut inputs = Vec::with_capacity(self.cells.len());
        for (cells, block) in self.cells.iter().zip(&mut worker.blocks) {
            inputs.push(cells.block(rows.clone(), padded, block)?);
        }
        let converted = Instant::now();
        self.meter.conversion += converted - begun;
        run_block(&mut worker.session, &self.inputs, &inputs, &mut self.fetched, start, padded)?;
        let ran = Instant::now();
        self.meter.runtime += ran - converted;
        self.meter.blocks += 1;
        self.meter.rows += rows.len();
        self.model.count_rows(rows.len());
        let width = |tensor: &TensorSpec| tensor.width() * tensor.element.bytes();
        let widths = self.inputs.iter().copied().chain(self.fetched.iter().map(|fetched| fetched.tensor)).map(width);
        self.meter.bytes += padded * widths.sum::<usize>();
        if let Some(measure) = &mut self.measure {
            let fetched = &self.fetched;
            measure.block(rows.clone(), &inputs, |index| fetched[index].rows(start, rows.len()))?;
            self.meter.error += ran.elapsed();
        }
        Ok(true)
    }

    /// Memory that this run holds, without that of the session.
    pub(crate) fn bytes(&self) -> usize {
        let fetched: usize = self.fetched.iter().map(|fetched| fetched.values.bytes()).sum();
        let worker = self.worker.as_ref().map_or(0, |worker| worker.bytes());
        fetched + worker + self.measure.as_ref().map_or(0, Measure::bytes)
    }

    /// Memory of the session and the weights that it shares with the others of its pool.
    pub(crate) fn session_bytes(&self) -> usize {
        self.worker.as_ref().map_or(0, Lent::session_bytes)
    }

    /// What was computed, once all blocks ran.
    ///
    /// # Errors
    /// Never, but for an error of ours.
    pub(crate) fn finish(mut self) -> Result<Scores> {
        self.give_scratch_back()?;
        let mut scores = Scores { valid: self.valid.take(), ..Scores::default() };
        match self.measure.take() {
            Some(measure) => measure.finish(&mut scores),
            None => scores.valid_error = scores.valid.clone(),
        }
        let mut matrices: Vec<Option<Matrix>> = Vec::with_capacity(self.fetched.len());
        for fetched in self.fetched.drain(..) {
            let width = fetched.tensor.width();
            matrices.push(fetched.is_kept.then(|| Matrix::new(fetched.values, width, self.n)));
        }
        scores.matrices =
            self.kept.iter().filter_map(|(role, place)| Some((*role, matrices[*place].clone()?))).collect();
        Ok(scores)
    }

    /// Gives the outputs that are not kept the worker's memory, enough for a block each.
    fn take_scratch(&mut self) -> Result<()> {
        let Some(lent) = &mut self.worker else { return Ok(()) };
        let worker = lent.worker()?;
        if worker.blocks.is_empty() {
            worker.blocks = self.cells.iter().map(Cells::new_block).collect();
        }
        for (index, fetched) in self.fetched.iter_mut().enumerate().filter(|(_, fetched)| !fetched.is_kept) {
            if let Some(scratch) = worker.scratch.remove(&index) {
                fetched.values = scratch;
            }
            fetched.values.ensure(self.block_rows * fetched.tensor.width());
        }
        Ok(())
    }

    fn give_scratch_back(&mut self) -> Result<()> {
        let Some(lent) = &mut self.worker else { return Ok(()) };
        let worker = lent.worker()?;
        for (index, fetched) in self.fetched.iter_mut().enumerate().filter(|(_, fetched)| !fetched.is_kept) {
            worker.scratch.insert(index, std::mem::replace(&mut fetched.values, Numbers::F32(Vec::new())));
        }
        Ok(())
    }
}

/// The tensors that go in, their values, and the rows that give a result.
fn inputs<'a>(
    contract: &'a Contract,
    start: Start,
    rows: &Rows,
) -> Result<(Vec<&'a TensorSpec>, Vec<Cells>, Option<NullBuffer>)> {
    match start {
        Start::Features => {
            let width = contract.features.len();
            let policy = contract.null_policy;
            let mut first = 0;
            let mut cells = Vec::with_capacity(contract.inputs.len());
            for input in &contract.inputs {
                cells.push(rows.cells(input, first, width, policy)?);
                first += input.width();
            }
            Ok((contract.inputs.iter().collect(), cells, rows.valid(policy, width)))
        }
        Start::Code => {
            let entry = contract.require_decoder()?;
            let width = entry.width();
            let flat = TensorSpec { shape: vec![width], rows_each: 1, ..entry.clone() };
            let cells = rows.cells(&flat, 0, width, NullPolicy::Propagate)?;
            Ok((vec![entry], vec![cells], rows.valid(NullPolicy::Propagate, width)))
        }
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
