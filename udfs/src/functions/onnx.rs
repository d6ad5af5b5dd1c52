//! Functions that `CREATE FUNCTION … LANGUAGE ONNX` creates.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use datafusion::arrow::array::ArrayRef;
use datafusion::arrow::compute::{can_cast_types, cast};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::plan_err;
use datafusion::error::Result;
use datafusion::logical_expr::interval_arithmetic::Interval;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};

use super::{BatchCall, Function, evaluate};
use crate::config::AeOptions;
use crate::explain::explain;
use crate::matrix::{Form, Rows};
use crate::model::Model;

/// Whether an output fits the declared type: a list as a list, a number as a number.
fn fits(output: &DataType, declared: &DataType) -> bool {
    match declared {
        DataType::List(item) | DataType::LargeList(item) => output.is_nested() && item.data_type().is_floating(),
        DataType::FixedSizeList(item, _) => item.data_type().is_floating() && can_cast_types(output, declared),
        number => number.is_floating() && !output.is_nested(),
    }
}

/// A function of `CREATE FUNCTION … LANGUAGE ONNX`.
#[derive(Debug)]
#[cfg_attr(not(feature = "proto"), allow(dead_code, reason = "plans across a wire read all fields"))]
pub(crate) struct OnnxFunction {
    name: String,
    pub(crate) model: Arc<Model>,
    /// Whether the store has the model. Otherwise the function has it from a file.
    pub(crate) is_stored: bool,
    pub(crate) output: Arc<dyn Function>,
    pub(crate) arguments: Vec<DataType>,
    pub(crate) return_type: DataType,
    form: Form,
    signature: Signature,
}

impl OnnxFunction {
    /// A function that takes arguments of these types.
    ///
    /// # Errors
    /// A planning error if they do not fit the features of the model, or the output does not fit the result.
    pub(crate) fn try_new(
        name: String,
        model: Arc<Model>,
        is_stored: bool,
        output: Arc<dyn Function>,
        arguments: Vec<DataType>,
        return_type: DataType,
    ) -> Result<Self> {
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
        let signature = Signature::exact(arguments.clone(), Volatility::Immutable);
        Ok(Self { name, model, is_stored, output, arguments, return_type, form, signature })
    }
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
