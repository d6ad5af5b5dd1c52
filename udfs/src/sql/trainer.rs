//! The interface between this crate and a trainer of models.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use datafusion::error::Result;
use datafusion::prelude::{DataFrame, SessionContext};
use parking_lot::Mutex;

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
    /// What to do when the file is published, such as to show a summary.
    pub after_publication: AfterPublication,
}

type Action = Box<dyn FnOnce() + Send>;

/// An action for the time after the publication of a file. It does not run if the file is refused.
#[derive(Clone, Default)]
pub struct AfterPublication(Arc<Mutex<Option<Action>>>);

impl AfterPublication {
    /// Sets the action.
    pub fn set(&self, action: impl FnOnce() + Send + 'static) {
        *self.0.lock() = Some(Box::new(action));
    }

    /// Runs the action, if there is one.
    pub(super) fn run(self) {
        let action = self.0.lock().take();
        if let Some(action) = action {
            action();
        }
    }
}

impl fmt::Debug for AfterPublication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AfterPublication").finish_non_exhaustive()
    }
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
