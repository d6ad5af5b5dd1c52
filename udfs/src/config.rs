//! Settings of a session, `SET ae.… = …`.

use std::any::Any;
use std::borrow::Cow;
use std::ops::Deref;
use std::time::Duration;

use datafusion::common::{config_err, extensions_options, plan_err};
use datafusion::config::{ConfigEntry, ConfigExtension, ConfigOptions, ExtensionOptions};
use datafusion::error::Result;

use crate::model::Limits;
use crate::model::onnx::DEFAULT_REGISTRATION_SECONDS;
use crate::store::ModelRef;
use crate::suggest;

/// Largest `ae.batch_rows`.
const MAX_BATCH_ROWS: usize = 1 << 20;

/// Largest `ae.registration_seconds`: a day.
const MAX_SECONDS: u64 = 86_400;

/// Smallest `ae.train_memory`, bytes: one block of rows that is written to a file.
const MIN_TRAIN_MEMORY: usize = 16 << 20;

/// A struct of `extensions_options!` whose settings have a prefix.
pub trait SettingGroup: ExtensionOptions + Clone + Default {
    /// The prefix, without the point: `ae`.
    const PREFIX: &'static str;

    /// Checks a value that `SET` gives to a setting, and returns it in its normal form.
    ///
    /// # Errors
    /// A configuration error with the range of the setting.
    fn checked<'a>(_key: &str, value: &'a str) -> Result<Cow<'a, str>> {
        Ok(Cow::Borrowed(value))
    }
}

/// Settings that `SHOW ALL` lists with their prefix. DataFusion lists those of an extension without it.
#[derive(Debug, Clone, Default)]
pub struct Prefixed<G>(pub G);

impl<G: SettingGroup> Prefixed<G> {
    /// The settings of a session; the defaults if the session has none of this group.
    pub fn of(config: &ConfigOptions) -> Self {
        config.extensions.get::<Self>().cloned().unwrap_or_default()
    }
}

impl<G> Deref for Prefixed<G> {
    type Target = G;

    fn deref(&self) -> &G {
        &self.0
    }
}

impl<G: SettingGroup> ConfigExtension for Prefixed<G> {
    const PREFIX: &'static str = G::PREFIX;
}

impl<G: SettingGroup> ExtensionOptions for Prefixed<G> {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }

    fn cloned(&self) -> Box<dyn ExtensionOptions> {
        Box::new(self.clone())
    }

    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let entries = self.0.entries();
        if entries.iter().all(|entry| entry.key != key) {
            let hint = suggest::hint(key, entries.iter().map(|entry| entry.key.as_str()));
            return config_err!("there is no setting {}.{key}{hint}", G::PREFIX);
        }
        self.0.set(key, &G::checked(key, value)?)
    }

    fn entries(&self) -> Vec<ConfigEntry> {
        let prefixed = |entry: ConfigEntry| ConfigEntry { key: format!("{}.{}", G::PREFIX, entry.key), ..entry };
        self.0.entries().into_iter().map(prefixed).collect()
    }
}

extensions_options! {
    /// The fields of [`AeOptions`].
    pub struct AeSettings {
        /// Model that a function without a model name uses. Default: empty, the only model of the store.
        pub default_model: String, default = String::new()
        /// Rows of one run of a model, 0 to 1048576, rounded up to a multiple of 16. Default: 0, from the widths of the
        /// model.
        pub batch_rows: usize, default = 0
        /// Device that runs models. Default: cpu, the only device of this build; any other name fails.
        pub device: String, default = "cpu".to_owned()
        /// Largest model file that is read, bytes, 1 up. Default: 536870912 (512 MiB).
        pub max_model_bytes: u64, default = Limits::default().bytes
        /// Time for the test runs of a model file before its registration, seconds, 1 to 86400. Default: 45.
        pub registration_seconds: u64, default = DEFAULT_REGISTRATION_SECONDS
        /// Whether calls on the same model and features share one run a row, true or false. Results are the same.
        /// Default: true.
        pub lift_calls: bool, default = true
        /// Memory for the rows of a training, bytes, 16777216 up; more rows go to temporary files. Default: 536870912
        /// (512 MiB).
        pub train_memory: usize, default = 512 << 20
    }
}

impl SettingGroup for AeSettings {
    const PREFIX: &'static str = "ae";

    fn checked<'a>(key: &str, value: &'a str) -> Result<Cow<'a, str>> {
        match key {
            "batch_rows" if !value.parse::<usize>().is_ok_and(|rows| rows <= MAX_BATCH_ROWS) => {
                config_err!("ae.batch_rows must be a whole number from 0 to {MAX_BATCH_ROWS}; found '{value}'")
            }
            "max_model_bytes" if !value.parse::<u64>().is_ok_and(|bytes| bytes > 0) => {
                config_err!("ae.max_model_bytes must be a whole number of bytes from 1 up; found '{value}'")
            }
            "registration_seconds"
                if !value.parse::<u64>().is_ok_and(|seconds| (1..=MAX_SECONDS).contains(&seconds)) =>
            {
                config_err!("ae.registration_seconds must be a whole number from 1 to {MAX_SECONDS}; found '{value}'")
            }
            "train_memory" if !value.parse::<usize>().is_ok_and(|bytes| bytes >= MIN_TRAIN_MEMORY) => {
                config_err!(
                    "ae.train_memory must be a whole number of bytes from {MIN_TRAIN_MEMORY} up; found '{value}'"
                )
            }
            "lift_calls" if value.to_lowercase().parse::<bool>().is_err() => {
                config_err!("ae.lift_calls must be true or false; found '{value}'")
            }
            "device" => Ok(Cow::Owned(value.to_lowercase())),
            _ => Ok(Cow::Borrowed(value)),
        }
    }
}

/// The settings of a session under `ae.`.
///
/// | setting | type | default |
/// | --- | --- | --- |
/// | `default_model` | text | empty: the only model of the store |
/// | `batch_rows` | 0 to 1048576 | 0: from the widths of the model |
/// | `device` | text | `cpu` |
/// | `max_model_bytes` | bytes, 1 up | 536870912 |
/// | `registration_seconds` | seconds, 1 to 86400 | 45 |
/// | `lift_calls` | boolean | `true` |
/// | `train_memory` | bytes, 16777216 up | 536870912 |
pub type AeOptions = Prefixed<AeSettings>;

impl AeOptions {
    /// Rows of one run, if the session sets them.
    pub(crate) fn block_rows(&self) -> Option<usize> {
        (self.batch_rows > 0).then_some(self.batch_rows)
    }

    /// Limits for a model file.
    pub fn limits(&self) -> Limits {
        Limits {
            bytes: self.max_model_bytes,
            registration: Duration::from_secs(self.registration_seconds),
            ..Limits::default()
        }
    }

    /// The model that a call names; without a name, the default model of the session, if it has one.
    ///
    /// # Errors
    /// A planning error if the text names no model.
    pub(crate) fn reference(&self, named: Option<&str>) -> Result<Option<ModelRef>> {
        let default = Some(self.default_model.as_str()).filter(|default| !default.is_empty());
        named.or(default).map(ModelRef::parse).transpose()
    }

    /// Checks that this build has the device.
    ///
    /// # Errors
    /// A planning error if it has not.
    pub(crate) fn check_device(&self) -> Result<()> {
        if self.device != "cpu" {
            return plan_err!(
                "ae.device = '{}': this build has no such device; it has 'cpu' (SET ae.device = 'cpu')",
                self.device
            );
        }
        Ok(())
    }
}
