//! The features that a reconstruction has: all of them, or those of some inputs. Others are conditions, masks, noise, or
//! unused.

use std::collections::HashSet;

use datafusion_common::error::Result;
use datafusion_common::plan_err;

use super::TensorSpec;
use super::names::plain;
use crate::metadata::Feature;
use crate::runtime::Element;

/// Parts of the names of reconstructions, lower case.
const RECONSTRUCTED: [&str; 15] = [
    "recon",
    "reconstruction",
    "reconstructed",
    "rec",
    "hat",
    "out",
    "output",
    "pred",
    "prediction",
    "predicted",
    "decoded",
    "decoder",
    "denoised",
    "probs",
    "new",
];

/// Names of inputs that nobody reconstructs, lower case.
const BESIDE: [&str; 15] = [
    "mask",
    "masks",
    "noise",
    "eps",
    "epsilon",
    "cond",
    "condition",
    "conditions",
    "context",
    "label",
    "labels",
    "weight",
    "weights",
    "id",
    "ids",
];

/// What a tensor reconstructs, as far as shapes and names show it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Match {
    /// The features of its columns, by index.
    Features(Vec<usize>),
    /// The features, but their numbers have another order in the input with this index.
    OtherOrder(usize),
    /// Not known.
    Unknown,
}

/// The features that a tensor reconstructs.
///
/// - all features, if the tensor is as wide as they are
/// - otherwise those of all inputs of numbers that it depends on, without the booleans, or only the floats among them
/// - otherwise those of the one input that is as wide as the tensor; a float input comes first. If several are, the
///   names decide: `x_hat` reconstructs `x`, and nothing reconstructs `mask`.
pub(super) fn match_inputs(tensor: &TensorSpec, inputs: &[TensorSpec], is_read: impl Fn(&str) -> bool) -> Match {
    let width = tensor.width();
    let all: Vec<usize> = (0..inputs.len()).collect();
    if width == width_of(inputs, &all) {
        return match inputs {
            [input] if !same_order(&input.shape, &tensor.shape) => Match::OtherOrder(0),
            _ => Match::Features(columns(inputs, &all)),
        };
    }
    let is_number = |place: &usize| inputs[*place].element != Element::String && is_read(&inputs[*place].name);
    let read: Vec<usize> = all.into_iter().filter(is_number).collect();
    let with = |places: &[usize], is_wanted: &dyn Fn(&TensorSpec) -> bool| -> Vec<usize> {
        places.iter().copied().filter(|place| is_wanted(&inputs[*place])).collect()
    };
    let no_flags = |places: &[usize]| with(places, &|input| input.element != Element::Bool);
    let floats = |places: &[usize]| with(places, &|input| input.element.is_float());
    let data = with(&read, &|input| !BESIDE.contains(&plain(&input.name).as_str()));
    for places in [&read, &no_flags(&read), &floats(&read), &data, &no_flags(&data), &floats(&data)] {
        if !places.is_empty() && width == width_of(inputs, places) {
            return found(tensor, inputs, places);
        }
    }
    let named = with(&read, &|input| is_named_after(&tensor.name, input));
    for places in [floats(&read), no_flags(&read), read, named, floats(&data), data] {
        let wide: Vec<usize> = places.into_iter().filter(|place| inputs[*place].width() == width).collect();
        if let [_] = wide.as_slice() {
            return found(tensor, inputs, &wide);
        }
    }
    Match::Unknown
}

fn found(tensor: &TensorSpec, inputs: &[TensorSpec], places: &[usize]) -> Match {
    match places {
        [only] if !same_order(&inputs[*only].shape, &tensor.shape) => Match::OtherOrder(*only),
        _ => Match::Features(columns(inputs, places)),
    }
}

fn width_of(inputs: &[TensorSpec], places: &[usize]) -> usize {
    places.iter().map(|place| inputs[*place].width()).sum()
}

/// The features of some inputs, by index.
fn columns(inputs: &[TensorSpec], places: &[usize]) -> Vec<usize> {
    let mut first = 0;
    let mut columns = Vec::new();
    for (place, input) in inputs.iter().enumerate() {
        if places.contains(&place) {
            columns.extend(first..first + input.width());
        }
        first += input.width();
    }
    columns
}

/// For each input, the only output with its name, if there is one.
pub(super) fn heads(outputs: &[&str], inputs: &[TensorSpec]) -> Vec<String> {
    let head = |input: &TensorSpec| {
        let mut named = outputs.iter().filter(|output| is_named_after(output, input));
        named.next().filter(|_| named.next().is_none()).map(|output| (*output).to_owned())
    };
    inputs.iter().filter(|input| input.element != Element::String).filter_map(head).collect()
}

/// The features of the inputs that tensors are named after, one each; none if a tensor is not.
pub(super) fn inputs_of_heads(heads: &[String], inputs: &[TensorSpec]) -> Option<Vec<usize>> {
    let mut taken = Vec::new();
    let mut features = Vec::new();
    for head in heads {
        let place = inputs.iter().position(|input| is_named_after(head, input))?;
        if taken.contains(&place) {
            return None;
        }
        taken.push(place);
        features.extend(columns(inputs, &[place]));
    }
    Some(features)
}

/// Whether a tensor has the name of an input, but for parts of [`RECONSTRUCTED`].
fn is_named_after(tensor: &str, input: &TensorSpec) -> bool {
    let (name, input) = (plain(tensor), plain(&input.name));
    let is_word = |part: &&str| !part.is_empty() && !RECONSTRUCTED.contains(part);
    let words = |name: &str| name.split(['_', '-', '.']).filter(is_word).collect::<Vec<_>>().join("_");
    name != input && (words(&name) == words(&input) || name == format!("{input}hat"))
}

/// The features with these names.
///
/// # Errors
/// A planning error if their number is not `width`, or one is unknown, a string, or named twice.
pub(super) fn named(
    names: &[String],
    width: usize,
    features: &[Feature],
    inputs: &[TensorSpec],
    tensor: &TensorSpec,
) -> Result<Vec<usize>> {
    if names.len() != width {
        return plan_err!(
            "reconstruction {tensor} has {width} numbers a row, but reconstruction_features names {} features",
            names.len()
        );
    }
    let elements: Vec<Element> =
        inputs.iter().flat_map(|input| std::iter::repeat_n(input.element, input.width())).collect();
    let mut found: Vec<usize> = Vec::with_capacity(width);
    for name in names {
        let Some(place) = features.iter().position(|feature| feature.name == *name) else {
            let known = features.iter().map(|feature| feature.name.as_str());
            return plan_err!(
                "reconstruction_features names \"{name}\", which is no feature{}",
                crate::suggest::hint(name, known)
            );
        };
        if found.contains(&place) {
            return plan_err!("reconstruction_features names \"{name}\" twice");
        }
        if elements.get(place) == Some(&Element::String) && names.len() < features.len() {
            return plan_err!(
                "reconstruction_features names \"{name}\", which is a string; compare strings by the options scaled and \
                 scaled_reconstruction"
            );
        }
        found.push(place);
    }
    Ok(found)
}

/// Whether rows of two shapes have their numbers in one order. Both have equally many numbers. One shape then joins
/// neighbouring axes of the other, as `[64, 3]` or `[192]` do with `[8, 8, 3]`.
pub(super) fn same_order(a: &[usize], b: &[usize]) -> bool {
    let ends = |shape: &[usize]| {
        let mut end = 1;
        let ends = shape.iter().rev().map(|dim| {
            end *= *dim;
            end
        });
        // axes of one number do not matter
        ends.filter(|end| *end > 1).collect::<HashSet<usize>>()
    };
    let (a, b) = (ends(a), ends(b));
    a.is_subset(&b) || b.is_subset(&a)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, element: Element, shape: &[usize]) -> TensorSpec {
        TensorSpec { name: name.to_owned(), element, rows_per_row: 1, shape: shape.to_vec() }
    }

    #[test]
    fn joined_axes_keep_the_order_and_turned_axes_do_not() {
        for (a, b) in
            [(&[8, 8, 3][..], &[64, 3][..]), (&[8, 8, 3], &[192]), (&[1, 8, 8], &[8, 8, 1]), (&[12, 1], &[4, 3])]
        {
            assert!(same_order(a, b) && same_order(b, a), "{a:?} {b:?}");
        }
        for (a, b) in [(&[3, 8, 8][..], &[8, 8, 3][..]), (&[4, 6], &[6, 4]), (&[3, 64], &[8, 8, 3])] {
            assert!(!same_order(a, b) && !same_order(b, a), "{a:?} {b:?}");
        }
    }

    #[test]
    fn widths_then_types_then_names_find_the_reconstructed_inputs() {
        let (float, whole) = (Element::Float32, Element::Int64);
        let x = |n: usize| tensor("x", float, &[n]);
        let found = |features: std::ops::Range<usize>| Match::Features(features.collect());
        type Case<'a> = (&'a str, Vec<TensorSpec>, &'a [&'a str], &'a [usize], Match);
        let cases: Vec<Case<'_>> = vec![
            ("y", vec![x(4), tensor("c", float, &[3])], &["x", "c"], &[7], found(0..7)),
            ("y", vec![x(4), tensor("c", float, &[3])], &["x", "c"], &[4], found(0..4)),
            ("y", vec![tensor("c", float, &[3]), x(4)], &["x", "c"], &[4], found(3..7)),
            ("y", vec![x(4), tensor("mask", Element::Bool, &[4])], &["x", "mask"], &[4], found(0..4)),
            ("y", vec![x(4), tensor("mask", float, &[4])], &["x", "mask"], &[4], found(0..4)),
            ("y", vec![x(4), tensor("m", float, &[4])], &["x", "m"], &[4], Match::Unknown),
            ("x_hat", vec![x(4), tensor("m", float, &[4])], &["x", "m"], &[4], found(0..4)),
            ("recon_m", vec![x(4), tensor("m", float, &[4])], &["x", "m"], &[4], found(4..8)),
            ("y", vec![x(4), tensor("m", float, &[4])], &["x"], &[4], found(0..4)),
            ("y", vec![x(1), tensor("a", whole, &[1]), tensor("id", whole, &[1])], &["x", "a"], &[2], found(0..2)),
            (
                "y",
                vec![x(1), tensor("a", whole, &[1]), tensor("id", whole, &[1])],
                &["x", "a", "id"],
                &[2],
                found(0..2),
            ),
            ("y", vec![x(1), tensor("s", Element::String, &[1]), tensor("a", float, &[])], &["x", "s", "a"], &[2], {
                Match::Features(vec![0, 2])
            }),
            ("y", vec![x(2), tensor("a", float, &[3])], &["x", "a"], &[4], Match::Unknown),
            ("y", vec![tensor("x", float, &[3, 2, 2]), x(1)], &["x"], &[2, 2, 3], Match::OtherOrder(0)),
        ];
        for (name, inputs, read, shape, expected) in cases {
            let output = tensor(name, float, shape);
            let found = match_inputs(&output, &inputs, |name| read.contains(&name));
            assert_eq!(found, expected, "{output} of {inputs:?}");
        }
    }
}
