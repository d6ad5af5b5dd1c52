//! The rule that lifts calls into `Infer` nodes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, JoinType};
use datafusion::config::ConfigOptions;
use datafusion::error::Result;
use datafusion::logical_expr::expr::Sort;
use datafusion::logical_expr::utils::{conjunction, split_conjunction, split_conjunction_owned};
use datafusion::logical_expr::{
    Distinct, DistinctOn, DmlStatement, EmptyRelation, Expr, Filter, Join, LogicalPlan, LogicalPlanBuilder, WriteOp,
};
use datafusion::optimizer::{AnalyzerRule, ApplyOrder, OptimizerConfig, OptimizerRule};

use super::PREFIX;
use super::node::{self, Infer};
use super::places::{self, CallExpr, Place, has_call};
use super::reuse::{Target, has_columns, reuse};
use crate::config::AeOptions;
use crate::keep_names::keep_names;

/// Lifts the calls of `ae_*` functions out of expressions, into [`Infer`] nodes below them: see [`crate::infer`].
///
/// As an analyzer rule, it sees the query as it was written. The rules of DataFusion then push predicates, limits and
/// projections through the nodes. As the last optimizer rule, it sees the joins that sub-queries became, and removes
/// unread outputs.
///
/// A call in a branch that not every row takes (CASE, COALESCE, the right side of AND and OR) stays there. It is lifted
/// only if the model already runs on the same features for each row. The debug log has the reason for each call that
/// stays.
#[derive(Debug, Default)]
pub struct LiftCalls;

impl AnalyzerRule for LiftCalls {
    fn analyze(&self, plan: LogicalPlan, config: &ConfigOptions) -> Result<LogicalPlan> {
        match AeOptions::of(config).lift_calls {
            true => Ok(lift(plan, Reasons::Logged)?.data),
            false => Ok(plan),
        }
    }

    fn name(&self) -> &str {
        "lift_calls"
    }
}

impl OptimizerRule for LiftCalls {
    fn name(&self) -> &str {
        "lift_calls"
    }

    /// The whole plan at once: only the whole plan shows which outputs are read.
    fn apply_order(&self) -> Option<ApplyOrder> {
        None
    }

    fn rewrite(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        match AeOptions::of(&config.options()).lift_calls {
            true => lift(plan, Reasons::Silent)?.transform_data(drop_unread)?.transform_data(drop_empty),
            false => Ok(Transformed::no(plan)),
        }
    }
}

/// Whether to log why a call stays. Once a query is enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reasons {
    Logged,
    Silent,
}

impl Reasons {
    fn log(self, call: CallExpr<'_>, plan: &LogicalPlan, reason: &str) {
        if self == Self::Logged {
            log::debug!("{} in {} is not lifted: {reason}", call.expr, plan.display());
        }
    }

    /// Logs the reason for each call that stays in a node.
    fn log_remaining(self, plan: &LogicalPlan) -> Result<()> {
        if self == Self::Silent || !log::log_enabled!(log::Level::Debug) {
            return Ok(());
        }
        for expr in plan.expressions() {
            for Place { call, branch } in places::calls(&expr)? {
                let reason = call.obstacle().or(branch).unwrap_or("its place in the plan is not supported");
                self.log(call, plan, reason);
            }
        }
        Ok(())
    }
}

fn lift(plan: LogicalPlan, reasons: Reasons) -> Result<Transformed<LogicalPlan>> {
    let (mut has_calls, mut changes_rows) = (false, false);
    let mut next_id = 1;
    plan.apply_with_subqueries(|plan| {
        plan.apply_expressions(|expr| {
            has_calls |= has_call(expr);
            Ok(TreeNodeRecursion::Continue)
        })?;
        changes_rows |= matches!(plan, LogicalPlan::Dml(DmlStatement { op: WriteOp::Delete | WriteOp::Update, .. }));
        // those of nodes, and columns of tables that happen to have such names
        let ids = plan.schema().fields().iter().filter_map(|field| id_of(field.name()));
        next_id = ids.fold(next_id, |next, id| next.max(id.saturating_add(1)));
        Ok(TreeNodeRecursion::Continue)
    })?;
    // the table that DELETE and UPDATE change evaluates their conditions itself
    if !has_calls || changes_rows {
        return Ok(Transformed::no(plan));
    }
    Lifter { next_id, reasons, subqueries: HashMap::new() }.lift(plan)
}

/// The number of a node, from the name of one of its columns.
fn id_of(name: &str) -> Option<usize> {
    name.strip_prefix(PREFIX)?.split_once('.')?.0.parse().ok()
}

/// Removes outputs that no expression reads. DataFusion pruned their columns higher up in the plan.
fn drop_unread(plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    let mut has_nodes = false;
    let mut read = HashSet::new();
    plan.apply_with_subqueries(|plan| {
        has_nodes |= Infer::of(plan).is_some();
        plan.apply_expressions(|expr| {
            expr.apply(|expr| {
                if let Expr::Column(column) | Expr::OuterReferenceColumn(_, column) = expr {
                    read.insert(column.name.clone());
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    if !has_nodes {
        return Ok(Transformed::no(plan));
    }
    let dropped = plan.transform_up_with_subqueries(|plan| {
        let Some(node) = Infer::of(&plan) else { return Ok(Transformed::no(plan)) };
        if node.job().outputs.iter().all(|output| read.contains(&output.name)) {
            return Ok(Transformed::no(plan));
        }
        Ok(Transformed::yes(match node.retain(|name| read.contains(name))? {
            Some(node) => node.into_plan(),
            None => node.input().clone(),
        }))
    })?;
    if !dropped.transformed {
        return Ok(dropped);
    }
    // nodes above had the removed columns in their schemas
    let recompute = |plan: LogicalPlan| plan.recompute_schema().map(Transformed::yes);
    dropped.data.transform_up_with_subqueries(recompute)
}

/// Replaces nodes over no rows by no rows. DataFusion then removes the joins and sub-queries above.
fn drop_empty(plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    plan.transform_up_with_subqueries(|plan| match Infer::of(&plan).map(Infer::input) {
        Some(LogicalPlan::EmptyRelation(EmptyRelation { produce_one_row: false, .. })) => {
            let schema = Arc::clone(plan.schema());
            Ok(Transformed::yes(LogicalPlan::EmptyRelation(EmptyRelation { produce_one_row: false, schema })))
        }
        _ => Ok(Transformed::no(plan)),
    })
}

struct Lifter {
    next_id: usize,
    reasons: Reasons,
    /// Each sub-query with its calls lifted. Equal sub-queries stay equal: DataFusion may treat them as one column.
    subqueries: HashMap<LogicalPlan, LogicalPlan>,
}

impl Lifter {
    fn lift(&mut self, plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
        plan.transform_up(|plan| {
            plan.map_subqueries(|subquery| self.subquery(subquery))?.transform_sibling(|plan| self.node(plan))
        })
    }

    fn subquery(&mut self, plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
        if let Some(lifted) = self.subqueries.get(&plan) {
            return Ok(Transformed::new_transformed(lifted.clone(), *lifted != plan));
        }
        let lifted = self.lift(plan.clone())?;
        self.subqueries.insert(plan, lifted.data.clone());
        Ok(lifted)
    }

    /// Lifts the calls of a node, after those of its inputs.
    fn node(&mut self, plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
        if !plan.expressions().iter().any(has_call) {
            return Ok(Transformed::no(plan));
        }
        let lifted = match plan {
            LogicalPlan::Filter(filter) => self.filter(filter)?,
            LogicalPlan::Join(join) => self.join(join)?,
            LogicalPlan::Projection(_)
            | LogicalPlan::Aggregate(_)
            | LogicalPlan::Window(_)
            | LogicalPlan::Sort(_)
            | LogicalPlan::Repartition(_)
            | LogicalPlan::Distinct(Distinct::On(_)) => self.unary(plan)?,
            other => Transformed::no(other),
        };
        self.reasons.log_remaining(&lifted.data)?;
        Ok(lifted)
    }

    /// ```text
    /// Sort: ae_error('m', a, b)        Projection: a, b
    ///   TableScan: t              =>     Sort: __ae_1.error
    ///                                      Infer: m on a, b, outputs=[error]
    ///                                        TableScan: t
    /// ```
    fn unary(&mut self, plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
        let mut side = Side::new(plan.inputs()[0].clone());
        let exprs = plan.expressions();
        let columns = self.columns(&exprs, std::slice::from_mut(&mut side))?;
        if !side.is_changed {
            return Ok(Transformed::no(plan));
        }
        // sort keys have no names
        let has_names = !matches!(plan, LogicalPlan::Sort(_) | LogicalPlan::Repartition(_));
        let replace = |expr| match has_names {
            true => keep_names(&plan, expr, &mut |expr| replaced(expr, &columns)),
            false => replaced(expr, &columns),
        };
        let exprs = exprs.into_iter().map(replace).collect::<Result<Vec<_>>>()?;
        let lifted = match &plan {
            LogicalPlan::Distinct(Distinct::On(distinct)) => distinct_on(distinct, exprs, side.plan)?,
            plan => plan.with_new_exprs(exprs, vec![side.plan])?,
        };
        Ok(Transformed::yes(with_schema_of(&plan, lifted)?))
    }

    /// Filters by cheap conditions first, then by each condition that needs a model, in the order of the query:
    ///
    /// ```text
    /// Filter: ae_error('m', a, b) > 4 AND id % 10 = 0 AND ae_error('n', a, b) > 1
    ///   TableScan: t
    /// =>
    /// Filter: __ae_2.error > 1
    ///   Infer: n on a, b
    ///     Filter: __ae_1.error > 4
    ///       Infer: m on a, b
    ///         Filter: id % 10 = 0
    ///           TableScan: t
    /// ```
    fn filter(&mut self, filter: Filter) -> Result<Transformed<LogicalPlan>> {
        let original = LogicalPlan::Filter(filter.clone());
        let (costly, cheap): (Vec<Expr>, Vec<Expr>) = split_conjunction_owned(filter.predicate)
            .into_iter()
            .partition(|expr| has_call(expr) || expr.is_volatile());
        let mut side = Side::new(Arc::unwrap_or_clone(filter.input));
        side.filter(cheap)?;
        for condition in costly {
            let columns = self.columns(std::slice::from_ref(&condition), std::slice::from_mut(&mut side))?;
            side.filter(vec![replaced(condition, &columns)?])?;
        }
        match side.is_changed {
            true => Ok(Transformed::yes(with_schema_of(&original, side.plan)?)),
            false => Ok(Transformed::no(original)),
        }
    }

    /// Lifts calls on the columns of one side into that side. In an inner join, a condition on both sides becomes a
    /// filter above the join, whose calls are lifted.
    fn join(&mut self, mut join: Join) -> Result<Transformed<LogicalPlan>> {
        let original = LogicalPlan::Join(join.clone());
        if join.join_type == JoinType::Inner
            && let Some(above) = self.conditions_on_both(&mut join)?
        {
            let joined = self.join(join)?.data;
            let filtered = self.filter(Filter::try_new(above, Arc::new(joined))?)?.data;
            return Ok(Transformed::yes(with_schema_of(&original, filtered)?));
        }
        let mut sides = [Side::new(join.left.as_ref().clone()), Side::new(join.right.as_ref().clone())];
        let exprs = original.expressions();
        // each condition counts by itself, not as the right side of an AND
        let conditions: Vec<Expr> = exprs.iter().flat_map(split_conjunction).cloned().collect();
        let columns = self.columns(&conditions, &mut sides)?;
        if sides.iter().all(|side| !side.is_changed) {
            return Ok(Transformed::no(original));
        }
        let exprs = exprs.into_iter().map(|expr| replaced(expr, &columns)).collect::<Result<_>>()?;
        let joined = original.with_new_exprs(exprs, sides.map(|side| side.plan).to_vec())?;
        Ok(Transformed::yes(with_schema_of(&original, joined)?))
    }

    /// Removes the conditions from the filter of a join that call a model on columns of both sides.
    fn conditions_on_both(&self, join: &mut Join) -> Result<Option<Expr>> {
        let Some(filter) = &join.filter else { return Ok(None) };
        let of_one_side = |call: CallExpr<'_>| {
            [&join.left, &join.right].into_iter().any(|side| has_columns(side.schema(), call.features))
        };
        let (mut above, mut inside) = (Vec::new(), Vec::new());
        for condition in split_conjunction(filter) {
            let is_on_both = |place: &Place<'_>| !of_one_side(place.call) && place.call.obstacle().is_none();
            match places::calls(condition)?.iter().any(is_on_both) {
                true => above.push(condition.clone()),
                false => inside.push(condition.clone()),
            }
        }
        join.filter = conjunction(inside);
        Ok(conjunction(above))
    }

    /// Lifts calls of expressions into their inputs, and returns the column of each call; see [`replaced`].
    fn columns(&mut self, exprs: &[Expr], sides: &mut [Side]) -> Result<Columns> {
        let mut columns = Columns::new();
        let mut exprs = exprs.to_vec();
        // calls in the features of other calls first: the next round sees them as columns
        loop {
            let n_before = columns.len();
            let mut places = Vec::new();
            for expr in &exprs {
                places.extend(places::calls(expr)?);
            }
            let is_ready =
                |place: &&Place<'_>| place.call.obstacle().is_none() && !place.call.features.iter().any(has_call);
            let (eager, lazy): (Vec<&Place<'_>>, Vec<&Place<'_>>) =
                places.iter().filter(is_ready).partition(|place| place.branch.is_none());
            for Place { call, .. } in eager {
                if columns.contains_key(call.expr) {
                    continue;
                }
                let Some(side) = sides.iter_mut().find(|side| side.has(*call)) else { continue };
                if let Some(column) = side.add(*call, &mut self.next_id)? {
                    columns.insert(call.expr.clone(), Expr::Column(column));
                }
            }
            // calls in a branch, if the model already runs on these features
            for Place { call, .. } in lazy {
                if columns.contains_key(call.expr) {
                    continue;
                }
                for side in sides.iter_mut() {
                    if let Some(column) = side.share(*call)? {
                        columns.insert(call.expr.clone(), Expr::Column(column));
                        break;
                    }
                }
            }
            if columns.len() == n_before {
                return Ok(columns);
            }
            exprs = exprs.into_iter().map(|expr| replaced(expr, &columns)).collect::<Result<_>>()?;
        }
    }
}

/// The column of each lifted call.
type Columns = HashMap<Expr, Expr>;

/// An expression with its lifted calls replaced by their columns; inner calls first.
fn replaced(expr: Expr, columns: &Columns) -> Result<Expr> {
    let replace = |expr: Expr| {
        Ok(match columns.get(&expr) {
            Some(column) => Transformed::yes(column.clone()),
            None => Transformed::no(expr),
        })
    };
    Ok(expr.transform_up(replace)?.data)
}

/// DISTINCT ON with new expressions, which `with_new_exprs` of DataFusion does not support.
fn distinct_on(distinct: &DistinctOn, mut exprs: Vec<Expr>, input: LogicalPlan) -> Result<LogicalPlan> {
    let mut selected = exprs.split_off(distinct.on_expr.len());
    let keys = selected.split_off(distinct.select_expr.len());
    let sort_expr = distinct.sort_expr.as_ref().map(|sort| {
        let key = |(sort, expr): (&Sort, Expr)| Sort { expr: expr.unalias(), ..sort.clone() };
        sort.iter().zip(keys).map(key).collect()
    });
    let on = exprs.into_iter().map(Expr::unalias).collect();
    Ok(LogicalPlan::Distinct(Distinct::On(DistinctOn::try_new(on, selected, sort_expr, Arc::new(input))?)))
}

/// An input of a node, into which calls are lifted.
struct Side {
    plan: LogicalPlan,
    is_changed: bool,
}

impl Side {
    fn new(plan: LogicalPlan) -> Self {
        Self { plan, is_changed: false }
    }

    fn has(&self, call: CallExpr<'_>) -> bool {
        has_columns(self.plan.schema(), call.features)
    }

    /// The column of a call, from an existing node or from a new one.
    ///
    /// None over columns of an outer query. DataFusion turns such a sub-query into a join, but not if a node is
    /// between.
    fn add(&mut self, call: CallExpr<'_>, next_id: &mut usize) -> Result<Option<Column>> {
        if let Some(column) = self.share(call)? {
            return Ok(Some(column));
        }
        if !self.plan.all_out_ref_exprs().is_empty() {
            return Ok(None);
        }
        let (plan, column) =
            node::infer(self.plan.clone(), *next_id, call.model, call.function, call.features.to_vec())?;
        *next_id += 1;
        (self.plan, self.is_changed) = (plan, true);
        Ok(Some(column))
    }

    fn share(&mut self, call: CallExpr<'_>) -> Result<Option<Column>> {
        let features: Vec<Expr> = call.features.iter().cloned().map(Expr::unalias).collect();
        let target = Target { model: call.model, function: call.function };
        let Some((plan, column)) = reuse(&self.plan, &features, target)? else { return Ok(None) };
        (self.plan, self.is_changed) = (plan, true);
        Ok(Some(column))
    }

    fn filter(&mut self, conditions: Vec<Expr>) -> Result<()> {
        if let Some(predicate) = conjunction(conditions) {
            let plan = std::mem::take(&mut self.plan);
            self.plan = LogicalPlan::Filter(Filter::try_new(predicate, Arc::new(plan))?);
        }
        Ok(())
    }
}

/// A plan with exactly the columns of another.
fn with_schema_of(original: &LogicalPlan, plan: LogicalPlan) -> Result<LogicalPlan> {
    if plan.schema().columns() == original.schema().columns() {
        return Ok(plan);
    }
    let columns = original.schema().columns().into_iter().map(Expr::Column);
    LogicalPlanBuilder::from(plan).project(columns)?.build()
}
