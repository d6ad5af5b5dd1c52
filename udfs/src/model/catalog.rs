//! The models of a session: the models of its store, and models of the session only.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use datafusion::common::plan_err;
use datafusion::error::Result;
use parking_lot::Mutex;

use super::metadata::Metadata;
use super::store::{ModelName, ModelRef, ModelStore, Outcome, Publish, Stored};
use super::{Limits, Model, describe};
use crate::blocking::{offload, wait};
use crate::config::AeOptions;
use crate::suggest;

/// Time for which the newest version of a name is cached, for stores across a network. Planning a query asks many
/// times.
const REMOTE_LOOKUP: Duration = Duration::from_secs(1);

/// Largest number of models that stay loaded.
const MAX_LOADED: usize = 256;

/// The models of a session. Cheap to clone; clones share everything.
#[derive(Debug, Clone)]
pub struct Models {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: ModelStore,
    session: Mutex<HashMap<ModelName, BTreeMap<u64, Arc<Model>>>>,
    loaded: Mutex<HashMap<(ModelName, u64), Loaded>>,
    looked_up: Mutex<HashMap<ModelRef, (Instant, Arc<Model>)>>,
}

#[derive(Debug)]
struct Loaded {
    meta: object_store::ObjectMeta,
    model: Arc<Model>,
}

/// A model as `ae_models()` lists it.
#[derive(Debug, Clone)]
pub struct Listed {
    /// The model.
    pub model: ModelName,
    /// Its version.
    pub version: u64,
    /// Size of the file, bytes.
    pub size: u64,
    /// Time of publication, microseconds since 1970; none for a model of the session only.
    pub published: Option<i64>,
}

impl Models {
    /// The models of a store.
    pub fn new(store: ModelStore) -> Self {
        let shared = Shared { store, session: Mutex::default(), loaded: Mutex::default(), looked_up: Mutex::default() };
        Self { shared: Arc::new(shared) }
    }

    /// The store.
    pub fn store(&self) -> &ModelStore {
        &self.shared.store
    }

    /// Registers a file for this session only, as the next version of a name. It hides stored models of the same name.
    ///
    /// # Errors
    /// A planning error if the file is refused; see `docs/models.md`.
    pub fn register_bytes(&self, name: &str, bytes: impl Into<Bytes>, options: Metadata) -> Result<Arc<Model>> {
        let name = ModelName::new(name)?;
        let limits = Limits::default();
        let bytes = describe(&bytes.into(), options, &limits)?;
        let mut session = self.shared.session.lock();
        let versions = session.entry(name.clone()).or_default();
        let version = versions.keys().next_back().map_or(1, |newest| newest + 1);
        let model = Arc::new(Model::load(&name, version, bytes, &limits)?);
        model.verify()?;
        versions.insert(version, Arc::clone(&model));
        Ok(model)
    }

    /// [`Models::register_bytes`] of a file.
    ///
    /// # Errors
    /// Also if the file cannot be read.
    pub fn register_file(
        &self,
        name: &str,
        path: impl AsRef<std::path::Path>,
        options: Metadata,
    ) -> Result<Arc<Model>> {
        self.register_bytes(name, std::fs::read(path)?, options)
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
        let reference = match (reference, options.default_model.as_str()) {
            (Some(reference), _) => Some(reference),
            (None, "") => None,
            (None, default) => Some(default),
        };
        let reference = reference.map(ModelRef::parse).transpose()?;
        if let Some(model) = reference.as_ref().and_then(|reference| self.cached(reference)) {
            return Ok(model);
        }
        wait(async move {
            match reference {
                Some(reference) => models.find(&reference, &limits).await,
                None => models.only(&limits).await,
            }
        })
    }

    fn cached(&self, reference: &ModelRef) -> Option<Arc<Model>> {
        if let Some(versions) = self.shared.session.lock().get(&reference.name) {
            return match reference.version {
                Some(version) => versions.get(&version).cloned(),
                None => versions.values().next_back().cloned(),
            };
        }
        let looked_up = self.shared.looked_up.lock();
        let (when, model) = looked_up.get(reference)?;
        (when.elapsed() < REMOTE_LOOKUP).then(|| Arc::clone(model))
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
        if let Some(model) = self.cached(reference) {
            return Ok(model);
        }
        let versions = self.shared.store.versions(&reference.name).await?;
        let stored = match reference.version {
            None => versions.last(),
            Some(version) => versions.iter().find(|stored| stored.version == version),
        };
        let Some(stored) = stored else { return self.not_found(reference, &versions).await };
        let model = self.load(stored, limits).await?;
        if self.shared.store.is_remote() {
            self.shared.looked_up.lock().insert(reference.clone(), (Instant::now(), Arc::clone(&model)));
        }
        Ok(model)
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
        let key = (stored.name.clone(), stored.version);
        if let Some(loaded) = self.shared.loaded.lock().get(&key)
            && loaded.meta == stored.meta
        {
            return Ok(Arc::clone(&loaded.model));
        }
        let bytes = self.shared.store.get(stored, limits).await?;
        let (name, version, limits) = (stored.name.clone(), stored.version, *limits);
        let model = offload(move || Model::load(&name, version, bytes, &limits))
            .await
            .map_err(|e| e.context(format!("model {}@{} cannot be loaded", stored.name, stored.version)))?;
        let model = Arc::new(model);
        let mut loaded = self.shared.loaded.lock();
        if loaded.len() >= MAX_LOADED {
            loaded.clear();
        }
        loaded.insert(key, Loaded { meta: stored.meta.clone(), model: Arc::clone(&model) });
        Ok(model)
    }

    /// Publishes a file with metadata, after a test run. Returns the outcome, and the model of the file without its
    /// version.
    ///
    /// # Errors
    /// A planning error if the file is refused. The store then stays unchanged.
    pub(crate) async fn publish(
        &self,
        name: &ModelName,
        bytes: Bytes,
        mode: Publish,
        limits: &Limits,
    ) -> Result<(Outcome, Arc<Model>)> {
        let (owned, file, limits) = (name.clone(), bytes.clone(), *limits);
        let model = offload(move || {
            let model = Arc::new(Model::load(&owned, 0, file, &limits)?);
            model.verify()?;
            Ok(model)
        })
        .await?;
        let outcome = self.shared.store.try_publish(name, bytes, mode).await?;
        self.invalidate(name);
        Ok((outcome, model))
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
        self.shared.looked_up.lock().retain(|reference, _| reference.name != *name);
        Ok(self.shared.store.versions(name).await?.last().map_or(0, |stored| stored.version))
    }

    /// Removes a model, or one version of it, and returns the number of removed files.
    pub(crate) async fn remove(&self, reference: &ModelRef) -> Result<usize> {
        let mut removed = 0;
        {
            let mut session = self.shared.session.lock();
            if let Some(versions) = session.get_mut(&reference.name) {
                let before = versions.len();
                versions.retain(|version, _| reference.version.is_some_and(|other| other != *version));
                removed = before - versions.len();
                if versions.is_empty() {
                    session.remove(&reference.name);
                }
            }
        }
        if removed == 0 {
            removed = self.shared.store.remove(reference).await?;
        }
        self.invalidate(&reference.name);
        Ok(removed)
    }

    fn invalidate(&self, name: &ModelName) {
        self.shared.loaded.lock().retain(|(loaded, _), _| loaded != name);
        self.shared.looked_up.lock().retain(|reference, _| reference.name != *name);
    }

    /// All models and versions, of the store and of the session.
    pub(crate) async fn list(&self) -> Result<Vec<Listed>> {
        let mut listed: Vec<Listed> = Vec::new();
        for (name, versions) in self.shared.session.lock().iter() {
            listed.extend(versions.values().map(|model| Listed {
                model: name.clone(),
                version: model.version(),
                size: model.bytes().len() as u64,
                published: None,
            }));
        }
        let hidden: Vec<ModelName> = listed.iter().map(|listed| listed.model.clone()).collect();
        listed.extend(self.shared.store.list().await?.into_iter().filter(|stored| !hidden.contains(&stored.name)).map(
            |stored| Listed {
                model: stored.name,
                version: stored.version,
                size: stored.meta.size,
                published: Some(stored.meta.last_modified.timestamp_micros()),
            },
        ));
        listed.sort_by(|a, b| (&a.model, a.version).cmp(&(&b.model, b.version)));
        Ok(listed)
    }
}
