//! `ae_encode`: the code.

use std::sync::LazyLock;

use datafusion::arrow::array::ArrayRef;
use datafusion::arrow::datatypes::DataType;
use datafusion::error::Result;

use super::{BatchCall, Function, Spec, over_features};
use crate::matrix::{Form, list_array, list_type};
use crate::model::Model;
use crate::model::metadata::Role;
use crate::output::Scores;
use crate::score::Request;

static SPEC: Spec = Spec {
    name: "ae_encode",
    aliases: &[],
    output: "code",
    shown_type: || DataType::new_list(DataType::Float32, true),
    documentation: LazyLock::new(|| {
        over_features("ae_encode", "The code (bottleneck activations) of each row, a list of Float32.")
            .with_sql_example("SELECT id, ae_encode('pumps') FROM readings")
            .with_related_udf("ae_decode")
            .build()
    }),
};

/// See [`SPEC`].
#[derive(Debug)]
pub(crate) struct Encode;

impl Function for Encode {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn data_type(&self, model: &Model, _: &Form) -> Result<DataType> {
        Ok(list_type(model.contract().require(Role::Code)?.width()))
    }

    fn request(&self, _: &Model, _: &Form) -> Result<Request> {
        Ok(Request::roles([Role::Code]))
    }

    fn result(&self, _: &BatchCall<'_>, scores: &Scores) -> Result<ArrayRef> {
        let code = scores.matrix(Role::Code)?;
        list_array(code.to_f32(), code.width, scores.valid.clone())
    }
}
