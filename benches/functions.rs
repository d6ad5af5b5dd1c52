//! Rows per second of each function, for the four forms of features and for a small and a large network. It also shows the
//! share of ONNX Runtime; the remaining time goes to conversion, the error and DataFusion.
//!
//! `cargo xtask bench functions [filter]`

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aefusion_udfs::SessionStateBuilderExt;
use aefusion_udfs::catalog::Models;
use aefusion_udfs::model::metadata::Metadata;
use aefusion_udfs::model::runtime::time_in_runs;
use aefusion_udfs::store::ModelStore;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use datafusion::arrow::array::{
    ArrayRef, FixedSizeListArray, Float32Array, Float64Array, Int32Array, RecordBatch, StructArray,
};
use datafusion::arrow::datatypes::{DataType, Field};
use datafusion::datasource::MemTable;
use datafusion::execution::SessionStateBuilder;
use datafusion::prelude::{SessionConfig, SessionContext};

#[path = "../tests/common/random_model.rs"]
mod random_model;
use random_model::RandomModel;

const WIDTH: usize = 32;
const BATCH: usize = 8192;
const BATCHES: usize = 16;

const FUNCTIONS: [&str; 5] = ["ae_encode", "ae_reconstruct", "ae_error", "ae_contributions", "ae_run"];

fn benches(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for (size, widths) in [("small", [WIDTH, 16, 4]), ("large", [WIDTH, 256, 64])] {
        let context = session(RandomModel::new(widths, "Relu", [1; 32]).onnx());
        let columns: Vec<String> = (0..WIDTH).map(|i| format!("f{i}")).collect();
        let doubles: Vec<String> = (0..WIDTH).map(|i| format!("d{i}")).collect();
        let whole: Vec<String> = (0..WIDTH).map(|i| format!("i{i}")).collect();
        let forms = [("float32 columns", columns), ("float64 columns", doubles), ("int32 columns", whole)]
            .map(|(name, columns)| (name, columns.join(", ")));
        let forms = forms.into_iter().chain([("list", "l".to_owned()), ("struct", "s".to_owned())]);
        for (form, arguments) in forms {
            let functions: &[&str] = if form == "float32 columns" { &FUNCTIONS } else { &["ae_error"] };
            for function in functions {
                let sql = format!("SELECT {function}('m', {arguments}) FROM t");
                bench(criterion, &runtime, &context, &format!("{size}/{function}/{form}"), &sql);
            }
        }
        let decode = "SELECT ae_decode('m', c) FROM codes";
        bench(criterion, &runtime, &context, &format!("{size}/ae_decode/list"), decode);
    }
}

fn bench(
    criterion: &mut Criterion,
    runtime: &tokio::runtime::Runtime,
    context: &SessionContext,
    name: &str,
    sql: &str,
) {
    let plan = runtime.block_on(async { context.sql(sql).await.unwrap().into_optimized_plan().unwrap() });
    let run = || {
        let rows = runtime
            .block_on(async { context.execute_logical_plan(plan.clone()).await.unwrap().collect().await.unwrap() });
        black_box(rows)
    };
    let mut group = criterion.benchmark_group("functions");
    group
        .throughput(Throughput::Elements((BATCH * BATCHES) as u64))
        .sample_size(10)
        .measurement_time(Duration::from_secs(2));
    let (mut wall, mut inside) = (Duration::ZERO, Duration::ZERO);
    group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
        bencher.iter_custom(|n| {
            let (start, before) = (Instant::now(), time_in_runs());
            (0..n).for_each(|_| drop(run()));
            wall += start.elapsed();
            inside += time_in_runs() - before;
            start.elapsed()
        });
    });
    group.finish();
    if !wall.is_zero() {
        eprintln!("    in ONNX Runtime: {:.0} % of the time", 100.0 * inside.as_secs_f64() / wall.as_secs_f64());
    }
}

fn session(model: Vec<u8>) -> SessionContext {
    let models = Models::new(ModelStore::in_memory());
    models.register_bytes("m", model, Metadata::default()).unwrap();
    let config = SessionConfig::new().with_target_partitions(1);
    let state =
        SessionStateBuilder::new().with_config(config).with_default_features().with_autoencoders(models).build();
    let context = SessionContext::new_with_state(state);
    let batches: Vec<RecordBatch> = (0..BATCHES).map(rows).collect();
    let table = MemTable::try_new(batches[0].schema(), vec![batches]).unwrap();
    context.register_table("t", Arc::new(table)).unwrap();
    let codes = "CREATE TABLE codes AS SELECT ae_encode('m', l) AS c FROM t";
    futures::executor::block_on(async { context.sql(codes).await.unwrap().collect().await.unwrap() });
    context
}

/// One batch: the same numbers as columns of three types, a list and a struct.
fn rows(batch: usize) -> RecordBatch {
    let value = |row: usize, column: usize| ((row * 31 + column * 17 + batch * 7) % 997) as f32 / 500.0 - 1.0;
    let column = |j: usize| -> Vec<f32> { (0..BATCH).map(|row| value(row, j)).collect() };
    let mut columns: Vec<(String, ArrayRef)> = Vec::new();
    let mut fields: Vec<(Arc<Field>, ArrayRef)> = Vec::new();
    for j in 0..WIDTH {
        let floats: ArrayRef = Arc::new(Float32Array::from(column(j)));
        let doubles = Float64Array::from_iter_values(column(j).into_iter().map(f64::from));
        let whole = Int32Array::from_iter_values((0..BATCH).map(|row| i32::try_from(row % 100).unwrap()));
        fields.push((Arc::new(Field::new(format!("f{j}"), DataType::Float32, true)), Arc::clone(&floats)));
        columns.push((format!("f{j}"), floats));
        columns.push((format!("d{j}"), Arc::new(doubles)));
        columns.push((format!("i{j}"), Arc::new(whole)));
    }
    let all = Float32Array::from_iter_values((0..BATCH).flat_map(|row| (0..WIDTH).map(move |j| value(row, j))));
    let item = Arc::new(Field::new_list_field(DataType::Float32, true));
    let list = FixedSizeListArray::new(item, i32::try_from(WIDTH).unwrap(), Arc::new(all), None);
    columns.push(("l".to_owned(), Arc::new(list)));
    columns.push(("s".to_owned(), Arc::new(StructArray::from(fields))));
    RecordBatch::try_from_iter(columns).unwrap()
}

criterion_group!(functions, benches);
criterion_main!(functions);
