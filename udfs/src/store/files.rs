//! Files and object stores by path or URL.

use std::path::{Component, Path as FilePath, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use datafusion::common::exec_err;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::runtime_env::RuntimeEnv;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, ObjectStoreScheme, PutMode, PutOptions};
use url::Url;

use super::external;
use crate::blocking::offload;
use crate::explain::explain;
use crate::model::Limits;

/// The object store of a directory, file or URL, and the path in it.
///
/// # Errors
/// An error if this build does not support the scheme of the URL.
pub fn open(location: &str) -> Result<(Arc<dyn ObjectStore>, Path)> {
    let not_opened = |e: object_store::Error| {
        DataFusionError::ObjectStore(Box::new(e)).context(format!("'{location}' cannot be opened"))
    };
    match Url::parse(location) {
        Ok(url) if local_path(location).is_none() => {
            let environment = std::env::vars().map(|(key, value)| (key.to_ascii_lowercase(), value));
            let (store, path) = object_store::parse_url_opts(&url, environment).map_err(not_opened)?;
            Ok((Arc::from(store), path))
        }
        _ => local(&local_path(location).unwrap_or_else(|| PathBuf::from(location))),
    }
}

/// The path of a local file; none for the URL of an object store.
pub(super) fn local_path(location: &str) -> Option<PathBuf> {
    match Url::parse(location) {
        // a scheme of one letter is a drive of Windows
        Ok(url) if url.scheme().len() > 1 => (url.scheme() == "file").then(|| url.to_file_path().ok()).flatten(),
        _ => Some(PathBuf::from(location)),
    }
}

fn local(path: &FilePath) -> Result<(Arc<dyn ObjectStore>, Path)> {
    let absolute = absolute(path)?;
    let path = Path::from_absolute_path(&absolute).map_err(|e| {
        DataFusionError::External(Box::new(e)).context(format!("'{}' is not a path", absolute.display()))
    })?;
    Ok((Arc::new(LocalFileSystem::new()), path))
}

/// The absolute path of a file, without `..`.
pub(super) fn absolute(path: &FilePath) -> Result<PathBuf> {
    Ok(without_parents(&std::path::absolute(path)?))
}

/// An absolute path without `..`: each removes the part before it, also if that part is a link. DataFusion reads the
/// paths of `FROM` and `COPY` in the same way.
fn without_parents(path: &FilePath) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => drop(plain.pop()),
            other => plain.push(other),
        }
    }
    plain
}

/// The object store of a file and the path in it: a store that the session has for the URL, or else [`open`].
fn open_in(runtime: &RuntimeEnv, location: &str) -> Result<(Arc<dyn ObjectStore>, Path)> {
    if let Ok(url) = Url::parse(location)
        && url.scheme().len() > 1
        && url.scheme() != "file"
        && let Ok(store) = runtime.object_store_registry.get_store(&url)
    {
        let path = match ObjectStoreScheme::parse(&url) {
            Ok((_, path)) => path,
            // a scheme of the application
            Err(_) => Path::from_url_path(url.path()).map_err(|e| DataFusionError::External(Box::new(e)))?,
        };
        return Ok((store, path));
    }
    open(location)
}

/// The bytes of a model file at a path or URL, with the tensors that lie in files beside it.
///
/// # Errors
/// A planning error if the file is larger than allowed, or its tensors lie elsewhere. An execution error if a file cannot
/// be read.
pub(crate) async fn read(runtime: &RuntimeEnv, location: &str, limits: &Limits) -> Result<Bytes> {
    let failed = |e: object_store::Error| {
        DataFusionError::ObjectStore(Box::new(e)).context(format!("could not read the model file '{location}'"))
    };
    let (store, path) = open_in(runtime, location)?;
    let meta = store.head(&path).await.map_err(failed)?;
    limits.check_size(&format!("'{location}'"), meta.size)?;
    let bytes = store.get(&path).await.map_err(failed)?.bytes().await.map_err(failed)?;
    let joined = match local_path(location) {
        Some(path) => {
            let limits = *limits;
            offload(move || external::join_local(&path, bytes, &limits)).await
        }
        None => external::join_remote(store.as_ref(), &path, bytes, limits).await,
    };
    joined.map_err(|e| explain(format!("'{location}'"), e))
}

/// Writes a new file at a path or URL, completely or not at all.
///
/// # Errors
/// An execution error if the file exists or cannot be written.
pub(crate) async fn write_new(runtime: &RuntimeEnv, location: &str, bytes: Bytes) -> Result<()> {
    let (store, path) = open_in(runtime, location)?;
    let options = PutOptions { mode: PutMode::Create, ..Default::default() };
    match store.put_opts(&path, bytes.into(), options).await {
        Ok(_) => Ok(()),
        Err(object_store::Error::AlreadyExists { .. }) => {
            exec_err!("'{location}' exists already and is not overwritten; choose another name or remove it first")
        }
        Err(e) => Err(DataFusionError::ObjectStore(Box::new(e)).context(format!("could not write '{location}'"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_removed_before_links_are_followed() {
        for (path, expected) in [
            ("/a/b/../c.onnx", "/a/c.onnx"),
            ("/a/b/c/../../d", "/a/d"),
            ("/a/./b", "/a/b"),
            ("/../../a", "/a"),
            ("/a/..", "/"),
            ("/a/...", "/a/..."),
        ] {
            assert_eq!(without_parents(FilePath::new(path)), FilePath::new(expected), "{path}");
        }
    }
}
