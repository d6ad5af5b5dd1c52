//! The registration of a file: it gets its contract, and everything that functions run is run once.

use bytes::Bytes;
use datafusion_common::error::Result;

use crate::describe::{describe, describe_pair};
use crate::metadata::Metadata;
use crate::model::Model;
use crate::name::ModelName;
use crate::onnx::Limits;
use crate::score::verify;

/// The file or files of a model, as the user has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// One file with encoder and decoder.
    File(Bytes),
    /// The encoder and the decoder, in a file each.
    Pair {
        /// The encoder.
        encoder: Bytes,
        /// The decoder; its only input is the code.
        decoder: Bytes,
    },
}

impl From<Bytes> for Source {
    fn from(file: Bytes) -> Self {
        Self::File(file)
    }
}

/// A file to register.
#[derive(Debug, Clone, PartialEq)]
pub struct Registration {
    /// The name of the model.
    pub name: ModelName,
    /// The version of the model.
    pub version: u64,
    /// The file.
    pub source: Source,
    /// What the user says about the file. This goes before the file's own metadata.
    pub options: Metadata,
    /// Limits for the file.
    pub limits: Limits,
}

impl Registration {
    /// The model of the file, after a run of everything that functions run.
    ///
    /// # Errors
    /// A planning error if the file is refused.
    pub fn run(self) -> Result<Model> {
        let Self { name, version, source, options, limits } = self;
        let described = match source {
            Source::File(file) => describe(&file, options, &limits)?,
            Source::Pair { encoder, decoder } => describe_pair(&encoder, &decoder, options, &limits)?,
        };
        verified(&name, version, described, &limits)
    }
}

/// The model of a file with its contract, after a run of everything that functions run.
///
/// # Errors
/// A planning error if the file is refused.
pub fn verified(name: &ModelName, version: u64, bytes: Bytes, limits: &Limits) -> Result<Model> {
    let model = Model::load(name, version, bytes, limits)?;
    verify(&model)?;
    Ok(model)
}
