//! Builds the session of every subcommand.

mod faults;
mod files;
mod lake;
mod mapped;
mod sample;
mod stores;
mod write;

use std::num::NonZeroUsize;
use std::sync::Arc;

use aefusion_stream::SessionStateBuilderExt as _;
use aefusion_train::{SessionStateBuilderExt as _, Unwatched, Watch};
use aefusion_udfs::SessionStateBuilderExt as _;
use aefusion_udfs::catalog::Models;
use aefusion_udfs::model::child::TrialProcess;
use aefusion_udfs::store::ModelStore;
use datafusion::catalog::DynamicFileCatalog;
use datafusion::config::ConfigOptions;
use datafusion::error::Result;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::sql::sqlparser::dialect::{Dialect, GenericDialect, dialect_from_str};

/// Number of memory consumers that an out-of-memory error lists.
const NAMED_CONSUMERS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4);

/// Formats of `CREATE EXTERNAL TABLE … STORED AS` whose tables are files.
const FILE_FORMATS: [&str; 6] = ["PARQUET", "CSV", "JSON", "NDJSON", "AVRO", "ARROW"];

/// Options of a session.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// Directory or URL of the model store.
    pub models: String,
    /// Memory of operators before they spill to disk, in bytes; none: no limit.
    pub memory_limit: Option<usize>,
    /// Whether local Parquet files (`*.parquet`) are mapped into memory, which is faster than reading them. Other programs
    /// must not write to mapped files: a file that is truncated ends the process, on Linux with a message.
    pub map_files: bool,
    /// Process in which model files are tried before they are registered.
    pub trials: TrialProcess,
    /// Observer of trainings.
    pub watch: Arc<dyn Watch>,
}

impl Default for SessionOptions {
    fn default() -> Self {
        let models = aefusion_udfs::store::default_location().to_string_lossy().into_owned();
        Self { models, memory_limit: None, map_files: true, trials: TrialProcess::This, watch: Arc::new(Unwatched) }
    }
}

/// A DataFusion session with autoencoders, pipelines and files as tables.
#[derive(Clone)]
pub struct Session {
    context: SessionContext,
    models: Models,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("models", &self.models).finish_non_exhaustive()
    }
}

/// Limits the memory of Parquet writers.
///
/// Each output file holds one row group in memory. With DataFusion's defaults, a million rows and four files, a code of 64
/// numbers and 32 columns took 1.7 GB. Its pages of 20,000 rows took a sixth more time than pages that are limited by size
/// alone, because each page is compressed by itself.
fn bound_writers(config: &mut SessionConfig) -> Result<()> {
    const ROW_GROUP_ROWS: usize = 128 * 1024;
    let defaults = ConfigOptions::default().execution;
    let execution = &mut config.options_mut().execution;
    if execution.parquet.max_row_group_size == defaults.parquet.max_row_group_size {
        execution.parquet.max_row_group_size = ROW_GROUP_ROWS;
    }
    if execution.parquet.data_page_row_count_limit == defaults.parquet.data_page_row_count_limit {
        execution.parquet.data_page_row_count_limit = ROW_GROUP_ROWS;
    }
    if execution.minimum_parallel_output_files == defaults.minimum_parallel_output_files {
        config.options_mut().set("datafusion.execution.minimum_parallel_output_files", "1")?;
    }
    Ok(())
}

impl Session {
    /// Opens a session. Environment variables `DATAFUSION_…` set its defaults.
    ///
    /// # Errors
    /// A planning error if the model store's URL is not supported, or a `DATAFUSION_…` variable is not valid.
    pub fn open(options: &SessionOptions) -> Result<Self> {
        let models = Models::with_trials(ModelStore::open(&options.models)?, options.trials.clone());
        let mut config = SessionConfig::from_env()?.with_information_schema(true);
        config.options_mut().explain.format = datafusion::common::format::ExplainFormat::Indent;
        bound_writers(&mut config)?;
        faults::switch_off(&mut config)?;
        let mut runtime = RuntimeEnvBuilder::new()
            .with_object_store_registry(Arc::new(stores::LazyStores::try_new(options.map_files)?));
        if let Some(bytes) = options.memory_limit {
            let pool = TrackConsumersPool::new(FairSpillPool::new(bytes), NAMED_CONSUMERS);
            runtime = runtime.with_memory_pool(Arc::new(pool));
        }
        let mut rules = faults::physical_optimizer_rules();
        rules.push(Arc::new(sample::KeepOrder));
        let state = SessionStateBuilder::new()
            .with_config(config)
            .with_runtime_env(runtime.build_arc()?)
            .with_default_features()
            .with_autoencoders(models.clone())
            .with_trainer(Arc::clone(&options.watch))
            .with_pipelines()
            .with_analyzer_rule(Arc::new(faults::AvoidFaults::default()))
            .with_analyzer_rule(Arc::new(write::StageWrites))
            .with_physical_optimizer_rules(rules)
            .with_relation_planners(vec![Arc::new(sample::SamplePlanner)])
            .build();
        let tables = Arc::new(files::FileTables::default());
        let catalogs = DynamicFileCatalog::new(Arc::clone(state.catalog_list()), Arc::clone(&tables) as _);
        let mut state = SessionStateBuilder::new_from_existing(state).with_catalog_list(Arc::new(catalogs)).build();
        for format in FILE_FORMATS {
            if let Some(factory) = state.table_factories_mut().get_mut(format) {
                *factory = Arc::new(lake::CheckedTables(Arc::clone(factory)));
            }
        }
        let context = SessionContext::new_with_state(state);
        tables.connect(&context);
        Ok(Self { context, models })
    }

    /// The DataFusion session.
    pub fn context(&self) -> &SessionContext {
        &self.context
    }

    /// The SQL dialect.
    pub(crate) fn dialect(&self) -> Box<dyn Dialect> {
        let name = self.context.state().config_options().sql_parser.dialect;
        dialect_from_str(name).unwrap_or_else(|| Box::new(GenericDialect))
    }

    /// The models.
    pub fn models(&self) -> &Models {
        &self.models
    }
}
