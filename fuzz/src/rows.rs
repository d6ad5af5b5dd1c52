//! The rows that every mutant gets.

use std::sync::Arc;

use aefusion_model::Model;
use aefusion_model::matrix::Rows;
use aefusion_model::onnx::proto::ModelProto;
use aefusion_model::runtime::Element;
use anyhow::Result;
use arrow::array::{ArrayRef, Float32Array, Float64Array, Int64Array, StringArray};
use prost::Message;

use crate::random::Random;

/// Rows of a mutant; more than two blocks of the smallest size, and no multiple of it.
pub const ROWS: usize = 40;
/// Texts of string inputs, if the graph has none of its own.
const TEXTS: [&str; 5] = ["a", "b", "DE", "FR", "0"];
/// Texts of the graph that are used.
const KNOWN: usize = 8;

/// How wide the range of the numbers is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Range {
    /// From tiny to 10^13.
    Wide,
    /// Normal numbers, and 0, 1 or 2 for whole numbers.
    Narrow,
}

/// The values of an input, row-major.
#[derive(Debug, Clone)]
pub enum Values {
    /// Numbers.
    Numbers(Vec<f64>),
    /// Texts.
    Texts(Vec<String>),
}

/// The values of every input of a model: `rows` rows of each.
pub fn values(model: &Model, range: Range) -> Vec<Values> {
    let mut random = Random::new(7, 0);
    let texts = known_texts(model);
    let mut one = |element: Element, width: usize| match element {
        Element::String => Values::Texts((0..ROWS * width).filter_map(|_| random.of(&texts)).collect()),
        _ => Values::Numbers((0..ROWS).flat_map(|row| numbers(element, width, row, range, &mut random)).collect()),
    };
    model.contract().inputs.iter().map(|input| one(input.element, input.width())).collect()
}

fn numbers(element: Element, width: usize, row: usize, range: Range, random: &mut Random) -> Vec<f64> {
    let is_narrow = range == Range::Narrow;
    let number = |random: &mut Random| match element {
        Element::Bool => {
            if random.one_in(2) {
                1.0
            } else {
                0.0
            }
        }
        Element::Float16 | Element::Float32 | Element::Float64 => match row % 20 {
            _ if is_narrow => random.normal(),
            10..=12 => 100.0 * random.normal(),
            13 => random.unit(),
            14 => 1e-3 * random.normal(),
            15 | 16 => whole(random, 4),
            17 => 0.0,
            18 => {
                if element == Element::Float16 {
                    10.0 * random.normal()
                } else {
                    1e6 * random.normal()
                }
            }
            19 => {
                if element == Element::Float16 {
                    30.0 * random.normal()
                } else {
                    3e12 * random.normal()
                }
            }
            _ => random.normal(),
        },
        _ => whole(random, if is_narrow || row < 20 { 3 } else { 101 }),
    };
    #[allow(clippy::cast_possible_truncation, reason = "columns are float32 unless the graph takes more")]
    let fitting = |number: f64| if element == Element::Float64 { number } else { f64::from(number as f32) };
    (0..width).map(|_| fitting(number(random))).collect()
}

fn whole(random: &mut Random, below: usize) -> f64 {
    f64::from(u8::try_from(random.below(below)).unwrap_or(0))
}

/// Texts in the attributes of the graph.
fn known_texts(model: &Model) -> Vec<String> {
    let own = ModelProto::decode(model.file().bytes()).ok().and_then(|file| file.graph);
    let mut texts: Vec<String> = Vec::new();
    if let Some(graph) = own {
        let lists = graph.node.iter().flat_map(|node| &node.attribute).flat_map(|attribute| &attribute.strings);
        let known = lists.filter_map(|text| std::str::from_utf8(text).ok()).filter(|text| !text.contains('\0'));
        texts.extend(known.take(KNOWN).map(str::to_owned));
    }
    if texts.is_empty() {
        texts = TEXTS.map(str::to_owned).to_vec();
    }
    texts
}

/// The values as rows of features; backwards on request.
///
/// # Errors
/// If the rows do not fit the model.
pub fn rows(model: &Model, values: &[Values], is_turned: bool) -> Result<Rows> {
    let contract = model.contract();
    let order: Vec<usize> = if is_turned { (0..ROWS).rev().collect() } else { (0..ROWS).collect() };
    let mut columns: Vec<ArrayRef> = Vec::new();
    for (input, values) in contract.inputs.iter().zip(values) {
        let width = input.width();
        for column in 0..width {
            let place = |row: &usize| row * width + column;
            columns.push(match values {
                Values::Texts(texts) => {
                    Arc::new(StringArray::from_iter_values(order.iter().map(|row| &texts[place(row)])))
                }
                Values::Numbers(numbers) => column_of(input.element, order.iter().map(|row| numbers[place(row)])),
            });
        }
    }
    Ok(Rows::new(&columns, &contract.features, ROWS)?)
}

#[allow(clippy::cast_possible_truncation, reason = "the numbers were drawn for the type")]
fn column_of(element: Element, numbers: impl Iterator<Item = f64>) -> ArrayRef {
    match element {
        Element::Float64 => Arc::new(Float64Array::from_iter_values(numbers)),
        Element::Float16 | Element::Float32 => {
            Arc::new(Float32Array::from_iter_values(numbers.map(|number| number as f32)))
        }
        _ => Arc::new(Int64Array::from_iter_values(numbers.map(|number| number as i64))),
    }
}
