//! The pipelines of a script: planned together, started and stopped together.

use std::sync::Arc;
use std::time::Duration;

use aefusion_udfs::model::catalog::Models;
use aefusion_udfs::sql::{Statement, execute, explain, parse};
use datafusion::common::runtime::{JoinSet, SpawnedTask};
use datafusion::common::{internal_err, plan_err};
use datafusion::error::{DataFusionError, Result};
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement as DataFusionStatement;
use datafusion::sql::sqlparser::ast::Statement as SqlStatement;

use super::job::{Job, Plan};
use super::metrics::Metrics;
use super::stats::Stats;
use super::stop::Stop;

/// How pipelines run.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Name of this instance of the pipelines. Several instances share the partitions of a topic; a second one of the same
    /// name replaces the first. Default: `main`.
    pub instance: String,
    /// End after the topics were read up to their ends and everything is committed. Default: false.
    pub until_end: bool,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self { instance: "main".to_owned(), until_end: false }
    }
}

/// The pipelines of a script, ready to run.
#[derive(Debug)]
pub struct Pipelines {
    plans: Vec<Plan>,
    models: Models,
    metrics: Arc<Metrics>,
    stats: Vec<Arc<Stats>>,
    stop: Stop,
}

impl Pipelines {
    /// Runs the statements of a script that make tables, models and settings, and plans an INSERT as a pipeline each.
    ///
    /// `script_name` begins the names of pipelines that `SET stream.name` does not name.
    ///
    /// # Errors
    /// A planning error if a statement is a query, if an INSERT cannot be a pipeline, if two pipelines have one name or if
    /// there is none; the error of a statement that fails.
    pub async fn plan(context: &SessionContext, script: &str, script_name: &str) -> Result<Self> {
        let Some(models) = context.state().config().get_extension::<Models>() else {
            return internal_err!("the session has no models: build it with_autoencoders");
        };
        let plans = plans(context, script, script_name).await?;
        let metrics = Arc::new(Metrics::new());
        let stats = plans.iter().map(|plan| Stats::new(&plan.name, Arc::clone(&metrics))).collect();
        Ok(Self { plans, models: models.as_ref().clone(), metrics, stats, stop: Stop::default() })
    }

    /// Statistics of each pipeline.
    pub fn stats(&self) -> &[Arc<Stats>] {
        &self.stats
    }

    /// Metrics of all pipelines, for Prometheus.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Ends the pipelines when it is asked to.
    pub fn stop(&self) -> Stop {
        self.stop.clone()
    }

    /// Runs all pipelines until they are stopped, or until the ends of their topics. If one fails, the others stop.
    ///
    /// # Errors
    /// A planning error if the instance's name is refused; the first error that a retry cannot mend.
    pub async fn run(self, options: &RunOptions) -> Result<()> {
        check_name("the name of an instance", &options.instance)?;
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
                self.stop.ask();
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

/// Checks a name that stands in names of files and transactions. `what` begins the error.
///
/// # Errors
/// A planning error if the name is empty or has other characters than letters, digits, `_` and `-`.
pub fn check_name(what: &str, name: &str) -> Result<()> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    match !name.is_empty() && name.chars().all(is_plain) {
        true => Ok(()),
        false => plan_err!("{what} must be of letters, digits, '_' and '-'; found '{name}' (SET stream.name = '…')"),
    }
}

/// Runs the statements before the pipelines, and plans the pipelines.
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
                        "two pipelines are called '{}'; SET stream.name = '…' before the second gives it another name",
                        plan.name
                    );
                }
                plans.push(plan);
            }
            Statement::DataFusion(statement) if is_query(&statement) => {
                return plan_err!(
                    "{}: a pipeline has nowhere to print rows; aefusion sql does",
                    shortened(&statement.to_string())
                );
            }
            statement => drop(execute(context, statement).await?.collect().await?),
        }
    }
    match plans.is_empty() {
        true => plan_err!("the file has no INSERT INTO … SELECT …, so there is no pipeline to run"),
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
