//! Table functions: models, their features, their training.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::array::{
    ArrayRef, BooleanArray, Float64Array, RecordBatch, StringArray, TimestampMicrosecondArray, UInt64Array,
};
use datafusion::catalog::{TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::plan_err;
use datafusion::datasource::MemTable;
use datafusion::error::Result;
use datafusion::logical_expr::Expr;

use crate::blocking::wait;
use crate::config::AeOptions;
use crate::functions::model_argument;
use crate::model::catalog::Models;
use crate::model::metadata::Role;
use crate::model::store::ModelRef;
use crate::model::{Limits, Model};
use crate::sql::explain;

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
        let models = self.0.clone();
        let limits = AeOptions::of(args.session().config_options()).limits();
        let batch = wait(async move { model_rows(&models, &limits).await })?;
        Ok(Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]])?))
    }
}

/// One row for each model and version. If a file cannot be loaded, the column `problem` has the reason.
pub(crate) async fn model_rows(models: &Models, limits: &Limits) -> Result<RecordBatch> {
    let listed = models.list().await?;
    let mut loaded = Vec::new();
    for row in &listed {
        let reference = ModelRef { name: row.model.clone(), version: Some(row.version) };
        loaded.push(models.find(&reference, limits).await);
    }
    let model = |i: usize| loaded[i].as_ref().ok();
    let rows = 0..listed.len();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("model", Arc::new(StringArray::from_iter_values(listed.iter().map(|row| row.model.as_str())))),
        ("version", Arc::new(UInt64Array::from_iter_values(listed.iter().map(|row| row.version)))),
        (
            "features",
            Arc::new(
                rows.clone().map(|i| model(i).map(|m| m.contract().features.len() as u64)).collect::<UInt64Array>(),
            ),
        ),
        (
            "code",
            Arc::new(
                rows.clone()
                    .map(|i| model(i).and_then(|m| m.contract().tensor(Role::Code)).map(|code| code.width() as u64))
                    .collect::<UInt64Array>(),
            ),
        ),
        ("producer", Arc::new(rows.clone().map(|i| model(i).map(|m| m.producer())).collect::<StringArray>())),
        ("size_bytes", Arc::new(UInt64Array::from_iter_values(listed.iter().map(|row| row.size)))),
        (
            "published",
            Arc::new(
                listed.iter().map(|row| row.published).collect::<TimestampMicrosecondArray>().with_timezone("UTC"),
            ),
        ),
        ("sha256", Arc::new(rows.clone().map(|i| model(i).map(|m| m.sha256_hex())).collect::<StringArray>())),
        (
            "problem",
            Arc::new(rows.map(|i| loaded[i].as_ref().err().map(|e| e.strip_backtrace())).collect::<StringArray>()),
        ),
    ];
    batch(columns)
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> Result<RecordBatch> {
    Ok(RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)))?)
}

/// A table about a model. Its schema names the model, because DataFusion merges two scans with the same function and
/// schema. Without the name, two sub-queries about two models would read the rows of one.
fn table_of(model: &Model, columns: Vec<(&str, ArrayRef)>) -> Result<Arc<dyn TableProvider>> {
    let batch = batch(columns)?;
    let about = HashMap::from([("aefusion.model".to_owned(), format!("{model} {}", model.sha256_hex()))]);
    let schema = Arc::new(batch.schema().as_ref().clone().with_metadata(about));
    let batch = batch.with_schema(Arc::clone(&schema))?;
    Ok(Arc::new(MemTable::try_new(schema, vec![vec![batch]])?))
}

/// The model in the argument of a table function.
fn model_of(function: &str, models: &Models, args: &TableFunctionArgs<'_, '_>) -> Result<Arc<Model>> {
    let reference = match args.exprs() {
        [] => None,
        [Expr::Literal(value, _)] if model_argument(Some(value)).is_some() => model_argument(Some(value)),
        _ => return plan_err!("{function}('model') takes the name of a model as a string"),
    };
    let options = AeOptions::of(args.session().config_options());
    let what = format!("{function}({})", reference.map(|name| format!("'{name}'")).unwrap_or_default());
    models.resolve(reference, &options).map_err(|e| explain(what, e))
}

impl TableFunctionImpl for FeatureTable {
    fn call_with_args(&self, args: TableFunctionArgs<'_, '_>) -> Result<Arc<dyn TableProvider>> {
        let model = model_of("ae_features", &self.0, &args)?;
        let contract = model.contract();
        let inputs: Vec<_> =
            contract.inputs.iter().flat_map(|input| std::iter::repeat_n(input, input.width())).collect();
        let features = &contract.features;
        let statistics = model.metadata().statistics.as_deref().unwrap_or_default();
        let of = |i: usize| statistics.get(i);
        let rows = 0..features.len();
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("position", Arc::new(UInt64Array::from_iter_values(1..=features.len() as u64))),
            ("feature", Arc::new(StringArray::from_iter_values(features.iter().map(|feature| feature.name.as_str())))),
            ("type", Arc::new(features.iter().map(|feature| feature.type_name.as_deref()).collect::<StringArray>())),
            ("tensor", Arc::new(StringArray::from_iter_values(inputs.iter().map(|input| input.name.as_str())))),
            (
                "element",
                Arc::new(StringArray::from_iter_values(inputs.iter().map(|input| format!("{:?}", input.element)))),
            ),
            ("count", Arc::new(rows.clone().map(|i| Some(of(i)?.count)).collect::<UInt64Array>())),
            ("nulls", Arc::new(rows.clone().map(|i| Some(of(i)?.nulls)).collect::<UInt64Array>())),
            ("mean", Arc::new(rows.clone().map(|i| of(i)?.mean).collect::<Float64Array>())),
            ("deviation", Arc::new(rows.clone().map(|i| of(i)?.deviation).collect::<Float64Array>())),
            ("min", Arc::new(rows.clone().map(|i| of(i)?.min).collect::<Float64Array>())),
            ("max", Arc::new(rows.clone().map(|i| of(i)?.max).collect::<Float64Array>())),
            ("levels", Arc::new(rows.clone().map(|i| of(i)?.levels).collect::<UInt64Array>())),
            ("mode", Arc::new(rows.map(|i| of(i)?.mode.as_deref()).collect::<StringArray>())),
        ];
        table_of(&model, columns)
    }
}

impl TableFunctionImpl for TrainingTable {
    fn call_with_args(&self, args: TableFunctionArgs<'_, '_>) -> Result<Arc<dyn TableProvider>> {
        let model = model_of("ae_training", &self.0, &args)?;
        let epochs = match &model.metadata().training {
            Some(training) => training.history.as_slice(),
            None => return plan_err!("ae_training('{model}'): the file has no record of a training"),
        };
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("stage", Arc::new(StringArray::from_iter_values(epochs.iter().map(|epoch| epoch.stage.as_str())))),
            ("epoch", Arc::new(UInt64Array::from_iter_values(epochs.iter().map(|epoch| epoch.epoch)))),
            ("loss", Arc::new(Float64Array::from_iter_values(epochs.iter().map(|epoch| epoch.loss)))),
            ("held_out_loss", Arc::new(epochs.iter().map(|epoch| epoch.held_out_loss).collect::<Float64Array>())),
            ("learn_rate", Arc::new(Float64Array::from_iter_values(epochs.iter().map(|epoch| epoch.learn_rate)))),
            ("is_best", Arc::new(epochs.iter().map(|epoch| Some(epoch.is_best)).collect::<BooleanArray>())),
        ];
        table_of(&model, columns)
    }
}
