//! The models of a session: the models of its store, and models of the session only.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use datafusion::common::{internal_err, plan_err};
use datafusion::error::{DataFusionError, Result};
use datafusion::prelude::SessionConfig;
use moka::future::Cache;
use moka::policy::EvictionPolicy;
use parking_lot::Mutex;

use crate::blocking::{offload, wait};
use crate::config::AeOptions;
use crate::model::child::TrialProcess;
#[cfg(feature = "proto")]
use crate::model::file::{hex, sha256};
use crate::model::metadata::Metadata;
use crate::model::registration::Registration;
use crate::model::{Limits, Model, ModelFile};
use crate::store::{ModelName, ModelRef, ModelStore, Outcome, Publish, Stored, read_local};
use crate::suggest;

/// Time for which the newest version of a name is cached, for stores across a network. Planning a query asks many
/// times.
const REMOTE_LOOKUP: Duration = Duration::from_secs(1);

/// Memory of the models that stay loaded, without their idle sessions, KiB. The models that were used last stay.
const MAX_LOADED_KIB: u64 = 1 << 20;

/// Largest number of names whose look-up is cached.
const MAX_LOOKED_UP: u64 = 10_000;

/// The models of a session. Cheap to clone; clones share everything.
#[derive(Debug, Clone)]
pub struct Models {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: ModelStore,
    /// Where files are tried before they are registered.
    trials: TrialProcess,
    session: Mutex<HashMap<ModelName, BTreeMap<u64, Arc<Model>>>>,
    /// Models of the store that were loaded. Queries that want one at the same time load it once.
    loaded: Cache<FileKey, Arc<Model>>,
    looked_up: Cache<ModelRef, Arc<Stored>>,
}

/// A file of the store. If another file takes its place, the key changes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct FileKey {
    name: ModelName,
    version: u64,
    size: u64,
    last_modified: i64,
    e_tag: Option<String>,
}

impl FileKey {
    fn of(stored: &Stored) -> Self {
        Self {
            name: stored.name.clone(),
            version: stored.version,
            size: stored.meta.size,
            last_modified: stored.meta.last_modified.timestamp_micros(),
            e_tag: stored.meta.e_tag.clone(),
        }
    }
}

/// A model as `ae_models()` lists it.
#[derive(Debug, Clone)]
pub(crate) enum Listed {
    /// A model of the session only.
    Session(Arc<Model>),
    /// A file of the store.
    Stored(Stored),
}

impl Listed {
    fn name(&self) -> &str {
        match self {
            Self::Session(model) => model.name(),
            Self::Stored(stored) => stored.name.as_str(),
        }
    }

    fn version(&self) -> u64 {
        match self {
            Self::Session(model) => model.version(),
            Self::Stored(stored) => stored.version,
        }
    }
}

impl Models {
    /// The models of a store. Files are tried in this process before they are registered.
    pub fn new(store: ModelStore) -> Self {
        Self::with_trials(store, TrialProcess::This)
    }

    /// The models of a store. Files are tried in the given process before they are registered.
    pub fn with_trials(store: ModelStore, trials: TrialProcess) -> Self {
        let kib = |_: &FileKey, model: &Arc<Model>| {
            let most = u32::try_from(MAX_LOADED_KIB).unwrap_or(u32::MAX);
            u32::try_from(model.held_bytes() / 1024).map_or(most, |kib| (kib + 1).min(most))
        };
        let loaded = Cache::builder().max_capacity(MAX_LOADED_KIB).weigher(kib).eviction_policy(EvictionPolicy::lru());
        let looked_up = Cache::builder().max_capacity(MAX_LOOKED_UP).time_to_live(REMOTE_LOOKUP);
        let session = Mutex::default();
        let shared = Shared { store, trials, session, loaded: loaded.build(), looked_up: looked_up.build() };
        Self { shared: Arc::new(shared) }
    }

    /// The models of a session.
    ///
    /// # Errors
    /// A planning error if it has none.
    pub(crate) fn of(config: &SessionConfig) -> Result<Arc<Self>> {
        match config.get_extension::<Self>() {
            Some(models) => Ok(models),
            None => plan_err!("this session has no models; register them with aefusion_udfs::register_all"),
        }
    }

    /// The store.
    pub fn store(&self) -> &ModelStore {
        &self.shared.store
    }

    /// Registers a file for this session only, as the next version of a name.
    ///
    /// # Errors
    /// A planning error if the file is refused (see `docs/models.md`), or if the store has a model of this name, which
    /// the file would hide.
    pub async fn register(&self, name: &str, bytes: impl Into<Bytes>, options: Metadata) -> Result<Arc<Model>> {
        let name = ModelName::new(name)?;
        self.check_not_stored(&name).await?;
        let registration = Registration {
            name: name.clone(),
            version: 0,
            source: bytes.into().into(),
            options,
            limits: Limits::default(),
        };
        let mut model = self.try_file(registration).await?;
        let mut session = self.shared.session.lock();
        let versions = session.entry(name).or_default();
        let version = versions.keys().next_back().map_or(1, |newest| newest + 1);
        match Arc::get_mut(&mut model) {
            Some(model) => model.set_version(version),
            None => return internal_err!("the test run of model {model} has not ended"),
        }
        versions.insert(version, Arc::clone(&model));
        Ok(model)
    }

    /// [`Models::register`] that blocks, also on a thread of an asynchronous runtime.
    ///
    /// # Errors
    /// As [`Models::register`].
    pub fn register_bytes(&self, name: &str, bytes: impl Into<Bytes>, options: Metadata) -> Result<Arc<Model>> {
        let (models, name, bytes) = (self.clone(), name.to_owned(), bytes.into());
        wait(async move { models.register(&name, bytes, options).await })
    }

    /// Removes what [`Models::register`] added: all versions of `name`, or the version of `name@version`. Returns the
    /// number of removed versions.
    ///
    /// # Errors
    /// A planning error if the text names no model.
    pub fn unregister(&self, reference: &str) -> Result<usize> {
        Ok(self.remove_from_session(&ModelRef::parse(reference)?).unwrap_or(0))
    }

    /// Checks that a name is free in the store for a model of the session.
    async fn check_not_stored(&self, name: &ModelName) -> Result<()> {
        match self.shared.store.versions(name).await?.last() {
            None => Ok(()),
            Some(stored) => plan_err!(
                "the store {} has a model {name} (version {}), and a model of the session would hide it; choose another \
                 name",
                self.shared.store.location(),
                stored.version
            ),
        }
    }

    /// Checks that a name is free in the session for a model of the store.
    ///
    /// # Errors
    /// A planning error if it is not.
    pub(crate) fn check_not_of_session(&self, name: &ModelName) -> Result<()> {
        if self.shared.session.lock().contains_key(name) {
            return plan_err!(
                "the application registered a model {name} for this session, and it would hide the published one; \
                 choose another name, or remove it with DROP MODEL {name}"
            );
        }
        Ok(())
    }

    /// [`Models::register_bytes`] of a file, with the tensors that lie in files beside it.
    ///
    /// # Errors
    /// Also if the file cannot be read.
    pub fn register_file(
        &self,
        name: &str,
        path: impl AsRef<std::path::Path>,
        options: Metadata,
    ) -> Result<Arc<Model>> {
        self.register_bytes(name, read_local(path.as_ref(), &Limits::default())?, options)
    }

    /// The model that a function call names; without a name, the default model.
    ///
    /// Blocks until the store answers. [`Models::find`] is the asynchronous form.
    ///
    /// # Errors
    /// A planning error if there is no such model, or its file is refused.
    pub fn resolve(&self, reference: Option<&str>, options: &AeOptions) -> Result<Arc<Model>> {
        options.check_device()?;
        let (models, limits) = (self.clone(), options.limits());
        let reference = options.reference(reference)?;
        if let Some(reference) = &reference
            && let Some(model) = self.of_session(reference)
        {
            return model;
        }
        wait(async move { models.choose(reference.as_ref(), &limits).await })
    }

    /// The model of a reference; without one, the only model.
    ///
    /// # Errors
    /// A planning error if there is no such model, or its file is refused.
    pub(crate) async fn choose(&self, reference: Option<&ModelRef>, limits: &Limits) -> Result<Arc<Model>> {
        match reference {
            Some(reference) => self.find(reference, limits).await,
            None => self.only(limits).await,
        }
    }

    /// The model of a reference, if the session has models of its own with this name.
    fn of_session(&self, reference: &ModelRef) -> Option<Result<Arc<Model>>> {
        let session = self.shared.session.lock();
        let versions = session.get(&reference.name)?;
        let (newest, last) = versions.last_key_value()?;
        let found = match reference.version {
            Some(version) => versions.get(&version),
            None => Some(last),
        };
        Some(match found {
            Some(model) => Ok(Arc::clone(model)),
            None => plan_err!("model {reference} not found: the newest version is {newest}"),
        })
    }

    async fn only(&self, limits: &Limits) -> Result<Arc<Model>> {
        let names = self.names().await?;
        match names.as_slice() {
            [name] => self.find(&ModelRef { name: name.clone(), version: None }, limits).await,
            [] => plan_err!(
                "no model is named and the model store {} is empty; create a model with CREATE MODEL",
                self.shared.store.location()
            ),
            names => {
                let names: Vec<&str> = names.iter().map(ModelName::as_str).collect();
                plan_err!(
                    "no model is named and there are {}: {}; name one as the first argument, or SET ae.default_model",
                    names.len(),
                    names.join(", ")
                )
            }
        }
    }

    /// All names, sorted.
    ///
    /// # Errors
    /// An execution error if the store cannot be read.
    pub async fn names(&self) -> Result<Vec<ModelName>> {
        let mut names: Vec<ModelName> = self.shared.store.list().await?.into_iter().map(|stored| stored.name).collect();
        names.extend(self.shared.session.lock().keys().cloned());
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// The model of a name and version.
    ///
    /// # Errors
    /// A planning error if there is no such model, or its file is refused.
    pub async fn find(&self, reference: &ModelRef, limits: &Limits) -> Result<Arc<Model>> {
        if let Some(model) = self.of_session(reference) {
            return model;
        }
        let is_remote = self.shared.store.is_remote();
        if is_remote
            && let Some(stored) = self.shared.looked_up.get(reference).await
            && let Ok(model) = self.load(&stored, limits).await
        {
            return Ok(model);
        }
        let versions = self.shared.store.versions(&reference.name).await?;
        let stored = match reference.version {
            None => versions.last(),
            Some(version) => versions.iter().find(|stored| stored.version == version),
        };
        let Some(stored) = stored else { return self.not_found(reference, &versions).await };
        if is_remote {
            self.shared.looked_up.insert(reference.clone(), Arc::new(stored.clone())).await;
        }
        self.load(stored, limits).await
    }

    async fn not_found<T>(&self, reference: &ModelRef, versions: &[Stored]) -> Result<T> {
        if let Some(newest) = versions.last() {
            return plan_err!("model {reference} not found: the newest version is {}", newest.version);
        }
        let names = self.names().await?;
        plan_err!(
            "model {reference} not found in {}{}",
            self.shared.store.location(),
            suggest::hint(reference.name.as_str(), names.iter().map(ModelName::as_str))
        )
    }

    async fn load(&self, stored: &Stored, limits: &Limits) -> Result<Arc<Model>> {
        let load = async {
            let bytes = self.shared.store.get(stored, limits).await?;
            let (name, version, limits) = (stored.name.clone(), stored.version, *limits);
            let model = offload(move || Model::load(&name, version, bytes, &limits)).await;
            let failed = |e: DataFusionError| e.context(format!("model {}@{} cannot be loaded", stored.name, version));
            model.map(Arc::new).map_err(failed)
        };
        self.load_once(FileKey::of(stored), load).await
    }

    /// The model of a file, loaded by the first of the queries that want it at the same time.
    async fn load_once(&self, key: FileKey, load: impl Future<Output = Result<Arc<Model>>>) -> Result<Arc<Model>> {
        let loaded = self.shared.loaded.try_get_with(key, load).await;
        loaded.map_err(|error| Arc::try_unwrap(error).unwrap_or_else(DataFusionError::Shared))
    }

    /// The model of a file that is not in the store, such as one in the plan of another process. Its version is 1.
    ///
    /// # Errors
    /// A planning error if the file is refused.
    #[cfg(feature = "proto")]
    pub(crate) async fn of_file(&self, name: &ModelName, bytes: Bytes, limits: &Limits) -> Result<Arc<Model>> {
        let e_tag = Some(hex(&sha256(&bytes)));
        let key = FileKey { name: name.clone(), version: 1, size: bytes.len() as u64, last_modified: 0, e_tag };
        let (name, limits) = (name.clone(), *limits);
        self.load_once(key, offload(move || Model::load(&name, 1, bytes, &limits).map(Arc::new))).await
    }

    /// The contents of a listed file, without loading the model.
    pub(crate) async fn read(&self, stored: &Stored, limits: &Limits) -> Result<ModelFile> {
        let bytes = self.shared.store.get(stored, limits).await?;
        let limits = *limits;
        let file = offload(move || ModelFile::read(bytes, &limits)).await;
        file.map_err(|e| e.context(format!("model {}@{} cannot be loaded", stored.name, stored.version)))
    }

    /// Publishes the file of a model that had its test run.
    ///
    /// # Errors
    /// A planning error if the session has a model of this name. The store then stays unchanged.
    pub(crate) async fn publish(&self, name: &ModelName, model: &Model, mode: Publish) -> Result<Outcome> {
        self.check_not_of_session(name)?;
        let outcome = self.shared.store.try_publish(name, model.file().bytes(), mode).await?;
        self.invalidate(name).await;
        Ok(outcome)
    }

    /// The model of a file, after a run of everything that functions run, in the process for such trials.
    ///
    /// # Errors
    /// A planning error if the file is refused.
    pub(crate) async fn try_file(&self, registration: Registration) -> Result<Arc<Model>> {
        let trials = self.shared.trials.clone();
        offload(move || trials.register(registration).map(Arc::new)).await
    }

    /// The newest version of a name in the session or else in the store; 0 if there is none. This asks the store, and
    /// the next look-up of the name does too: a statement that writes must not start from an older version.
    ///
    /// # Errors
    /// An execution error if the store cannot be read.
    pub(crate) async fn newest(&self, name: &ModelName) -> Result<u64> {
        if let Some(versions) = self.shared.session.lock().get(name) {
            return Ok(versions.keys().next_back().copied().unwrap_or(0));
        }
        self.forget_look_ups(name).await;
        Ok(self.shared.store.versions(name).await?.last().map_or(0, |stored| stored.version))
    }

    /// Removes a model, or one version of it, and returns the number of removed files.
    pub(crate) async fn remove(&self, reference: &ModelRef) -> Result<usize> {
        let removed = match self.remove_from_session(reference) {
            Some(removed) => removed,
            None => self.shared.store.remove(reference).await?,
        };
        self.invalidate(&reference.name).await;
        Ok(removed)
    }

    /// Removes a model of the session, and returns the number of versions; none if the session has no such name.
    fn remove_from_session(&self, reference: &ModelRef) -> Option<usize> {
        let mut session = self.shared.session.lock();
        let versions = session.get_mut(&reference.name)?;
        let before = versions.len();
        versions.retain(|version, _| reference.version.is_some_and(|other| other != *version));
        let removed = before - versions.len();
        if versions.is_empty() {
            session.remove(&reference.name);
        }
        Some(removed)
    }

    async fn invalidate(&self, name: &ModelName) {
        let keys: Vec<_> = self.shared.loaded.iter().map(|(key, _)| key).filter(|key| key.name == *name).collect();
        for key in keys {
            self.shared.loaded.invalidate(&*key).await;
        }
        // frees the memory now
        self.shared.loaded.run_pending_tasks().await;
        self.forget_look_ups(name).await;
    }

    async fn forget_look_ups(&self, name: &ModelName) {
        let keys: Vec<_> = self.shared.looked_up.iter().map(|(key, _)| key).filter(|key| key.name == *name).collect();
        for key in keys {
            self.shared.looked_up.invalidate(&*key).await;
        }
    }

    /// All models and versions, of the store and of the session, sorted.
    pub(crate) async fn list(&self) -> Result<Vec<Listed>> {
        let stored = self.shared.store.list().await?;
        let session = self.shared.session.lock();
        let own = session.values().flat_map(BTreeMap::values).map(|model| Listed::Session(Arc::clone(model)));
        let stored = stored.into_iter().filter(|stored| !session.contains_key(&stored.name)).map(Listed::Stored);
        let mut listed: Vec<Listed> = own.chain(stored).collect();
        listed.sort_by(|a, b| (a.name(), a.version()).cmp(&(b.name(), b.version())));
        Ok(listed)
    }
}
