//! The metadata of a model file: the `aefusion.*` keys of `metadata_props`.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use arrow::datatypes::DataType;
use datafusion_common::error::{DataFusionError, Result};
use datafusion_common::plan_err;
use serde::{Deserialize, Serialize};
use strum::{EnumString, IntoStaticStr, VariantNames};

use crate::calibration::Calibration;
use crate::choice::Choice;
use crate::onnx::proto::{ModelProto, StringStringEntryProto};

const PREFIX: &str = "aefusion.";
/// Longest name of a feature in a file, bytes.
const MAX_NAME: usize = 4096;
/// Deepest nesting of a type of a feature in a file.
const MAX_TYPE_DEPTH: usize = 32;
const FORMAT_VERSION: &str = "1";

/// The metric that turns the differences between input and reconstruction into one number.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, EnumString, IntoStaticStr, VariantNames, Serialize, Deserialize,
)]
#[strum(serialize_all = "snake_case", ascii_case_insensitive)]
pub enum ErrorMetric {
    /// Mean of the squared differences.
    #[default]
    Mse,
    /// Mean of the absolute differences.
    Mae,
    /// Square root of [`ErrorMetric::Mse`].
    Rmse,
}

/// The effect of a null feature.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, EnumString, IntoStaticStr, VariantNames, Serialize, Deserialize,
)]
#[strum(serialize_all = "snake_case", ascii_case_insensitive)]
pub enum NullPolicy {
    /// The result of the row is null.
    #[default]
    Propagate,
    /// The graph reads NaN or an empty string and fills the feature in; the error leaves the feature out.
    Impute,
}

/// How many rows run at once.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, EnumString, IntoStaticStr, VariantNames, Serialize, Deserialize,
)]
#[strum(serialize_all = "snake_case", ascii_case_insensitive)]
pub enum RowMode {
    /// Blocks of rows.
    #[default]
    Together,
    /// One row. A graph then gives the same result for a row also if it takes a range from all rows of a block.
    Alone,
}

/// How random operators run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EnumString, IntoStaticStr, VariantNames, Serialize, Deserialize)]
#[strum(serialize_all = "snake_case", ascii_case_insensitive)]
pub enum RandomMode {
    /// At their mean: a normal number is its mean, a uniform number its midpoint, and Dropout keeps all.
    Mean,
}

/// One input of a model.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Feature {
    /// Name of the source column.
    pub name: String,
    /// Type of the source column, as Arrow writes it, if it is known.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub type_name: Option<String>,
    /// The texts of a text column. The reconstruction of the column is an index into this list.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub levels: Vec<String>,
}

impl Feature {
    /// A feature of unknown type.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), type_name: None, levels: Vec::new() }
    }

    /// Checks a feature of an untrusted file.
    fn check(&self) -> Result<()> {
        if self.name.len() > MAX_NAME {
            return plan_err!("a feature has a name of {} bytes, at most {MAX_NAME} are allowed", self.name.len());
        }
        let mut depth = 0_usize;
        for character in self.type_name.iter().flat_map(|name| name.bytes()) {
            match character {
                b'(' | b'[' => depth += 1,
                b')' | b']' => depth = depth.saturating_sub(1),
                _ => {}
            }
            // the parser of types calls itself for each level
            if depth > MAX_TYPE_DEPTH {
                return plan_err!("feature \"{}\" has a type that is nested too deep", self.name);
            }
        }
        Ok(())
    }

    /// This feature, with the missing parts from another.
    fn or(&self, other: &Self) -> Self {
        Self {
            name: self.name.clone(),
            type_name: self.type_name.clone().or_else(|| other.type_name.clone()),
            levels: if self.levels.is_empty() { other.levels.clone() } else { self.levels.clone() },
        }
    }

    /// Type of the source column, if it is known.
    pub fn data_type(&self) -> Option<DataType> {
        self.type_name.as_deref().and_then(|name| name.parse().ok())
    }
}

/// Statistics of a feature in the training rows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Statistics {
    /// Rows with a value.
    pub count: u64,
    /// Rows without a value.
    pub nulls: u64,
    /// Mean, for a column of numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean: Option<f64>,
    /// Population standard deviation, for a column of numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deviation: Option<f64>,
    /// Smallest number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// Largest number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// Number of different texts, for a text column, up to the limit of the count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub levels: Option<u64>,
    /// Most frequent text, for a text column.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
}

/// The classes of a classifier.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Classes {
    /// Name of the column of labels.
    pub column: String,
    /// Type of that column, as Arrow writes it.
    #[serde(rename = "type")]
    pub type_name: String,
    /// The label of each logit, as text.
    pub labels: Vec<String>,
}

/// The role of a tensor in an autoencoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, IntoStaticStr, Serialize, Deserialize)]
#[strum(serialize_all = "snake_case")]
pub enum Role {
    /// The bottleneck.
    Code,
    /// The reconstruction in the units of the input.
    Reconstruction,
    /// The input in the scaled space, where the error is measured.
    Scaled,
    /// The reconstruction in the scaled space.
    ScaledReconstruction,
    /// Scores of the classes of a classifier, before softmax.
    Logits,
}

impl Role {
    /// All roles, in the order of the model contract.
    pub const ALL: [Self; 5] =
        [Self::Code, Self::Reconstruction, Self::Scaled, Self::ScaledReconstruction, Self::Logits];

    /// Name in options and metadata.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Metadata of a model, from its file or from the options of its registration. Every part may be missing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Metadata {
    /// The features, in the order of the model.
    pub features: Option<Vec<Feature>>,
    /// Tensor names by role.
    pub tensors: HashMap<Role, String>,
    /// Tensors that have a role together, in this order. Only options have them: the stored file joins them to one.
    pub heads: HashMap<Role, Vec<String>>,
    /// Width of the code, if the graph does not declare it.
    pub code_width: Option<usize>,
    /// For each column of the scaled space, the name of its feature.
    pub scaled_features: Option<Vec<String>>,
    /// For each column of the reconstruction, the name of its feature, if it does not have all in their order.
    pub reconstruction_features: Option<Vec<String>>,
    /// See [`ErrorMetric`].
    pub error_metric: Option<ErrorMetric>,
    /// See [`NullPolicy`].
    pub null_policy: Option<NullPolicy>,
    /// See [`RowMode`].
    pub rows: Option<RowMode>,
    /// See [`RandomMode`]. Without it, tensors that depend on a random operator are not used.
    pub random: Option<RandomMode>,
    /// Roles that are not used because rows influence each other in their tensors, with the reason. Also `decoder`.
    pub mixed_rows: BTreeMap<String, String>,
    /// Expected share of anomalies, 0 to 0.5.
    pub contamination: Option<f64>,
    /// See [`Calibration`].
    pub calibration: Option<Calibration>,
    /// One entry for each feature.
    pub statistics: Option<Vec<Statistics>>,
    /// See [`Classes`].
    pub classes: Option<Classes>,
    /// Options and history of the training.
    pub training: Option<Training>,
}

/// Options and history of a training.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Training {
    /// All options, with the defaults of those that were not set.
    pub options: BTreeMap<String, serde_json::Value>,
    /// Results, by name.
    pub summary: BTreeMap<String, serde_json::Value>,
    /// One entry for each epoch.
    pub history: Vec<Epoch>,
    /// State that the trainer needs for a warm start. Only the trainer reads it.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub network: serde_json::Value,
}

/// The result of one epoch of a training.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// The stage of the training.
    pub stage: String,
    /// Number of the epoch in its stage, from 1.
    pub epoch: u64,
    /// Mean loss over the training rows during the epoch.
    pub loss: f64,
    /// Mean loss over the held-out rows after the epoch. Early stopping depends on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out_loss: Option<f64>,
    /// Learning rate.
    pub learn_rate: f64,
    /// Whether the training kept the network of this epoch.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_best: bool,
}

impl Metadata {
    /// The metadata of a file.
    ///
    /// # Errors
    /// A planning error if the value of a known key is invalid.
    pub fn read(model: &ModelProto) -> Result<Self> {
        let mut metadata = Self::default();
        for entry in &model.metadata_props {
            let Some(key) = entry.key().strip_prefix(PREFIX) else { continue };
            metadata
                .read_entry(key, entry.value())
                .map_err(|e| e.context(format!("metadata {PREFIX}{key} of the ONNX file is invalid")))?;
        }
        Ok(metadata)
    }

    fn read_entry(&mut self, key: &str, value: &str) -> Result<()> {
        match key {
            "format_version" if value != FORMAT_VERSION => {
                return plan_err!("this build reads format version {FORMAT_VERSION}, but the file has {value}");
            }
            "features" => {
                let features: Vec<Feature> = json(value)?;
                features.iter().try_for_each(Feature::check)?;
                self.features = Some(features);
            }
            "code_width" => self.code_width = Some(json(value)?),
            "scaled_features" => self.scaled_features = Some(json(value)?),
            "reconstruction_features" => self.reconstruction_features = Some(json(value)?),
            "error_metric" => self.error_metric = Some(ErrorMetric::parse("error_metric", value)?),
            "null_policy" => self.null_policy = Some(NullPolicy::parse("null_policy", value)?),
            "random" => self.random = Some(RandomMode::parse("random", value)?),
            "rows" => self.rows = Some(RowMode::parse("rows", value)?),
            "mixed_rows" => self.mixed_rows = json(value)?,
            "contamination" => self.contamination = Some(parse_contamination(value)?),
            "calibration" => {
                let calibration: Calibration = json(value)?;
                calibration.check()?;
                self.calibration = Some(calibration);
            }
            "statistics" => self.statistics = Some(json(value)?),
            "classes" => self.classes = Some(json(value)?),
            "training" => self.training = Some(json(value)?),
            key => {
                if let Some(role) = Role::ALL.into_iter().find(|role| role.name() == key) {
                    self.tensors.insert(role, value.to_owned());
                }
            }
        }
        Ok(())
    }

    /// Writes this metadata to a file, in place of its own.
    ///
    /// # Errors
    /// An error if a value cannot be written as JSON.
    pub fn write(&self, model: &mut ModelProto) -> Result<()> {
        model.metadata_props.retain(|entry| !self.replaces(entry.key()));
        let mut put = |key: &str, value: String| {
            model
                .metadata_props
                .push(StringStringEntryProto { key: Some(format!("{PREFIX}{key}")), value: Some(value) });
        };
        put("format_version", FORMAT_VERSION.to_owned());
        let before = [("features", json_of(&self.features)?)];
        let tensor = |role: Role| (role.name(), self.tensors.get(&role).cloned());
        let after = [
            ("code_width", self.code_width.map(|width| width.to_string())),
            ("scaled_features", json_of(&self.scaled_features)?),
            ("reconstruction_features", json_of(&self.reconstruction_features)?),
            ("error_metric", self.error_metric.map(|metric| metric.name().to_owned())),
            ("null_policy", self.null_policy.map(|policy| policy.name().to_owned())),
            ("rows", self.rows.filter(|rows| *rows != RowMode::default()).map(|rows| rows.name().to_owned())),
            ("random", self.random.map(|random| random.name().to_owned())),
            ("mixed_rows", json_of(&Some(&self.mixed_rows).filter(|mixed| !mixed.is_empty()))?),
            ("contamination", self.contamination.map(|share| share.to_string())),
            ("calibration", json_of(&self.calibration)?),
            ("statistics", json_of(&self.statistics)?),
            ("classes", json_of(&self.classes)?),
            ("training", json_of(&self.training)?),
        ];
        for (key, value) in before.into_iter().chain(Role::ALL.map(tensor)).chain(after) {
            if let Some(value) = value {
                put(key, value);
            }
        }
        Ok(())
    }

    fn replaces(&self, key: &str) -> bool {
        const OWN: [&str; 15] = [
            "format_version",
            "features",
            "code_width",
            "scaled_features",
            "reconstruction_features",
            "error_metric",
            "null_policy",
            "rows",
            "random",
            "mixed_rows",
            "contamination",
            "calibration",
            "statistics",
            "classes",
            "training",
        ];
        key.strip_prefix(PREFIX)
            .is_some_and(|key| OWN.contains(&key) || Role::ALL.iter().any(|role| role.name() == key))
    }

    /// This metadata, with missing parts from `other`. Features are matched by their order, whatever their names.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        // the features of another reconstruction
        let is_replaced =
            self.tensors.contains_key(&Role::Reconstruction) || self.heads.contains_key(&Role::Reconstruction);
        let reconstructed = other.reconstruction_features.filter(|_| !is_replaced);
        let mut tensors = other.tensors;
        tensors.extend(self.tensors);
        let old = other.features.clone().unwrap_or_default();
        let renamed = |names: Option<Vec<String>>| match &self.features {
            Some(new) if new.len() == old.len() => {
                let name = |name: &String| {
                    let place = old.iter().position(|feature| feature.name == *name);
                    place.map_or_else(|| name.clone(), |place| new[place].name.clone())
                };
                names.map(|names| names.iter().map(name).collect())
            }
            _ => names,
        };
        let (scaled_features, reconstruction_features) = (renamed(other.scaled_features), renamed(reconstructed));
        let features = match (self.features, other.features) {
            (Some(new), Some(old)) if new.len() == old.len() => {
                Some(new.iter().zip(&old).map(|(new, old)| new.or(old)).collect())
            }
            (new, old) => new.or(old),
        };
        Self {
            features,
            tensors,
            heads: self.heads,
            code_width: self.code_width.or(other.code_width),
            scaled_features: self.scaled_features.or(scaled_features),
            reconstruction_features: self.reconstruction_features.or(reconstruction_features),
            error_metric: self.error_metric.or(other.error_metric),
            null_policy: self.null_policy.or(other.null_policy),
            rows: self.rows.or(other.rows),
            random: self.random.or(other.random),
            mixed_rows: if self.mixed_rows.is_empty() { other.mixed_rows } else { self.mixed_rows },
            contamination: self.contamination.or(other.contamination),
            calibration: self.calibration.or(other.calibration),
            statistics: self.statistics.or(other.statistics),
            classes: self.classes.or(other.classes),
            training: self.training.or(other.training),
        }
    }
}

/// The contamination from a text, 0 to 0.5.
///
/// # Errors
/// A planning error if it is no number in this range.
pub fn parse_contamination(text: &str) -> Result<f64> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=0.5).contains(&share) => Ok(share),
        _ => plan_err!("contamination must be a number from 0 to 0.5; found '{text}'"),
    }
}

fn json<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| DataFusionError::External(Box::new(e)))
}

fn json_of<T: Serialize>(value: &Option<T>) -> Result<Option<String>> {
    let text = |value| serde_json::to_string(value).map_err(|e| DataFusionError::External(Box::new(e)));
    value.as_ref().map(text).transpose()
}
