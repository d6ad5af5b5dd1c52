//! The manifests of a folder: the valid files of a pipeline, and the offsets of their records.
//!
//! Manifests are numbered. Each number is written once, by the first instance that writes it (put-if-absent). A
//! manifest has the offset that each partition has reached with its files and all earlier files. A commit advances some
//! partitions from their offsets in the last manifest, and is refused if the last manifest has other offsets. Therefore
//! each record is in exactly one valid file, with any number of instances.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use datafusion::common::exec_err;
use datafusion::error::{DataFusionError, Result};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use serde::{Deserialize, Serialize};

use crate::failure::{FENCED, Failure};
use crate::kafka::{Span, StartOffsets};
use aefusion_udfs::temporary_file;

/// The folder of manifests. By convention, readers of tables skip folders whose names start with an underscore.
const FOLDER: &str = "_aefusion";
const EXTENSION: &str = ".manifest";
/// The last digits of a manifest's number distinguish it in its sub-folder; the digits before name the sub-folder.
const DIGITS: usize = 4;
const DIGITS_OF_FOLDER: usize = 16;

/// A file that a manifest lists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileEntry {
    /// Name in the folder.
    pub(crate) name: String,
    pub(crate) rows: usize,
    pub(crate) bytes: u64,
}

/// One commit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) number: u64,
    pub(crate) pipeline: String,
    /// The topic of the offsets.
    pub(crate) topic: String,
    /// For each instance, the run that may commit.
    pub(crate) instances: BTreeMap<String, Holder>,
    /// Files that become valid with this manifest.
    pub(crate) files: Vec<FileEntry>,
    /// For each partition, the first offset that is in no file.
    pub(crate) offsets: BTreeMap<i32, i64>,
}

impl Manifest {
    /// The next manifest of a run, without files.
    fn next(&self, run: &Run) -> Self {
        let number = self.number + 1;
        let mut instances = self.instances.clone();
        instances.insert(run.instance.clone(), Holder { run: run.id.clone(), last: number });
        Self { number, instances, files: Vec::new(), ..self.clone() }
    }

    /// The number of the last manifest of a run; none if a newer run has replaced it.
    fn last_of(&self, run: &Run) -> Option<u64> {
        self.instances.get(&run.instance).filter(|holder| holder.run == run.id).map(|holder| holder.last)
    }
}

/// The run that may commit for an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holder {
    pub(crate) run: String,
    /// The number of its last manifest.
    pub(crate) last: u64,
}

/// A run of an instance: one start of the pipeline, or one retry.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) instance: String,
    /// Unique among all runs.
    pub(crate) id: String,
}

/// The manifests of a pipeline.
#[derive(Debug, Clone)]
pub(crate) struct Chain {
    store: Arc<dyn ObjectStore>,
    folder: Path,
    /// The local path of the folder, if it is on this machine.
    local: Option<PathBuf>,
    pipeline: String,
    topic: String,
}

impl Chain {
    /// The manifests of a pipeline that reads a topic and writes to a folder.
    pub(crate) fn new(
        store: Arc<dyn ObjectStore>,
        (folder, local): (&Path, Option<&std::path::Path>),
        pipeline: &str,
        topic: &str,
    ) -> Self {
        let folder = folder.clone().join(FOLDER).join(pipeline);
        let local = local.map(|local| local.join(FOLDER).join(pipeline));
        Self { store, folder, local, pipeline: pipeline.to_owned(), topic: topic.to_owned() }
    }

    fn path(&self, number: u64) -> Path {
        let [folder, name] = place(number);
        self.folder.clone().join(folder).join(name)
    }

    /// The number of the last manifest. Sub-folders keep the listing short.
    async fn last_number(&self) -> Result<Option<u64>> {
        let listed = self.store.list_with_delimiter(Some(&self.folder)).await.map_err(object_store_error)?;
        let mut folders = listed.common_prefixes;
        folders.sort();
        let number = |path: &Path| path.filename()?.strip_suffix(EXTENSION)?.parse::<u64>().ok();
        // the last sub-folder is empty if a run ended before it wrote the first manifest there
        for folder in folders.into_iter().rev() {
            let listed = self.store.list_with_delimiter(Some(&folder)).await.map_err(object_store_error)?;
            if let Some(last) = listed.objects.iter().filter_map(|found| number(&found.location)).max() {
                return Ok(Some(last));
            }
        }
        Ok(None)
    }

    /// The manifest of a number; none if it does not exist.
    async fn find(&self, number: u64) -> Result<Option<Manifest>> {
        let path = self.path(number);
        let found = match self.store.get(&path).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(object_store_error(error)),
        };
        let manifest = serde_json::from_slice(&found.bytes().await.map_err(object_store_error)?);
        manifest.map(Some).map_err(|e| DataFusionError::Execution(format!("could not read the manifest {path}: {e}")))
    }

    /// The last manifest. Without any, the result has number 0 and no offsets.
    ///
    /// # Errors
    /// An error if the store fails, or if a manifest is corrupted or belongs to another topic.
    pub(crate) async fn last(&self) -> Result<Manifest> {
        let found = match self.last_number().await? {
            Some(number) => self.find(number).await?,
            None => None,
        };
        match found {
            Some(other) if other.topic != self.topic => exec_err!(
                "the pipeline '{}' has written to {} from the topic '{}', and cannot continue from the topic '{}'; use \
                 SET stream.name = '…' to start a new pipeline",
                self.pipeline,
                self.folder,
                other.topic,
                self.topic
            ),
            Some(last) => Ok(last),
            None => {
                let (pipeline, topic) = (self.pipeline.clone(), self.topic.clone());
                Ok(Manifest { pipeline, topic, ..Manifest::default() })
            }
        }
    }

    /// Whether a manifest lists the file that a run started when `number` was its next number.
    ///
    /// If the run has committed the file, its next manifest lists it. Normally one of the manifests right after
    /// `number` is that manifest; otherwise a binary search finds out. If manifests are missing, the file counts as
    /// committed.
    ///
    /// # Errors
    /// See [`Chain::last`].
    pub(crate) async fn has_committed(&self, last: &Manifest, run: &Run, number: u64) -> Result<bool> {
        let before = self.find(number.saturating_sub(1)).await?;
        if before.is_none_or(|before| before.last_of(run) != Some(before.number)) {
            return Ok(true);
        }
        // at `low` the run is current and has not committed; at `high` a newer run is current, or there is no manifest
        let (mut low, mut high, mut step) = (number - 1, last.number + 1, 1);
        while low + 1 < high {
            let at = if step < high - low { low + step } else { low + (high - low) / 2 };
            let Some(manifest) = self.find(at).await? else { return Ok(true) };
            match manifest.last_of(run) {
                Some(committed) if committed >= number => return Ok(true),
                Some(_) => {
                    low = at;
                    step *= 2;
                }
                None => high = at,
            }
        }
        Ok(false)
    }

    /// Whether a run may still commit, because no newer run of its instance exists.
    ///
    /// # Errors
    /// See [`Chain::last`].
    pub(crate) async fn is_current(&self, run: &Run) -> Result<bool> {
        Ok(self.last().await?.last_of(run).is_some())
    }

    /// Registers a run of an instance. From then on, earlier runs of the instance cannot commit.
    ///
    /// # Errors
    /// See [`Chain::last`].
    pub(crate) async fn register(&self, run: &Run) -> Result<Manifest, Failure> {
        self.append(self.last().await?, |last| Ok(last.next(run))).await
    }

    /// Commits files and the offsets that they cover, and returns the new manifest.
    ///
    /// # Errors
    /// A transient failure if the last manifest has other offsets than the spans start from. A permanent one if a newer
    /// run of the instance exists.
    pub(crate) async fn commit(
        &self,
        last: &Manifest,
        run: &Run,
        files: &[FileEntry],
        spans: &BTreeMap<i32, Span>,
    ) -> Result<Manifest, Failure> {
        let commit = |last: &Manifest| {
            if last.last_of(run).is_none() {
                return Err(Failure::permanent(format!("committing files: {FENCED}")));
            }
            let at = |partition: &i32| last.offsets.get(partition).copied();
            if let Some((partition, span)) = spans.iter().find(|(partition, span)| at(partition) != span.from) {
                return Err(Failure::transient(format!(
                    "partition {partition} was read from {}, but is committed to {}: another instance has written it",
                    describe(span.from),
                    describe(at(partition))
                )));
            }
            let mut offsets = last.offsets.clone();
            offsets.extend(spans.iter().map(|(partition, span)| (*partition, span.to)));
            Ok(Manifest { files: files.to_vec(), offsets, ..last.next(run) })
        };
        self.append(last.clone(), commit).await
    }

    /// Writes the manifest after the last one, and tries the next number if another instance was faster.
    async fn append(
        &self,
        mut last: Manifest,
        next: impl Fn(&Manifest) -> Result<Manifest, Failure>,
    ) -> Result<Manifest, Failure> {
        let mut is_newest = false;
        loop {
            let manifest = match next(&last) {
                Ok(manifest) => manifest,
                Err(failure) if is_newest => return Err(failure),
                // other instances may have written in the meantime
                Err(_) => {
                    (last, is_newest) = (self.last().await?, true);
                    continue;
                }
            };
            if self.put(&manifest).await? {
                return Ok(manifest);
            }
            // the manifest was written, but the response of the store was lost
            if self.find(manifest.number).await?.as_ref() == Some(&manifest) {
                return Ok(manifest);
            }
            (last, is_newest) = (self.last().await?, true);
        }
    }

    /// Writes a manifest, unless its number exists; returns whether it was written.
    async fn put(&self, manifest: &Manifest) -> Result<bool> {
        let text = serde_json::to_vec_pretty(manifest).map_err(|e| DataFusionError::External(Box::new(e)))?;
        if let Some(local) = &self.local {
            return put_durably(local, manifest.number, &text);
        }
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.store.put_opts(&self.path(manifest.number), text.into(), options).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
            Err(error) => Err(object_store_error(error)),
        }
    }
}

impl StartOffsets for Chain {
    fn read(&self) -> Result<BTreeMap<i32, i64>> {
        let runtime = tokio::runtime::Handle::current();
        Ok(runtime.block_on(self.last())?.offsets)
    }
}

/// Sub-folder and name of a manifest.
fn place(number: u64) -> [String; 2] {
    let digits = format!("{number:0width$}", width = DIGITS_OF_FOLDER + DIGITS);
    [digits[..DIGITS_OF_FOLDER].to_owned(), format!("{digits}{EXTENSION}")]
}

/// Writes a manifest that is complete and durable after a power failure. The object store for local files does not
/// guarantee this.
fn put_durably(folder: &std::path::Path, number: u64, text: &[u8]) -> Result<bool> {
    let [sub_folder, name] = place(number);
    let sub_folder = folder.join(sub_folder);
    std::fs::create_dir_all(&sub_folder)?;
    let mut file = temporary_file(&sub_folder)?;
    file.write_all(text)?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(sub_folder.join(name)) {
        Ok(_) => {}
        Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => return Err(error.error.into()),
    }
    sync(&sub_folder)?;
    sync(folder)?;
    Ok(true)
}

/// Waits until a file, or the entries of a folder, are durable.
pub(super) fn sync(path: &std::path::Path) -> Result<()> {
    Ok(std::fs::File::open(path)?.sync_all()?)
}

fn describe(offset: Option<i64>) -> String {
    offset.map_or_else(|| "the beginning".to_owned(), |offset| format!("offset {offset}"))
}

pub(super) fn object_store_error(error: object_store::Error) -> DataFusionError {
    DataFusionError::ObjectStore(Box::new(error))
}
