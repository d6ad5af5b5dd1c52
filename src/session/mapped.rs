//! Local files; Parquet is mapped into memory.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::PathBuf;

use async_trait::async_trait;
use bytes::Bytes;
use datafusion::common::runtime::SpawnedTask;
use futures::stream::BoxStream;
use memmap2::MmapOptions;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, RenameOptions, Result, coalesce_ranges,
};

/// Ranges that are no farther apart, in bytes, are mapped together.
const GAP: u64 = 16 * 1024;

/// More ranges than these are read: each mapping takes some of what the kernel allows a process.
const MAX_RANGES: usize = 1024;

/// The local file system. Ranges of Parquet files are mapped and not copied: the copy, and memory for it, were a fifth of
/// the time of a query that is mostly reading.
///
/// A file that another program cuts short while it is mapped ends the process; see [`explain_bus_errors`].
#[derive(Debug)]
pub(super) struct MappedFiles(LocalFileSystem);

impl MappedFiles {
    pub(super) fn new() -> Self {
        explain_bus_errors();
        Self(LocalFileSystem::new())
    }
}

/// Maps a range of a file.
fn map(path: PathBuf, range: Range<u64>) -> io::Result<Bytes> {
    let file = File::open(path)?;
    if file.metadata()?.len() < range.end {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let length = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
    // SAFETY: the bytes must not change while they are borrowed. Nothing in this process writes to files that queries
    // read: COPY and stores write new ones and rename them. That no other program does is up to the user, who is told so
    // and has `--read-files` otherwise.
    let mapped = unsafe { MmapOptions::new().offset(range.start).len(length).populate().map(&file)? };
    Ok(Bytes::from_owner(mapped))
}

/// Says what happened when a page is touched that a file no longer has: the kernel raises SIGBUS, which ends the process.
#[cfg(target_os = "linux")]
fn explain_bus_errors() {
    use std::sync::Once;
    use std::sync::atomic::{AtomicBool, Ordering};

    const TEXT: &str = "error: a local file was cut short, or its disk failed, while a query read it; what the query was \
                        writing is not finished. Run it again, with --read-files if the file is written in place\n";
    static INSTALL: Once = Once::new();
    static TOLD: AtomicBool = AtomicBool::new(false);

    extern "C" fn explain(_: libc::c_int) {
        if TOLD.swap(true, Ordering::Relaxed) {
            // another thread is at it
            loop {
                // SAFETY: async-signal-safe.
                unsafe { libc::pause() };
            }
        }
        // SAFETY: both calls are async-signal-safe, and the text is static.
        unsafe {
            libc::write(libc::STDERR_FILENO, TEXT.as_ptr().cast(), TEXT.len());
            libc::_exit(1);
        }
    }
    INSTALL.call_once(|| {
        // SAFETY: all zeros is a valid value: no flags, an empty mask. What the handler does is async-signal-safe.
        let failed = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = explain as extern "C" fn(libc::c_int) as libc::sighandler_t;
            action.sa_flags = libc::SA_ONSTACK;
            libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) != 0
        };
        if failed {
            log::warn!("a bus error will not be explained: {}", io::Error::last_os_error());
        }
    });
}

/// Elsewhere the stack's end raises SIGBUS too.
#[cfg(not(target_os = "linux"))]
fn explain_bus_errors() {}

#[async_trait]
impl ObjectStore for MappedFiles {
    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let is_parquet = location.extension() == Some("parquet");
        if !is_parquet || ranges.len() > MAX_RANGES || ranges.iter().any(|range| range.start > range.end) {
            return self.0.get_ranges(location, ranges).await;
        }
        let path = self.0.path_to_filesystem(location)?;
        let fetch = |range: Range<u64>| {
            let path = path.clone();
            async move { SpawnedTask::spawn_blocking(move || map(path, range)).join().await.map_err(io::Error::other)? }
        };
        match coalesce_ranges(ranges, fetch, GAP).await {
            Ok(bytes) => Ok(bytes),
            Err(e) => {
                // reads what cannot be mapped, or says what is wrong
                log::debug!("{location} is read, it could not be mapped: {e}");
                self.0.get_ranges(location, ranges).await
            }
        }
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.0.get_opts(location, options).await
    }

    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.0.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.0.put_multipart_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.0.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.0.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.0.rename_opts(from, to, options).await
    }
}

impl fmt::Display for MappedFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
