//! The manifests of a folder: which files of a pipeline count, and what they were made of.
//!
//! Manifests are numbered, and each is written once, by whoever is first (put-if-absent). Each says where every partition
//! of the topic is with its files and all those before: a commit moves some partitions on from where the last manifest
//! has them, and is refused if it has them elsewhere. So each record is in one file that counts, whatever the number of
//! instances that write.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use datafusion::error::{DataFusionError, Result};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use serde::{Deserialize, Serialize};

use crate::stream::failure::{Failure, TAKEN};
use crate::stream::kafka::{Span, StartOffsets};

/// The folder of manifests; no program reads what stands in a folder that begins with an underscore as rows.
const FOLDER: &str = "_aefusion";
const EXTENSION: &str = ".manifest";
/// Manifests that are read at the same time.
const AT_ONCE: usize = 32;

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
    /// By instance: the run that may commit.
    pub(crate) instances: BTreeMap<String, String>,
    /// The files that count from now on, beside those of the manifests before.
    pub(crate) files: Vec<FileEntry>,
    /// By partition: the first offset that is in no file.
    pub(crate) offsets: BTreeMap<i32, i64>,
}

impl Manifest {
    /// The next one, of no files.
    fn next(&self) -> Self {
        Self { number: self.number + 1, files: Vec::new(), ..self.clone() }
    }
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
    pipeline: String,
}

impl Chain {
    pub(crate) fn new(store: Arc<dyn ObjectStore>, folder: &Path, pipeline: &str) -> Self {
        let folder = folder.clone().join(FOLDER).join(pipeline);
        Self { store, folder, pipeline: pipeline.to_owned() }
    }

    fn path(&self, number: u64) -> Path {
        self.folder.clone().join(format!("{number:020}{EXTENSION}"))
    }

    /// The numbers that there are.
    async fn numbers(&self) -> Result<BTreeSet<u64>> {
        let number = |path: &Path| path.filename()?.strip_suffix(EXTENSION)?.parse::<u64>().ok();
        let listed = self.store.list(Some(&self.folder));
        let numbers = listed.try_filter_map(|found| std::future::ready(Ok(number(&found.location))));
        numbers.try_collect().await.map_err(object_store_error)
    }

    async fn read(&self, number: u64) -> Result<Manifest> {
        let path = self.path(number);
        let bytes =
            self.store.get(&path).await.map_err(object_store_error)?.bytes().await.map_err(object_store_error)?;
        serde_json::from_slice(&bytes)
            .map_err(|e| DataFusionError::Execution(format!("the manifest {path} cannot be read: {e}")))
    }

    /// The last one; that of a pipeline that has none says nothing, and has number 0.
    ///
    /// # Errors
    /// If the store fails, or a manifest is damaged.
    pub(crate) async fn last(&self) -> Result<Manifest> {
        match self.numbers().await?.last() {
            Some(number) => self.read(*number).await,
            None => Ok(Manifest { pipeline: self.pipeline.clone(), ..Manifest::default() }),
        }
    }

    /// The names of all files that count.
    ///
    /// # Errors
    /// See [`Chain::last`].
    pub(crate) async fn files(&self) -> Result<BTreeSet<String>> {
        let manifests = futures::stream::iter(self.numbers().await?);
        let manifests = manifests.map(|number| self.read(number)).buffer_unordered(AT_ONCE);
        let names = |manifest: Manifest| {
            let names = manifest.files.into_iter().map(|file| Ok::<_, DataFusionError>(file.name));
            futures::stream::iter(names.collect::<Vec<_>>())
        };
        manifests.map_ok(names).try_flatten().try_collect().await
    }

    /// Takes the place of an earlier run of an instance, which can commit nothing from then on.
    ///
    /// # Errors
    /// See [`Chain::last`].
    pub(crate) async fn enter(&self, run: &Run) -> Result<Manifest, Failure> {
        let enter = |last: &Manifest| {
            let mut instances = last.instances.clone();
            instances.insert(run.instance.clone(), run.id.clone());
            Ok(Manifest { instances, ..last.next() })
        };
        self.append(self.last().await?, enter).await
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
            if last.instances.get(&run.instance) != Some(&run.id) {
                return Err(Failure::last(format!("committing files: {TAKEN}")));
            }
            let at = |partition: &i32| last.offsets.get(partition).copied();
            if let Some((partition, span)) = spans.iter().find(|(partition, span)| at(partition) != span.from) {
                return Err(Failure::passing(format!(
                    "partition {partition} was taken from {} and is at {}: another instance has written it",
                    shown(span.from),
                    shown(at(partition))
                )));
            }
            let mut offsets = last.offsets.clone();
            offsets.extend(spans.iter().map(|(partition, span)| (*partition, span.to)));
            Ok(Manifest { files: files.to_vec(), offsets, ..last.next() })
        };
        self.append(last.clone(), commit).await
    }

    /// Writes the manifest after the last one; where another instance was first, the one after that.
    async fn append(
        &self,
        mut last: Manifest,
        next: impl Fn(&Manifest) -> Result<Manifest, Failure>,
    ) -> Result<Manifest, Failure> {
        loop {
            let next = next(&last)?;
            let text = serde_json::to_vec_pretty(&next).map_err(|e| DataFusionError::External(Box::new(e)))?;
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            match self.store.put_opts(&self.path(next.number), text.into(), options).await {
                Ok(_) => return Ok(next),
                Err(object_store::Error::AlreadyExists { .. }) => last = self.read(next.number).await?,
                Err(error) => return Err(object_store_error(error).into()),
            }
        }
    }
}

impl StartOffsets for Chain {
    fn read(&self) -> Result<BTreeMap<i32, i64>> {
        let runtime = tokio::runtime::Handle::current();
        Ok(runtime.block_on(self.last())?.offsets)
    }
}

fn shown(offset: Option<i64>) -> String {
    offset.map_or_else(|| "its beginning".to_owned(), |offset| format!("offset {offset}"))
}

pub(super) fn object_store_error(error: object_store::Error) -> DataFusionError {
    DataFusionError::ObjectStore(Box::new(error))
}
