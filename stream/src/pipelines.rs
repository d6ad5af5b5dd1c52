//! The pipelines of a script. They are planned, started and stopped together.

use std::sync::Arc;
use std::time::Duration;

use aefusion_udfs::catalog::Models;
use aefusion_udfs::explain;
use aefusion_udfs::sql::{Statement, execute, parse};
use datafusion::common::runtime::{JoinSet, SpawnedTask};
use datafusion::common::{internal_err, plan_err};
use datafusion::error::{DataFusionError, Result};
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement as DataFusionStatement;
use datafusion::sql::sqlparser::ast::Statement as SqlStatement;

use super::job::{Job, Plan};
use super::metrics::Metrics;
use super::stats::Stats;
use super::stop::StopHandle;

/// How pipelines run, see [`Pipelines::run`].
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Name of this instance of the pipelines: letters, digits, `_` and `-`. Default: `main`.
    ///
    /// Instances in other processes share the partitions of the topics. An instance replaces a running one that has the
    /// same name.
    pub instance: String,
    /// Whether to end when the topics are read to their ends and everything is committed. Default: false.
    pub until_end: bool,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self { instance: "main".to_owned(), until_end: false }
    }
}

impl RunOptions {
    /// Checks the options. [`Pipelines::run`] does the same, but after the whole script.
    ///
    /// # Errors
    /// A planning error if the name of the instance is empty or has other characters.
    pub fn check(&self) -> Result<()> {
        check_name("the instance name", &self.instance)
    }
}

/// The pipelines of a script, ready to run.
///
/// ```no_run
/// # async fn run(context: datafusion::prelude::SessionContext, script: &str) -> datafusion::error::Result<()> {
/// use aefusion_stream::{Pipelines, RunOptions};
///
/// let pipelines = Pipelines::plan(&context, script, "alerts").await?;
/// let stats = pipelines.stats().to_vec(); // stats[0].line() is a summary
/// let stop = pipelines.stop_handle(); // stop.stop() ends the pipelines
/// pipelines.run(&RunOptions { until_end: true, ..RunOptions::default() }).await?;
/// # drop((stats, stop));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Pipelines {
    plans: Vec<Plan>,
    models: Models,
    metrics: Arc<Metrics>,
    stats: Vec<Arc<Stats>>,
    stop: StopHandle,
}

impl Pipelines {
    /// Runs the statements of a script in their order, and plans each INSERT as a pipeline. Planning a pipeline
    /// connects to no broker.
    ///
    /// The session must have been built with [`with_pipelines`](crate::SessionStateBuilderExt::with_pipelines) and
    /// `with_autoencoders` of `aefusion_udfs`. A script with `CREATE MODEL … AS SELECT` also needs a trainer. A
    /// pipeline without `SET stream.name` has the name `script_name-SINK`.
    ///
    /// # Errors
    /// - A planning error if a statement is a query, or if the script has no INSERT.
    /// - A planning error if an INSERT cannot be a pipeline, or if two pipelines have the same name.
    /// - The error of a statement that fails.
    /// - An internal error if the session has no models.
    pub async fn plan(context: &SessionContext, script: &str, script_name: &str) -> Result<Self> {
        let Some(models) = context.state().config().get_extension::<Models>() else {
            return internal_err!("the session has no models; build it with with_autoencoders");
        };
        let plans = plans(context, script, script_name).await?;
        let metrics = Arc::new(Metrics::new());
        let stats = plans.iter().map(|plan| Stats::new(&plan.name, Arc::clone(&metrics))).collect();
        Ok(Self { plans, models: models.as_ref().clone(), metrics, stats, stop: StopHandle::default() })
    }

    /// Statistics of each pipeline, in the order of the script. They stay up to date while the pipelines run.
    pub fn stats(&self) -> &[Arc<Stats>] {
        &self.stats
    }

    /// Metrics of all pipelines, for Prometheus. They stay up to date while the pipelines run.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// A handle for ending the pipelines from another task or thread.
    pub fn stop_handle(&self) -> StopHandle {
        self.stop.clone()
    }

    /// Runs all pipelines until a stop is requested, or until the ends of their topics. If one fails, the others stop.
    ///
    /// Failures of brokers, networks, disks and stores do not end a pipeline. It retries from its last commit.
    ///
    /// # Errors
    /// - A planning error if the name of the instance is not valid, or if a query cannot run batch by batch.
    /// - The first error that a retry cannot fix. Others are logged.
    pub async fn run(self, options: &RunOptions) -> Result<()> {
        options.check()?;
        let mut jobs = JoinSet::new();
        for (plan, stats) in self.plans.into_iter().zip(&self.stats) {
            tracing::info!(pipeline = plan.name, instance = options.instance, "{}", plan.describe());
            let job = Job {
                plan,
                models: self.models.clone(),
                instance: options.instance.clone(),
                until_end: options.until_end,
                stop: self.stop.clone(),
                stats: Arc::clone(stats),
            };
            jobs.spawn(async move { job.run().await });
        }
        let _ticking = SpawnedTask::spawn(tick(self.stats.clone()));
        let mut failed = None;
        while let Some(ended) = jobs.join_next().await {
            if let Err(error) = ended.unwrap_or_else(|e| Err(DataFusionError::External(Box::new(e)))) {
                self.stop.stop();
                match &failed {
                    None => failed = Some(error),
                    Some(_) => tracing::error!("{}", aefusion_udfs::message(&error)),
                }
            }
        }
        for stats in &self.stats {
            tracing::info!(pipeline = stats.pipeline(), "ended: {}", stats.line());
        }
        failed.map_or(Ok(()), Err)
    }
}

/// Checks a name that becomes part of names of files and transactions. `what` names it in the error.
///
/// # Errors
/// A planning error if the name is empty or has other characters than letters, digits, `_` and `-`.
pub(crate) fn check_name(what: &str, name: &str) -> Result<()> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    match !name.is_empty() && name.chars().all(is_plain) {
        true => Ok(()),
        false => plan_err!("{what} must consist of letters, digits, '_' and '-'; found '{name}'"),
    }
}

/// Runs the statements of a script, and plans its pipelines.
async fn plans(context: &SessionContext, script: &str, script_name: &str) -> Result<Vec<Plan>> {
    let mut plans: Vec<Plan> = Vec::new();
    for statement in parse(context, script)? {
        match statement {
            Statement::DataFusion(statement) if is_insert(&statement) => {
                let what = format!("{statement}");
                let plan = Plan::try_new(&context.state(), *statement, script_name).await;
                let plan = plan.map_err(|e| explain(shortened(&what), e))?;
                if plans.iter().any(|other| other.name == plan.name) {
                    return plan_err!(
                        "two pipelines have the name '{}'; use SET stream.name = '…' before the second to rename it",
                        plan.name
                    );
                }
                plans.push(plan);
            }
            Statement::DataFusion(statement) if is_query(&statement) => {
                return plan_err!(
                    "{}: a script of pipelines cannot return rows; run queries with aefusion sql",
                    shortened(&statement.to_string())
                );
            }
            statement => drop(execute(context, statement).await?.collect().await?),
        }
    }
    match plans.is_empty() {
        true => plan_err!("the script has no pipeline; add an INSERT INTO … SELECT … for each"),
        false => Ok(plans),
    }
}

fn is_insert(statement: &DataFusionStatement) -> bool {
    matches!(statement, DataFusionStatement::Statement(sql) if matches!(sql.as_ref(), SqlStatement::Insert(_)))
}

fn is_query(statement: &DataFusionStatement) -> bool {
    match statement {
        DataFusionStatement::Statement(sql) => matches!(sql.as_ref(), SqlStatement::Query(_)),
        DataFusionStatement::Explain(_) => true,
        _ => false,
    }
}

fn shortened(statement: &str) -> String {
    const SHOWN: usize = 60;
    match statement.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &statement[..end]),
        None => statement.to_owned(),
    }
}

/// Updates the statistics every second.
async fn tick(all: Vec<Arc<Stats>>) {
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    loop {
        seconds.tick().await;
        all.iter().for_each(|stats| stats.tick());
    }
}
