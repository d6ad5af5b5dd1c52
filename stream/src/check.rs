//! Which queries can be run batch by batch: those whose rows follow from one record each.

use datafusion::common::plan_err;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, JoinType, LogicalPlan, TableSource, Volatility};

use super::kafka::KafkaTable;
use super::micro_batch::MicroBatchTable;

/// The topic that a source of a plan is, before it was made a micro-batch.
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

/// Whether a plan reads the stream.
fn streams(plan: &LogicalPlan) -> bool {
    let mut found = false;
    let walked = plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            found |= is_stream(scan.source.as_ref());
        }
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    // what cannot be walked through may read it
    found || walked.is_err()
}

/// That nothing stands still in a query that was planned once: `now()` would.
///
/// # Errors
/// A planning error that names the function.
pub(crate) fn check_no_query_time(plan: &LogicalPlan) -> Result<()> {
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|expr| match expr {
                Expr::ScalarFunction(call) if call.func.signature().volatility == Volatility::Stable => plan_err!(
                    "{}() would give the time at which the pipeline began, since its query is planned once; a topic's \
                     column _timestamp has the time of each record",
                    call.name()
                ),
                _ => Ok(TreeNodeRecursion::Continue),
            })
        })
    })?;
    Ok(())
}

/// That each row of an optimized query follows from one record of its topic, and from tables that stand still.
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
            true => refused("a subquery that reads the topic sees"),
            false => Ok(TreeNodeRecursion::Jump),
        })?;
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(())
}

fn refused<T>(what: &str) -> Result<T> {
    plan_err!("{what} rows of more than one micro-batch, and a pipeline keeps nothing from one to the next")
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
        LogicalPlan::Union(_) => plan_err!("UNION: a pipeline reads one topic once; write an INSERT for each part"),
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
                    "{} JOIN, which gives rows of the table that no record matches, needs",
                    join.join_type
                )),
                false => Ok(()),
            }
        }
        other => plan_err!("{} is not known to make its rows of one record each", other.display()),
    }
}
