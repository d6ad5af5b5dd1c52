//! Autoencoders as SQL functions for Apache DataFusion, run by ONNX Runtime.
//!
//! Add them to the session of an application. [`register_all`] adds them to a session that exists already.
//!
//! ```no_run
//! use aefusion_udfs::{catalog::Models, store::ModelStore};
//! use aefusion_udfs::{SessionStateBuilderExt, sql::SessionContextExt};
//! use datafusion::execution::SessionStateBuilder;
//! use datafusion::prelude::SessionContext;
//!
//! # async fn run() -> datafusion::error::Result<()> {
//! let models = Models::new(ModelStore::open("models")?);
//! let state = SessionStateBuilder::new().with_default_features().with_autoencoders(models).build();
//! let session = SessionContext::new_with_state(state);
//! session.ae_sql("CREATE MODEL pumps OPTIONS (model_type = 'onnx', model_path = 'pumps.onnx')").await?;
//! session.ae_sql("SELECT id, ae_error('pumps') FROM readings").await?.show().await?;
//! # Ok(())
//! # }
//! ```
//!
//! | what | where |
//! | --- | --- |
//! | requirements of a model file | [`model::contract`] |
//! | names and versions of models | [`store`], [`catalog`] |
//! | search for ONNX Runtime | [`model::runtime`] |
//! | statements (`CREATE MODEL` …) | [`sql`] |
//! | one run of a model for all calls of a query | [`infer`] |
//! | settings (`SET ae.…`) | [`config`] |
//! | options whose values have names | [`choice`] |

mod bind;
mod blocking;
pub mod catalog;
pub mod config;
mod explain;
mod functions;
pub mod infer;
mod keep_names;
mod message;
pub mod sql;
pub mod store;
mod tables;
mod temporary;

use std::sync::Arc;

/// Model files and their runs.
pub use aefusion_model as model;
pub use aefusion_model::choice;
#[doc(hidden)]
pub use aefusion_model::{columns, numbers, suggest};
use aefusion_model::{matrix, output, score};
use catalog::Models;
use datafusion::catalog::TableFunction;
use datafusion::error::Result;
use datafusion::execution::SessionStateBuilder;
use datafusion::logical_expr::ScalarUDF;
use datafusion::optimizer::AnalyzerRule;
use datafusion::prelude::SessionContext;

pub use bind::BindModels;
use config::AeOptions;
#[doc(hidden)]
pub use explain::explain;
use functions::ModelFunction;
use infer::LiftCalls;
pub use message::message;
use sql::OnnxFunctions;
use tables::{FeatureTable, ModelTable, TrainingTable};
#[doc(hidden)]
pub use temporary::temporary_file;

/// The scalar functions (`ae_encode` …) over the models of a session.
pub fn scalar_functions(models: &Models, options: &AeOptions) -> Vec<Arc<ScalarUDF>> {
    let udf = |function| Arc::new(ModelFunction::new(function, models.clone(), options.clone()).into_udf());
    functions::all().into_iter().map(udf).collect()
}

/// The table functions (`ae_models` …) over the models of a session.
pub fn table_functions(models: &Models) -> Vec<Arc<TableFunction>> {
    vec![
        Arc::new(TableFunction::new("ae_models".to_owned(), Arc::new(ModelTable(models.clone())))),
        Arc::new(TableFunction::new("ae_features".to_owned(), Arc::new(FeatureTable(models.clone())))),
        Arc::new(TableFunction::new("ae_training".to_owned(), Arc::new(TrainingTable(models.clone())))),
    ]
}

/// Adds autoencoders to an existing session: functions, table functions, settings and
/// `CREATE FUNCTION … LANGUAGE ONNX`. A rule pins models and takes columns by name.
///
/// The session keeps its id, its prepared statements and its query planner. Its calls share the runs of a model only if
/// it has the [planner of this crate](infer::query_planner). Otherwise a model runs once for each call, with the same
/// results. [`SessionStateBuilderExt::with_autoencoders`] builds a session that shares them.
///
/// Another call replaces the models of the session.
///
/// # Errors
/// An error if the session's functions cannot be changed.
pub fn register_all(session: &SessionContext, models: Models) -> Result<()> {
    let state = session.state_ref();
    let mut state = state.write();
    let options = AeOptions::of(state.config_options());
    state.config_mut().options_mut().extensions.insert(options.clone());
    state.config_mut().set_extension(Arc::new(models.clone()));
    for function in scalar_functions(&models, &options) {
        datafusion::execution::FunctionRegistry::register_udf(&mut *state, function)?;
    }
    for function in table_functions(&models) {
        state.register_udtf(function.name(), Arc::clone(function.function()));
    }
    if state.function_factory().is_none() {
        state.set_function_factory(Arc::new(OnnxFunctions));
    }
    let has = |name: &str| state.analyzer().rules.iter().any(|rule| rule.name() == name);
    let (is_bound, is_lifted) = (has(BindModels.name()), has(AnalyzerRule::name(&LiftCalls)));
    if !is_bound {
        state.add_analyzer_rule(Arc::new(BindModels));
    }
    if !is_lifted && infer::is_own_planner(state.query_planner()) {
        state.add_analyzer_rule(Arc::new(LiftCalls));
        drop(state);
        session.add_optimizer_rule(Arc::new(LiftCalls));
    }
    Ok(())
}

/// Without lifted calls, a model runs once for each call instead of once for each row. Results are the same.
const CUSTOM_PLANNER: &str = "the session has a query planner of its own: a model runs once for each call; to share the \
                              runs, add aefusion_udfs::infer::InferPlanner to the planner, and the rule \
                              aefusion_udfs::infer::LiftCalls to the analyzer and the optimizer of the session";

/// Adds autoencoders to the builder of a session.
pub trait SessionStateBuilderExt {
    /// Adds the same as [`register_all`], with a query planner that shares the runs of a model between calls.
    ///
    /// A query planner that the builder has already stays: calls then share no run, and a warning in the log says what
    /// to add. A planner that is set later must know [`infer::InferPlanner`]. Otherwise queries with calls are an error.
    #[must_use]
    fn with_autoencoders(self, models: Models) -> Self;
}

impl SessionStateBuilderExt for SessionStateBuilder {
    fn with_autoencoders(mut self, models: Models) -> Self {
        let config = self.config().get_or_insert_default();
        let options = AeOptions::of(config.options());
        config.options_mut().extensions.insert(options.clone());
        config.set_extension(Arc::new(models.clone()));
        self.scalar_functions().get_or_insert_default().extend(scalar_functions(&models, &options));
        let tables = table_functions(&models).into_iter().map(|function| (function.name().to_owned(), function));
        self.table_functions().get_or_insert_default().extend(tables);
        self.function_factory().get_or_insert_with(|| Arc::new(OnnxFunctions));
        let is_custom = self.query_planner().as_ref().is_some_and(infer::is_custom);
        let builder = self.with_analyzer_rule(Arc::new(BindModels));
        if is_custom {
            log::warn!("{CUSTOM_PLANNER}");
            return builder;
        }
        builder
            .with_analyzer_rule(Arc::new(LiftCalls))
            .with_optimizer_rule(Arc::new(LiftCalls))
            .with_query_planner(infer::query_planner())
    }
}
