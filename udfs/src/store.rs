//! The store of models: `<store>/<name>/<version>/model.onnx` in a directory or an object store.

mod directory;
mod external;
mod files;
mod publish;

use std::borrow::Cow;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use datafusion::common::{exec_datafusion_err, plan_datafusion_err, plan_err};
use datafusion::error::{DataFusionError, Result};
use futures::TryStreamExt;
use memmap2::MmapMut;
use object_store::memory::InMemory;
use object_store::path::{Path, PathPart};
use object_store::{GetResultPayload, ObjectMeta, ObjectStore, ObjectStoreExt};
use url::Url;

use crate::blocking::offload;
use aefusion_model::Limits;
pub use aefusion_model::name::{ModelName, ModelRef};
pub(crate) use external::read_local;
pub use files::open;
pub(crate) use files::{read, write_new};

const FILE: &str = "model.onnx";

/// Longest name of a folder, bytes. Letters beyond ASCII are percent-encoded, so each of their bytes takes three.
const MAX_FOLDER: usize = 255;

/// One stored file.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) name: ModelName,
    pub(crate) version: u64,
    pub(crate) meta: ObjectMeta,
}

/// Condition for a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Publish {
    /// The name must be new.
    New,
    /// The model becomes the next version.
    NextVersion,
    /// The model becomes the next version if this version is the newest: it was made from this version.
    After(u64),
}

impl Publish {
    fn allows(self, newest: u64) -> bool {
        match self {
            Self::New => newest == 0,
            Self::NextVersion => true,
            Self::After(version) => newest == version,
        }
    }

    /// The error of a publication that this condition does not allow.
    pub(crate) fn refusal(self, name: &ModelName, newest: u64) -> DataFusionError {
        match self {
            Self::New | Self::NextVersion => plan_datafusion_err!(
                "model {name} exists already (version {newest}); CREATE OR REPLACE MODEL {name} … publishes the next \
                 version"
            ),
            Self::After(version) => exec_datafusion_err!(
                "the newest version of model {name} is now {newest}, but this statement started from version \
                 {version}; nothing was published, run the statement again"
            ),
        }
    }
}

/// Result of a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The file is this version.
    Published(u64),
    /// The condition does not hold. Nothing was published.
    Refused {
        /// The newest version; 0 if there is none.
        newest: u64,
    },
}

/// Names and versions of models in a directory or an object store.
#[derive(Debug, Clone)]
pub struct ModelStore {
    store: Arc<dyn ObjectStore>,
    root: Path,
    location: String,
    place: Place,
}

/// The kind of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Memory,
    /// A directory. Its files are written with the calls of the file system, because `object_store` does not make them
    /// durable.
    Directory,
    /// A store in which a look-up may need a network round trip.
    Remote,
}

impl ModelStore {
    /// A store in memory, which ends with the process.
    pub fn in_memory() -> Self {
        Self {
            store: Arc::new(InMemory::new()),
            root: Path::default(),
            location: "memory:///".to_owned(),
            place: Place::Memory,
        }
    }

    /// A store under a prefix of any object store, for an application with its own credentials, retries or tests.
    ///
    /// The newest version of a name is cached for a second. Publications need [`PutMode::Create`](object_store::PutMode::Create). For a directory,
    /// [`ModelStore::open`] also makes files durable.
    pub fn new(store: Arc<dyn ObjectStore>, prefix: impl Into<Path>) -> Self {
        let root = prefix.into();
        let location = format!("{store}/{root}");
        Self { store, root, location, place: Place::Remote }
    }

    /// The store at a directory or a URL (`file`, `memory`, `s3`, `gs`, `az`, `http` …). This reads nothing yet.
    ///
    /// Credentials and regions of object stores come from the environment (`AWS_ACCESS_KEY_ID` …).
    ///
    /// # Errors
    /// An error if this build does not support the scheme of the URL.
    pub fn open(location: &str) -> Result<Self> {
        let (store, root) = open(location)?;
        let place = match Url::parse(location) {
            Ok(url) if url.scheme() == "memory" => Place::Memory,
            // a scheme of one letter is a drive of Windows
            Ok(url) if url.scheme() != "file" && url.scheme().len() > 1 => Place::Remote,
            _ => Place::Directory,
        };
        Ok(Self { store, root, location: location.to_owned(), place })
    }

    /// The directory or URL.
    pub fn location(&self) -> &str {
        &self.location
    }

    /// Whether a look-up needs a network round trip.
    pub(crate) fn is_remote(&self) -> bool {
        self.place == Place::Remote
    }

    /// Checks that the store can hold a model of this name.
    ///
    /// # Errors
    /// A planning error if its folder would have too long a name.
    pub(crate) fn check_name(&self, name: &ModelName) -> Result<()> {
        let length = PathPart::from(name.as_str()).as_ref().len();
        if self.place == Place::Directory && length > MAX_FOLDER {
            return plan_err!(
                "the model store {} cannot hold '{name}': its folder would have a name of {length} bytes, at most \
                 {MAX_FOLDER} are allowed; choose a shorter name, or one of letters from a to z, which take the least",
                self.location
            );
        }
        Ok(())
    }

    fn path(&self, name: &ModelName, version: u64) -> Path {
        self.root.clone().join(name.as_str()).join(version.to_string()).join(FILE)
    }

    /// All stored files, sorted by name and version.
    pub(crate) async fn list(&self) -> Result<Vec<Stored>> {
        self.list_under(&self.root).await
    }

    /// The versions of one model, oldest first.
    pub(crate) async fn versions(&self, name: &ModelName) -> Result<Vec<Stored>> {
        self.list_under(&self.root.clone().join(name.as_str())).await
    }

    async fn list_under(&self, prefix: &Path) -> Result<Vec<Stored>> {
        let objects: Vec<ObjectMeta> = match self.store.list(Some(prefix)).try_collect().await {
            Err(object_store::Error::NotFound { .. }) => Vec::new(),
            listed => listed.map_err(|e| self.failed("list", e))?,
        };
        let mut stored: Vec<Stored> = objects.into_iter().filter_map(|meta| self.stored(meta)).collect();
        stored.sort_by(|a, b| (&a.name, a.version).cmp(&(&b.name, b.version)));
        Ok(stored)
    }

    /// The model at `<root>/<name>/<version>/model.onnx`; none for any other path.
    fn stored(&self, meta: ObjectMeta) -> Option<Stored> {
        let mut parts = meta.location.prefix_match(&self.root)?;
        let name = ModelName::new(&decoded(parts.next()?.as_ref())?).ok()?;
        let version = parts.next()?.as_ref().parse().ok()?;
        let is_file = parts.next()?.as_ref() == FILE && parts.next().is_none();
        drop(parts);
        is_file.then_some(Stored { name, version, meta })
    }

    pub(crate) async fn get(&self, stored: &Stored, limits: &Limits) -> Result<Bytes> {
        limits.check_size(&format!("'{}'", stored.meta.location), stored.meta.size)?;
        let mut result = self.store.get(&stored.meta.location).await.map_err(|e| self.failed("read from", e))?;
        if let GetResultPayload::File(file, _) = &mut result.payload {
            let (mut file, range) = (file.try_clone()?, result.range.clone());
            return offload(move || Ok(read_range(&mut file, range)?)).await;
        }
        result.bytes().await.map_err(|e| self.failed("read from", e))
    }

    fn failed(&self, what: &str, error: object_store::Error) -> DataFusionError {
        DataFusionError::ObjectStore(Box::new(error))
            .context(format!("could not {what} the model store {}", self.location))
    }
}

/// Reads into memory that the system takes back at once when it is freed. A model needs the memory of its file only while
/// it is loaded. The allocator of the program would keep it for a while.
fn read_range(file: &mut File, range: Range<u64>) -> std::io::Result<Bytes> {
    let size = usize::try_from(range.end - range.start).map_err(std::io::Error::other)?;
    if size == 0 {
        return Ok(Bytes::new());
    }
    file.seek(SeekFrom::Start(range.start))?;
    let mut memory = MmapMut::map_anon(size)?;
    file.read_exact(&mut memory)?;
    Ok(Bytes::from_owner(memory.make_read_only()?))
}

/// A part of a path as it was before `object_store` encoded its letters beyond ASCII.
fn decoded(part: &str) -> Option<Cow<'_, str>> {
    url::form_urlencoded::parse(part.as_bytes()).next().map(|(part, _)| part)
}

/// The default location of a store: the directory `models` in the working directory.
pub fn default_location() -> PathBuf {
    PathBuf::from("models")
}
