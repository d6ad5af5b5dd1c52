//! The query of a pipeline: planned once, and run for each micro-batch.

use std::ops::Range;
use std::sync::Arc;

use aefusion_udfs::infer::{ObserverHandle, models_of};
use aefusion_udfs::model::Model;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use datafusion::catalog::memory::MemorySourceConfig;
use datafusion::common::runtime::SpawnedTask;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{internal_err, plan_err};
use datafusion::datasource::{provider_as_source, source_as_provider};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SessionState, SessionStateBuilder, TaskContext};
use datafusion::logical_expr::dml::InsertOp;
use datafusion::logical_expr::{DmlStatement, LogicalPlan, WriteOp};
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::execution_plan::{ChildrenPropertiesMode, ReplaceChildrenOptions, reset_plan_states};
use datafusion::physical_plan::joins::{CrossJoinExec, HashJoinExec, NestedLoopJoinExec, PartitionMode};
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties, collect};
use datafusion::sql::parser::Statement;
use futures::TryStreamExt;

use super::check::{check_no_query_time, check_row_by_row, topic};
use super::format::{Malformed, reason};
use super::kafka::KafkaTable;
use super::micro_batch::{MicroBatchExec, MicroBatchTable, Slot};
use super::records::Records;
use super::stats::Stats;

/// An `INSERT INTO sink SELECT … FROM topic`.
#[derive(Debug)]
pub(crate) struct Insert {
    statement: Statement,
    state: SessionState,
    pub(crate) source: KafkaTable,
    pub(crate) sink_name: String,
    pub(crate) sink: Arc<dyn TableProvider>,
}

impl Insert {
    /// Plans a statement to find its topic and its sink.
    ///
    /// # Errors
    /// A planning error if the statement is no INSERT, or reads no topic or several.
    pub(crate) async fn try_new(state: &SessionState, statement: Statement) -> Result<Self> {
        // The configuration of the builder, not of the state: the builder has noted that the default catalog exists.
        // With the configuration of the state, it would replace the catalog of the session by an empty one.
        let mut builder = SessionStateBuilder::new_from_existing(state.clone());
        let options = builder.config().get_or_insert_default().options_mut();
        // rows keep the order of their records, even with joins
        options.optimizer.repartition_joins = false;
        options.optimizer.enable_round_robin_repartition = false;
        // a dynamic filter would keep the values of one run for the next one
        options.set("datafusion.optimizer.enable_dynamic_filter_pushdown", "false")?;
        let state = builder.build();
        let insert = insert_of(state.statement_to_plan(statement.clone()).await?)?;
        let mut sources: Vec<KafkaTable> = Vec::new();
        insert.input.apply_with_subqueries(|node| {
            if let LogicalPlan::TableScan(scan) = node {
                sources.extend(topic(scan.source.as_ref()).cloned());
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        let Some(source) = sources.pop() else {
            return plan_err!(
                "the query reads no table that is STORED AS KAFKA; run such a statement with aefusion sql"
            );
        };
        if sources.iter().any(|other| other.connection.to_string() != source.connection.to_string()) {
            return plan_err!("the query reads more than one topic; a pipeline reads one");
        }
        let sink = source_as_provider(&insert.target)?;
        Ok(Self { statement, state, source, sink_name: insert.table_name.table().to_owned(), sink })
    }

    /// Plans the query with the current versions of its models, and reads its static tables.
    ///
    /// # Errors
    /// A planning error with the reason if the query cannot run batch by batch. An execution error if a static table
    /// cannot be read.
    pub(crate) async fn plan(&self, stats: &Arc<Stats>) -> Result<Query> {
        let insert = insert_of(self.state.statement_to_plan(self.statement.clone()).await?)?;
        let slot = Arc::new(Slot::default());
        let plan = Arc::unwrap_or_clone(insert.input);
        let plan = plan.transform_up_with_subqueries(|node| as_micro_batch(node, &slot))?.data;
        check_no_query_time(&plan)?;
        let plan = self.state.optimize(&plan)?;
        check_row_by_row(&plan)?;
        let models = models_of(&plan)?;
        let plan = self.state.query_planner().create_physical_plan(&plan, &self.state).await?;
        let config = self.state.config().clone().with_extension(Arc::new(ObserverHandle(Arc::clone(stats) as _)));
        let state = SessionStateBuilder::new_from_existing(self.state.clone()).with_config(config).build();
        let context = state.task_ctx();
        let plan = with_static_tables_read(in_order(plan)?, &context).await?;
        Ok(Query { plan, models, slot, context })
    }
}

fn insert_of(plan: LogicalPlan) -> Result<DmlStatement> {
    match plan {
        LogicalPlan::Dml(insert) => match insert.op {
            WriteOp::Insert(InsertOp::Append) => Ok(insert),
            _ => plan_err!("a pipeline can only add rows; use INSERT INTO"),
        },
        _ => plan_err!("a pipeline must be an INSERT INTO … SELECT … FROM …"),
    }
}

fn as_micro_batch(node: LogicalPlan, slot: &Arc<Slot>) -> Result<Transformed<LogicalPlan>> {
    let LogicalPlan::TableScan(mut scan) = node else { return Ok(Transformed::no(node)) };
    let Some(table) = topic(scan.source.as_ref()).cloned() else {
        return Ok(Transformed::no(LogicalPlan::TableScan(scan)));
    };
    scan.source = provider_as_source(Arc::new(MicroBatchTable { table, slot: Arc::clone(slot) }));
    Ok(Transformed::yes(LogicalPlan::TableScan(scan)))
}

/// Swaps the inputs of joins that would keep the topic in memory.
///
/// Afterwards the table is kept in memory, and the rows of the topic are probed in their order.
///
/// ```text
/// HashJoinExec: LeftSemi            HashJoinExec: RightSemi
///   CoalescePartitionsExec    =>      CoalescePartitionsExec
///     MicroBatchExec                    DataSourceExec
///   DataSourceExec                    MicroBatchExec
/// ```
fn in_order(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let ordered = plan.transform_up(|node| {
        // NOT IN cannot be swapped. Its result stays correct, but in another order.
        let is_fixed = node.downcast_ref::<HashJoinExec>().is_some_and(|join| join.null_aware);
        let is_built_from_topic = !is_fixed && node.children().first().is_some_and(|left| streams(left));
        if !is_built_from_topic {
            return Ok(Transformed::no(node));
        }
        let node = match node.downcast_ref::<HashJoinExec>() {
            Some(join) => {
                let left = without_coalescing(join.left());
                let children = vec![left, Arc::clone(join.right())];
                let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
                let join = Arc::clone(&node).replace_children(children, options)?;
                match join.downcast_ref::<HashJoinExec>() {
                    Some(join) => join.swap_inputs(PartitionMode::CollectLeft)?,
                    None => return internal_err!("a HashJoinExec became another node when its children were replaced"),
                }
            }
            None => match (node.downcast_ref::<NestedLoopJoinExec>(), node.downcast_ref::<CrossJoinExec>()) {
                (Some(join), _) => join.swap_inputs()?,
                (_, Some(join)) => join.swap_inputs()?,
                _ => return Ok(Transformed::no(node)),
            },
        };
        Ok(Transformed::yes(node))
    })?;
    Ok(ordered.data)
}

fn without_coalescing(plan: &Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
    match (plan.downcast_ref::<CoalescePartitionsExec>(), plan.children().as_slice()) {
        (Some(_), [input]) => Arc::clone(input),
        _ => Arc::clone(plan),
    }
}

/// Runs the parts of a plan that do not read the topic, and keeps their rows in memory.
async fn with_static_tables_read(
    plan: Arc<dyn ExecutionPlan>,
    context: &Arc<TaskContext>,
) -> Result<Arc<dyn ExecutionPlan>> {
    if !streams(&plan) {
        let schema = plan.schema();
        let rows = collect(plan, Arc::clone(context)).await?;
        return Ok(MemorySourceConfig::try_new_exec(&[rows], schema, None)?);
    }
    if plan.children().is_empty() {
        return Ok(plan);
    }
    let mut children = Vec::with_capacity(plan.children().len());
    for child in plan.children() {
        children.push(Box::pin(with_static_tables_read(Arc::clone(child), context)).await?);
    }
    plan.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
}

fn streams(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.downcast_ref::<MicroBatchExec>().is_some() || plan.children().into_iter().any(streams)
}

/// Result of a run of the query over one micro-batch.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Rows in the order of their records.
    pub(crate) rows: Vec<RecordBatch>,
    /// Malformed records, in order.
    pub(crate) malformed: Vec<Malformed>,
}

/// A planned query.
#[derive(Debug)]
pub(crate) struct Query {
    plan: Arc<dyn ExecutionPlan>,
    models: Vec<Arc<Model>>,
    slot: Arc<Slot>,
    context: Arc<TaskContext>,
}

impl Query {
    /// The models that the query was planned with.
    pub(crate) fn models(&self) -> &[Arc<Model>] {
        &self.models
    }

    pub(crate) fn schema(&self) -> SchemaRef {
        self.plan.schema()
    }

    /// Runs the query over records. A record counts as malformed if the query fails for it, for example in a cast. Such
    /// records are found by bisection; with `stop_at_first`, the search ends at the first.
    ///
    /// # Errors
    /// An error that no single record causes.
    pub(crate) async fn run(&self, records: &Records, stop_at_first: bool) -> Result<Outcome> {
        let mut outcome = Outcome { rows: Vec::new(), malformed: Vec::new() };
        self.split(records, 0..records.len(), stop_at_first, &mut outcome).await?;
        outcome.malformed.sort_by_key(|malformed| malformed.record);
        Ok(outcome)
    }

    async fn split(
        &self,
        records: &Records,
        range: Range<usize>,
        stop_at_first: bool,
        outcome: &mut Outcome,
    ) -> Result<()> {
        if range.is_empty() || (stop_at_first && !outcome.malformed.is_empty()) {
            return Ok(());
        }
        match self.run_once(records.slice(&range)).await {
            Ok((rows, malformed)) => {
                outcome.rows.extend(rows);
                let moved = malformed.into_iter().map(|m| Malformed { record: m.record + range.start, ..m });
                outcome.malformed.extend(moved);
                Ok(())
            }
            Err(error) if !may_be_of_a_record(&error) => Err(error),
            Err(error) if range.len() == 1 => {
                outcome.malformed.push(Malformed { record: range.start, reason: reason(&error) });
                Ok(())
            }
            Err(_) => {
                let middle = range.start + range.len() / 2;
                Box::pin(self.split(records, range.start..middle, stop_at_first, outcome)).await?;
                Box::pin(self.split(records, middle..range.end, stop_at_first, outcome)).await
            }
        }
    }

    async fn run_once(&self, records: Records) -> Result<(Vec<RecordBatch>, Vec<Malformed>)> {
        self.slot.put(records);
        let plan = reset_plan_states(Arc::clone(&self.plan))?;
        let n_partitions = plan.output_partitioning().partition_count();
        let mut running = Vec::with_capacity(n_partitions);
        for partition in 0..n_partitions {
            let rows = plan.execute(partition, Arc::clone(&self.context))?;
            running.push(SpawnedTask::spawn(rows.try_collect::<Vec<RecordBatch>>()));
        }
        let mut rows = Vec::new();
        for task in running {
            match task.join().await {
                Ok(batches) => rows.extend(batches?.into_iter().filter(|batch| batch.num_rows() > 0)),
                Err(error) if error.is_panic() => return internal_err!("the query panicked"),
                Err(error) => return Err(DataFusionError::External(Box::new(error))),
            }
        }
        Ok((rows, self.slot.take_malformed()))
    }
}

/// Whether a single record may have caused an error.
fn may_be_of_a_record(error: &DataFusionError) -> bool {
    matches!(error.find_root(), DataFusionError::Execution(_) | DataFusionError::ArrowError(..))
}
