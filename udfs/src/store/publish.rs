//! Publication and removal of versions, with several writers at once and a network that loses answers.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use datafusion::common::exec_err;
use datafusion::error::Result;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{Attribute, Attributes, Error, GetOptions, ObjectMeta, ObjectStoreExt, PutMode, PutOptions};

use super::{ModelName, ModelRef, ModelStore, Outcome, Place, Publish, directory};
use crate::blocking::offload;

/// Folder with the highest dropped version of each name, `<store>/.dropped/<name>/<version>`. No model has this name.
const DROPPED: &str = ".dropped";

/// Attribute of an object with the token of its publication. One word of letters is valid in every object store.
const TOKEN: &str = "publication";

/// Tries to create a version that the store says exists, but does not list.
const MAX_TRIES: u32 = 8;

/// Longest wait between two tries.
const MAX_WAIT: Duration = Duration::from_millis(800);

impl ModelStore {
    /// Writes a file as the next version, completely or not at all, and returns the version.
    ///
    /// # Errors
    /// A planning error if the name must be new and is not. An execution error if the version that the file was made
    /// from is not the newest, or if the store cannot be written.
    pub async fn publish(&self, name: &ModelName, bytes: Bytes, mode: Publish) -> Result<u64> {
        match self.try_publish(name, bytes, mode).await? {
            Outcome::Published(version) => Ok(version),
            Outcome::Refused { newest } => Err(mode.refusal(name, newest)),
        }
    }

    /// [`ModelStore::publish`], without an error if the condition does not hold.
    pub(crate) async fn try_publish(&self, name: &ModelName, bytes: Bytes, mode: Publish) -> Result<Outcome> {
        let token = token();
        let (mut tried, mut tries) = (0, 0);
        loop {
            let newest = self.versions(name).await?.last().map_or(0, |stored| stored.version);
            if !mode.allows(newest) {
                return Ok(Outcome::Refused { newest });
            }
            let version = newest.max(self.dropped(name).await?) + 1;
            let path = self.path(name, version);
            if self.create(&path, &bytes, &token).await? {
                if self.dropped(name).await? < version {
                    return Ok(Outcome::Published(version));
                }
                // another process published this version and dropped it since the listing: the number is used up
                self.delete(&path).await?;
            }
            tries = if version == tried { tries + 1 } else { 1 };
            tried = version;
            if tries == MAX_TRIES {
                return exec_err!(
                    "could not write '{path}' in the model store {}: after {MAX_TRIES} tries, the store still reports \
                     that it exists, but does not list it; look for a file or folder in the way",
                    self.location
                );
            }
            if tries > 1 {
                tokio::time::sleep((Duration::from_millis(10) * 2_u32.pow(tries)).min(MAX_WAIT)).await;
            }
        }
    }

    /// Creates an object, and returns whether it is new.
    async fn create(&self, path: &Path, bytes: &Bytes, token: &str) -> Result<bool> {
        if self.place == Place::Directory {
            let (path, bytes) = (path.clone(), bytes.clone());
            return offload(move || directory::create(&path, &bytes)).await;
        }
        let attributes = Attributes::from_iter([(Attribute::Metadata(TOKEN.into()), token.to_owned())]);
        let options = PutOptions { mode: PutMode::Create, attributes, ..PutOptions::default() };
        let error = match self.store.put_opts(path, bytes.clone().into(), options).await {
            Ok(_) => return Ok(true),
            Err(Error::NotImplemented { .. } | Error::NotSupported { .. }) => {
                return self.create_unmarked(path, bytes).await;
            }
            Err(error) => error,
        };
        // The object may be ours: the answer was lost, and the client tried again.
        let options = GetOptions { head: true, ..GetOptions::default() };
        match (self.store.get_opts(path, options).await, error) {
            (Ok(found), _)
                if found.attributes.get(&Attribute::Metadata(TOKEN.into())).is_some_and(|found| **found == *token) =>
            {
                Ok(true)
            }
            (Ok(_) | Err(Error::NotFound { .. }), Error::AlreadyExists { .. } | Error::Precondition { .. }) => {
                Ok(false)
            }
            (Err(error), Error::AlreadyExists { .. } | Error::Precondition { .. }) => {
                Err(self.failed("read from", error))
            }
            (_, error) => Err(self.failed("write to", error)),
        }
    }

    /// [`ModelStore::create`] in a store without attributes: an object is ours if it has the same bytes.
    async fn create_unmarked(&self, path: &Path, bytes: &Bytes) -> Result<bool> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let Err(error) = self.store.put_opts(path, bytes.clone().into(), options).await else { return Ok(true) };
        let found = match self.store.get(path).await {
            Ok(found) => found.bytes().await.ok(),
            Err(_) => None,
        };
        match error {
            _ if found.as_ref() == Some(bytes) => Ok(true),
            Error::AlreadyExists { .. } | Error::Precondition { .. } => Ok(false),
            error => Err(self.failed("write to", error)),
        }
    }

    /// Removes one version, or all versions, oldest first, and returns the number of versions that it found. Another
    /// process may remove them at the same time.
    pub(crate) async fn remove(&self, model: &ModelRef) -> Result<usize> {
        let versions = self.versions(&model.name).await?;
        let newest = versions.last().map(|stored| stored.version);
        let removed: Vec<_> = versions
            .into_iter()
            .filter(|stored| model.version.is_none_or(|version| version == stored.version))
            .collect();
        if let Some(last) = removed.last()
            && newest == Some(last.version)
        {
            self.note_dropped(&model.name, last.version).await?;
        }
        for stored in &removed {
            self.delete(&stored.meta.location).await?;
        }
        if self.place == Place::Directory {
            let folder = self.root.clone().join(model.name.as_str());
            offload(move || directory::sweep(&folder)).await?;
        }
        Ok(removed.len())
    }

    /// Deletes an object, if it exists.
    async fn delete(&self, path: &Path) -> Result<()> {
        match self.store.delete(path).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed("delete from", error)),
        }
    }

    /// Records that a version is dropped, before it is removed. No later version gets this number.
    async fn note_dropped(&self, name: &ModelName, version: u64) -> Result<()> {
        let older = self.notes(name).await?;
        let path = self.notes_of(name).join(version.to_string());
        if self.place == Place::Directory {
            let path = path.clone();
            offload(move || directory::create(&path, b"dropped\n")).await?;
        } else {
            self.store.put(&path, "dropped\n".into()).await.map_err(|e| self.failed("write to", e))?;
        }
        for (older, path) in older {
            if older < version {
                self.delete(&path).await?;
            }
        }
        Ok(())
    }

    /// The highest version of a name that was dropped; 0 if there is none.
    async fn dropped(&self, name: &ModelName) -> Result<u64> {
        Ok(self.notes(name).await?.into_iter().map(|(version, _)| version).max().unwrap_or(0))
    }

    async fn notes(&self, name: &ModelName) -> Result<Vec<(u64, Path)>> {
        let listed: Vec<ObjectMeta> = match self.store.list(Some(&self.notes_of(name))).try_collect().await {
            Err(Error::NotFound { .. }) => Vec::new(),
            listed => listed.map_err(|e| self.failed("list", e))?,
        };
        let note = |meta: ObjectMeta| Some((meta.location.filename()?.parse().ok()?, meta.location));
        Ok(listed.into_iter().filter_map(note).collect())
    }

    fn notes_of(&self, name: &ModelName) -> Path {
        self.root.clone().join(DROPPED).join(name.as_str())
    }
}

/// A text that no other publication has.
fn token() -> String {
    // each `RandomState` has its own keys, which come from random numbers of the system
    let random = || RandomState::new().hash_one(SystemTime::now());
    format!("{:016x}{:016x}", random(), random())
}

#[cfg(test)]
mod tests;
