//! Local files, with Parquet files mapped into memory.

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

/// Ranges with at most this many bytes between them are mapped together.
const GAP: u64 = 16 * 1024;

/// With more ranges than this, a file is read instead: the kernel limits the mappings of a process.
const MAX_RANGES: usize = 1024;

/// The local file system, with ranges of Parquet files mapped instead of copied.
///
/// In a query that mostly reads, the copy and its memory took a fifth of the time. If another program truncates a file
/// while it is mapped, the process ends; see [`explain_bus_errors`].
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
    // read: COPY and stores write new files and rename them. Users must keep other programs from writing to the files, as
    // the documentation says, or use `--read-files`.
    let mapped = unsafe { MmapOptions::new().offset(range.start).len(length).populate().map(&file)? };
    Ok(Bytes::from_owner(mapped))
}

/// Prints an error when a query reads a page that a truncated file no longer has. The kernel then raises SIGBUS.
#[cfg(target_os = "linux")]
fn explain_bus_errors() {
    use std::sync::Once;
    use std::sync::atomic::{AtomicBool, Ordering};

    const TEXT: &str = "error: a local file was truncated, or its disk failed, while a query read it; the output of the query \
                        is incomplete. Run the query again, with --read-files if other programs write to the file\n";
    static INSTALL: Once = Once::new();
    static REPORTED: AtomicBool = AtomicBool::new(false);

    extern "C" fn explain(_: libc::c_int) {
        if REPORTED.swap(true, Ordering::Relaxed) {
            // another thread reports it, and ends the process
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
            tracing::warn!("the handler of bus errors could not be installed: {}", io::Error::last_os_error());
        }
    });
}

/// On other systems, a stack overflow raises SIGBUS as well.
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
                // reading either works or gives a better error
                tracing::debug!("could not map {location}, so it is read: {e}");
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
