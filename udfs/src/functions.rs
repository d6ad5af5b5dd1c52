//! The SQL functions. One file each: documentation, result type, evaluation.

mod contributions;
mod decode;
mod encode;
mod error;
mod is_anomaly;
mod predict;
mod predict_proba;
mod pvalue;
mod reconstruct;
mod run;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

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

use crate::config::AeOptions;
use crate::matrix::{Form, Rows};
use crate::model::catalog::Models;
use crate::model::metadata::Feature;
use crate::model::{Model, Start};
use crate::score::{Scores, Wanted, score};
use crate::sql::explain;

pub(crate) use contributions::Contributions;
pub(crate) use encode::Encode;
pub(crate) use error::ReconstructionError;
pub(crate) use reconstruct::Reconstruct;

const SECTION: DocSection = DocSection {
    include: true,
    label: "Autoencoder Functions",
    description: Some("Run an autoencoder over rows of features."),
};

/// What one SQL function gives.
pub(crate) trait Function: fmt::Debug + Send + Sync {
    fn name(&self) -> &'static str;

    fn aliases(&self) -> &'static [&'static str] {
        &[]
    }

    fn documentation(&self) -> &'static Documentation;

    /// What the arguments after the model are.
    fn arguments(&self, model: &Model) -> Result<Vec<Feature>> {
        Ok(model.contract().features.clone())
    }

    /// Whether the arguments may be left out, and columns be taken by name.
    fn binds_by_name(&self) -> bool {
        true
    }

    /// Whether the arguments fit, which is a planning error if not.
    fn check(&self, model: &Model, form: &Form) -> Result<()> {
        form.check(model)
    }

    /// Type of the result as `SHOW FUNCTIONS` tells it, for any model.
    fn shown_type(&self) -> DataType;

    /// Type of the result.
    fn data_type(&self, model: &Model, form: &Form) -> Result<DataType>;

    /// Where the graph is entered.
    fn start(&self) -> Start {
        Start::Features
    }

    /// Name of the result among those of one run.
    fn output(&self) -> &'static str;

    /// What the model must compute.
    fn wanted(&self, model: &Model, form: &Form) -> Result<Wanted>;

    /// The result, out of what was computed: what is [wanted](Self::wanted) and maybe more.
    fn result(&self, call: &Call<'_>, scores: &Scores) -> Result<ArrayRef>;
}

/// The result of one function for some rows.
pub(crate) fn evaluate(function: &dyn Function, call: &Call<'_>, block_rows: Option<usize>) -> Result<ArrayRef> {
    let wanted = function.wanted(call.model, call.form)?;
    let scores = score(call.model, function.start(), call.rows, &wanted, block_rows)?;
    function.result(call, &scores)
}

/// One call over one batch.
#[derive(Debug)]
pub(crate) struct Call<'a> {
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

/// A function of the SQL language, of any model or of one.
#[derive(Debug, Clone)]
pub(crate) struct ModelFunction {
    function: Arc<dyn Function>,
    models: Models,
    options: AeOptions,
    /// The model that the plan was made with.
    pinned: Option<Arc<Model>>,
    signature: Signature,
    aliases: Vec<String>,
}

impl ModelFunction {
    pub(crate) fn new(function: Arc<dyn Function>, models: Models, options: AeOptions) -> Self {
        // The first form is there to be shown by SHOW FUNCTIONS; any arguments are accepted and then checked.
        let shown = TypeSignature::Exact(shown_arguments());
        let signature =
            Signature::one_of(vec![shown, TypeSignature::VariadicAny, TypeSignature::Nullary], Volatility::Immutable);
        let aliases = function.aliases().iter().map(|alias| (*alias).to_owned()).collect();
        Self { function, models, options, pinned: None, signature, aliases }
    }

    pub(crate) fn into_udf(self) -> ScalarUDF {
        ScalarUDF::new_from_impl(self)
    }

    pub(crate) fn function(&self) -> &Arc<dyn Function> {
        &self.function
    }

    /// The model that the plan was made with; none before [`crate::BindModels`] ran.
    pub(crate) fn pinned(&self) -> Option<&Arc<Model>> {
        self.pinned.as_ref()
    }

    pub(crate) fn is_pinned(&self) -> bool {
        self.pinned.is_some()
    }

    /// A function for a model that is known.
    #[cfg(feature = "proto")]
    pub(crate) fn pinned_to(function: Arc<dyn Function>, models: Models, model: Arc<Model>) -> Self {
        Self { pinned: Some(model), ..Self::new(function, models, AeOptions::default()) }
    }

    /// This function for the model that a call means now.
    ///
    /// # Errors
    /// A planning error if there is none.
    pub(crate) fn pin(&self, reference: Option<&str>) -> Result<(Self, Arc<Model>)> {
        let model = self.model(reference)?;
        Ok((Self { pinned: Some(Arc::clone(&model)), ..self.clone() }, model))
    }

    fn model(&self, reference: Option<&str>) -> Result<Arc<Model>> {
        match &self.pinned {
            Some(model) => Ok(Arc::clone(model)),
            None => self.models.resolve(reference, &self.options).map_err(|e| self.explain(reference, e)),
        }
    }

    /// Puts the call before an error, so that it says what was being done.
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
                "columns are taken by name only where the rule aefusion_udfs::BindModels is installed; give the features as arguments"
            );
            return error.map_err(|e| self.explain(reference, e));
        }
        self.function
            .arguments(&model)
            .and_then(|features| Rows::new(arguments, &features, n))
            .and_then(|rows| {
                let call = Call { model: &model, form: &form, rows: &rows };
                evaluate(self.function.as_ref(), &call, options.block_rows())
            })
            .map_err(|e| self.explain(reference, e))
    }
}

/// A model and a list: no real call has a column of strings and then one of lists.
fn shown_arguments() -> Vec<DataType> {
    vec![DataType::Utf8, DataType::new_list(DataType::Float32, true)]
}

/// The model that a literal first argument names.
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
            && self.pinned == other.pinned
            && self.options.default_model == other.options.default_model
    }
}

impl Eq for ModelFunction {}

impl Hash for ModelFunction {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.function.name().hash(state);
        self.pinned.hash(state);
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

    /// `ae_error('m',a,b)`: with the model as the user wrote it.
    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        let shown = args.iter().enumerate().map(|(i, arg)| match arg {
            Expr::Literal(value, _) if i == 0 => match model_argument(Some(value)) {
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
            return Ok(Arc::new(Field::new(self.name(), self.function.shown_type(), true)));
        }
        let reference = model_argument(args.scalar_arguments.first().copied().flatten());
        let features = if reference.is_some() { &args.arg_fields[1..] } else { args.arg_fields };
        let data_type = self.return_type_of(reference, features)?;
        Ok(Arc::new(Field::new(self.name(), data_type, true)))
    }

    fn simplify(&self, args: Vec<Expr>, _: &SimplifyContext) -> Result<ExprSimplifyResult> {
        let reference = match args.first() {
            Some(Expr::Literal(value, _)) => model_argument(Some(value)),
            _ => None,
        };
        if self.is_pinned() {
            return Ok(ExprSimplifyResult::Original(args));
        }
        let (pinned, _) = self.pin(reference)?;
        let call = ScalarFunction::new_udf(Arc::new(pinned.into_udf()), args);
        Ok(ExprSimplifyResult::Simplified(Expr::ScalarFunction(call)))
    }

    /// Nothing is known but the type: without it, `ae_error(…) > 1` as a sort key cannot be planned.
    fn evaluate_bounds(&self, _: &[&Interval]) -> Result<Interval> {
        Interval::make_unbounded(&self.function.shown_type())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let reference = match args.args.first() {
            Some(ColumnarValue::Scalar(value)) => model_argument(Some(value)),
            _ => None,
        };
        let skip = usize::from(reference.is_some());
        let features = &args.args[skip..];
        // constant arguments: one row stands for all
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
        Some(self.function.documentation())
    }
}

/// Documentation with the arguments that all functions over features share.
fn over_features(name: &str, gives: &str) -> DocumentationBuilder {
    Documentation::builder(SECTION, gives, format!("{name}(['model'] [, features])"))
        .with_argument(
            "model",
            "Name of the model, or name@version. Without it: ae.default_model, or the only model of the store.",
        )
        .with_argument(
            "features",
            "One list, one struct, the columns in the model's order, or nothing: then columns are taken by name.",
        )
}
