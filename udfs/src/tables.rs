//! Tables of models, of their features and of their training. A scan reads the store, not the planning of a query.

mod exec;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::catalog::{Session, TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::plan_err;
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;

use crate::catalog::Models;
use crate::explain::explain;
use crate::functions::model_argument;
use crate::store::ModelRef;
pub(crate) use exec::ModelsExec;

/// What a table lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Subject {
    /// One row for each model and version.
    Models,
    /// One row for each feature of a model; of the default model without a name.
    Features(Option<ModelRef>),
    /// One row for each epoch of the training of a model.
    Training(Option<ModelRef>),
}

impl fmt::Display for Subject {
    /// The call, such as `ae_features('fraud')`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.call() {
            (function, Some(model)) => write!(f, "{function}('{model}')"),
            (function, None) => write!(f, "{function}()"),
        }
    }
}

impl Subject {
    /// The function of the table, and the model that its call names.
    pub(crate) fn call(&self) -> (&'static str, Option<&ModelRef>) {
        match self {
            Self::Models => ("ae_models", None),
            Self::Features(model) => ("ae_features", model.as_ref()),
            Self::Training(model) => ("ae_training", model.as_ref()),
        }
    }

    /// The columns. All may be null.
    fn schema(&self) -> SchemaRef {
        let text = |name| (name, DataType::Utf8);
        let whole = |name| (name, DataType::UInt64);
        let number = |name| (name, DataType::Float64);
        let columns = match self {
            Self::Models => {
                let published = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
                vec![
                    text("model"),
                    whole("version"),
                    whole("features"),
                    whole("code"),
                    text("producer"),
                    whole("size_bytes"),
                    ("published", published),
                    text("sha256"),
                    text("problem"),
                ]
            }
            Self::Features(_) => {
                let columns = ["mean", "deviation", "min", "max"].map(number);
                let texts = ["feature", "type", "tensor", "element"].map(text);
                let mut all = vec![whole("position")];
                all.extend(texts.into_iter().chain(["count", "nulls"].map(whole)).chain(columns));
                all.extend([whole("levels"), text("mode")]);
                all
            }
            Self::Training(_) => vec![
                text("stage"),
                whole("epoch"),
                number("loss"),
                number("held_out_loss"),
                number("learn_rate"),
                ("is_best", DataType::Boolean),
            ],
        };
        let fields: Vec<Field> =
            columns.into_iter().map(|(name, data_type)| Field::new(name, data_type, true)).collect();
        // DataFusion merges two scans with the same function and schema. Without the name of the model, two sub-queries
        // about two models would read the rows of one.
        let about = self.call().1.map(|model| ("aefusion.model".to_owned(), model.to_string()));
        Arc::new(Schema::new_with_metadata(fields, about.into_iter().collect::<HashMap<_, _>>()))
    }
}

/// A table about models, which is read when it is scanned.
#[derive(Debug)]
pub(crate) struct ModelsTable {
    models: Models,
    subject: Subject,
    schema: SchemaRef,
}

impl ModelsTable {
    /// The rows of `ae_models()`.
    pub(crate) fn of(models: &Models) -> Self {
        Self::new(models, Subject::Models)
    }

    pub(crate) fn new(models: &Models, subject: Subject) -> Self {
        Self { models: models.clone(), schema: subject.schema(), subject }
    }

    #[cfg(feature = "proto")]
    pub(crate) fn subject(&self) -> &Subject {
        &self.subject
    }
}

#[async_trait]
impl TableProvider for ModelsTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        _session: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let columns = projection.cloned().unwrap_or_else(|| (0..self.schema.fields().len()).collect());
        Ok(Arc::new(ModelsExec::try_new(&self.models, self.subject.clone(), columns, limit)?))
    }
}

/// `ae_models()`: one row for each model and version.
#[derive(Debug)]
pub(crate) struct ModelTable(pub(crate) Models);

/// `ae_features('model')`: one row for each feature of a model.
#[derive(Debug)]
pub(crate) struct FeatureTable(pub(crate) Models);

/// `ae_training('model')`: one row for each epoch of the training of a model.
#[derive(Debug)]
pub(crate) struct TrainingTable(pub(crate) Models);

impl TableFunctionImpl for ModelTable {
    fn call_with_args(&self, args: TableFunctionArgs<'_, '_>) -> Result<Arc<dyn TableProvider>> {
        if !args.exprs().is_empty() {
            return plan_err!("ae_models() takes no arguments");
        }
        Ok(Arc::new(ModelsTable::of(&self.0)))
    }
}

impl TableFunctionImpl for FeatureTable {
    fn call_with_args(&self, args: TableFunctionArgs<'_, '_>) -> Result<Arc<dyn TableProvider>> {
        let model = model_of("ae_features", &args)?;
        Ok(Arc::new(ModelsTable::new(&self.0, Subject::Features(model))))
    }
}

impl TableFunctionImpl for TrainingTable {
    fn call_with_args(&self, args: TableFunctionArgs<'_, '_>) -> Result<Arc<dyn TableProvider>> {
        let model = model_of("ae_training", &args)?;
        Ok(Arc::new(ModelsTable::new(&self.0, Subject::Training(model))))
    }
}

/// The model in the argument of a table function.
fn model_of(function: &str, args: &TableFunctionArgs<'_, '_>) -> Result<Option<ModelRef>> {
    let name = match args.exprs() {
        [] => return Ok(None),
        [Expr::Literal(value, _)] => model_argument(Some(value)),
        _ => None,
    };
    let Some(name) = name else { return plan_err!("{function}('model') takes the name of a model as a string") };
    ModelRef::parse(name).map(Some).map_err(|e| explain(format!("{function}('{name}')"), e))
}
