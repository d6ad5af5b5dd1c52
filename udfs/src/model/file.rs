//! A model file that was read, and does not run.

use bytes::Bytes;
use datafusion::error::Result;
use sha2::{Digest, Sha256};

use super::contract::Contract;
use super::hex;
use super::metadata::{Metadata, Role};
use super::onnx::proto::ModelProto;
use super::onnx::{Limits, declared_tensor, parse};

/// The contents of a model file. They say all that `ae_models()` lists; a [`super::Model`] can also run.
pub(crate) struct ModelFile {
    pub(super) sha256: [u8; 32],
    pub(super) bytes: Bytes,
    pub(super) graph: ModelProto,
    pub(super) metadata: Metadata,
}

impl ModelFile {
    /// Reads a file, and runs nothing.
    ///
    /// # Errors
    /// A planning error if the file is refused.
    pub(crate) fn read(bytes: Bytes, limits: &Limits) -> Result<Self> {
        let graph = parse(&bytes, limits)?;
        let metadata = Metadata::read(&graph)?;
        let sha256 = Sha256::digest(&bytes).into();
        Ok(Self { sha256, bytes, graph, metadata })
    }

    pub(crate) fn sha256_hex(&self) -> String {
        hex(&self.sha256)
    }

    /// The program that made the file.
    pub(crate) fn producer(&self) -> String {
        format!("{} {}", self.graph.producer_name(), self.graph.producer_version()).trim().to_owned()
    }

    /// The number of features.
    ///
    /// # Errors
    /// A planning error if the inputs do not fit an autoencoder.
    pub(crate) fn n_features(&self) -> Result<usize> {
        Contract::n_features(&self.graph, &self.metadata)
    }

    /// The width of the code, if the metadata name a code.
    pub(crate) fn code_width(&self) -> Option<usize> {
        let code = self.metadata.tensors.get(&Role::Code)?;
        self.metadata.code_width.or_else(|| declared_width(&self.graph, code))
    }
}

/// The width of an output that the graph declares, without the first dimension.
pub(super) fn declared_width(model: &ModelProto, name: &str) -> Option<usize> {
    let output = model.graph.as_ref()?.output.iter().find(|output| output.name() == name)?;
    let (_, dims) = declared_tensor(output)?;
    let (_, row) = dims.as_deref()?.split_first()?;
    row.iter().try_fold(1, |width: usize, dim| width.checked_mul(usize::try_from((*dim)?).ok()?))
}
