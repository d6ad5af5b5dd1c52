//! Errors as text for users.

use datafusion::error::DataFusionError;

/// The text of an error: its kind, the operation, the cause.
///
/// DataFusion puts names of optimizer rules around planning errors. This leaves them out.
pub fn message(error: &DataFusionError) -> String {
    let mut operations = Vec::new();
    let root = unwrap(error, &mut operations);
    let (kind, text) = match root {
        DataFusionError::Plan(text) => ("planning error", text.clone()),
        DataFusionError::Execution(text) => ("execution error", text.clone()),
        // DataFusion's own text refers users to its issue tracker
        DataFusionError::Internal(text) => ("internal error", text.clone()),
        DataFusionError::SQL(error, _) => ("syntax error", error.to_string().replacen("sql parser error: ", "", 1)),
        DataFusionError::SchemaError(..) => {
            ("planning error", root.strip_backtrace().replacen("Schema error: ", "", 1))
        }
        DataFusionError::Configuration(text) => ("planning error", text.clone()),
        DataFusionError::ArrowError(error, _) => ("execution error", error.to_string()),
        DataFusionError::External(error) => ("error", error.to_string()),
        DataFusionError::ObjectStore(error) => ("error", error.to_string()),
        DataFusionError::IoError(error) => ("error", error.to_string()),
        other => ("error", other.strip_backtrace()),
    };
    operations.push(text);
    format!("{kind}: {}", operations.join(": "))
}

/// The innermost error. Adds the contexts around it to `operations`, outermost first.
fn unwrap<'a>(error: &'a DataFusionError, operations: &mut Vec<String>) -> &'a DataFusionError {
    match error {
        DataFusionError::Context(context, inner) => {
            let is_rule = context.starts_with("Optimizer rule '")
                || !context.contains(|c: char| !c.is_ascii_lowercase() && c != '_');
            if !is_rule {
                operations.push(context.clone());
            }
            unwrap(inner, operations)
        }
        DataFusionError::Diagnostic(_, inner) => unwrap(inner, operations),
        DataFusionError::Shared(inner) => unwrap(inner, operations),
        DataFusionError::Collection(errors) => errors.first().map_or(error, |first| unwrap(first, operations)),
        DataFusionError::External(inner) => match inner.downcast_ref::<DataFusionError>() {
            Some(inner) => unwrap(inner, operations),
            None => error,
        },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn internal_errors_do_not_name_datafusion() {
        let error = DataFusionError::Internal("it broke".to_owned()).context("CREATE MODEL m");
        assert_eq!(message(&error), "internal error: CREATE MODEL m: it broke");
    }
}
