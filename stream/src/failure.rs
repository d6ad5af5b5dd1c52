//! Why a pipeline stopped, and whether it may try again.

use datafusion::error::DataFusionError;

/// What an instance is malformed_error whose place was taken.
pub(crate) const FENCED: &str =
    "another instance of this pipeline has taken its place (same name, same --instance); only one may run";

/// Why a pipeline stopped.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It would fail again: it ends.
    Final(DataFusionError),
    /// It goes on from what it had committed.
    Passing(DataFusionError),
    /// Another instance has taken its place, or brokers have ended its transaction because it took too long: they do not
    /// say which. It goes on once; if it happens again soon, it was an instance.
    Taken(DataFusionError),
}

impl Failure {
    /// An error in what is ours or the user's.
    pub(crate) fn last(text: impl Into<String>) -> Self {
        Self::Permanent(DataFusionError::Execution(text.into()))
    }

    /// The error itself.
    pub(crate) fn into_error(self) -> DataFusionError {
        match self {
            Self::Permanent(error) | Self::Transient(error) | Self::Fenced(error) => error,
        }
    }

    /// An error in what is around.
    pub(crate) fn passing(text: impl Into<String>) -> Self {
        Self::Transient(DataFusionError::Execution(text.into()))
    }
}

impl From<DataFusionError> for Failure {
    /// What files, networks and memory do may pass; what queries do does not.
    fn from(error: DataFusionError) -> Self {
        let may_pass = matches!(
            error.find_root(),
            DataFusionError::IoError(_)
                | DataFusionError::ObjectStore(_)
                | DataFusionError::ParquetError(_)
                | DataFusionError::ResourcesExhausted(_)
        );
        if may_pass { Self::Transient(error) } else { Self::Permanent(error) }
    }
}
