//! The settings of pipelines, `SET stream.… = …`.

#[cfg(feature = "kafka")]
mod checked;

use aefusion_udfs::config::{Prefixed, SettingGroup};
use datafusion::common::extensions_options;

#[cfg(feature = "kafka")]
pub(crate) use checked::{Delivery, Settings};

extensions_options! {
    /// Settings under `stream.`. They apply to the pipelines that later statements create.
    pub struct StreamSettings {
        /// Name of the next pipeline, which is also the name of its consumer group. Default: empty, for FILE-SINK.
        pub name: String, default = String::new()
        /// Maximum number of records in a micro-batch, from 1. Default: 32768.
        pub max_batch_rows: usize, default = 32768
        /// Maximum age of a micro-batch, milliseconds, from 1. Default: 100.
        pub max_batch_ms: u64, default = 100
        /// Delivery to a topic: 'exactly_once', or 'at_least_once', which can repeat rows. Default: exactly_once.
        pub delivery: String, default = "exactly_once".to_owned()
        /// Whether a running pipeline switches to new versions of its models: 'none' or 'poll'. Default: none.
        pub reload: String, default = "none".to_owned()
        /// How often a pipeline with reload = 'poll' checks for new versions, milliseconds, from 1. Default: 5000.
        pub reload_ms: u64, default = 5000
        /// Approximate number of rows in each file of a pipeline, from 1. Default: 1000000.
        pub file_rows: usize, default = 1_000_000
        /// Age at which a pipeline finishes a file, milliseconds, from 1. Default: 10000.
        pub file_ms: u64, default = 10_000
    }
}

impl SettingGroup for StreamSettings {
    const PREFIX: &'static str = "stream";
}

/// The settings `stream.…` as an extension of DataFusion's configuration.
pub type StreamOptions = Prefixed<StreamSettings>;
