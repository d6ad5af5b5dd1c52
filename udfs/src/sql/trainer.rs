//! The interface between this crate and a trainer of models.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use datafusion::error::Result;
use datafusion::prelude::{DataFrame, SessionContext};

use super::Options;
use crate::store::ModelName;

/// A model to train.
#[derive(Debug)]
pub struct TrainingJob {
    /// The name of the model.
    pub name: ModelName,
    /// The options in `OPTIONS (…)`. The trainer refuses unknown options ([`Options::finish`]).
    pub options: Options,
    /// The rows to train on.
    pub rows: DataFrame,
}

/// Trains the model of `CREATE MODEL … AS SELECT`.
#[async_trait]
pub trait Trainer: fmt::Debug + Send + Sync {
    /// Trains a model and returns its ONNX file with metadata. The caller checks and publishes the file.
    ///
    /// # Errors
    /// A planning error for invalid options, an execution error for rows that cannot be trained on.
    async fn train(&self, session: &SessionContext, job: TrainingJob) -> Result<Bytes>;
}

/// The trainer of a session, as an extension of its configuration.
#[derive(Debug, Clone)]
pub struct TrainerHandle(pub Arc<dyn Trainer>);
