//! `ae_encode`: the code.

use std::sync::LazyLock;

use datafusion::arrow::array::ArrayRef;
use datafusion::arrow::datatypes::DataType;
use datafusion::error::Result;
use datafusion::logical_expr::Documentation;

use super::{Call, Function, over_features};
use crate::matrix::{Form, list_array, list_type};
use crate::model::Model;
use crate::model::metadata::Role;
use crate::score::{Scores, Wanted};

static DOCUMENTATION: LazyLock<Documentation> = LazyLock::new(|| {
    over_features("ae_encode", "The code (bottleneck activations) of each row, a list of Float32.")
        .with_sql_example("SELECT id, ae_encode('pumps') FROM readings")
        .with_related_udf("ae_decode")
        .build()
});

/// See [`DOCUMENTATION`].
#[derive(Debug)]
pub(crate) struct Encode;

impl Function for Encode {
    fn name(&self) -> &'static str {
        "ae_encode"
    }

    fn documentation(&self) -> &'static Documentation {
        &DOCUMENTATION
    }

    fn shown_type(&self) -> DataType {
        DataType::new_list(DataType::Float32, true)
    }

    fn data_type(&self, model: &Model, _: &Form) -> Result<DataType> {
        Ok(list_type(model.contract().require(Role::Code)?.width()))
    }

    fn output(&self) -> &'static str {
        "code"
    }

    fn wanted(&self, _: &Model, _: &Form) -> Result<Wanted> {
        Ok(Wanted::roles([Role::Code]))
    }

    fn result(&self, _: &Call<'_>, scores: &Scores) -> Result<ArrayRef> {
        let code = scores.matrix(Role::Code)?;
        list_array(code.to_f32(), code.width, scores.valid.clone())
    }
}
