//! Files that get their name once they are whole.

use std::io;
use std::path::Path;

use tempfile::NamedTempFile;

/// A file in a folder that all may read, as any new file; it is removed when it is dropped and has not got a name.
///
/// # Errors
/// If it cannot be made.
pub fn temporary_file(folder: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
    builder.tempfile_in(folder)
}
