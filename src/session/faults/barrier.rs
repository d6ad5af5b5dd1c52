//! Keeps physical filters from the wrong column.

use std::collections::HashSet;
use std::sync::Arc;

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::config::ConfigOptions;
use datafusion::error::Result;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::union::{InterleaveExec, UnionExec};

use super::pass_through::{Kind, PassThrough};

/// Runs a rule that pushes filters.
///
/// The nodes of DataFusion 55.2 pass on a filter by the names of its columns. Where two columns have one name, the filter
/// reaches the first of them (apache/datafusion#25259). A barrier over each such node stops filters there.
#[derive(Debug)]
pub(super) struct Guarded(pub(super) Arc<dyn PhysicalOptimizerRule + Send + Sync>);

impl PhysicalOptimizerRule for Guarded {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let guarded = plan.transform_up(|node| match is_ambiguous(&node) {
            true => Ok(Transformed::yes(Arc::new(PassThrough::new(Kind::Barrier, node)) as _)),
            false => Ok(Transformed::no(node)),
        })?;
        let pushed = self.0.optimize(guarded.data, config)?;
        if !guarded.transformed {
            return Ok(pushed);
        }
        let opened = pushed.transform_up(|node| match node.downcast_ref::<PassThrough>() {
            Some(barrier) if barrier.kind == Kind::Barrier => Ok(Transformed::yes(Arc::clone(&barrier.input))),
            _ => Ok(Transformed::no(node)),
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
