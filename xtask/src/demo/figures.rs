//! Compares the demo's figures with `examples/demo/expected.json`, which `make_model.py` wrote.
//!
//! Its numbers are those of ONNX Runtime in Python, NumPy and scikit-learn, for the model that PyTorch trained.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::program::{Program, auroc};
use crate::{root, say};

const TABLE: &str = "'examples/demo/satimage-2.parquet'";

/// Relative difference of an error: a few roundings of f32, whose order the two implementations choose.
const ERROR_TOLERANCE: f64 = 1e-5;
/// Difference of an AUROC: two pairs of rows, of 71 anomalies and 3,440 normal rows, whose errors differ by a rounding.
const AUROC_TOLERANCE: f64 = 1e-5;
/// How much lower the AUROC of the trained model may be than the AUROC of PyTorch's model.
const TRAINED_TOLERANCE: f64 = 0.002;

/// What the program computed.
struct Figures {
    /// Of the model that PyTorch trained.
    auroc: f64,
    /// Ids and errors of the rows with the largest errors, in their order.
    top: Vec<(f64, f64)>,
    /// AUROC of the model that the demo trained.
    trained_auroc: f64,
}

/// Compares figures of the models in a store with the expected ones.
///
/// # Errors
/// If any differs, with all that do.
pub(super) fn compare(program: &Program, models: &Path) -> Result<()> {
    let file = root().join("examples/demo/expected.json");
    let text = std::fs::read_to_string(&file).with_context(|| format!("could not read {}", file.display()))?;
    let expected: Value = serde_json::from_str(&text).with_context(|| format!("could not read {}", file.display()))?;
    let number = |sql: &str| {
        let rows = program.numbers(models, sql)?;
        rows.first().and_then(|row| row.first()).copied().context("the query returned no number")
    };
    let rows = |name: &str| expected[name].as_str().with_context(|| format!("expected.json has no {name}"));
    let (auroc_rows, top_rows) = (rows("auroc_rows")?, rows("top10_rows")?);
    let top = format!(
        "SELECT id, error FROM (SELECT *, ae_error('torch') AS error FROM {TABLE} WHERE {top_rows})
         ORDER BY error DESC LIMIT 10"
    );
    let found = Figures {
        auroc: number(&auroc("torch", TABLE, auroc_rows))?,
        top: program.numbers(models, &top)?.iter().filter_map(|row| Some((*row.first()?, *row.get(1)?))).collect(),
        trained_auroc: number(&auroc("sat", TABLE, auroc_rows))?,
    };
    let differences = differences(&expected, &found)?;
    if !differences.is_empty() {
        bail!("the demo's figures differ from examples/demo/expected.json:\n{}", differences.join("\n"));
    }
    let auroc = found.auroc;
    say(&format!(
        "\nThe figures agree with those of PyTorch and scikit-learn (expected.json): AUROC {auroc:.6}, and ten errors."
    ))
}

fn differences(expected: &Value, found: &Figures) -> Result<Vec<String>> {
    let mut differences = Vec::new();
    let auroc = expected["auroc"].as_f64().context("expected.json has no auroc")?;
    let is_near = |found: f64, expected: f64, tolerance: f64| (found - expected).abs() <= tolerance;
    if !is_near(found.auroc, auroc, AUROC_TOLERANCE) {
        differences.push(format!("AUROC of satimage-2.onnx: expected {auroc}, got {}", found.auroc));
    }
    let least = auroc - TRAINED_TOLERANCE;
    if found.trained_auroc.is_nan() || found.trained_auroc < least {
        differences.push(format!(
            "AUROC of the model that was trained: expected {least} at least, got {}",
            found.trained_auroc
        ));
    }
    let top: Option<Vec<(f64, f64)>> = expected["top10"]
        .as_array()
        .and_then(|rows| rows.iter().map(|row| Some((row[0].as_f64()?, row[1].as_f64()?))).collect());
    let top = top.context("expected.json has no top10")?;
    if top.len() != found.top.len() {
        differences.push(format!("rows with the largest errors: expected {}, got {}", top.len(), found.top.len()));
    }
    for (i, ((id, error), (found_id, found_error))) in top.iter().zip(&found.top).enumerate() {
        if found_id.to_bits() != id.to_bits() || !is_near(*found_error, *error, ERROR_TOLERANCE * error) {
            let text = format!("row {} of the largest errors: expected id {id} with error {error}", i + 1);
            differences.push(format!("{text}, got id {found_id} with error {found_error}"));
        }
    }
    Ok(differences)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected() -> Value {
        serde_json::json!({"auroc": 0.99, "top10": [[7, 2.0], [3, 1.0]]})
    }

    fn figures() -> Figures {
        Figures { auroc: 0.990_001, top: vec![(7.0, 2.000_01), (3.0, 1.0)], trained_auroc: 0.9885 }
    }

    #[test]
    fn figures_within_the_tolerances_agree() {
        assert_eq!(differences(&expected(), &figures()).unwrap(), [""; 0]);
    }

    #[test]
    fn each_figure_that_differs_is_named() {
        let cases = [
            (Figures { auroc: 0.9901, ..figures() }, "AUROC of satimage-2.onnx: expected 0.99, got 0.9901"),
            (Figures { auroc: f64::NAN, ..figures() }, "AUROC of satimage-2.onnx: expected 0.99, got NaN"),
            (
                Figures { trained_auroc: 0.98, ..figures() },
                "AUROC of the model that was trained: expected 0.988 at least, got 0.98",
            ),
            (
                Figures { top: vec![(7.0, 2.1), (3.0, 1.0)], ..figures() },
                "row 1 of the largest errors: expected id 7 with error 2, got id 7 with error 2.1",
            ),
            (
                Figures { top: vec![(7.0, 2.0), (4.0, 1.0)], ..figures() },
                "row 2 of the largest errors: expected id 3 with error 1, got id 4 with error 1",
            ),
            (Figures { top: vec![(7.0, 2.0)], ..figures() }, "rows with the largest errors: expected 2, got 1"),
        ];
        for (found, difference) in cases {
            assert_eq!(differences(&expected(), &found).unwrap(), [difference]);
        }
    }
}
