//! Finds a lower node that already runs the model on the same features, and passes its output up.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema, JoinType};
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, LogicalPlan, Projection, SubqueryAlias, Window};

use super::node::Infer;
use crate::functions::Function;
use crate::model::Model;

/// The output to find.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) model: &'a Arc<Model>,
    pub(super) function: &'a Arc<dyn Function>,
}

/// The plan with a column for `target`, and the column. None if no node of the plan runs the model on these features
/// for each row.
///
/// ```text
/// Filter: e > 4                              Filter: e > 4
///   Projection: a, b, __ae_1.error AS e  =>    Projection: a, b, __ae_1.error AS e, __ae_1.code
///     Infer: m on a, b, outputs=[error]          Infer: m on a, b, outputs=[error, code]
/// ```
pub(super) fn reuse(
    plan: &LogicalPlan,
    features: &[Expr],
    target: Target<'_>,
) -> Result<Option<(LogicalPlan, Column)>> {
    if !has_columns(plan.schema(), features) {
        return Ok(None);
    }
    if let Some(node) = Infer::of(plan) {
        if node.runs(target.model, target.function.start(), features) {
            let (node, column) = node.with_output(target.function)?;
            return Ok(Some((node.into_plan(), column)));
        }
        let below = reuse(node.input(), features, target)?;
        return below.map(|(input, column)| Ok((node.with_input(input)?.into_plan(), column))).transpose();
    }
    match plan {
        LogicalPlan::Filter(_) | LogicalPlan::Sort(_) | LogicalPlan::Limit(_) | LogicalPlan::Repartition(_) => {
            let input = plan.inputs()[0];
            let below = reuse(input, features, target)?;
            below.map(|(input, column)| Ok((plan.with_new_exprs(plan.expressions(), vec![input])?, column))).transpose()
        }
        LogicalPlan::Projection(projection) => through_projection(projection, features, target),
        LogicalPlan::SubqueryAlias(alias) => through_alias(alias, features, target),
        LogicalPlan::Window(window) => {
            let below = reuse(&window.input, features, target)?;
            below
                .map(|(input, column)| {
                    let window = Window::try_new(window.window_expr.clone(), Arc::new(input))?;
                    Ok((LogicalPlan::Window(window), column))
                })
                .transpose()
        }
        LogicalPlan::Join(join) => {
            let [keeps_left, keeps_right] = kept_sides(join.join_type);
            for (side, keeps) in [(0, keeps_left), (1, keeps_right)] {
                let mut inputs = [join.left.as_ref().clone(), join.right.as_ref().clone()];
                if let (true, Some((input, column))) = (keeps, reuse(&inputs[side], features, target)?) {
                    inputs[side] = input;
                    return Ok(Some((plan.with_new_exprs(plan.expressions(), inputs.to_vec())?, column)));
                }
            }
            Ok(None)
        }
        _ => Ok(None),
    }
}

/// Whether each side of a join keeps its values. An outer join gives nulls where no row matches, and the output of a
/// model for these may not be null.
fn kept_sides(join: JoinType) -> [bool; 2] {
    match join {
        JoinType::Inner => [true, true],
        JoinType::Left | JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => [true, false],
        JoinType::Right | JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => [false, true],
        JoinType::Full => [false, false],
    }
}

fn through_projection(
    projection: &Projection,
    features: &[Expr],
    target: Target<'_>,
) -> Result<Option<(LogicalPlan, Column)>> {
    let columns = projection.schema.columns();
    let meaning: HashMap<&Column, &Expr> = columns.iter().zip(&projection.expr).collect();
    let mut is_volatile = false;
    let below = replaced(features, |column| {
        let expr = (*meaning.get(column)?).clone().unalias_nested().data;
        is_volatile |= expr.is_volatile();
        Some(expr)
    })?;
    if is_volatile {
        return Ok(None);
    }
    let Some((input, column)) = reuse(&projection.input, &below, target)? else { return Ok(None) };
    let found = Expr::Column(column.clone());
    let is_it = |expr: &Expr| expr.clone().unalias_nested().data == found;
    let mut exprs = projection.expr.clone();
    if let Some(place) = exprs.iter().position(is_it) {
        let plan = Projection::try_new(exprs, Arc::new(input))?;
        return Ok(Some((LogicalPlan::Projection(plan), columns[place].clone())));
    }
    exprs.push(found);
    Ok(Some((LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(input))?), column)))
}

fn through_alias(
    alias: &SubqueryAlias,
    features: &[Expr],
    target: Target<'_>,
) -> Result<Option<(LogicalPlan, Column)>> {
    let (outer, inner) = (alias.schema.columns(), alias.input.schema().columns());
    let meaning: HashMap<&Column, &Column> = outer.iter().zip(&inner).collect();
    let below = replaced(features, |column| Some(Expr::Column((*meaning.get(column)?).clone())))?;
    let Some((input, column)) = reuse(&alias.input, &below, target)? else { return Ok(None) };
    let index = input.schema().index_of_column(&column)?;
    let plan = SubqueryAlias::try_new(Arc::new(input), alias.alias.clone())?;
    let column = plan.schema.columns()[index].clone();
    Ok(Some((LogicalPlan::SubqueryAlias(plan), column)))
}

/// Features with their columns replaced by expressions.
fn replaced(features: &[Expr], mut meaning: impl FnMut(&Column) -> Option<Expr>) -> Result<Vec<Expr>> {
    let mut replace = |expr: Expr| match &expr {
        Expr::Column(column) => Ok(match meaning(column) {
            Some(other) => Transformed::yes(other),
            None => Transformed::no(expr),
        }),
        _ => Ok(Transformed::no(expr)),
    };
    features.iter().map(|feature| Ok(feature.clone().transform_up(&mut replace)?.data)).collect()
}

/// Whether a schema has all columns of the features.
pub(super) fn has_columns(schema: &DFSchema, features: &[Expr]) -> bool {
    features.iter().flat_map(Expr::column_refs).all(|column| schema.has_column(column))
}
