//! Keeps the names of rewritten expressions. The plan above refers to them by these names.

use datafusion::error::Result;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{Expr, GroupingSet, LogicalPlan};

/// Rewrites an expression of a node and keeps its name.
///
/// In a grouping set, the expressions inside have names, not the set.
///
/// # Errors
/// The error of `rewrite`.
pub(crate) fn keep_names(
    plan: &LogicalPlan,
    expr: Expr,
    rewrite: &mut impl FnMut(Expr) -> Result<Expr>,
) -> Result<Expr> {
    let names = NamePreserver::new(plan);
    let mut one = |expr: Expr| {
        let name = names.save(&expr);
        Ok(name.restore(rewrite(expr)?))
    };
    let Expr::GroupingSet(set) = expr else { return one(expr) };
    let mut all = |exprs: Vec<Expr>| exprs.into_iter().map(&mut one).collect::<Result<Vec<_>>>();
    Ok(Expr::GroupingSet(match set {
        GroupingSet::Rollup(exprs) => GroupingSet::Rollup(all(exprs)?),
        GroupingSet::Cube(exprs) => GroupingSet::Cube(all(exprs)?),
        GroupingSet::GroupingSets(sets) => GroupingSet::GroupingSets(sets.into_iter().map(all).collect::<Result<_>>()?),
    }))
}
