//! A leaf of a physical plan that reads records of a topic and decodes them.

use std::fmt;
use std::sync::Arc;

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Statistics, internal_err};
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, PlanProperties};
use datafusion::physical_plan::statistics::StatisticsArgs;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning};

use super::format::Decoder;

/// Where a [`ScanExec`] takes its records from.
pub(crate) trait Scan: fmt::Debug + Send + Sync + 'static {
    /// Name of the node in plans.
    const NAME: &'static str;

    /// Decodes records into the rows of the scan.
    fn decoder(&self) -> &Decoder;

    /// What `EXPLAIN` shows after the name of the node: the topic.
    fn topic(&self) -> String;

    /// Rows that the scan stops after, if the query has a limit.
    fn limit(&self) -> Option<usize>;

    /// The rows of one partition of the plan.
    ///
    /// # Errors
    /// An internal error if the scan has nothing to read.
    fn rows(&self, partition: usize) -> Result<SendableRecordBatchStream>;

    /// What the optimizer of joins knows about the rows.
    fn statistics(&self) -> Statistics {
        Statistics::new_unknown(self.decoder().schema())
    }
}

/// A bounded scan without inputs.
#[derive(Debug)]
pub(crate) struct ScanExec<S> {
    scan: S,
    properties: Arc<PlanProperties>,
}

impl<S: Scan> ScanExec<S> {
    pub(crate) fn new(scan: S, partitions: usize) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(scan.decoder().schema())),
            Partitioning::UnknownPartitioning(partitions),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self { scan, properties: Arc::new(properties) }
    }
}

impl<S: Scan> DisplayAs for ScanExec<S> {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = self.scan.decoder().schema().fields();
        let columns: Vec<&str> = fields.iter().map(|field| field.name().as_str()).collect();
        write!(f, "{}: {}, columns=[{}]", S::NAME, self.scan.topic(), columns.join(", "))?;
        match self.scan.limit() {
            Some(limit) => write!(f, ", limit={limit}"),
            None => Ok(()),
        }
    }
}

impl<S: Scan> ExecutionPlan for ScanExec<S> {
    fn name(&self) -> &'static str {
        S::NAME
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        if children.is_empty() { Ok(self) } else { internal_err!("{} has no input", S::NAME) }
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn execute(&self, partition: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        self.scan.rows(partition)
    }

    fn statistics_from_inputs(&self, _: &[Arc<Statistics>], _: &StatisticsArgs) -> Result<Arc<Statistics>> {
        Ok(Arc::new(self.scan.statistics()))
    }
}
