//! `COPY` and `INSERT INTO` files, all or nothing.

mod local;
mod remote;
mod sink;
mod stage;

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::parsers::CompressionTypeVariant;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{GetExt, Statistics, internal_err, not_impl_err, plan_err};
use datafusion::config::ConfigOptions;
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use datafusion::datasource::file_format::{FileFormat, FileFormatFactory, file_type_to_format, format_as_file_type};
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig};
use datafusion::datasource::physical_plan::{FileScanConfig, FileSinkConfig, FileSource};
use datafusion::datasource::sink::DataSinkExec;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::datasource::{provider_as_source, source_as_provider};
use datafusion::error::Result;
use datafusion::logical_expr::dml::{CopyTo, InsertOp};
use datafusion::logical_expr::{DmlStatement, LogicalPlan, WriteOp};
use datafusion::optimizer::AnalyzerRule;
use datafusion::physical_expr::LexRequirement;
use datafusion::physical_plan::ExecutionPlan;
use object_store::{ObjectMeta, ObjectStore};

use sink::StagedSink;

/// What happens to the files of a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// The folder must have none.
    New,
    /// They stay.
    Append,
    /// The new files replace them; in a folder of partitions, those of the partitions that get rows.
    Overwrite,
}

/// Stages the files of `COPY` and `INSERT INTO`: they get their names when all of them are complete.
#[derive(Debug)]
pub(super) struct StageWrites;

impl AnalyzerRule for StageWrites {
    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        let staged = plan.transform_down(|node| match node {
            LogicalPlan::Copy(copy) => stage_copy(copy),
            LogicalPlan::Dml(insert) if matches!(insert.op, WriteOp::Insert(_)) => stage_insert(insert),
            node => Ok(Transformed::no(node)),
        })?;
        Ok(staged.data)
    }

    fn name(&self) -> &str {
        "stage_writes"
    }
}

fn stage_copy(mut copy: CopyTo) -> Result<Transformed<LogicalPlan>> {
    let factory = file_type_to_format(&copy.file_type)?;
    if is_staged(factory.as_ref()) {
        return Ok(Transformed::no(LogicalPlan::Copy(copy)));
    }
    let mut flag = |name: &str| match copy.options.remove(&format!("format.{name}")) {
        None => Ok(false),
        Some(value) => match value.as_str() {
            "true" => Ok(true),
            "false" => Ok(false),
            other => plan_err!("COPY: option {name} must be 'true' or 'false', found '{other}'"),
        },
    };
    let mode = match (flag("overwrite")?, flag("append")?) {
        (true, true) => return plan_err!("COPY: use either the option overwrite or the option append"),
        (true, false) => Mode::Overwrite,
        (false, true) => Mode::Append,
        (false, false) => Mode::New,
    };
    copy.file_type = format_as_file_type(Arc::new(StagedFormats { factory, mode }));
    Ok(Transformed::yes(LogicalPlan::Copy(copy)))
}

fn is_staged(factory: &dyn FileFormatFactory) -> bool {
    let factory: &dyn Any = factory;
    factory.is::<StagedFormats>()
}

fn stage_insert(mut insert: DmlStatement) -> Result<Transformed<LogicalPlan>> {
    let provider = source_as_provider(&insert.target)?;
    let Some(table) = provider.downcast_ref::<ListingTable>() else {
        return Ok(Transformed::no(LogicalPlan::Dml(insert)));
    };
    let options = table.options();
    let format: &dyn Any = options.format.as_ref();
    if format.is::<StagedFormat>() {
        return Ok(Transformed::no(LogicalPlan::Dml(insert)));
    }
    let schema = table.schema();
    let n_columns = schema.fields().len().saturating_sub(options.table_partition_cols.len());
    let columns: Vec<_> = schema.fields().iter().take(n_columns).cloned().collect();
    let staged = ListingOptions {
        format: Arc::new(StagedFormat { format: Arc::clone(&options.format), mode: Mode::Append }),
        ..options.clone()
    };
    let config = ListingTableConfig::new_with_multi_paths(table.table_paths().clone())
        .with_listing_options(staged)
        .with_schema(Arc::new(Schema::new(columns)));
    insert.target = provider_as_source(Arc::new(ListingTable::try_new(config)?));
    Ok(Transformed::yes(LogicalPlan::Dml(insert)))
}

/// Creates [`StagedFormat`]s.
#[derive(Debug)]
struct StagedFormats {
    factory: Arc<dyn FileFormatFactory>,
    mode: Mode,
}

impl GetExt for StagedFormats {
    fn get_ext(&self) -> String {
        self.factory.get_ext()
    }
}

impl FileFormatFactory for StagedFormats {
    fn create(&self, session: &dyn Session, options: &HashMap<String, String>) -> Result<Arc<dyn FileFormat>> {
        Ok(Arc::new(StagedFormat { format: self.factory.create(session, options)?, mode: self.mode }))
    }

    fn default(&self) -> Arc<dyn FileFormat> {
        Arc::new(StagedFormat { format: self.factory.default(), mode: self.mode })
    }
}

/// A format whose writers stage files. It reads none.
#[derive(Debug)]
struct StagedFormat {
    format: Arc<dyn FileFormat>,
    /// Of `COPY`. The operation of an `INSERT` is known when it is planned.
    mode: Mode,
}

#[async_trait]
impl FileFormat for StagedFormat {
    fn get_ext(&self) -> String {
        self.format.get_ext()
    }

    fn get_ext_with_compression(&self, compression: &FileCompressionType) -> Result<String> {
        self.format.get_ext_with_compression(compression)
    }

    fn compression_type(&self) -> Option<FileCompressionType> {
        self.format.compression_type()
    }

    async fn infer_schema(
        &self,
        session: &dyn Session,
        store: &Arc<dyn ObjectStore>,
        objects: &[ObjectMeta],
    ) -> Result<SchemaRef> {
        self.format.infer_schema(session, store, objects).await
    }

    async fn infer_stats(
        &self,
        session: &dyn Session,
        store: &Arc<dyn ObjectStore>,
        schema: SchemaRef,
        object: &ObjectMeta,
    ) -> Result<Statistics> {
        self.format.infer_stats(session, store, schema, object).await
    }

    async fn create_physical_plan(&self, _: &dyn Session, _: FileScanConfig) -> Result<Arc<dyn ExecutionPlan>> {
        internal_err!("a staged format only writes")
    }

    async fn create_writer_physical_plan(
        &self,
        input: Arc<dyn ExecutionPlan>,
        session: &dyn Session,
        mut config: FileSinkConfig,
        order: Option<LexRequirement>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let is_copy = !config.original_url.is_empty();
        let mode = match config.insert_op {
            _ if is_copy => self.mode,
            InsertOp::Append => Mode::Append,
            InsertOp::Overwrite => Mode::Overwrite,
            InsertOp::Replace => return not_impl_err!("REPLACE INTO a table of files"),
        };
        config.insert_op = InsertOp::Append;
        let planned = self.format.create_writer_physical_plan(input, session, config.clone(), order).await?;
        let Some(inner) = planned.downcast_ref::<DataSinkExec>() else {
            return internal_err!("the writer of {} is not a DataSinkExec", self.format.get_ext());
        };
        let sink = StagedSink::try_new(inner.clone(), config, mode)?;
        Ok(Arc::new(DataSinkExec::new(Arc::clone(inner.input()), Arc::new(sink), inner.sort_order().clone())))
    }

    fn file_source(&self, schema: TableSchema) -> Arc<dyn FileSource> {
        self.format.file_source(schema)
    }
}

/// Extensions of files that `overwrite` replaces, and without which a folder counts as empty.
const DATA: [&str; 9] = ["parquet", "csv", "tsv", "json", "ndjson", "jsonl", "arrow", "ipc", "feather"];

/// Whether a file in a table's folder has rows, by its name.
fn is_data(name: &str) -> bool {
    let mut parts = name.rsplit('.');
    let last = parts.next().unwrap_or_default();
    let is_compressed = last.parse::<CompressionTypeVariant>().is_ok_and(|kind| kind.is_compressed());
    let extension = if is_compressed { parts.next().unwrap_or_default() } else { last };
    let is_hidden = name.starts_with(['.', '_']);
    !is_hidden && parts.next().is_some() && DATA.contains(&extension.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::is_data;

    #[test]
    fn files_with_rows_have_the_extension_of_a_format() {
        for name in ["a.parquet", "a.csv.gz", "A.JSON", "part-0.snappy.parquet", "x.tsv.zst"] {
            assert!(is_data(name), "{name}");
        }
        for name in ["_SUCCESS", ".a.parquet", "a.gz", "csv", "notes.txt", "a.parquet.crc"] {
            assert!(!is_data(name), "{name}");
        }
    }
}
