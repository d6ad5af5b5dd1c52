//! The physical plan node `InferExec`.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use datafusion::arrow::array::{ArrayRef, RecordBatch};
use datafusion::arrow::datatypes::{Field, FieldRef, Schema, SchemaRef};
use datafusion::common::config::ConfigOptions;
use datafusion::common::stats::ColumnStatistics;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Statistics, internal_err};
use datafusion::error::Result;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::projection::ProjectionMapping;
use datafusion::physical_expr::{PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::execution_plan::{
    CardinalityEffect, ChildrenPropertiesMode, PlanProperties, ReplaceChildrenOptions,
};
use datafusion::physical_plan::filter_pushdown::{
    ChildFilterDescription, ChildPushdownResult, FilterDescription, FilterPushdownPhase, FilterPushdownPropagation,
};
use datafusion::physical_plan::metrics::{
    BaselineMetrics, Count, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet, RecordOutput, Time,
};
use datafusion::physical_plan::sort_pushdown::SortOrderPushdownResult;
use datafusion::physical_plan::statistics::{ChildStats, StatisticsArgs};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, apply_expression_roots,
};
use futures::stream::{self, StreamExt};
use parking_lot::Mutex;

use super::Job;
use super::observe::{ObserverHandle, Scored};
use crate::explain::explain;
use crate::functions::BatchCall;
use crate::matrix::{Form, Rows};
use crate::output::Scores;
use crate::score::{Memory, Meter, PooledWorker, Request, Scoring, batch_rows};

/// Runs a model over each batch of its input, and adds the outputs as columns.
#[derive(Debug, Clone)]
pub(crate) struct InferExec {
    input: Arc<dyn ExecutionPlan>,
    features: Vec<Arc<dyn PhysicalExpr>>,
    job: Job,
    request: Request,
    form: Form,
    /// Rows of a block, if the session sets them.
    block_rows: Option<usize>,
    schema: SchemaRef,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
    /// The memory that all partitions share, while one of them runs.
    shared: Arc<Mutex<Weak<MemoryReservation>>>,
}

impl InferExec {
    /// A node over an input.
    ///
    /// # Errors
    /// A planning error if the model does not take these features.
    pub(crate) fn try_new(
        input: Arc<dyn ExecutionPlan>,
        features: Vec<Arc<dyn PhysicalExpr>>,
        job: Job,
        block_rows: Option<usize>,
    ) -> Result<Self> {
        let below = input.schema();
        let fields = features.iter().map(|feature| feature.return_field(&below)).collect::<Result<Vec<FieldRef>>>()?;
        let form = Form::of(&fields);
        let request = job.request(&form)?;
        let added: Vec<Field> = job.fields(&fields)?;
        let all: Vec<FieldRef> = below.fields().iter().cloned().chain(added.into_iter().map(Arc::new)).collect();
        let schema = Arc::new(Schema::new_with_metadata(all, below.metadata().clone()));
        let properties = properties(&input, &schema)?;
        let (metrics, shared) = (ExecutionPlanMetricsSet::new(), Arc::default());
        Ok(Self { input, features, job, request, form, block_rows, schema, properties, metrics, shared })
    }

    #[cfg(feature = "proto")]
    pub(crate) fn features(&self) -> &[Arc<dyn PhysicalExpr>] {
        &self.features
    }

    #[cfg(feature = "proto")]
    pub(crate) fn job(&self) -> &Job {
        &self.job
    }

    #[cfg(feature = "proto")]
    pub(crate) fn block_rows(&self) -> Option<usize> {
        self.block_rows
    }

    /// Takes the memory of the weights from the pool, once for all partitions.
    fn reserve_shared(&self, own: &MemoryReservation) -> Result<Arc<MemoryReservation>> {
        let mut shared = self.shared.lock();
        if let Some(reserved) = shared.upgrade() {
            return Ok(reserved);
        }
        let reserved = own.new_empty();
        reserved.try_grow(self.job.model.shared_bytes())?;
        let reserved = Arc::new(reserved);
        *shared = Arc::downgrade(&reserved);
        Ok(reserved)
    }

    fn with_input(&self, input: Arc<dyn ExecutionPlan>) -> Result<Self> {
        Self::try_new(input, self.features.clone(), self.job.clone(), self.block_rows)
    }
}

/// The properties of the input also hold here: its columns come first, in the same order.
fn properties(input: &Arc<dyn ExecutionPlan>, schema: &SchemaRef) -> Result<Arc<PlanProperties>> {
    let indices: Vec<usize> = (0..input.schema().fields().len()).collect();
    let mapping = ProjectionMapping::from_indices(&indices, &input.schema())?;
    let equivalences = input.equivalence_properties();
    Ok(Arc::new(
        PlanProperties::new(
            equivalences.project(&mapping, Arc::clone(schema)),
            input.output_partitioning().project(&mapping, equivalences),
            input.pipeline_behavior(),
            input.boundedness(),
        )
        .with_scheduling_type(input.properties().scheduling_type),
    ))
}

impl DisplayAs for InferExec {
    fn fmt_as(&self, style: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |feature: &Arc<dyn PhysicalExpr>| match feature.downcast_ref::<Column>() {
            Some(column) => column.name().to_owned(),
            None => feature.to_string(),
        };
        let features: Vec<String> = self.features.iter().map(name).collect();
        let block = self.job.model.block_rows(self.block_rows);
        match style {
            DisplayFormatType::Default | DisplayFormatType::Verbose => {
                write!(f, "InferExec: ")?;
                self.job.describe(&features, f)?;
                write!(f, ", block={block} rows")
            }
            DisplayFormatType::TreeRender => {
                let outputs: Vec<&str> = self.job.outputs.iter().map(|output| output.function.output()).collect();
                writeln!(f, "model={}", self.job.model)?;
                writeln!(f, "outputs={}", outputs.join(", "))?;
                write!(f, "block={block} rows")
            }
        }
    }
}

impl ExecutionPlan for InferExec {
    fn name(&self) -> &'static str {
        "InferExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        apply_expression_roots(self.features.iter(), f)
    }

    fn replace_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let (Some(input), true) = (children.pop(), children.is_empty()) else {
            return internal_err!("InferExec has one input");
        };
        Ok(match options.children_properties {
            ChildrenPropertiesMode::Keep => {
                Arc::new(Self { input, metrics: ExecutionPlanMetricsSet::new(), ..Self::clone(&self) })
            }
            ChildrenPropertiesMode::Recompute => Arc::new(self.with_input(input)?),
        })
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, Arc::clone(&context))?;
        let memory = MemoryConsumer::new(format!("InferExec[{partition}]")).register(context.memory_pool());
        let block_rows = self.job.model.block_rows(self.block_rows);
        let partition = Partition {
            exec: Arc::new(self.clone()),
            metrics: Metrics::new(&self.metrics, partition),
            memory,
            shared: None,
            block_rows,
            batch_rows: batch_rows(&self.job.model, self.job.start, &self.request, block_rows)?,
            worker: None,
            observer: context.session_config().get_extension::<ObserverHandle>(),
            input,
            is_first: true,
            rest: None,
        };
        let batches = stream::try_unfold(partition, |mut partition| async move {
            Ok(partition.next().await?.map(|batch| (batch, partition)))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), batches)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn child_stats_requests(&self, partition: Option<usize>) -> Vec<ChildStats> {
        vec![ChildStats::At(partition)]
    }

    /// The statistics of the input. Those of the outputs are unknown.
    fn statistics_from_inputs(&self, input_stats: &[Arc<Statistics>], _: &StatisticsArgs) -> Result<Arc<Statistics>> {
        let [input] = input_stats else { return internal_err!("InferExec has one input") };
        let mut statistics = input.as_ref().clone();
        statistics.column_statistics.extend(self.job.outputs.iter().map(|_| ColumnStatistics::new_unknown()));
        statistics.total_byte_size = datafusion::common::stats::Precision::Absent;
        Ok(Arc::new(statistics))
    }

    fn supports_limit_pushdown(&self) -> bool {
        true
    }

    fn cardinality_effect(&self) -> CardinalityEffect {
        CardinalityEffect::Equal
    }

    /// Passes on filters over columns of the input.
    ///
    /// DataFusion 55.2 finds the columns below by name, the first one of each name (apache/datafusion#25259). Over a
    /// join of `l.k` and `r.k`, a filter on `r.k` would become one on `l.k`. Filters on later columns of a name stay
    /// above.
    fn gather_filters_for_pushdown(
        &self,
        _: FilterPushdownPhase,
        parent_filters: Vec<Arc<dyn PhysicalExpr>>,
        _: &ConfigOptions,
    ) -> Result<FilterDescription> {
        let below = self.input.schema();
        let is_first = |index: &usize| below.index_of(below.field(*index).name()).is_ok_and(|first| first == *index);
        let allowed = (0..below.fields().len()).filter(is_first).collect();
        let child = ChildFilterDescription::from_child_with_allowed_indices(&parent_filters, allowed, &self.input)?;
        Ok(FilterDescription::new().with_child(child))
    }

    fn handle_child_pushdown_result(
        &self,
        _: FilterPushdownPhase,
        child_pushdown_result: ChildPushdownResult,
        _: &ConfigOptions,
    ) -> Result<FilterPushdownPropagation<Arc<dyn ExecutionPlan>>> {
        Ok(FilterPushdownPropagation::if_all(child_pushdown_result))
    }

    /// Passes on an order by columns of the input.
    fn try_pushdown_sort(&self, order: &[PhysicalSortExpr]) -> Result<SortOrderPushdownResult<Arc<dyn ExecutionPlan>>> {
        let n_input = self.input.schema().fields().len();
        let is_below = |key: &PhysicalSortExpr| {
            let columns = datafusion::physical_expr::utils::collect_columns(&key.expr);
            columns.iter().all(|column| column.index() < n_input)
        };
        if !order.iter().all(is_below) {
            return Ok(SortOrderPushdownResult::Unsupported);
        }
        let pushed = self.input.try_pushdown_sort(order)?;
        pushed.try_map(|input| Ok(Arc::new(self.with_input(input)?) as Arc<dyn ExecutionPlan>))
    }
}

/// The metrics that `EXPLAIN ANALYZE` shows.
#[derive(Debug)]
struct Metrics {
    baseline: BaselineMetrics,
    rows: Count,
    blocks: Count,
    bytes: Count,
    runtime: Time,
    conversion: Time,
    error: Time,
    wait: Time,
}

impl Metrics {
    fn new(set: &ExecutionPlanMetricsSet, partition: usize) -> Self {
        let count = |name: &'static str| MetricBuilder::new(set).counter(name, partition);
        let time = |name: &'static str| MetricBuilder::new(set).subset_time(name, partition);
        Self {
            baseline: BaselineMetrics::new(set, partition),
            rows: count("rows_scored"),
            blocks: count("blocks"),
            bytes: count("tensor_bytes"),
            runtime: time("onnx_runtime_time"),
            conversion: time("conversion_time"),
            error: time("error_time"),
            wait: time("session_wait_time"),
        }
    }

    fn add(&self, meter: &Meter) {
        self.rows.add(meter.rows);
        self.blocks.add(meter.blocks);
        self.bytes.add(meter.bytes);
        self.runtime.add_duration(meter.runtime);
        self.conversion.add_duration(meter.conversion);
        self.error.add_duration(meter.error);
        self.wait.add_duration(meter.wait);
    }
}

/// A partition during its execution.
struct Partition {
    exec: Arc<InferExec>,
    metrics: Metrics,
    memory: MemoryReservation,
    /// The weights of the model.
    shared: Option<Arc<MemoryReservation>>,
    /// Rows of a block. If the pool has too little memory, blocks become smaller.
    block_rows: usize,
    /// Most rows of a batch that is returned.
    batch_rows: usize,
    /// The session, from the first batch on.
    worker: Option<PooledWorker>,
    observer: Option<Arc<ObserverHandle>>,
    input: SendableRecordBatchStream,
    is_first: bool,
    /// The rows of a batch that come after those returned.
    rest: Option<RecordBatch>,
}

impl Partition {
    /// The next batch of the input with its outputs.
    ///
    /// The first block of the first batch is returned alone: a small LIMIT then runs only one block. A batch with large
    /// outputs is returned in parts.
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        let batch = match self.rest.take() {
            Some(rest) => rest,
            None => match self.input.next().await.transpose()? {
                Some(batch) => batch,
                None => return Ok(None),
            },
        };
        let n = batch.num_rows();
        let most = if std::mem::take(&mut self.is_first) { self.block_rows } else { self.batch_rows };
        if n <= most {
            return self.score(&batch).await.map(Some);
        }
        self.rest = Some(batch.slice(most, n - most));
        self.score(&batch.slice(0, most)).await.map(Some)
    }

    async fn score(&mut self, batch: &RecordBatch) -> Result<RecordBatch> {
        let timer = self.metrics.baseline.elapsed_compute().timer();
        let n = batch.num_rows();
        let exec = Arc::clone(&self.exec);
        let job = &exec.job;
        let arrays = |feature: &Arc<dyn PhysicalExpr>| feature.evaluate(batch)?.into_array(n);
        let arguments = exec.features.iter().map(arrays).collect::<Result<Vec<ArrayRef>>>()?;
        let features = match job.outputs.first() {
            Some(output) => output.function.arguments(&job.model)?,
            None => return internal_err!("InferExec has no output"),
        };
        let rows = Rows::new(&arguments, &features, n).map_err(|e| self.explain(e))?;
        drop(timer);
        let (scores, runtime) = self.run(&rows).await.map_err(|e| self.explain(e))?;
        if let Some(observer) = &self.observer {
            let (arguments, form) = (arguments.as_slice(), &exec.form);
            observer.0.scored(&Scored { model: &job.model, rows: batch, runtime, arguments, form, scores: &scores });
        }
        let timer = self.metrics.conversion.timer();
        let call = BatchCall { model: &job.model, form: &exec.form, rows: &rows };
        let mut columns = batch.columns().to_vec();
        for output in &job.outputs {
            columns.push(output.function.result(&call, &scores).map_err(|e| self.explain(e))?);
        }
        drop(timer);
        Ok(RecordBatch::try_new(Arc::clone(&exec.schema), columns)?.record_output(&self.metrics.baseline))
    }

    /// Runs all blocks, and returns the time in ONNX Runtime too. A cancelled query stops between two blocks.
    async fn run(&mut self, rows: &Rows) -> Result<(Scores, Duration)> {
        self.reserve(rows)?;
        let (job, request) = (&self.exec.job, &self.exec.request);
        let (block_rows, worker) = (Some(self.block_rows), self.worker.take());
        let mut scoring = Scoring::new(&job.model, job.start, rows, request, block_rows, worker)?;
        loop {
            let timer = self.metrics.baseline.elapsed_compute().timer();
            let has_more = scoring.step()?;
            drop(timer);
            if !has_more {
                break;
            }
            tokio::task::yield_now().await;
        }
        self.metrics.add(&scoring.meter);
        let runtime = scoring.meter.runtime;
        let (scores, worker) = scoring.finish()?;
        self.worker = worker;
        Ok((scores, runtime))
    }

    /// Takes the memory of a run from the pool, with smaller blocks if it has too little.
    fn reserve(&mut self, rows: &Rows) -> Result<()> {
        let Job { model, start, .. } = &self.exec.job;
        let memory = Memory::of(model, *start, rows, &self.exec.request)?;
        loop {
            let block_rows = self.block_rows.min(rows.len().next_multiple_of(16));
            let reserved = match &self.shared {
                Some(_) => Ok(()),
                None => self.exec.reserve_shared(&self.memory).map(|shared| self.shared = Some(shared)),
            };
            let Err(e) = reserved.and_then(|()| self.memory.try_resize(memory.bytes(block_rows))) else {
                return Ok(());
            };
            match model.smaller_block(self.block_rows) {
                Some(smaller) => self.block_rows = smaller,
                None => {
                    let needed = model.shared_bytes().saturating_add(memory.bytes(block_rows)).div_ceil(1 << 20);
                    return Err(e.context(format!(
                        "model {model} needs {needed} MiB for its weights and {block_rows} rows at once; allow more \
                         memory, or run fewer partitions with SET datafusion.execution.target_partitions = 1"
                    )));
                }
            }
        }
    }

    fn explain(&self, error: datafusion::error::DataFusionError) -> datafusion::error::DataFusionError {
        let names: Vec<&str> = self.exec.job.outputs.iter().map(|output| output.function.name()).collect();
        explain(format!("{}('{}')", names.join(", "), self.exec.job.model.name()), error)
    }
}
