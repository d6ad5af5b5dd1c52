//! Keeps the constants of one side of an outer join away from the rows that have no match.

use std::sync::Arc;

use datafusion::common::JoinType;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::config::ConfigOptions;
use datafusion::error::Result;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::joins::{HashJoinExec, NestedLoopJoinExec, SortMergeJoinExec, SymmetricHashJoinExec};

use super::pass_through::{Kind, PassThrough, recompute};

/// Hides constants of the sides of outer joins whose columns can become null.
///
/// With `l RIGHT JOIN r ON l.id = r.id AND l.x = 1`, DataFusion 55.2 takes `x` for 1 above the join, where it is 1 or
/// null. A window by `x` then does not sort by `x`, and gives wrong rows.
///
/// ```text
/// HashJoinExec: Right            HashJoinExec: Right
///   FilterExec: x = 1       =>     OuterSideExec
///   …                                FilterExec: x = 1
///                                  …
/// ```
#[derive(Debug)]
pub(super) struct HideConstants;

impl PhysicalOptimizerRule for HideConstants {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let hidden = plan.transform_up(|node| {
            let becomes_null = match join_type(&node) {
                Some(JoinType::Left) => [false, true],
                Some(JoinType::Right) => [true, false],
                Some(JoinType::Full) => [true, true],
                _ => return Ok(Transformed::no(node)),
            };
            let has_constants = |side: &Arc<dyn ExecutionPlan>| !side.properties().eq_properties.constants().is_empty();
            let mut is_changed = false;
            let sides = node.children().into_iter().zip(becomes_null).map(|(side, becomes_null)| {
                if becomes_null && has_constants(side) {
                    is_changed = true;
                    return Arc::new(PassThrough::new(Kind::OuterSide, Arc::clone(side))) as Arc<dyn ExecutionPlan>;
                }
                Arc::clone(side)
            });
            let sides = sides.collect::<Vec<Arc<dyn ExecutionPlan>>>();
            match is_changed {
                true => node.replace_children(sides, recompute()).map(Transformed::yes),
                false => Ok(Transformed::no(node)),
            }
        })?;
        Ok(hidden.data)
    }

    fn name(&self) -> &str {
        "HideConstants"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

fn join_type(node: &Arc<dyn ExecutionPlan>) -> Option<JoinType> {
    if let Some(join) = node.downcast_ref::<HashJoinExec>() {
        return Some(*join.join_type());
    }
    if let Some(join) = node.downcast_ref::<NestedLoopJoinExec>() {
        return Some(*join.join_type());
    }
    if let Some(join) = node.downcast_ref::<SymmetricHashJoinExec>() {
        return Some(*join.join_type());
    }
    node.downcast_ref::<SortMergeJoinExec>().map(SortMergeJoinExec::join_type)
}
