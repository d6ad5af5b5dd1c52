//! The manifests of a folder: which files of a pipeline count, and what they were made of.
//!
//! Manifests are numbered, and each is written once, by whoever is first (put-if-absent). Each says where every partition
//! of the topic is with its files and all those before: a commit moves some partitions on from where the last manifest
//! has them, and is refused if it has them elsewhere. So each record is in one file that counts, whatever the number of
//! instances that write.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use datafusion::common::exec_err;
use datafusion::error::{DataFusionError, Result};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, FENCED};
use crate::kafka::{Span, StartOffsets};
use aefusion_udfs::temporary_file;

/// The folder of manifests; no program reads what stands in a folder that begins with an underscore as rows.
const FOLDER: &str = "_aefusion";
const EXTENSION: &str = ".manifest";
/// Digits of a manifest's number that name it in its sub-folder, and those before, which name the sub-folder.
const DIGITS: usize = 4;
const DIGITS_OF_FOLDER: usize = 16;

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileEntry {
    /// Its name in the folder.
    pub(crate) name: String,
    pub(crate) rows: usize,
    pub(crate) bytes: u64,
}

/// One commit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) number: u64,
    pub(crate) pipeline: String,
    /// The topic that the offsets are of.
    pub(crate) topic: String,
    /// By instance: the run that may commit.
    pub(crate) instances: BTreeMap<String, Holder>,
    /// The files that count from now on, beside those of the manifests before.
    pub(crate) files: Vec<FileEntry>,
    /// By partition: the first offset that is in no file.
    pub(crate) offsets: BTreeMap<i32, i64>,
}

impl Manifest {
    /// The next one, of no files, written by a run.
    fn next(&self, run: &Run) -> Self {
        let number = self.number + 1;
        let mut instances = self.instances.clone();
        instances.insert(run.instance.clone(), Holder { run: run.id.clone(), last: number });
        Self { number, instances, files: Vec::new(), ..self.clone() }
    }

    /// The number of the last manifest that a run wrote, as long as no other run has taken its place.
    fn last_of(&self, run: &Run) -> Option<u64> {
        self.instances.get(&run.instance).filter(|holder| holder.run == run.id).map(|holder| holder.last)
    }
}

/// Who may commit for an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holder {
    pub(crate) run: String,
    /// The number of the last manifest that it wrote.
    pub(crate) last: u64,
}

/// A run of an instance.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) instance: String,
    /// No two runs have the same.
    pub(crate) id: String,
}

/// The manifests of a pipeline.
#[derive(Debug, Clone)]
pub(crate) struct Chain {
    store: Arc<dyn ObjectStore>,
    folder: Path,
    /// The same, if it is on this machine.
    local: Option<PathBuf>,
    pipeline: String,
    topic: String,
}

impl Chain {
    /// Of a pipeline from a topic, in a folder.
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

    /// The number of the last one that there is: whatever their number, few names are listed.
    async fn last_number(&self) -> Result<Option<u64>> {
        let listed = self.store.list_with_delimiter(Some(&self.folder)).await.map_err(object_store_error)?;
        let mut folders = listed.common_prefixes;
        folders.sort();
        let number = |path: &Path| path.filename()?.strip_suffix(EXTENSION)?.parse::<u64>().ok();
        // the last one is empty if a run ended before its first manifest was there
        for folder in folders.into_iter().rev() {
            let listed = self.store.list_with_delimiter(Some(&folder)).await.map_err(object_store_error)?;
            if let Some(last) = listed.objects.iter().filter_map(|found| number(&found.location)).max() {
                return Ok(Some(last));
            }
        }
        Ok(None)
    }

    /// None if there is none.
    async fn find(&self, number: u64) -> Result<Option<Manifest>> {
        let path = self.path(number);
        let found = match self.store.get(&path).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(object_store_error(error)),
        };
        let manifest = serde_json::from_slice(&found.bytes().await.map_err(object_store_error)?);
        manifest.map(Some).map_err(|e| DataFusionError::Execution(format!("the manifest {path} cannot be read: {e}")))
    }

    /// The last one; that of a pipeline that has none says nothing, and has number 0.
    ///
    /// # Errors
    /// If the store fails; if a manifest is damaged, or of another topic.
    pub(crate) async fn last(&self) -> Result<Manifest> {
        let found = match self.last_number().await? {
            Some(number) => self.find(number).await?,
            None => None,
        };
        match found {
            Some(other) if other.topic != self.topic => exec_err!(
                "the pipeline '{}' has written to {} from the topic '{}', and is to go on from '{}': SET stream.name = '…' \
                 makes it another pipeline, which begins anew",
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

    /// Whether a manifest names the file that a run began when `number` was to be its next one.
    ///
    /// It is named by the run's next manifest, if there is one. That is found in few steps: first among the manifests right
    /// after, as it is for all files but those that a run left when it ended, and then by halves. Where manifests are missing
    /// nothing is known of the file, and it is taken for one that counts.
    ///
    /// # Errors
    /// See [`Chain::last`].
    pub(crate) async fn has_committed(&self, last: &Manifest, run: &Run, number: u64) -> Result<bool> {
        let begun = self.find(number.saturating_sub(1)).await?;
        if begun.is_none_or(|begun| begun.last_of(run) != Some(begun.number)) {
            return Ok(true);
        }
        // the run may commit at `low`, and has not; at `high` another run is in its place, or there is no manifest
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

    /// Whether a run may still commit.
    ///
    /// # Errors
    /// See [`Chain::last`].
    pub(crate) async fn is_held_by(&self, run: &Run) -> Result<bool> {
        Ok(self.last().await?.last_of(run).is_some())
    }

    /// Takes the place of an earlier run of an instance, which can commit nothing from then on.
    ///
    /// # Errors
    /// See [`Chain::last`].
    pub(crate) async fn enter(&self, run: &Run) -> Result<Manifest, Failure> {
        self.append(self.last().await?, |last| Ok(last.next(run))).await
    }

    /// Makes files count, and moves partitions on; tells the manifest that says so.
    ///
    /// # Errors
    /// A passing one if the partitions are no longer where they were taken from; a last one if another run has taken the
    /// place of this one.
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
                    "partition {partition} was taken from {} and is at {}: another instance has written it",
                    shown(span.from),
                    shown(at(partition))
                )));
            }
            let mut offsets = last.offsets.clone();
            offsets.extend(spans.iter().map(|(partition, span)| (*partition, span.to)));
            Ok(Manifest { files: files.to_vec(), offsets, ..last.next(run) })
        };
        self.append(last.clone(), commit).await
    }

    /// Writes the manifest after the last one; where another instance was first, the one after that.
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
                // others may have written since
                Err(_) => {
                    (last, is_newest) = (self.last().await?, true);
                    continue;
                }
            };
            if self.put(&manifest).await? {
                return Ok(manifest);
            }
            // it was written, and the answer was lost on its way
            if self.find(manifest.number).await?.as_ref() == Some(&manifest) {
                return Ok(manifest);
            }
            (last, is_newest) = (self.last().await?, true);
        }
    }

    /// Writes a manifest, unless there is one of that number.
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

/// The sub-folder and the name of a manifest.
fn place(number: u64) -> [String; 2] {
    let digits = format!("{number:0width$}", width = DIGITS_OF_FOLDER + DIGITS);
    [digits[..DIGITS_OF_FOLDER].to_owned(), format!("{digits}{EXTENSION}")]
}

/// Writes a manifest so that it is whole, and stays, if the machine loses power: the store for local files does not see to
/// that.
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

/// Waits until a file, or what stands in a folder, would outlast a loss of power.
pub(super) fn sync(path: &std::path::Path) -> Result<()> {
    Ok(std::fs::File::open(path)?.sync_all()?)
}

fn shown(offset: Option<i64>) -> String {
    offset.map_or_else(|| "its beginning".to_owned(), |offset| format!("offset {offset}"))
}

pub(super) fn object_store_error(error: object_store::Error) -> DataFusionError {
    DataFusionError::ObjectStore(Box::new(error))
}
