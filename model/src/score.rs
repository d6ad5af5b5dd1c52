//! The core of all functions: computes the requested outputs of a model for rows, block by block.

mod measure;
mod memory;

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, AsArray, Float32Array, new_null_array};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Float32Type};
use datafusion_common::error::Result;
use datafusion_common::plan_err;

use crate::contract::{Contract, TensorSpec};
use crate::matrix::{Cells, Rows};
use crate::metadata::{NullPolicy, Role};
use crate::model::{Model, ROW_MULTIPLE, Start};
use crate::output::{Matrix, Numbers, Scores};
use crate::pool::Pool;
pub use crate::pool::PooledWorker;
use crate::runtime::{Input, Output, Session};
use measure::{Floats, Measure};
pub use memory::{Memory, batch_rows};

/// What a run is asked to compute.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Request {
    /// Tensors to keep, each once, in the order of [`Role::ALL`].
    roles: Vec<Role>,
    /// The error of each row.
    error: bool,
    /// The part of each feature in the error.
    parts: bool,
}

impl Request {
    /// Asks for tensors.
    pub fn roles(roles: impl Into<Vec<Role>>) -> Self {
        Self { roles: roles.into(), ..Self::default() }.sorted()
    }

    /// Asks for the error of each row.
    pub fn error() -> Self {
        Self { error: true, ..Self::default() }
    }

    /// Asks for the part of each feature in the error.
    pub fn parts() -> Self {
        Self { parts: true, ..Self::default() }
    }

    /// This request and another, in one.
    pub fn and(mut self, other: &Self) -> Self {
        self.roles.extend(&other.roles);
        Self { error: self.error || other.error, parts: self.parts || other.parts, ..self }.sorted()
    }

    fn sorted(mut self) -> Self {
        self.roles = Role::ALL.into_iter().filter(|role| self.roles.contains(role)).collect();
        self
    }
}

/// Metrics of a run: times and sizes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Meter {
    /// Runs of ONNX Runtime.
    pub blocks: usize,
    /// Rows, without padding.
    pub rows: usize,
    /// Bytes of all input and output tensors.
    pub bytes: usize,
    /// Time in ONNX Runtime.
    pub runtime: Duration,
    /// Time to build blocks and to split results.
    pub conversion: Duration,
    /// Time to measure errors.
    pub error: Duration,
    /// Time until a session was available; includes loading, if none was idle.
    pub wait: Duration,
}

/// A model over rows of features, block by block.
///
/// A row gives the same bits in any batch. Every run has a multiple of `ROW_MULTIPLE` rows, and the error is summed
/// here, in `f64`, in a fixed order. In a graph, the sums of `ReduceMean` differed between batch sizes.
#[derive(Debug)]
pub struct Scoring<'a> {
    model: &'a Model,
    contract: &'a Contract,
    start: Start,
    inputs: Vec<&'a TensorSpec>,
    cells: Vec<Cells>,
    n: usize,
    valid: Option<NullBuffer>,
    block_rows: usize,
    fetched: Vec<Fetched<'a>>,
    /// The index in `fetched` of each requested role.
    kept: Vec<(Role, usize)>,
    measure: Option<Measure<'a>>,
    /// None if there are no rows.
    worker: Option<PooledWorker>,
    next: usize,
    /// Times and sizes so far.
    pub meter: Meter,
}

/// Runs a model over rows of features, or its decoder over rows of codes.
///
/// # Errors
/// A planning error if the model lacks an output, an execution error if the rows do not fit or a run fails.
pub fn score(model: &Model, start: Start, rows: &Rows, request: &Request, block_rows: Option<usize>) -> Result<Scores> {
    let mut scoring = Scoring::new(model, start, rows, request, block_rows, None)?;
    while scoring.step()? {}
    Ok(scoring.finish()?.0)
}

/// Computes every output of all functions, over a row of zeros, or another row that the graph takes.
///
/// # Errors
/// A planning or execution error if one of them fails.
pub fn verify(model: &Model) -> Result<()> {
    let contract = model.contract();
    let taken = Rows::taken(contract)?;
    let mut all = match contract.require_error().is_ok() {
        true => Request::error(),
        false => Request::default(),
    };
    for role in Role::ALL.into_iter().filter(|role| contract.tensor(*role).is_some()) {
        let one = Request::roles([role]);
        score(model, Start::Features, &taken, &one, None)?;
        all = all.and(&one);
    }
    score(model, Start::Features, &taken, &all, None)?;
    if contract.null_policy == NullPolicy::Impute {
        verify_impute(model)?;
    }
    if let Ok(entry) = contract.require_decoder() {
        let zeros: ArrayRef = Arc::new(Float32Array::from(vec![0.0; entry.width()]));
        let zeros = crate::matrix::list_array(zeros, entry.width(), None)?;
        let features = vec![crate::metadata::Feature::named(""); entry.width()];
        let codes = Rows::new(&[zeros], &features, 1)?;
        score(model, Start::Code, &codes, &Request::roles([Role::Reconstruction]), None)?;
    }
    Ok(())
}

/// Checks that the graph fills in missing features: a row of nulls gives numbers.
fn verify_impute(model: &Model) -> Result<()> {
    let contract = model.contract();
    let nulls: Vec<ArrayRef> = vec![new_null_array(&DataType::Null, 1); contract.features.len()];
    let rows = Rows::new(&nulls, &contract.features, 1)?;
    for role in [Role::Code, Role::Reconstruction].into_iter().filter(|role| contract.tensor(*role).is_some()) {
        let scores = score(model, Start::Features, &rows, &Request::roles([role]), None)?;
        let values = scores.matrix(role)?.to_f32();
        if values.as_primitive::<Float32Type>().values().iter().any(|value| value.is_nan()) {
            return plan_err!(
                "null_policy is impute, but the graph does not fill in missing features: the {role} of a row of NaN is \
                 NaN"
            );
        }
    }
    Ok(())
}

/// A tensor that the graph computes, and the memory for it.
#[derive(Debug)]
struct Fetched<'a> {
    tensor: &'a TensorSpec,
    /// All rows; one block if only the error needs the tensor.
    values: Numbers,
    is_kept: bool,
}

impl Fetched<'_> {
    /// Index in `values` of the row `start`.
    fn offset(&self, start: usize) -> usize {
        if self.is_kept { start * self.tensor.width() } else { 0 }
    }

    fn rows(&self, start: usize, rows: usize) -> Floats<'_> {
        let range = self.offset(start)..self.offset(start) + rows * self.tensor.width();
        match &self.values {
            Numbers::F32(values) => Floats::F32(&values[range]),
            Numbers::F64(values) => Floats::F64(&values[range]),
        }
    }
}

/// The tensors that the error compares: the original, if the graph computes it, and the reconstruction.
type Compared<'a> = (Option<&'a TensorSpec>, &'a TensorSpec);

/// The tensors of a request, each once, and the two that the error compares.
///
/// # Errors
/// A planning error if the model lacks one.
fn tensors<'a>(contract: &'a Contract, request: &Request) -> Result<(Vec<&'a TensorSpec>, Option<Compared<'a>>)> {
    let mut tensors = request.roles.iter().map(|role| contract.require(*role)).collect::<Result<Vec<_>>>()?;
    let compared = match request.error || request.parts {
        true => Some(contract.require_error()?),
        false => None,
    };
    tensors.extend(compared.iter().flat_map(|(original, reconstruction)| original.iter().chain([reconstruction])));
    // sorted: requests for the same outputs share their sessions
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    tensors.dedup();
    Ok((tensors, compared))
}

impl<'a> Scoring<'a> {
    /// Prepares the run; [`Scoring::step`] starts it. `worker` is that of a run of the same request.
    ///
    /// # Errors
    /// As [`score`].
    pub fn new(
        model: &'a Model,
        start: Start,
        rows: &Rows,
        request: &Request,
        block_rows: Option<usize>,
        worker: Option<PooledWorker>,
    ) -> Result<Self> {
        let begun = Instant::now();
        let contract = model.contract();
        let (inputs, cells, valid) = inputs(contract, start, rows)?;
        let n = rows.len();
        let padded_n = padded_rows(contract, n);
        let block_rows = model.block_rows(block_rows).min(padded_n.max(1));
        let (tensors, compared) = tensors(contract, request)?;
        let index = |tensor: &TensorSpec| tensors.iter().position(|other| *other == tensor).unwrap_or_default();
        let kept = request
            .roles
            .iter()
            .map(|role| Ok((*role, index(contract.require(*role)?))))
            .collect::<Result<Vec<_>>>()?;
        let measure = match compared {
            Some((from, to)) => {
                Some(Measure::new(contract, rows, from.map(index), index(to), request.error, request.parts)?)
            }
            None => None,
        };
        let fetched = |(index, tensor): (usize, &&'a TensorSpec)| {
            let is_kept = kept.iter().any(|(_, other)| *other == index);
            let rows = if is_kept { padded_n } else { 0 };
            Fetched { tensor, values: Numbers::zeros(tensor.element, rows * tensor.width()), is_kept }
        };
        let fetched: Vec<Fetched<'a>> = tensors.iter().enumerate().map(fetched).collect();
        let mut meter = Meter { conversion: begun.elapsed(), ..Meter::default() };
        let worker = match (n, worker) {
            (0, worker) | (_, worker @ Some(_)) => worker,
            _ => {
                let waiting = Instant::now();
                let worker = Pool::acquire(&model.pool(start, &tensors)?)?;
                meter.wait = waiting.elapsed();
                Some(worker)
            }
        };
        let mut scoring = Self {
            model,
            contract,
            start,
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

    /// Runs the next block; false if there is none.
    ///
    /// # Errors
    /// An execution error if it fails.
    pub fn step(&mut self) -> Result<bool> {
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
        worker.rows = worker.rows.max(padded);
        let begun = Instant::now();
        let mut inputs = Vec::with_capacity(self.cells.len());
        // without gaps, the values complete the block themselves
        let (filled, valid) = match (self.start, &self.contract.known_row) {
            (Start::Features, Some(_)) => (start..start + padded, None),
            _ => (rows.clone(), self.valid.as_ref()),
        };
        for (cells, block) in self.cells.iter().zip(&mut worker.blocks) {
            inputs.push(cells.block(filled.clone(), padded, valid, block)?);
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

    /// The scores, after all blocks ran, and the worker for the next run of the same request.
    ///
    /// # Errors
    /// An internal error.
    pub fn finish(mut self) -> Result<(Scores, Option<PooledWorker>)> {
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
            self.kept.iter().filter_map(|(role, index)| Some((*role, matrices[*index].clone()?))).collect();
        Ok((scores, self.worker.take()))
    }

    /// Moves the memory of the worker to the outputs that are not kept, one block for each.
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

/// The tensors at which a run starts.
fn sources(contract: &Contract, start: Start) -> Result<Vec<&TensorSpec>> {
    match start {
        Start::Features => Ok(contract.inputs.iter().collect()),
        Start::Code => Ok(vec![contract.require_decoder()?]),
    }
}

/// Rows with those that complete the last block.
fn padded_rows(contract: &Contract, rows: usize) -> usize {
    rows.next_multiple_of(contract.fixed_rows.unwrap_or(ROW_MULTIPLE))
}

/// The input tensors, their values, and the rows that have a result. If the graph refuses zeros, the values have no gaps,
/// and the rows that complete the last block.
fn inputs<'a>(
    contract: &'a Contract,
    start: Start,
    rows: &Rows,
) -> Result<(Vec<&'a TensorSpec>, Vec<Cells>, Option<NullBuffer>)> {
    match start {
        Start::Features => {
            let width = contract.features.len();
            let policy = contract.null_policy;
            let valid = rows.valid(policy, width);
            let filled = match contract.known_row {
                Some(_) => Some(rows.without_gaps(valid.as_ref(), padded_rows(contract, rows.len()), width)?),
                None => None,
            };
            let rows = filled.as_ref().unwrap_or(rows);
            let mut first = 0;
            let mut cells = Vec::with_capacity(contract.inputs.len());
            for input in &contract.inputs {
                cells.push(rows.cells(input, first, width, policy)?);
                first += input.width();
            }
            Ok((contract.inputs.iter().collect(), cells, valid))
        }
        Start::Code => {
            let entry = contract.require_decoder()?;
            let width = entry.width();
            let flat = TensorSpec { shape: vec![width], rows_per_row: 1, ..entry.clone() };
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
