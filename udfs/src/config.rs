//! Settings of a session, `SET ae.… = …`.

use datafusion::common::config::{ConfigExtension, ConfigOptions};
use datafusion::common::extensions_options;

use crate::model::Limits;

extensions_options! {
    /// Settings under `ae.`.
    pub struct AeOptions {
        /// Model that a function without a model name uses; empty (the default): the only model of the store.
        pub default_model: String, default = String::new()
        /// Rows of one run of a model, 0 to 1048576, rounded up to a multiple of 16; 0 (the default): from the widths of the model.
        pub batch_rows: usize, default = 0
        /// Where models run; 'cpu' (the default) is what this build has. Asking for a device that is not there fails.
        pub device: String, default = "cpu".to_owned()
        /// Largest model file that is read, bytes, 1 up; default 536870912 (512 MiB).
        pub max_model_bytes: u64, default = Limits::default().bytes
    }
}

impl ConfigExtension for AeOptions {
    const PREFIX: &'static str = "ae";
}

/// Rows of one run, at most.
const MAX_BATCH_ROWS: usize = 1 << 20;

impl AeOptions {
    /// The settings of a session; the defaults where none were installed.
    pub fn of(config: &ConfigOptions) -> Self {
        config.extensions.get::<Self>().cloned().unwrap_or_default()
    }

    /// Rows of one run, where the user says it.
    pub(crate) fn block_rows(&self) -> Option<usize> {
        (self.batch_rows > 0).then(|| self.batch_rows.min(MAX_BATCH_ROWS))
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits { bytes: self.max_model_bytes, ..Limits::default() }
    }
}
