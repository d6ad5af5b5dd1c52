//! Reads the models of a store while a query runs.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::{
    ArrayRef, BooleanArray, Float64Array, RecordBatch, RecordBatchOptions, StringArray, TimestampMicrosecondArray,
    UInt64Array,
};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{internal_err, plan_err};
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{
    Boundedness, ChildrenPropertiesMode, EmissionType, PlanProperties, ReplaceChildrenOptions,
};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning};
use futures::{StreamExt, stream};

use super::Subject;
use crate::catalog::{Listed, Models};
use crate::config::AeOptions;
use crate::explain::explain;
use crate::model::{Limits, Model, ModelFile};
use crate::store::ModelRef;

/// A scan of a [`super::ModelsTable`], in one partition.
#[derive(Debug, Clone)]
pub(crate) struct ModelsExec {
    models: Models,
    subject: Subject,
    /// Indices of the columns that the query reads.
    columns: Vec<usize>,
    limit: Option<usize>,
    schema: SchemaRef,
    properties: Arc<PlanProperties>,
}

impl ModelsExec {
    /// A scan of some columns, in this order, up to a number of rows.
    ///
    /// # Errors
    /// An error if the table has no such column.
    pub(crate) fn try_new(
        models: &Models,
        subject: Subject,
        columns: Vec<usize>,
        limit: Option<usize>,
    ) -> Result<Self> {
        let schema = Arc::new(subject.schema().project(&columns)?);
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Ok(Self { models: models.clone(), subject, columns, limit, schema, properties: Arc::new(properties) })
    }

    #[cfg(feature = "proto")]
    pub(crate) fn subject(&self) -> &Subject {
        &self.subject
    }

    #[cfg(feature = "proto")]
    pub(crate) fn columns(&self) -> &[usize] {
        &self.columns
    }
}

impl DisplayAs for ModelsExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns: Vec<&str> = self.schema.fields().iter().map(|field| field.name().as_str()).collect();
        write!(f, "ModelsExec: {}, columns=[{}]", self.subject, columns.join(", "))?;
        self.limit.map_or(Ok(()), |limit| write!(f, ", limit={limit}"))
    }
}

impl ExecutionPlan for ModelsExec {
    fn name(&self) -> &'static str {
        "ModelsExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn fetch(&self) -> Option<usize> {
        self.limit
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match children.is_empty() {
            true => Ok(self),
            false => internal_err!("ModelsExec has no input"),
        }
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, _: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let options = AeOptions::of(context.session_config().options());
        let reader = Reader { scan: self.clone(), options };
        let rows = match &self.subject {
            Subject::Models => {
                let first = Waiting { listed: None, n_left: self.limit.unwrap_or(usize::MAX) };
                let batch_rows = context.session_config().batch_size().max(1);
                stream::try_unfold(first, move |waiting| reader.clone().next_models(waiting, batch_rows)).boxed()
            }
            Subject::Features(model) => stream::once(reader.of_model(model.clone(), feature_columns)).boxed(),
            Subject::Training(model) => stream::once(reader.of_model(model.clone(), epoch_columns)).boxed(),
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), rows)))
    }
}

/// What a running scan needs.
#[derive(Debug, Clone)]
struct Reader {
    scan: ModelsExec,
    options: AeOptions,
}

/// The models that [`Reader::next_models`] has still to list.
#[derive(Debug)]
struct Waiting {
    /// None before the store was listed.
    listed: Option<std::vec::IntoIter<Listed>>,
    /// The number of rows that the query still wants.
    n_left: usize,
}

impl Reader {
    /// The next rows of `ae_models()`, and the models after them. One file at a time is in memory.
    async fn next_models(self, waiting: Waiting, n: usize) -> Result<Option<(RecordBatch, Waiting)>> {
        // the first batch has the schema, also if it has no rows
        let is_first = waiting.listed.is_none();
        let mut listed = match waiting.listed {
            Some(listed) => listed,
            None => self.scan.models.list().await?.into_iter(),
        };
        // the contents of files give these columns
        let reads_files = self.scan.columns.iter().any(|column| [2, 3, 4, 7, 8].contains(column));
        let limits = self.options.limits();
        let mut rows = Vec::new();
        for model in listed.by_ref().take(n.min(waiting.n_left)) {
            rows.push(ModelRow::of(model, &self.scan.models, reads_files.then_some(&limits)).await);
        }
        if rows.is_empty() && !is_first {
            return Ok(None);
        }
        let n_left = waiting.n_left - rows.len();
        Ok(Some((self.project(model_columns(&rows))?, Waiting { listed: Some(listed), n_left })))
    }

    /// The rows of a table about one model.
    async fn of_model(
        self,
        model: Option<ModelRef>,
        columns: fn(&Model) -> Result<Vec<ArrayRef>>,
    ) -> Result<RecordBatch> {
        let reference = match model {
            Some(model) => Some(model),
            None => self.options.reference(None)?,
        };
        let limits = self.options.limits();
        let found = self.scan.models.choose(reference.as_ref(), &limits).await;
        let found = found.map_err(|e| explain(self.scan.subject.to_string(), e))?;
        let batch = self.project(columns(&found)?)?;
        Ok(batch.slice(0, self.scan.limit.unwrap_or(usize::MAX).min(batch.num_rows())))
    }

    fn project(&self, all: Vec<ArrayRef>) -> Result<RecordBatch> {
        let n = all.first().map_or(0, |column| column.len());
        let columns = self.scan.columns.iter().map(|column| Arc::clone(&all[*column])).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(n));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.scan.schema), columns, &options)?)
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
                size: model.file().size() as u64,
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
