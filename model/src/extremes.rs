//! Rows of extreme numbers. Some operators end the process over them: the remainder of the smallest integer by -1.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, StringArray};

use crate::matrix::Rows;
use crate::metadata::Role;
use crate::model::{Model, Start};
use crate::numbers::f64_from_usize;
use crate::random::Random;
use crate::runtime::Element;
use crate::score::{Request, score};

/// Rows of a run: enough for nearly all pairs of extremes of two features.
const ROWS: usize = 256;
/// Widest tensor of a graph that runs [`ROWS`] rows; wider graphs run fewer.
const WIDTH: usize = 4096;

/// Runs a model over rows of extreme numbers. Errors do not matter here: queries report them for their own rows.
pub(crate) fn run(model: &Model) {
    let contract = model.contract();
    let rows = if contract.widest <= WIDTH { ROWS } else { ROWS / 4 };
    let mut random = Random::new(0);
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(contract.features.len());
    for input in &contract.inputs {
        for _ in 0..input.width() {
            columns.push(column(input.element, rows, &mut random));
        }
    }
    let Ok(rows) = Rows::new(&columns, &contract.features, rows) else { return };
    let roles = Role::ALL.into_iter().filter(|role| contract.tensor(*role).is_some());
    let mut request = Request::roles(roles.collect::<Vec<_>>());
    if contract.require_error().is_ok() {
        request = request.and(&Request::parts());
    }
    drop(score(model, Start::Features, &rows, &request, None));
}

fn column(element: Element, rows: usize, random: &mut Random) -> ArrayRef {
    let extremes = extremes(element);
    let texts = ["", "a", "0"];
    match element {
        Element::String => Arc::new((0..rows).map(|_| Some(texts[random.below(texts.len())])).collect::<StringArray>()),
        _ => Arc::new((0..rows).map(|_| Some(extremes[random.below(extremes.len())])).collect::<Float64Array>()),
    }
}

/// Extreme numbers of a type, and those near 0.
fn extremes(element: Element) -> Vec<f64> {
    let of_bits = |bits: i32| [-f64_from_usize(2).powi(bits - 1), f64_from_usize(2).powi(bits - 2)];
    let large: Vec<f64> = match element {
        Element::Int8 => of_bits(8).into(),
        Element::Int16 => of_bits(16).into(),
        Element::Int32 => of_bits(32).into(),
        Element::Int64 => of_bits(64).into(),
        Element::UInt8 | Element::UInt16 | Element::UInt32 | Element::UInt64 | Element::Bool | Element::String => {
            return vec![0.0, 1.0];
        }
        Element::Float16 => vec![-65504.0, 65504.0],
        // graphs cast them to integers
        Element::Float32 | Element::Float64 => [of_bits(32), of_bits(64), [-1e30, 1e30]].concat(),
    };
    large.into_iter().chain([0.0, 1.0, -1.0]).collect()
}
