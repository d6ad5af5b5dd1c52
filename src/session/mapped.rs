//! Local files, read into buffers that are used again.

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use datafusion::common::runtime::SpawnedTask;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, RenameOptions, Result,
};

/// Bytes of unused buffers that are kept.
const KEPT_BYTES: usize = 48 << 20;

/// The local file system; ranges of files, which is how Parquet is read, go into buffers that are used again. New ones
/// come from the kernel page by page, each cleared: that took a fifth of the time of a query over a Parquet file.
#[derive(Debug, Default)]
pub(super) struct LocalFiles {
    files: LocalFileSystem,
    buffers: Arc<Buffers>,
}

#[derive(Default)]
struct Buffers(Mutex<Vec<Vec<u8>>>);

impl fmt::Debug for Buffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffers").finish_non_exhaustive()
    }
}

impl Buffers {
    /// A buffer of at least `n` bytes, which hold anything.
    fn take(&self, n: usize) -> Vec<u8> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match kept.iter().position(|buffer| (n..=2 * n).contains(&buffer.len())) {
            Some(index) => kept.swap_remove(index),
            None => vec![0; n],
        }
    }

    fn give_back(&self, buffer: Vec<u8>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push(buffer);
        while kept.iter().map(Vec::len).sum::<usize>() > KEPT_BYTES {
            kept.remove(0);
        }
    }
}

/// A buffer that is in use as [`Bytes`].
struct Lent {
    buffer: Vec<u8>,
    /// Bytes that are in use.
    n: usize,
    buffers: Arc<Buffers>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.n]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.buffers.give_back(std::mem::take(&mut self.buffer));
    }
}

/// The ranges of a file; none if something is wrong with it.
fn read(path: &std::path::Path, ranges: &[Range<u64>], buffers: &Arc<Buffers>) -> Option<Vec<Bytes>> {
    let mut file = File::open(path).ok()?;
    let mut read = |range: &Range<u64>| {
        let n = usize::try_from(range.end.checked_sub(range.start)?).ok()?;
        let mut lent = Lent { buffer: buffers.take(n), n, buffers: Arc::clone(buffers) };
        file.seek(SeekFrom::Start(range.start)).ok()?;
        file.read_exact(&mut lent.buffer[..n]).ok()?;
        Some(Bytes::from_owner(lent))
    };
    ranges.iter().map(&mut read).collect()
}

#[async_trait]
impl ObjectStore for LocalFiles {
    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let path = self.files.path_to_filesystem(location)?;
        let (wanted, buffers) = (ranges.to_vec(), Arc::clone(&self.buffers));
        match SpawnedTask::spawn_blocking(move || read(&path, &wanted, &buffers)).join().await {
            Ok(Some(bytes)) => Ok(bytes),
            // says what is wrong
            _ => self.files.get_ranges(location, ranges).await,
        }
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.files.get_opts(location, options).await
    }

    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.files.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.files.put_multipart_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.files.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.files.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.files.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.files.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.files.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.files.rename_opts(from, to, options).await
    }
}

impl fmt::Display for LocalFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.files.fmt(f)
    }
}
