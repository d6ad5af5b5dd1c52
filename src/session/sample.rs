//! `TABLESAMPLE`.

mod exec;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{TableReference, plan_err};
use datafusion::config::ConfigOptions;
use datafusion::datasource::provider_as_source;
use datafusion::error::Result;
use datafusion::logical_expr::planner::{PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning};
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, TableType};
use datafusion::physical_expr::Partitioning;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::sql::sqlparser::ast::{
    Expr as SqlExpr, TableFactor, TableSample, TableSampleKind, TableSampleUnit, Value,
};

use exec::SampleExec;

/// Rows of a sample.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Size {
    /// Each row with this probability.
    Share(f64),
    /// So many rows; all rows of a smaller table.
    Rows(usize),
}

/// What a `TABLESAMPLE` asks for.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Sample {
    size: Size,
    /// The number in `REPEATABLE`; 0 without it. The same number gives the same rows.
    seed: u64,
}

impl Sample {
    fn of(clause: &TableSample) -> Result<Self> {
        let text = clause.to_string();
        let text = text.trim();
        if clause.bucket.is_some() || clause.offset.is_some() {
            return plan_err!("{text}: BUCKET and OFFSET are not supported; give a percentage or a number of rows");
        }
        let Some(quantity) = clause.quantity.as_ref().filter(|quantity| quantity.parenthesized) else {
            return plan_err!("{text}: expected a quantity in parentheses, such as (10 PERCENT) or (100 ROWS)");
        };
        let SqlExpr::Value(value) = &quantity.value else {
            return plan_err!("{text}: expected a number, found {}", quantity.value);
        };
        let Value::Number(number, _) = &value.value else {
            return plan_err!("{text}: expected a number, found {value}");
        };
        let size = match (&quantity.unit, number.parse(), number.parse::<f64>()) {
            (Some(TableSampleUnit::Rows), Ok(rows), _) => Size::Rows(rows),
            (Some(TableSampleUnit::Rows), ..) => {
                return plan_err!("{text}: expected a whole number of rows, found {number}");
            }
            (_, _, Ok(percent)) if (0.0..=100.0).contains(&percent) => Size::Share(percent / 100.0),
            _ => return plan_err!("{text}: expected a percentage from 0 to 100, found {number}"),
        };
        let seed = match clause.seed.as_ref().map(|seed| &seed.value.value) {
            None => 0,
            Some(Value::Number(seed, _)) => match (seed.parse(), seed.parse::<f64>()) {
                (Ok(seed), _) => seed,
                (_, Ok(seed)) => seed.to_bits(),
                _ => return plan_err!("{text}: expected a number as seed, found {seed}"),
            },
            Some(seed) => return plan_err!("{text}: expected a number as seed, found {seed}"),
        };
        Ok(Self { size, seed })
    }
}

impl std::fmt::Display for Sample {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.size {
            Size::Share(share) => write!(f, "percent={}, seed={}", share * 100.0, self.seed),
            Size::Rows(rows) => write!(f, "rows={rows}, seed={}", self.seed),
        }
    }
}

/// Plans tables and sub-queries with `TABLESAMPLE`, which DataFusion 55.2 parses and ignores.
#[derive(Debug)]
pub(super) struct SamplePlanner;

impl RelationPlanner for SamplePlanner {
    fn plan_relation(
        &self,
        mut relation: TableFactor,
        context: &mut dyn RelationPlannerContext,
    ) -> Result<RelationPlanning> {
        let clause = match &mut relation {
            TableFactor::Table { sample, .. } | TableFactor::Derived { sample, .. } => sample.take(),
            _ => None,
        };
        let Some(TableSampleKind::BeforeTableAlias(clause) | TableSampleKind::AfterTableAlias(clause)) = clause else {
            return Ok(RelationPlanning::Original(Box::new(relation)));
        };
        let sample = Sample::of(&clause)?;
        let alias = match &mut relation {
            TableFactor::Table { alias, .. } | TableFactor::Derived { alias, .. } => alias.take(),
            _ => None,
        };
        let plan = context.plan(relation)?;
        if !plan.all_out_ref_exprs().is_empty() {
            return plan_err!("{}: the sub-query refers to columns outside it", clause.to_string().trim());
        }
        let name = plan.schema().iter().find_map(|(name, _)| name.cloned()).unwrap_or(TableReference::bare("sample"));
        let table = SampledTable { schema: Arc::clone(plan.schema().inner()), plan, sample };
        // two scans are equal if their names and columns are
        let id = DefaultHasher::new();
        let id = [sample.to_string(), table.plan.display_indent().to_string()].iter().fold(id, |mut id, text| {
            text.hash(&mut id);
            id
        });
        let unique = format!("sample_{:016x}", id.finish());
        let scan = LogicalPlanBuilder::scan(unique, provider_as_source(Arc::new(table)), None)?.alias(name)?.build()?;
        Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(scan, alias))))
    }
}

/// A sample of the rows of a plan.
#[derive(Debug)]
struct SampledTable {
    schema: SchemaRef,
    plan: LogicalPlan,
    sample: Sample,
}

#[async_trait]
impl TableProvider for SampledTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let plan = match projection {
            None => self.plan.clone(),
            Some(columns) => {
                let all = self.plan.schema().columns();
                let kept = columns.iter().filter_map(|i| all.get(*i).cloned().map(Expr::Column));
                LogicalPlanBuilder::from(self.plan.clone()).project(kept.collect::<Vec<_>>())?.build()?
            }
        };
        let input = session.create_physical_plan(&plan).await?;
        Ok(Arc::new(SampleExec::new(input, self.sample)))
    }
}

/// Keeps the order of the rows below a sample: rows are drawn by their number, so the order decides which are drawn.
///
/// Nodes that deal out batches to threads would mix it.
#[derive(Debug)]
pub(super) struct KeepOrder;

impl PhysicalOptimizerRule for KeepOrder {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let kept = plan.transform_up(|node| {
            let Some(sample) = node.downcast_ref::<SampleExec>() else { return Ok(Transformed::no(node)) };
            let dealt =
                Arc::clone(&sample.input).transform_up(|below| match below.downcast_ref::<RepartitionExec>() {
                    Some(dealer) if matches!(dealer.partitioning(), Partitioning::RoundRobinBatch(_)) => {
                        Ok(Transformed::yes(Arc::clone(dealer.input())))
                    }
                    _ => Ok(Transformed::no(below)),
                })?;
            match dealt.transformed {
                true => Ok(Transformed::yes(Arc::new(SampleExec::new(dealt.data, sample.sample)) as _)),
                false => Ok(Transformed::no(node)),
            }
        })?;
        Ok(kept.data)
    }

    fn name(&self) -> &str {
        "KeepOrder"
    }

    fn schema_check(&self) -> bool {
        true
    }
}
