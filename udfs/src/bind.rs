//! The analyzer rule that binds each call to its model and, if it has no features, to columns.

use std::collections::HashSet;
use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, plan_err};
use datafusion::config::ConfigOptions;
use datafusion::error::Result;
use datafusion::logical_expr::expr::{ScalarFunction, Sort};
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder};
use datafusion::optimizer::AnalyzerRule;
use datafusion::optimizer::analyzer::type_coercion::TypeCoercion;

use crate::functions::{ModelFunction, model_argument};
use crate::keep_names::keep_names;
use crate::model::Model;
use crate::suggest;

/// Binds every call to the current file of its model name, and a call without features to columns:
///
/// ```text
/// Projection: ae_error('fraud')                Projection: ae_error('fraud', t.amount, t.age) AS ae_error('fraud')
///   TableScan: t                          =>     TableScan: t
/// ```
///
/// A bound plan keeps its files: later versions of a name do not change it.
#[derive(Debug, Default)]
pub struct BindModels;

impl AnalyzerRule for BindModels {
    fn analyze(&self, plan: LogicalPlan, config: &ConfigOptions) -> Result<LogicalPlan> {
        let mut has_calls = false;
        plan.apply_with_subqueries(|plan| {
            has_calls |=
                plan.expressions().iter().any(|expr| expr.exists(|expr| Ok(unbound(expr).is_some())).unwrap_or(true));
            Ok(if has_calls { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        })?;
        if !has_calls {
            return Ok(plan);
        }
        // both sides of a join by USING are in scope, and are equal
        let using = plan.using_columns()?;
        // every node recomputes its schema, because types and names below may have changed
        let bound = plan
            .transform_up_with_subqueries(|plan| bind_node(plan, &using)?.map_data(LogicalPlan::recompute_schema))?
            .data;
        // so may the types above: `ae_reconstruct('m')['a'] - b` had the type of the column in the model
        TypeCoercion::new().analyze(bound, config)
    }

    fn name(&self) -> &str {
        "bind_models"
    }
}

fn unbound(expr: &Expr) -> Option<(&ScalarFunction, &ModelFunction)> {
    let Expr::ScalarFunction(call) = expr else { return None };
    let function = call.func.inner().downcast_ref::<ModelFunction>()?;
    (!function.is_pinned()).then_some((call, function))
}

fn bind_node(plan: LogicalPlan, using: &[HashSet<Column>]) -> Result<Transformed<LogicalPlan>> {
    let schema = match plan.inputs().as_slice() {
        [] => plan.schema().as_ref().clone(),
        inputs => merge_schema(inputs),
    };
    let scope = Scope { schema: &schema, using };
    if let LogicalPlan::Sort(sort) = &plan
        && let LogicalPlan::Projection(projection) = sort.input.as_ref()
        && let Some(plan) = sort_below(sort, projection, &scope, using)?
    {
        return Ok(Transformed::yes(plan));
    }
    let original = plan.clone();
    plan.map_expressions(|expr| match expr.exists(|expr| Ok(unbound(expr).is_some()))? {
        true => keep_names(&original, expr, &mut |expr| Ok(scope.bind(expr)?.data)).map(Transformed::yes),
        false => Ok(Transformed::no(expr)),
    })
}

/// Sorts by a call whose features are not selected, as in `SELECT id FROM t ORDER BY ae_error('m')`. The result of the
/// call becomes a column for the sort:
///
/// ```text
/// Sort: ae_error('m')                 Projection: id
///   Projection: id               =>     Sort: __ae_sort_0
///     TableScan: t                        Projection: id, ae_error('m', t.a, t.b) AS __ae_sort_0
///                                           TableScan: t
/// ```
fn sort_below(
    sort: &datafusion::logical_expr::Sort,
    projection: &datafusion::logical_expr::Projection,
    scope: &Scope<'_>,
    using: &[HashSet<Column>],
) -> Result<Option<LogicalPlan>> {
    let needs_more = |sort: &Sort| scope.bind(sort.expr.clone()).is_err();
    if !sort.expr.iter().any(needs_more) {
        return Ok(None);
    }
    let below = Scope { schema: projection.input.schema(), using };
    let mut columns = projection.expr.clone();
    let mut keys = Vec::new();
    for (index, key) in sort.expr.iter().enumerate() {
        if !needs_more(key) {
            keys.push(key.clone());
            continue;
        }
        let name = format!("__ae_sort_{index}");
        columns.push(below.bind(key.expr.clone())?.data.alias(&name));
        keys.push(Sort { expr: Expr::Column(Column::new_unqualified(name)), ..key.clone() });
    }
    let selected = projection.schema.columns().into_iter().map(Expr::Column);
    LogicalPlanBuilder::from(Arc::clone(&projection.input))
        .project(columns)?
        .sort_with_limit(keys, sort.fetch)?
        .project(selected)?
        .build()
        .map(Some)
}

/// The columns that a call can bind its features to.
struct Scope<'a> {
    schema: &'a DFSchema,
    using: &'a [HashSet<Column>],
}

impl Scope<'_> {
    fn bind(&self, expr: Expr) -> Result<Transformed<Expr>> {
        expr.transform_up(|expr| match unbound(&expr) {
            None => Ok(Transformed::no(expr)),
            Some((call, function)) => Ok(Transformed::yes(self.bind_call(call, function)?)),
        })
    }

    fn bind_call(&self, call: &ScalarFunction, function: &ModelFunction) -> Result<Expr> {
        let reference = match call.args.first() {
            Some(Expr::Literal(value, _)) => model_argument(Some(value)),
            _ => None,
        };
        let (pinned, model) = function.pin(reference)?;
        let mut args = call.args.clone();
        if args.len() == usize::from(reference.is_some()) && function.function().binds_by_name() {
            args.extend(self.columns(&model).map_err(|e| function.explain(reference, e))?);
        }
        Ok(Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(pinned.into_udf()), args)))
    }

    fn columns(&self, model: &Model) -> Result<Vec<Expr>> {
        let features = &model.contract().features;
        let mut columns = Vec::new();
        let mut missing = Vec::new();
        for feature in features {
            match self.column(&feature.name)? {
                Some(column) => columns.push(Expr::Column(column)),
                None => missing.push(feature.name.as_str()),
            }
        }
        if missing.is_empty() {
            return Ok(columns);
        }
        let in_scope: Vec<&str> = self.schema.fields().iter().map(|field| field.name().as_str()).collect();
        let hint = match missing.as_slice() {
            [one] => suggest::hint(one, in_scope),
            _ if columns.is_empty() => {
                "; give the features as arguments, or name the columns of the model with the option input_cols"
                    .to_owned()
            }
            _ => String::new(),
        };
        plan_err!(
            "needs {} features (model {model}), found {}: no column {} in scope{hint}",
            features.len(),
            columns.len(),
            suggest::shortened(&missing)
        )
    }

    fn column(&self, name: &str) -> Result<Option<Column>> {
        let found = self.schema.qualified_fields_with_unqualified_name(name);
        let columns: Vec<Column> = found.into_iter().map(Column::from).collect();
        match columns.as_slice() {
            [] => Ok(None),
            [first, rest @ ..] => {
                let is_same = |using: &HashSet<Column>| columns.iter().all(|column| using.contains(column));
                if rest.is_empty() || self.using.iter().any(is_same) {
                    return Ok(Some(first.clone()));
                }
                let names: Vec<String> = columns.iter().map(Column::flat_name).collect();
                plan_err!("column \"{name}\" is ambiguous: {}; give the features as arguments", names.join(", "))
            }
        }
    }
}
