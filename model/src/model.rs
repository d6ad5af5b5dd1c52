//! A model that is ready to run.

use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use datafusion_common::error::Result;
use parking_lot::Mutex;

use crate::contract::{Contract, PROBE_ROWS, TensorSpec};
use crate::file::{ModelFile, hex};
use crate::metadata::Metadata;
use crate::name::ModelName;
use crate::onnx::{Cut, Limits, cut, declare};
use crate::pool::Pool;
use crate::runtime::Weights;

/// Blocks are padded to a multiple of this number of rows. A row then has the same arithmetic in every block.
pub(crate) const ROW_MULTIPLE: usize = PROBE_ROWS;

/// The tensor at which a run starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Start {
    /// The features.
    Features,
    /// The code: only the decoder runs.
    Code,
}

/// Sessions by the part of the graph that they run: its start and its outputs.
type Pools = HashMap<(Start, Vec<String>), Arc<Pool>>;

/// An autoencoder that is ready to run. Models are equal if they have the same file, name and version.
pub struct Model {
    name: ModelName,
    version: u64,
    file: ModelFile,
    /// The large weights, which the sessions of all pools share.
    weights: Arc<Weights>,
    contract: Contract,
    pools: Mutex<Pools>,
    rows_run: AtomicU64,
}

impl Model {
    /// Reads a file and determines its contract.
    ///
    /// # Errors
    /// A planning error if the file is refused, or a tensor is missing or ambiguous.
    pub fn load(name: &ModelName, version: u64, bytes: Bytes, limits: &Limits) -> Result<Self> {
        let mut file = ModelFile::read(bytes, limits)?;
        let weights = Weights::of(file.take_tensors())?;
        let mut contract = Contract::discover(&file.graph, &file.metadata, &weights)?;
        contract.keep_checked(&file.metadata);
        let (name, rows_run) = (name.clone(), AtomicU64::new(0));
        Ok(Self { name, version, file, weights, contract, pools: Mutex::default(), rows_run })
    }

    /// The name in the store.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// The version in the store.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// SHA-256 of the file, the identity of the model.
    pub fn sha256(&self) -> &[u8; 32] {
        &self.file.sha256
    }

    /// [`Model::sha256`] in hexadecimal.
    pub fn sha256_hex(&self) -> String {
        hex(&self.file.sha256)
    }

    /// Rows that this process has run through the model.
    pub fn rows_run(&self) -> u64 {
        self.rows_run.load(Ordering::Relaxed)
    }

    pub(crate) fn count_rows(&self, rows: usize) {
        self.rows_run.fetch_add(rows as u64, Ordering::Relaxed);
    }

    /// The inputs and outputs of the model.
    pub fn contract(&self) -> &Contract {
        &self.contract
    }

    /// The metadata of the file.
    pub fn metadata(&self) -> &Metadata {
        &self.file.metadata
    }

    /// The file as it was read.
    pub fn file(&self) -> &ModelFile {
        &self.file
    }

    /// Gives the model of a file its number.
    pub fn set_version(&mut self, version: u64) {
        self.version = version;
    }

    /// The program that made the file, from the file.
    pub fn producer(&self) -> String {
        self.file.producer()
    }

    /// Sessions for the smallest part of the graph that computes `outputs`.
    pub(crate) fn pool(&self, start: Start, outputs: &[&TensorSpec]) -> Result<Arc<Pool>> {
        let names: Vec<String> = outputs.iter().map(|tensor| tensor.name.clone()).collect();
        let key = (start, names);
        if let Some(pool) = self.pools.lock().get(&key) {
            return Ok(Arc::clone(pool));
        }
        let inputs = match start {
            Start::Features => Vec::new(),
            Start::Code => {
                let entry = self.contract.require_decoder()?;
                vec![declare(&entry.name, entry.element.to_onnx(), &entry.shape)]
            }
        };
        let part = cut(&self.file.graph, &Cut { outputs: key.1.clone(), inputs })?;
        let pool = Arc::new(Pool::new(self.weights.part(part)));
        Ok(Arc::clone(self.pools.lock().entry(key).or_insert(pool)))
    }

    /// Rows of one run. The default keeps the widest activations in the second-level cache.
    ///
    /// Measured on two cores: a 32-16-4-16-32 network is fastest from 4096 rows up, a 32-256-64-256-32 network at 1024.
    pub fn block_rows(&self, requested: Option<usize>) -> usize {
        const CACHE_BYTES: usize = 1 << 20;
        if let Some(rows) = self.contract.fixed_rows {
            return rows;
        }
        let rows = requested.unwrap_or_else(|| (CACHE_BYTES / (4 * self.contract.widest)).clamp(256, 4096));
        rows.next_multiple_of(ROW_MULTIPLE)
    }
}

impl PartialEq for Model {
    fn eq(&self, other: &Self) -> bool {
        self.file.sha256 == other.file.sha256 && self.name == other.name && self.version == other.version
    }
}

impl Eq for Model {}

impl Hash for Model {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.file.sha256.hash(state);
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name.as_str(), self.version)
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model")
            .field("name", &self.name)
            .field("version", &self.version)
            .field("sha256", &self.sha256_hex())
            .finish_non_exhaustive()
    }
}
