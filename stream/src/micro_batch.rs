//! The source of a pipeline as a bounded table: one micro-batch, and then the next.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Statistics, internal_err};
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, PlanProperties};
use datafusion::physical_plan::statistics::StatisticsArgs;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning};
use futures::stream;
use parking_lot::Mutex;

use super::format::{Decoder, Malformed};
use super::kafka::KafkaTable;
use super::records::Records;

/// Records that are worth a task of their own.
const RECORDS_PER_TASK: usize = 2048;

/// What a plan reads when it is run: the records of now.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    records: Mutex<Option<Records>>,
    malformed: Mutex<Vec<Malformed>>,
}

impl Slot {
    /// Puts records where the next run reads them.
    pub(crate) fn put(&self, records: Records) {
        *self.records.lock() = Some(records);
        self.malformed.lock().clear();
    }

    /// The records that the run found malformed, in order.
    pub(crate) fn take_malformed(&self) -> Vec<Malformed> {
        let mut malformed = std::mem::take(&mut *self.malformed.lock());
        malformed.sort_by_key(|malformed| malformed.record);
        malformed
    }
}

/// A topic, as a query that is run again and again sees it.
#[derive(Debug)]
pub(crate) struct MicroBatchTable {
    pub(crate) table: KafkaTable,
    pub(crate) slot: Arc<Slot>,
}

#[async_trait]
impl TableProvider for MicroBatchTable {
    fn schema(&self) -> SchemaRef {
        self.table.schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let decoder = self.table.decoder(projection)?;
        let partitions = state.config().target_partitions();
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(decoder.schema())),
            Partitioning::UnknownPartitioning(partitions),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        let topic = self.table.connection.to_string();
        let slot = Arc::clone(&self.slot);
        Ok(Arc::new(MicroBatchExec { topic, decoder, slot, partitions, properties: Arc::new(properties) }))
    }
}

/// Gives the records of now: the first part of them in its first partition, and so on.
#[derive(Debug)]
pub(crate) struct MicroBatchExec {
    topic: String,
    decoder: Decoder,
    slot: Arc<Slot>,
    partitions: usize,
    properties: Arc<PlanProperties>,
}

impl MicroBatchExec {
    fn range(&self, partition: usize, records: usize) -> Range<usize> {
        let n_tasks = records.div_ceil(RECORDS_PER_TASK).clamp(1, self.partitions);
        let at = |task: usize| (task * records / n_tasks).min(records);
        at(partition)..at(partition + 1)
    }
}

impl DisplayAs for MicroBatchExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns: Vec<&str> = self.decoder.schema().fields().iter().map(|field| field.name().as_str()).collect();
        write!(f, "MicroBatchExec: {}, columns=[{}]", self.topic, columns.join(", "))
    }
}

impl ExecutionPlan for MicroBatchExec {
    fn name(&self) -> &'static str {
        "MicroBatchExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        if children.is_empty() { Ok(self) } else { internal_err!("MicroBatchExec has no input") }
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn execute(&self, partition: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let Some(records) = self.slot.records.lock().clone() else { return internal_err!("there is no micro-batch") };
        let range = self.range(partition, records.len());
        let (decoder, slot) = (self.decoder.clone(), Arc::clone(&self.slot));
        let decode = move || {
            let (good, malformed) = decoder.decode_good(&records.slice(&range));
            let moved = malformed.into_iter().map(|m| Malformed { record: m.record + range.start, ..m });
            slot.malformed.lock().extend(moved);
            good.into_iter().map(Ok)
        };
        let rows = stream::once(async move { stream::iter(decode()) });
        let rows = futures::StreamExt::flatten(rows);
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(self.decoder.schema()), rows)))
    }

    /// It is the larger side of any join: a static table is what is kept in memory.
    fn statistics_from_inputs(&self, _: &[Arc<Statistics>], _: &StatisticsArgs) -> Result<Arc<Statistics>> {
        let mut statistics = Statistics::new_unknown(self.decoder.schema());
        statistics.num_rows = Precision::Inexact(usize::MAX / 4096);
        statistics.total_byte_size = Precision::Inexact(usize::MAX / 4096);
        Ok(Arc::new(statistics))
    }
}
