//! The files of one statement, before they have their names.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use datafusion::common::exec_err;
use datafusion::error::Result;
use futures::TryStreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions,
};

use super::local::Staging;
use super::remote::Held;
use super::{Mode, is_data};
use crate::session::files::is_hidden;
use crate::session::lake;

/// Where the rows go.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) path: Path,
    /// The path of the operating system, if it is on this machine.
    pub(super) local: Option<PathBuf>,
    /// The name in messages.
    pub(super) name: String,
    pub(super) is_file: bool,
    pub(super) is_partitioned: bool,
    pub(super) mode: Mode,
}

#[derive(Debug)]
enum Place {
    Local(Staging),
    Remote(Held),
}

/// The files of one statement. They are removed if it is dropped before [`Stage::commit`].
#[derive(Debug)]
pub(super) struct Stage {
    store: Arc<dyn ObjectStore>,
    target: Target,
    /// Files of the folder when the statement began.
    old: Vec<Path>,
    place: Place,
}

impl Stage {
    /// Prepares a place for the files.
    ///
    /// # Errors
    /// An execution error if the folder has files and the statement does not say what happens to them. The same if it cannot
    /// be read or written. A planning error if it is a table in another format.
    pub(super) async fn begin(store: Arc<dyn ObjectStore>, target: Target) -> Result<Arc<Self>> {
        let old = if target.is_file { Vec::new() } else { files_of(store.as_ref(), &target).await? };
        if let (Mode::New, Some(first)) = (target.mode, old.first()) {
            return exec_err!(
                "COPY: the folder '{}' has files already, such as {}; use OPTIONS ('overwrite' 'true') to replace them, \
                 or OPTIONS ('append' 'true') to keep them",
                target.name,
                first.filename().unwrap_or_default()
            );
        }
        let place = match target.local.clone() {
            None => Place::Remote(Held::default()),
            Some(path) => {
                let is_file = target.is_file;
                Place::Local(offload(move || Staging::create(&path, is_file)).await?)
            }
        };
        Ok(Arc::new(Self { store, target, old, place }))
    }

    /// Gives all files their names.
    ///
    /// # Errors
    /// An execution error if a file cannot be written; new files of a folder are removed again.
    pub(super) async fn commit(self: &Arc<Self>) -> Result<()> {
        match &self.place {
            Place::Remote(held) => {
                held.commit(self.store.as_ref(), self.target.is_file, |new| self.replaced(new)).await
            }
            Place::Local(_) => {
                let stage = Arc::clone(self);
                offload(move || match &stage.place {
                    Place::Local(staging) => staging.commit(|new| stage.replaced(new)),
                    Place::Remote(_) => Ok(()),
                })
                .await
            }
        }
    }

    /// Removes all files.
    pub(super) async fn abort(&self) {
        match &self.place {
            Place::Local(staging) => staging.remove(),
            Place::Remote(held) => held.abort().await,
        }
    }

    /// The old files that new ones replace.
    fn replaced(&self, new: &[Path]) -> Vec<Path> {
        let folder = |file: &Path| {
            let parts: Vec<_> = file.parts().collect();
            parts.split_last().map(|(_, folders)| Path::from_iter(folders.iter().cloned()))
        };
        let touched: Vec<_> = new.iter().map(folder).collect();
        let is_replaced = |file: &&Path| {
            let is_touched = !self.target.is_partitioned || touched.contains(&folder(file));
            self.target.mode == Mode::Overwrite && is_touched && !new.contains(file)
        };
        self.old.iter().filter(is_replaced).cloned().collect()
    }
}

/// Runs a function that waits for the disk.
async fn offload<T: Send + 'static>(f: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match datafusion::common::runtime::SpawnedTask::spawn_blocking(f).join().await {
        Ok(done) => done,
        Err(error) => exec_err!("writing files panicked: {error}"),
    }
}

/// The files with rows in a folder.
async fn files_of(store: &dyn ObjectStore, target: &Target) -> Result<Vec<Path>> {
    let mut found = Vec::new();
    let mut files = store.list(Some(&target.path));
    loop {
        let file = match files.try_next().await {
            Ok(Some(file)) => file.location,
            Ok(None) | Err(Error::NotFound { .. }) => return Ok(found),
            Err(error) => return Err(error.into()),
        };
        lake::check_write(&file, &target.path, &target.name)?;
        let below: Vec<_> = file.prefix_match(&target.path).into_iter().flatten().collect();
        let is_hidden = below.iter().any(|part| is_hidden(part.as_ref()));
        if !is_hidden && is_data(file.filename().unwrap_or_default()) {
            found.push(file);
        }
    }
}

/// An object store that stages what is written to it.
#[derive(Debug)]
pub(super) struct StagedStore {
    store: Arc<dyn ObjectStore>,
    stage: Arc<Stage>,
}

impl StagedStore {
    pub(super) fn new(store: Arc<dyn ObjectStore>, stage: Arc<Stage>) -> Self {
        Self { store, stage }
    }
}

impl fmt::Display for StagedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.store.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for StagedStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        match &self.stage.place {
            Place::Local(staging) => self.store.put_opts(&staging.place(location)?, payload, options).await,
            Place::Remote(held) => held.put(self.store.as_ref(), location, payload, options).await,
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        match &self.stage.place {
            Place::Local(staging) => self.store.put_multipart_opts(&staging.place(location)?, options).await,
            Place::Remote(held) => {
                let upload = self.store.put_multipart_opts(location, options).await?;
                Ok(held.hold(location, upload))
            }
        }
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.store.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> object_store::Result<Vec<Bytes>> {
        self.store.get_ranges(location, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.store.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.store.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.store.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> object_store::Result<()> {
        self.store.rename_opts(from, to, options).await
    }
}
