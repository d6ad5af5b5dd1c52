//! A run of a model keeps the order of its input, stops at limits, takes unbounded inputs, bounds memory and can be
//! cancelled.

use std::sync::Arc;
use std::time::Duration;

use aefusion_udfs::SessionStateBuilderExt;
use aefusion_udfs::catalog::Models;
use aefusion_udfs::model::Model;
use aefusion_udfs::model::metadata::Metadata;
use aefusion_udfs::sql::SessionContextExt;
use aefusion_udfs::store::ModelStore;
use datafusion::arrow::array::{ArrayRef, Float32Array, Int64Array, RecordBatch};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::common::runtime::SpawnedTask;
use datafusion::dataframe::DataFrameWriteOptions;
use datafusion::datasource::MemTable;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::{SendableRecordBatchStream, SessionStateBuilder, TaskContext};
use datafusion::physical_plan::displayable;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use datafusion::prelude::{SessionConfig, SessionContext, col};

use crate::random_model::RandomModel;

crate::harness::tests! {
    async an_order_of_the_input_is_kept,
    async row_counts_come_from_statistics,
    async an_input_without_end_is_scored_as_it_comes,
    async a_cancelled_query_stops_within_a_block,
    async memory_is_taken_from_the_pool,
    #[cfg(target_os = "linux")]
    alone sessions_of_dropped_models_are_freed,
    async only_the_columns_that_are_needed_are_read,
}

/// A session with the model `m` of two columns. It is wide, to make its blocks small.
fn session(memory: Option<usize>) -> (SessionContext, Arc<Model>) {
    let models = Models::new(ModelStore::in_memory());
    let file = RandomModel::new([2, 1000, 2], "Tanh", [1; 32]).onnx();
    let model = models.register_bytes("m", file, Metadata::default()).unwrap();
    let mut runtime = RuntimeEnvBuilder::new();
    if let Some(bytes) = memory {
        runtime = runtime.with_memory_limit(bytes, 1.0);
    }
    let state = SessionStateBuilder::new()
        .with_config(SessionConfig::new().with_target_partitions(2).with_information_schema(true))
        .with_runtime_env(runtime.build_arc().unwrap())
        .with_default_features()
        .with_autoencoders(models)
        .build();
    (SessionContext::new_with_state(state), model)
}

fn batch(n: i64) -> RecordBatch {
    let id: ArrayRef = Arc::new(Int64Array::from_iter_values(0..n));
    let feature = || -> ArrayRef {
        Arc::new(Float32Array::from_iter_values((0..n).map(|i| f32::from(i16::try_from(i % 100).unwrap()))))
    };
    RecordBatch::try_from_iter([("id", id), ("a", feature()), ("b", feature())]).unwrap()
}

fn table(n: i64) -> MemTable {
    MemTable::try_new(batch(1).schema(), vec![vec![batch(n)]]).unwrap()
}

async fn physical(session: &SessionContext, sql: &str) -> String {
    let plan = session.sql(sql).await.unwrap().create_physical_plan().await.unwrap();
    displayable(plan.as_ref()).indent(true).to_string()
}

async fn an_order_of_the_input_is_kept() {
    let (session, _) = session(None);
    let sorted = table(10).with_sort_order(vec![vec![col("id").sort(true, false)]]);
    session.register_table("t", Arc::new(sorted)).unwrap();
    let plan = physical(&session, "SELECT id, ae_error('m', a, b) FROM t ORDER BY id").await;
    assert!(plan.contains("InferExec") && !plan.contains("SortExec"), "{plan}");
    let plan = physical(&session, "SELECT id, ae_error('m', a, b) FROM t ORDER BY a").await;
    assert!(plan.contains("SortExec"), "{plan}");
}

async fn row_counts_come_from_statistics() {
    let (session, model) = session(None);
    let before = model.rows_run();
    session.register_table("t", Arc::new(table(1000))).unwrap();
    // counted from statistics: nothing is scored
    let plan = physical(&session, "SELECT count(*) FROM (SELECT ae_error('m', a, b) AS e FROM t)").await;
    assert!(!plan.contains("InferExec"), "{plan}");
    assert_eq!(model.rows_run(), before);
}

/// Waits until a count stays the same for a while, and gives it. A block of rows takes milliseconds.
async fn still(count: impl Fn() -> u64) -> u64 {
    const STANDS: u32 = 50;
    let (mut last, mut same) = (count(), 0);
    while same < STANDS {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = count();
        same = if now == last { same + 1 } else { 0 };
        last = now;
    }
    last
}

#[derive(Debug)]
struct Endless(SchemaRef);

impl PartitionStream for Endless {
    fn schema(&self) -> &SchemaRef {
        &self.0
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let batches = futures::stream::repeat_with(|| Ok(batch(64)));
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.0), batches))
    }
}

async fn an_input_without_end_is_scored_as_it_comes() {
    let (session, model) = session(None);
    let schema = batch(1).schema();
    let stream = StreamingTable::try_new(Arc::clone(&schema), vec![Arc::new(Endless(schema))]).unwrap();
    session.register_table("s", Arc::new(stream.with_infinite_table(true))).unwrap();
    let sql = "SELECT id, ae_error('m', a, b) FROM s WHERE ae_error('m', a, b) >= 0 LIMIT 100";
    let batches = session.sql(sql).await.unwrap().collect().await.unwrap();
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 100);
    assert!((100..20_000).contains(&model.rows_run()), "{} rows ran", model.rows_run());
}

async fn a_cancelled_query_stops_within_a_block() {
    let (session, model) = session(None);
    let rows = 1 << 20;
    session.register_table("t", Arc::new(table(rows))).unwrap();
    let frame = session.sql("SELECT max(ae_error('m', a, b)) FROM t").await.unwrap();
    let before = model.rows_run();
    let running = SpawnedTask::spawn(frame.collect());
    while model.rows_run() == before {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(running);
    // a thread inside a block finishes the block; a query that goes on fails here, since it never stands still
    let stopped_at = still(|| model.rows_run()).await;
    assert!(stopped_at < u64::try_from(rows).unwrap() / 2, "{stopped_at} rows ran");
}

async fn memory_is_taken_from_the_pool() {
    let (session, _) = session(Some(100_000));
    session.register_table("t", Arc::new(table(10_000))).unwrap();
    let frame = session.sql("SELECT id, ae_reconstruct('m', a, b) FROM t").await.unwrap();
    let error = frame.collect().await.unwrap_err().to_string();
    assert!(error.contains("Resources exhausted") && error.contains("InferExec"), "{error}");
}

/// Resident memory of this process, MiB.
#[cfg(target_os = "linux")]
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() / 1024
}

#[cfg(target_os = "linux")]
fn sessions_of_dropped_models_are_freed() {
    crate::harness::block_on(load_and_drop_models());
}

#[cfg(target_os = "linux")]
async fn load_and_drop_models() {
    let (session, _) = session(None);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("wide.onnx");
    std::fs::write(&file, RandomModel::new([4, 700, 60], "Relu", [2; 32]).onnx()).unwrap();
    let create = format!("CREATE MODEL wide OPTIONS (model_type = 'onnx', model_path = '{}')", file.display());
    let mut before = 0;
    for round in 0..400 {
        session.ae_sql(&create).await.unwrap().collect().await.unwrap();
        let scored = session.sql("SELECT ae_error('wide', value, 1, 2, 3) FROM range(0, 10)").await.unwrap();
        scored.collect().await.unwrap();
        session.ae_sql("DROP MODEL wide").await.unwrap().collect().await.unwrap();
        if round == 100 {
            before = resident();
        }
    }
    // a file is 350 kB: 300 of them, or of their sessions, would be more than 100 MiB
    let after = resident();
    assert!(after < before + 40, "{before} MiB after 100 rounds, {after} MiB after 400");
}

async fn only_the_columns_that_are_needed_are_read() {
    let (session, _) = session(None);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wide.parquet");
    let column = |i: i64| -> ArrayRef {
        Arc::new(Float32Array::from_iter_values(
            (0..1000_i64).map(|row| f32::from(i16::try_from((row * 31 + i * 17) % 30_011).unwrap())),
        ))
    };
    let names = ["a".to_owned(), "b".to_owned()].into_iter().chain((0..998).map(|i| format!("other{i}")));
    let wide = RecordBatch::try_from_iter(names.zip((0..1000).map(column))).unwrap();
    let options = DataFrameWriteOptions::new();
    session.read_batch(wide).unwrap().write_parquet(path.to_str().unwrap(), options, None).await.unwrap();
    let size = std::fs::metadata(&path).unwrap().len();
    session.register_parquet("wide", path.to_str().unwrap(), Default::default()).await.unwrap();
    let sql = "EXPLAIN ANALYZE SELECT max(ae_error('m', a, b)) FROM wide";
    let rows = session.sql(sql).await.unwrap().collect().await.unwrap();
    let shown = datafusion::arrow::util::pretty::pretty_format_batches(&rows).unwrap().to_string();
    assert!(shown.contains("projection=[a, b]") && shown.contains("rows_scored=1.0"), "{shown}");
    let scanned = shown.split_once("bytes_scanned=").unwrap().1.split_once(',').unwrap().0.trim();
    let (number, unit) = scanned.split_once(' ').unwrap_or((scanned, ""));
    let bytes = number.parse::<f64>().unwrap()
        * if unit == "K" {
            1e3
        } else if unit == "M" {
            1e6
        } else {
            1.0
        };
    // two of a thousand columns
    assert!(bytes * 200.0 < f64::from(u32::try_from(size).unwrap()), "{scanned} of {size}");
}
