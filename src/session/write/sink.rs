//! A sink whose files get their names when all of them are complete.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{Array, ArrayRef, RecordBatch, StringArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::{exec_err, plan_err};
use datafusion::datasource::physical_plan::FileSinkConfig;
use datafusion::datasource::sink::{DataSink, DataSinkExec};
use datafusion::error::Result;
use datafusion::execution::object_store::ObjectStoreRegistry;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::metrics::MetricsSet;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType};
use futures::StreamExt;
use object_store::ObjectStore;
use url::Url;

use super::Mode;
use super::stage::{Stage, StagedStore, Target};

/// The name that Hive gives the partition of NULL. Spark and DuckDB use it too.
const NULL_PARTITION: &str = "__HIVE_DEFAULT_PARTITION__";

/// Runs the sink of a format on a store that stages files.
#[derive(Debug)]
pub(super) struct StagedSink {
    inner: DataSinkExec,
    config: FileSinkConfig,
    mode: Mode,
    is_file: bool,
}

impl StagedSink {
    pub(super) fn try_new(inner: DataSinkExec, config: FileSinkConfig, mode: Mode) -> Result<Self> {
        let Some(target) = config.table_paths.first() else { return plan_err!("a target of rows is missing") };
        let is_file = config.table_partition_cols.is_empty() && config.file_output_mode.single_file_output(target);
        if is_file && mode == Mode::Append {
            return plan_err!(
                "rows cannot be appended to the file '{target}'; write to a folder, with a slash at its end"
            );
        }
        Ok(Self { inner, config, mode, is_file })
    }

    fn target(&self) -> Result<Target> {
        let Some(url) = self.config.table_paths.first() else { return exec_err!("a target of rows is missing") };
        let local = Url::parse(url.as_str()).ok().filter(|url| url.scheme() == "file");
        Ok(Target {
            path: url.prefix().clone(),
            local: local.and_then(|url| url.to_file_path().ok()),
            name: match self.config.original_url.as_str() {
                "" => url.to_string(),
                given => given.to_owned(),
            },
            is_file: self.is_file,
            is_partitioned: !self.config.table_partition_cols.is_empty(),
            mode: self.mode,
        })
    }

    /// Gives rows with NULL in a column of the partition a partition of their own. DataFusion 55.2 would write them to the
    /// partition of 0 or of the empty text.
    fn with_null_partitions(&self, rows: SendableRecordBatchStream) -> SendableRecordBatchStream {
        let names: Vec<String> = self.config.table_partition_cols.iter().map(|(name, _)| name.clone()).collect();
        let keeps_columns = self.config.keep_partition_by_columns;
        if names.is_empty() {
            return rows;
        }
        let schema = rows.schema();
        let named = rows.map(move |batch| name_nulls(batch?, &names, keeps_columns));
        Box::pin(RecordBatchStreamAdapter::new(schema, named))
    }
}

fn name_nulls(batch: RecordBatch, names: &[String], keeps_columns: bool) -> Result<RecordBatch> {
    let schema = batch.schema();
    let mut fields: Vec<Arc<Field>> = schema.fields().iter().cloned().collect();
    let mut columns = batch.columns().to_vec();
    let mut has_nulls = false;
    for (field, column) in fields.iter_mut().zip(&mut columns) {
        if !names.contains(field.name()) || column.logical_null_count() == 0 {
            continue;
        }
        if keeps_columns {
            return exec_err!(
                "column {} of PARTITIONED BY has NULL, which execution.keep_partition_by_columns does not support; \
                 replace NULL, or leave the option out",
                field.name()
            );
        }
        *column = texts(column)?;
        *field = Arc::new(Field::new(field.name(), DataType::Utf8, true));
        has_nulls = true;
    }
    match has_nulls {
        true => Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?),
        false => Ok(batch),
    }
}

/// The names of the partitions of values.
fn texts(column: &ArrayRef) -> Result<ArrayRef> {
    let texts = cast(column, &DataType::Utf8)?;
    let is_float = column.data_type().is_floating();
    let Some(texts) = texts.as_any().downcast_ref::<StringArray>() else {
        return exec_err!("a column of PARTITIONED BY has the type {}, which has no text", column.data_type());
    };
    let name = |text: Option<&str>| match text {
        None => NULL_PARTITION.to_owned(),
        // as DataFusion names whole numbers in batches without NULL
        Some(text) if is_float => text.strip_suffix(".0").unwrap_or(text).to_owned(),
        Some(text) => text.to_owned(),
    };
    Ok(Arc::new(texts.iter().map(name).map(Some).collect::<StringArray>()))
}

impl DisplayAs for StagedSink {
    fn fmt_as(&self, kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.sink().fmt_as(kind, f)
    }
}

#[async_trait]
impl DataSink for StagedSink {
    fn metrics(&self) -> Option<MetricsSet> {
        self.inner.sink().metrics()
    }

    fn schema(&self) -> &SchemaRef {
        self.inner.sink().schema()
    }

    async fn write_all(&self, rows: SendableRecordBatchStream, context: &Arc<TaskContext>) -> Result<u64> {
        let runtime = context.runtime_env();
        let store = runtime.object_store(&self.config.object_store_url)?;
        let stage = Stage::begin(Arc::clone(&store), self.target()?).await?;
        let staged: Arc<dyn ObjectStore> = Arc::new(StagedStore::new(store, Arc::clone(&stage)));
        let runtime =
            RuntimeEnvBuilder::from_runtime_env(&runtime).with_object_store_registry(Arc::new(OneStore(staged)));
        let staged_context = TaskContext::new(
            context.task_id(),
            context.session_id(),
            context.session_config().clone(),
            context.scalar_functions().clone(),
            context.higher_order_functions().clone(),
            context.aggregate_functions().clone(),
            context.window_functions().clone(),
            runtime.build_arc()?,
        );
        let written = self.inner.sink().write_all(self.with_null_partitions(rows), &Arc::new(staged_context)).await;
        match written {
            Ok(n_rows) => {
                let committed = stage.commit().await;
                // queries of this session list the folder again
                if let Some(lists) = context.runtime_env().cache_manager.get_list_files_cache() {
                    lists.clear();
                }
                committed.map(|()| n_rows)
            }
            Err(error) => {
                stage.abort().await;
                Err(error)
            }
        }
    }
}

/// The store of the files that are written.
#[derive(Debug)]
struct OneStore(Arc<dyn ObjectStore>);

impl ObjectStoreRegistry for OneStore {
    fn register_store(&self, _: &Url, _: Arc<dyn ObjectStore>) -> Option<Arc<dyn ObjectStore>> {
        None
    }

    fn get_store(&self, _: &Url) -> Result<Arc<dyn ObjectStore>> {
        Ok(Arc::clone(&self.0))
    }
}
