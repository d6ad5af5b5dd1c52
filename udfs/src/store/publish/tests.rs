//! Publications with faults: lost answers, conflicts, and writers at the same time.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::{
    CopyOptions, GetResult, ListResult, MultipartUpload, ObjectStore, PutMultipartOptions, PutPayload, PutResult,
    Result as StoreResult,
};

use super::*;

/// What goes wrong when a model is written.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// The write succeeds, and the client hears an error.
    Lost,
    /// The write succeeds, its answer is lost, and the client hears that the object exists when it tries again.
    LostThenExists,
    /// The store answers 409 and writes nothing.
    Conflict,
    /// The store takes no attributes.
    NoAttributes,
    /// No attributes, and as [`Fault::LostThenExists`].
    NoAttributesAndLost,
}

/// A store in memory with faults.
#[derive(Debug)]
struct Faulty {
    inner: InMemory,
    fault: Fault,
    writes: AtomicUsize,
}

impl Faulty {
    fn new(fault: Fault) -> Arc<Self> {
        Arc::new(Self { inner: InMemory::new(), fault, writes: AtomicUsize::new(0) })
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("faulty")
    }
}

fn exists(path: &Path) -> Error {
    Error::AlreadyExists { path: path.to_string(), source: "409".into() }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, path: &Path, bytes: PutPayload, options: PutOptions) -> StoreResult<PutResult> {
        if options.mode != PutMode::Create {
            return self.inner.put_opts(path, bytes, options).await;
        }
        self.writes.fetch_add(1, Ordering::Relaxed);
        let no_attributes = matches!(self.fault, Fault::NoAttributes | Fault::NoAttributesAndLost);
        if no_attributes && !options.attributes.is_empty() {
            return Err(Error::NotImplemented { operation: "attributes".into(), implementer: self.to_string() });
        }
        match self.fault {
            Fault::None | Fault::NoAttributes => self.inner.put_opts(path, bytes, options).await,
            Fault::Lost => {
                self.inner.put_opts(path, bytes, options).await?;
                Err(Error::Generic { store: "faulty", source: "500".into() })
            }
            Fault::LostThenExists | Fault::NoAttributesAndLost => {
                self.inner.put_opts(path, bytes, options).await?;
                Err(exists(path))
            }
            Fault::Conflict => Err(exists(path)),
        }
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> StoreResult<GetResult> {
        self.inner.get_opts(path, options).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, StoreResult<Path>>) -> BoxStream<'static, StoreResult<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StoreResult<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> StoreResult<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

fn m() -> ModelName {
    ModelName::new("m").unwrap()
}

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

async fn versions(store: &ModelStore) -> Vec<u64> {
    store.versions(&m()).await.unwrap().iter().map(|stored| stored.version).collect()
}

fn dropping(text: &str) -> ModelRef {
    ModelRef::parse(text).unwrap()
}

#[tokio::test]
async fn a_lost_answer_to_a_write_that_succeeded_is_a_success() {
    for fault in [Fault::Lost, Fault::LostThenExists, Fault::NoAttributes, Fault::NoAttributesAndLost] {
        let store = ModelStore::new(Faulty::new(fault), "models");
        assert_eq!(store.publish(&m(), bytes("a"), Publish::New).await.unwrap(), 1, "{fault:?}");
        assert_eq!(store.publish(&m(), bytes("b"), Publish::NextVersion).await.unwrap(), 2, "{fault:?}");
        assert_eq!(versions(&store).await, [1, 2], "{fault:?}");
    }
}

#[tokio::test]
async fn the_same_file_of_another_writer_is_not_ours() {
    let store = ModelStore::new(Faulty::new(Fault::None), "models");
    let name = m();
    let publish = || store.publish(&name, bytes("same"), Publish::NextVersion);
    let mut published: Vec<u64> = futures::future::try_join_all((0..20).map(|_| publish())).await.unwrap();
    published.sort_unstable();
    assert_eq!(published, (1..=20).collect::<Vec<_>>());
}

#[tokio::test]
async fn conflicts_without_end_are_an_error_that_names_the_path() {
    let faulty = Faulty::new(Fault::Conflict);
    let store = ModelStore::new(Arc::clone(&faulty) as _, "models");
    let error = store.publish(&m(), bytes("a"), Publish::NextVersion).await.unwrap_err().to_string();
    assert!(error.contains("could not write 'models/m/1/model.onnx' in the model store faulty/models"), "{error}");
    assert_eq!(faulty.writes.load(Ordering::Relaxed), MAX_TRIES as usize);
}

#[tokio::test]
async fn a_version_made_from_an_older_one_is_refused() {
    let store = ModelStore::in_memory();
    store.publish(&m(), bytes("a"), Publish::New).await.unwrap();
    assert_eq!(store.publish(&m(), bytes("b"), Publish::After(1)).await.unwrap(), 2);
    let error = store.publish(&m(), bytes("c"), Publish::After(1)).await.unwrap_err().to_string();
    assert!(error.contains("is now 2, but this statement started from version 1"), "{error}");
    assert!(store.publish(&m(), bytes("c"), Publish::New).await.is_err());
    assert_eq!(versions(&store).await, [1, 2]);
}

/// A store in a directory, and one in memory.
fn stores() -> (tempfile::TempDir, [ModelStore; 2]) {
    let folder = tempfile::tempdir().unwrap();
    let directory = ModelStore::open(folder.path().join("models").to_str().unwrap()).unwrap();
    (folder, [directory, ModelStore::in_memory()])
}

#[tokio::test]
async fn the_number_of_a_dropped_version_is_not_reused() {
    let (_folder, stores) = stores();
    for store in stores {
        let name = m();
        let publish = |mode| store.publish(&name, bytes("a"), mode);
        assert_eq!(publish(Publish::New).await.unwrap(), 1);
        assert_eq!(publish(Publish::NextVersion).await.unwrap(), 2);
        // an older version is no end of the numbers
        assert_eq!(store.remove(&dropping("m@1")).await.unwrap(), 1);
        assert_eq!(publish(Publish::NextVersion).await.unwrap(), 3);
        assert_eq!(store.remove(&dropping("m@3")).await.unwrap(), 1);
        assert_eq!(publish(Publish::After(2)).await.unwrap(), 4);
        assert_eq!(store.remove(&dropping("m")).await.unwrap(), 2);
        assert_eq!(store.remove(&dropping("m")).await.unwrap(), 0);
        assert_eq!(publish(Publish::New).await.unwrap(), 5);
        assert_eq!(store.notes(&m()).await.unwrap().len(), 1, "one note a name");
        assert_eq!(store.list().await.unwrap().len(), 1, "a note is no model");
    }
}

/// A number that is dropped between the listing of a publication and its write.
#[tokio::test]
async fn a_number_that_is_used_up_meanwhile_is_skipped() {
    let store = ModelStore::in_memory();
    store.note_dropped(&m(), 1).await.unwrap();
    assert!(store.create(&store.path(&m(), 1), &bytes("other"), "x").await.unwrap());
    store.delete(&store.path(&m(), 1)).await.unwrap();
    assert_eq!(store.publish(&m(), bytes("a"), Publish::New).await.unwrap(), 2);
}

#[tokio::test]
async fn drops_at_once_succeed_and_leave_no_folder() {
    let (folder, stores) = stores();
    for store in &stores {
        for _ in 0..10 {
            store.publish(&m(), bytes("a"), Publish::NextVersion).await.unwrap();
        }
        if store.place == Place::Directory {
            let version = folder.path().join("models/m/11");
            std::fs::create_dir_all(&version).unwrap();
            std::fs::write(version.join("model.onnx#1"), "unfinished").unwrap();
        }
        let model = dropping("m");
        let removed = tokio::join!(store.remove(&model), store.remove(&model));
        let (one, other) = (removed.0.unwrap(), removed.1.unwrap());
        assert!(one.max(other) == 10, "{one} {other}");
        assert!(versions(store).await.is_empty());
    }
    assert!(!folder.path().join("models/m").exists());
}

#[tokio::test]
async fn a_writer_survives_drops() {
    let (_folder, [store, _]) = stores();
    let model = dropping("m");
    let drops = async {
        for _ in 0..50 {
            store.remove(&model).await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    let writes = async {
        let mut published = Vec::new();
        for _ in 0..20 {
            published.push(store.publish(&m(), bytes("a"), Publish::NextVersion).await.unwrap());
        }
        published
    };
    let ((), published) = tokio::join!(drops, writes);
    assert!(published.is_sorted_by(|a, b| a < b), "{published:?}");
}

#[cfg(unix)]
#[tokio::test]
async fn something_in_the_way_is_an_error_that_names_it() {
    let (folder, [store, _]) = stores();
    let version = folder.path().join("models/m/1");
    std::fs::create_dir_all(&version).unwrap();
    std::os::unix::fs::symlink("/nowhere", version.join("model.onnx")).unwrap();
    let publish = async || store.publish(&m(), bytes("a"), Publish::NextVersion).await.unwrap_err().to_string();
    assert!(publish().await.contains("m/1/model.onnx' is not a file and is in the way"), "{}", publish().await);
    std::fs::remove_file(version.join("model.onnx")).unwrap();
    std::fs::create_dir(version.join("model.onnx")).unwrap();
    assert!(publish().await.contains("m/1/model.onnx' is not a file and is in the way"), "{}", publish().await);
    std::fs::remove_dir_all(&version).unwrap();
    std::fs::write(&version, "a file").unwrap();
    assert!(publish().await.contains("could not write"), "{}", publish().await);
}

#[tokio::test]
async fn names_beyond_ascii_are_found() {
    let (_folder, stores) = stores();
    for store in stores {
        let name = ModelName::new("größe").unwrap();
        assert_eq!(store.publish(&name, bytes("a"), Publish::New).await.unwrap(), 1);
        assert_eq!(store.publish(&name, bytes("b"), Publish::NextVersion).await.unwrap(), 2);
        assert_eq!(store.list().await.unwrap()[1].name, name);
        assert_eq!(store.remove(&dropping("größe")).await.unwrap(), 2);
        assert_eq!(store.publish(&name, bytes("a"), Publish::New).await.unwrap(), 3);
    }
}
