//! The memory of models: what a process holds at most, and blocks that fit into the memory of a query.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use aefusion_udfs::SessionStateBuilderExt;
use aefusion_udfs::catalog::Models;
use aefusion_udfs::model::metadata::Metadata;
use aefusion_udfs::store::ModelStore;
use datafusion::arrow::array::{ArrayRef, AsArray, Float32Array, Int64Array, RecordBatch};
use datafusion::arrow::datatypes::{Float32Type, Float64Type, Int64Type};
use datafusion::arrow::util::pretty::pretty_format_batches;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::prelude::{SessionConfig, SessionContext};

use crate::cli::aefusion;
use crate::random_model::RandomModel;

crate::harness::tests! {
    #[cfg(target_os = "linux")]
    alone all_functions_share_the_weights,
    #[cfg(target_os = "linux")]
    alone wide_activations_stay_below_the_limit,
    fn rows_with_huge_activations_run_alone,
    async blocks_shrink_to_the_memory_of_the_pool,
    async wide_outputs_come_in_parts,
}

/// Runs statements in the program. Returns what it printed, and its largest memory in MiB (Linux). The program ends with
/// this exit code.
fn sql(code: i32, store: &Path, arguments: &[&str], statements: &[&str]) -> (String, usize) {
    let statements = statements.iter().flat_map(|statement| ["-c", statement]);
    let mut command = aefusion();
    command.args(["sql", "--models"]).arg(store).args(["--format", "csv"]).args(arguments).args(statements);
    let mut program = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let status = format!("/proc/{}/status", program.id());
    let mut largest = 0;
    while program.try_wait().unwrap().is_none() {
        // a process inherits the largest memory of its parent in `getrusage`, but not here
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let kib = text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
        largest = kib.unwrap_or(0_usize).max(largest);
        std::thread::sleep(Duration::from_millis(1));
    }
    let output = program.wait_with_output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{out}{err}");
    (format!("{out}{err}"), largest / 1024)
}

/// A process with all functions of a model has the weights twice: as the file stores them, and as the kernels pack them.
#[cfg(target_os = "linux")]
fn all_functions_share_the_weights() {
    let folder = tempfile::tempdir().unwrap();
    let version = folder.path().join("models/m/1");
    std::fs::create_dir_all(&version).unwrap();
    let file = RandomModel::new([1024, 4096, 64], "Relu", [3; 32]).onnx();
    std::fs::write(version.join("model.onnx"), &file).unwrap();
    let size = file.len() >> 20;
    let store = folder.path().join("models");
    let (_, bare) = sql(0, &store, &[], &["SELECT 1"]);
    let small = "CREATE MODEL small OPTIONS (model_path = 'tests/models/mean.onnx')";
    let (_, with_runtime) = sql(0, Path::new("memory:///"), &[], &[small, "SELECT ae_error('small', 1, 2)"]);
    let row = "array_repeat(1.0, 1024)";
    let calls = [
        format!("SELECT ae_encode('m', {row})[1]"),
        format!("SELECT ae_error('m', {row})"),
        format!("SELECT ae_reconstruct('m', {row})[1]"),
        format!("SELECT ae_contributions('m', {row})[1]['share']"),
        "SELECT ae_decode('m', array_repeat(1.0, 64))[1]".to_owned(),
    ];
    let (_, all) = sql(0, &store, &[], &calls.each_ref().map(String::as_str));
    let text = format!("{bare} MiB bare, {with_runtime} MiB with ONNX Runtime, {all} MiB with a model of {size} MiB");
    // the weights twice, and half of them twice more while a session packs the largest one again; 40 MiB for sessions
    assert!(all - with_runtime < 3 * size + 40, "{text}");
}

/// A block of 256 rows of this convolution would take more than a gigabyte.
#[cfg(target_os = "linux")]
fn wide_activations_stay_below_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path();
    // the test run before the publication takes more
    std::fs::create_dir_all(store.join("wide/1")).unwrap();
    std::fs::copy("tests/models/wide_convolution.onnx", store.join("wide/1/model.onnx")).unwrap();
    let one = "SET datafusion.execution.target_partitions = 1";
    let score = "SELECT id, ae_error('wide', image) AS e, ae_encode('wide', image)[7] AS c FROM (
                 SELECT value AS id, array_repeat(arrow_cast(value % 7, 'Float32'), 49152) AS image FROM range(0, 128))";
    let (limited, taken) = sql(0, store, &["--memory-limit", "400MB"], &[one, score]);
    assert!(taken < 450, "{taken} MiB");
    for block in [16, 48] {
        let set = format!("SET ae.batch_rows = {block}");
        assert_eq!(sql(0, store, &[], &[one, &set, score]).0, limited);
    }
    let (error, _) = sql(1, store, &["--memory-limit", "50MB"], &[one, score]);
    for part in ["model wide@1 needs", "MiB for its weights and 16 rows at once", "InferExec"] {
        assert!(error.contains(part), "{error}");
    }
}

/// A row with more than 16 MiB of activations runs alone, always: it may have other bits beside others.
fn rows_with_huge_activations_run_alone() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("huge/1")).unwrap();
    std::fs::copy("tests/models/wide_row.onnx", folder.path().join("huge/1/model.onnx")).unwrap();
    let call = "SELECT ae_encode('huge', value)[1] AS code FROM range(1, 4)";
    let (printed, _) = sql(0, folder.path(), &[], &["SET ae.batch_rows = 64", &format!("EXPLAIN {call}"), call]);
    assert!(printed.contains("block=1 rows"), "{printed}");
    assert!(printed.contains("code\n1.0\n2.0\n3.0\n"), "{printed}");
}

/// A session with the model `m` of `width` columns, and the table `t` of rows with an `id` and the columns.
fn session(width: i16, memory: Option<usize>) -> SessionContext {
    const ROWS: i64 = 3000;
    let models = Models::new(ModelStore::in_memory());
    let file = RandomModel::new([usize::try_from(width).unwrap(), 1000, 2], "Tanh", [1; 32]).onnx();
    models.register_bytes("m", file, Metadata::default()).unwrap();
    let mut runtime = RuntimeEnvBuilder::new();
    if let Some(bytes) = memory {
        runtime = runtime.with_memory_limit(bytes, 1.0);
    }
    let state = SessionStateBuilder::new()
        .with_config(SessionConfig::new().with_target_partitions(1))
        .with_runtime_env(runtime.build_arc().unwrap())
        .with_default_features()
        .with_autoencoders(models)
        .build();
    let session = SessionContext::new_with_state(state);
    let id: ArrayRef = Arc::new(Int64Array::from_iter_values(0..ROWS));
    let column = |j: i16| -> ArrayRef {
        Arc::new(Float32Array::from_iter_values(
            (0..ROWS).map(|i| f32::from(i16::try_from(i % 100).unwrap() - j % 13) / 50.0),
        ))
    };
    let columns = (0..width).map(|j| (format!("f{j}"), column(j)));
    let batch = RecordBatch::try_from_iter(std::iter::once(("id".to_owned(), id)).chain(columns)).unwrap();
    session.register_batch("t", batch).unwrap();
    session
}

async fn blocks_shrink_to_the_memory_of_the_pool() {
    let sql = "SELECT id, ae_error('m', f0, f1) AS e, ae_encode('m', f0, f1)[1] AS c FROM t";
    let mut expected = None;
    let mut blocks = Vec::new();
    // a row has 8 kB of activations, and all rows have 66 kB of results
    for memory in [None, Some(1500 << 10), Some(700 << 10), Some(320 << 10)] {
        let session = session(2, memory);
        let batches = session.sql(sql).await.unwrap().collect().await.unwrap();
        let mut bits: Vec<(i64, u64, u32)> = Vec::new();
        for batch in &batches {
            let errors = batch.column(1).as_primitive::<Float64Type>();
            let codes = batch.column(2).as_primitive::<Float32Type>();
            let ids = batch.column(0).as_primitive::<Int64Type>();
            let row = |row: usize| (ids.value(row), errors.value(row).to_bits(), codes.value(row).to_bits());
            bits.extend((0..batch.num_rows()).map(row));
        }
        bits.sort_unstable();
        assert_eq!(bits.len(), 3000);
        assert!(*expected.get_or_insert_with(|| bits.clone()) == bits, "{memory:?}");
        let shown = session.sql(&format!("EXPLAIN ANALYZE {sql}")).await.unwrap().collect().await.unwrap();
        let shown = pretty_format_batches(&shown).unwrap().to_string();
        let count = shown.split_once("blocks=").unwrap().1.split([',', ']']).next().unwrap().to_owned();
        blocks.push(count.trim().parse::<f64>().unwrap());
    }
    assert!(blocks.is_sorted() && blocks[0] < blocks[3], "{blocks:?}");
}

async fn wide_outputs_come_in_parts() {
    let session = session(2000, None);
    let columns: Vec<String> = (0..2000).map(|j| format!("f{j}")).collect();
    let sql = format!("SELECT id, ae_reconstruct('m', [{}]) AS r FROM t", columns.join(", "));
    let batches = session.sql(&sql).await.unwrap().collect().await.unwrap();
    let ids: Vec<i64> =
        batches.iter().flat_map(|b| b.column(0).as_primitive::<Int64Type>().values().to_vec()).collect();
    assert_eq!(ids, (0..3000).collect::<Vec<i64>>());
    // a row is 8 kB as a matrix and as a list each, and 8 kB of input: the largest batch has less than 32 MiB
    let sizes: Vec<usize> = batches.iter().map(RecordBatch::num_rows).collect();
    assert!(sizes.len() > 2 && sizes.iter().all(|rows| *rows * 24_000 < 32 << 20), "{sizes:?}");
    // without the shared run, the same in one batch
    session.sql("SET ae.lift_calls = false").await.unwrap().collect().await.unwrap();
    let whole = session.sql(&sql).await.unwrap().collect().await.unwrap();
    let flat = |batches: &[RecordBatch]| -> Vec<u32> {
        let lists = batches.iter().map(|batch| Arc::clone(batch.column(1).as_fixed_size_list().values()));
        lists
            .flat_map(|list| {
                list.as_primitive::<Float32Type>().values().iter().map(|v| v.to_bits()).collect::<Vec<_>>()
            })
            .collect()
    };
    assert!(flat(&whole) == flat(&batches));
}
