//! Plans the physical node of a logical node.

use std::any::{Any, TypeId};
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::Session;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{internal_err, plan_err};
use datafusion::error::Result;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::context::QueryPlanner;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{DmlStatement, LogicalPlan, UserDefinedLogicalNode, WriteOp};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner};

use super::exec::InferExec;
use super::node::Infer;
use crate::config::AeOptions;

/// Plans [`Infer`] nodes. Add it to the custom query planner of your application.
#[derive(Debug, Default)]
pub struct InferPlanner;

#[async_trait]
impl ExtensionPlanner for InferPlanner {
    async fn plan_extension(
        &self,
        planner: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        logical_inputs: &[&LogicalPlan],
        physical_inputs: &[Arc<dyn ExecutionPlan>],
        session: &dyn Session,
        context: &PhysicalPlanningContext,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let Some(node) = node.as_any().downcast_ref::<Infer>() else { return Ok(None) };
        let ([below], [input]) = (logical_inputs, physical_inputs) else {
            return internal_err!("Infer has one input");
        };
        let feature = |feature| planner.create_physical_expr(feature, below.schema(), session, context);
        let features = node.features().iter().map(feature).collect::<Result<Vec<_>>>()?;
        let block_rows = AeOptions::of(session.config_options()).block_rows();
        Ok(Some(Arc::new(InferExec::try_new(Arc::clone(input), features, node.job().clone(), block_rows)?)))
    }
}

/// DataFusion's planner with [`InferPlanner`].
#[derive(Debug, Default)]
struct InferQueryPlanner;

#[async_trait]
impl QueryPlanner for InferQueryPlanner {
    async fn create_physical_plan(&self, plan: &LogicalPlan, session: &dyn Session) -> Result<Arc<dyn ExecutionPlan>> {
        check_changed_rows(plan)?;
        let planner = DefaultPhysicalPlanner::with_extension_planners(vec![Arc::new(InferPlanner)]);
        planner.create_physical_plan(plan, session).await
    }
}

/// Refuses DELETE and UPDATE where DataFusion 55.2 would lose the condition and change every row.
///
/// DataFusion collects the filters of the optimized plan. A condition left no filter there if it is always false or became
/// a join.
fn check_changed_rows(plan: &LogicalPlan) -> Result<()> {
    plan.apply(|node| {
        if let LogicalPlan::Dml(DmlStatement { op, input, .. }) = node
            && matches!(op, WriteOp::Delete | WriteOp::Update)
            && !keeps_filters(input)
        {
            return plan_err!(
                "{}: DataFusion 55 would change every row of the table, because the condition is always false or \
                 contains a sub-query; use a condition over the columns of the table",
                op.name().to_uppercase()
            );
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(())
}

fn keeps_filters(input: &LogicalPlan) -> bool {
    match input {
        LogicalPlan::TableScan(scan) => scan.fetch.is_none(),
        LogicalPlan::Filter(_) | LogicalPlan::Projection(_) | LogicalPlan::SubqueryAlias(_) => {
            input.inputs().into_iter().all(keeps_filters)
        }
        _ => false,
    }
}

/// DataFusion's query planner with [`InferPlanner`]. A session with [`super::LiftCalls`] needs it, or a planner of its
/// own that knows [`InferPlanner`].
pub fn query_planner() -> Arc<dyn QueryPlanner + Send + Sync> {
    Arc::new(InferQueryPlanner)
}

/// Whether a planner is that of [`query_planner`].
pub(crate) fn is_own_planner(planner: &Arc<dyn QueryPlanner + Send + Sync>) -> bool {
    type_of(planner) == TypeId::of::<InferQueryPlanner>()
}

/// Whether a planner is neither DataFusion's default nor that of [`query_planner`]. It may not know [`Infer`] nodes.
pub(crate) fn is_custom(planner: &Arc<dyn QueryPlanner + Send + Sync>) -> bool {
    // the type of the default planner is not public
    let default = SessionStateBuilder::new().build();
    !is_own_planner(planner) && type_of(planner) != type_of(default.query_planner())
}

fn type_of(planner: &Arc<dyn QueryPlanner + Send + Sync>) -> TypeId {
    let planner: &dyn Any = planner.as_ref();
    planner.type_id()
}
