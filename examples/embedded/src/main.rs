//! Registers a model for the session and scores a table; see README.md.

use std::path::Path;
use std::sync::Arc;

use aefusion_udfs::model::catalog::Models;
use aefusion_udfs::model::metadata::{Feature, Metadata};
use aefusion_udfs::model::store::ModelStore;
use datafusion::arrow::array::{Float64Array, Int64Array, RecordBatch};
use datafusion::error::Result;
use datafusion::prelude::SessionContext;

#[tokio::main]
async fn main() -> Result<()> {
    let session = SessionContext::new();
    let models = Models::new(ModelStore::in_memory());
    aefusion_udfs::register_all(&session, models.clone())?;

    // a model of this session only; ModelStore::open("models") would keep models for all
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/models/mean.onnx");
    let features = vec![Feature::named("left"), Feature::named("right")];
    models.register_file("mean", file, Metadata { features: Some(features), ..Metadata::default() })?;

    let readings = RecordBatch::try_from_iter([
        ("id", Arc::new(Int64Array::from(vec![1, 2, 3])) as _),
        ("left", Arc::new(Float64Array::from(vec![1.0, 0.0, 7.5])) as _),
        ("right", Arc::new(Float64Array::from(vec![3.0, -4.0, 7.5])) as _),
    ])?;
    session.register_batch("readings", readings)?;
    let rows = session.sql("SELECT id, ae_error('mean') AS error, ae_encode('mean') AS code FROM readings ORDER BY id");
    rows.await?.show().await
}
