//! A mutant in this process: registered, then run by every function that it supports.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use aefusion_model::choice::Choice;
use aefusion_model::metadata::{Metadata, NullPolicy, Role};
use aefusion_model::name::ModelName;
use aefusion_model::registration::{Registration, Source};
use aefusion_model::score::{Request, score};
use aefusion_model::{Limits, Model, Start};
use anyhow::Result;
use arrow::array::{ArrayRef, AsArray};
use arrow::datatypes::{DataType, Float32Type, Float64Type};
use serde::{Deserialize, Serialize};

use crate::rows::{ROWS, Range, Values, rows, values};

/// Widest tensor whose numbers are compared.
const WIDEST: usize = 4096;
/// Rows of the smaller blocks.
const BLOCK: usize = 16;

/// What became of a mutant.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Outcome {
    /// An error, and no model.
    Refused {
        /// Its text.
        why: String,
    },
    /// A panic.
    Panicked {
        /// Its text.
        why: String,
    },
    /// A model that gives no result for the rows.
    Unusable {
        /// The error of the first function.
        why: String,
    },
    /// A model that is too wide to compare.
    TooWide,
    /// A model, and its results.
    Accepted(Box<Results>),
}

/// The results of a model for the rows. Numbers are hexadecimal digits of their bits as float64.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Results {
    /// Rows.
    pub rows: usize,
    /// Rows of every run, if the graph fixes them.
    pub fixed_rows: Option<usize>,
    /// What went in.
    pub inputs: Vec<Input>,
    /// Tensors by role.
    pub tensors: Vec<Tensor>,
    /// The error.
    pub error: Option<Error>,
    /// The reconstruction of the codes, by the decoder alone.
    pub decoded: Option<String>,
    /// The largest difference of a row in other blocks, as a share of its largest number, and its place.
    pub blocks: Option<(f64, String)>,
    /// Functions that fail, with their errors.
    pub failed: Vec<String>,
}

/// An input of the graph.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Input {
    /// Name in the graph.
    pub name: String,
    /// Element type.
    pub element: String,
    /// Dimensions after the first.
    pub shape: Vec<usize>,
    /// Numbers.
    pub numbers: String,
    /// Texts, for strings.
    pub texts: Vec<String>,
}

/// A tensor with a role.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Tensor {
    /// Its role.
    pub role: String,
    /// Name in the graph.
    pub name: String,
    /// Element type.
    pub element: String,
    /// Numbers of a row.
    pub width: usize,
    /// Numbers of all rows.
    pub numbers: String,
}

/// The error of the rows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Error {
    /// `mse`, `mae` or `rmse`.
    pub metric: String,
    /// Whether missing values are left out.
    pub is_imputed: bool,
    /// The tensor that the graph computes from the features, if they are not compared themselves.
    pub original: Option<String>,
    /// The tensor that it is compared with.
    pub reconstruction: String,
    /// Numbers of all rows.
    pub numbers: String,
    /// 1 for each row with an error, 0 for others.
    pub valid: String,
}

/// Registers a file and runs its functions. A panic is an outcome.
pub fn run(bytes: &[u8]) -> Outcome {
    let bytes = bytes.to_vec();
    let work = move || catch_unwind(AssertUnwindSafe(|| run_here(bytes)));
    // a thread as large as those that register models in the program
    let result = std::thread::spawn(work).join().and_then(|result| result);
    result.unwrap_or_else(|panic| Outcome::Panicked { why: text(panic.as_ref()) })
}

fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without a text").to_owned()
}

fn run_here(bytes: Vec<u8>) -> Outcome {
    let model = match register(bytes) {
        Ok(model) => model,
        Err(e) => return Outcome::Refused { why: format!("{e:#}") },
    };
    let contract = model.contract();
    let tensors = Role::ALL.into_iter().filter_map(|role| contract.tensor(role));
    if contract.inputs.iter().chain(tensors).any(|tensor| tensor.width() > WIDEST) {
        return Outcome::TooWide;
    }
    let mut first = None;
    for range in [Range::Wide, Range::Narrow] {
        match results(&model, &values(&model, range)) {
            Ok(results) if !results.tensors.is_empty() => return Outcome::Accepted(Box::new(results)),
            Ok(results) => first = first.or(results.failed.first().cloned()),
            Err(e) => first = first.or(Some(format!("{e:#}"))),
        }
    }
    Outcome::Unusable { why: first.unwrap_or_else(|| "it has no tensor".to_owned()) }
}

/// What `CREATE MODEL` does before it stores the file.
fn register(bytes: Vec<u8>) -> Result<Model> {
    let registration = Registration {
        name: ModelName::new("m")?,
        version: 1,
        source: Source::File(bytes.into()),
        options: Metadata::default(),
        limits: Limits::default(),
    };
    Ok(registration.run()?)
}

fn results(model: &Model, values: &[Values]) -> Result<Results> {
    let contract = model.contract();
    let forwards = rows(model, values, false)?;
    let backwards = rows(model, values, true)?;
    let mut failed = Vec::new();
    let mut blocks = None;
    let mut tensors = Vec::new();
    let mut code: Option<Vec<f64>> = None;
    for (role, tensor) in Role::ALL.into_iter().filter_map(|role| Some((role, contract.tensor(role)?))) {
        let run = |rows: &_, block| -> Result<Vec<f64>> {
            let scores = score(model, Start::Features, rows, &Request::roles([role]), block)?;
            Ok(row_major(&scores.matrix(role)?.columns()))
        };
        let numbers = match run(&forwards, None) {
            Ok(numbers) => numbers,
            Err(e) => {
                failed.push(format!("{role}: {e:#}"));
                continue;
            }
        };
        let turned = run(&backwards, None).map(|numbers| turned(&numbers, tensor.width()));
        for (what, other) in [("in smaller blocks", run(&forwards, Some(BLOCK))), ("backwards", turned)] {
            blocks = worse(blocks, difference(&format!("{role} {what}"), tensor.width(), &numbers, other));
        }
        if role == Role::Code {
            code = Some(numbers.clone());
        }
        tensors.push(Tensor {
            role: role.name().to_owned(),
            name: tensor.name.clone(),
            element: format!("{:?}", tensor.element),
            width: tensor.width(),
            numbers: hex(&numbers),
        });
    }
    let error = contract.require_error().ok().and_then(|(original, reconstruction)| {
        let run = |rows: &_, block| score(model, Start::Features, rows, &Request::error(), block);
        let scores = match run(&forwards, None) {
            Ok(scores) => scores,
            Err(e) => {
                failed.push(format!("error: {e:#}"));
                return None;
            }
        };
        let small = run(&forwards, Some(BLOCK)).map(|scores| scores.error.to_vec());
        let turned = run(&backwards, None).map(|scores| turned(&scores.error, 1));
        for (what, other) in [("in smaller blocks", small), ("backwards", turned)] {
            let found = difference(&format!("error {what}"), 1, &scores.error, other.map_err(Into::into));
            blocks = worse(blocks.take(), found);
        }
        let is_valid = |row: usize| scores.valid_error.as_ref().is_none_or(|valid| valid.is_valid(row));
        Some(Error {
            metric: contract.error_metric.name().to_owned(),
            is_imputed: contract.null_policy == NullPolicy::Impute,
            original: original.map(|tensor| tensor.name.clone()),
            reconstruction: reconstruction.name.clone(),
            numbers: hex(&scores.error),
            valid: (0..ROWS).map(|row| if is_valid(row) { '1' } else { '0' }).collect(),
        })
    });
    let decoded = code.and_then(|code| decode(model, &code, &mut failed));
    let inputs = contract.inputs.iter().zip(values).map(|(input, values)| Input {
        name: input.name.clone(),
        element: format!("{:?}", input.element),
        shape: input.shape.clone(),
        numbers: if let Values::Numbers(numbers) = values { hex(numbers) } else { String::new() },
        texts: if let Values::Texts(texts) = values { texts.clone() } else { Vec::new() },
    });
    Ok(Results {
        rows: ROWS,
        fixed_rows: contract.fixed_rows,
        inputs: inputs.collect(),
        tensors,
        error,
        decoded,
        blocks,
        failed,
    })
}

/// The reconstruction by the decoder alone, if the codes lose nothing as numbers of SQL.
fn decode(model: &Model, code: &[f64], failed: &mut Vec<String>) -> Option<String> {
    let contract = model.contract();
    let entry = contract.require_decoder().ok()?;
    if !entry.element.is_float() || code.iter().any(|number| !number.is_finite()) {
        return None;
    }
    let width = entry.width();
    let columns: Vec<ArrayRef> = (0..width)
        .map(|column| -> ArrayRef {
            let numbers = code.iter().skip(column).step_by(width).copied();
            Arc::new(arrow::array::Float64Array::from_iter_values(numbers))
        })
        .collect();
    let features = vec![aefusion_model::metadata::Feature::named("code"); width];
    let run = || -> Result<Vec<f64>> {
        let rows = aefusion_model::matrix::Rows::new(&columns, &features, ROWS)?;
        let scores = score(model, Start::Code, &rows, &Request::roles([Role::Reconstruction]), None)?;
        Ok(row_major(&scores.matrix(Role::Reconstruction)?.columns()))
    };
    match run() {
        Ok(numbers) => Some(hex(&numbers)),
        Err(e) => {
            failed.push(format!("decode: {e:#}"));
            None
        }
    }
}

/// The largest difference of a row in two runs, as a share of its largest number.
fn difference(what: &str, width: usize, a: &[f64], b: Result<Vec<f64>>) -> Option<(f64, String)> {
    let b = match b {
        Ok(b) => b,
        Err(e) => return Some((f64::MAX, format!("{what}: {e:#}"))),
    };
    let same = |a: f64, b: f64| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
    let mut largest: Option<(f64, String)> = None;
    for (row, (a, b)) in a.chunks(width.max(1)).zip(b.chunks(width.max(1))).enumerate() {
        let size = a.iter().filter(|number| number.is_finite()).fold(f64::MIN_POSITIVE, |size, a| size.max(a.abs()));
        for (a, b) in a.iter().zip(b).filter(|(a, b)| !same(**a, **b)) {
            let share = ((a - b) / size).abs();
            let share = if share.is_finite() { share } else { f64::MAX };
            if largest.as_ref().is_none_or(|(other, _)| share > *other) {
                largest = Some((share, format!("{what}, row {row}: {a:e} and {b:e}")));
            }
        }
    }
    largest
}

/// The larger of two differences.
fn worse(a: Option<(f64, String)>, b: Option<(f64, String)>) -> Option<(f64, String)> {
    match (a, b) {
        (Some(a), Some(b)) => Some(if b.0 > a.0 { b } else { a }),
        (a, b) => a.or(b),
    }
}

fn turned(numbers: &[f64], width: usize) -> Vec<f64> {
    numbers.chunks(width.max(1)).rev().flatten().copied().collect()
}

fn row_major(columns: &[ArrayRef]) -> Vec<f64> {
    let number = |column: &ArrayRef, row: usize| match column.data_type() {
        DataType::Float64 => column.as_primitive::<Float64Type>().value(row),
        _ => f64::from(column.as_primitive::<Float32Type>().value(row)),
    };
    (0..ROWS).flat_map(|row| columns.iter().map(move |column| number(column, row))).collect()
}

fn hex(numbers: &[f64]) -> String {
    let mut text = String::with_capacity(numbers.len() * 16);
    for number in numbers {
        text.push_str(&format!("{:016x}", number.to_bits()));
    }
    text
}
