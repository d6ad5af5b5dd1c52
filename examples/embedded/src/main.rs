//! Trains a model in the session of an application, and scores a table with it; see README.md.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use aefusion_train::{SessionStateBuilderExt as _, Watch};
use aefusion_udfs::SessionStateBuilderExt as _;
use aefusion_udfs::catalog::Models;
use aefusion_udfs::model::metadata::{Feature, Metadata};
use aefusion_udfs::sql::SessionContextExt;
use aefusion_udfs::store::ModelStore;
use datafusion::arrow::array::{Float64Array, Int64Array, RecordBatch};
use datafusion::error::Result;
use datafusion::execution::SessionStateBuilder;
use datafusion::prelude::SessionContext;

/// Prints the progress of trainings.
#[derive(Debug)]
struct Progress;

impl Watch for Progress {
    fn epoch(&self, epoch: usize, loss: f64, held_out_loss: Option<f64>) {
        let held_out = held_out_loss.map_or(String::new(), |loss| format!(", held-out loss {loss:.3}"));
        // ignore errors writing to stdout
        drop(writeln!(std::io::stdout(), "epoch {epoch}: loss {loss:.3}{held_out}"));
    }
}

/// Readings of a motor: from 100 to 900 rpm, a current of 0.01 A and a vibration of 0.002 mm/s for each.
fn normal_readings() -> Result<RecordBatch> {
    let rpm: Vec<f64> = (0..1000).map(|i| 500.0 + 400.0 * (f64::from(i) * 0.7).sin()).collect();
    // sensors are off by some per cent
    let noise = |i: usize, frequency: f64| 1.0 + 0.03 * (i as f64 * frequency).sin();
    let current = rpm.iter().enumerate().map(|(i, rpm)| 0.01 * rpm * noise(i, 3.1));
    let vibration = rpm.iter().enumerate().map(|(i, rpm)| 0.002 * rpm * noise(i, 5.3));
    Ok(RecordBatch::try_from_iter([
        ("current", Arc::new(Float64Array::from_iter_values(current)) as _),
        ("vibration", Arc::new(Float64Array::from_iter_values(vibration)) as _),
        ("rpm", Arc::new(Float64Array::from(rpm)) as _),
    ])?)
}

/// A normal reading, one with too much current, and one with too much vibration.
fn today() -> Result<RecordBatch> {
    Ok(RecordBatch::try_from_iter([
        ("id", Arc::new(Int64Array::from(vec![1, 2, 3])) as _),
        ("rpm", Arc::new(Float64Array::from(vec![600.0, 600.0, 600.0])) as _),
        ("current", Arc::new(Float64Array::from(vec![6.0, 9.0, 6.0])) as _),
        ("vibration", Arc::new(Float64Array::from(vec![1.2, 1.2, 2.4])) as _),
    ])?)
}

#[tokio::main]
async fn main() -> Result<()> {
    // a store for this process only; ModelStore::open("models") keeps models in a directory or bucket, and
    // ModelStore::new(store, "models") in an object store of the application
    let models = Models::new(ModelStore::in_memory());
    let state = SessionStateBuilder::new()
        .with_default_features()
        .with_autoencoders(models.clone())
        .with_trainer(Arc::new(Progress))
        .build();
    let session = SessionContext::new_with_state(state);
    session.register_batch("readings", normal_readings()?)?;
    session.register_batch("today", today()?)?;

    // linear layers are computed in one epoch; another processor can change the last digits
    let train = "CREATE MODEL motor OPTIONS (hidden_units = [1], activation_fn = 'linear') \
                 AS SELECT rpm, current, vibration FROM readings";
    session.ae_sql(train).await?.collect().await?;
    let score = "SELECT id, CAST(ae_error('motor') AS DECIMAL(6, 2)) AS error, ae_is_anomaly('motor') AS is_anomaly \
                 FROM today ORDER BY id";
    session.sql(score).await?.show().await?;

    // a model that another program made
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/models/mean.onnx");
    let features = vec![Feature::named("current"), Feature::named("vibration")];
    let options = Metadata { features: Some(features), ..Metadata::default() };
    models.register("mean", std::fs::read(file)?, options).await?;
    session.sql("SELECT id, ae_encode('mean') AS code FROM today ORDER BY id").await?.show().await?;
    models.unregister("mean")?;
    Ok(())
}
