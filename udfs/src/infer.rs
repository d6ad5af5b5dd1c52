//! One run of a model for all calls of a query: the plan node `Infer`, and the rule that lifts calls into the node.
//!
//! ```text
//! Projection: id, ae_encode('m', a, b), ae_error('m', a, b)      Projection: id, __ae_1.code AS …, __ae_1.error AS …
//!   Filter: id % 10 = 0 AND ae_error('m', a, b) > 4         =>     Filter: __ae_1.error > 4
//!     TableScan: t                                                   Infer: model=m@1, …, outputs=[error, code]
//!                                                                      Filter: id % 10 = 0
//!                                                                        TableScan: t
//! ```

mod exec;
mod lift;
mod node;
mod observe;
mod places;
mod planner;
#[cfg(feature = "proto")]
mod proto;
mod reuse;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use datafusion::arrow::datatypes::{Field, FieldRef};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, LogicalPlan};

use crate::functions::{Function, ModelFunction};
use crate::matrix::Form;
use crate::model::{Model, Start};
use crate::score::Request;

pub use lift::LiftCalls;
pub use node::Infer;
pub use observe::{Observer, ObserverHandle, Scored};
pub use planner::{InferPlanner, query_planner};
pub(crate) use planner::{is_custom, is_own_planner};
#[cfg(feature = "proto")]
pub use proto::InferCodec;

/// The models that the calls of a plan are bound to, each once.
///
/// # Errors
/// An error if the plan cannot be traversed.
pub fn models_of(plan: &LogicalPlan) -> Result<Vec<Arc<Model>>> {
    let mut models: Vec<Arc<Model>> = Vec::new();
    let mut add = |model: &Arc<Model>| {
        if !models.contains(model) {
            models.push(Arc::clone(model));
        }
    };
    plan.apply_with_subqueries(|node| {
        if let Some(infer) = Infer::of(node) {
            add(&infer.job().model);
        }
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                if let Expr::ScalarFunction(call) = expr
                    && let Some(function) = call.func.inner().downcast_ref::<ModelFunction>()
                    && let Some(bound) = function.bound()
                {
                    add(&bound.model);
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(models)
}

/// Prefix of the columns of `Infer` nodes.
const PREFIX: &str = "__ae_";

/// A column that a node adds: the result of a function.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    pub(crate) function: Arc<dyn Function>,
    /// `__ae_1.error`; unique in a plan.
    pub(crate) name: String,
}

impl Output {
    /// The output of a node, such as `__ae_1`.
    fn new(node: &str, function: &Arc<dyn Function>) -> Self {
        Self { name: format!("{node}.{}", function.output()), function: Arc::clone(function) }
    }
}

impl PartialEq for Output {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Output {}

impl Hash for Output {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

/// A run of a model without its features: the model, the start, the outputs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Job {
    pub(crate) model: Arc<Model>,
    pub(crate) start: Start,
    pub(crate) outputs: Vec<Output>,
}

impl Job {
    /// The columns that the run adds, for features of these types.
    ///
    /// # Errors
    /// A planning error if the model lacks an output.
    fn fields(&self, features: &[FieldRef]) -> Result<Vec<Field>> {
        let form = Form::of(features);
        let field = |output: &Output| {
            output.function.check(&self.model, &form)?;
            Ok(Field::new(&output.name, output.function.data_type(&self.model, &form)?, true))
        };
        self.outputs.iter().map(field).collect()
    }

    /// What the model must compute for the outputs.
    ///
    /// # Errors
    /// A planning error if the model lacks an output.
    fn request(&self, form: &Form) -> Result<Request> {
        let add = |request: Request, output: &Output| Ok(request.and(&output.function.request(&self.model, form)?));
        self.outputs.iter().try_fold(Request::default(), add)
    }

    /// `model=m@3 (sha256:3f2a91c0), features=[a, b], outputs=[code, error]`
    fn describe(&self, features: &[String], f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outputs: Vec<&str> = self.outputs.iter().map(|output| output.function.output()).collect();
        let sha256 = self.model.sha256_hex();
        write!(f, "model={} (sha256:{}), ", self.model, sha256.get(..8).unwrap_or(&sha256))?;
        write!(f, "features=[{}], outputs=[{}]", shortened(features), outputs.join(", "))
    }
}

/// `f0, f1, f2, f3, … 28 more`.
fn shortened(features: &[String]) -> String {
    const SHOWN: usize = 6;
    match features.len() > SHOWN {
        true => format!("{}, … {} more", features[..SHOWN - 2].join(", "), features.len() - (SHOWN - 2)),
        false => features.join(", "),
    }
}
