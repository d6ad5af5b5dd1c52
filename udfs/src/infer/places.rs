//! The places of calls in an expression: evaluated for every row, or in a branch for some rows.

use std::sync::Arc;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::logical_expr::expr::{AggregateFunction, ScalarFunction, WindowFunction};
use datafusion::logical_expr::{Expr, Operator};

use crate::functions::{Function, ModelFunction};
use crate::model::Model;

/// A call in an expression that is bound to a model.
#[derive(Debug, Clone, Copy)]
pub(super) struct CallExpr<'a> {
    /// The whole call.
    pub(super) expr: &'a Expr,
    pub(super) function: &'a Arc<dyn Function>,
    pub(super) model: &'a Arc<Model>,
    /// The arguments after the model's name.
    pub(super) features: &'a [Expr],
}

impl<'a> CallExpr<'a> {
    /// The call at the root of an expression, if there is one.
    pub(super) fn of(expr: &'a Expr) -> Option<Self> {
        let Expr::ScalarFunction(call) = expr else { return None };
        let function = call.func.inner().downcast_ref::<ModelFunction>()?;
        let bound = function.bound()?;
        let features = call.args.get(usize::from(bound.is_named)..)?;
        Some(Self { expr, function: function.function(), model: &bound.model, features })
    }

    /// The reason why this call cannot be lifted from any place.
    pub(super) fn obstacle(&self) -> Option<&'static str> {
        let any = |test: fn(&Expr) -> bool| {
            self.features.iter().any(|feature| feature.exists(|expr| Ok(test(expr))).unwrap_or(true))
        };
        if self.features.is_empty() {
            return Some("it has no features");
        }
        if any(|expr| matches!(expr, Expr::OuterReferenceColumn(..))) {
            return Some("its features come from an outer query");
        }
        if any(|expr| {
            matches!(expr, Expr::ScalarSubquery(_) | Expr::Exists(_) | Expr::InSubquery(_) | Expr::SetComparison(_))
        }) {
            return Some("its features contain a sub-query");
        }
        if any(|expr| matches!(expr, Expr::AggregateFunction(_) | Expr::WindowFunction(_))) {
            return Some("its features are aggregated in the same step");
        }
        if self.features.iter().any(Expr::is_volatile) {
            return Some("its features are volatile: two calls would read different values");
        }
        if !any(|expr| matches!(expr, Expr::Column(_))) {
            return Some("its features are constant");
        }
        None
    }
}

/// Whether an expression contains a call.
pub(super) fn has_call(expr: &Expr) -> bool {
    expr.exists(|expr| Ok(CallExpr::of(expr).is_some())).unwrap_or(true)
}

/// A call and its branch, if it is in one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) call: CallExpr<'a>,
    pub(super) branch: Option<&'static str>,
}

/// All calls of an expression; calls in the features of another call come first.
pub(super) fn calls(expr: &Expr) -> Result<Vec<Place<'_>>> {
    let mut places = Vec::new();
    visit(expr, None, &mut places)?;
    Ok(places)
}

fn visit<'a>(expr: &'a Expr, branch: Option<&'static str>, places: &mut Vec<Place<'a>>) -> Result<()> {
    match expr {
        Expr::BinaryExpr(binary) if matches!(binary.op, Operator::And | Operator::Or) => {
            visit(&binary.left, branch, places)?;
            visit(&binary.right, branch.or(Some("the right side of AND or OR")), places)?;
        }
        Expr::Case(case) => {
            let lazy = branch.or(Some("a branch of CASE"));
            let mut eager = branch;
            if let Some(base) = &case.expr {
                visit(base, branch, places)?;
            }
            for (when, then) in &case.when_then_expr {
                visit(when, eager, places)?;
                visit(then, lazy, places)?;
                eager = lazy;
            }
            if let Some(otherwise) = &case.else_expr {
                visit(otherwise, lazy, places)?;
            }
        }
        Expr::InList(list) => {
            visit(&list.expr, branch, places)?;
            visit_first(&list.list, branch, "the list of IN", places)?;
        }
        Expr::ScalarFunction(call) => visit_function(call, branch, places)?,
        Expr::AggregateFunction(AggregateFunction { params, .. }) => {
            let inner = if params.filter.is_some() { branch.or(Some("an aggregate with FILTER")) } else { branch };
            for arg in params.args.iter().chain(params.order_by.iter().map(|key| &key.expr)) {
                visit(arg, inner, places)?;
            }
            if let Some(filter) = &params.filter {
                visit(filter, branch, places)?;
            }
        }
        Expr::WindowFunction(window) => {
            let WindowFunction { params, .. } = window.as_ref();
            let inner = if params.filter.is_some() { branch.or(Some("a window with FILTER")) } else { branch };
            for arg in &params.args {
                visit(arg, inner, places)?;
            }
            for key in params.partition_by.iter().chain(params.order_by.iter().map(|key| &key.expr)) {
                visit(key, branch, places)?;
            }
            if let Some(filter) = &params.filter {
                visit(filter, branch, places)?;
            }
        }
        Expr::HigherOrderFunction(_) | Expr::Lambda(_) => {
            visit_children(expr, branch.or(Some("a lambda")), places)?;
        }
        _ => visit_children(expr, branch, places)?,
    }
    if let Some(call) = CallExpr::of(expr) {
        places.push(Place { call, branch });
    }
    Ok(())
}

fn visit_children<'a>(expr: &'a Expr, branch: Option<&'static str>, places: &mut Vec<Place<'a>>) -> Result<()> {
    expr.apply_children(|child| {
        visit(child, branch, places)?;
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(())
}

fn visit_function<'a>(
    call: &'a ScalarFunction,
    branch: Option<&'static str>,
    places: &mut Vec<Place<'a>>,
) -> Result<()> {
    let lazy = branch.or(Some("an argument that is evaluated only if it is needed (as in COALESCE)"));
    match call.func.conditional_arguments(&call.args) {
        Some((eager, conditional)) => {
            eager.into_iter().try_for_each(|arg| visit(arg, branch, places))?;
            conditional.into_iter().try_for_each(|arg| visit(arg, lazy, places))
        }
        None => {
            let branch = if call.func.short_circuits() { lazy } else { branch };
            call.args.iter().try_for_each(|arg| visit(arg, branch, places))
        }
    }
}

/// Visits a list whose first expression is evaluated for every row. The others may not be.
fn visit_first<'a>(
    list: &'a [Expr],
    branch: Option<&'static str>,
    lazy: &'static str,
    places: &mut Vec<Place<'a>>,
) -> Result<()> {
    for (index, item) in list.iter().enumerate() {
        visit(item, if index == 0 { branch } else { branch.or(Some(lazy)) }, places)?;
    }
    Ok(())
}
