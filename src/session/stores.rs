//! Object stores, opened when a query first uses them.

use std::sync::Arc;

use datafusion::error::{DataFusionError, Result};
use datafusion::execution::object_store::{DefaultObjectStoreRegistry, ObjectStoreRegistry};
use object_store::ObjectStore;
use url::Url;

use super::mapped::MappedFiles;

/// DataFusion's registry. It opens unknown URLs with credentials from the environment.
#[derive(Debug)]
pub(super) struct LazyStores {
    known: DefaultObjectStoreRegistry,
}

impl LazyStores {
    /// # Errors
    /// An external error if `file://` is not a URL, which does not happen.
    pub(super) fn try_new(map_files: bool) -> Result<Self> {
        let known = DefaultObjectStoreRegistry::new();
        if map_files {
            let local = Url::parse("file://").map_err(|e| DataFusionError::External(e.into()))?;
            known.register_store(&local, Arc::new(MappedFiles::new()));
        }
        Ok(Self { known })
    }
}

impl ObjectStoreRegistry for LazyStores {
    fn register_store(&self, url: &Url, store: Arc<dyn ObjectStore>) -> Option<Arc<dyn ObjectStore>> {
        self.known.register_store(url, store)
    }

    fn deregister_store(&self, url: &Url) -> Result<Arc<dyn ObjectStore>> {
        self.known.deregister_store(url)
    }

    fn get_store(&self, url: &Url) -> Result<Arc<dyn ObjectStore>> {
        if let Ok(store) = self.known.get_store(url) {
            return Ok(store);
        }
        let (store, _) = aefusion_udfs::store::open(url.as_str())
            .map_err(|e: DataFusionError| e.context(format!("could not open {url} to read tables")))?;
        self.known.register_store(url, Arc::clone(&store));
        Ok(store)
    }
}
