//! Models in a directory: durable files, and no folders without models.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path as FilePath, PathBuf};

use datafusion::common::exec_err;
use datafusion::error::{DataFusionError, Result};
use object_store::local::LocalFileSystem;
use object_store::path::Path;

use super::FILE;
use crate::temporary::temporary_file;

/// Tries to write a file whose folder `DROP MODEL` removes at the same time.
const MAX_TRIES: usize = 100;

/// Folders above a file that belong to the store: version, name, store.
const FOLDERS: usize = 3;

/// Writes a file that is complete and durable after a power failure. Returns `false` if it exists.
///
/// # Errors
/// An execution error if something that is not a file has the path, or the file cannot be written.
pub(super) fn create(path: &Path, bytes: &[u8]) -> Result<bool> {
    let file = place(path)?;
    let failed =
        |error: io::Error| DataFusionError::IoError(error).context(format!("could not write '{}'", file.display()));
    let mut tries = 0;
    let created = loop {
        tries += 1;
        match write(&file, bytes) {
            // `DROP MODEL` removed the folder, or the unfinished file in it
            Err(error) if error.kind() == ErrorKind::NotFound && tries < MAX_TRIES => {}
            written => break written.map_err(failed)?,
        }
    };
    if !created && fs::symlink_metadata(&file).is_ok() && !file.is_file() {
        return exec_err!("'{}' is not a file and is in the way of a new file; remove it", file.display());
    }
    Ok(created)
}

fn place(path: &Path) -> Result<PathBuf> {
    LocalFileSystem::new().path_to_filesystem(path).map_err(|e| DataFusionError::ObjectStore(Box::new(e)))
}

fn write(file: &FilePath, bytes: &[u8]) -> io::Result<bool> {
    let folders: Vec<&FilePath> = file.ancestors().skip(1).collect();
    let [folder, ..] = folders.as_slice() else { return Err(ErrorKind::InvalidInput.into()) };
    let n_new = folders.iter().take_while(|folder| !folder.exists()).count();
    fs::create_dir_all(folder)?;
    let mut temporary = temporary_file(folder)?;
    temporary.write_all(bytes)?;
    temporary.as_file().sync_all()?;
    match temporary.persist_noclobber(file) {
        Ok(_) => {}
        Err(error) if error.error.kind() == ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => return Err(error.error),
    }
    // a new folder is an entry of the folder above
    folders.iter().take(FOLDERS.max(n_new + 1)).try_for_each(|folder| sync(folder))?;
    Ok(true)
}

/// Waits until the entries of a folder are durable.
fn sync(folder: &FilePath) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

/// Removes the folders of a name that hold no model, with what an interrupted publication left in them.
///
/// A publication that is running in another process writes its file again.
pub(super) fn sweep(folder: &Path) -> Result<()> {
    let folder = place(folder)?;
    for version in fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if fs::symlink_metadata(version.join(FILE)).is_ok() {
            continue;
        }
        for file in fs::read_dir(&version).into_iter().flatten().flatten() {
            if is_unfinished(&file.file_name().to_string_lossy()) {
                // another process may have removed it, and a folder that is not empty stays
                drop(fs::remove_file(file.path()));
            }
        }
        drop(fs::remove_dir(version));
    }
    drop(fs::remove_dir(folder));
    Ok(())
}

/// Whether a file has a name of files that are being written, by this crate or by `object_store`.
fn is_unfinished(name: &str) -> bool {
    name.starts_with(".tmp") || name.strip_prefix(FILE).is_some_and(|rest| rest.starts_with('#'))
}
