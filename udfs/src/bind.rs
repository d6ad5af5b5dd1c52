//! The analyzer rule that binds each call to its model and, if it has no features, to columns.

mod order_by;

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, plan_err};
use datafusion::config::ConfigOptions;
use datafusion::error::Result;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{Expr, LogicalPlan, Prepare, Statement as SqlStatement};
use datafusion::optimizer::AnalyzerRule;
use datafusion::optimizer::analyzer::type_coercion::TypeCoercion;

use crate::functions::{Bound, ModelFunction, model_argument};
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
/// All calls of a statement that name a model use the same version. A bound plan keeps its files: later versions of a
/// name do not change it.
#[derive(Debug, Default)]
pub struct BindModels;

impl AnalyzerRule for BindModels {
    fn analyze(&self, plan: LogicalPlan, config: &ConfigOptions) -> Result<LogicalPlan> {
        let mut has_calls = false;
        plan.apply_with_subqueries(|plan| {
            has_calls |= plan.expressions().iter().any(has_unbound);
            Ok(if has_calls { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        })?;
        if !has_calls {
            return Ok(plan);
        }
        // both sides of a join by USING are in scope, and are equal
        let statement = Statement { using: plan.using_columns()?, models: RefCell::default() };
        // every node recomputes its schema, because types and names below may have changed
        let bound = plan
            .transform_up_with_subqueries(|plan| statement.bind(plan)?.map_data(LogicalPlan::recompute_schema))?
            .data;
        // so may the types above: `ae_reconstruct('m')['a'] - b` had the type of the column in the model
        TypeCoercion::new().analyze(bound, config)
    }

    fn name(&self) -> &str {
        "bind_models"
    }
}

/// Binds the calls of PREPARE. DataFusion optimizes a prepared query without the analyzer rules, and would remove the
/// columns that a call reads by name.
///
/// # Errors
/// The errors of [`BindModels`].
pub(crate) fn bind_prepared(plan: LogicalPlan, config: &ConfigOptions) -> Result<LogicalPlan> {
    let LogicalPlan::Statement(SqlStatement::Prepare(Prepare { name, fields, input })) = plan else { return Ok(plan) };
    let input = Arc::new(BindModels.analyze(Arc::unwrap_or_clone(input), config)?);
    Ok(LogicalPlan::Statement(SqlStatement::Prepare(Prepare { name, fields, input })))
}

/// Whether an expression contains a call that is not bound.
fn has_unbound(expr: &Expr) -> bool {
    expr.exists(|expr| Ok(unbound(expr).is_some())).unwrap_or(true)
}

fn unbound(expr: &Expr) -> Option<(&ScalarFunction, &ModelFunction)> {
    let Expr::ScalarFunction(call) = expr else { return None };
    let function = call.func.inner().downcast_ref::<ModelFunction>()?;
    function.bound().is_none().then_some((call, function))
}

/// The name of the model in a call that is not bound.
fn reference(call: &ScalarFunction) -> Option<&str> {
    match call.args.first() {
        Some(Expr::Literal(value, _)) => model_argument(Some(value)),
        _ => None,
    }
}

/// A statement whose calls are bound.
struct Statement {
    using: Vec<HashSet<Column>>,
    /// The model of each name. A version that is published in between does not count.
    models: RefCell<HashMap<String, Arc<Model>>>,
}

impl Statement {
    fn bind(&self, plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
        if let LogicalPlan::Sort(sort) = &plan
            && let LogicalPlan::Projection(projection) = sort.input.as_ref()
            && let Some(plan) = order_by::bind(self, sort, projection)?
        {
            return Ok(Transformed::yes(plan));
        }
        let schema = match plan.inputs().as_slice() {
            [] => plan.schema().as_ref().clone(),
            inputs => merge_schema(inputs),
        };
        let scope = Scope { schema: &schema, statement: self };
        let original = plan.clone();
        plan.map_expressions(|expr| match has_unbound(&expr) {
            true => keep_names(&original, expr, &mut |expr| Ok(scope.bind(expr)?.data)).map(Transformed::yes),
            false => Ok(Transformed::no(expr)),
        })
    }

    /// The model of a call.
    fn model(&self, function: &ModelFunction, reference: Option<&str>) -> Result<Arc<Model>> {
        let name = reference.or(function.default_model()).unwrap_or_default();
        if let Some(model) = self.models.borrow().get(name) {
            return Ok(Arc::clone(model));
        }
        let mut model = function.model(reference)?;
        let mut models = self.models.borrow_mut();
        if !name.contains('@') {
            // a call without a name and one with the name of the only model agree
            model = Arc::clone(models.entry(model.name().to_owned()).or_insert(model));
        }
        models.insert(name.to_owned(), Arc::clone(&model));
        Ok(model)
    }
}

/// The columns that a call can bind its features to.
struct Scope<'a> {
    schema: &'a DFSchema,
    statement: &'a Statement,
}

impl Scope<'_> {
    fn bind(&self, expr: Expr) -> Result<Transformed<Expr>> {
        expr.transform_up(|expr| match unbound(&expr) {
            None => Ok(Transformed::no(expr)),
            Some((call, function)) => Ok(Transformed::yes(self.bind_call(call, function)?)),
        })
    }

    fn bind_call(&self, call: &ScalarFunction, function: &ModelFunction) -> Result<Expr> {
        let reference = reference(call);
        let model = self.statement.model(function, reference)?;
        let mut args = call.args.clone();
        if is_by_name(call, function) {
            args.extend(self.columns(&model).map_err(|e| function.explain(reference, e))?);
        }
        let bound = function.bind(Bound { model, is_named: reference.is_some() });
        Ok(Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(bound.into_udf()), args)))
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
                if rest.is_empty() || self.statement.using.iter().any(is_same) {
                    return Ok(Some(first.clone()));
                }
                let names: Vec<String> = columns.iter().map(Column::flat_name).collect();
                plan_err!("column \"{name}\" is ambiguous: {}; give the features as arguments", names.join(", "))
            }
        }
    }
}

/// Whether a call takes its features from the columns in scope.
fn is_by_name(call: &ScalarFunction, function: &ModelFunction) -> bool {
    call.args.len() == usize::from(reference(call).is_some()) && function.function().binds_by_name()
}
