//! `ae_decode`: the reconstruction of a code.

use std::sync::LazyLock;

use datafusion::arrow::array::ArrayRef;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::plan_err;
use datafusion::error::Result;

use super::reconstruct::{reconstructed, reconstruction_array, reconstruction_type};
use super::{BatchCall, Function, Spec, documented};
use crate::matrix::{Form, list_array, list_type};
use crate::model::metadata::{Feature, Role};
use crate::model::{Model, Start};
use crate::output::Scores;
use crate::score::Request;

static SPEC: Spec = Spec {
    name: "ae_decode",
    aliases: &[],
    output: "decoded",
    shown_type: || DataType::new_list(DataType::Float32, true),
    documentation: LazyLock::new(|| {
        let description =
            "The reconstruction that the decoder computes from a code, a list of Float32. The encoder does not run.";
        documented(description, "ae_decode(['model',] code)")
            .with_argument("code", "One list of numbers, as ae_encode gives it, or one column for each number.")
            .with_sql_example("SELECT ae_decode('pumps', ae_encode('pumps')) FROM readings")
            .with_related_udf("ae_encode")
            .build()
    }),
};

/// See [`SPEC`].
#[derive(Debug)]
pub(crate) struct Decode;

impl Function for Decode {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn arguments(&self, model: &Model) -> Result<Vec<Feature>> {
        let width = model.contract().require_decoder()?.width();
        Ok((0..width).map(|i| Feature::named(format!("code[{}]", i + 1))).collect())
    }

    fn binds_by_name(&self) -> bool {
        false
    }

    fn check(&self, model: &Model, form: &Form) -> Result<()> {
        let width = self.arguments(model)?.len();
        let is_number =
            |data_type: &DataType| data_type.is_numeric() || matches!(data_type, DataType::Null | DataType::Boolean);
        match form {
            Form::List(DataType::FixedSizeList(_, found)) if usize::try_from(*found) != Ok(width) => {
                plan_err!("needs a code of {width} numbers (model {model}), found a list of {found}")
            }
            Form::List(DataType::FixedSizeList(item, _) | DataType::List(item) | DataType::LargeList(item))
                if is_number(item.data_type()) =>
            {
                Ok(())
            }
            Form::Columns(fields)
                if fields.len() == width && fields.iter().all(|field| is_number(field.data_type())) =>
            {
                Ok(())
            }
            Form::Columns(fields) if fields.len() != width => {
                plan_err!("needs a code of {width} numbers (model {model}), found {}", fields.len())
            }
            _ => plan_err!("needs a code of {width} numbers (model {model}): one list, or one column for each number"),
        }
    }

    fn data_type(&self, model: &Model, _: &Form) -> Result<DataType> {
        match has_texts(model) {
            true => reconstruction_type(model, &Form::ByName),
            false => Ok(list_type(model.contract().reconstructed.len())),
        }
    }

    fn start(&self) -> Start {
        Start::Code
    }

    fn request(&self, _: &Model, _: &Form) -> Result<Request> {
        Ok(Request::roles([Role::Reconstruction]))
    }

    fn result(&self, call: &BatchCall<'_>, scores: &Scores) -> Result<ArrayRef> {
        let decoded = scores.matrix(Role::Reconstruction)?;
        if has_texts(call.model) {
            let by_name = BatchCall { form: &Form::ByName, ..*call };
            return reconstruction_array(&by_name, decoded, scores.valid.clone());
        }
        list_array(decoded.to_f32(), decoded.width, scores.valid.clone())
    }
}

/// Whether the reconstruction holds text. A list of numbers cannot.
fn has_texts(model: &Model) -> bool {
    reconstructed(model).any(|(_, feature)| !feature.levels.is_empty())
}
