//! A model file that was read, and does not run.

use bytes::Bytes;
use datafusion_common::error::Result;
use sha2::{Digest, Sha256};

use crate::contract::Contract;
use crate::metadata::{Metadata, Role};
use crate::onnx::proto::ModelProto;
use crate::onnx::{Limits, declared_tensor, parse};

/// The contents of a model file. They say all that `ae_models()` lists; a [`crate::model::Model`] can also run.
#[derive(Debug)]
pub struct ModelFile {
    pub(crate) sha256: [u8; 32],
    pub(crate) bytes: Bytes,
    pub(crate) graph: ModelProto,
    pub(crate) metadata: Metadata,
}

impl ModelFile {
    /// Reads a file, and runs nothing.
    ///
    /// # Errors
    /// A planning error if the file is refused.
    pub fn read(bytes: Bytes, limits: &Limits) -> Result<Self> {
        let graph = parse(&bytes, limits)?;
        let metadata = Metadata::read(&graph)?;
        Ok(Self { sha256: sha256(&bytes), bytes, graph, metadata })
    }

    /// SHA-256 of the file in hexadecimal.
    pub fn sha256_hex(&self) -> String {
        hex(&self.sha256)
    }

    /// The program that made the file.
    pub fn producer(&self) -> String {
        format!("{} {}", self.graph.producer_name(), self.graph.producer_version()).trim().to_owned()
    }

    /// The number of features.
    ///
    /// # Errors
    /// A planning error if the inputs do not fit an autoencoder.
    pub fn n_features(&self) -> Result<usize> {
        Contract::n_features(&self.graph, &self.metadata)
    }

    /// The width of the code, if the metadata name a code.
    pub fn code_width(&self) -> Option<usize> {
        let code = self.metadata.tensors.get(&Role::Code)?;
        self.metadata.code_width.or_else(|| declared_width(&self.graph, code))
    }
}

/// The width of an output that the graph declares, without the first dimension.
pub(crate) fn declared_width(model: &ModelProto, name: &str) -> Option<usize> {
    let output = model.graph.as_ref()?.output.iter().find(|output| output.name() == name)?;
    let (_, dims) = declared_tensor(output)?;
    let (_, row) = dims.as_deref()?.split_first()?;
    row.iter().try_fold(1, |width: usize, dim| width.checked_mul(usize::try_from((*dim)?).ok()?))
}

/// SHA-256 of a file.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
