//! Training by SQL: from the rows of a query to an ONNX file.

mod activation;
mod aim;
mod config;
mod design;
mod export;
mod fit;
mod gradient;
mod loss;
mod network;
mod noise;
mod onnx;
mod optimizer;
mod outcome;
mod pca;
mod product;
mod recipe;
#[cfg(test)]
mod reference_tests;
mod rows;
mod samples;
mod spill;
mod start;
mod table;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aefusion_udfs::config::AeOptions;
use aefusion_udfs::model::Limits;
use aefusion_udfs::model::catalog::Models;
use aefusion_udfs::model::runtime::runtime_info;
use aefusion_udfs::model::store::ModelName;
use aefusion_udfs::sql::{Trainer, TrainingJob};
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

use config::{Config, FineTune, OnInterrupt};
use design::Design;
use fit::Rounds;
pub use fit::{Unwatched, Watch, Wish};
pub(crate) use pca::two_axes;
use recipe::{Recipe, Trained, classifier};
use rows::{Labels, Split};
use start::Base;
use table::Table;

/// Trains models on the processor.
#[derive(Debug, Clone)]
pub struct SqlTrainer {
    watch: Arc<dyn Watch>,
}

impl SqlTrainer {
    /// A trainer that is watched.
    pub fn new(watch: Arc<dyn Watch>) -> Self {
        Self { watch }
    }
}

#[async_trait]
impl Trainer for SqlTrainer {
    async fn train(&self, session: &SessionContext, job: TrainingJob) -> Result<Bytes> {
        // without it, hours of training could not be exported
        runtime_info()?;
        let state = session.state();
        let settings = AeOptions::of(state.config_options());
        let Some(models) = state.config().get_extension::<Models>() else {
            return internal_err!("a session that trains has no models");
        };
        let mut options = job.options;
        start::take_options(&mut options, &models, &job.name, &settings).await?;
        let config = Config::of(options)?;
        let base = Base::find(&models, &job.name, &config, &settings).await?;
        let disk = Arc::clone(&session.runtime_env().disk_manager);
        let texts: Vec<String> = config.classifier.iter().map(|classifier| classifier.label.clone()).collect();
        let table = table::read(in_order(job.rows).await?, &texts, settings.train_memory, Arc::clone(&disk)).await?;
        self.watch.interrupts_keep(config.on_interrupt == OnInterrupt::Keep);
        let is_dropped = Arc::new(AtomicBool::new(false));
        let training = Training {
            name: job.name,
            config,
            base,
            disk,
            memory: settings.train_memory,
            limits: settings.limits(),
            threads: state.config().target_partitions(),
            watch: Watcher { watch: Arc::clone(&self.watch), is_dropped: Arc::clone(&is_dropped) },
        };
        let _stop = StopOnDrop(is_dropped);
        let task = SpawnedTask::spawn_blocking(move || training.run(table));
        match task.join().await {
            Ok(trained) => trained,
            Err(e) => Err(DataFusionError::ExecutionJoin(Box::new(e))),
        }
    }
}

/// The rows of a query in one stream, whose order is that of the query's partitions however many threads there are.
async fn in_order(rows: DataFrame) -> Result<SendableRecordBatchStream> {
    let (state, plan) = rows.into_parts();
    let config = state.config().clone().with_target_partitions(1);
    let state = SessionStateBuilder::new_from_existing(state).with_config(config).build();
    let rows = DataFrame::new(state, plan);
    let context = Arc::new(rows.task_ctx());
    let plan: Arc<dyn ExecutionPlan> = rows.create_physical_plan().await?;
    let schema = plan.schema();
    let partitions = execute_stream_partitioned(plan, context)?;
    Ok(Box::pin(RecordBatchStreamAdapter::new(schema, futures::stream::iter(partitions).flatten())))
}

/// Stops a training whose statement is dropped.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Watcher {
    watch: Arc<dyn Watch>,
    is_dropped: Arc<AtomicBool>,
}

impl Watch for Watcher {
    fn interrupts_keep(&self, keep: bool) {
        self.watch.interrupts_keep(keep);
    }

    fn begin(&self, stage: &str, epochs: usize, rows: usize) {
        self.watch.begin(stage, epochs, rows);
    }

    fn rows(&self, rows: usize) {
        self.watch.rows(rows);
    }

    fn epoch(&self, epoch: usize, loss: f64, held_out_loss: Option<f64>) {
        self.watch.epoch(epoch, loss, held_out_loss);
    }

    fn finished(&self, summary: &[(&'static str, serde_json::Value)]) {
        self.watch.finished(summary);
    }

    fn wish(&self) -> Wish {
        if self.is_dropped.load(Ordering::Relaxed) { Wish::GiveUp } else { self.watch.wish() }
    }
}

/// A training whose rows have been read.
struct Training {
    name: ModelName,
    config: Config,
    base: Option<Base>,
    disk: Arc<DiskManager>,
    memory: usize,
    limits: Limits,
    threads: usize,
    watch: Watcher,
}

impl Training {
    fn run(self, table: Table) -> Result<Bytes> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(self.threads)
            .thread_name(|i| format!("training {i}"))
            .build()
            .map_err(|e| DataFusionError::External(Box::new(e)))?;
        pool.install(|| self.train(table))
    }

    fn train(mut self, table: Table) -> Result<Bytes> {
        let labels = match &self.config.classifier {
            Some(classifier) => Some(Labels::of(&table, &classifier.label)?),
            None => None,
        };
        let mut columns: Vec<usize> =
            (0..table.columns.len()).filter(|i| labels.as_ref().is_none_or(|labels| labels.column != *i)).collect();
        let design = match &self.base {
            Some(base) => {
                let (design, order) = base.design(&table, &columns)?;
                columns = order;
                design
            }
            None => Design::of(&table, &columns, self.config.max_categories, self.config.scaling)?,
        };
        if let (Some(base), Some(labels), true) = (&self.base, &labels, self.config.warm_start) {
            base.check_classes(&labels.classes)?;
        }
        let statistics = outcome::statistics(&table, &columns);
        let split = Split::of(&table, &self.config, self.memory);
        self.settle(split.train);
        let parts = rows::split(table, &design, &columns, labels.as_ref(), &split, self.memory, &self.disk)?;
        let rounds =
            Rounds { samples: &parts.train, held_out: &parts.held_out, options: &self.config.fit, watch: &self.watch };
        rounds.check()?;
        let hidden_units = self.hidden_units(design.width);
        let recipe = Recipe { config: &self.config, hidden_units: &hidden_units, rounds };
        recipe.check_size(&self.limits)?;
        let trained = self.recipe(&recipe, labels.as_ref())?;
        // with the encoder as it was, errors are as they were
        let is_as_it_was = self.config.classifier.as_ref().is_some_and(|options| options.fine_tune == FineTune::Head);
        let known = self.base.as_ref().filter(|_| is_as_it_was);
        let finished = outcome::Finished {
            calibration: known.and_then(|base| base.calibration(self.config.error_metric)),
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

    /// Fills in what depends on the number of rows.
    fn settle(&mut self, rows: usize) {
        let config = &mut self.config;
        config.fit.batch_size = config.batch_size.unwrap_or_else(|| aim::batch(rows));
        config.fit.max_iterations = config.max_iterations.unwrap_or_else(|| config.aim.epochs(rows));
        config.told.insert("batch_size".to_owned(), config.fit.batch_size.into());
        config.told.insert("max_iterations".to_owned(), config.fit.max_iterations.into());
        if let Some(base) = &self.base {
            for option in config::OF_THE_BASE {
                config.told.remove(option);
                config.told.extend(base.told(option).map(|value| (option.to_owned(), value)));
            }
        }
    }

    fn hidden_units(&self, width: usize) -> Vec<usize> {
        match (&self.base, &self.config.hidden_units) {
            (Some(base), _) => base.hidden_units(),
            (None, Some(units)) => units.clone(),
            (None, None) => self.config.aim.hidden_units(width),
        }
    }

    fn recipe(&self, recipe: &Recipe<'_>, labels: Option<&Labels>) -> Result<Trained> {
        let networks = self.base.as_ref().map(|base| base.networks.clone());
        let (Some(options), Some(labels)) = (&self.config.classifier, labels) else {
            return match networks {
                Some(networks) => recipe::together::train(recipe, networks),
                None => recipe.autoencoder(),
            };
        };
        match networks {
            Some(networks) => classifier::train(recipe, options, networks, labels.classes.labels.len()),
            None => recipe
                .autoencoder()?
                .followed_by(|networks| classifier::train(recipe, options, networks, labels.classes.labels.len())),
        }
    }
}
