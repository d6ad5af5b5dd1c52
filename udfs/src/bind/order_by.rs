//! Binds calls in ORDER BY. There, DataFusion has already replaced what is selected by the selected columns.

use std::sync::Arc;

use datafusion::common::Column;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::error::Result;
use datafusion::logical_expr::expr::{ScalarFunction, Sort as Key};
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, Projection, Sort};

use super::{Scope, Statement, has_unbound, is_by_name, unbound};
use crate::functions::{ModelFunction, model_argument};

/// Binds the calls of a sort over a projection.
///
/// A call without features reads the columns that it reads in SELECT: those below the projection. Its result becomes a
/// column for the sort. Everything else in the key means the selected columns:
///
/// ```text
/// Sort: ae_error('m') * g                 Projection: id, g
///   Projection: id, -t.g AS g        =>     Sort: __ae_sort_0 * g
///     TableScan: t                            Projection: id, -t.g AS g, ae_error('m', t.a, t.b) AS __ae_sort_0
///                                               TableScan: t
/// ```
pub(super) fn bind(statement: &Statement, sort: &Sort, projection: &Projection) -> Result<Option<LogicalPlan>> {
    if !sort.expr.iter().any(|key| has_unbound(&key.expr)) {
        return Ok(None);
    }
    let mut hidden = Hidden { statement, projection, columns: Vec::new(), next_id: 0 };
    let keys = sort.expr.iter().map(|key| Ok(Key { expr: hidden.bind(key.expr.clone())?, ..key.clone() }));
    let keys = keys.collect::<Result<Vec<Key>>>()?;
    // not by the builder, which would replace what is selected once more
    let sorted = |input| LogicalPlan::Sort(Sort { expr: keys, input, fetch: sort.fetch });
    if hidden.columns.is_empty() {
        return Ok(Some(sorted(Arc::clone(&sort.input))));
    }
    let columns = projection.expr.iter().cloned().chain(hidden.columns);
    let input = LogicalPlanBuilder::from(Arc::clone(&projection.input)).project(columns)?.build()?;
    let selected = projection.schema.columns().into_iter().map(Expr::Column);
    LogicalPlanBuilder::from(sorted(Arc::new(input))).project(selected)?.build().map(Some)
}

/// The columns that a projection gets for the sort above it.
struct Hidden<'a> {
    statement: &'a Statement,
    projection: &'a Projection,
    columns: Vec<Expr>,
    next_id: usize,
}

impl Hidden<'_> {
    fn bind(&mut self, key: Expr) -> Result<Expr> {
        let key = key.transform_up(|expr| {
            let Some((call, function)) = unbound(&expr) else { return Ok(Transformed::no(expr)) };
            let call = self.with_name(call.clone(), function);
            Ok(Transformed::yes(match is_by_name(&call, function) {
                true => self.by_name(&call, function)?,
                false => self.selected().bind_call(&call, function)?,
            }))
        })?;
        Ok(key.data)
    }

    /// The columns that are selected.
    fn selected(&self) -> Scope<'_> {
        Scope { schema: &self.projection.schema, statement: self.statement }
    }

    /// With `'m' AS name` in SELECT, `ae_error('m')` has become `ae_error(name)`.
    fn with_name(&self, mut call: ScalarFunction, function: &ModelFunction) -> ScalarFunction {
        let Some(Expr::Column(column)) = call.args.first() else { return call };
        let Ok(index) = self.projection.schema.index_of_column(column) else { return call };
        let selected = self.projection.expr[index].clone().unalias();
        if let Expr::Literal(value, _) = &selected
            && let Some(name) = model_argument(Some(value))
            && self.statement.model(function, Some(name)).is_ok()
        {
            call.args[0] = selected;
        }
        call
    }

    fn by_name(&mut self, call: &ScalarFunction, function: &ModelFunction) -> Result<Expr> {
        let below = Scope { schema: self.projection.input.schema(), statement: self.statement };
        let bound = match below.bind_call(call, function) {
            Ok(bound) => bound,
            // what SELECT computes can be features too, as everywhere in ORDER BY
            Err(error) => return self.selected().bind_call(call, function).map_err(|_| error),
        };
        if let Some(bound) = self.over_selected(call, function, &bound)? {
            return Ok(bound);
        }
        let name = self.free_name();
        self.columns.push(bound.alias(&name));
        Ok(Expr::Column(Column::new_unqualified(name)))
    }

    /// The call over the selected columns, if they are those of the table.
    fn over_selected(&self, call: &ScalarFunction, function: &ModelFunction, below: &Expr) -> Result<Option<Expr>> {
        let Expr::ScalarFunction(bound) = below else { return Ok(None) };
        let columns = self.projection.schema.columns();
        let mut args = call.args.clone();
        for feature in &bound.args[call.args.len()..] {
            let Some(index) = self.projection.expr.iter().position(|expr| expr == feature) else { return Ok(None) };
            args.push(Expr::Column(columns[index].clone()));
        }
        let call = ScalarFunction::new_udf(Arc::clone(&call.func), args);
        self.selected().bind_call(&call, function).map(Some)
    }

    /// A name that no selected column has.
    fn free_name(&mut self) -> String {
        loop {
            let name = format!("__ae_sort_{}", self.next_id);
            self.next_id += 1;
            if !self.projection.schema.fields().iter().any(|field| *field.name() == name) {
                return name;
            }
        }
    }
}
