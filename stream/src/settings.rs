//! Settings of pipelines, `SET stream.… = …`.

use std::any::Any;
use std::time::Duration;

use aefusion_udfs::choice::Choice;
use datafusion::common::{extensions_options, plan_err};
use datafusion::config::{ConfigEntry, ConfigExtension, ConfigOptions, ExtensionOptions};
use datafusion::error::Result;
use strum::{EnumString, IntoStaticStr, VariantNames};

extensions_options! {
    /// Settings under `stream.`: those of the pipelines that the statements after them make.
    pub struct Options {
        /// Name of the next pipeline, which its offsets and transactions are kept under. Default: empty, the name of the file and that of the sink.
        pub name: String, default = String::new()
        /// Records of a micro-batch, at most, 1 up. Default: 32768.
        pub max_batch_rows: usize, default = 32768
        /// Age at which a micro-batch ends, milliseconds, 1 up. Default: 100.
        pub max_batch_ms: u64, default = 100
        /// What a failure may do to rows of a topic: 'exactly_once', or 'at_least_once', which repeats some and is a little faster. Default: exactly_once.
        pub delivery: String, default = "exactly_once".to_owned()
        /// Whether a version of a model that is published meanwhile is taken up: 'none' or 'poll'. Default: none.
        pub reload: String, default = "none".to_owned()
        /// How often a pipeline with reload = 'poll' looks for one, milliseconds, 1 up. Default: 5000.
        pub reload_ms: u64, default = 5000
        /// Rows of a file that a pipeline writes, about, 1 up. Default: 1000000.
        pub file_rows: usize, default = 1_000_000
        /// Age at which a file that a pipeline writes is finished, milliseconds, 1 up. Default: 10000.
        pub file_ms: u64, default = 10_000
    }
}

/// The settings of a session under `stream.`, listed with what stands before their names.
#[derive(Debug, Clone, Default)]
pub struct StreamOptions(Options);

impl ConfigExtension for StreamOptions {
    const PREFIX: &'static str = "stream";
}

impl ExtensionOptions for StreamOptions {
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
        self.0.set(key, value)
    }

    fn entries(&self) -> Vec<ConfigEntry> {
        let named = |entry: ConfigEntry| ConfigEntry { key: format!("{}.{}", Self::PREFIX, entry.key), ..entry };
        self.0.entries().into_iter().map(named).collect()
    }
}

/// What a failure may do to the rows of a pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case", ascii_case_insensitive)]
pub(crate) enum Delivery {
    /// Each record has its rows once.
    ExactlyOnce,
    /// Each record has its rows at least once.
    AtLeastOnce,
}

/// Whether new versions of models are taken up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case", ascii_case_insensitive)]
enum Reload {
    None,
    Poll,
}

/// [`StreamOptions`], checked.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The name that was set for the next pipeline.
    pub(crate) name: Option<String>,
    pub(crate) max_batch_rows: usize,
    pub(crate) max_batch: Duration,
    pub(crate) delivery: Delivery,
    /// How often new versions of models are looked for.
    pub(crate) reload: Option<Duration>,
    pub(crate) file_rows: usize,
    pub(crate) file: Duration,
}

impl Settings {
    /// The settings of a session.
    ///
    /// # Errors
    /// A planning error that names the setting and its range.
    pub(crate) fn of(config: &ConfigOptions) -> Result<Self> {
        let StreamOptions(options) = config.extensions.get::<StreamOptions>().cloned().unwrap_or_default();
        let rows = |name, rows: usize| match rows {
            0 => plan_err!("stream.{name} must be a whole number from 1 up; found 0"),
            rows => Ok(rows),
        };
        let time = |name, ms: u64| match ms {
            0 => plan_err!("stream.{name} must be a whole number of milliseconds from 1 up; found 0"),
            ms => Ok(Duration::from_millis(ms)),
        };
        let reload_every = time("reload_ms", options.reload_ms)?;
        Ok(Self {
            name: (!options.name.is_empty()).then_some(options.name),
            max_batch_rows: rows("max_batch_rows", options.max_batch_rows)?,
            max_batch: time("max_batch_ms", options.max_batch_ms)?,
            delivery: Delivery::parse("stream.delivery", &options.delivery)?,
            reload: (Reload::parse("stream.reload", &options.reload)? == Reload::Poll).then_some(reload_every),
            file_rows: rows("file_rows", options.file_rows)?,
            file: time("file_ms", options.file_ms)?,
        })
    }
}
