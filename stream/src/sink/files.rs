//! The sink for a folder: files that become valid when a manifest lists them.

use std::collections::BTreeMap;
use std::ops::Not;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::json::LineDelimitedWriter;
use datafusion::common::{GetExt, plan_err};
use datafusion::config::TableParquetOptions;
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use datafusion::datasource::file_format::json::JsonFormat;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::ListingTable;
use datafusion::error::Result;
use datafusion::execution::SessionState;
use datafusion::parquet::arrow::{ArrowWriter, AsyncArrowWriter};
use datafusion::parquet::file::properties::{WriterProperties, WriterPropertiesBuilder};
use futures::{StreamExt, TryStreamExt};
use object_store::buffered::BufWriter;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use rdkafka::consumer::{CommitMode, Consumer as _};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::runtime::Handle;

use super::manifest::{Chain, FileEntry, Manifest, Run, object_store_error, sync};
use super::topic::DeadLetters;
use super::{Output, Processed, Sink};
use crate::columns::as_table;
use crate::failure::{FENCED, Failure};
use crate::kafka::{Connection, Consumer, Span, offsets};
use crate::settings::Settings;
use crate::stats::Stats;

/// Manifests that are read concurrently.
const CONCURRENT_READS: usize = 32;

/// A folder of files of one format.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    store: Arc<dyn ObjectStore>,
    path: Path,
    /// The local path of the folder, if it is on this machine.
    local: Option<PathBuf>,
    schema: SchemaRef,
    format: FileFormat,
}

#[derive(Debug, Clone)]
enum FileFormat {
    Parquet(Box<WriterProperties>),
    Json(FileCompressionType),
}

impl Folder {
    /// Checks that a pipeline can write to a table of files.
    ///
    /// # Errors
    /// A planning error if the table is not a folder or has another format.
    pub(crate) fn of(table: &ListingTable, state: &SessionState) -> Result<Self> {
        let [url] = table.table_paths().as_slice() else {
            return plan_err!("a pipeline must write to one folder; found {}", table.table_paths().len());
        };
        if !url.is_collection() {
            return plan_err!("LOCATION must be a folder, with a slash at its end: '{url}/'");
        }
        let options = table.options();
        if !options.table_partition_cols.is_empty() {
            return plan_err!("a pipeline cannot write to a table with PARTITIONED BY; remove it");
        }
        let format = if let Some(parquet) = options.format.downcast_ref::<ParquetFormat>() {
            let properties = TableParquetOptions { ..parquet.options().clone() };
            FileFormat::Parquet(Box::new(properties_of(&properties)?))
        } else if let Some(json) = options.format.downcast_ref::<JsonFormat>() {
            FileFormat::Json(json.options().compression.into())
        } else {
            return plan_err!(
                "a pipeline can write files of Parquet or JSON (one line per row); found {}",
                options.format.get_ext()
            );
        };
        let store = state.runtime_env().object_store(url)?;
        let schema = datafusion::catalog::TableProvider::schema(table);
        let local = url::Url::parse(url.as_str()).ok().and_then(|url| url.to_file_path().ok());
        Ok(Self { store, path: url.prefix().clone(), local, schema, format })
    }

    /// The manifests of a pipeline in the folder.
    pub(crate) fn chain(&self, pipeline: &str, topic: &str) -> Chain {
        Chain::new(Arc::clone(&self.store), (&self.path, self.local.as_deref()), pipeline, topic)
    }

    /// Checks that the file format supports all columns.
    ///
    /// # Errors
    /// An error if Parquet has no type for a column.
    pub(crate) fn check(&self) -> Result<()> {
        match &self.format {
            FileFormat::Parquet(properties) => {
                let properties = Some(properties.as_ref().clone());
                drop(ArrowWriter::try_new(std::io::sink(), Arc::clone(&self.schema), properties)?);
                Ok(())
            }
            FileFormat::Json(_) => Ok(()),
        }
    }

    fn extension(&self) -> String {
        match &self.format {
            FileFormat::Parquet(_) => "parquet".to_owned(),
            FileFormat::Json(compression) => format!("json{}", compression.get_ext()),
        }
    }
}

fn properties_of(options: &TableParquetOptions) -> Result<WriterProperties> {
    let options = TableParquetOptions {
        // the writer stores the schema itself
        global: datafusion::config::ParquetOptions { skip_arrow_metadata: true, ..options.global.clone() },
        ..options.clone()
    };
    Ok(WriterPropertiesBuilder::try_from(&options)?.build())
}

/// Writes files, and commits each of them with the offsets of its records.
pub(crate) struct FileSink {
    folder: Folder,
    chain: Chain,
    last: Manifest,
    pipeline: String,
    run: Run,
    max_rows: usize,
    max_age: Duration,
    dead_letters: Option<DeadLetters>,
    source: Connection,
    stats: Arc<Stats>,
    runtime: Handle,
    open: Option<OpenFile>,
    spans: BTreeMap<i32, Span>,
    since: Option<Instant>,
    /// Commits offsets to the group too, for tools that show the lag of groups.
    consumer: Option<Arc<Consumer>>,
}

impl std::fmt::Debug for FileSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileSink").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl FileSink {
    /// Opens the folder, and removes the uncommitted files of earlier runs of this instance.
    ///
    /// # Errors
    /// A transient failure if the folder cannot be read or written.
    pub(crate) async fn open(
        folder: Folder,
        (pipeline, instance): (&str, &str),
        settings: &Settings,
        source: &Connection,
        dead_letters: Option<DeadLetters>,
        stats: &Arc<Stats>,
    ) -> Result<Self, Failure> {
        let chain = folder.chain(pipeline, &source.topic);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        let run = Run { instance: instance.to_owned(), id: format!("{now:x}") };
        // afterwards no earlier run can commit the files that are removed
        let last = chain.register(&run).await?;
        remove_uncommitted(&folder, &chain, &last, (pipeline, instance)).await?;
        Ok(Self {
            last,
            run,
            chain,
            folder,
            pipeline: pipeline.to_owned(),
            max_rows: settings.file_rows,
            max_age: settings.file,
            dead_letters,
            source: source.clone(),
            stats: Arc::clone(stats),
            runtime: Handle::current(),
            open: None,
            spans: BTreeMap::new(),
            since: None,
            consumer: None,
        })
    }

    async fn append(&mut self, rows: &[RecordBatch]) -> Result<()> {
        for batch in rows {
            let batch = as_table(batch, &self.folder.schema)?;
            let file = match self.open.take() {
                Some(file) => file,
                None => OpenFile::create(&self.folder, self.name())?,
            };
            self.open.insert(file).write(&batch).await?;
        }
        Ok(())
    }

    /// Name of the next file. No name is used twice, not even by another run.
    fn name(&self) -> String {
        let (pipeline, Run { instance, id }) = (&self.pipeline, &self.run);
        format!("{pipeline}.{instance}.{id}.{:010}.{}", self.last.number + 1, self.folder.extension())
    }

    /// Closes the open file, and commits it with a manifest.
    async fn finish(&mut self) -> Result<(), Failure> {
        let files = match self.open.take() {
            Some(file) => match file.close(&self.folder).await {
                Ok(file) => vec![file],
                // a newer run of this instance removes the open file
                Err(_) if !self.chain.is_current(&self.run).await? => {
                    return Err(Failure::permanent(format!("writing a file: {FENCED}")));
                }
                Err(error) => return Err(error.into()),
            },
            None => Vec::new(),
        };
        let rows = files.iter().map(|file| file.rows).sum();
        if let Some(letters) = &self.dead_letters {
            letters.flush()?;
        }
        let spans = std::mem::take(&mut self.spans);
        let committed = self.chain.commit(&self.last, &self.run, &files, &spans).await;
        if matches!(committed, Err(Failure::Permanent(_))) {
            // A newer run of this instance has already removed the files of this one. After other failures the next
            // start removes them: only then is it known whether a failing store has written the manifest.
            for file in files {
                drop(self.folder.store.delete(&self.folder.path.clone().join(file.name)).await);
            }
        }
        self.last = committed?;
        self.since = None;
        self.stats.committed(spans.iter().map(|(partition, span)| (*partition, span.to)), rows);
        if let Some(consumer) = &self.consumer {
            let committed = consumer.commit(&offsets(&self.source.topic, &spans)?, CommitMode::Async);
            drop(committed.inspect_err(|e| tracing::debug!("could not commit offsets to the group: {e}")));
        }
        Ok(())
    }
}

/// Removes the uncommitted files of earlier runs of an instance: files that no manifest lists.
///
/// A run starts a file after it has committed the previous one. Therefore only the last file of each run can be
/// uncommitted.
async fn remove_uncommitted(
    folder: &Folder,
    chain: &Chain,
    last: &Manifest,
    (pipeline, instance): (&str, &str),
) -> Result<()> {
    let prefix = format!("{pipeline}.{instance}.");
    let listed = folder.store.list_with_delimiter(Some(&folder.path)).await.map_err(object_store_error)?;
    let mut last_files = BTreeMap::new();
    for path in listed.objects.into_iter().map(|found| found.location) {
        if let Some((id, number)) = path.filename().and_then(|name| run_and_number(name.strip_prefix(&prefix)?)) {
            let file = last_files.entry(id).or_insert_with(|| (number, path.clone()));
            *file = (number, path).max(file.clone());
        }
    }
    let left_over = futures::stream::iter(last_files).map(|(id, (number, path))| async move {
        let run = Run { instance: instance.to_owned(), id };
        Ok(chain.has_committed(last, &run, number).await?.not().then_some(path))
    });
    let left_over: Result<Vec<Option<Path>>> = left_over.buffer_unordered(CONCURRENT_READS).try_collect().await;
    for path in left_over?.into_iter().flatten() {
        tracing::info!(%path, "removing an uncommitted file");
        folder.store.delete(&path).await.map_err(object_store_error)?;
    }
    match &folder.local {
        Some(local) => remove_unfinished(local, &prefix),
        None => Ok(()),
    }
}

/// Run and number in the name of a file, after pipeline and instance; see [`FileSink::name`].
fn run_and_number(name: &str) -> Option<(String, u64)> {
    let mut parts = name.split('.');
    Some((parts.next()?.to_owned(), parts.next()?.parse().ok()?))
}

/// Removes files that were never completed. A local store writes `file#1`, renames it to `file` when it is complete,
/// and does not list files under the first name.
fn remove_unfinished(folder: &std::path::Path, prefix: &str) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.starts_with(prefix) && name.contains('#')) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

impl Sink for FileSink {
    fn write(&mut self, batch: Processed) -> Result<(), Failure> {
        if let Some(letters) = &self.dead_letters {
            letters.send(&batch.dead_letters)?;
        }
        if let Output::Rows(rows) = &batch.output {
            let runtime = self.runtime.clone();
            runtime.block_on(self.append(rows))?;
        }
        for (partition, span) in &batch.spans {
            self.spans.entry(*partition).and_modify(|known| known.to = span.to).or_insert(*span);
        }
        self.since.get_or_insert(batch.counts.since);
        self.stats.batch(&batch.counts);
        match self.open.as_ref().is_some_and(|file| file.rows >= self.max_rows) {
            true => self.commit(),
            false => Ok(()),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.since.map(|since| since + self.max_age)
    }

    fn commit(&mut self) -> Result<(), Failure> {
        if self.since.is_none() {
            return Ok(());
        }
        let runtime = self.runtime.clone();
        runtime.block_on(self.finish())
    }

    fn discard(&mut self) {
        self.open = None;
        self.spans.clear();
        self.since = None;
    }

    fn set_consumer(&mut self, consumer: Arc<Consumer>) {
        self.consumer = Some(consumer);
    }
}

/// A file that is being written.
struct OpenFile {
    name: String,
    rows: usize,
    writer: Writer,
}

enum Writer {
    Parquet(Box<AsyncArrowWriter<BufWriter>>),
    Json(Box<dyn AsyncWrite + Send + Unpin>),
}

impl OpenFile {
    fn create(folder: &Folder, name: String) -> Result<Self> {
        let file = BufWriter::new(Arc::clone(&folder.store), folder.path.clone().join(name.clone()));
        let writer = match &folder.format {
            FileFormat::Parquet(properties) => {
                let properties = Some(properties.as_ref().clone());
                Writer::Parquet(Box::new(AsyncArrowWriter::try_new(file, Arc::clone(&folder.schema), properties)?))
            }
            FileFormat::Json(compression) => Writer::Json(Box::new(compression.convert_async_writer(file)?)),
        };
        Ok(Self { name, rows: 0, writer })
    }

    async fn write(&mut self, rows: &RecordBatch) -> Result<()> {
        self.rows += rows.num_rows();
        match &mut self.writer {
            Writer::Parquet(writer) => writer.write(rows).await?,
            Writer::Json(writer) => {
                let mut lines = LineDelimitedWriter::new(Vec::new());
                lines.write(rows)?;
                lines.finish()?;
                writer.write_all(&lines.into_inner()).await?;
            }
        }
        Ok(())
    }

    async fn close(self, folder: &Folder) -> Result<FileEntry> {
        match self.writer {
            Writer::Parquet(writer) => drop(writer.close().await?),
            Writer::Json(mut writer) => writer.shutdown().await?,
        }
        let written = folder.store.head(&folder.path.clone().join(self.name.clone())).await;
        let bytes = written.map_err(object_store_error)?.size;
        if let Some(local) = &folder.local {
            // durable before a manifest lists it
            sync(&local.join(&self.name))?;
            sync(local)?;
        }
        Ok(FileEntry { name: self.name, rows: self.rows, bytes })
    }
}
