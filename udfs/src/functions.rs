//! The SQL functions, one file for each: documentation, result type, evaluation.

mod contributions;
mod decode;
mod encode;
mod error;
mod is_anomaly;
mod onnx;
mod predict;
mod predict_proba;
mod pvalue;
mod reconstruct;
mod run;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, LazyLock};

use datafusion::arrow::array::ArrayRef;
use datafusion::arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{ScalarValue, plan_err};
use datafusion::config::ConfigOptions;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::interval_arithmetic::Interval;
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::{
    ColumnarValue, DocSection, Documentation, DocumentationBuilder, Expr, ReturnFieldArgs, ScalarFunctionArgs,
    ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility,
};

use crate::catalog::Models;
use crate::config::AeOptions;
use crate::explain::explain;
use crate::matrix::{Form, Rows};
use crate::model::metadata::Feature;
use crate::model::{Model, Start};
use crate::output::Scores;
use crate::score::{Request, score};

pub(crate) use contributions::Contributions;
pub(crate) use encode::Encode;
pub(crate) use error::ReconstructionError;
pub(crate) use onnx::OnnxFunction;
pub(crate) use reconstruct::Reconstruct;

const SECTION: DocSection = DocSection {
    include: true,
    label: "Autoencoder Functions",
    description: Some("Run an autoencoder over rows of features."),
};

/// How SQL shows a function: its names, its result and its documentation.
#[derive(Debug)]
pub(crate) struct Spec {
    /// Name in SQL.
    pub(crate) name: &'static str,
    /// Further names in SQL.
    pub(crate) aliases: &'static [&'static str],
    /// Name of the result among those of one run, as in `outputs=[error, code]`.
    pub(crate) output: &'static str,
    /// Type of the result that `SHOW FUNCTIONS` lists. The type in a query depends on the model.
    pub(crate) shown_type: fn() -> DataType,
    /// What `SHOW FUNCTIONS` lists.
    pub(crate) documentation: LazyLock<Documentation>,
}

/// A function over the rows of a model.
pub(crate) trait Function: fmt::Debug + Send + Sync {
    /// How SQL shows it.
    fn spec(&self) -> &'static Spec;

    /// The arguments after the model.
    fn arguments(&self, model: &Model) -> Result<Vec<Feature>> {
        Ok(model.contract().features.clone())
    }

    /// Whether a call without arguments takes its columns by name.
    fn binds_by_name(&self) -> bool {
        true
    }

    /// Checks number and types of the arguments.
    ///
    /// # Errors
    /// A planning error if the model does not take them.
    fn check(&self, model: &Model, form: &Form) -> Result<()> {
        form.check(model, model.contract())
    }

    /// Type of the result.
    fn data_type(&self, model: &Model, form: &Form) -> Result<DataType>;

    /// Where the run of the graph starts.
    fn start(&self) -> Start {
        Start::Features
    }

    /// What the model must compute.
    fn request(&self, model: &Model, form: &Form) -> Result<Request>;

    /// The result, from scores that hold at least the [request](Self::request).
    fn result(&self, call: &BatchCall<'_>, scores: &Scores) -> Result<ArrayRef>;
}

impl dyn Function {
    /// Name in SQL.
    pub(crate) fn name(&self) -> &'static str {
        self.spec().name
    }

    /// Name of the result among those of one run.
    pub(crate) fn output(&self) -> &'static str {
        self.spec().output
    }
}

/// The result of a function for some rows.
pub(crate) fn evaluate(function: &dyn Function, call: &BatchCall<'_>, block_rows: Option<usize>) -> Result<ArrayRef> {
    let request = function.request(call.model, call.form)?;
    let scores = score(call.model, function.start(), call.rows, &request, block_rows)?;
    function.result(call, &scores)
}

/// A call over the rows of one batch.
#[derive(Debug)]
pub(crate) struct BatchCall<'a> {
    pub(crate) model: &'a Model,
    pub(crate) form: &'a Form,
    pub(crate) rows: &'a Rows,
}

/// All functions.
pub(crate) fn all() -> Vec<Arc<dyn Function>> {
    vec![
        Arc::new(Encode),
        Arc::new(decode::Decode),
        Arc::new(Reconstruct),
        Arc::new(ReconstructionError),
        Arc::new(Contributions),
        Arc::new(pvalue::PValue),
        Arc::new(is_anomaly::IsAnomaly),
        Arc::new(predict::Predict),
        Arc::new(predict_proba::PredictProba),
        Arc::new(run::RunAll),
    ]
}

/// What [`crate::BindModels`] decided about a call. Later changes of the arguments do not change it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Bound {
    pub(crate) model: Arc<Model>,
    /// Whether the first argument names the model. An optimizer rule can turn a text feature into a literal, and the
    /// literal is still a feature.
    pub(crate) is_named: bool,
}

/// A function as SQL sees it: for any model, or bound to one.
#[derive(Debug, Clone)]
pub(crate) struct ModelFunction {
    function: Arc<dyn Function>,
    models: Models,
    options: AeOptions,
    /// None before [`crate::BindModels`] ran.
    bound: Option<Bound>,
    signature: Signature,
    aliases: Vec<String>,
}

impl ModelFunction {
    pub(crate) fn new(function: Arc<dyn Function>, models: Models, options: AeOptions) -> Self {
        // SHOW FUNCTIONS lists the first form. Any arguments are accepted here, and checked later.
        let shown = TypeSignature::Exact(shown_arguments());
        let signature =
            Signature::one_of(vec![shown, TypeSignature::VariadicAny, TypeSignature::Nullary], Volatility::Immutable);
        let aliases = function.spec().aliases.iter().map(|alias| (*alias).to_owned()).collect();
        Self { function, models, options, bound: None, signature, aliases }
    }

    pub(crate) fn into_udf(self) -> ScalarUDF {
        ScalarUDF::new_from_impl(self)
    }

    pub(crate) fn function(&self) -> &Arc<dyn Function> {
        &self.function
    }

    /// What the call is bound to; none before [`crate::BindModels`] ran.
    pub(crate) fn bound(&self) -> Option<&Bound> {
        self.bound.as_ref()
    }

    /// This function, bound.
    pub(crate) fn bind(&self, bound: Bound) -> Self {
        Self { bound: Some(bound), ..self.clone() }
    }

    /// The name of a model that a call without one uses, if the session sets it.
    pub(crate) fn default_model(&self) -> Option<&str> {
        Some(self.options.default_model.as_str()).filter(|name| !name.is_empty())
    }

    /// The name of the model, if the first argument is one.
    fn reference<'a>(&self, first: Option<&'a ScalarValue>) -> Option<&'a str> {
        match &self.bound {
            Some(Bound { is_named: false, .. }) => None,
            _ => model_argument(first),
        }
    }

    /// Number of arguments before the features.
    fn n_names(&self, reference: Option<&str>) -> usize {
        usize::from(self.bound.as_ref().map_or(reference.is_some(), |bound| bound.is_named))
    }

    /// The bound model, or the one that a reference names now.
    ///
    /// # Errors
    /// A planning error if there is no such model.
    pub(crate) fn model(&self, reference: Option<&str>) -> Result<Arc<Model>> {
        match &self.bound {
            Some(bound) => Ok(Arc::clone(&bound.model)),
            None => self.models.resolve(reference, &self.options).map_err(|e| self.explain(reference, e)),
        }
    }

    /// Puts the call before the text of an error.
    pub(crate) fn explain(&self, reference: Option<&str>, error: DataFusionError) -> DataFusionError {
        let reference = reference.map(|reference| format!("'{reference}'")).unwrap_or_default();
        explain(format!("{}({reference})", self.function.name()), error)
    }

    fn return_type_of(&self, reference: Option<&str>, fields: &[FieldRef]) -> Result<DataType> {
        let model = self.model(reference)?;
        let form = Form::of(fields);
        let data_type = match form {
            Form::ByName if !self.function.binds_by_name() => plan_err!("needs arguments after the model"),
            _ => self.function.check(&model, &form).and_then(|()| self.function.data_type(&model, &form)),
        };
        data_type.map_err(|e| self.explain(reference, e))
    }

    fn evaluate(
        &self,
        reference: Option<&str>,
        fields: &[FieldRef],
        arguments: &[ArrayRef],
        n: usize,
        options: &AeOptions,
    ) -> Result<ArrayRef> {
        let model = self.model(reference)?;
        let form = Form::of(fields);
        if form == Form::ByName {
            let error = plan_err!(
                "columns are bound by name only if the session has the rule aefusion_udfs::BindModels, and in PREPARE \
                 only by SessionContextExt::ae_sql; give the features as arguments"
            );
            return error.map_err(|e| self.explain(reference, e));
        }
        self.function
            .arguments(&model)
            .and_then(|features| Rows::new(arguments, &features, n))
            .and_then(|rows| {
                let call = BatchCall { model: &model, form: &form, rows: &rows };
                evaluate(self.function.as_ref(), &call, options.block_rows())
            })
            .map_err(|e| self.explain(reference, e))
    }
}

/// A model and a list. No real call has a column of strings followed by a column of lists.
fn shown_arguments() -> Vec<DataType> {
    vec![DataType::Utf8, DataType::new_list(DataType::Float32, true)]
}

/// The model name in a literal first argument.
pub(crate) fn model_argument(first: Option<&ScalarValue>) -> Option<&str> {
    match first {
        Some(
            ScalarValue::Utf8(Some(name)) | ScalarValue::LargeUtf8(Some(name)) | ScalarValue::Utf8View(Some(name)),
        ) => Some(name),
        _ => None,
    }
}

impl PartialEq for ModelFunction {
    fn eq(&self, other: &Self) -> bool {
        self.function.name() == other.function.name()
            && self.bound == other.bound
            && self.options.default_model == other.options.default_model
    }
}

impl Eq for ModelFunction {}

impl Hash for ModelFunction {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.function.name().hash(state);
        self.bound.hash(state);
    }
}

impl ScalarUDFImpl for ModelFunction {
    fn name(&self) -> &str {
        self.function.name()
    }

    fn aliases(&self) -> &[String] {
        &self.aliases
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    /// `ae_error('m',a,b)`, with the model as the user wrote it.
    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        let shown = args.iter().enumerate().map(|(i, arg)| match arg {
            Expr::Literal(value, _) if i == 0 => match self.reference(Some(value)) {
                Some(name) => format!("'{name}'"),
                None => arg.schema_name().to_string(),
            },
            arg => arg.schema_name().to_string(),
        });
        Ok(format!("{}({})", self.name(), shown.collect::<Vec<_>>().join(",")))
    }

    fn with_updated_config(&self, config: &ConfigOptions) -> Option<ScalarUDF> {
        Some(Self { options: AeOptions::of(config), ..self.clone() }.into_udf())
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        plan_err!("the type of {} depends on the model; ask return_field_from_args", self.name())
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        if args.arg_fields.iter().map(|field| field.data_type()).eq(shown_arguments().iter())
            && args.scalar_arguments.iter().all(Option::is_none)
        {
            return Ok(Arc::new(Field::new(self.name(), (self.function.spec().shown_type)(), true)));
        }
        let reference = self.reference(args.scalar_arguments.first().copied().flatten());
        let features = &args.arg_fields[self.n_names(reference).min(args.arg_fields.len())..];
        let data_type = self.return_type_of(reference, features)?;
        Ok(Arc::new(Field::new(self.name(), data_type, true)))
    }

    fn simplify(&self, args: Vec<Expr>, _: &SimplifyContext) -> Result<ExprSimplifyResult> {
        let reference = match args.first() {
            Some(Expr::Literal(value, _)) => self.reference(Some(value)),
            _ => None,
        };
        if self.bound.is_some() {
            return Ok(ExprSimplifyResult::Original(args));
        }
        let bound = Bound { model: self.model(reference)?, is_named: reference.is_some() };
        let call = ScalarFunction::new_udf(Arc::new(self.bind(bound).into_udf()), args);
        Ok(ExprSimplifyResult::Simplified(Expr::ScalarFunction(call)))
    }

    /// Only the type is known. Without the type, `ae_error(…) > 1` cannot be planned as a sort key.
    fn evaluate_bounds(&self, _: &[&Interval]) -> Result<Interval> {
        Interval::make_unbounded(&(self.function.spec().shown_type)())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let reference = match args.args.first() {
            Some(ColumnarValue::Scalar(value)) => self.reference(Some(value)),
            _ => None,
        };
        let skip = self.n_names(reference).min(args.args.len());
        let features = &args.args[skip..];
        // constant arguments: one row is enough for all
        let is_constant = features.iter().all(|value| matches!(value, ColumnarValue::Scalar(_)));
        let n = if is_constant { 1 } else { args.number_rows };
        let arrays = features.iter().map(|value| value.to_array(n)).collect::<Result<Vec<_>>>()?;
        let options = AeOptions::of(&args.config_options);
        let result = self.evaluate(reference, &args.arg_fields[skip..], &arrays, n, &options)?;
        match is_constant {
            true => Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?)),
            false => Ok(ColumnarValue::Array(result)),
        }
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&self.function.spec().documentation)
    }
}

/// Documentation with the argument `model`.
fn documented(description: &str, syntax: impl Into<String>) -> DocumentationBuilder {
    Documentation::builder(SECTION, description, syntax).with_argument(
        "model",
        "Name of the model, or name@version. Without it: ae.default_model, or the only model of the store.",
    )
}

/// Documentation of a function over features.
fn over_features(name: &str, description: &str) -> DocumentationBuilder {
    documented(description, format!("{name}(['model'] [, features])")).with_argument(
        "features",
        "One list, one struct, or the columns in the order of the model. Without them, columns are bound by name.",
    )
}
