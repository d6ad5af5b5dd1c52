//! Files in object stores, whose uploads complete when the statement has succeeded.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::error::Result;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{
    Error, MultipartUpload, ObjectStore, ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    UploadPart,
};
use parking_lot::Mutex;

/// Larger files are uploaded at once, as a part that is not complete. Smaller ones wait in memory.
const MAX_WAITING: usize = 1024 * 1024;

/// Uploads that complete concurrently.
const CONCURRENT: usize = 16;

#[derive(Debug)]
enum Pending {
    Put(PutPayload, PutOptions),
    Upload(Box<dyn MultipartUpload>),
}

type Files = Arc<Mutex<Vec<(Path, Pending)>>>;

/// Files that are not visible yet.
#[derive(Debug, Default)]
pub(super) struct Held {
    complete: Files,
    /// Uploads whose writers gave up.
    broken: Files,
}

impl Held {
    pub(super) async fn put(
        &self,
        store: &dyn ObjectStore,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        let pending = if payload.content_length() <= MAX_WAITING {
            Pending::Put(payload, options)
        } else {
            match store.put_multipart_opts(location, PutMultipartOptions::default()).await {
                Err(Error::NotImplemented { .. } | Error::NotSupported { .. }) => Pending::Put(payload, options),
                Err(error) => return Err(error),
                Ok(mut upload) => {
                    upload.put_part(payload).await?;
                    Pending::Upload(upload)
                }
            }
        };
        self.complete.lock().push((location.clone(), pending));
        Ok(PutResult { e_tag: None, version: None })
    }

    pub(super) fn hold(&self, location: &Path, upload: Box<dyn MultipartUpload>) -> Box<dyn MultipartUpload> {
        let (complete, broken) = (Arc::clone(&self.complete), Arc::clone(&self.broken));
        Box::new(HeldUpload { location: location.clone(), upload: Some(upload), complete, broken })
    }

    /// Completes all uploads, and removes the files that they replace.
    ///
    /// # Errors
    /// An error of the object store.
    pub(super) async fn commit(
        &self,
        store: &dyn ObjectStore,
        is_file: bool,
        replaced: impl Fn(&[Path]) -> Vec<Path>,
    ) -> Result<()> {
        let files = std::mem::take(&mut *self.complete.lock());
        let new: Vec<Path> = files.iter().map(|(path, _)| path.clone()).collect();
        let complete = files.into_iter().map(|(path, pending)| async move {
            match pending {
                Pending::Put(payload, options) => store.put_opts(&path, payload, options).await.map(drop),
                Pending::Upload(mut upload) => upload.complete().await.map(drop),
            }
        });
        let completed: Vec<object_store::Result<()>> =
            stream::iter(complete).buffer_unordered(CONCURRENT).collect().await;
        let completed: object_store::Result<()> = completed.into_iter().collect();
        if let Err(error) = completed {
            if !is_file {
                for path in &new {
                    drop(store.delete(path).await);
                }
            }
            return Err(error.into());
        }
        let old = stream::iter(replaced(&new).into_iter().map(Ok)).boxed();
        store.delete_stream(old).try_collect::<Vec<_>>().await?;
        self.abort().await;
        Ok(())
    }

    pub(super) async fn abort(&self) {
        let mut files = std::mem::take(&mut *self.complete.lock());
        files.append(&mut self.broken.lock());
        abort(files).await;
    }
}

async fn abort(files: Vec<(Path, Pending)>) {
    for (path, pending) in files {
        if let Pending::Upload(mut upload) = pending
            && let Err(error) = upload.abort().await
        {
            tracing::warn!("an unfinished upload of {path} stays in the object store: {error}");
        }
    }
}

/// A statement that is dropped leaves no parts of uploads.
impl Drop for Held {
    fn drop(&mut self) {
        let mut files = std::mem::take(&mut *self.complete.lock());
        files.append(&mut self.broken.lock());
        if let (false, Ok(runtime)) = (files.is_empty(), tokio::runtime::Handle::try_current()) {
            drop(runtime.spawn(abort(files)));
        }
    }
}

/// An upload that does not complete by itself.
#[derive(Debug)]
struct HeldUpload {
    location: Path,
    upload: Option<Box<dyn MultipartUpload>>,
    complete: Files,
    broken: Files,
}

fn ended() -> Error {
    Error::Generic { store: "staged", source: "the upload has ended".into() }
}

#[async_trait]
impl MultipartUpload for HeldUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        match &mut self.upload {
            Some(upload) => upload.put_part(data),
            None => Box::pin(async { Err(ended()) }),
        }
    }

    async fn complete(&mut self) -> object_store::Result<PutResult> {
        let upload = self.upload.take().ok_or_else(ended)?;
        self.complete.lock().push((self.location.clone(), Pending::Upload(upload)));
        Ok(PutResult { e_tag: None, version: None })
    }

    async fn abort(&mut self) -> object_store::Result<()> {
        match self.upload.take() {
            Some(mut upload) => upload.abort().await,
            None => Ok(()),
        }
    }
}

impl Drop for HeldUpload {
    fn drop(&mut self) {
        if let Some(upload) = self.upload.take() {
            self.broken.lock().push((self.location.clone(), Pending::Upload(upload)));
        }
    }
}
