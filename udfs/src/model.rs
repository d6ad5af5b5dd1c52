//! Models: the contents of a file, running it, and the store of names and versions.

pub mod calibration;
pub mod catalog;
pub mod contract;
mod file;
pub mod metadata;
pub mod onnx;
pub(crate) mod pool;
pub mod runtime;
pub mod store;
mod trial;

use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use datafusion::common::plan_err;
use datafusion::error::Result;
use parking_lot::Mutex;

use contract::{Contract, PROBE_ROWS, TensorSpec};
pub(crate) use file::ModelFile;
use metadata::{Metadata, Role};
pub use onnx::Limits;
use onnx::proto::ModelProto;
use onnx::{Cut, DECODER_PREFIX, computed_tensors, cut, declare, encode, merge, parse};
use pool::Pool;
use store::ModelName;
pub use trial::Trial;

/// Blocks are padded to a multiple of this number of rows. A row then has the same arithmetic in every block.
pub(crate) const ROW_MULTIPLE: usize = PROBE_ROWS;

/// The tensor at which a run starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Start {
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
    contract: Contract,
    pools: Mutex<Pools>,
    rows_run: AtomicU64,
}

impl Model {
    /// Reads a file and determines its contract.
    ///
    /// # Errors
    /// A planning error if the file is refused, or a tensor is missing or ambiguous.
    pub(crate) fn load(name: &ModelName, version: u64, bytes: Bytes, limits: &Limits) -> Result<Self> {
        let file = ModelFile::read(bytes, limits)?;
        let contract = Contract::discover(&file.graph, &file.metadata)?;
        Ok(Self { name: name.clone(), version, file, contract, pools: Mutex::default(), rows_run: AtomicU64::new(0) })
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

    /// The file.
    pub fn bytes(&self) -> &Bytes {
        &self.file.bytes
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
    pub(crate) fn file(&self) -> &ModelFile {
        &self.file
    }

    /// Gives the model of a file its number.
    pub(crate) fn set_version(&mut self, version: u64) {
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
        let pool = Arc::new(Pool::new(&part)?);
        Ok(Arc::clone(self.pools.lock().entry(key).or_insert(pool)))
    }

    /// Rows of one run. The default keeps the widest activations in the second-level cache.
    ///
    /// Measured on two cores: a 32-16-4-16-32 network is fastest from 4096 rows up, a 32-256-64-256-32 network at 1024.
    pub(crate) fn block_rows(&self, requested: Option<usize>) -> usize {
        const CACHE_BYTES: usize = 1 << 20;
        if let Some(rows) = self.contract.fixed_rows {
            return rows;
        }
        let rows = requested.unwrap_or_else(|| (CACHE_BYTES / (4 * self.contract.widest)).clamp(256, 4096));
        rows.next_multiple_of(ROW_MULTIPLE)
    }

    /// Runs what each function would run. A registered model then does not fail in a query.
    pub(crate) fn verify(self: &Arc<Self>) -> Result<()> {
        crate::score::verify(self)
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

/// A copy of a file with its contract and the `options` in its metadata.
///
/// # Errors
/// As [`Model::load`].
pub(crate) fn describe(bytes: &Bytes, options: Metadata, limits: &Limits) -> Result<Bytes> {
    let graph = parse(bytes, limits)?;
    described(graph, options)
}

/// One file from an encoder file and a decoder file; see [`describe`].
///
/// # Errors
/// A planning error if the files do not fit together.
pub(crate) fn describe_pair(encoder: &Bytes, decoder: &Bytes, mut options: Metadata, limits: &Limits) -> Result<Bytes> {
    let encoder = parse(encoder, limits).map_err(|e| e.context("encoder_path"))?;
    let decoder = parse(decoder, limits).map_err(|e| e.context("decoder_path"))?;
    let outputs: Vec<&str> =
        encoder.graph.iter().flat_map(|graph| graph.output.iter().map(|value| value.name())).collect();
    let code = match (options.tensors.get(&Role::Code), outputs.as_slice()) {
        (Some(name), _) => name.clone(),
        (None, [only]) => (*only).to_owned(),
        (None, _) => {
            return plan_err!("the encoder file has the outputs {outputs:?}; name the code with the option code");
        }
    };
    let merged = merge(&encoder, &decoder, &code)?;
    // the merge renamed the tensors of the decoder; options have the names of the decoder file
    let names: Vec<&str> = merged.graph.iter().flat_map(computed_tensors).collect();
    for (role, name) in options.tensors.iter_mut().filter(|(role, _)| **role != Role::Code) {
        let renamed = format!("{DECODER_PREFIX}{name}");
        let is_decoded = matches!(role, Role::Reconstruction | Role::ScaledReconstruction);
        if names.contains(&renamed.as_str()) && (is_decoded || !names.contains(&name.as_str())) {
            *name = renamed;
        }
    }
    options.tensors.insert(Role::Code, code);
    described(merged, options)
}

/// Names of the features in the metadata of a file; empty if it has none.
///
/// # Errors
/// A planning error if the file cannot be read.
pub(crate) fn feature_names(bytes: &Bytes, limits: &Limits) -> Result<Vec<String>> {
    let features = Metadata::read(&parse(bytes, limits)?)?.features.unwrap_or_default();
    Ok(features.into_iter().map(|feature| feature.name).collect())
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn described(mut graph: ModelProto, options: Metadata) -> Result<Bytes> {
    let own = Metadata::read(&graph)?;
    let was_calibrated = own.calibration.is_some() && options.calibration.is_none();
    let old = if was_calibrated { Contract::discover(&graph, &own).ok() } else { None };
    let mut metadata = options.or(own);
    let contract = Contract::discover(&graph, &metadata)?;
    if was_calibrated && !old.is_some_and(|old| old.measures_as(&contract)) {
        metadata.calibration = None;
    }
    for role in Role::ALL {
        if let Some(tensor) = contract.tensor(role) {
            metadata.tensors.insert(role, tensor.name.clone());
        }
    }
    // the graph declares the widths of its outputs; other widths are known only from a test run
    metadata.code_width = contract
        .tensor(Role::Code)
        .filter(|code| file::declared_width(&graph, &code.name) != Some(code.width()))
        .map(TensorSpec::width);
    metadata.features = Some(contract.features);
    metadata.error_metric = Some(contract.error_metric);
    metadata.null_policy = Some(contract.null_policy);
    metadata.write(&mut graph)?;
    Ok(encode(&graph))
}
