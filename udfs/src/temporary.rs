//! Files that get their name when they are complete.

use std::io;
use std::path::Path;

use tempfile::NamedTempFile;

/// A temporary file in a folder, readable by all like any new file. It is removed if it is dropped before it gets a
/// name.
///
/// # Errors
/// An error if the file cannot be created.
pub fn temporary_file(folder: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
    builder.tempfile_in(folder)
}
