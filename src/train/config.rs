//! The options of a training: names, defaults, ranges.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use aefusion_udfs::model::metadata::ErrorMetric;
use aefusion_udfs::named::Named;
use aefusion_udfs::sql::{OptionValue, Options};
use datafusion::common::plan_err;
use datafusion::error::Result;
use serde_json::{Value, json};

use super::activation::Activation;
use super::aim::Aim;
use super::fit::FitOptions;
use super::noise::{Noise, NoiseKind};
use super::optimizer::OptimizerKind;
use crate::narrow::to_f32;

/// Every option of a trained model.
pub(super) const OPTIONS: [&str; 32] = [
    "model_type",
    "hidden_units",
    "activation_fn",
    "code_activation_fn",
    "dropout",
    "batch_size",
    "learn_rate",
    "learn_rate_schedule",
    "optimizer",
    "l1_reg",
    "l2_reg",
    "l1_reg_activation",
    "max_iterations",
    "early_stop",
    "min_rel_progress",
    "patience",
    "data_split_eval_fraction",
    "calibration_fraction",
    "contamination",
    "error_metric",
    "max_categories",
    "training",
    "noise",
    "noise_level",
    "base_model",
    "fine_tune",
    "input_label_cols",
    "head_units",
    "warm_start",
    "on_interrupt",
    "seed",
    "scaling",
];

/// In which order the layers of an autoencoder are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// All at once.
    Together,
    /// One after the other, each by the reconstruction of what it is given; then a decoder for all.
    Layerwise,
    /// So, and then all at once.
    LayerwiseFinetune,
}

impl Named for Order {
    const NAMES: &'static [(&'static str, Self)] = &[
        ("together", Self::Together),
        ("layerwise", Self::Layerwise),
        ("layerwise_finetune", Self::LayerwiseFinetune),
    ];
}

/// What labels change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FineTune {
    /// Only the head; the encoder stays as it is.
    Head,
    /// Encoder and head.
    All,
}

impl Named for FineTune {
    const NAMES: &'static [(&'static str, Self)] = &[("head", Self::Head), ("all", Self::All)];
}

/// What Ctrl-C does to a training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnInterrupt {
    /// Nothing is published.
    Discard,
    /// The best epoch so far is published.
    Keep,
}

impl Named for OnInterrupt {
    const NAMES: &'static [(&'static str, Self)] = &[("discard", Self::Discard), ("keep", Self::Keep)];
}

/// What the columns of numbers are divided by, after their mean was taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scaling {
    /// Each by its own standard deviation.
    Standard,
    /// All by one number, the root mean square of their deviations: for columns of one unit, like pixels.
    Common,
}

impl Named for Scaling {
    const NAMES: &'static [(&'static str, Self)] = &[("standard", Self::Standard), ("common", Self::Common)];
}

/// What a classifier is made of.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ClassifierOptions {
    pub(super) label: String,
    pub(super) base_model: Option<String>,
    pub(super) fine_tune: FineTune,
    /// Widths of hidden layers between code and logits.
    pub(super) head_units: Vec<usize>,
}

/// All options of a training.
#[derive(Debug, Clone)]
pub(super) struct Config {
    pub(super) classifier: Option<ClassifierOptions>,
    pub(super) aim: Aim,
    /// None: from the number of columns and rows.
    pub(super) hidden_units: Option<Vec<usize>>,
    pub(super) activation: Activation,
    /// None: as the others.
    pub(super) code_activation: Option<Activation>,
    pub(super) dropout: f32,
    pub(super) l1_reg_activation: f32,
    /// None: from the number of rows.
    pub(super) batch_size: Option<usize>,
    /// None: from the number of rows.
    pub(super) max_iterations: Option<usize>,
    pub(super) fit: FitOptions,
    pub(super) eval_fraction: f64,
    pub(super) calibration_fraction: f64,
    pub(super) contamination: f64,
    pub(super) error_metric: ErrorMetric,
    pub(super) max_categories: usize,
    pub(super) order: Order,
    pub(super) noise: Option<Noise>,
    pub(super) scaling: Scaling,
    pub(super) warm_start: bool,
    pub(super) on_interrupt: OnInterrupt,
    /// The options and their values, as the file tells them.
    pub(super) told: BTreeMap<String, Value>,
}

/// Takes options one by one, and keeps what was taken.
struct Taker {
    options: Options,
    told: BTreeMap<String, Value>,
}

impl Taker {
    fn number(&mut self, key: &str, default: f64, range: RangeInclusive<f64>) -> Result<f64> {
        let value = self.options.take_number(key)?.unwrap_or(default);
        if !range.contains(&value) {
            return plan_err!("option {key} must be from {} to {}; found {value}", range.start(), range.end());
        }
        self.told.insert(key.to_owned(), json!(value));
        Ok(value)
    }

    fn whole(&mut self, key: &str, range: RangeInclusive<usize>) -> Result<Option<usize>> {
        let Some(value) = self.options.take_whole(key)? else { return Ok(None) };
        match usize::try_from(value) {
            Ok(value) if range.contains(&value) => {
                self.told.insert(key.to_owned(), json!(value));
                Ok(Some(value))
            }
            _ => plan_err!("option {key} must be from {} to {}; found {value}", range.start(), range.end()),
        }
    }

    fn whole_or(&mut self, key: &str, default: usize, range: RangeInclusive<usize>) -> Result<usize> {
        Ok(self.whole(key, range)?.unwrap_or_else(|| {
            self.told.insert(key.to_owned(), json!(default));
            default
        }))
    }

    fn boolean(&mut self, key: &str, default: bool) -> Result<bool> {
        let value = self.options.take_boolean(key)?.unwrap_or(default);
        self.told.insert(key.to_owned(), json!(value));
        Ok(value)
    }

    fn named<T: Named>(&mut self, key: &str, default: T) -> Result<T> {
        Ok(self.named_if_given(key)?.unwrap_or_else(|| {
            self.told.insert(key.to_owned(), json!(default.name()));
            default
        }))
    }

    fn named_if_given<T: Named>(&mut self, key: &str) -> Result<Option<T>> {
        let Some(value) = self.options.take_named::<T>(key)? else { return Ok(None) };
        self.told.insert(key.to_owned(), json!(value.name()));
        Ok(Some(value))
    }

    fn text(&mut self, key: &str) -> Result<Option<String>> {
        let value = self.options.take_text(key)?;
        if let Some(value) = &value {
            self.told.insert(key.to_owned(), json!(value));
        }
        Ok(value)
    }

    fn widths(&mut self, key: &str) -> Result<Option<Vec<usize>>> {
        const WIDEST: u64 = 65_536;
        let Some(widths) = self.options.take_wholes(key)? else { return Ok(None) };
        if let Some(width) = widths.iter().find(|width| !(1..=WIDEST).contains(width)) {
            return plan_err!("option {key} must hold widths from 1 to {WIDEST}; found {width}");
        }
        self.told.insert(key.to_owned(), json!(widths));
        Ok(Some(widths.into_iter().filter_map(|width| usize::try_from(width).ok()).collect()))
    }
}

/// What a model that a training goes on from has, so that the options cannot say it; the file tells it nevertheless.
pub(super) const OF_THE_BASE: [&str; 6] =
    ["hidden_units", "activation_fn", "code_activation_fn", "training", "scaling", "max_categories"];

impl Config {
    /// What `OPTIONS (…)` says.
    ///
    /// # Errors
    /// A planning error that names the option, what it must be, and what was found.
    pub(super) fn of(options: Options) -> Result<Self> {
        let mut taker = Taker { options, told: BTreeMap::new() };
        let of_the_base: Vec<&str> = OF_THE_BASE.into_iter().filter(|key| taker.options.contains(key)).collect();
        let has_head_units = taker.options.contains("head_units");
        let model_type = taker.text("model_type")?;
        let classifier = classifier(&mut taker, model_type.as_deref() == Some("classifier"))?;
        let hidden_units = taker.widths("hidden_units")?;
        if let Some(widths) = &hidden_units
            && widths.len() % 2 == 0
        {
            return plan_err!(
                "option hidden_units must have an odd length: the one in the middle is the code; found {widths:?}"
            );
        }
        let noise = noise(&mut taker)?;
        let l1_reg_activation = to_f32(taker.number("l1_reg_activation", 0.0, 0.0..=1e6)?);
        let is_head =
            |classifier: &ClassifierOptions| classifier.fine_tune == FineTune::Head && classifier.base_model.is_some();
        let aim = match noise {
            _ if classifier.as_ref().is_some_and(is_head) => Aim::Classify,
            _ if l1_reg_activation > 0.0 => Aim::Sparse,
            Some(_) => Aim::Denoise,
            None => Aim::Reconstruct,
        };
        let activation = taker.named("activation_fn", aim.activation())?;
        let code_activation = match aim.code_activation() {
            Some(default) => Some(taker.named("code_activation_fn", default)?),
            None => taker.named_if_given("code_activation_fn")?,
        };
        let optimizer = taker.named("optimizer", OptimizerKind::Adam)?;
        let seed = taker.options.take_whole("seed")?.unwrap_or(0);
        taker.told.insert("seed".to_owned(), json!(seed));
        let config = Self {
            classifier,
            aim,
            hidden_units,
            activation,
            code_activation,
            dropout: to_f32(taker.number("dropout", 0.0, 0.0..=0.9)?),
            l1_reg_activation,
            batch_size: taker.whole("batch_size", 1..=1 << 20)?,
            max_iterations: taker.whole("max_iterations", 1..=1_000_000)?,
            fit: FitOptions {
                batch_size: 0,
                learn_rate: taker.number("learn_rate", aim.learn_rate(), 1e-9..=10.0)?,
                schedule: taker.named("learn_rate_schedule", aim.schedule())?,
                optimizer,
                l1_reg: taker.number("l1_reg", 0.0, 0.0..=1e6)?,
                l2_reg: taker.number("l2_reg", 0.0, 0.0..=1e6)?,
                max_iterations: 0,
                early_stop: taker.boolean("early_stop", true)?,
                min_rel_progress: taker.number("min_rel_progress", 0.001, 0.0..=1.0)?,
                patience: taker.whole_or("patience", aim.patience(), 1..=1_000_000)?,
                seed,
            },
            eval_fraction: taker.number("data_split_eval_fraction", 0.1, 0.0..=0.5)?,
            calibration_fraction: taker.number("calibration_fraction", 0.1, 0.0..=0.5)?,
            contamination: taker.number("contamination", 0.01, 0.0..=0.5)?,
            error_metric: taker.named("error_metric", ErrorMetric::Mse)?,
            max_categories: taker.whole_or("max_categories", 100, 1..=10_000)?,
            order: taker.named("training", Order::Together)?,
            noise,
            scaling: taker.named("scaling", Scaling::Standard)?,
            warm_start: taker.boolean("warm_start", false)?,
            on_interrupt: taker.named("on_interrupt", OnInterrupt::Discard)?,
            told: BTreeMap::new(),
        };
        taker.options.finish(&OPTIONS)?;
        if config.eval_fraction + config.calibration_fraction > 0.9 {
            return plan_err!(
                "data_split_eval_fraction ({}) and calibration_fraction ({}) leave too few rows to train on; together they may \
                 be 0.9",
                config.eval_fraction,
                config.calibration_fraction
            );
        }
        let base = match &config.classifier {
            Some(ClassifierOptions { base_model: Some(_), .. }) => Some("base_model"),
            _ if config.warm_start => Some("warm_start"),
            _ => None,
        };
        // of a head with hidden layers, they compute it
        let is_of_the_head = |key: &str| key == "activation_fn" && has_head_units;
        if let Some((base, key)) = base.zip(of_the_base.into_iter().find(|key| !is_of_the_head(key))) {
            return plan_err!("option {key} does not go with {base}: the network and its scales are there already");
        }
        if config.warm_start && has_head_units {
            return plan_err!("option head_units does not go with warm_start: the head is there already");
        }
        Ok(Self { told: taker.told, ..config })
    }
}

fn noise(taker: &mut Taker) -> Result<Option<Noise>> {
    let Some(kind) = taker.named_if_given("noise")? else {
        if taker.options.contains("noise_level") {
            return plan_err!("option noise_level needs the option noise, one of gaussian, masking, salt_and_pepper");
        }
        return Ok(None);
    };
    let (default, most) = match kind {
        NoiseKind::Gaussian => (1.0, 100.0),
        NoiseKind::Masking => (0.25, 1.0),
        NoiseKind::SaltAndPepper => (0.1, 1.0),
    };
    Ok(Some(Noise { kind, level: to_f32(taker.number("noise_level", default, 0.0..=most)?) }))
}

/// Options that only a classifier has.
fn classifier(taker: &mut Taker, is_classifier: bool) -> Result<Option<ClassifierOptions>> {
    const ONLY: [&str; 4] = ["base_model", "fine_tune", "input_label_cols", "head_units"];
    if !is_classifier {
        if let Some(key) = ONLY.into_iter().find(|key| taker.options.contains(key)) {
            return plan_err!("option {key} belongs to a classifier; add model_type = 'classifier', or leave it out");
        }
        return Ok(None);
    }
    let labels = match taker.options.get("input_label_cols") {
        Some(OptionValue::Text(_)) => taker.options.take_text("input_label_cols")?.into_iter().collect(),
        _ => taker.options.take_texts("input_label_cols")?.unwrap_or_default(),
    };
    let [label] = labels.as_slice() else {
        return plan_err!(
            "a classifier needs the option input_label_cols with one column of the query, such as ['label']; found {} \
             columns",
            labels.len()
        );
    };
    taker.told.insert("input_label_cols".to_owned(), json!(labels));
    let base_model = taker.text("base_model")?;
    let default = if base_model.is_some() { FineTune::Head } else { FineTune::All };
    Ok(Some(ClassifierOptions {
        label: label.clone(),
        fine_tune: taker.named("fine_tune", default)?,
        base_model,
        head_units: taker.widths("head_units")?.unwrap_or_default(),
    }))
}
