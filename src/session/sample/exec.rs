//! Draws rows.

use std::collections::{BinaryHeap, HashSet};
use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::{BooleanArray, RecordBatch};
use datafusion::arrow::compute::filter_record_batch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::internal_err;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::Result;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{
    Boundedness, ChildrenPropertiesMode, EmissionType, PlanProperties, ReplaceChildrenOptions,
};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties};
use futures::{StreamExt, TryStreamExt, stream};

use super::{Sample, Size};

/// Rows above the size of a sample after which the drawn rows are copied together.
const SPARE_ROWS: usize = 8192;

/// A sample of the rows of all partitions of its input, one partition after the other.
///
/// A row is drawn by its number in this order. The result depends on the order alone, not on the number of threads.
#[derive(Debug)]
pub(super) struct SampleExec {
    pub(super) input: Arc<dyn ExecutionPlan>,
    pub(super) sample: Sample,
    properties: Arc<PlanProperties>,
}

impl SampleExec {
    pub(super) fn new(input: Arc<dyn ExecutionPlan>, sample: Sample) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(input.schema()),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self { input, sample, properties: Arc::new(properties) }
    }
}

impl DisplayAs for SampleExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SampleExec: {}", self.sample)
    }
}

impl ExecutionPlan for SampleExec {
    fn name(&self) -> &'static str {
        "SampleExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.is_empty()) {
            (Some(input), true) => Ok(Arc::new(Self::new(input, self.sample))),
            _ => internal_err!("SampleExec has one input"),
        }
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        if partition != 0 {
            return internal_err!("SampleExec has one partition");
        }
        let schema = self.schema();
        let reservation = MemoryConsumer::new("SampleExec").register(context.memory_pool());
        let input = Arc::clone(&self.input);
        let partitions = 0..self.input.output_partitioning().partition_count();
        let mut all = stream::iter(partitions.map(move |i| input.execute(i, Arc::clone(&context)))).try_flatten();
        let seed = self.sample.seed;
        let rows = match self.sample.size {
            Size::Share(share) => {
                let mut first = 0;
                all.map(move |batch| {
                    let batch = batch?;
                    let numbers = first..first + batch.num_rows() as u64;
                    first = numbers.end;
                    let drawn: BooleanArray = numbers.map(|row| Some(uniform(random(seed, row)) < share)).collect();
                    Ok(filter_record_batch(&batch, &drawn)?)
                })
                .boxed()
            }
            Size::Rows(rows) => {
                let mut drawn = Drawn::new(rows, seed, Arc::clone(&schema), reservation);
                stream::once(async move {
                    while let Some(batch) = all.try_next().await? {
                        drawn.add(&batch)?;
                    }
                    drawn.finish()
                })
                .map_ok(|batches| stream::iter(batches.into_iter().map(Ok)))
                .try_flatten()
                .boxed()
            }
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }
}

/// A random number for a row.
fn random(seed: u64, row: u64) -> u64 {
    mix(mix(seed).wrapping_add(row.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// The finalizer of SplitMix64.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A number from 0 to 1, without 1.
fn uniform(x: u64) -> f64 {
    (x >> 11) as f64 / (1_u64 << 53) as f64
}

/// The rows with the smallest random numbers.
struct Drawn {
    rows: usize,
    seed: u64,
    schema: SchemaRef,
    n_seen: u64,
    /// Random numbers and numbers of the drawn rows, the largest on top.
    heap: BinaryHeap<(u64, u64)>,
    /// Rows that were drawn when they came, in their order, with their numbers.
    batches: Vec<(RecordBatch, Vec<u64>)>,
    n_held: usize,
    reservation: MemoryReservation,
}

impl Drawn {
    fn new(rows: usize, seed: u64, schema: SchemaRef, reservation: MemoryReservation) -> Self {
        let (heap, batches) = (BinaryHeap::new(), Vec::new());
        Self { rows, seed, schema, n_seen: 0, heap, batches, n_held: 0, reservation }
    }

    fn add(&mut self, batch: &RecordBatch) -> Result<()> {
        let mut taken = Vec::new();
        let first = self.n_seen;
        for row in 0..batch.num_rows() as u64 {
            let candidate = (random(self.seed, first + row), first + row);
            if self.heap.len() < self.rows {
                self.heap.push(candidate);
            } else if self.heap.peek().is_some_and(|last| candidate < *last) {
                self.heap.pop();
                self.heap.push(candidate);
            } else {
                continue;
            }
            taken.push(row);
        }
        self.n_seen += batch.num_rows() as u64;
        if taken.is_empty() {
            return Ok(());
        }
        let numbers = taken.iter().map(|row| first + row).collect();
        let is_taken: HashSet<u64> = taken.into_iter().collect();
        let is_taken: BooleanArray = (0..batch.num_rows() as u64).map(|row| Some(is_taken.contains(&row))).collect();
        self.hold(filter_record_batch(batch, &is_taken)?, numbers)?;
        if self.n_held > self.rows.saturating_mul(2).saturating_add(SPARE_ROWS) {
            self.compact()?;
        }
        Ok(())
    }

    fn hold(&mut self, batch: RecordBatch, numbers: Vec<u64>) -> Result<()> {
        self.n_held += numbers.len();
        self.batches.push((batch, numbers));
        let bytes = |(batch, numbers): &(RecordBatch, Vec<u64>)| batch.get_array_memory_size() + numbers.len() * 24;
        self.reservation.try_grow(self.batches.last().map_or(0, bytes))
    }

    /// Lets go of rows that others have replaced.
    fn compact(&mut self) -> Result<()> {
        let kept: HashSet<u64> = self.heap.iter().map(|(_, number)| *number).collect();
        let batches = std::mem::take(&mut self.batches);
        self.n_held = 0;
        self.reservation.free();
        for (batch, numbers) in batches {
            let is_kept: BooleanArray = numbers.iter().map(|number| Some(kept.contains(number))).collect();
            if is_kept.true_count() > 0 {
                let rows = filter_record_batch(&batch, &is_kept)?;
                self.hold(rows, numbers.into_iter().filter(|number| kept.contains(number)).collect())?;
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<RecordBatch>> {
        self.compact()?;
        match self.batches.is_empty() {
            true => Ok(vec![RecordBatch::new_empty(self.schema)]),
            false => Ok(self.batches.into_iter().map(|(batch, _)| batch).collect()),
        }
    }
}
