//! What becomes of a training: the file, checked against the network, calibrated, and what a person is told.

use aefusion_udfs::model::calibration::Calibration;
use aefusion_udfs::model::metadata::{Classes, Metadata, NullPolicy, Role, Statistics, Training};
use aefusion_udfs::model::store::ModelName;
use aefusion_udfs::model::{Limits, Trial};
use bytes::Bytes;
use datafusion::arrow::array::RecordBatch;
use datafusion::common::internal_err;
use datafusion::error::{DataFusionError, Result};
use prost::Message;
use serde_json::{Value, json};

use super::design::Design;
use super::export::{Networks, export};
use super::fit::{Wish, evaluate};
use super::gradient::{Loss, Objective, fill_missing};
use super::pca::Axes;
use super::recipe::{Recipe, Trained};
use super::rows::Parts;
use super::start::Stored;
use super::table::{Known, Table};

/// How far the file may be from the network: root mean square over the numbers of a tensor. Each is relative to the
/// largest number of its row, or to 1, since that is what rounding depends on.
const PARITY: f64 = 1e-5;

/// How far any one number may be.
const PARITY_OF_ONE: f64 = 1e-3;

/// Beyond this many columns, principal axes take longer than the training.
const MOST_PCA_COLUMNS: usize = 512;

/// Rows from which the principal axes are taken.
const PCA_ROWS: usize = 100_000;

/// What columns were like.
pub(super) fn statistics(table: &Table, columns: &[usize]) -> Vec<Statistics> {
    let one = |column: &usize| match &table.columns[*column].known {
        Known::Numbers(numbers) => Statistics {
            count: numbers.given as u64,
            nulls: numbers.nulls as u64,
            mean: Some(numbers.mean()),
            deviation: Some(numbers.deviation()),
            min: Some(numbers.min),
            max: Some(numbers.max),
            ..Statistics::default()
        },
        Known::Texts(texts) => Statistics {
            count: (table.rows - texts.nulls) as u64,
            nulls: texts.nulls as u64,
            levels: Some(texts.names.len() as u64),
            mode: texts.by_frequency().first().map(|number| texts.names[*number as usize].to_string()),
            ..Statistics::default()
        },
    };
    columns.iter().map(one).collect()
}

/// A training that has ended.
#[derive(Debug)]
pub(super) struct Finished<'a> {
    pub(super) recipe: Recipe<'a>,
    pub(super) design: &'a Design,
    /// The features' columns in the batches of the parts.
    pub(super) columns: &'a [usize],
    pub(super) parts: &'a Parts,
    pub(super) trained: Trained,
    /// That of the model whose errors these still are.
    pub(super) calibration: Option<&'a Calibration>,
    pub(super) statistics: Vec<Statistics>,
    pub(super) classes: Option<Classes>,
}

impl Finished<'_> {
    /// The file that is published.
    ///
    /// # Errors
    /// An internal error if ONNX Runtime does not compute what was trained; an execution error if rows cannot be measured.
    pub(super) fn file(mut self, name: &ModelName, limits: &Limits) -> Result<Bytes> {
        let (statistics, classes) = (std::mem::take(&mut self.statistics), self.classes.take());
        let networks = &self.trained.networks;
        let config = self.recipe.config;
        let mut told = config.told.clone();
        told.insert("hidden_units".to_owned(), json!(self.recipe.hidden_units));
        let metadata = Metadata {
            error_metric: Some(config.error_metric),
            null_policy: Some(NullPolicy::Impute),
            contamination: Some(config.contamination),
            statistics: Some(statistics),
            classes,
            training: Some(Training {
                options: told,
                history: self.trained.history.clone(),
                network: serde_json::to_value(Stored::of(self.design, networks)).map_err(external)?,
                ..Training::default()
            }),
            ..Metadata::default()
        };
        let mut model = export(name.as_str(), self.design, networks, metadata)?;
        self.recipe.rounds.check()?;
        let trial = Trial::load(name, model.encode_to_vec().into(), limits)?;
        self.compare(&trial)?;
        let mut metadata = trial.model().metadata().clone();
        metadata.calibration = self.calibrate(&trial)?;
        self.recipe.rounds.check()?;
        let summary = self.summary(metadata.calibration.as_ref())?;
        if let Some(training) = &mut metadata.training {
            training.summary = summary.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        }
        metadata.write(&mut model)?;
        self.recipe.rounds.watch.finished(&summary);
        Ok(model.encode_to_vec().into())
    }

    /// That ONNX Runtime computes what was trained.
    fn compare(&self, trial: &Trial) -> Result<()> {
        let batches = self.parts.some.iter().chain(self.parts.calibration.first());
        for batch in batches {
            self.compare_batch(trial, batch)?;
        }
        Ok(())
    }

    fn compare_batch(&self, trial: &Trial, batch: &RecordBatch) -> Result<()> {
        let Networks { encoder, decoder, head } = &self.trained.networks;
        let inputs = self.parts.inputs(batch, self.columns);
        let mut scaled = Vec::new();
        self.design.encode(batch, self.columns, &mut scaled);
        fill_missing(&mut scaled, &self.design.fill());
        let rows = batch.num_rows();
        let code = encoder.run(rows, &scaled);
        let mut expected = vec![(Role::ScaledReconstruction, decoder.run(rows, &code))];
        expected.extend(head.iter().map(|head| (Role::Logits, head.run(rows, &code))));
        expected.push((Role::Code, code));
        for (role, expected) in expected {
            let found = trial.run(role, &inputs)?;
            if found.len() != expected.len() {
                return internal_err!("the file gives {} numbers as the {role}, not {}", found.len(), expected.len());
            }
            let differences = Differences::between(&found, &expected, &scaled, rows);
            if !differences.are_rounding() {
                let Differences { mean, largest: (difference, found, expected) } = differences;
                return internal_err!(
                    "the file computes another {role} than the trained network, and is not published: {mean:.1e} off in the \
                     root mean square, at most {PARITY:e} allowed; farthest, by {difference:.1e}, is {found} for {expected}"
                );
            }
        }
        Ok(())
    }

    fn calibrate(&self, trial: &Trial) -> Result<Option<Calibration>> {
        if let Some(calibration) = self.calibration {
            return Ok(Some(calibration.clone()));
        }
        let mut errors: Vec<f64> = Vec::new();
        for batch in &self.parts.calibration {
            errors.extend(trial.errors(&self.parts.inputs(batch, self.columns))?.iter().flatten());
        }
        if errors.is_empty() { Ok(None) } else { Calibration::of(errors).map(Some) }
    }

    /// What came out, by name, in the order in which it is told.
    fn summary(&self, calibration: Option<&Calibration>) -> Result<Vec<(&'static str, Value)>> {
        let Networks { encoder, decoder, head } = &self.trained.networks;
        let seed = self.recipe.config.fit.seed;
        // of rows that were not trained on, if there are any
        let (measured, error, accuracy) = match self.parts.held_out.len() {
            0 => (&self.parts.train, "training_error", "training_accuracy"),
            _ => (&self.parts.held_out, "held_out_error", "held_out_accuracy"),
        };
        let mut summary = vec![
            ("shape", json!(shape(&self.trained.networks))),
            ("rows", json!(self.parts.train.len())),
            ("held_out_rows", json!(self.parts.held_out.len())),
            ("calibration_rows", json!(calibration.map_or(0, |calibration| calibration.rows))),
            ("epochs", json!(self.trained.history.len())),
        ];
        if let Some(best) = self.trained.history.iter().rfind(|epoch| epoch.is_best) {
            summary.push(("loss", json!(best.loss)));
        }
        let network = encoder.then(decoder);
        let plain = |network: &super::network::Network, loss| Objective::plain(loss, 0..network.layers().len());
        let squared = Loss::Reconstruction { of: 0, absolute: false };
        if let Some(evaluation) = evaluate(&network, &plain(&network, squared), measured, seed)? {
            summary.push((error, json!(evaluation.loss)));
        }
        let axes = match self.design.width <= MOST_PCA_COLUMNS {
            true => Axes::of(&self.parts.train, encoder.outputs().min(self.design.width), PCA_ROWS)?,
            false => Axes::mean_alone(&self.parts.train)?,
        };
        let floors = axes.floors(measured)?;
        summary.push(("mean_only_error", json!(floors.mean_only)));
        // a code as wide as the rows has none
        if (1..self.design.width).contains(&axes.axes.len()) {
            summary.push(("pca_error", json!(floors.pca)));
        }
        if let Some(head) = head {
            let classifier = encoder.then(head);
            let objective = plain(&classifier, Loss::CrossEntropy);
            if let Some(evaluation) = evaluate(&classifier, &objective, measured, seed)? {
                summary.push((accuracy, json!(evaluation.accuracy)));
            }
        }
        if let Some(calibration) = calibration {
            let contamination = self.recipe.config.contamination;
            summary.push(("threshold", json!(calibration.threshold(contamination))));
            if let Some(wanted) = calibration.rows_wanted(contamination) {
                summary.push(("calibration_rows_wanted", json!(wanted)));
            }
        }
        if self.recipe.rounds.watch.wish() == Wish::Finish {
            summary.push(("interrupted", json!(true)));
        }
        Ok(summary)
    }
}

/// How far numbers are from those expected, relative to the largest of their row.
#[derive(Debug, Clone, Copy)]
struct Differences {
    /// Root mean square.
    mean: f64,
    /// The largest: itself, the number found, the number expected.
    largest: (f64, f32, f32),
}

impl Differences {
    /// Whether they are no larger than what rounding makes; not if one is not a number.
    fn are_rounding(&self) -> bool {
        self.mean <= PARITY && self.largest.0 <= PARITY_OF_ONE
    }

    /// Between two tensors of as many rows as `inputs`, which also tells how large the numbers of a row are.
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

/// `36-24-6-24-36`
fn shape(networks: &Networks) -> String {
    let widths = |network: &super::network::Network| -> Vec<String> {
        network.layers().iter().map(|layer| layer.outputs.to_string()).collect()
    };
    let mut all = vec![networks.encoder.inputs().to_string()];
    all.extend(widths(&networks.encoder));
    all.extend(widths(&networks.decoder));
    match &networks.head {
        None => all.join("-"),
        Some(head) => format!("{}, head {}", all.join("-"), widths(head).join("-")),
    }
}

fn external(error: serde_json::Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_of_one_number_is_no_difference_and_a_wrong_number_is() {
        let (inputs, expected) = (vec![0.5_f32; 1000], vec![1.0_f32; 1000]);
        let passes = |found: &[f32]| Differences::between(found, &expected, &inputs, 100).are_rounding();
        let mut found = expected.clone();
        assert!(passes(&found));
        found[7] += 2e-5;
        assert!(passes(&found), "one number, off by what a sum of some hundred numbers may lose");
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
