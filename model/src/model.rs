//! A model that is ready to run.

use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use datafusion_common::error::Result;
use parking_lot::Mutex;

use crate::contract::{Contract, PROBE_ROWS, TensorSpec};
use crate::file::{ModelFile, hex};
use crate::metadata::Metadata;
use crate::name::ModelName;
use crate::onnx::{Cut, Limits, cut, declare, peak};
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
    /// Memory of the idle workers of all pools, bytes.
    idle_bytes: Arc<AtomicUsize>,
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
        Ok(Self {
            name: name.clone(),
            version,
            file,
            weights,
            contract,
            pools: Mutex::default(),
            idle_bytes: Arc::default(),
            rows_run: AtomicU64::new(0),
        })
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
        let row_bytes = |name: &str| self.contract.row_bytes.get(name).copied().unwrap_or(0);
        let row_bytes = part.graph.as_ref().map_or(0, |graph| peak(graph, row_bytes));
        let pool = Arc::new(Pool::new(self.weights.part(part), row_bytes, Arc::clone(&self.idle_bytes)));
        Ok(Arc::clone(self.pools.lock().entry(key).or_insert(pool)))
    }

    /// Rows of one run. The default keeps the widest activations in the second-level cache, and all activations of a
    /// block in 64 MiB. `requested` is rounded up to a multiple of 16.
    ///
    /// Measured on two cores: a 32-16-4-16-32 network is fastest from 4096 rows up, a 32-256-64-256-32 network at 1024.
    pub fn block_rows(&self, requested: Option<usize>) -> usize {
        const CACHE_BYTES: usize = 1 << 20;
        const BLOCK_BYTES: usize = 64 << 20;
        if let Some(rows) = self.contract.fixed_rows {
            return rows;
        }
        let cached = (CACHE_BYTES / (4 * self.contract.widest)).clamp(256, 4096);
        let rows = requested.unwrap_or_else(|| cached.min(BLOCK_BYTES / self.contract.peak_row_bytes.max(1)));
        rows.max(1).next_multiple_of(ROW_MULTIPLE)
    }

    /// The next smaller block in which a row has the same bits; none if there is none.
    pub fn smaller_block(&self, rows: usize) -> Option<usize> {
        if self.contract.fixed_rows.is_some() || rows <= ROW_MULTIPLE {
            return None;
        }
        Some((rows / 2).next_multiple_of(ROW_MULTIPLE))
    }

    /// Memory that all runs of the model share, bytes: its weights, as the file stores them and as kernels pack them.
    pub fn shared_bytes(&self) -> usize {
        self.weights.bytes()
    }

    /// Memory that the model holds while nothing runs, bytes, without idle sessions.
    pub fn held_bytes(&self) -> usize {
        const REST: usize = 512 << 10;
        self.file.size() + self.weights.bytes() / 2 + REST
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
