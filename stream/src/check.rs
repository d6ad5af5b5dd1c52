//! Checks that a query can run batch by batch: each of its rows depends on one record only.

use datafusion::common::plan_err;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, JoinType, LogicalPlan, TableSource, Volatility};

use super::kafka::KafkaTable;
use super::micro_batch::MicroBatchTable;

/// The topic behind a table in a plan, if the table is a topic.
pub(crate) fn topic(source: &dyn TableSource) -> Option<&KafkaTable> {
    provider(source)?.downcast_ref()
}

fn provider(source: &dyn TableSource) -> Option<&dyn datafusion::catalog::TableProvider> {
    let source = source.downcast_ref::<datafusion::datasource::DefaultTableSource>()?;
    Some(source.table_provider.as_ref())
}

fn is_stream(source: &dyn TableSource) -> bool {
    provider(source).is_some_and(|provider| provider.downcast_ref::<MicroBatchTable>().is_some())
}

/// Whether a plan reads the topic of the pipeline.
fn streams(plan: &LogicalPlan) -> bool {
    let mut found = false;
    let walked = plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            found |= is_stream(scan.source.as_ref());
        }
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    // a plan that cannot be traversed may read it
    found || walked.is_err()
}

/// Checks that no function is evaluated at planning time: `now()` would never change, because the query is planned
/// once.
///
/// # Errors
/// A planning error that names the function.
pub(crate) fn check_no_query_time(plan: &LogicalPlan) -> Result<()> {
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|expr| match expr {
                Expr::ScalarFunction(call) if call.func.signature().volatility == Volatility::Stable => plan_err!(
                    "{}() would return the start time of the pipeline, because its query is planned once; use the \
                     column _timestamp of the topic for the time of each record",
                    call.name()
                ),
                _ => Ok(TreeNodeRecursion::Continue),
            })
        })
    })?;
    Ok(())
}

/// Checks that each row of an optimized query depends on one record of the topic, and on static tables.
///
/// # Errors
/// A planning error with the reason.
pub(crate) fn check_row_by_row(plan: &LogicalPlan) -> Result<()> {
    plan.apply(|node| {
        if !streams(node) {
            return Ok(TreeNodeRecursion::Jump);
        }
        check_node(node)?;
        node.apply_subqueries(|subquery| match streams(subquery) {
            true => refused("a subquery that reads the topic needs"),
            false => Ok(TreeNodeRecursion::Jump),
        })?;
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(())
}

fn refused<T>(what: &str) -> Result<T> {
    plan_err!("{what} rows of more than one micro-batch, and a pipeline keeps no state between micro-batches")
}

fn check_node(node: &LogicalPlan) -> Result<()> {
    match node {
        LogicalPlan::Projection(_)
        | LogicalPlan::Filter(_)
        | LogicalPlan::SubqueryAlias(_)
        | LogicalPlan::Subquery(_)
        | LogicalPlan::TableScan(_)
        | LogicalPlan::Repartition(_)
        | LogicalPlan::Unnest(_) => Ok(()),
        LogicalPlan::Extension(extension) if extension.node.name() == "Infer" => Ok(()),
        LogicalPlan::Aggregate(_) => refused("an aggregate (GROUP BY, count, avg, …) needs"),
        LogicalPlan::Distinct(_) => refused("DISTINCT compares"),
        LogicalPlan::Sort(_) => refused("ORDER BY compares"),
        LogicalPlan::Limit(_) => refused("LIMIT counts"),
        LogicalPlan::Window(_) => refused("a window function (OVER) needs"),
        LogicalPlan::RecursiveQuery(_) => refused("a recursive query needs"),
        LogicalPlan::Union(_) => {
            plan_err!("UNION: a pipeline reads one topic once; write one INSERT for each part of the UNION")
        }
        LogicalPlan::Join(join) => {
            let (left, right) = (streams(&join.left), streams(&join.right));
            if left && right {
                return refused("a join of a topic with a topic needs");
            }
            let keeps_static = match join.join_type {
                JoinType::Inner => false,
                JoinType::Full => true,
                JoinType::Left | JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => right,
                JoinType::Right | JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => left,
            };
            match keeps_static {
                true => refused(&format!(
                    "{} JOIN, which returns rows of the table that no record matches, needs",
                    join.join_type
                )),
                false => Ok(()),
            }
        }
        other => {
            plan_err!("{} is not supported in a pipeline: its rows may depend on more than one record", other.display())
        }
    }
}
