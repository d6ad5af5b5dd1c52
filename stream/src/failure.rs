//! Why a pipeline stopped, and whether it can retry.

use datafusion::error::DataFusionError;

/// The error of an instance that was replaced.
pub(crate) const FENCED: &str = "another instance of this pipeline with the same name has replaced this one; give each \
                                 instance its own name (aefusion run --instance)";

/// Why a pipeline stopped.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A retry would fail again: the pipeline ends.
    Permanent(DataFusionError),
    /// The pipeline retries from its last commit.
    Transient(DataFusionError),
    /// Another instance has the name of this one, or brokers have aborted a transaction that took too long. The two
    /// cases look alike. The pipeline retries once, and ends if it is fenced again within a minute.
    Fenced(DataFusionError),
}

impl Failure {
    /// A failure that somebody must fix.
    pub(crate) fn permanent(text: impl Into<String>) -> Self {
        Self::Permanent(DataFusionError::Execution(text.into()))
    }

    /// A failure of the environment, which may pass.
    pub(crate) fn transient(text: impl Into<String>) -> Self {
        Self::Transient(DataFusionError::Execution(text.into()))
    }

    /// The error itself.
    pub(crate) fn into_error(self) -> DataFusionError {
        match self {
            Self::Permanent(error) | Self::Transient(error) | Self::Fenced(error) => error,
        }
    }
}

impl From<DataFusionError> for Failure {
    /// Errors of files, networks and memory are transient. Errors of queries are permanent.
    fn from(error: DataFusionError) -> Self {
        let is_transient = matches!(
            error.find_root(),
            DataFusionError::IoError(_)
                | DataFusionError::ObjectStore(_)
                | DataFusionError::ParquetError(_)
                | DataFusionError::ResourcesExhausted(_)
        );
        if is_transient { Self::Transient(error) } else { Self::Permanent(error) }
    }
}
