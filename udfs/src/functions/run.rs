//! `ae_run`: everything that a model gives, in one run.

use std::sync::{Arc, LazyLock};

use datafusion::arrow::array::{ArrayRef, Float64Array, StructArray};
use datafusion::arrow::datatypes::{DataType, Field, Fields};
use datafusion::error::Result;
use datafusion::logical_expr::Documentation;

use super::reconstruct::{reconstruction_array, reconstruction_type};
use super::{Call, Function, over_features};
use crate::matrix::{Form, list_array, list_type};
use crate::model::Model;
use crate::model::metadata::Role;
use crate::score::{Wanted, score};

static DOCUMENTATION: LazyLock<Documentation> = LazyLock::new(|| {
    let gives = "All that the model gives for a row, as a struct: code, reconstruction, scaled, scaled_reconstruction, logits \
                 (those that it has) and error.";
    over_features("ae_run", gives)
        .with_sql_example("SELECT id, r['code'], r['error'] FROM (SELECT id, ae_run('pumps') AS r FROM readings)")
        .build()
});

/// See [`DOCUMENTATION`].
#[derive(Debug)]
pub(crate) struct RunAll;

impl RunAll {
    fn roles(model: &Model, form: &Form) -> Vec<Role> {
        let has = |role: &Role| match role {
            Role::Reconstruction => reconstruction_type(model, form).is_ok(),
            role => model.contract().tensor(*role).is_some(),
        };
        Role::ALL.into_iter().filter(has).collect()
    }

    fn fields(model: &Model, form: &Form) -> Result<Fields> {
        let mut fields = Vec::new();
        for role in Self::roles(model, form) {
            let data_type = match role {
                Role::Reconstruction => reconstruction_type(model, form)?,
                role => list_type(model.contract().require(role)?.width()),
            };
            fields.push(Field::new(role.name(), data_type, true));
        }
        if model.contract().require_error().is_ok() {
            fields.push(Field::new("error", DataType::Float64, true));
        }
        Ok(fields.into())
    }
}

impl Function for RunAll {
    fn name(&self) -> &'static str {
        "ae_run"
    }

    fn documentation(&self) -> &'static Documentation {
        &DOCUMENTATION
    }

    fn shown_type(&self) -> DataType {
        DataType::Struct(Fields::from(vec![Field::new("error", DataType::Float64, true)]))
    }

    fn data_type(&self, model: &Model, form: &Form) -> Result<DataType> {
        Self::fields(model, form).map(DataType::Struct)
    }

    fn evaluate(&self, call: &Call<'_>) -> Result<ArrayRef> {
        let fields = Self::fields(call.model, call.form)?;
        let roles = Self::roles(call.model, call.form);
        let error = call.model.contract().require_error().is_ok();
        let mut scores =
            score(call.model, call.rows, &Wanted { roles: roles.clone(), error, parts: false }, call.block_rows)?;
        let mut columns: Vec<ArrayRef> = Vec::new();
        for role in roles {
            let matrix = scores.take()?;
            columns.push(match role {
                Role::Reconstruction => reconstruction_array(call, matrix, scores.valid.clone())?,
                _ => list_array(matrix.values.into_f32(), matrix.width, scores.valid.clone())?,
            });
        }
        if error {
            columns.push(Arc::new(Float64Array::try_new(scores.error.into(), scores.valid.clone())?));
        }
        Ok(Arc::new(StructArray::try_new(fields, columns, scores.valid)?))
    }
}
