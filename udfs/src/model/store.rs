//! The store of models: `<store>/<name>/<version>/model.onnx` in a directory or an object store.

use std::fmt;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use datafusion::common::{exec_err, plan_err};
use datafusion::error::{DataFusionError, Result};
use futures::TryStreamExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, local::LocalFileSystem};
use url::Url;

use super::Limits;

const FILE: &str = "model.onnx";

/// Name of a model: letters, digits, `_` and `-`; the first is a letter or `_`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelName(String);

impl ModelName {
    /// A name that is valid in a path and in `name@version`.
    ///
    /// # Errors
    /// A planning error if it is not.
    pub fn new(name: &str) -> Result<Self> {
        let mut characters = name.chars();
        let first = characters.next().is_some_and(|c| c.is_alphabetic() || c == '_');
        if !first || name.len() > 128 || !characters.all(|c| c.is_alphanumeric() || c == '_' || c == '-') {
            return plan_err!(
                "'{name}' cannot name a model: a name has up to 128 letters, digits, _ and -, and begins with a letter \
                 or _"
            );
        }
        Ok(Self(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `fraud`, the newest version, or `fraud@3`, version 3.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ModelRef {
    /// The name.
    pub name: ModelName,
    /// The version; none for the newest.
    pub version: Option<u64>,
}

impl ModelRef {
    /// Reads `name` or `name@version`.
    ///
    /// # Errors
    /// A planning error if the text is neither.
    pub fn parse(text: &str) -> Result<Self> {
        let Some((name, version)) = text.split_once('@') else {
            return Ok(Self { name: ModelName::new(text)?, version: None });
        };
        match version.parse() {
            Ok(version) if version > 0 => Ok(Self { name: ModelName::new(name)?, version: Some(version) }),
            _ => plan_err!("'{text}' names no model: the version after @ must be a whole number from 1 up"),
        }
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            Some(version) => write!(f, "{}@{version}", self.name),
            None => write!(f, "{}", self.name),
        }
    }
}

/// One stored file.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) name: ModelName,
    pub(crate) version: u64,
    pub(crate) meta: ObjectMeta,
}

/// Whether a published model may have a name that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Publish {
    /// The name must be new.
    New,
    /// The model becomes the next version.
    NextVersion,
}

/// Names and versions of models in a directory or an object store.
#[derive(Debug, Clone)]
pub struct ModelStore {
    store: Arc<dyn ObjectStore>,
    root: Path,
    location: String,
    is_remote: bool,
}

impl ModelStore {
    /// A store in memory, which ends with the process.
    pub fn in_memory() -> Self {
        Self {
            store: Arc::new(InMemory::new()),
            root: Path::default(),
            location: "memory:///".to_owned(),
            is_remote: false,
        }
    }

    /// The store at a directory or a URL (`file`, `memory`, `s3`, `gs`, `az`, `http` …). This reads nothing yet.
    ///
    /// Credentials and regions of object stores come from the environment (`AWS_ACCESS_KEY_ID` …).
    ///
    /// # Errors
    /// An error if this build does not support the scheme of the URL.
    pub fn open(location: &str) -> Result<Self> {
        let (store, root) = open(location)?;
        let is_remote = Url::parse(location).is_ok_and(|url| !["file", "memory"].contains(&url.scheme()));
        Ok(Self { store, root, location: location.to_owned(), is_remote })
    }

    /// The directory or URL.
    pub fn location(&self) -> &str {
        &self.location
    }

    /// Whether a look-up needs a network round trip.
    pub(crate) fn is_remote(&self) -> bool {
        self.is_remote
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
        let name = ModelName::new(parts.next()?.as_ref()).ok()?;
        let version = parts.next()?.as_ref().parse().ok()?;
        let is_file = parts.next()?.as_ref() == FILE && parts.next().is_none();
        drop(parts);
        is_file.then_some(Stored { name, version, meta })
    }

    pub(crate) async fn get(&self, stored: &Stored, limits: &Limits) -> Result<Bytes> {
        check_size(stored.meta.location.as_ref(), stored.meta.size, limits)?;
        let result = self.store.get(&stored.meta.location).await.map_err(|e| self.failed("read from", e))?;
        result.bytes().await.map_err(|e| self.failed("read from", e))
    }

    /// Writes a file as the next version, completely or not at all, and returns the version.
    ///
    /// # Errors
    /// A planning error if the name must be new and is not; an execution error if the store cannot be written.
    pub async fn publish(&self, name: &ModelName, bytes: Bytes, mode: Publish) -> Result<u64> {
        loop {
            let newest = self.versions(name).await?.last().map_or(0, |stored| stored.version);
            if mode == Publish::New && newest > 0 {
                return plan_err!(
                    "model {name} exists already (version {newest}); CREATE OR REPLACE MODEL {name} … publishes the \
                     next version"
                );
            }
            let options = PutOptions { mode: PutMode::Create, ..Default::default() };
            match self.store.put_opts(&self.path(name, newest + 1), bytes.clone().into(), options).await {
                Ok(_) => return Ok(newest + 1),
                // another process published at the same time: list the versions again
                Err(object_store::Error::AlreadyExists { .. }) => {}
                Err(e) => return Err(self.failed("write to", e)),
            }
        }
    }

    /// Removes one version, or all versions, oldest first, and returns their number.
    pub(crate) async fn remove(&self, model: &ModelRef) -> Result<usize> {
        let versions = self.versions(&model.name).await?;
        let removed: Vec<_> = versions
            .into_iter()
            .filter(|stored| model.version.is_none_or(|version| version == stored.version))
            .collect();
        for stored in &removed {
            self.store.delete(&stored.meta.location).await.map_err(|e| self.failed("delete from", e))?;
        }
        Ok(removed.len())
    }

    fn failed(&self, what: &str, error: object_store::Error) -> DataFusionError {
        DataFusionError::ObjectStore(Box::new(error))
            .context(format!("could not {what} the model store {}", self.location))
    }
}

/// The object store of a directory, file or URL, and the path in it.
///
/// # Errors
/// An error if this build does not support the scheme of the URL.
pub fn open(location: &str) -> Result<(Arc<dyn ObjectStore>, Path)> {
    let not_opened = |e: object_store::Error| {
        DataFusionError::ObjectStore(Box::new(e)).context(format!("'{location}' cannot be opened"))
    };
    // a scheme of one letter is a drive of Windows
    match Url::parse(location) {
        Ok(url) if url.scheme().len() > 1 => {
            if url.scheme() == "file"
                && let Ok(path) = url.to_file_path()
            {
                return local(&path);
            }
            let environment = std::env::vars().map(|(key, value)| (key.to_ascii_lowercase(), value));
            let (store, path) = object_store::parse_url_opts(&url, environment).map_err(not_opened)?;
            Ok((Arc::from(store), path))
        }
        _ => local(FilePath::new(location)),
    }
}

fn local(path: &FilePath) -> Result<(Arc<dyn ObjectStore>, Path)> {
    let absolute = std::path::absolute(path)?;
    let path = Path::from_absolute_path(&absolute).map_err(|e| {
        DataFusionError::External(Box::new(e)).context(format!("'{}' is not a path", absolute.display()))
    })?;
    Ok((Arc::new(LocalFileSystem::new()), path))
}

fn check_size(name: &str, size: u64, limits: &Limits) -> Result<()> {
    if size > limits.bytes {
        return plan_err!(
            "'{name}' has {size} bytes, at most {} are allowed for a model (ae.max_model_bytes)",
            limits.bytes
        );
    }
    Ok(())
}

/// The bytes of a model file at a path or URL.
///
/// # Errors
/// A planning error if it is larger than allowed, an execution error if it cannot be read.
pub(crate) async fn read(location: &str, limits: &Limits) -> Result<Bytes> {
    let failed = |e: object_store::Error| {
        DataFusionError::ObjectStore(Box::new(e)).context(format!("could not read the model file '{location}'"))
    };
    let (store, path) = open(location)?;
    let meta = store.head(&path).await.map_err(failed)?;
    check_size(location, meta.size, limits)?;
    store.get(&path).await.map_err(failed)?.bytes().await.map_err(failed)
}

/// Writes a new file at a path or URL, completely or not at all.
///
/// # Errors
/// An execution error if the file exists or cannot be written.
pub(crate) async fn write_new(location: &str, bytes: Bytes) -> Result<()> {
    let (store, path) = open(location)?;
    let options = PutOptions { mode: PutMode::Create, ..Default::default() };
    match store.put_opts(&path, bytes.into(), options).await {
        Ok(_) => Ok(()),
        Err(object_store::Error::AlreadyExists { .. }) => {
            exec_err!("'{location}' exists already and is not overwritten; choose another name or remove it first")
        }
        Err(e) => Err(DataFusionError::ObjectStore(Box::new(e)).context(format!("could not write '{location}'"))),
    }
}

/// The default location of a store: the directory `models` in the working directory.
pub fn default_location() -> PathBuf {
    PathBuf::from("models")
}
