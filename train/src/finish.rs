//! The end of a training: the file is exported, compared with the network, calibrated and summarised.

use aefusion_udfs::model::calibration::Calibration;
use aefusion_udfs::model::metadata::{Classes, Metadata, NullPolicy, Statistics, Training};
use aefusion_udfs::model::{Limits, Trial};
use aefusion_udfs::store::ModelName;
use bytes::Bytes;
use datafusion::error::{DataFusionError, Result};
use prost::Message;
use serde_json::json;

use crate::design::Design;
use crate::export::export;
use crate::ingest::{Profile, Table};
use crate::recipe::{Recipe, Trained};
use crate::rule::Rule;
use crate::split::Parts;
use crate::summary::{Summary, summary};
use crate::validate::validate;
use crate::warm_start::Stored;

/// The statistics of columns, as the file records them.
pub(crate) fn statistics(table: &Table, columns: &[usize]) -> Vec<Statistics> {
    let one = |column: &usize| match &table.columns[*column].profile {
        Profile::Numbers(numbers) => Statistics {
            count: numbers.given as u64,
            nulls: numbers.nulls as u64,
            mean: Some(numbers.mean()),
            deviation: Some(numbers.deviation()),
            min: Some(numbers.min),
            max: Some(numbers.max),
            ..Statistics::default()
        },
        Profile::Texts(texts) => Statistics {
            count: (table.rows - texts.nulls) as u64,
            nulls: texts.nulls as u64,
            levels: Some(texts.names.len() as u64),
            mode: texts.by_frequency().first().map(|number| texts.names[*number as usize].to_string()),
            ..Statistics::default()
        },
    };
    columns.iter().map(one).collect()
}

/// A training whose networks are fitted.
#[derive(Debug)]
pub(crate) struct Finished<'a> {
    pub(crate) recipe: Recipe<'a>,
    pub(crate) design: &'a Design,
    /// The features' columns in the batches of the parts.
    pub(crate) columns: &'a [usize],
    pub(crate) parts: &'a Parts,
    pub(crate) rule: &'a Rule,
    pub(crate) trained: Trained,
    /// The calibration of the base model, if its errors did not change.
    pub(crate) calibration: Option<&'a Calibration>,
    pub(crate) statistics: Vec<Statistics>,
    pub(crate) classes: Option<Classes>,
}

impl Finished<'_> {
    /// The file to publish, and its summary.
    ///
    /// # Errors
    /// An internal error if ONNX Runtime computes other results from the file than the networks give. An execution error
    /// if rows cannot be read back, or if the training was aborted.
    pub(crate) fn file(mut self, name: &ModelName, limits: &Limits) -> Result<(Bytes, Summary)> {
        let (statistics, classes) = (std::mem::take(&mut self.statistics), self.classes.clone());
        let networks = &self.trained.networks;
        let config = self.recipe.config;
        let mut recorded = config.recorded.clone();
        recorded.insert("hidden_units".to_owned(), json!(self.recipe.hidden_units));
        let metadata = Metadata {
            error_metric: Some(config.error_metric),
            null_policy: Some(NullPolicy::Impute),
            contamination: Some(config.contamination),
            statistics: Some(statistics),
            classes,
            training: Some(Training {
                options: recorded,
                history: self.trained.history.clone(),
                network: serde_json::to_value(Stored::of(self.design, networks, self.rule)).map_err(external)?,
                ..Training::default()
            }),
            ..Metadata::default()
        };
        let mut model = export(name.as_str(), self.design, networks, metadata)?;
        self.recipe.context.check()?;
        let trial = Trial::load(name, model.encode_to_vec().into(), limits)?;
        validate(&trial, networks, self.design, self.columns, self.parts)?;
        let mut metadata = trial.model().metadata().clone();
        metadata.calibration = self.calibrate(&trial)?;
        self.recipe.context.check()?;
        let summary = summary(&self, metadata.calibration.as_ref())?;
        if let Some(training) = &mut metadata.training {
            training.summary = summary.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        }
        metadata.write(&mut model)?;
        Ok((model.encode_to_vec().into(), summary))
    }

    /// The errors of the calibration rows, unless the base model's calibration still holds.
    fn calibrate(&self, trial: &Trial) -> Result<Option<Calibration>> {
        if let Some(calibration) = self.calibration {
            return Ok(Some(calibration.clone()));
        }
        let mut errors: Vec<f64> = Vec::new();
        for batch in &self.parts.calibration {
            self.recipe.context.check()?;
            errors.extend(trial.errors(&self.parts.inputs(batch, self.columns))?.iter().flatten());
        }
        if errors.is_empty() { Ok(None) } else { Calibration::of(errors).map(Some) }
    }
}

fn external(error: serde_json::Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}
