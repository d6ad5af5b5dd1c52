//! Refuses clauses that the parser accepts and the planner of DataFusion 55.2 drops without a word.

use std::fmt::Display;
use std::ops::ControlFlow;

use datafusion::common::{plan_datafusion_err, plan_err};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SessionState;
use datafusion::sql::parser::{CopyToSource, Statement as DataFusionStatement};
use datafusion::sql::sqlparser::ast::{
    ColumnDef, ColumnOption, CreateTable, CreateView, Expr, Function, FunctionArgumentClause, FunctionArguments,
    GroupByExpr, NamedWindowExpr, ObjectName, OrderByKind, Query, Select, SelectItem, SelectItemQualifiedWildcardKind,
    SetExpr, Statement, TableAlias, TableFactor, TableSampleKind, Visit, Visitor, WildcardAdditionalOptions,
    WindowSpec, WindowType,
};

/// Checks a statement of DataFusion.
///
/// # Errors
/// A planning error with the first clause that the planner would drop.
pub(super) fn check(statement: &DataFusionStatement, session: &SessionState) -> Result<()> {
    match statement {
        DataFusionStatement::Statement(statement) => visit(statement.as_ref(), session),
        DataFusionStatement::CopyTo(copy) => match &copy.source {
            CopyToSource::Query(query) => visit(query.as_ref(), session),
            CopyToSource::Relation(_) => Ok(()),
        },
        DataFusionStatement::Explain(explain) => check(&explain.statement, session),
        DataFusionStatement::CreateExternalTable(create) => columns(&create.columns),
        DataFusionStatement::Reset(_) => Ok(()),
    }
}

/// Checks a query.
///
/// # Errors
/// A planning error with the first clause that the planner would drop.
pub(super) fn check_query(query: &Query, session: &SessionState) -> Result<()> {
    visit(query, session)
}

fn visit(node: &impl Visit, session: &SessionState) -> Result<()> {
    match node.visit(&mut Dropped { session }) {
        ControlFlow::Break(error) => Err(error),
        ControlFlow::Continue(()) => Ok(()),
    }
}

/// Why a clause is refused.
fn ignored(clause: impl Display) -> DataFusionError {
    plan_datafusion_err!("{clause} is not supported, and the query would run without it; remove it")
}

fn refuse_if(is_given: bool, clause: impl Display) -> Result<()> {
    if is_given { Err(ignored(clause)) } else { Ok(()) }
}

fn refuse<T: Display>(clause: Option<&T>) -> Result<()> {
    clause.map_or(Ok(()), |clause| Err(ignored(clause)))
}

/// The visitor. Its names of clauses are those of the statement.
struct Dropped<'a> {
    session: &'a SessionState,
}

fn flow(checked: Result<()>) -> ControlFlow<DataFusionError> {
    match checked {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => ControlFlow::Break(error),
    }
}

impl Visitor for Dropped<'_> {
    type Break = DataFusionError;

    fn pre_visit_query(&mut self, node: &Query) -> ControlFlow<DataFusionError> {
        flow(query(node))
    }

    fn pre_visit_select(&mut self, node: &Select) -> ControlFlow<DataFusionError> {
        flow(select(node))
    }

    fn pre_visit_table_factor(&mut self, node: &TableFactor) -> ControlFlow<DataFusionError> {
        flow(self.table(node))
    }

    fn pre_visit_expr(&mut self, node: &Expr) -> ControlFlow<DataFusionError> {
        match node {
            Expr::Function(call) => flow(self.function(call)),
            _ => ControlFlow::Continue(()),
        }
    }

    fn pre_visit_statement(&mut self, node: &Statement) -> ControlFlow<DataFusionError> {
        flow(statement(node))
    }
}

fn query(query: &Query) -> Result<()> {
    refuse(query.locks.first())?;
    refuse(query.for_clause.as_ref())?;
    refuse_if(query.settings.is_some(), "SETTINGS")?;
    refuse(query.format_clause.as_ref())?;
    let is_select = matches!(*query.body, SetExpr::Select(_));
    let is_all = query.order_by.as_ref().is_some_and(|order| matches!(order.kind, OrderByKind::All(_)));
    refuse_if(is_all && !is_select, "ORDER BY ALL after UNION, EXCEPT, INTERSECT or VALUES")?;
    if let Some(with) = &query.with {
        for table in &with.cte_tables {
            refuse_if(table.from.is_some(), format_args!("WITH {} … FROM", table.alias.name))?;
            refuse(table.materialized.as_ref().filter(|materialized| materialized.to_string() == "MATERIALIZED"))?;
            alias(Some(&table.alias))?;
        }
    }
    Ok(())
}

fn select(select: &Select) -> Result<()> {
    refuse(select.select_modifiers.as_ref().filter(|modifiers| modifiers.is_any_set()))?;
    refuse(select.value_table_mode.as_ref())?;
    refuse_if(select.exclude.is_some(), "EXCLUDE after the list of SELECT")?;
    refuse_if(select.prewhere.is_some(), "PREWHERE")?;
    refuse(select.connect_by.first())?;
    if let Some(into) = &select.into {
        refuse_if(into.temporary, "SELECT INTO TEMPORARY")?;
        refuse_if(into.unlogged, "SELECT INTO UNLOGGED")?;
    }
    let (GroupByExpr::All(modifiers) | GroupByExpr::Expressions(_, modifiers)) = &select.group_by;
    if let Some(modifier) = modifiers.first() {
        return plan_err!(
            "GROUP BY … {modifier} is not supported, and the query would run without it; use GROUP BY ROLLUP (…), \
             CUBE (…) or GROUPING SETS (…)"
        );
    }
    for item in &select.projection {
        match item {
            SelectItem::Wildcard(options) => wildcard(options)?,
            SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(_), options) => {
                wildcard(options)?;
            }
            _ => {}
        }
    }
    for window in &select.named_window {
        if let NamedWindowExpr::WindowSpec(spec) = &window.1 {
            extended(spec)?;
        }
    }
    for table in &select.from {
        for join in &table.joins {
            refuse_if(join.global, "GLOBAL JOIN")?;
        }
    }
    Ok(())
}

fn wildcard(options: &WildcardAdditionalOptions) -> Result<()> {
    match &options.opt_ilike {
        Some(pattern) => Err(ignored(format_args!("* {pattern}"))),
        None => Ok(()),
    }
}

/// `OVER (w ORDER BY …)` loses the window `w`.
fn extended(window: &WindowSpec) -> Result<()> {
    let Some(name) = &window.window_name else { return Ok(()) };
    plan_err!(
        "a window that extends the window {name} is not supported, and the query would run without {name}; write the \
         clauses of {name} out"
    )
}

fn alias(alias: Option<&TableAlias>) -> Result<()> {
    let Some(alias) = alias else { return Ok(()) };
    refuse_if(alias.at.is_some(), "AT after a table")?;
    match alias.columns.iter().find(|column| column.data_type.is_some()) {
        Some(column) => Err(ignored(format_args!("the type of a column in an alias ({column})"))),
        None => Ok(()),
    }
}

impl Dropped<'_> {
    fn table(&self, table: &TableFactor) -> Result<()> {
        match table {
            TableFactor::Table {
                alias: named,
                args,
                with_hints,
                version,
                with_ordinality,
                partitions,
                json_path,
                sample,
                index_hints,
                ..
            } => {
                refuse(with_hints.first().map(|hint| format!("WITH ({hint})")).as_ref())?;
                refuse(version.as_ref())?;
                refuse_if(*with_ordinality, "WITH ORDINALITY")?;
                refuse_if(!partitions.is_empty(), "PARTITION (…) after a table")?;
                refuse(json_path.as_ref())?;
                refuse(index_hints.first())?;
                refuse_if(args.as_ref().is_some_and(|args| args.settings.is_some()), "SETTINGS")?;
                self.sampled(sample.as_ref())?;
                alias(named.as_ref())
            }
            TableFactor::Derived { alias: named, sample, .. } => {
                self.sampled(sample.as_ref())?;
                alias(named.as_ref())
            }
            TableFactor::Function { with_ordinality, alias: named, .. } => {
                refuse_if(*with_ordinality, "WITH ORDINALITY")?;
                alias(named.as_ref())
            }
            TableFactor::UNNEST { alias: named, .. } | TableFactor::NestedJoin { alias: named, .. } => {
                alias(named.as_ref())
            }
            _ => Ok(()),
        }
    }

    /// A planner of relations may know samples, as that of the program does.
    fn sampled(&self, sample: Option<&TableSampleKind>) -> Result<()> {
        let Some(TableSampleKind::BeforeTableAlias(sample) | TableSampleKind::AfterTableAlias(sample)) = sample else {
            return Ok(());
        };
        if !self.session.relation_planners().is_empty() {
            return Ok(());
        }
        Err(ignored(sample.to_string().trim()))
    }

    fn function(&self, call: &Function) -> Result<()> {
        if let Some(WindowType::WindowSpec(window)) = &call.over {
            extended(window)?;
        }
        let refuse_in = |is_given: bool, clause: &str| refuse_if(is_given, format_args!("{}: {clause}", call.name));
        refuse_in(call.parameters != FunctionArguments::None, "a second list of arguments")?;
        if !self.is_for_each_row(&call.name) {
            return Ok(());
        }
        refuse_in(call.over.is_some(), "OVER")?;
        refuse_in(call.filter.is_some(), "FILTER")?;
        refuse_in(call.null_treatment.is_some(), "IGNORE NULLS or RESPECT NULLS")?;
        refuse_in(!call.within_group.is_empty(), "WITHIN GROUP")?;
        let FunctionArguments::List(list) = &call.args else { return Ok(()) };
        refuse_in(list.duplicate_treatment.is_some(), "DISTINCT or ALL")?;
        let is_null_treatment = |clause| matches!(clause, &FunctionArgumentClause::IgnoreOrRespectNulls(_));
        refuse_in(list.clauses.iter().any(is_null_treatment), "IGNORE NULLS or RESPECT NULLS")?;
        refuse_in(!list.clauses.is_empty(), "ORDER BY in the arguments")
    }

    /// Whether a function computes a value for each row. The planner reads only its name and its arguments.
    fn is_for_each_row(&self, name: &ObjectName) -> bool {
        let name = name.to_string().trim_matches('"').to_lowercase();
        self.session.scalar_functions().contains_key(&name) || matches!(name.as_str(), "unnest" | "unnest_outer")
    }
}

fn statement(statement: &Statement) -> Result<()> {
    match statement {
        Statement::CreateTable(CreateTable { columns: given, .. }) => columns(given),
        Statement::CreateView(CreateView { params, or_alter, secure, .. }) => {
            refuse_if(params.is_some(), "a parameter of CREATE VIEW")?;
            refuse_if(*or_alter, "CREATE OR ALTER VIEW")?;
            refuse_if(*secure, "CREATE SECURE VIEW")
        }
        Statement::CreateSchema { with, options, default_collate_spec, clone, .. } => {
            refuse_if(with.is_some(), "CREATE SCHEMA … WITH")?;
            refuse_if(options.is_some(), "CREATE SCHEMA … OPTIONS")?;
            refuse_if(default_collate_spec.is_some(), "CREATE SCHEMA … DEFAULT COLLATE")?;
            refuse_if(clone.is_some(), "CREATE SCHEMA … CLONE")
        }
        Statement::Drop { object_type, cascade, restrict, purge, temporary, .. } => {
            let is_schema = object_type.to_string() == "SCHEMA";
            refuse_if(*cascade && !is_schema, format_args!("DROP {object_type} … CASCADE"))?;
            refuse_if(*restrict && !is_schema, format_args!("DROP {object_type} … RESTRICT"))?;
            refuse_if(*purge, format_args!("DROP {object_type} … PURGE"))?;
            refuse_if(*temporary, format_args!("DROP TEMPORARY {object_type}"))
        }
        _ => Ok(()),
    }
}

/// Options of columns. DataFusion refuses CHECK and REFERENCES itself.
fn columns(columns: &[ColumnDef]) -> Result<()> {
    for column in columns {
        for option in &column.options {
            let is_kept = matches!(
                option.option,
                ColumnOption::Default(_)
                    | ColumnOption::Null
                    | ColumnOption::NotNull
                    | ColumnOption::PrimaryKey(_)
                    | ColumnOption::Unique(_)
                    | ColumnOption::ForeignKey(_)
                    | ColumnOption::Check(_)
            );
            refuse_if(!is_kept, format_args!("column {}: {}", column.name, option.option))?;
        }
    }
    Ok(())
}
