//! `CREATE FUNCTION f(FLOAT[]) RETURNS FLOAT[] LANGUAGE ONNX AS 'uri?output=code'`.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::{ScalarValue, plan_err};
use datafusion::error::Result;
use datafusion::execution::SessionState;
use datafusion::execution::context::{FunctionFactory, RegisterFunction};
use datafusion::logical_expr::{CreateFunction, Expr, ScalarUDF};

use crate::catalog::Models;
use crate::config::AeOptions;
use crate::explain::explain;
use crate::functions::{Encode, Function, OnnxFunction, Reconstruct, ReconstructionError};
use crate::model::Model;
use crate::model::metadata::Metadata;
use crate::model::registration::Registration;
use crate::store::{ModelName, ModelRef, read};
use crate::suggest;

/// Creates functions from ONNX files, for the session that runs the statement.
#[derive(Debug)]
pub(crate) struct OnnxFunctions;

#[async_trait]
impl FunctionFactory for OnnxFunctions {
    async fn create(&self, state: &SessionState, statement: CreateFunction) -> Result<RegisterFunction> {
        let what = format!("CREATE FUNCTION {}", statement.name);
        self.function(state, statement).await.map_err(|e| explain(what, e))
    }
}

impl OnnxFunctions {
    async fn function(&self, state: &SessionState, statement: CreateFunction) -> Result<RegisterFunction> {
        match statement.params.language.map(|language| language.value) {
            Some(language) if language.eq_ignore_ascii_case("onnx") => {}
            Some(language) => {
                return plan_err!("unknown LANGUAGE {language}; this session creates functions of LANGUAGE ONNX");
            }
            None => return plan_err!("LANGUAGE is missing; this session creates functions of LANGUAGE ONNX"),
        }
        if state.scalar_functions().contains_key(&statement.name) && !statement.or_replace {
            return plan_err!("it exists already; CREATE OR REPLACE FUNCTION {} … replaces it", statement.name);
        }
        let uri = match statement.params.function_body {
            Some(Expr::Literal(ScalarValue::Utf8(Some(uri)) | ScalarValue::Utf8View(Some(uri)), _)) => uri,
            _ => return plan_err!("AS must be followed by a string, 'path, URL or model?output=code'"),
        };
        let Some(return_type) = statement.return_type else {
            return plan_err!("RETURNS is missing: FLOAT[] for a code or reconstruction, DOUBLE for an error");
        };
        let arguments: Vec<DataType> =
            statement.args.unwrap_or_default().into_iter().map(|argument| argument.data_type).collect();
        let (location, output) = output(&uri)?;
        let (model, is_stored) = model(state, location, &statement.name).await?;
        let function = OnnxFunction::try_new(statement.name, model, is_stored, output, arguments, return_type)?;
        Ok(RegisterFunction::Scalar(Arc::new(ScalarUDF::new_from_impl(function))))
    }
}

/// The model of a name or of a file, and whether it is a name.
async fn model(state: &SessionState, location: &str, function: &str) -> Result<(Arc<Model>, bool)> {
    let models = Models::of(state.config())?;
    let limits = AeOptions::of(state.config_options()).limits();
    if let Ok(reference) = ModelRef::parse(location) {
        return Ok((models.find(&reference, &limits).await?, true));
    }
    let name = ModelName::new(function)?;
    let source = read(state.runtime_env(), location, &limits).await?.into();
    let registration = Registration { name, version: 1, source, options: Metadata::default(), limits };
    Ok((models.try_file(registration).await?, false))
}

/// Splits `uri?output=code`.
fn output(uri: &str) -> Result<(&str, Arc<dyn Function>)> {
    const OUTPUTS: [&str; 3] = ["code", "reconstruction", "error"];
    let (location, query) = uri.split_once('?').unwrap_or((uri, ""));
    let mut output = None;
    for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
        if key != "output" {
            return plan_err!("unknown parameter {key} in '{uri}'; the only one is output");
        }
        output = Some(value.into_owned());
    }
    let function: Arc<dyn Function> = match output.as_deref() {
        Some("code") => Arc::new(Encode),
        Some("reconstruction") => Arc::new(Reconstruct),
        Some("error") => Arc::new(ReconstructionError),
        Some(other) => {
            return plan_err!(
                "unknown output '{other}'{}; the outputs are {}",
                suggest::hint(other, OUTPUTS),
                OUTPUTS.join(", ")
            );
        }
        None => return plan_err!("'{uri}' names no output; add ?output=code, reconstruction or error"),
    };
    Ok((location, function))
}
