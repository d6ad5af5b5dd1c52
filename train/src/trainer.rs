//! `CREATE MODEL … AS SELECT`, from the rows of the query to the bytes of the ONNX file.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use aefusion_udfs::catalog::Models;
use aefusion_udfs::config::AeOptions;
use aefusion_udfs::model::Limits;
use aefusion_udfs::model::runtime::runtime_info;
use aefusion_udfs::sql::{Trainer, TrainingJob};
use aefusion_udfs::store::ModelName;
use async_trait::async_trait;
use bytes::Bytes;
use datafusion::common::internal_err;
use datafusion::common::runtime::SpawnedTask;
use datafusion::dataframe::DataFrame;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{DiskManager, SendableRecordBatchStream, SessionStateBuilder};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{ExecutionPlan, execute_stream_partitioned};
use datafusion::prelude::SessionContext;
use futures::StreamExt;

use crate::config::{Config, FineTune, OF_THE_BASE, OnInterrupt, SplitBy};
use crate::deal::Deal;
use crate::defaults;
use crate::design::Design;
use crate::finish::{Finished, statistics};
use crate::fit::FitContext;
use crate::ingest::{self, Roles, Table};
use crate::labels::Labels;
use crate::recipe::{Recipe, Trained, classifier, together};
use crate::rule::Rule;
use crate::split::{most_calibration_rows, split};
use crate::summary::Summary;
use crate::warm_start::{self, Base};
use crate::watch::{StoppableWatch, Watch};

/// Trains models on the CPU, with as many threads as the session has `target_partitions`.
///
/// The file depends on the rows, their order, the options and the seed, not on the number of threads. A training runs on
/// a thread of its own. It stops when its statement is dropped, or when its [`Watch`] aborts it.
#[derive(Debug, Clone)]
pub struct SqlTrainer {
    watch: Arc<dyn Watch>,
}

impl SqlTrainer {
    /// A trainer that reports its progress to `watch`; [`Unwatched`](crate::Unwatched) ignores it.
    pub fn new(watch: Arc<dyn Watch>) -> Self {
        Self { watch }
    }
}

#[async_trait]
impl Trainer for SqlTrainer {
    async fn train(&self, session: &SessionContext, job: TrainingJob) -> Result<Bytes> {
        // a missing runtime must fail here, not after hours of training
        runtime_info()?;
        let state = session.state();
        let settings = AeOptions::of(state.config_options());
        let Some(models) = state.config().get_extension::<Models>() else {
            return internal_err!("the session has a trainer and no models; add the models with register_all");
        };
        let mut options = job.options;
        warm_start::inherit_options(&mut options, &models, &job.name, &settings).await?;
        let config = Config::of(options)?;
        let base = Base::find(&models, &job.name, &config, &settings).await?;
        let disk = Arc::clone(&session.runtime_env().disk_manager);
        let option = if config.warm_start { "warm_start" } else { "base_model" };
        let mut rule = Rule::of(&config, base.as_ref().and_then(|base| base.rule.as_ref()), option)?;
        rule.may_have_trained |= base.as_ref().is_some_and(|base| base.rule.is_none());
        let roles = Roles {
            label: config.classifier.as_ref().map(|classifier| classifier.label.clone()),
            split_by: rule.by.clone(),
        };
        let table = ingest::read(in_order(job.rows).await?, &roles, settings.train_memory, Arc::clone(&disk)).await?;
        self.watch.keep_on_interrupt(config.on_interrupt == OnInterrupt::Keep);
        let (watch, _stop) = StoppableWatch::new(Arc::clone(&self.watch));
        let training = Training {
            name: job.name,
            config,
            base,
            rule,
            disk,
            memory: settings.train_memory,
            limits: settings.limits(),
            threads: state.config().target_partitions(),
            watch,
        };
        let task = SpawnedTask::spawn_blocking(move || training.run(table));
        let (file, summary) = task.join().await.map_err(|e| DataFusionError::ExecutionJoin(Box::new(e)))??;
        let watch = Arc::clone(&self.watch);
        job.after_publication.set(move || watch.finished(&summary));
        Ok(file)
    }
}

/// The rows of a query in one stream, in the order of the query's partitions. The query is planned for one thread: its
/// order does not depend on `target_partitions`.
async fn in_order(rows: DataFrame) -> Result<SendableRecordBatchStream> {
    let (state, plan) = rows.into_parts();
    // the builder's own configuration keeps the catalog; that of the state would replace it with an empty one
    let mut builder = SessionStateBuilder::new_from_existing(state);
    let config = builder.config().take().unwrap_or_default().with_target_partitions(1);
    let state = builder.with_config(config).build();
    let rows = DataFrame::new(state, plan);
    let context = Arc::new(rows.task_ctx());
    let plan: Arc<dyn ExecutionPlan> = rows.create_physical_plan().await?;
    let schema = plan.schema();
    let partitions = execute_stream_partitioned(plan, context)?;
    Ok(Box::pin(RecordBatchStreamAdapter::new(schema, futures::stream::iter(partitions).flatten())))
}

/// A training whose rows have been read.
struct Training {
    name: ModelName,
    config: Config,
    base: Option<Base>,
    rule: Rule,
    disk: Arc<DiskManager>,
    memory: usize,
    limits: Limits,
    threads: usize,
    watch: StoppableWatch,
}

impl Training {
    fn run(self, table: Table) -> Result<(Bytes, Summary)> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(self.threads)
            .thread_name(|i| format!("training {i}"))
            .build()
            .map_err(|e| DataFusionError::External(Box::new(e)))?;
        pool.install(|| self.train(table))
    }

    fn train(mut self, table: Table) -> Result<(Bytes, Summary)> {
        let labels = match &self.config.classifier {
            Some(classifier) => Some(Labels::of(&table, &classifier.label)?),
            None => None,
        };
        let most_calibration = most_calibration_rows(self.memory, &table);
        let deal = Deal::of(&table, self.rule.clone(), labels.as_ref(), most_calibration, &self.watch)?;
        let mut columns: Vec<usize> =
            (0..table.columns.len()).filter(|i| labels.as_ref().is_none_or(|labels| labels.column != *i)).collect();
        let design = match &self.base {
            Some(base) => {
                let (design, order) = base.design(&table, &columns)?;
                columns = order;
                design
            }
            None => Design::of(&table, &deal.seen, &columns, self.config.max_categories, self.config.scaling)?,
        };
        if let (Some(base), Some(labels), true) = (&self.base, &labels, self.config.warm_start) {
            base.check_classes(&labels.classes)?;
        }
        let statistics = statistics(&table, &columns);
        self.settle(&deal);
        let parts = split(table, &deal, &design, &columns, labels.as_ref(), self.memory, &self.disk, &self.watch)?;
        let is_interrupted = AtomicBool::new(false);
        let context = FitContext {
            train: &parts.train,
            held_out: &parts.held_out,
            options: &self.config.fit,
            watch: &self.watch,
            is_interrupted: &is_interrupted,
        };
        context.check()?;
        let hidden_units = self.hidden_units(design.width);
        let recipe = Recipe { config: &self.config, hidden_units: &hidden_units, context };
        recipe.check_size(&self.limits, deal.of_class.len())?;
        let trained = self.recipe(&recipe, &deal.of_class)?;
        // the autoencoder of the base did not change: neither did its errors, nor their calibration
        let is_unchanged = self.config.classifier.as_ref().is_some_and(|options| options.fine_tune == FineTune::Head);
        let calibrated = self.base.as_ref().filter(|_| is_unchanged);
        let calibration = calibrated.and_then(|base| base.calibration(self.config.error_metric));
        let finished = Finished {
            calibration,
            rule: &deal.rule,
            recipe,
            design: &design,
            columns: &columns,
            parts: &parts,
            trained,
            statistics,
            classes: labels.map(|labels| labels.classes),
        };
        finished.file(&self.name, &self.limits)
    }

    /// Sets the options that depend on the training rows or on the base model.
    fn settle(&mut self, deal: &Deal) {
        let (config, rows) = (&mut self.config, deal.train);
        config.recorded.insert("calibration_share".to_owned(), deal.rule.calibration.into());
        config.fit.batch_size = config.batch_size.unwrap_or_else(|| defaults::batch_size(rows));
        config.fit.max_iterations = config.max_iterations.unwrap_or_else(|| config.purpose.epochs(rows));
        match &deal.rule.by {
            SplitBy::Row => None,
            SplitBy::Group(column) => config.recorded.insert("split_by".to_owned(), column.as_str().into()),
            SplitBy::Time(column) => config.recorded.insert("split_by_time".to_owned(), column.as_str().into()),
        };
        config.recorded.insert("batch_size".to_owned(), config.fit.batch_size.into());
        config.recorded.insert("max_iterations".to_owned(), config.fit.max_iterations.into());
        if let Some(base) = &self.base {
            for option in OF_THE_BASE {
                config.recorded.remove(option);
                config.recorded.extend(base.recorded(option).map(|value| (option.to_owned(), value)));
            }
        }
    }

    fn hidden_units(&self, width: usize) -> Vec<usize> {
        match (&self.base, &self.config.hidden_units) {
            (Some(base), _) => base.hidden_units(),
            (None, Some(units)) => units.clone(),
            (None, None) => self.config.purpose.hidden_units(width),
        }
    }

    /// Trains the networks. `of_class` has the training rows of each class.
    fn recipe(&self, recipe: &Recipe<'_>, of_class: &[usize]) -> Result<Trained> {
        let networks = self.base.as_ref().map(|base| base.networks.clone());
        let Some(options) = &self.config.classifier else {
            return match networks {
                Some(networks) => together::train(recipe, networks),
                None => recipe.autoencoder(),
            };
        };
        match networks {
            Some(networks) => classifier::train(recipe, options, networks, of_class),
            None => {
                recipe.autoencoder()?.followed_by(|networks| classifier::train(recipe, options, networks, of_class))
            }
        }
    }
}
