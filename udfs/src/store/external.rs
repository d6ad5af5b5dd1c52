//! Tensors of a model file that lie in files beside it, as `torch.onnx.export` writes them (`model.onnx.data`).
//!
//! A model file is untrusted. It can name files only in its own folder, and no link leads out of it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path as FilePath;

use bytes::Bytes;
use datafusion::common::plan_err;
use datafusion::error::{DataFusionError, Result};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use super::files::absolute;
use crate::blocking::offload;
use crate::model::Limits;
use crate::model::onnx::{ScatteredFile, check_length};

/// A local model file with all its tensors.
///
/// # Errors
/// A planning error if it is larger than allowed, or a tensor does not lie in its folder. An I/O error if a file cannot
/// be read.
pub(crate) fn read_local(path: &FilePath, limits: &Limits) -> Result<Bytes> {
    limits.check_size(&format!("'{}'", path.display()), std::fs::metadata(path)?.len())?;
    join_local(path, std::fs::read(path)?.into(), limits)
}

/// The bytes of a local model file with all its tensors.
pub(super) fn join_local(path: &FilePath, bytes: Bytes, limits: &Limits) -> Result<Bytes> {
    let Some(scattered) = ScatteredFile::read(&bytes, limits)? else { return Ok(bytes) };
    let path = absolute(path)?;
    let folder = path.parent().unwrap_or(&path);
    let read = |(file, needed)| Ok((String::from(file), read_beside(folder, file, needed)?));
    let files = scattered.files().map(read).collect::<Result<HashMap<_, _>>>()?;
    scattered.join(&files)
}

/// The first bytes of a file in a folder.
fn read_beside(folder: &FilePath, file: &str, needed: u64) -> Result<Bytes> {
    let failed = |e: io::Error| {
        let what = format!("could not read '{file}', in which the ONNX file stores tensors, in '{}'", folder.display());
        DataFusionError::IoError(e).context(what)
    };
    let place = folder.join(file).canonicalize().map_err(failed)?;
    if !place.starts_with(folder.canonicalize().map_err(failed)?) {
        return plan_err!(
            "'{file}', in which the ONNX file stores tensors, is a link out of its folder '{}'; put the file itself \
             there",
            folder.display()
        );
    }
    let metadata = std::fs::metadata(&place).map_err(failed)?;
    if !metadata.is_file() {
        return plan_err!("'{file}', in which the ONNX file stores tensors, is not a file");
    }
    check_length(file, metadata.len(), needed)?;
    let mut bytes = Vec::new();
    File::open(&place).map_err(failed)?.take(needed).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes.into())
}

/// The bytes of a model file in an object store with all its tensors.
pub(super) async fn join_remote(store: &dyn ObjectStore, path: &Path, bytes: Bytes, limits: &Limits) -> Result<Bytes> {
    let (file, limits) = (bytes.clone(), *limits);
    let Some(scattered) = offload(move || ScatteredFile::read(&file, &limits)).await? else { return Ok(bytes) };
    let mut files = HashMap::new();
    for (file, needed) in scattered.files() {
        let failed = |e: object_store::Error| {
            let what = format!("could not read '{file}', in which the ONNX file stores tensors");
            DataFusionError::ObjectStore(Box::new(e)).context(what)
        };
        let place = match path.as_ref().rsplit_once('/') {
            Some((folder, _)) => Path::parse(format!("{folder}/{file}")),
            None => Path::parse(file),
        };
        let place = place.map_err(|e| failed(e.into()))?;
        let size = store.head(&place).await.map_err(failed)?.size;
        check_length(file, size, needed)?;
        let data = match size == needed {
            // servers of plain files read no ranges
            true => store.get(&place).await.map_err(failed)?.bytes().await,
            false => store.get_range(&place, 0..needed).await,
        };
        files.insert(file.to_owned(), data.map_err(failed)?);
    }
    offload(move || scattered.join(&files)).await
}
