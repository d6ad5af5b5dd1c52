//! The settings of one pipeline, checked when it is planned.

use std::time::Duration;

use aefusion_udfs::choice::Choice;
use datafusion::common::plan_err;
use datafusion::config::ConfigOptions;
use datafusion::error::Result;
use strum::{EnumString, IntoStaticStr, VariantNames};

use super::StreamOptions;

/// Delivery of rows to a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case", ascii_case_insensitive)]
pub(crate) enum Delivery {
    /// The rows of each record are written once.
    ExactlyOnce,
    /// The rows of each record are written at least once.
    AtLeastOnce,
}

/// Whether a running pipeline switches to new versions of its models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case", ascii_case_insensitive)]
enum Reload {
    None,
    Poll,
}

/// [`StreamOptions`] with checked values.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Name of the pipeline, if the script sets one.
    pub(crate) name: Option<String>,
    pub(crate) max_batch_rows: usize,
    pub(crate) max_batch: Duration,
    pub(crate) delivery: Delivery,
    /// How often to check for new versions of models; none: never.
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
        let options = StreamOptions::of(config).0;
        let rows = |name, rows: usize| match rows {
            0 => plan_err!("stream.{name} must be a positive whole number; found 0"),
            rows => Ok(rows),
        };
        let time = |name, ms: u64| match ms {
            0 => plan_err!("stream.{name} must be a positive whole number of milliseconds; found 0"),
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
