//! Files, globs and folders as tables: `FROM 'file.parquet'`.

use std::str::FromStr;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::{TableProvider, UrlTableFactory};
use datafusion::common::{exec_err, plan_err};
use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::file_format::arrow::ArrowFormat;
use datafusion::datasource::file_format::csv::CsvFormat;
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use datafusion::datasource::file_format::json::JsonFormat;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl};
use datafusion::error::Result;
use datafusion::execution::SessionState;
use datafusion::prelude::SessionContext;
use futures::{StreamExt, TryStreamExt};
use std::sync::OnceLock;

use super::lake;

/// Creates tables from paths and URLs, by their extension.
#[derive(Default)]
pub(super) struct FileTables {
    session: OnceLock<Box<dyn Fn() -> Option<SessionState> + Send + Sync>>,
}

impl std::fmt::Debug for FileTables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileTables").finish_non_exhaustive()
    }
}

impl FileTables {
    /// Sets the session that reads the tables.
    pub(super) fn connect(&self, context: &SessionContext) {
        let weak = context.state_weak_ref();
        let state = move || weak.upgrade().map(|state| state.read().clone());
        // a second call would set the same session
        drop(self.session.set(Box::new(state)));
    }
}

#[async_trait]
impl UrlTableFactory for FileTables {
    async fn try_new(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let Some(state) = self.session.get().and_then(|state| state()) else { return Ok(None) };
        let format = format_of(name, &state)?;
        let is_folder = name.ends_with('/') || std::path::Path::new(name).is_dir();
        if format.is_none() && !is_folder {
            return match name.contains("://") {
                true => plan_err!("'{name}' cannot be read as a table: its extension is not supported; {}", KNOWN),
                false => Ok(None),
            };
        }
        let url = match is_folder && !name.ends_with('/') {
            true => ListingTableUrl::parse(format!("{name}/"))?,
            false => ListingTableUrl::parse(name)?,
        };
        lake::check(&url, name, &state).await?;
        let config = ListingTableConfig::new(url.clone());
        let config = match format {
            Some((format, extension)) => {
                exists(&url, name, &state).await?;
                config.with_listing_options(ListingOptions::new(format).with_file_extension(extension))
            }
            None => {
                let (format, extension) = format_in(&url, name, &state).await?;
                config.with_listing_options(ListingOptions::new(format).with_file_extension(extension))
            }
        };
        let config = config.infer_partitions_from_path(&state).await?.infer_schema(&state).await?;
        Ok(Some(Arc::new(ListingTable::try_new(config)?)))
    }
}

const KNOWN: &str = "supported are parquet, csv, tsv, json, ndjson, jsonl, arrow, ipc and feather, and text formats with gz, bz2, xz \
                     or zst";

/// The format of a name, by its extension, and the extension with its compression.
fn format_of(name: &str, state: &SessionState) -> Result<Option<(Arc<dyn FileFormat>, String)>> {
    let file = name.rsplit('/').next().unwrap_or(name);
    let mut parts = file.rsplit('.');
    let last = parts.next().unwrap_or_default();
    let compression = FileCompressionType::from_str(last).unwrap_or(FileCompressionType::UNCOMPRESSED);
    let (extension, whole) = match compression.is_compressed() {
        false => (last, last.to_owned()),
        true => {
            let extension = parts.next().unwrap_or_default();
            (extension, format!("{extension}.{last}"))
        }
    };
    if parts.next().is_none() {
        return Ok(None);
    }
    let options = state.default_table_options();
    let format: Arc<dyn FileFormat> = match extension.to_ascii_lowercase().as_str() {
        "parquet" => Arc::new(ParquetFormat::default().with_options(options.parquet)),
        "csv" => Arc::new(CsvFormat::default().with_options(options.csv).with_file_compression_type(compression)),
        "tsv" => Arc::new(
            CsvFormat::default()
                .with_options(options.csv)
                .with_delimiter(b'\t')
                .with_file_compression_type(compression),
        ),
        "json" | "ndjson" | "jsonl" => {
            Arc::new(JsonFormat::default().with_options(options.json).with_file_compression_type(compression))
        }
        "arrow" | "ipc" | "feather" => Arc::new(ArrowFormat),
        _ => return Ok(None),
    };
    Ok(Some((format, whole)))
}

/// Whether readers and writers of a table leave a file or a folder out, by its name.
pub(super) fn is_hidden(name: &str) -> bool {
    name.starts_with('.') || name.starts_with('_') && !name.contains('=')
}

/// The format of the first file in a folder.
async fn format_in(url: &ListingTableUrl, name: &str, state: &SessionState) -> Result<(Arc<dyn FileFormat>, String)> {
    let store = state.runtime_env().object_store(url)?;
    let mut files = url.list_all_files(state, store.as_ref(), "").await?;
    while let Some(file) = files.try_next().await? {
        let mut below = file.location.prefix_match(url.prefix()).into_iter().flatten();
        if below.any(|part| is_hidden(part.as_ref())) {
            continue;
        }
        if let Some(format) = format_of(file.location.as_ref(), state)? {
            return Ok(format);
        }
    }
    exec_err!("the folder '{name}' has no file with a supported extension; {KNOWN}")
}

/// Checks that a file exists: DataFusion would read a missing file as an empty table.
async fn exists(url: &ListingTableUrl, name: &str, state: &SessionState) -> Result<()> {
    let store = state.runtime_env().object_store(url)?;
    let mut files = url.list_all_files(state, store.as_ref(), "").await?;
    match files.next().await {
        Some(Ok(_)) => Ok(()),
        Some(Err(e)) => Err(e),
        None => exec_err!("no such file: '{name}'"),
    }
}
