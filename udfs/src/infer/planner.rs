//! From the logical node to the physical one.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::Session;
use datafusion::common::internal_err;
use datafusion::error::Result;
use datafusion::execution::context::QueryPlanner;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{LogicalPlan, UserDefinedLogicalNode};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner};

use super::exec::InferExec;
use super::node::Infer;
use crate::config::AeOptions;

/// Plans [`Infer`] nodes; for applications that have a query planner of their own.
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
        let planner = DefaultPhysicalPlanner::with_extension_planners(vec![Arc::new(InferPlanner)]);
        planner.create_physical_plan(plan, session).await
    }
}

/// The query planner that a session with [`super::LiftCalls`] needs.
pub(crate) fn query_planner() -> Arc<dyn QueryPlanner + Send + Sync> {
    Arc::new(InferQueryPlanner)
}

/// Whether a session has no query planner of its own, which would know nothing of [`Infer`] nodes.
pub(crate) fn can_plan(planner: Option<&Arc<dyn QueryPlanner + Send + Sync>>) -> bool {
    // DataFusion's own has no public name
    planner.is_none_or(|planner| format!("{planner:?}").starts_with("DefaultQueryPlanner"))
}
