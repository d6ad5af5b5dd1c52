//! The same row gives the same bits, whatever stands beside it: random models and models of other programs, batch
//! sizes, orders, partitions. Graphs with which it would not are refused.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use aefusion_udfs::SessionStateBuilderExt;
use aefusion_udfs::catalog::Models;
use aefusion_udfs::model::metadata::Metadata;
use aefusion_udfs::store::ModelStore;
use datafusion::arrow::array::{Array, ArrayRef, AsArray, Float32Array, Int64Array, RecordBatch};
use datafusion::arrow::datatypes::{Float32Type, Float64Type, Int64Type};
use datafusion::datasource::MemTable;
use datafusion::execution::SessionStateBuilder;
use datafusion::prelude::{SessionConfig, SessionContext};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, RngSeed, TestRunner};

use crate::random_model::{self, RandomModel};

crate::harness::tests! {
    fn the_same_row_gives_the_same_bits,
    fn rows_of_foreign_graphs_are_independent,
    fn graphs_that_mix_rows_are_refused,
}

/// Graphs of other programs over four or more numbers in one input.
const FOREIGN: [&str; 13] = [
    "batchnorm_dropout",
    "conv",
    "dense",
    "dense_dynamo",
    "fixed_batch_16",
    "float16",
    "float64",
    "int_input",
    "lstm",
    "quantised_qdq",
    "sklearn_mlp",
    "sklearn_mlp_2d",
    "vae_mean",
];

const ROWS: usize = 3000;

/// Code, reconstruction and error of a row, as bits.
type Bits = (Vec<u32>, Vec<u32>, u64);

/// How the rows are given to a query.
#[derive(Debug, Clone)]
struct Layout {
    batch: usize,
    partitions: usize,
    reversed: bool,
    block_rows: usize,
}

fn layouts() -> Vec<Layout> {
    let one = |batch| Layout { batch, partitions: 1, reversed: false, block_rows: 0 };
    vec![
        one(1),
        one(3),
        one(16),
        one(1000),
        one(8192),
        Layout { partitions: 4, reversed: true, ..one(1000) },
        Layout { reversed: true, block_rows: 48, ..one(8192) },
        Layout { partitions: 4, block_rows: 1_000_000, ..one(777) },
    ]
}

fn the_same_row_gives_the_same_bits() {
    let config = Config {
        cases: 20,
        rng_seed: RngSeed::Fixed(20),
        rng_algorithm: RngAlgorithm::ChaCha,
        failure_persistence: None,
        ..Config::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    let result = TestRunner::new(config).run(&random_model::any(), |model| {
        let rows = model.rows(ROWS);
        let mut expected: Option<HashMap<i64, Bits>> = None;
        for layout in layouts() {
            // one row a batch is slow, and says all with a few hundred
            let n = if layout.batch == 1 { 300 } else { ROWS };
            let found = runtime.block_on(score(&model, &rows[..n * model.n_features()], &layout));
            match &expected {
                None => expected = Some(found),
                Some(all) => {
                    for (id, bits) in &found {
                        if let Some(first) = all.get(id) {
                            prop_assert_eq!(first, bits, "row {} with {:?}", id, layout);
                        }
                    }
                    if found.len() > all.len() {
                        expected = Some(found);
                    }
                }
            }
        }
        Ok(())
    });
    result.unwrap();
}

fn graphs(prefix: &str) -> Vec<PathBuf> {
    let files = std::fs::read_dir("tests/foreign").unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = files
        .filter(|path| path.extension().is_some_and(|kind| kind == "onnx"))
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(prefix))
        .collect();
    files.sort();
    files
}

fn rows_of_foreign_graphs_are_independent() {
    const FEW: usize = 200;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    let interop = FOREIGN.map(|name| PathBuf::from(format!("tests/interop/{name}.onnx")));
    let files: Vec<PathBuf> = graphs("apart_").into_iter().chain(interop).collect();
    assert!(files.len() > 20, "{} files", files.len());
    for path in files {
        let models = Models::new(ModelStore::in_memory());
        let file = std::fs::read(&path).unwrap();
        let width = models.register_bytes("m", file, Metadata::default()).unwrap().contract().features.len();
        // any rows; whole numbers for inputs of whole numbers
        let whole = |i: usize| f32::from(u8::try_from(i * 7919 % 97).unwrap()) - 48.0;
        let rows: Vec<f32> = (0..FEW * width).map(whole).collect();
        let found = |layout: &Layout| runtime.block_on(score_with(models.clone(), width, &rows, layout));
        let expected = found(&layouts()[4]);
        for layout in layouts() {
            assert!(found(&layout) == expected, "{} with {layout:?}", path.display());
        }
    }
}

fn graphs_that_mix_rows_are_refused() {
    let files = graphs("mixed_");
    assert!(files.len() > 15, "{} files", files.len());
    for path in files {
        let models = Models::new(ModelStore::in_memory());
        let file = std::fs::read(&path).unwrap();
        match models.register_bytes("m", file, Metadata::default()) {
            Ok(_) => panic!("{} was accepted", path.display()),
            Err(e) => {
                assert!(e.to_string().contains("rows influence each other in \"code\""), "{}: {e}", path.display())
            }
        }
    }
}

async fn score(model: &RandomModel, rows: &[f32], layout: &Layout) -> HashMap<i64, Bits> {
    let models = Models::new(ModelStore::in_memory());
    models.register_bytes("m", model.onnx(), Metadata::default()).unwrap();
    score_with(models, model.n_features(), rows, layout).await
}

async fn score_with(models: Models, width: usize, rows: &[f32], layout: &Layout) -> HashMap<i64, Bits> {
    let mut config = SessionConfig::new().with_target_partitions(layout.partitions).with_batch_size(layout.batch);
    config.options_mut().extensions.insert(aefusion_udfs::config::AeOptions::default());
    config = config.set_str("ae.batch_rows", &layout.block_rows.to_string());
    let state =
        SessionStateBuilder::new().with_config(config).with_default_features().with_autoencoders(models).build();
    let context = SessionContext::new_with_state(state);

    let mut order: Vec<usize> = (0..rows.len() / width).collect();
    if layout.reversed {
        order.reverse();
    }
    let batches: Vec<RecordBatch> = order.chunks(layout.batch).map(|ids| batch(rows, width, ids)).collect();
    let per_partition = batches.len().div_ceil(layout.partitions);
    let partitions: Vec<Vec<RecordBatch>> = batches.chunks(per_partition).map(<[RecordBatch]>::to_vec).collect();
    let table = MemTable::try_new(batches[0].schema(), partitions).unwrap();
    context.register_table("t", Arc::new(table)).unwrap();
    let columns: Vec<String> = (0..width).map(|i| format!("f{i}")).collect();
    let sql = format!("SELECT id, ae_encode('m'), ae_reconstruct('m', [{}]), ae_error('m') FROM t", columns.join(", "));
    let mut found = HashMap::new();
    for batch in context.sql(&sql).await.unwrap().collect().await.unwrap() {
        let ids = batch.column(0).as_primitive::<Int64Type>();
        let (codes, decoded) = (list(batch.column(1)), list(batch.column(2)));
        let errors = batch.column(3).as_primitive::<Float64Type>();
        for row in 0..batch.num_rows() {
            found.insert(ids.value(row), (codes[row].clone(), decoded[row].clone(), errors.value(row).to_bits()));
        }
    }
    assert_eq!(found.len(), order.len());
    found
}

fn batch(rows: &[f32], width: usize, ids: &[usize]) -> RecordBatch {
    let id: ArrayRef = Arc::new(Int64Array::from_iter_values(ids.iter().map(|id| i64::try_from(*id).unwrap())));
    let column =
        |j: usize| -> ArrayRef { Arc::new(Float32Array::from_iter_values(ids.iter().map(|id| rows[id * width + j]))) };
    let columns = (0..width).map(|j| (format!("f{j}"), column(j)));
    RecordBatch::try_from_iter(std::iter::once(("id".to_owned(), id)).chain(columns)).unwrap()
}

fn list(array: &ArrayRef) -> Vec<Vec<u32>> {
    let lists = array.as_fixed_size_list();
    let bits = |row: usize| {
        let values = lists.value(row);
        values.as_primitive::<Float32Type>().values().iter().map(|value| value.to_bits()).collect()
    };
    (0..lists.len()).map(bits).collect()
}
