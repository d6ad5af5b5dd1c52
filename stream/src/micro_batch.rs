//! The source of a pipeline as a bounded table: in each run of the query, its rows are the current micro-batch.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::{Statistics, internal_err};
use datafusion::error::Result;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::stream;
use parking_lot::Mutex;

use super::format::{Decoder, Malformed};
use super::kafka::KafkaTable;
use super::records::Records;
use super::scan::{Scan, ScanExec};

/// Minimum number of records for which a task of its own pays off.
const RECORDS_PER_TASK: usize = 2048;

/// The current micro-batch, which a plan reads when it runs.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    records: Mutex<Option<Records>>,
    malformed: Mutex<Vec<Malformed>>,
}

impl Slot {
    /// Sets the records for the next run.
    pub(crate) fn put(&self, records: Records) {
        *self.records.lock() = Some(records);
        self.malformed.lock().clear();
    }

    /// The malformed records that the run has found, in order.
    pub(crate) fn take_malformed(&self) -> Vec<Malformed> {
        let mut malformed = std::mem::take(&mut *self.malformed.lock());
        malformed.sort_by_key(|malformed| malformed.record);
        malformed
    }
}

/// A topic as the query of a pipeline sees it.
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
        let partitions = state.config().target_partitions();
        let scan = MicroBatchScan {
            topic: self.table.connection.to_string(),
            decoder: self.table.decoder(projection)?,
            slot: Arc::clone(&self.slot),
            partitions,
        };
        Ok(Arc::new(ScanExec::new(scan, partitions)))
    }
}

/// The scan of a [`MicroBatchTable`] in physical plans.
pub(crate) type MicroBatchExec = ScanExec<MicroBatchScan>;

/// Divides the current micro-batch among its partitions, in the order of the records.
#[derive(Debug)]
pub(crate) struct MicroBatchScan {
    topic: String,
    decoder: Decoder,
    slot: Arc<Slot>,
    partitions: usize,
}

impl MicroBatchScan {
    fn range(&self, partition: usize, records: usize) -> Range<usize> {
        let n_tasks = records.div_ceil(RECORDS_PER_TASK).clamp(1, self.partitions);
        let at = |task: usize| (task * records / n_tasks).min(records);
        at(partition)..at(partition + 1)
    }
}

impl Scan for MicroBatchScan {
    const NAME: &'static str = "MicroBatchExec";

    fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    fn topic(&self) -> String {
        self.topic.clone()
    }

    fn limit(&self) -> Option<usize> {
        None
    }

    fn rows(&self, partition: usize) -> Result<SendableRecordBatchStream> {
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

    /// The micro-batch counts as the larger side of any join, because the smaller side, a static table, is kept in
    /// memory.
    fn statistics(&self) -> Statistics {
        let mut statistics = Statistics::new_unknown(self.decoder.schema());
        statistics.num_rows = Precision::Inexact(usize::MAX / 4096);
        statistics.total_byte_size = Precision::Inexact(usize::MAX / 4096);
        statistics
    }
}
