//! Rows that a graph takes if it refuses zeros and empty texts: the categories of its own encoders.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, StringArray};

use super::{TensorSpec, Values};
use crate::numbers::f64_from_i64;
use crate::onnx::constants::Constants;
use crate::onnx::proto::{GraphProto, NodeProto};
use crate::runtime::Element;

/// Rows that are tried.
const TRIED: usize = 4;
/// Operators that keep the columns of a tensor.
const KEEP_COLUMNS: [&str; 7] = ["Identity", "Cast", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "StringNormalizer"];
/// Attributes of encoders with the texts or whole numbers that they know.
const CATEGORIES: [&str; 5] = ["cats_strings", "cats_int64s", "keys_strings", "keys_int64s", "classes_strings"];

/// A value that an encoder knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Known {
    /// A text.
    Text(String),
    /// A whole number.
    Whole(i64),
}

impl Known {
    /// One row of a column.
    pub(crate) fn array(&self) -> ArrayRef {
        match self {
            Self::Text(text) => Arc::new(StringArray::from(vec![text.as_str()])),
            Self::Whole(number) => Arc::new(Int64Array::from(vec![*number])),
        }
    }
}

/// The categories of each column of an input that its encoders know.
pub(crate) fn levels(graph: &GraphProto, input: &TensorSpec) -> Vec<Vec<Known>> {
    let constants = Constants::of(graph);
    let mut levels = vec![Vec::new(); input.width()];
    let mut seen: HashSet<&str> = HashSet::new();
    // a tensor, and the column of the input that it is
    let mut todo: Vec<(&str, Option<usize>)> = vec![(&input.name, None)];
    while let Some((name, column)) = todo.pop() {
        if !seen.insert(name) {
            continue;
        }
        for node in graph.node.iter().filter(|node| node.input.first().is_some_and(|input| input == name)) {
            let output = node.output.first().map(String::as_str).unwrap_or_default();
            let picked = || {
                let [place] = constants.numbers(node.input.get(1)?)?[..] else { return None };
                Some(crate::numbers::to_usize(crate::numbers::whole(place)?))
            };
            match node.op_type() {
                kind if KEEP_COLUMNS.contains(&kind) => todo.push((output, column)),
                "ArrayFeatureExtractor" | "Gather" if column.is_none() => {
                    todo.extend(picked().map(|place| (output, Some(place))));
                }
                "Split" if column.is_none() && node.output.len() == input.width() => {
                    todo.extend(node.output.iter().enumerate().map(|(place, output)| (output.as_str(), Some(place))));
                }
                _ => {
                    let found = categories(node, input.element);
                    let is_read = |place: usize| column.is_none_or(|column| column == place);
                    let read = levels.iter_mut().enumerate().filter(|(place, _)| is_read(*place));
                    read.for_each(|(_, levels)| levels.extend(found.iter().cloned()));
                }
            }
        }
    }
    levels
}

fn categories(node: &NodeProto, element: Element) -> Vec<Known> {
    let text =
        |text: &bytes::Bytes| Some(std::str::from_utf8(text).ok()?.to_owned()).filter(|text| !text.contains('\0'));
    let lists = node.attribute.iter().filter(|attribute| CATEGORIES.contains(&attribute.name()));
    let known = lists.flat_map(|attribute| -> Vec<Known> {
        match element {
            Element::String => attribute.strings.iter().filter_map(text).map(Known::Text).collect(),
            _ => attribute.ints.iter().copied().map(Known::Whole).collect(),
        }
    });
    known.collect()
}

/// Rows to try, each with a value for each feature. Row n has the category n of each column.
pub(super) fn candidates(graph: &GraphProto, inputs: &[TensorSpec]) -> Vec<Vec<Known>> {
    let columns: Vec<(Element, Vec<Known>)> = inputs
        .iter()
        .flat_map(|input| levels(graph, input).into_iter().map(|levels| (input.element, levels)))
        .collect();
    let value = |(element, levels): &(Element, Vec<Known>), row: usize| match (levels.len(), element) {
        (0, Element::String) => Known::Text("a".to_owned()),
        (0, _) => Known::Whole(i64::try_from(row).unwrap_or_default()),
        (n, _) => levels[row % n].clone(),
    };
    (0..TRIED).map(|row| columns.iter().map(|column| value(column, row)).collect()).collect()
}

/// A row of all inputs, `rows` times.
pub(super) fn repeated(inputs: &[TensorSpec], row: &[Known], rows: usize) -> Vec<Values> {
    let mut first = 0;
    let of_input = |input: &TensorSpec| {
        let known = row.get(first..first + input.width()).unwrap_or_default();
        first += input.width();
        values(input.element, &vec![known; rows].concat())
    };
    inputs.iter().map(of_input).collect()
}

/// Values of an input, row-major.
pub(crate) fn values(element: Element, known: &[Known]) -> Values {
    let number = |known: &Known| match known {
        Known::Whole(number) => f64_from_i64(*number),
        Known::Text(_) => 0.0,
    };
    let text = |known: &Known| match known {
        Known::Text(text) => text.clone(),
        Known::Whole(_) => String::new(),
    };
    let numbers: Vec<f64> = known.iter().map(number).collect();
    Values::of_numbers(element, &numbers).unwrap_or_else(|| Values::String(known.iter().map(text).collect()))
}
