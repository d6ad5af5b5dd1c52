//! The options of a training: their names, defaults and ranges.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

use aefusion_udfs::choice::Choice;
use aefusion_udfs::model::metadata::ErrorMetric;
use aefusion_udfs::sql::{OptionValue, Options};
use datafusion::common::plan_err;
use datafusion::error::Result;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use strum::{EnumString, IntoStaticStr, VariantNames};

use crate::activation::Activation;
use crate::defaults::Purpose;
use crate::fit::FitOptions;
use crate::noise::{Noise, NoiseKind};
use crate::optimizer::OptimizerKind;
use aefusion_udfs::numbers::to_f32;

/// All options of a trained model.
pub(crate) const OPTIONS: [&str; 35] = [
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
    "calibration_share",
    "split_by",
    "split_by_time",
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
    "class_weight",
    "warm_start",
    "on_interrupt",
    "seed",
    "scaling",
];

/// The order in which the layers of an autoencoder are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case", ascii_case_insensitive)]
pub(crate) enum Order {
    /// All layers jointly.
    Together,
    /// One layer at a time, each to reconstruct its input; then the decoder.
    Layerwise,
    /// `layerwise`, then all layers jointly.
    LayerwiseFinetune,
}

/// The layers that labels train.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case", ascii_case_insensitive)]
pub(crate) enum FineTune {
    /// The head alone; the encoder does not change.
    Head,
    /// Encoder and head.
    All,
}

/// The weights of classes in the loss of a classifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case", ascii_case_insensitive)]
pub(crate) enum ClassWeight {
    /// All rows have the weight 1.
    Equal,
    /// All classes have the same weight in total.
    Balanced,
}

impl ClassWeight {
    /// The weight of a row of each class, for classes of so many training rows. The mean over the rows is 1.
    ///
    /// # Source
    /// `class_weight = 'balanced'` of scikit-learn: the number of rows / (the number of classes · the rows of the class).
    pub(crate) fn of_rows(self, classes: &[usize]) -> Vec<f32> {
        let rows = classes.iter().sum::<usize>() as f64;
        let balanced = |n: &usize| to_f32(rows / (classes.len() as f64 * (*n).max(1) as f64));
        match self {
            Self::Equal => vec![1.0; classes.len()],
            Self::Balanced => classes.iter().map(balanced).collect(),
        }
    }
}

/// The effect of Ctrl-C on a training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case", ascii_case_insensitive)]
pub(crate) enum OnInterrupt {
    /// No model is published.
    Discard,
    /// The best epoch so far is published.
    Keep,
}

/// The divisor of a number column, after its mean is subtracted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case", ascii_case_insensitive)]
pub(crate) enum Scaling {
    /// The standard deviation of the column.
    Standard,
    /// One divisor for all columns, the root mean square of their deviations: for columns of one unit, such as pixels.
    Common,
}

/// What decides the part of a row: training, held-out or calibration rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SplitBy {
    /// All values of the row.
    Row,
    /// The value of a column: rows with the same value stay together.
    Group(String),
    /// The value of a column: the last rows calibrate.
    Time(String),
}

impl fmt::Display for SplitBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Row => f.write_str("their values"),
            Self::Group(column) => write!(f, "the column \"{column}\""),
            Self::Time(column) => write!(f, "the time \"{column}\""),
        }
    }
}

/// The options of a classifier.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ClassifierOptions {
    pub(crate) label: String,
    pub(crate) base_model: Option<String>,
    pub(crate) fine_tune: FineTune,
    /// The widths of hidden layers between code and logits.
    pub(crate) head_units: Vec<usize>,
    pub(crate) class_weight: ClassWeight,
}

/// All options of a training.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) classifier: Option<ClassifierOptions>,
    pub(crate) purpose: Purpose,
    /// None: the default for the number of columns.
    pub(crate) hidden_units: Option<Vec<usize>>,
    pub(crate) activation: Activation,
    /// None: the activation of the other layers.
    pub(crate) code_activation: Option<Activation>,
    pub(crate) dropout: f32,
    pub(crate) l1_reg_activation: f32,
    /// None: the default for the number of rows.
    pub(crate) batch_size: Option<usize>,
    /// None: the default for the number of rows.
    pub(crate) max_iterations: Option<usize>,
    pub(crate) fit: FitOptions,
    pub(crate) eval_fraction: f64,
    /// None: the default, or the share of the model to start from.
    pub(crate) calibration_share: Option<f64>,
    pub(crate) split_by: SplitBy,
    pub(crate) contamination: f64,
    pub(crate) error_metric: ErrorMetric,
    pub(crate) max_categories: usize,
    pub(crate) order: Order,
    pub(crate) noise: Option<Noise>,
    pub(crate) scaling: Scaling,
    pub(crate) warm_start: bool,
    pub(crate) on_interrupt: OnInterrupt,
    /// The options and their values, as the file records them.
    pub(crate) recorded: BTreeMap<String, Value>,
}

/// Takes options one by one, and records them.
struct Taker {
    options: Options,
    recorded: BTreeMap<String, Value>,
}

impl Taker {
    fn number(&mut self, key: &str, default: f64, range: RangeInclusive<f64>) -> Result<f64> {
        Ok(self.number_if_given(key, range)?.unwrap_or_else(|| {
            self.recorded.insert(key.to_owned(), json!(default));
            default
        }))
    }

    fn number_if_given(&mut self, key: &str, range: RangeInclusive<f64>) -> Result<Option<f64>> {
        let Some(value) = self.options.take_number(key)? else { return Ok(None) };
        if !range.contains(&value) {
            return plan_err!("option {key} must be from {} to {}; found {value}", range.start(), range.end());
        }
        self.recorded.insert(key.to_owned(), json!(value));
        Ok(Some(value))
    }

    fn whole(&mut self, key: &str, range: RangeInclusive<usize>) -> Result<Option<usize>> {
        let Some(value) = self.options.take_whole(key)? else { return Ok(None) };
        match usize::try_from(value) {
            Ok(value) if range.contains(&value) => {
                self.recorded.insert(key.to_owned(), json!(value));
                Ok(Some(value))
            }
            _ => plan_err!("option {key} must be from {} to {}; found {value}", range.start(), range.end()),
        }
    }

    fn whole_or(&mut self, key: &str, default: usize, range: RangeInclusive<usize>) -> Result<usize> {
        Ok(self.whole(key, range)?.unwrap_or_else(|| {
            self.recorded.insert(key.to_owned(), json!(default));
            default
        }))
    }

    fn boolean(&mut self, key: &str, default: bool) -> Result<bool> {
        let value = self.options.take_boolean(key)?.unwrap_or(default);
        self.recorded.insert(key.to_owned(), json!(value));
        Ok(value)
    }

    fn choice<T: Choice>(&mut self, key: &str, default: T) -> Result<T> {
        Ok(self.choice_if_given(key)?.unwrap_or_else(|| {
            self.recorded.insert(key.to_owned(), json!(default.name()));
            default
        }))
    }

    fn choice_if_given<T: Choice>(&mut self, key: &str) -> Result<Option<T>> {
        let Some(value) = self.options.take_choice::<T>(key)? else { return Ok(None) };
        self.recorded.insert(key.to_owned(), json!(value.name()));
        Ok(Some(value))
    }

    fn text(&mut self, key: &str) -> Result<Option<String>> {
        let value = self.options.take_text(key)?;
        if let Some(value) = &value {
            self.recorded.insert(key.to_owned(), json!(value));
        }
        Ok(value)
    }

    fn widths(&mut self, key: &str) -> Result<Option<Vec<usize>>> {
        const WIDEST: u64 = 65_536;
        let Some(widths) = self.options.take_wholes(key)? else { return Ok(None) };
        if let Some(width) = widths.iter().find(|width| !(1..=WIDEST).contains(width)) {
            return plan_err!("option {key} must contain widths from 1 to {WIDEST}; found {width}");
        }
        self.recorded.insert(key.to_owned(), json!(widths));
        Ok(Some(widths.into_iter().filter_map(|width| usize::try_from(width).ok()).collect()))
    }
}

/// Options that a base model decides. They cannot be given with one, and the file records the values of the base.
pub(crate) const OF_THE_BASE: [&str; 6] =
    ["hidden_units", "activation_fn", "code_activation_fn", "training", "scaling", "max_categories"];

impl Config {
    /// What `OPTIONS (…)` says.
    ///
    /// # Errors
    /// A planning error that names the option, what it must be, and what was found.
    pub(crate) fn of(mut options: Options) -> Result<Self> {
        rename(&mut options)?;
        let mut taker = Taker { options, recorded: BTreeMap::new() };
        let of_the_base: Vec<&str> = OF_THE_BASE.into_iter().filter(|key| taker.options.contains(key)).collect();
        let has_head_units = taker.options.contains("head_units");
        let model_type = taker.text("model_type")?;
        let classifier = classifier(&mut taker, model_type.as_deref() == Some("classifier"))?;
        let hidden_units = taker.widths("hidden_units")?;
        if let Some(widths) = &hidden_units
            && widths.len() % 2 == 0
        {
            return plan_err!(
                "option hidden_units must have an odd number of widths, because the middle one is the code; found {widths:?}"
            );
        }
        let noise = noise(&mut taker)?;
        let l1_reg_activation = to_f32(taker.number("l1_reg_activation", 0.0, 0.0..=1e6)?);
        let is_head =
            |classifier: &ClassifierOptions| classifier.fine_tune == FineTune::Head && classifier.base_model.is_some();
        let purpose = match noise {
            _ if classifier.as_ref().is_some_and(is_head) => Purpose::Classify,
            _ if l1_reg_activation > 0.0 => Purpose::Sparse,
            Some(_) => Purpose::Denoise,
            None => Purpose::Reconstruct,
        };
        let activation = taker.choice("activation_fn", purpose.activation())?;
        let code_activation = match purpose.code_activation() {
            Some(default) => Some(taker.choice("code_activation_fn", default)?),
            None => taker.choice_if_given("code_activation_fn")?,
        };
        let optimizer = taker.choice("optimizer", OptimizerKind::Adam)?;
        let split_by = split_by(&mut taker)?;
        let seed = taker.options.take_whole("seed")?.unwrap_or(0);
        taker.recorded.insert("seed".to_owned(), json!(seed));
        let config = Self {
            classifier,
            purpose,
            hidden_units,
            activation,
            code_activation,
            dropout: to_f32(taker.number("dropout", 0.0, 0.0..=0.9)?),
            l1_reg_activation,
            batch_size: taker.whole("batch_size", 1..=1 << 20)?,
            max_iterations: taker.whole("max_iterations", 1..=1_000_000)?,
            fit: FitOptions {
                batch_size: 0,
                learn_rate: taker.number("learn_rate", purpose.learn_rate(), 1e-9..=10.0)?,
                schedule: taker.choice("learn_rate_schedule", purpose.schedule())?,
                optimizer,
                l1_reg: taker.number("l1_reg", 0.0, 0.0..=1e6)?,
                l2_reg: taker.number("l2_reg", 0.0, 0.0..=1e6)?,
                max_iterations: 0,
                early_stop: taker.boolean("early_stop", true)?,
                min_rel_progress: taker.number("min_rel_progress", 0.001, 0.0..=0.99)?,
                patience: taker.whole_or("patience", purpose.patience(), 1..=1_000_000)?,
                seed,
            },
            eval_fraction: taker.number("data_split_eval_fraction", 0.1, 0.0..=0.5)?,
            calibration_share: taker.number_if_given("calibration_share", 0.0..=0.5)?,
            split_by,
            contamination: taker.number("contamination", 0.01, 0.0..=0.5)?,
            error_metric: taker.choice("error_metric", ErrorMetric::Mse)?,
            max_categories: taker.whole_or("max_categories", 100, 1..=10_000)?,
            order: taker.choice("training", Order::Together)?,
            noise,
            scaling: taker.choice("scaling", Scaling::Standard)?,
            warm_start: taker.boolean("warm_start", false)?,
            on_interrupt: taker.choice("on_interrupt", OnInterrupt::Discard)?,
            recorded: BTreeMap::new(),
        };
        taker.options.finish(&OPTIONS)?;
        let calibration_share = config.calibration_share.unwrap_or_default();
        if config.eval_fraction + calibration_share > 0.9 {
            return plan_err!(
                "data_split_eval_fraction ({}) and calibration_share ({calibration_share}) leave too few rows to train on; \
                 their sum must be at most 0.9",
                config.eval_fraction
            );
        }
        let base = match &config.classifier {
            Some(ClassifierOptions { base_model: Some(_), .. }) => Some("base_model"),
            _ if config.warm_start => Some("warm_start"),
            _ => None,
        };
        if let (SplitBy::Group(column) | SplitBy::Time(column), Some(classifier)) =
            (&config.split_by, &config.classifier)
            && *column == classifier.label
        {
            return plan_err!(
                "column \"{column}\" has the labels and cannot split the rows too; select it twice, with another name"
            );
        }
        // the hidden layers of a head have an activation of their own
        let is_of_the_head = |key: &str| key == "activation_fn" && has_head_units;
        if let Some((base, key)) = base.zip(of_the_base.into_iter().find(|key| !is_of_the_head(key))) {
            return plan_err!(
                "option {key} cannot be combined with {base}, which reuses an existing network; leave the option out"
            );
        }
        if config.warm_start && has_head_units {
            return plan_err!(
                "option head_units cannot be combined with warm_start, which reuses the existing head; leave it out"
            );
        }
        Ok(Self { recorded: taker.recorded, ..config })
    }
}

/// The earlier names of options. Files of earlier versions record them.
const RENAMED: [(&str, &str); 1] = [("calibration_fraction", "calibration_share")];

/// The current name of an option.
pub(crate) fn current_name(option: &str) -> &str {
    RENAMED.into_iter().find(|(earlier, _)| *earlier == option).map_or(option, |(_, current)| current)
}

/// Gives options their current names.
///
/// # Errors
/// A planning error if an option is given by both names.
pub(crate) fn rename(options: &mut Options) -> Result<()> {
    for (earlier, current) in RENAMED {
        if let Some(value) = options.take(earlier) {
            if options.contains(current) {
                return plan_err!("option {earlier} is the earlier name of {current}; give {current} only");
            }
            options.insert(current.to_owned(), value)?;
        }
    }
    Ok(())
}

fn split_by(taker: &mut Taker) -> Result<SplitBy> {
    match (taker.text("split_by")?, taker.text("split_by_time")?) {
        (Some(_), Some(_)) => plan_err!("options split_by and split_by_time exclude each other; give one of them"),
        (Some(column), None) => Ok(SplitBy::Group(column)),
        (None, Some(column)) => Ok(SplitBy::Time(column)),
        (None, None) => Ok(SplitBy::Row),
    }
}

fn noise(taker: &mut Taker) -> Result<Option<Noise>> {
    let Some(kind) = taker.choice_if_given("noise")? else {
        if taker.options.contains("noise_level") {
            return plan_err!(
                "option noise_level requires option noise; set noise to gaussian, masking or salt_and_pepper"
            );
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

/// Takes the options of a classifier.
fn classifier(taker: &mut Taker, is_classifier: bool) -> Result<Option<ClassifierOptions>> {
    const ONLY: [&str; 5] = ["base_model", "fine_tune", "input_label_cols", "head_units", "class_weight"];
    if !is_classifier {
        if let Some(key) = ONLY.into_iter().find(|key| taker.options.contains(key)) {
            return plan_err!(
                "option {key} is for classifiers only; add model_type = 'classifier', or leave the option out"
            );
        }
        return Ok(None);
    }
    let labels = match taker.options.get("input_label_cols") {
        Some(OptionValue::Text(_)) => taker.options.take_text("input_label_cols")?.into_iter().collect(),
        _ => taker.options.take_texts("input_label_cols")?.unwrap_or_default(),
    };
    let [label] = labels.as_slice() else {
        return plan_err!(
            "a classifier requires option input_label_cols with one column of the query, such as ['label']; found {} \
             columns",
            labels.len()
        );
    };
    taker.recorded.insert("input_label_cols".to_owned(), json!(labels));
    let base_model = taker.text("base_model")?;
    let default = if base_model.is_some() { FineTune::Head } else { FineTune::All };
    Ok(Some(ClassifierOptions {
        label: label.clone(),
        fine_tune: taker.choice("fine_tune", default)?,
        base_model,
        head_units: taker.widths("head_units")?.unwrap_or_default(),
        class_weight: taker.choice("class_weight", ClassWeight::Equal)?,
    }))
}
