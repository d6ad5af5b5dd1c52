//! Avoids plans that DataFusion 55.2 answers wrongly. `docs/limits.md` lists the faults that remain.

mod barrier;
mod outer_join;
mod pass_through;

use std::collections::HashSet;
use std::sync::Arc;

use datafusion::arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::config::ConfigOptions;
use datafusion::error::Result;
use datafusion::logical_expr::expr::{AggregateFunction, ScalarFunction, Sort, WindowFunction};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{
    Aggregate, ColumnarValue, Distinct, DistinctOn, Expr, GroupingSet, LogicalPlan, LogicalPlanBuilder,
    ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility, Window,
};
use datafusion::optimizer::AnalyzerRule;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::prelude::SessionConfig;

/// Rules of the optimizer that are off until a release of DataFusion has them right, and why.
const OFF: [&str; 2] = [
    // takes a filter to another column of the same name, and rows vanish: apache/datafusion#25259
    "enable_dynamic_filter_pushdown",
    // refers to columns that do not exist, if a struct or a list is read above a join
    "enable_leaf_expression_pushdown",
];

/// Switches faulty optimizer rules off, except those that the environment sets. SET can switch them on.
pub(super) fn switch_off(config: &mut SessionConfig) -> Result<()> {
    for rule in OFF {
        let variable = format!("DATAFUSION_OPTIMIZER_{}", rule.to_uppercase());
        if std::env::var_os(variable).is_none() {
            config.options_mut().set(&format!("datafusion.optimizer.{rule}"), "false")?;
        }
    }
    Ok(())
}

/// The rules of DataFusion for physical plans, with those that avoid its faults.
pub(super) fn physical_optimizer_rules() -> Vec<Arc<dyn PhysicalOptimizerRule + Send + Sync>> {
    let mut rules = PhysicalOptimizer::new().rules;
    for rule in &mut rules {
        if rule.name().starts_with("FilterPushdown") {
            *rule = Arc::new(barrier::Guarded(Arc::clone(rule)));
        }
    }
    rules.insert(0, Arc::new(outer_join::HideConstants));
    rules
}

/// Rewrites nodes that DataFusion plans wrongly.
#[derive(Debug)]
pub(super) struct AvoidFaults {
    varying: Arc<ScalarUDF>,
    row: Arc<ScalarUDF>,
}

impl Default for AvoidFaults {
    fn default() -> Self {
        Self {
            varying: Arc::new(ScalarUDF::new_from_impl(Varying::new("varying", 2))),
            row: Arc::new(ScalarUDF::new_from_impl(Varying::new("row", 0))),
        }
    }
}

impl AnalyzerRule for AvoidFaults {
    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        plan.transform_up_with_subqueries(|plan| match plan {
            LogicalPlan::Distinct(Distinct::On(distinct)) => distinct_on(distinct),
            LogicalPlan::Aggregate(aggregate) => self.aggregate(aggregate),
            LogicalPlan::Window(window) => keys_below(window),
            plan => Ok(Transformed::no(plan)),
        })
        .map(|rewritten| rewritten.data)
    }

    fn name(&self) -> &str {
        "avoid_faults"
    }
}

/// Removes later keys that are equal to an earlier one, or constant. With them, `first_value` panics.
fn distinct_keys(keys: &mut Vec<Sort>) -> bool {
    let before = keys.len();
    let mut seen = HashSet::new();
    keys.retain(|key| match &key.expr {
        Expr::Literal(..) if !seen.is_empty() => false,
        expr => seen.insert(expr.clone()),
    });
    keys.len() < before
}

/// `DISTINCT ON (c) … ORDER BY c, id DESC, id` sorts by `c, id DESC`.
fn distinct_on(mut distinct: DistinctOn) -> Result<Transformed<LogicalPlan>> {
    let mut seen = HashSet::new();
    distinct.on_expr.retain(|expr| seen.insert(expr.clone()));
    let is_changed = distinct.sort_expr.as_mut().is_some_and(distinct_keys);
    Ok(Transformed::new_transformed(LogicalPlan::Distinct(Distinct::On(distinct)), is_changed))
}

impl AvoidFaults {
    /// Hides from the planner which keys of grouping sets are constant. It would think that a constant stays one where a
    /// set leaves the key out, and form a group twice:
    ///
    /// ```text
    /// Aggregate: ROLLUP (k, 'u')  =>  Aggregate: ROLLUP (varying(k, row()) AS k, varying('u', row()) AS 'u')
    /// ```
    fn aggregate(&self, aggregate: Aggregate) -> Result<Transformed<LogicalPlan>> {
        let mut is_changed = false;
        let plan = LogicalPlan::Aggregate(aggregate.clone());
        let names = NamePreserver::new(&plan);
        let mut all = |exprs: Vec<Expr>| {
            let one = |expr: Expr| {
                let name = names.save(&expr);
                name.restore(self.varying(expr))
            };
            exprs.into_iter().map(one).collect::<Vec<_>>()
        };
        let group_expr = aggregate.group_expr.into_iter().map(|expr| match expr {
            Expr::GroupingSet(set) => {
                is_changed = true;
                Expr::GroupingSet(match set {
                    GroupingSet::Rollup(exprs) => GroupingSet::Rollup(all(exprs)),
                    GroupingSet::Cube(exprs) => GroupingSet::Cube(all(exprs)),
                    GroupingSet::GroupingSets(sets) => {
                        GroupingSet::GroupingSets(sets.into_iter().map(&mut all).collect())
                    }
                })
            }
            expr => expr,
        });
        let group_expr = group_expr.collect();
        let mut aggr_expr = Vec::new();
        for expr in aggregate.aggr_expr {
            let name = names.save(&expr);
            let rewritten = expr.transform_up(|expr| match expr {
                Expr::AggregateFunction(AggregateFunction { func, mut params }) => {
                    let is_changed = distinct_keys(&mut params.order_by);
                    let expr = Expr::AggregateFunction(AggregateFunction { func, params });
                    Ok(Transformed::new_transformed(expr, is_changed))
                }
                expr => Ok(Transformed::no(expr)),
            })?;
            is_changed |= rewritten.transformed;
            aggr_expr.push(if rewritten.transformed { name.restore(rewritten.data) } else { rewritten.data });
        }
        if !is_changed {
            return Ok(Transformed::no(plan));
        }
        Ok(Transformed::yes(LogicalPlan::Aggregate(Aggregate::try_new(aggregate.input, group_expr, aggr_expr)?)))
    }

    fn varying(&self, expr: Expr) -> Expr {
        let row = Expr::ScalarFunction(ScalarFunction::new_udf(Arc::clone(&self.row), Vec::new()));
        Expr::ScalarFunction(ScalarFunction::new_udf(Arc::clone(&self.varying), vec![expr.unalias(), row]))
    }
}

/// Computes keys of windows below the window. DataFusion does not know the type of an element such as `list[1]` inside a
/// key, and cannot plan the sort:
///
/// ```text
/// Window: count(*) OVER (PARTITION BY l[1] > 1)  =>  Projection: l, count(*) …
///   TableScan: t                                       Window: count(*) OVER (PARTITION BY __window_key_0)
///                                                        Projection: l, l[1] > 1 AS __window_key_0
///                                                          TableScan: t
/// ```
fn keys_below(window: Window) -> Result<Transformed<LogicalPlan>> {
    let original = LogicalPlan::Window(window.clone());
    let names = NamePreserver::new(&original);
    let mut keys: Vec<Expr> = Vec::new();
    let mut next_id = 0;
    let mut column = |key: Expr, keys: &mut Vec<Expr>| {
        if !has_inner_function(&key) {
            return key;
        }
        let is_free = |name: &String| !window.input.schema().fields().iter().any(|field| field.name() == name);
        let name = loop {
            let name = format!("__window_key_{next_id}");
            next_id += 1;
            if is_free(&name) {
                break name;
            }
        };
        keys.push(key.alias(&name));
        Expr::Column(datafusion::common::Column::new_unqualified(name))
    };
    let mut exprs = Vec::new();
    for expr in window.window_expr.clone() {
        let name = names.save(&expr);
        let rewritten = expr.transform_up(|expr| {
            let Expr::WindowFunction(function) = expr else { return Ok(Transformed::no(expr)) };
            let WindowFunction { fun, mut params } = *function;
            let before = keys.len();
            params.partition_by = params.partition_by.into_iter().map(|key| column(key, &mut keys)).collect();
            for key in &mut params.order_by {
                key.expr = column(std::mem::take(&mut key.expr), &mut keys);
            }
            let expr = Expr::WindowFunction(Box::new(WindowFunction { fun, params }));
            Ok(Transformed::new_transformed(expr, keys.len() > before))
        })?;
        exprs.push(if rewritten.transformed { name.restore(rewritten.data) } else { rewritten.data });
    }
    if keys.is_empty() {
        return Ok(Transformed::no(original));
    }
    let columns = window.input.schema().columns().into_iter().map(Expr::Column).chain(keys);
    let selected = original.schema().columns().into_iter().map(Expr::Column);
    let input = LogicalPlanBuilder::from(Arc::clone(&window.input)).project(columns)?.build()?;
    let windows = LogicalPlan::Window(Window::try_new(exprs, Arc::new(input))?);
    LogicalPlanBuilder::from(windows).project(selected)?.build().map(Transformed::yes)
}

/// Whether an expression contains a function inside another expression.
fn has_inner_function(key: &Expr) -> bool {
    key.exists(|expr| Ok(expr != key && matches!(expr, Expr::ScalarFunction(_)))).unwrap_or(true)
}

/// Returns its first argument; without arguments, null. DataFusion does not evaluate it while it plans.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Varying {
    name: &'static str,
    signature: Signature,
}

impl Varying {
    fn new(name: &'static str, n_arguments: usize) -> Self {
        let signature = match n_arguments {
            0 => Signature::nullary(Volatility::Volatile),
            n => Signature::any(n, Volatility::Volatile),
        };
        Self { name, signature }
    }
}

impl ScalarUDFImpl for Varying {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        Ok(arguments.first().cloned().unwrap_or(DataType::Null))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Ok(args.args.into_iter().next().unwrap_or(ColumnarValue::Scalar(ScalarValue::Null)))
    }
}
