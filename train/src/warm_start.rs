//! Models to start a training from: their options, scales, layers and weights.

use std::sync::Arc;

use aefusion_udfs::catalog::Models;
use aefusion_udfs::choice::Choice;
use aefusion_udfs::config::AeOptions;
use aefusion_udfs::model::Model;
use aefusion_udfs::model::calibration::Calibration;
use aefusion_udfs::model::metadata::{Classes, ErrorMetric, Feature as FileFeature};
use aefusion_udfs::sql::{OptionValue, Options};
use aefusion_udfs::store::{ModelName, ModelRef};
use aefusion_udfs::suggest;
use datafusion::common::plan_err;
use datafusion::error::Result;
use serde::{Deserialize, Serialize};

use crate::activation::Activation;
use crate::config::{Config, OF_THE_BASE, current_name, rename};
use crate::design::{Design, Encoding, Feature};
use crate::export::{Networks, parameters};
use crate::ingest::{Profile, Table};
use crate::network::{Layer, Network};
use crate::rule::Rule;

/// Widest layer that is read from a file.
const WIDEST: usize = 1 << 20;

/// The description of a network in a file; its weights are in the graph.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Stored {
    /// One scale for each feature; none for a text feature.
    scales: Vec<Option<StoredScale>>,
    encoder: Vec<StoredLayer>,
    decoder: Vec<StoredLayer>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    head: Option<Vec<StoredLayer>>,
    /// How the rows were split. Files of earlier versions do not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rule: Option<Rule>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct StoredScale {
    mean: f64,
    deviation: f64,
    is_double: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredLayer {
    inputs: usize,
    outputs: usize,
    activation: String,
}

impl Stored {
    pub(crate) fn of(design: &Design, networks: &Networks, rule: &Rule) -> Self {
        let scale = |feature: &Feature| match feature.encoding {
            Encoding::Number { mean, deviation, is_double } => Some(StoredScale { mean, deviation, is_double }),
            Encoding::Category { .. } => None,
        };
        let layer = |layer: &Layer| StoredLayer {
            inputs: layer.inputs,
            outputs: layer.outputs,
            activation: layer.activation.to_string(),
        };
        let layers = |network: &Network| network.layers().iter().map(layer).collect();
        Self {
            scales: design.features.iter().map(scale).collect(),
            encoder: layers(&networks.encoder),
            decoder: layers(&networks.decoder),
            head: networks.head.as_ref().map(layers),
            rule: Some(rule.clone()),
        }
    }
}

/// Options that a warm start does not inherit. They belong to the network or to the split of the rows, name the model to
/// start from, or depend on the number of rows.
const NOT_INHERITED: [&str; 8] = [
    "model_type",
    "base_model",
    "head_units",
    "warm_start",
    "batch_size",
    "max_iterations",
    "split_by",
    "split_by_time",
];

/// With `warm_start`, inherits the options that are not given from the newest version of the model.
///
/// # Errors
/// A planning error if an option is inserted twice.
pub(crate) async fn inherit_options(
    options: &mut Options,
    models: &Models,
    name: &ModelName,
    settings: &AeOptions,
) -> Result<()> {
    if options.get("warm_start") != Some(&OptionValue::Boolean(true)) {
        return Ok(());
    }
    rename(options)?;
    let newest = ModelRef { name: name.clone(), version: None };
    // a missing model or another type is reported later, by `Base::find`
    let Ok(model) = models.find(&newest, &settings.limits()).await else { return Ok(()) };
    let Some(training) = &model.metadata().training else { return Ok(()) };
    if options.get("model_type").cloned() != training.options.get("model_type").and_then(option_value) {
        return Ok(());
    }
    let contract = model.contract();
    let current = [
        ("error_metric", Some(OptionValue::Text(contract.error_metric.name().to_owned()))),
        ("contamination", contract.contamination.map(OptionValue::Number)),
    ];
    let current = current.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
    let recorded =
        training.options.iter().filter_map(|(key, value)| Some((current_name(key).to_owned(), option_value(value)?)));
    for (key, value) in current.chain(recorded) {
        let is_inherited = !NOT_INHERITED.contains(&key.as_str()) && !OF_THE_BASE.contains(&key.as_str());
        if is_inherited && !options.contains(&key) {
            options.insert(key, value)?;
        }
    }
    Ok(())
}

fn option_value(recorded: &serde_json::Value) -> Option<OptionValue> {
    match recorded {
        serde_json::Value::String(text) => Some(OptionValue::Text(text.clone())),
        serde_json::Value::Bool(value) => Some(OptionValue::Boolean(*value)),
        serde_json::Value::Number(number) => match number.as_u64() {
            Some(whole) => Some(OptionValue::Whole(whole)),
            None => number.as_f64().map(OptionValue::Number),
        },
        serde_json::Value::Array(items) => {
            items.iter().map(option_value).collect::<Option<Vec<_>>>().map(OptionValue::List)
        }
        serde_json::Value::Null | serde_json::Value::Object(_) => None,
    }
}

/// A model to start from.
#[derive(Debug)]
pub(crate) struct Base {
    model: Arc<Model>,
    features: Vec<FileFeature>,
    scales: Vec<Option<StoredScale>>,
    pub(crate) networks: Networks,
    /// How the rows of the model were split; none if an earlier version trained it.
    pub(crate) rule: Option<Rule>,
}

impl Base {
    /// The model that the options name: `base_model`, or with `warm_start` the model to replace.
    ///
    /// # Errors
    /// A planning error if there is no such model, or if `CREATE MODEL … AS SELECT` did not train it.
    pub(crate) async fn find(
        models: &Models,
        name: &ModelName,
        config: &Config,
        settings: &AeOptions,
    ) -> Result<Option<Self>> {
        let named = config.classifier.as_ref().and_then(|classifier| classifier.base_model.as_deref());
        let (option, reference) = match (named, config.warm_start) {
            (Some(_), true) => {
                return plan_err!(
                    "options base_model and warm_start each name the model to start from; set one of them"
                );
            }
            (Some(base), false) => ("option base_model", ModelRef::parse(base)?),
            (None, true) => ("option warm_start", ModelRef { name: name.clone(), version: None }),
            (None, false) => return Ok(None),
        };
        let model = models.find(&reference, &settings.limits()).await.map_err(|e| e.context(option))?;
        let base = Self::read(&model).map_err(|e| e.context(option))?;
        if config.classifier.is_none() && base.networks.head.is_some() {
            return plan_err!(
                "{option}: model {model} is a classifier; set model_type = 'classifier' and input_label_cols, or leave \
                 warm_start out"
            );
        }
        Ok(Some(base))
    }

    /// The calibration of the model, if the error metric is the same.
    pub(crate) fn calibration(&self, metric: ErrorMetric) -> Option<&Calibration> {
        self.model.metadata().calibration.as_ref().filter(|_| self.model.contract().error_metric == metric)
    }

    /// The value of an option that its file records.
    pub(crate) fn recorded(&self, option: &str) -> Option<serde_json::Value> {
        self.model.metadata().training.as_ref()?.options.get(option).cloned()
    }

    /// Checks that the labels of a warm start are the classes of the model.
    ///
    /// # Errors
    /// A planning error if they differ.
    pub(crate) fn check_classes(&self, found: &Classes) -> Result<()> {
        match &self.model.metadata().classes {
            Some(classes) if classes.labels != found.labels => plan_err!(
                "option warm_start: model {} has the labels {}, but the query has {}; leave warm_start out, or set \
                 base_model = '{}' to train a new head",
                self.model,
                classes.labels.join(", "),
                found.labels.join(", "),
                self.model
            ),
            _ => Ok(()),
        }
    }

    fn read(model: &Arc<Model>) -> Result<Self> {
        let stored = model.metadata().training.as_ref().map(|training| training.network.clone());
        let Some(Ok(stored)) = stored.map(serde_json::from_value::<Stored>) else {
            return plan_err!(
                "model {model} was not trained by CREATE MODEL … AS SELECT, and its layers are unknown; start from one that was"
            );
        };
        let network = |name: &str, layers: &[StoredLayer]| -> Result<Network> {
            let is_wide = |width| !(1..=WIDEST).contains(width);
            if layers.is_empty() || layers.iter().flat_map(|layer| [&layer.inputs, &layer.outputs]).any(is_wide) {
                return plan_err!("model {model}: its {name} has no layers, or a layer wider than {WIDEST}");
            }
            let layer = |stored: &StoredLayer| {
                let activation = Activation::parse("activation", &stored.activation)?;
                Ok(Layer { inputs: stored.inputs, outputs: stored.outputs, activation })
            };
            let layers = layers.iter().map(layer).collect::<Result<Vec<_>>>()?;
            let parameters = parameters(&model.file().bytes(), name, &layers)?;
            match Network::of(layers, parameters) {
                Some(network) => Ok(network),
                None => plan_err!("model {model}: the widths of the layers of its {name} do not match"),
            }
        };
        let networks = Networks {
            encoder: network("encoder", &stored.encoder)?,
            decoder: network("decoder", &stored.decoder)?,
            head: stored.head.as_deref().map(|head| network("head", head)).transpose()?,
        };
        let features = model.contract().features.clone();
        if features.len() != stored.scales.len() {
            return plan_err!("model {model} records {} scales for {} features", stored.scales.len(), features.len());
        }
        let width = |(feature, scale): (&FileFeature, &Option<StoredScale>)| {
            if scale.is_some() { 1 } else { feature.levels.len() + 2 }
        };
        let scaled: usize = features.iter().zip(&stored.scales).map(width).sum();
        let code = networks.encoder.outputs();
        let heads = networks.head.iter().map(Network::inputs);
        if [networks.encoder.inputs(), networks.decoder.outputs()] != [scaled; 2]
            || std::iter::once(networks.decoder.inputs()).chain(heads).any(|inputs| inputs != code)
        {
            return plan_err!("model {model}: the widths of its encoder, decoder and scales do not match");
        }
        Ok(Self { model: Arc::clone(model), features, scales: stored.scales, networks, rule: stored.rule })
    }

    /// The widths of the hidden layers.
    pub(crate) fn hidden_units(&self) -> Vec<usize> {
        let layers = self.networks.encoder.layers().iter().chain(self.networks.decoder.layers());
        let mut widths: Vec<usize> = layers.map(|layer| layer.outputs).collect();
        widths.pop();
        widths
    }

    /// The scaled space of the model for these columns of a table, and the columns in the order of the model.
    ///
    /// # Errors
    /// A planning error if they are not the features of the model.
    pub(crate) fn design(&self, table: &Table, columns: &[usize]) -> Result<(Design, Vec<usize>)> {
        let model = &self.model;
        let given: Vec<&str> = columns.iter().map(|column| table.columns[*column].name.as_str()).collect();
        let known: Vec<&str> = self.features.iter().map(|feature| feature.name.as_str()).collect();
        if let Some(unknown) = given.iter().find(|name| !known.contains(name)) {
            return plan_err!(
                "model {model} was trained on other columns: the query returns \"{unknown}\", which is not one of its {} \
                 features{}",
                known.len(),
                suggest::hint(unknown, known.iter().copied())
            );
        }
        let (mut first, mut features, mut order) = (0, Vec::new(), Vec::new());
        for (feature, scale) in self.features.iter().zip(&self.scales) {
            let Some(column) = columns.iter().copied().find(|column| table.columns[*column].name == feature.name)
            else {
                return plan_err!(
                    "model {model} was trained on {} columns, but the query does not return \"{}\"",
                    known.len(),
                    feature.name
                );
            };
            let found = &table.columns[column];
            let encoding = match (&found.profile, scale) {
                (Profile::Numbers(_), Some(StoredScale { mean, deviation, is_double })) => {
                    Encoding::Number { mean: *mean, deviation: *deviation, is_double: *is_double }
                }
                (Profile::Texts(texts), None) => Encoding::category(texts, feature.levels.clone()),
                (_, scale) => {
                    return plan_err!(
                        "column \"{}\" is {}, but model {model} was trained on {}",
                        feature.name,
                        found.data_type,
                        if scale.is_some() { "numbers" } else { "text" }
                    );
                }
            };
            let place = first;
            first += encoding.width();
            let data_type = feature.data_type().unwrap_or_else(|| found.data_type.clone());
            features.push(Feature { name: feature.name.clone(), data_type, encoding, first: place });
            order.push(column);
        }
        Ok((Design { features, width: first }, order))
    }
}
