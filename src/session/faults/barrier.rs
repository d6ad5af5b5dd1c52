//! Keeps physical filters from the wrong column.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::internal_err;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::config::ConfigOptions;
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::execution_plan::{PlanProperties, ReplaceChildrenOptions};
use datafusion::physical_plan::union::{InterleaveExec, UnionExec};
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan};

/// Runs a rule that pushes filters.
///
/// The nodes of DataFusion 55.2 pass on a filter by the names of its columns. Where two columns have one name, the filter
/// reaches the first of them (apache/datafusion#25259). A barrier over each such node stops filters there.
#[derive(Debug)]
pub(super) struct Guarded(pub(super) Arc<dyn PhysicalOptimizerRule + Send + Sync>);

impl PhysicalOptimizerRule for Guarded {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let guarded = plan.transform_up(|node| match is_ambiguous(&node) {
            true => Ok(Transformed::yes(Arc::new(Barrier { input: node }) as _)),
            false => Ok(Transformed::no(node)),
        })?;
        let pushed = self.0.optimize(guarded.data, config)?;
        if !guarded.transformed {
            return Ok(pushed);
        }
        let opened = pushed.transform_up(|node| match node.downcast_ref::<Barrier>() {
            Some(barrier) => Ok(Transformed::yes(Arc::clone(&barrier.input))),
            None => Ok(Transformed::no(node)),
        })?;
        Ok(opened.data)
    }

    fn name(&self) -> &str {
        self.0.name()
    }

    fn schema_check(&self) -> bool {
        self.0.schema_check()
    }
}

/// Whether two columns of a node or of its inputs together have one name. A join that returns only some of its columns can
/// hide the second one.
fn is_ambiguous(node: &Arc<dyn ExecutionPlan>) -> bool {
    let inputs: Vec<SchemaRef> = node.children().into_iter().map(|input| input.schema()).collect();
    let has_equal_names = |schemas: &[SchemaRef]| {
        let mut seen = HashSet::new();
        !schemas.iter().flat_map(|schema| schema.fields()).all(|field| seen.insert(field.name()))
    };
    // the rows of a union stand below each other, and its inputs may have the same names
    let is_union = node.is::<UnionExec>() || node.is::<InterleaveExec>();
    has_equal_names(&[node.schema()]) || (!is_union && has_equal_names(&inputs))
}

/// A node that passes on no filter. It exists only while a rule runs.
#[derive(Debug)]
struct Barrier {
    input: Arc<dyn ExecutionPlan>,
}

impl DisplayAs for Barrier {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Barrier")
    }
}

impl ExecutionPlan for Barrier {
    fn name(&self) -> &'static str {
        "Barrier"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
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
            (Some(input), true) => Ok(Arc::new(Self { input })),
            _ => internal_err!("a barrier has one input"),
        }
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.is_empty()) {
            (Some(input), true) => Ok(Arc::new(Self { input })),
            _ => internal_err!("a barrier has one input"),
        }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        self.input.execute(partition, context)
    }
}
