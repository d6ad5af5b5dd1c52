//! The logical plan node `Infer`.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use datafusion::arrow::datatypes::FieldRef;
use datafusion::common::{Column, DFSchema, DFSchemaRef, internal_err};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{Expr, ExprSchemable, Extension, LogicalPlan, UserDefinedLogicalNodeCore};

use super::{Job, Output, PREFIX};
use crate::functions::Function;
use crate::model::{Model, Start};

/// Adds the outputs of a model to its input, one column for each function.
///
/// It keeps all rows in their order.
#[derive(Clone)]
pub struct Infer {
    input: LogicalPlan,
    features: Vec<Expr>,
    job: Job,
    schema: DFSchemaRef,
}

impl Infer {
    /// A node over an input.
    ///
    /// # Errors
    /// A planning error if the model does not take these features.
    pub(crate) fn new(input: LogicalPlan, features: Vec<Expr>, job: Job) -> Result<Self> {
        let features: Vec<Expr> = features.into_iter().map(Expr::unalias).collect();
        let fields = job.fields(&fields(&features, input.schema())?)?;
        let added = fields.into_iter().map(|field| (None, Arc::new(field)));
        let all = input.schema().iter().map(|(qualifier, field)| (qualifier.cloned(), Arc::clone(field)));
        let schema = DFSchema::new_with_metadata(all.chain(added).collect(), input.schema().metadata().clone())?
            .with_functional_dependencies(input.schema().functional_dependencies().clone())?;
        Ok(Self { input, features, job, schema: Arc::new(schema) })
    }

    /// The node as a plan.
    pub(crate) fn into_plan(self) -> LogicalPlan {
        LogicalPlan::Extension(Extension { node: Arc::new(self) })
    }

    /// The node at the root of a plan, if there is one.
    pub(crate) fn of(plan: &LogicalPlan) -> Option<&Self> {
        match plan {
            LogicalPlan::Extension(extension) => extension.node.as_any().downcast_ref(),
            _ => None,
        }
    }

    pub(crate) fn input(&self) -> &LogicalPlan {
        &self.input
    }

    pub(crate) fn features(&self) -> &[Expr] {
        &self.features
    }

    pub(crate) fn job(&self) -> &Job {
        &self.job
    }

    /// Whether this node runs a model on these features.
    pub(crate) fn runs(&self, model: &Model, start: Start, features: &[Expr]) -> bool {
        *self.job.model == *model && self.job.start == start && self.features == features
    }

    /// This node with another input.
    pub(crate) fn with_input(&self, input: LogicalPlan) -> Result<Self> {
        Self::new(input, self.features.clone(), self.job.clone())
    }

    /// This node with one more output, and the column of the output.
    pub(crate) fn with_output(&self, function: &Arc<dyn Function>) -> Result<(Self, Column)> {
        let has = |output: &&Output| output.function.output() == function.output();
        if let Some(output) = self.job.outputs.iter().find(has) {
            return Ok((self.clone(), Column::new_unqualified(&output.name)));
        }
        let Some((node, _)) = self.job.outputs.first().and_then(|first| first.name.split_once('.')) else {
            return internal_err!("Infer has no output");
        };
        let output = Output::new(node, function);
        let column = Column::new_unqualified(&output.name);
        let mut job = self.job.clone();
        job.outputs.push(output);
        Ok((Self::new(self.input.clone(), self.features.clone(), job)?, column))
    }

    /// This node without unread outputs; none if no output is left.
    pub(crate) fn retain(&self, is_read: impl Fn(&str) -> bool) -> Result<Option<Self>> {
        let mut job = self.job.clone();
        job.outputs.retain(|output| is_read(&output.name));
        match job.outputs.is_empty() {
            true => Ok(None),
            false => Self::new(self.input.clone(), self.features.clone(), job).map(Some),
        }
    }
}

/// DataFusion shows this text if no planner of the session knows the node.
impl fmt::Debug for Infer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Infer of model {}; add aefusion_udfs::infer::InferPlanner to the query planner of the session",
            self.job.model
        )
    }
}

/// Types of the features.
pub(super) fn fields(features: &[Expr], schema: &DFSchema) -> Result<Vec<FieldRef>> {
    features.iter().map(|feature| Ok(feature.to_field(schema)?.1)).collect()
}

impl UserDefinedLogicalNodeCore for Infer {
    fn name(&self) -> &str {
        "Infer"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        self.features.clone()
    }

    /// The added columns do not exist below the node.
    fn prevent_predicate_push_down_columns(&self) -> HashSet<String> {
        self.job.outputs.iter().map(|output| output.name.clone()).collect()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |feature: &Expr| match feature {
            Expr::Column(column) => column.name.clone(),
            other => other.to_string(),
        };
        let features: Vec<String> = self.features.iter().map(name).collect();
        write!(f, "Infer: ")?;
        self.job.describe(&features, f)
    }

    fn with_exprs_and_inputs(&self, features: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        match (inputs.pop(), inputs.is_empty()) {
            (Some(input), true) => Self::new(input, features, self.job.clone()),
            _ => internal_err!("Infer has one input"),
        }
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        let n_input = self.input.schema().fields().len();
        Some(vec![output_columns.iter().copied().filter(|index| *index < n_input).collect()])
    }

    fn supports_limit_pushdown(&self) -> bool {
        true
    }
}

impl PartialEq for Infer {
    fn eq(&self, other: &Self) -> bool {
        self.job == other.job && self.features == other.features && self.input == other.input
    }
}

impl Eq for Infer {}

impl Hash for Infer {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.job.hash(state);
        self.features.hash(state);
        self.input.hash(state);
    }
}

impl PartialOrd for Infer {
    /// Only equal nodes have an order.
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (self == other).then_some(Ordering::Equal)
    }
}

/// A new node for one call, and the column of its output.
///
/// # Errors
/// The errors of [`Infer::new`].
pub(super) fn infer(
    input: LogicalPlan,
    id: usize,
    model: &Arc<Model>,
    function: &Arc<dyn Function>,
    features: Vec<Expr>,
) -> Result<(LogicalPlan, Column), DataFusionError> {
    let output = Output::new(&format!("{PREFIX}{id}"), function);
    let column = Column::new_unqualified(&output.name);
    let job = Job { model: Arc::clone(model), start: function.start(), outputs: vec![output] };
    Ok((Infer::new(input, features, job)?.into_plan(), column))
}
