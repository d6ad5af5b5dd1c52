//! `CREATE FUNCTION f(FLOAT[]) RETURNS FLOAT[] LANGUAGE ONNX AS 'uri?output=code'`.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::ArrayRef;
use datafusion::arrow::compute::{can_cast_types, cast};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{ScalarValue, plan_err};
use datafusion::error::Result;
use datafusion::execution::SessionState;
use datafusion::execution::context::{FunctionFactory, RegisterFunction};
use datafusion::logical_expr::interval_arithmetic::Interval;
use datafusion::logical_expr::{
    ColumnarValue, CreateFunction, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use crate::catalog::Models;
use crate::config::AeOptions;
use crate::explain::explain;
use crate::functions::{BatchCall, Encode, Function, Reconstruct, ReconstructionError, evaluate};
use crate::matrix::{Form, Rows};
use crate::model::Model;
use crate::model::describe::describe;
use crate::model::metadata::Metadata;
use crate::model::score::verify;
use crate::store::{ModelName, ModelRef, read};
use crate::suggest;

/// Creates functions from ONNX files, for this session.
#[derive(Debug)]
pub(crate) struct OnnxFunctions {
    pub(crate) models: Models,
}

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
        let model = self.model(state, location, &statement.name).await?;
        let fields: Vec<FieldRef> =
            arguments.iter().map(|data_type| Arc::new(Field::new("feature", data_type.clone(), true))).collect();
        let form = Form::of(&fields);
        if form == Form::ByName {
            return plan_err!("declare its arguments: FLOAT[], or one number for each feature");
        }
        output.check(&model, &form)?;
        let output_type = output.data_type(&model, &form)?;
        if !fits(&output_type, &return_type) {
            let expected =
                if output_type.is_nested() { "a list of numbers such as FLOAT[]" } else { "a number such as DOUBLE" };
            return plan_err!("RETURNS {return_type} does not fit the output; it must be {expected}");
        }
        let function = OnnxFunction {
            name: statement.name,
            model,
            output,
            form,
            return_type,
            signature: Signature::exact(arguments, Volatility::Immutable),
        };
        Ok(RegisterFunction::Scalar(Arc::new(ScalarUDF::new_from_impl(function))))
    }

    async fn model(&self, state: &SessionState, location: &str, function: &str) -> Result<Arc<Model>> {
        let limits = AeOptions::of(state.config_options()).limits();
        if let Ok(reference) = ModelRef::parse(location) {
            return self.models.find(&reference, &limits).await;
        }
        let bytes = describe(&read(state.runtime_env(), location, &limits).await?, Metadata::default(), &limits)?;
        let model = Arc::new(Model::load(&ModelName::new(function)?, 1, bytes, &limits)?);
        verify(&model)?;
        Ok(model)
    }
}

/// Whether an output fits the declared type: a list as a list, a number as a number.
fn fits(output: &DataType, declared: &DataType) -> bool {
    match declared {
        DataType::List(item) | DataType::LargeList(item) => output.is_nested() && item.data_type().is_floating(),
        DataType::FixedSizeList(item, _) => item.data_type().is_floating() && can_cast_types(output, declared),
        number => number.is_floating() && !output.is_nested(),
    }
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

#[derive(Debug)]
struct OnnxFunction {
    name: String,
    model: Arc<Model>,
    output: Arc<dyn Function>,
    form: Form,
    return_type: DataType,
    signature: Signature,
}

impl PartialEq for OnnxFunction {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
            && self.model == other.model
            && self.output.name() == other.output.name()
            && self.signature == other.signature
            && self.return_type == other.return_type
    }
}

impl Eq for OnnxFunction {}

impl Hash for OnnxFunction {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
        self.model.hash(state);
        self.output.name().hash(state);
    }
}

impl ScalarUDFImpl for OnnxFunction {
    fn name(&self) -> &str {
        &self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.return_type.clone())
    }

    /// Only the type is known. Without the type, `f(…) > 1` cannot be planned as the key of a window.
    fn evaluate_bounds(&self, _: &[&Interval]) -> Result<Interval> {
        Interval::make_unbounded(&self.return_type)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let n = arrays.first().map_or(args.number_rows, |array: &ArrayRef| array.len());
        let rows = Rows::new(&arrays, &self.model.contract().features, n);
        let block_rows = AeOptions::of(&args.config_options).block_rows();
        let result = rows.and_then(|rows| {
            evaluate(self.output.as_ref(), &BatchCall { model: &self.model, form: &self.form, rows: &rows }, block_rows)
        });
        let result = result.map_err(|e| explain(format!("{}()", self.name), e))?;
        Ok(ColumnarValue::Array(cast(&result, &self.return_type)?))
    }
}
