//! Tables of models, of their features and of their training. A scan reads the store, not the planning of a query.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{
    ArrayRef, BooleanArray, Float64Array, RecordBatch, RecordBatchOptions, StringArray, TimestampMicrosecondArray,
    UInt64Array,
};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::catalog::{Session, TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::{plan_err, project_schema};
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use futures::{TryFutureExt, stream};

use crate::catalog::{Listed, Models};
use crate::config::AeOptions;
use crate::explain::explain;
use crate::functions::model_argument;
use crate::model::{Limits, Model, ModelFile};
use crate::store::ModelRef;

/// What a table lists.
#[derive(Debug, Clone)]
enum Subject {
    /// One row for each model and version.
    Models,
    /// One row for each feature of a model; of the default model without a name.
    Features(Option<ModelRef>),
    /// One row for each epoch of the training of a model.
    Training(Option<ModelRef>),
}

impl Subject {
    /// The columns. All may be null.
    fn schema(&self) -> SchemaRef {
        let text = |name| (name, DataType::Utf8);
        let whole = |name| (name, DataType::UInt64);
        let number = |name| (name, DataType::Float64);
        let (columns, model) = match self {
            Self::Models => {
                let published = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
                let columns = vec![
                    text("model"),
                    whole("version"),
                    whole("features"),
                    whole("code"),
                    text("producer"),
                    whole("size_bytes"),
                    ("published", published),
                    text("sha256"),
                    text("problem"),
                ];
                (columns, None)
            }
            Self::Features(model) => {
                let columns = ["mean", "deviation", "min", "max"].map(number);
                let texts = ["feature", "type", "tensor", "element"].map(text);
                let mut all = vec![whole("position")];
                all.extend(texts.into_iter().chain(["count", "nulls"].map(whole)).chain(columns));
                all.extend([whole("levels"), text("mode")]);
                (all, model.as_ref())
            }
            Self::Training(model) => {
                let columns = vec![
                    text("stage"),
                    whole("epoch"),
                    number("loss"),
                    number("held_out_loss"),
                    number("learn_rate"),
                    ("is_best", DataType::Boolean),
                ];
                (columns, model.as_ref())
            }
        };
        let fields: Vec<Field> =
            columns.into_iter().map(|(name, data_type)| Field::new(name, data_type, true)).collect();
        // DataFusion merges two scans with the same function and schema. Without the name of the model, two sub-queries
        // about two models would read the rows of one.
        let about = model.map(|model| ("aefusion.model".to_owned(), model.to_string()));
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

    fn new(models: &Models, subject: Subject) -> Self {
        Self { models: models.clone(), schema: subject.schema(), subject }
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
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let options = AeOptions::of(session.config_options());
        let columns = projection.cloned().unwrap_or_else(|| (0..self.schema.fields().len()).collect());
        let schema = project_schema(&self.schema, projection)?;
        let scan = Scan {
            models: self.models.clone(),
            subject: self.subject.clone(),
            columns,
            schema: Arc::clone(&schema),
            options,
        };
        Ok(Arc::new(StreamingTableExec::try_new(schema, vec![Arc::new(scan)], None, None, false, limit)?))
    }
}

/// A scan of a [`ModelsTable`].
#[derive(Debug, Clone)]
struct Scan {
    models: Models,
    subject: Subject,
    /// Indices of the columns that the query reads.
    columns: Vec<usize>,
    schema: SchemaRef,
    options: AeOptions,
}

impl PartitionStream for Scan {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (scan, schema) = (self.clone(), Arc::clone(&self.schema));
        let batch_rows = context.session_config().batch_size().max(1);
        match &self.subject {
            Subject::Models => {
                let rows = stream::try_unfold(None, move |listed| scan.clone().next_models(listed, batch_rows));
                Box::pin(RecordBatchStreamAdapter::new(schema, rows))
            }
            Subject::Features(model) => {
                let model = model.clone();
                let rows = async move { scan.of_model("ae_features", model, feature_columns).await };
                Box::pin(RecordBatchStreamAdapter::new(schema, stream::once(rows)))
            }
            Subject::Training(model) => {
                let model = model.clone();
                let rows = async move { scan.of_model("ae_training", model, epoch_columns).await };
                Box::pin(RecordBatchStreamAdapter::new(schema, stream::once(rows)))
            }
        }
    }
}

/// The models that [`Scan::next_models`] has still to list.
type Waiting = std::vec::IntoIter<Listed>;

impl Scan {
    /// The next rows of `ae_models()`, and the models after them. One file at a time is in memory.
    async fn next_models(self, listed: Option<Waiting>, n: usize) -> Result<Option<(RecordBatch, Option<Waiting>)>> {
        // the first batch has the schema, also if it has no rows
        let is_first = listed.is_none();
        let mut listed = match listed {
            Some(listed) => listed,
            None => self.models.list().await?.into_iter(),
        };
        // the contents of files give these columns
        let reads_files = self.columns.iter().any(|column| [2, 3, 4, 7, 8].contains(column));
        let limits = self.options.limits();
        let mut rows = Vec::new();
        for model in listed.by_ref().take(n) {
            rows.push(ModelRow::of(model, &self.models, reads_files.then_some(&limits)).await);
        }
        if rows.is_empty() && !is_first {
            return Ok(None);
        }
        Ok(Some((self.project(model_columns(&rows))?, Some(listed))))
    }

    /// The rows of a table about one model.
    async fn of_model(
        self,
        function: &str,
        model: Option<ModelRef>,
        columns: fn(&Model) -> Result<Vec<ArrayRef>>,
    ) -> Result<RecordBatch> {
        let what = format!("{function}({})", model.iter().map(|name| format!("'{name}'")).collect::<String>());
        let reference = match model {
            Some(model) => Some(model),
            None => self.options.reference(None)?,
        };
        let limits = self.options.limits();
        let found = self.models.choose(reference.as_ref(), &limits).map_err(|e| explain(what, e)).await?;
        self.project(columns(&found)?)
    }

    fn project(&self, all: Vec<ArrayRef>) -> Result<RecordBatch> {
        let n = all.first().map_or(0, |column| column.len());
        let columns = self.columns.iter().map(|column| Arc::clone(&all[*column])).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(n));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?)
    }
}

/// A row of `ae_models()`.
struct ModelRow {
    model: String,
    version: u64,
    size: u64,
    published: Option<i64>,
    contents: Result<Contents>,
}

/// What a file says about its model.
#[derive(Default)]
struct Contents {
    features: Option<u64>,
    code: Option<u64>,
    producer: Option<String>,
    sha256: Option<String>,
}

impl ModelRow {
    /// Reads the file of a stored model, with limits, if a query wants its contents.
    async fn of(listed: Listed, models: &Models, limits: Option<&Limits>) -> Self {
        match listed {
            Listed::Session(model) => Self {
                model: model.name().to_owned(),
                version: model.version(),
                size: model.bytes().len() as u64,
                published: None,
                contents: Contents::of(model.file()),
            },
            Listed::Stored(stored) => Self {
                contents: match limits {
                    Some(limits) => models.read(&stored, limits).await.and_then(|file| Contents::of(&file)),
                    None => Ok(Contents::default()),
                },
                version: stored.version,
                size: stored.meta.size,
                published: Some(stored.meta.last_modified.timestamp_micros()),
                model: stored.name.to_string(),
            },
        }
    }
}

impl Contents {
    fn of(file: &ModelFile) -> Result<Self> {
        Ok(Self {
            features: Some(file.n_features()? as u64),
            code: file.code_width().map(|width| width as u64),
            producer: Some(file.producer()),
            sha256: Some(file.sha256_hex()),
        })
    }
}

fn model_columns(rows: &[ModelRow]) -> Vec<ArrayRef> {
    let contents = || rows.iter().map(|row| row.contents.as_ref().ok());
    let problems = rows.iter().map(|row| row.contents.as_ref().err().map(|e| e.strip_backtrace()));
    let published = rows.iter().map(|row| row.published).collect::<TimestampMicrosecondArray>();
    vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.model.as_str()))),
        Arc::new(UInt64Array::from_iter_values(rows.iter().map(|row| row.version))),
        Arc::new(contents().map(|contents| contents?.features).collect::<UInt64Array>()),
        Arc::new(contents().map(|contents| contents?.code).collect::<UInt64Array>()),
        Arc::new(contents().map(|contents| contents?.producer.as_deref()).collect::<StringArray>()),
        Arc::new(UInt64Array::from_iter_values(rows.iter().map(|row| row.size))),
        Arc::new(published.with_timezone("UTC")),
        Arc::new(contents().map(|contents| contents?.sha256.as_deref()).collect::<StringArray>()),
        Arc::new(problems.collect::<StringArray>()),
    ]
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

fn feature_columns(model: &Model) -> Result<Vec<ArrayRef>> {
    let contract = model.contract();
    let inputs: Vec<_> = contract.inputs.iter().flat_map(|input| std::iter::repeat_n(input, input.width())).collect();
    let features = &contract.features;
    let statistics = model.metadata().statistics.as_deref().unwrap_or_default();
    let of = |i: usize| statistics.get(i);
    let rows = 0..features.len();
    Ok(vec![
        Arc::new(UInt64Array::from_iter_values(1..=features.len() as u64)),
        Arc::new(StringArray::from_iter_values(features.iter().map(|feature| feature.name.as_str()))),
        Arc::new(features.iter().map(|feature| feature.type_name.as_deref()).collect::<StringArray>()),
        Arc::new(StringArray::from_iter_values(inputs.iter().map(|input| input.name.as_str()))),
        Arc::new(StringArray::from_iter_values(inputs.iter().map(|input| format!("{:?}", input.element)))),
        Arc::new(rows.clone().map(|i| Some(of(i)?.count)).collect::<UInt64Array>()),
        Arc::new(rows.clone().map(|i| Some(of(i)?.nulls)).collect::<UInt64Array>()),
        Arc::new(rows.clone().map(|i| of(i)?.mean).collect::<Float64Array>()),
        Arc::new(rows.clone().map(|i| of(i)?.deviation).collect::<Float64Array>()),
        Arc::new(rows.clone().map(|i| of(i)?.min).collect::<Float64Array>()),
        Arc::new(rows.clone().map(|i| of(i)?.max).collect::<Float64Array>()),
        Arc::new(rows.clone().map(|i| of(i)?.levels).collect::<UInt64Array>()),
        Arc::new(rows.map(|i| of(i)?.mode.as_deref()).collect::<StringArray>()),
    ])
}

fn epoch_columns(model: &Model) -> Result<Vec<ArrayRef>> {
    let epochs = match &model.metadata().training {
        Some(training) => training.history.as_slice(),
        None => return plan_err!("ae_training('{model}'): the file has no record of a training"),
    };
    Ok(vec![
        Arc::new(StringArray::from_iter_values(epochs.iter().map(|epoch| epoch.stage.as_str()))),
        Arc::new(UInt64Array::from_iter_values(epochs.iter().map(|epoch| epoch.epoch))),
        Arc::new(Float64Array::from_iter_values(epochs.iter().map(|epoch| epoch.loss))),
        Arc::new(epochs.iter().map(|epoch| epoch.held_out_loss).collect::<Float64Array>()),
        Arc::new(Float64Array::from_iter_values(epochs.iter().map(|epoch| epoch.learn_rate))),
        Arc::new(epochs.iter().map(|epoch| Some(epoch.is_best)).collect::<BooleanArray>()),
    ])
}
