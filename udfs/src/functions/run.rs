//! `ae_run`: all outputs of a model, from one run.

use std::sync::{Arc, LazyLock};

use datafusion::arrow::array::{ArrayRef, Float64Array, StructArray};
use datafusion::arrow::datatypes::{DataType, Field, Fields};
use datafusion::error::Result;

use super::reconstruct::{reconstruction_array, reconstruction_type};
use super::{BatchCall, Function, Spec, over_features};
use crate::matrix::{Form, list_array, list_type};
use crate::model::Model;
use crate::model::metadata::Role;
use crate::output::Scores;
use crate::score::Request;

static SPEC: Spec = Spec {
    name: "ae_run",
    aliases: &[],
    output: "run",
    shown_type: || DataType::Struct(Fields::from(vec![Field::new("error", DataType::Float64, true)])),
    documentation: LazyLock::new(|| {
        let description = "All outputs of the model for a row, as a struct: code, reconstruction, scaled, \
                           scaled_reconstruction and logits (those that the model has), and the error.";
        over_features("ae_run", description)
            .with_sql_example("SELECT id, r['code'], r['error'] FROM (SELECT id, ae_run('pumps') AS r FROM readings)")
            .build()
    }),
};

/// See [`SPEC`].
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
        if has_error(model) {
            fields.push(Field::new("error", DataType::Float64, true));
        }
        Ok(fields.into())
    }
}

fn has_error(model: &Model) -> bool {
    model.contract().require_error().is_ok()
}

impl Function for RunAll {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn data_type(&self, model: &Model, form: &Form) -> Result<DataType> {
        Self::fields(model, form).map(DataType::Struct)
    }

    fn request(&self, model: &Model, form: &Form) -> Result<Request> {
        let roles = Request::roles(Self::roles(model, form));
        Ok(if has_error(model) { roles.and(&Request::error()) } else { roles })
    }

    fn result(&self, call: &BatchCall<'_>, scores: &Scores) -> Result<ArrayRef> {
        let fields = Self::fields(call.model, call.form)?;
        let has_error = has_error(call.model);
        let valid = if has_error { &scores.valid_error } else { &scores.valid };
        let mut columns: Vec<ArrayRef> = Vec::new();
        for role in Self::roles(call.model, call.form) {
            let matrix = scores.matrix(role)?;
            columns.push(match role {
                Role::Reconstruction => reconstruction_array(call, matrix, valid.clone())?,
                _ => list_array(matrix.to_f32(), matrix.width, valid.clone())?,
            });
        }
        if has_error {
            columns.push(Arc::new(Float64Array::try_new(scores.error.clone(), valid.clone())?));
        }
        Ok(Arc::new(StructArray::try_new(fields, columns, valid.clone())?))
    }
}
