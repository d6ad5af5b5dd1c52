//! Errors as people read them.

use datafusion::error::DataFusionError;

/// One text for an error: whose it is, what was being done, what went wrong.
///
/// Names of optimizer rules, which DataFusion puts around errors of planning, are left out.
pub fn message(error: &DataFusionError) -> String {
    let mut doing = Vec::new();
    let root = unwrap(error, &mut doing);
    let (kind, text) = match root {
        DataFusionError::Plan(text) => ("planning error", text.clone()),
        DataFusionError::Execution(text) => ("execution error", text.clone()),
        // DataFusion's own text would send people to its issue tracker
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
    doing.push(text);
    format!("{kind}: {}", doing.join(": "))
}

/// The innermost error; what stood around it goes to `doing`, outermost first.
fn unwrap<'a>(error: &'a DataFusionError, doing: &mut Vec<String>) -> &'a DataFusionError {
    match error {
        DataFusionError::Context(context, inner) => {
            let is_rule = context.starts_with("Optimizer rule '")
                || !context.contains(|c: char| !c.is_ascii_lowercase() && c != '_');
            if !is_rule {
                doing.push(context.clone());
            }
            unwrap(inner, doing)
        }
        DataFusionError::Diagnostic(_, inner) => unwrap(inner, doing),
        DataFusionError::Shared(inner) => unwrap(inner, doing),
        DataFusionError::Collection(errors) => errors.first().map_or(error, |first| unwrap(first, doing)),
        DataFusionError::External(inner) => match inner.downcast_ref::<DataFusionError>() {
            Some(inner) => unwrap(inner, doing),
            None => error,
        },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn internal_errors_are_ours() {
        let error = DataFusionError::Internal("it broke".to_owned()).context("CREATE MODEL m");
        assert_eq!(message(&error), "internal error: CREATE MODEL m: it broke");
    }
}
