//! The trainer in the session of an application: threads, temporary files, stopping, metrics.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use aefusion_train::{Control, SessionStateBuilderExt as _, Unwatched, Watch};
use aefusion_udfs::SessionStateBuilderExt as _;
use aefusion_udfs::catalog::Models;
use aefusion_udfs::sql::SessionContextExt;
use aefusion_udfs::store::ModelStore;
use datafusion::arrow::array::{ArrayRef, AsArray, Float64Array, RecordBatch};
use datafusion::arrow::datatypes::Float64Type;
use datafusion::common::runtime::SpawnedTask;
use datafusion::error::Result;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::{DiskManager, SessionStateBuilder};
use datafusion::prelude::{SessionConfig, SessionContext};
use rand::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use rand_pcg::Pcg64Mcg;

crate::harness::tests! {
    async the_number_of_threads_does_not_change_a_bit,
    async rows_beyond_the_memory_are_in_temporary_files,
    async without_temporary_files_rows_beyond_the_memory_are_an_error,
    async a_dropped_training_stops_its_thread,
    async the_summary_comes_after_the_publication,
    async a_watch_aborts_a_training_or_ends_it_with_its_best_epoch,
    async the_rmse_is_the_root_of_the_mse,
}

fn session(threads: usize, runtime: Arc<RuntimeEnv>, watch: Arc<dyn Watch>) -> SessionContext {
    let state = SessionStateBuilder::new()
        .with_config(SessionConfig::new().with_target_partitions(threads))
        .with_runtime_env(runtime)
        .with_default_features()
        .with_autoencoders(Models::new(ModelStore::in_memory()))
        .with_trainer(watch)
        .build();
    SessionContext::new_with_state(state)
}

/// Rows `x0` … of `width` numbers that depend on three.
fn rows(n: usize, width: u16, seed: u64) -> RecordBatch {
    let mut rng = Pcg64Mcg::seed_from_u64(seed);
    let mut columns = vec![Vec::with_capacity(n); usize::from(width)];
    for _ in 0..n {
        let mut normal = || -> f64 { StandardNormal.sample(&mut rng) };
        let hidden = [normal(), normal(), normal()];
        for (i, column) in columns.iter_mut().enumerate() {
            column.push(hidden[i % 3] * (1.0 + i as f64) + hidden[(i + 1) % 3] + 0.3 * normal());
        }
    }
    let columns = columns.into_iter().enumerate().map(|(i, column)| {
        let column: ArrayRef = Arc::new(Float64Array::from(column));
        (format!("x{i}"), column)
    });
    RecordBatch::try_from_iter(columns).unwrap()
}

async fn run(session: &SessionContext, sql: &str) -> Result<Vec<RecordBatch>> {
    session.ae_sql(sql).await?.collect().await
}

async fn number(session: &SessionContext, sql: &str) -> f64 {
    run(session, sql).await.unwrap()[0].column(0).as_primitive::<Float64Type>().value(0)
}

async fn sha256(session: &SessionContext) -> String {
    let batches = run(session, "SELECT CAST(sha256 AS VARCHAR) FROM ae_models()").await.unwrap();
    let column = datafusion::arrow::compute::cast(batches[0].column(0), &datafusion::arrow::datatypes::DataType::Utf8);
    column.unwrap().as_string::<i32>().value(0).to_owned()
}

/// Everything that runs in parallel has several tasks here. A batch of 2,048 rows has 16 shards. The gradients and the
/// optimizer have two chunks of 32,768 parameters. The 600 held-out rows have two blocks. A unit test of `step` checks
/// these numbers.
async fn the_number_of_threads_does_not_change_a_bit() {
    let train = |seed: u64| {
        format!(
            "CREATE MODEL m OPTIONS (batch_size = 2048, hidden_units = [256, 64, 256], max_iterations = 2, \
             noise = 'gaussian', dropout = 0.1, l2_reg = 0.001, seed = {seed}) AS SELECT * FROM t"
        )
    };
    let mut shas = Vec::new();
    for (threads, seed) in [(1, 0), (2, 0), (5, 0), (16, 0), (2, 1)] {
        let session = session(threads, Arc::default(), Arc::new(Unwatched));
        session.register_batch("t", rows(6_000, 20, 1)).unwrap();
        run(&session, &train(seed)).await.unwrap();
        shas.push(sha256(&session).await);
    }
    assert!(shas[..4].iter().all(|sha| *sha == shas[0]), "{shas:?}");
    assert!(shas[4] != shas[0], "another seed gives another file");
}

/// The most bytes of temporary files that were there when an epoch ended.
#[derive(Debug, Default)]
struct DiskWatch {
    disk: OnceLock<Arc<DiskManager>>,
    most: AtomicU64,
}

impl Watch for DiskWatch {
    fn epoch(&self, _: usize, _: f64, _: Option<f64>) {
        if let Some(disk) = self.disk.get() {
            self.most.fetch_max(disk.used_disk_space(), Ordering::Relaxed);
        }
    }
}

fn runtime(mode: DiskManagerMode) -> Arc<RuntimeEnv> {
    let disk = DiskManagerBuilder::default().with_mode(mode);
    RuntimeEnvBuilder::new().with_disk_manager_builder(disk).build_arc().unwrap()
}

const N: usize = 300_000;
const LINEAR: &str = "CREATE MODEL linear OPTIONS (activation_fn = 'linear', hidden_units = [3]) AS SELECT * FROM t";
const DEEP: &str =
    "CREATE MODEL deep OPTIONS (hidden_units = [3], max_iterations = 2, learn_rate = 0.01) AS SELECT * FROM t";
const LITTLE_MEMORY: &str = "SET ae.train_memory = 16777216";

async fn rows_beyond_the_memory_are_in_temporary_files() {
    let watch = Arc::new(DiskWatch::default());
    let runtime = runtime(DiskManagerMode::OsTmpDirectory);
    watch.disk.set(Arc::clone(&runtime.disk_manager)).unwrap();
    let session = session(2, Arc::clone(&runtime), Arc::clone(&watch) as _);
    session.register_batch("t", rows(N, 20, 2)).unwrap();
    let error = |model: &str| format!("SELECT avg(ae_error('{model}')) FROM t");

    run(&session, LINEAR).await.unwrap();
    run(&session, DEEP).await.unwrap();
    assert_eq!(watch.most.load(Ordering::Relaxed), 0, "rows that fit are in memory");
    let in_memory = [number(&session, &error("linear")).await, number(&session, &error("deep")).await];

    run(&session, LITTLE_MEMORY).await.unwrap();
    run(&session, &LINEAR.replace("CREATE", "CREATE OR REPLACE")).await.unwrap();
    // four fifths of the rows are trained on: single precision, 20 columns
    let most = watch.most.swap(0, Ordering::Relaxed);
    let bytes = u64::try_from(N * 4 / 5 * 20 * 4).unwrap();
    assert!((bytes..2 * bytes).contains(&most), "{most} bytes of {bytes}");
    run(&session, &DEEP.replace("CREATE", "CREATE OR REPLACE")).await.unwrap();
    assert!(watch.most.load(Ordering::Relaxed) >= bytes);
    let from_files = [number(&session, &error("linear")).await, number(&session, &error("deep")).await];
    assert_eq!(runtime.disk_manager.used_disk_space(), 0, "temporary files are deleted");

    // the closed form adds the same rows in other blocks; a training reads them in another order
    let [linear, deep] = [0, 1].map(|i| (from_files[i] - in_memory[i]).abs() / in_memory[i]);
    assert!(linear < 1e-5, "{from_files:?}, in memory {in_memory:?}");
    assert!(deep < 0.1, "{from_files:?}, in memory {in_memory:?}");
}

async fn without_temporary_files_rows_beyond_the_memory_are_an_error() {
    let session = session(2, runtime(DiskManagerMode::Disabled), Arc::new(Unwatched));
    session.register_batch("few", rows(1_000, 20, 2)).unwrap();
    session.register_batch("t", rows(N, 20, 2)).unwrap();
    run(&session, LITTLE_MEMORY).await.unwrap();
    run(&session, &DEEP.replace("FROM t", "FROM few")).await.unwrap();
    let error = run(&session, &DEEP.replace("CREATE", "CREATE OR REPLACE")).await.unwrap_err().to_string();
    assert!(error.contains("ae.train_memory") && error.contains("DiskManager is disabled"), "{error}");
}

/// Publishes another version of the model in the first epoch, and remembers whether a training was shown as done.
#[derive(Debug)]
struct Meanwhile {
    store: Models,
    is_published: AtomicBool,
    is_finished: AtomicBool,
}

impl Watch for Meanwhile {
    fn epoch(&self, _: usize, _: f64, _: Option<f64>) {
        if !self.is_published.swap(true, Ordering::Relaxed) {
            let file = std::fs::read("tests/models/mean.onnx").unwrap().into();
            let name = aefusion_udfs::store::ModelName::new("m").unwrap();
            let publish = self.store.store().publish(&name, file, aefusion_udfs::store::Publish::New);
            futures::executor::block_on(publish).unwrap();
        }
    }

    fn finished(&self, _: &[(&'static str, serde_json::Value)]) {
        self.is_finished.store(true, Ordering::Relaxed);
    }
}

async fn the_summary_comes_after_the_publication() {
    let models = Models::new(ModelStore::in_memory());
    let watch = Arc::new(Meanwhile {
        store: models.clone(),
        is_published: AtomicBool::new(false),
        is_finished: AtomicBool::new(false),
    });
    let state = SessionStateBuilder::new()
        .with_default_features()
        .with_autoencoders(models)
        .with_trainer(Arc::clone(&watch) as _)
        .build();
    let session = SessionContext::new_with_state(state);
    session.register_batch("t", rows(200, 3, 6)).unwrap();
    let train = "MODEL m OPTIONS (max_iterations = 1) AS SELECT * FROM t";
    let error = run(&session, &format!("CREATE {train}")).await.unwrap_err().to_string();
    assert!(error.contains('m') && !watch.is_finished.load(Ordering::Relaxed), "{error}");
    run(&session, &format!("CREATE OR REPLACE {train}")).await.unwrap();
    assert!(watch.is_finished.load(Ordering::Relaxed));
}

/// Counts rows and epochs; stops the training after an epoch, or at once.
#[derive(Debug, Default)]
struct Counting {
    rows: AtomicUsize,
    epochs: AtomicUsize,
    stop_after: Option<(usize, Control)>,
    is_aborted: AtomicBool,
}

impl Watch for Counting {
    fn rows(&self, rows: usize) {
        self.rows.fetch_add(rows, Ordering::Relaxed);
    }

    fn epoch(&self, epoch: usize, _: f64, _: Option<f64>) {
        self.epochs.store(epoch, Ordering::Relaxed);
    }

    fn control(&self) -> Control {
        if self.is_aborted.load(Ordering::Relaxed) {
            return Control::Abort;
        }
        let epochs = self.epochs.load(Ordering::Relaxed);
        self.stop_after.filter(|(after, _)| epochs >= *after).map_or(Control::Continue, |(_, control)| control)
    }
}

const ENDLESS: &str = "CREATE MODEL m OPTIONS (max_iterations = 1000000, early_stop = FALSE) AS SELECT * FROM t";

/// Waits for a condition, a minute at most; whether it holds.
async fn holds_soon(mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !condition() {
        if start.elapsed() > Duration::from_secs(60) {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    true
}

async fn a_dropped_training_stops_its_thread() {
    let watch = Arc::new(Counting::default());
    let session = session(2, Arc::default(), Arc::clone(&watch) as _);
    session.register_batch("t", rows(20_000, 8, 3)).unwrap();
    let idle = Arc::strong_count(&watch);
    let training = SpawnedTask::spawn({
        let session = session.clone();
        async move { run(&session, ENDLESS).await }
    });
    let has_begun = holds_soon(|| watch.rows.load(Ordering::Relaxed) > 0).await;
    let holders = Arc::strong_count(&watch);
    drop(training);
    let has_ended = holds_soon(|| Arc::strong_count(&watch) == idle).await;
    // a thread that goes on would keep the test from ending
    watch.is_aborted.store(true, Ordering::Relaxed);
    assert!(has_begun && holders > idle, "the thread of the training holds the watch while it trains");
    assert!(has_ended, "the thread trains on after its statement was dropped");
    let models = number(&session, "SELECT CAST(count(*) AS DOUBLE) FROM ae_models()").await;
    assert!(models < 1.0, "{models} models were published");
}

async fn a_watch_aborts_a_training_or_ends_it_with_its_best_epoch() {
    for (control, epochs) in [(Control::Abort, None), (Control::Finish, Some(2.0))] {
        let watch = Arc::new(Counting { stop_after: Some((2, control)), ..Counting::default() });
        let session = session(2, Arc::default(), watch);
        session.register_batch("t", rows(1_000, 4, 4)).unwrap();
        match (epochs, run(&session, ENDLESS).await) {
            (None, Err(error)) => assert!(error.to_string().contains("aborted"), "{error}"),
            (Some(expected), Ok(_)) => {
                let epochs = number(&session, "SELECT CAST(max(epoch) AS DOUBLE) FROM ae_training('m')").await;
                assert!((epochs - expected).abs() < 1e-9, "{epochs} epochs");
            }
            (_, result) => assert!(result.is_err(), "an aborted training gave a model"),
        }
    }
}

async fn the_rmse_is_the_root_of_the_mse() {
    let session = session(2, Arc::default(), Arc::new(Unwatched));
    session.register_batch("t", rows(1_000, 6, 5)).unwrap();
    for metric in ["mse", "rmse"] {
        let train =
            format!("CREATE MODEL {metric} OPTIONS (error_metric = '{metric}', max_iterations = 3) AS SELECT * FROM t");
        run(&session, &train).await.unwrap();
    }
    // the network is the same: only the error that it reports differs, and no rank
    let off = "SELECT max(abs(ae_error('rmse') * ae_error('rmse') / ae_error('mse') - 1)) FROM t";
    assert!(number(&session, off).await < 1e-6);
    let ranks = "SELECT max(abs(ae_pvalue('rmse') - ae_pvalue('mse'))) FROM t";
    assert!(number(&session, ranks).await < 1e-12);
    let losses =
        "SELECT max(abs(r.loss - m.loss)) FROM ae_training('rmse') r JOIN ae_training('mse') m ON r.epoch = m.epoch";
    assert!(number(&session, losses).await < 1e-12, "both minimise the mean square");
}
