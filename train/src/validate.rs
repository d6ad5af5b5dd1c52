//! Compares the ONNX file with the network that it was made of, before the file is published.

use aefusion_udfs::model::Trial;
use aefusion_udfs::model::metadata::Role;
use datafusion::arrow::array::{ArrayRef, AsArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Float64Type};
use datafusion::common::internal_err;
use datafusion::error::Result;

use crate::design::{Design, Encoding};
use crate::export::Networks;
use crate::gradient::fill_missing;
use crate::split::Parts;

/// Largest root mean square difference of a tensor. Each difference is relative to the largest number of its row, or to
/// 1, because rounding depends on that.
const PARITY: f64 = 1e-5;

/// Largest difference of any one number.
const PARITY_OF_ONE: f64 = 1e-3;

/// Checks that ONNX Runtime computes from the file what the networks compute. It uses the parity rows of `parts` and the
/// first batch of calibration rows. `columns` are the features' columns in these batches.
///
/// # Errors
/// An internal error if it does not.
pub(crate) fn validate(
    trial: &Trial,
    networks: &Networks,
    design: &Design,
    columns: &[usize],
    parts: &Parts,
) -> Result<()> {
    let batches = parts.parity_rows.iter().chain(parts.calibration.first());
    for batch in batches {
        let inputs = parts.inputs(batch, columns);
        let mut scaled = Vec::new();
        design.encode(batch, columns, &mut scaled);
        fill_missing(&mut scaled, &design.fill());
        let rows = batch.num_rows();
        for (role, expected) in outputs(networks, &scaled, rows) {
            let found = trial.run(role, &inputs)?;
            compare(role, &found, &expected, &scaled, rows)?;
        }
        // the graph has NaN for a missing number
        let found = trial.run(Role::Scaled, &inputs)?;
        let filled: Vec<f32> =
            found.iter().zip(&scaled).map(|(found, own)| if found.is_nan() { *own } else { *found }).collect();
        compare(Role::Scaled, &filled, &scaled, &scaled, rows)?;
        compare_units(design, &trial.columns(Role::Reconstruction, &inputs)?, &networks.reconstruction(&scaled, rows))?;
    }
    Ok(())
}

/// Compares a reconstruction in the units of the features with that in the scaled space.
///
/// # Errors
/// An internal error if a number is another one, or if a text is not one of the most likely ones.
fn compare_units(design: &Design, found: &[ArrayRef], scaled: &[f32]) -> Result<()> {
    if found.len() != design.features.len() {
        return internal_err!(
            "the ONNX file reconstructs {} features, expected {}",
            found.len(),
            design.features.len()
        );
    }
    for (feature, found) in design.features.iter().zip(found) {
        let found = cast(found, &DataType::Float64)?;
        for (found, row) in found.as_primitive::<Float64Type>().values().iter().zip(scaled.chunks_exact(design.width)) {
            let row = &row[feature.first..];
            // a single number has 24 bits, and rounding in the network is as for the other tensors
            let (difference, size) = match &feature.encoding {
                Encoding::Number { mean, deviation, .. } => {
                    let expected = f64::from(row[0]) * deviation + mean;
                    ((found - expected).abs() / deviation, 1.0_f64.max(f64::from(row[0]).abs()))
                }
                Encoding::Category { levels, .. } => {
                    let levels = &row[..levels.len()];
                    let most = levels.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    let own = aefusion_udfs::numbers::whole(*found)
                        .and_then(|place| levels.get(usize::try_from(place).ok()?));
                    (own.map_or(f64::NAN, |own| f64::from(most - own)), 1.0_f64.max(f64::from(most).abs()))
                }
            };
            let rounding = match &feature.encoding {
                Encoding::Number { mean, deviation, is_double: false } => {
                    mean.abs() / deviation * f64::from(f32::EPSILON)
                }
                _ => 0.0,
            };
            if difference.is_nan() || difference > PARITY_OF_ONE * size + 4.0 * rounding {
                return internal_err!(
                    "the ONNX file and the trained network disagree on the reconstruction of column \"{}\"; no model was \
                     published: found {found}, which is {difference:.1e} deviations off",
                    feature.name
                );
            }
        }
    }
    Ok(())
}

impl Networks {
    /// The reconstruction of rows of the scaled space.
    fn reconstruction(&self, scaled: &[f32], rows: usize) -> Vec<f32> {
        self.decoder.run(rows, &self.encoder.run(rows, scaled))
    }
}

/// What the networks compute from rows of the scaled space.
fn outputs(Networks { encoder, decoder, head }: &Networks, scaled: &[f32], rows: usize) -> Vec<(Role, Vec<f32>)> {
    let code = encoder.run(rows, scaled);
    let mut outputs = vec![(Role::ScaledReconstruction, decoder.run(rows, &code))];
    outputs.extend(head.iter().map(|head| (Role::Logits, head.run(rows, &code))));
    outputs.push((Role::Code, code));
    outputs
}

fn compare(role: Role, found: &[f32], expected: &[f32], scaled: &[f32], rows: usize) -> Result<()> {
    if found.len() != expected.len() {
        return internal_err!("the ONNX file returns {} values for {role}, expected {}", found.len(), expected.len());
    }
    let differences = Differences::between(found, expected, scaled, rows);
    if !differences.are_rounding() {
        let Differences { mean, largest: (difference, found, expected) } = differences;
        return internal_err!(
            "the ONNX file and the trained network disagree on {role}; no model was published: the root mean square \
             difference is {mean:.1e}, at most {PARITY:e} is allowed; the largest difference is {difference:.1e} (found \
             {found}, expected {expected})"
        );
    }
    Ok(())
}

/// Differences between numbers found and expected, each relative to the largest number of its row.
#[derive(Debug, Clone, Copy)]
struct Differences {
    /// Root mean square.
    mean: f64,
    /// The largest difference, with the number found and the number expected.
    largest: (f64, f32, f32),
}

impl Differences {
    /// Whether rounding explains them. NaN is never rounding.
    fn are_rounding(&self) -> bool {
        self.mean <= PARITY && self.largest.0 <= PARITY_OF_ONE
    }

    /// Compares two tensors with as many rows as `inputs`. The inputs of a row count when its largest number is sought.
    fn between(found: &[f32], expected: &[f32], inputs: &[f32], rows: usize) -> Self {
        let width = |values: &[f32]| (values.len() / rows.max(1)).max(1);
        let size = |row: &[f32]| row.iter().fold(1.0_f32, |size, value| size.max(value.abs()));
        let mut largest = (0.0, 0.0, 0.0);
        let mut squares = 0.0;
        let outputs = found.chunks(width(found)).zip(expected.chunks(width(expected)));
        for ((found, expected), input) in outputs.zip(inputs.chunks(width(inputs))) {
            let size = f64::from(size(input).max(size(expected)));
            for (found, expected) in found.iter().zip(expected) {
                let difference = (f64::from(*found) - f64::from(*expected)).abs() / size;
                squares += difference * difference;
                if difference > largest.0 || difference.is_nan() {
                    largest = (difference, *found, *expected);
                }
            }
        }
        Self { mean: (squares / found.len().max(1) as f64).sqrt(), largest }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::Arc;

    use datafusion::arrow::array::Float64Array;

    use super::*;
    use crate::design::Feature;

    #[test]
    fn a_wrong_unit_or_text_is_found() {
        let feature = |name: &str, encoding, first| Feature {
            name: name.to_owned(),
            data_type: DataType::Float64,
            encoding,
            first,
        };
        let number = Encoding::Number { mean: 1.7e9, deviation: 1000.0, is_double: true };
        let levels = ["a", "b", "c"].map(str::to_owned).to_vec();
        let features =
            vec![feature("far", number, 0), feature("text", Encoding::Category { levels, places: Vec::new() }, 1)];
        let design = Design { features, width: 6 };
        let scaled = [0.5, 0.1, 0.8, 0.8, 0.9, 0.9, -2.0, 0.9, 0.0, 0.0, 0.0, 0.0];
        let check = |far: [f64; 2], texts: [f64; 2]| {
            let column = |values: [f64; 2]| -> ArrayRef { Arc::new(Float64Array::from(values.to_vec())) };
            compare_units(&design, &[column(far), column(texts)], &scaled)
        };
        let far = [1.7e9 + 500.0, 1.7e9 - 2000.0];
        // two texts are equally likely in the first row
        check(far, [1.0, 0.0]).unwrap();
        check(far, [2.0, 0.0]).unwrap();
        for (far, texts, column) in [
            ([1.7e9, far[1]], [1.0, 0.0], "far"),
            (far, [1.0, 2.0], "text"),
            (far, [3.0, 0.0], "text"),
            (far, [f64::NAN, 0.0], "text"),
        ] {
            let refused = check(far, texts).unwrap_err().to_string();
            assert!(refused.contains(&format!("the reconstruction of column \"{column}\"")), "{refused}");
        }
    }

    #[test]
    fn rounding_of_one_number_passes_and_a_wrong_number_does_not() {
        let (inputs, expected) = (vec![0.5_f32; 1000], vec![1.0_f32; 1000]);
        let passes = |found: &[f32]| Differences::between(found, &expected, &inputs, 100).are_rounding();
        let mut found = expected.clone();
        assert!(passes(&found));
        found[7] += 2e-5;
        assert!(passes(&found), "one number, off by the rounding of a sum of some hundred numbers");
        assert!(!passes(&vec![1.00002; 1000]), "all of them");
        found[7] = 1.01;
        assert!(!passes(&found), "one number, wrong");
        found[7] = f32::NAN;
        assert!(!passes(&found));
    }

    #[test]
    fn differences_are_relative_to_the_row() {
        let found = [1000.01, 0.5, 0.500_01, 0.5];
        let Differences { mean, largest } = Differences::between(&found, &[1000.0, 0.5, 0.5, 0.5], &[0.0; 4], 2);
        assert!((largest.0 - 1e-5).abs() < 1e-7);
        // two of 1e-5 among four numbers
        assert!((mean - (0.5_f64).sqrt() * 1e-5).abs() < 1e-7);
    }
}
