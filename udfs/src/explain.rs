//! Errors with the operation that failed.

use datafusion::error::DataFusionError;

/// Puts the operation before the text of an error. The kind of error stays.
pub fn explain(what: String, error: DataFusionError) -> DataFusionError {
    match error {
        DataFusionError::Plan(text) => DataFusionError::Plan(format!("{what}: {text}")),
        DataFusionError::Execution(text) => DataFusionError::Execution(format!("{what}: {text}")),
        other => other.context(what),
    }
}
