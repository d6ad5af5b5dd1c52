//! Who trains a model: the interface between this plugin and a trainer.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use datafusion::error::Result;
use datafusion::prelude::{DataFrame, SessionContext};

use super::Options;
use crate::model::store::ModelName;

/// A model to be trained.
#[derive(Debug)]
pub struct TrainingJob {
    /// Its name.
    pub name: ModelName,
    /// What `OPTIONS (…)` says; the trainer refuses what it does not know ([`Options::finish`]).
    pub options: Options,
    /// The rows to train on.
    pub rows: DataFrame,
}

/// Turns `CREATE MODEL … AS SELECT` into an ONNX file.
#[async_trait]
pub trait Trainer: fmt::Debug + Send + Sync {
    /// The file, with its metadata; it is checked and published by the caller.
    ///
    /// # Errors
    /// A planning error for options, an execution error for rows that cannot be trained on.
    async fn train(&self, session: &SessionContext, job: TrainingJob) -> Result<Bytes>;
}

/// The trainer of a session, as an extension of its configuration.
#[derive(Debug, Clone)]
pub struct TrainerHandle(pub Arc<dyn Trainer>);
