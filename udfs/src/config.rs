//! Settings of a session, `SET ae.… = …`.

use std::any::Any;

use datafusion::common::{config_err, plan_err};
use datafusion::config::{ConfigEntry, ConfigExtension, ConfigOptions, ExtensionOptions};
use datafusion::error::Result;

use crate::model::Limits;
use crate::near;

/// Rows of one run, at most.
const MAX_BATCH_ROWS: usize = 1 << 20;

/// Settings under `ae.`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AeOptions {
    /// Model that a function without a model name uses; empty: the only model of the store.
    pub default_model: String,
    /// Rows of one run of a model, 0 to 1048576, rounded up to a multiple of 16; 0: from the widths of the model.
    pub batch_rows: usize,
    /// Where models run.
    pub device: String,
    /// Largest model file that is read, bytes.
    pub max_model_bytes: u64,
    /// Whether calls are lifted into shared runs of their model (plan node `Infer`).
    pub lift_calls: bool,
    /// Memory for the rows of a training, bytes; what is more goes to temporary files.
    pub train_memory: usize,
}

impl Default for AeOptions {
    fn default() -> Self {
        Self {
            default_model: String::new(),
            batch_rows: 0,
            device: "cpu".to_owned(),
            max_model_bytes: Limits::default().bytes,
            lift_calls: true,
            train_memory: 512 << 20,
        }
    }
}

const DEFAULT_MODEL: &str = "default_model";
const BATCH_ROWS: &str = "batch_rows";
const DEVICE: &str = "device";
const MAX_MODEL_BYTES: &str = "max_model_bytes";
const LIFT_CALLS: &str = "lift_calls";
const TRAIN_MEMORY: &str = "train_memory";

/// Least memory for a training: a block of rows on its way to a file.
const LEAST_TRAIN_MEMORY: usize = 16 << 20;

impl AeOptions {
    /// The settings of a session; the defaults where none were installed.
    pub fn of(config: &ConfigOptions) -> Self {
        config.extensions.get::<Self>().cloned().unwrap_or_default()
    }

    /// Rows of one run, where the user says it.
    pub(crate) fn block_rows(&self) -> Option<usize> {
        (self.batch_rows > 0).then_some(self.batch_rows)
    }

    /// What a model file may be.
    pub fn limits(&self) -> Limits {
        Limits { bytes: self.max_model_bytes, ..Limits::default() }
    }

    /// That models can run where they are asked to.
    ///
    /// # Errors
    /// A planning error if this build has no such device.
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

impl ConfigExtension for AeOptions {
    const PREFIX: &'static str = "ae";
}

impl ExtensionOptions for AeOptions {
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
        match key {
            DEFAULT_MODEL => value.clone_into(&mut self.default_model),
            DEVICE => value.to_lowercase().clone_into(&mut self.device),
            BATCH_ROWS => match value.parse() {
                Ok(rows) if rows <= MAX_BATCH_ROWS => self.batch_rows = rows,
                _ => {
                    return config_err!(
                        "ae.batch_rows must be a whole number from 0 to {MAX_BATCH_ROWS}; found '{value}'"
                    );
                }
            },
            MAX_MODEL_BYTES => match value.parse() {
                Ok(bytes) if bytes > 0 => self.max_model_bytes = bytes,
                _ => {
                    return config_err!(
                        "ae.max_model_bytes must be a whole number of bytes from 1 up; found '{value}'"
                    );
                }
            },
            LIFT_CALLS => match value.to_lowercase().parse() {
                Ok(lift) => self.lift_calls = lift,
                Err(_) => return config_err!("ae.lift_calls must be true or false; found '{value}'"),
            },
            TRAIN_MEMORY => match value.parse() {
                Ok(bytes) if bytes >= LEAST_TRAIN_MEMORY => self.train_memory = bytes,
                _ => {
                    return config_err!(
                        "ae.train_memory must be a whole number of bytes from {LEAST_TRAIN_MEMORY} up; found '{value}'"
                    );
                }
            },
            other => {
                let known = [DEFAULT_MODEL, BATCH_ROWS, DEVICE, MAX_MODEL_BYTES, LIFT_CALLS, TRAIN_MEMORY];
                return config_err!("there is no setting ae.{other}{}", near::hint(other, known));
            }
        }
        Ok(())
    }

    fn entries(&self) -> Vec<ConfigEntry> {
        let entry = |key: &str, value: String, description| ConfigEntry {
            key: format!("{}.{key}", Self::PREFIX),
            value: Some(value),
            description,
        };
        vec![
            entry(
                DEFAULT_MODEL,
                self.default_model.clone(),
                "Model that a function without a model name uses. Default: empty, the only model of the store.",
            ),
            entry(
                BATCH_ROWS,
                self.batch_rows.to_string(),
                "Rows of one run of a model, 0 to 1048576, rounded up to a multiple of 16. Default: 0, from the widths of the model.",
            ),
            entry(
                DEVICE,
                self.device.clone(),
                "Where models run. Default: cpu, which is what this build has; asking for a device that is not there fails.",
            ),
            entry(
                MAX_MODEL_BYTES,
                self.max_model_bytes.to_string(),
                "Largest model file that is read, bytes, 1 up. Default: 536870912 (512 MiB).",
            ),
            entry(
                LIFT_CALLS,
                self.lift_calls.to_string(),
                "Whether calls on the same model and features share one run a row, true or false. Results are the same. Default: true.",
            ),
            entry(
                TRAIN_MEMORY,
                self.train_memory.to_string(),
                "Memory for the rows of a training, bytes, 16777216 up; what is more goes to temporary files. Default: 536870912 (512 MiB).",
            ),
        ]
    }
}
