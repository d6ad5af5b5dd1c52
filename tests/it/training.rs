//! Trainings from the statement to the file: p-values, memory, options, the file in other programs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use aefusion::session::{Session, SessionOptions};
use aefusion_train::Watch;
use aefusion_udfs::sql::SessionContextExt;
use datafusion::arrow::array::{ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, StringArray};
use datafusion::arrow::datatypes::Float64Type;
use datafusion::execution::disk_manager::{DiskManager, DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::prelude::SessionContext;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, StandardNormal};
use rand_pcg::Pcg64Mcg;

use crate::harness::needed;

crate::harness::tests! {
    async every_default_is_listed,
    async p_values_of_fresh_rows_are_uniform,
    async small_p_values_of_fresh_rows_hold_on_average,
    async rows_beyond_the_memory_are_in_files,
    async without_temporary_files_rows_must_fit_in_memory,
    #[cfg(target_os = "linux")]
    alone memory_of_a_training_is_bounded,
    async an_exported_file_that_is_calibrated_anew_keeps_its_texts,
    async what_a_model_is_compared_with_is_of_all_rows,
    async a_wide_model_that_learned_nothing_shows_it,
    async a_classifier_lists_the_options_of_its_base,
    async a_warm_start_keeps_its_options,
    async a_classifier_is_scored_class_by_class,
    async a_class_without_training_rows_is_an_error,
    async other_programs_compute_the_same_from_the_exported_file,
}

pub(crate) fn session() -> Session {
    Session::open(&SessionOptions { models: "memory:///".to_owned(), ..SessionOptions::default() }).unwrap()
}

/// Rows `id`, `x0` … of `width` numbers that depend on three.
pub(crate) fn rows(n: i64, width: usize, seed: u64) -> RecordBatch {
    let mut rng = Pcg64Mcg::seed_from_u64(seed);
    let normal = |rng: &mut Pcg64Mcg| -> f64 { StandardNormal.sample(rng) };
    let mut columns = vec![Vec::new(); width];
    for _ in 0..n {
        let hidden = [normal(&mut rng), normal(&mut rng), normal(&mut rng)];
        for (i, column) in columns.iter_mut().enumerate() {
            column.push(
                hidden[i % 3] * f64::from(u16::try_from(i + 1).unwrap()) + hidden[(i + 1) % 3] + 0.3 * normal(&mut rng),
            );
        }
    }
    let id: ArrayRef = Arc::new(Int64Array::from_iter_values(0..n));
    let columns = columns.into_iter().enumerate().map(|(i, column)| {
        let column: ArrayRef = Arc::new(Float64Array::from(column));
        (format!("x{i}"), column)
    });
    RecordBatch::try_from_iter(std::iter::once(("id".to_owned(), id)).chain(columns)).unwrap()
}

pub(crate) async fn run(session: &Session, sql: &str) {
    session.context().ae_sql(sql).await.unwrap().collect().await.unwrap();
}

pub(crate) async fn numbers(session: &Session, sql: &str) -> Vec<f64> {
    let batches = session.context().ae_sql(sql).await.unwrap().collect().await.unwrap();
    batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Float64Type>().values().to_vec()).collect()
}

/// The rows of `DESCRIBE MODEL`: properties and values.
pub(crate) async fn described(session: &Session, model: &str) -> BTreeMap<String, String> {
    let batches = session.context().ae_sql(&format!("DESCRIBE MODEL {model}")).await.unwrap().collect().await.unwrap();
    let column = |batch: &RecordBatch, i: usize| -> Vec<String> {
        batch.column(i).as_string::<i32>().iter().map(|text| text.unwrap_or_default().to_owned()).collect()
    };
    batches.iter().flat_map(|batch| column(batch, 0).into_iter().zip(column(batch, 1))).collect()
}

/// Options without a default. `DESCRIBE MODEL` lists them if they were given.
const UNLISTED: [&str; 5] = ["code_activation_fn", "noise", "noise_level", "split_by", "split_by_time"];

async fn every_default_is_listed() {
    let session = session();
    session.context().register_batch("t", rows(200, 4, 5)).unwrap();
    run(&session, "CREATE MODEL m OPTIONS (max_iterations = 1) AS SELECT * EXCEPT (id) FROM t").await;
    let listed = described(&session, "m").await;
    let page = std::fs::read_to_string("docs/sql/create_model.md").unwrap();
    let first = page.find("| `hidden_units`").unwrap();
    let table = page[first..].lines().take_while(|line| !line.is_empty());
    let options = table.filter_map(|line| line.strip_prefix("| `")).filter_map(|line| line.split_once(" |"));
    let names: Vec<&str> =
        options.flat_map(|(names, _)| names.split(['`', ',', ' '])).filter(|n| !n.is_empty()).collect();
    assert!(names.len() > 20, "{names:?}");
    for name in names.into_iter().filter(|name| !UNLISTED.contains(name)) {
        let is_listed = listed.keys().any(|property| property.strip_prefix("training.").unwrap_or(property) == name);
        assert!(is_listed, "{name} is not listed: {listed:?}");
    }
}

async fn p_values_of_fresh_rows_are_uniform() {
    let session = session();
    session.context().register_batch("t", rows(30_000, 8, 1)).unwrap();
    run(
        &session,
        "CREATE MODEL m OPTIONS (calibration_share = 0.2, max_iterations = 10)
             AS SELECT * EXCEPT (id) FROM t WHERE id < 20000",
    )
    .await;
    let p = numbers(&session, "SELECT ae_pvalue('m') AS p FROM t WHERE id >= 20000 ORDER BY p").await;
    assert_eq!(p.len(), 10_000);
    // Kolmogorov and Smirnov: of samples of 4,000 and 10,000 rows, the distance is over this once in a thousand
    let n = 10_000.0;
    let distance = |(i, p): (usize, &f64)| (p - (f64::from(u32::try_from(i).unwrap()) + 0.5) / n).abs();
    let largest = p.iter().enumerate().map(distance).fold(0.0, f64::max);
    assert!(largest < 1.95 * ((4_000.0 + n) / (4_000.0 * n)).sqrt(), "distance {largest}");
}

/// Small p-values, which the test above cannot see. A model has its own share of false alerts, by its calibration rows, so
/// many models are trained, with other rows and seeds.
///
/// # Source
/// Vovk, "Conditional validity of inductive conformal predictors", ACML (2012). Let `n` be the number of calibration rows,
/// and `l = floor(a (n + 1))`. The share of fresh rows with `p <= a` is then a Beta(l, n + 1 - l) variable.
async fn small_p_values_of_fresh_rows_hold_on_average() {
    const MODELS: i64 = 40;
    const ROWS: i64 = 2_500;
    const FRESH: i64 = 10_000;
    const SHARES: [f64; 6] = [0.2, 0.1, 0.05, 0.01, 0.003, 0.001];
    let session = session();
    session.context().register_batch("t", rows(MODELS * (ROWS + FRESH), 4, 11)).unwrap();
    let (mut found, mut expected, mut variance) = ([0.0; 6], [0.0; 6], [0.0; 6]);
    for model in 0..MODELS {
        let first = model * (ROWS + FRESH);
        let fresh = first + ROWS;
        run(
            &session,
            &format!(
                "CREATE OR REPLACE MODEL m OPTIONS (activation_fn = 'linear', hidden_units = [2], calibration_share = 0.5,
                                                    data_split_eval_fraction = 0, seed = {model})
                     AS SELECT * EXCEPT (id) FROM t WHERE id >= {first} AND id < {fresh}"
            ),
        )
        .await;
        let n: f64 = described(&session, "m").await["calibration_rows"].parse().unwrap();
        let counts = SHARES.map(|share| format!("avg((p <= {share})::DOUBLE)")).join(", ");
        let sql = format!(
            "SELECT unnest([{counts}]) FROM (SELECT ae_pvalue('m') AS p FROM t WHERE id >= {fresh} AND id < {})",
            fresh + FRESH
        );
        let shares = numbers(&session, &sql).await;
        for (i, share) in SHARES.into_iter().enumerate() {
            let mean = (share * (n + 1.0)).floor() / (n + 1.0);
            found[i] += shares[i];
            expected[i] += mean;
            // of the calibration, and of the fresh rows
            variance[i] += mean * (1.0 - mean) * (1.0 / (n + 2.0) + 1.0 / 10_000.0);
        }
    }
    for (i, share) in SHARES.into_iter().enumerate() {
        let [found, expected] = [found[i], expected[i]].map(|sum| sum / 40.0);
        let bound = 4.0 * variance[i].sqrt() / 40.0;
        assert!((found - expected).abs() <= bound, "p <= {share}: {found} of the rows, not {expected} within {bound}");
        assert!(expected <= share, "{share}");
    }
}

/// Keeps the most bytes that temporary files have at the end of an epoch.
#[derive(Debug, Default)]
struct DiskWatch {
    disk: OnceLock<Arc<DiskManager>>,
    most: AtomicU64,
}

impl Watch for DiskWatch {
    fn epoch(&self, _: usize, _: f64, _: Option<f64>) {
        let used = self.disk.get().unwrap().used_disk_space();
        self.most.fetch_max(used, Ordering::Relaxed);
    }
}

async fn rows_beyond_the_memory_are_in_files() {
    let disk = Arc::new(DiskWatch::default());
    let options =
        SessionOptions { models: "memory:///".to_owned(), watch: Arc::clone(&disk) as _, ..SessionOptions::default() };
    let session = Session::open(&options).unwrap();
    disk.disk.set(Arc::clone(&session.context().runtime_env().disk_manager)).unwrap();
    session.context().register_batch("t", rows(300_000, 20, 2)).unwrap();
    let train = "CREATE OR REPLACE MODEL m OPTIONS (hidden_units = [3], max_iterations = 2, learn_rate = 0.01)
                     AS SELECT * EXCEPT (id) FROM t";
    let error = "SELECT avg(ae_error('m')) FROM t WHERE id % 10 = 0";
    run(&session, train).await;
    let in_memory = numbers(&session, error).await[0];
    assert_eq!(disk.most.load(Ordering::Relaxed), 0, "all rows have room in memory");
    // a quarter of what the rows take
    run(&session, "SET ae.train_memory = 16777216").await;
    run(&session, train).await;
    // 240,000 rows to train on of 20 numbers of 4 bytes
    let written = disk.most.load(Ordering::Relaxed);
    assert!(written > 240_000 * 20 * 4, "{written} bytes in files");
    let from_files = numbers(&session, error).await[0];
    assert!((from_files - in_memory).abs() < 0.1 * in_memory, "{from_files}, in memory {in_memory}");
    // and again the same
    run(&session, train).await;
    assert!((numbers(&session, error).await[0] - from_files).abs() < 1e-12);
    let shas = "SELECT count(DISTINCT sha256)::DOUBLE FROM ae_models() WHERE version > 1";
    assert!((numbers(&session, shas).await[0] - 1.0).abs() < 1e-12);
}

async fn without_temporary_files_rows_must_fit_in_memory() {
    let state = session().context().state();
    let no_disk = DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled);
    let runtime = RuntimeEnvBuilder::new().with_disk_manager_builder(no_disk).build_arc().unwrap();
    let context =
        SessionContext::new_with_state(SessionStateBuilder::new_from_existing(state).with_runtime_env(runtime).build());
    context.register_batch("t", rows(300_000, 20, 2)).unwrap();
    let train = |rows: &str| {
        format!(
            "CREATE OR REPLACE MODEL m OPTIONS (hidden_units = [3], max_iterations = 1) AS SELECT * EXCEPT (id) FROM t {rows}"
        )
    };
    context.ae_sql("SET ae.train_memory = 16777216").await.unwrap().collect().await.unwrap();
    context.ae_sql(&train("WHERE id < 1000")).await.unwrap().collect().await.unwrap();
    let error = context.ae_sql(&train("")).await.unwrap_err().to_string();
    assert!(error.contains("ae.train_memory") && error.contains("disabled"), "{error}");
}

/// A table of 384 MB that is made while it is read, with a budget of 16 MiB.
#[cfg(target_os = "linux")]
fn memory_of_a_training_is_bounded() {
    crate::harness::block_on(async {
        let session = session();
        run(&session, "SET ae.train_memory = 16777216").await;
        let columns: Vec<String> = (0..40).map(|i| format!("sin(value * {i} + {i}) AS x{i}")).collect();
        let train = |rows: usize| {
            let columns = columns.join(", ");
            format!(
                "CREATE OR REPLACE MODEL m OPTIONS (hidden_units = [3], max_iterations = 1)
                     AS SELECT {columns} FROM generate_series(1, {rows})"
            )
        };
        run(&session, &train(10_000)).await;
        let before = most_memory();
        run(&session, &train(1_200_000)).await;
        let added = most_memory() - before;
        assert!(added < 256 << 20, "{} MB for rows of 384 MB", added >> 20);
    });
}

/// The resident memory of this process at its largest, bytes.
#[cfg(target_os = "linux")]
fn most_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

async fn an_exported_file_that_is_calibrated_anew_keeps_its_texts() {
    let session = session();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("m.onnx").display().to_string();
    run(
        &session,
        "CREATE VIEW t AS SELECT sin(value) AS a, CASE WHEN sin(value) > 0 THEN 'up' ELSE 'down' END AS way
             FROM generate_series(1, 1000) AS s(value)",
    )
    .await;
    run(&session, "CREATE MODEL m OPTIONS (max_iterations = 30, learn_rate = 0.01) AS SELECT a, way FROM t").await;
    run(&session, &format!("EXPORT MODEL m TO '{file}'")).await;
    run(&session, &format!("CREATE MODEL again OPTIONS (model_path = '{file}') AS SELECT a, way FROM t WHERE a > 0"))
        .await;
    let right = "SELECT avg(CASE WHEN ae_reconstruct('again')['way'] = way THEN 1.0 ELSE 0.0 END) FROM t";
    assert!(numbers(&session, right).await[0] > 0.95);
    // and its columns may come in another order
    let swapped = format!("CREATE MODEL swapped OPTIONS (model_path = '{file}') AS SELECT way, a FROM t");
    run(&session, &swapped).await;
    let differences = "SELECT max(abs(ae_error('swapped') - ae_error('again'))) FROM t";
    assert!(numbers(&session, differences).await[0] <= 0.0);
    run(&session, "ALTER MODEL m SET OPTIONS (input_cols = ['x', 'course'])").await;
    let right = "SELECT avg(CASE WHEN ae_reconstruct('m', a, way)['course'] = way THEN 1.0 ELSE 0.0 END) FROM t";
    assert!(numbers(&session, right).await[0] > 0.95);
}

async fn what_a_model_is_compared_with_is_of_all_rows() {
    let session = session();
    // sorted, and more rows than principal axes are taken from
    run(
        &session,
        "CREATE MODEL m OPTIONS (activation_fn = 'linear', hidden_units = [1])
             AS SELECT CAST(value AS DOUBLE) AS a, sin(value) AS b FROM generate_series(1, 400000) AS s(value)",
    )
    .await;
    let listed = described(&session, "m").await;
    let error: f64 = listed["training.mean_only_error"].parse().unwrap();
    assert!((error - 1.0).abs() < 0.02, "standardised columns have the variance 1, not {error}");
    let pca: f64 = listed["training.pca_error"].parse().unwrap();
    assert!((pca - 0.5).abs() < 0.02, "two columns that do not depend on each other: one of them is lost, {pca}");
}

async fn a_wide_model_that_learned_nothing_shows_it() {
    let session = session();
    session.context().register_batch("t", rows(300, 600, 7)).unwrap();
    let options = "hidden_units = [1], activation_fn = 'linear', learn_rate = 1e-9, max_iterations = 1, \
                   data_split_eval_fraction = 0, dropout = 0.1";
    run(&session, &format!("CREATE MODEL m OPTIONS ({options}) AS SELECT * EXCEPT (id) FROM t")).await;
    let listed = described(&session, "m").await;
    let number = |property: &str| -> f64 { listed[property].parse().unwrap() };
    let (mean, error) = (number("training.mean_only_error"), number("training.training_error"));
    assert!((mean - 1.0).abs() < 0.1 && error > 0.9 * mean, "{mean}, {error}");
    assert_eq!(listed.get("training.held_out_error"), None, "no row was held out");
}

async fn a_classifier_lists_the_options_of_its_base() {
    let session = session();
    session.context().register_batch("t", rows(300, 4, 8)).unwrap();
    let base = "hidden_units = [6, 2, 6], activation_fn = 'relu', scaling = 'common', max_iterations = 1";
    run(&session, &format!("CREATE MODEL base OPTIONS ({base}) AS SELECT * EXCEPT (id) FROM t")).await;
    run(
        &session,
        "CREATE MODEL k OPTIONS (model_type = 'classifier', base_model = 'base', input_label_cols = ['y'], max_iterations = 1)
             AS SELECT * EXCEPT (id), id % 2 AS y FROM t",
    )
    .await;
    let listed = described(&session, "k").await;
    for (option, expected) in [("hidden_units", "[6,2,6]"), ("activation_fn", "relu"), ("scaling", "common")] {
        assert_eq!(listed[&format!("training.{option}")], expected, "{option}");
    }
}

async fn a_warm_start_keeps_its_options() {
    let session = session();
    session.context().register_batch("t", rows(300, 4, 6)).unwrap();
    let options = "noise = 'masking', noise_level = 0.4, error_metric = 'mae', contamination = 0.1, max_iterations = 1";
    run(&session, &format!("CREATE MODEL m OPTIONS ({options}) AS SELECT * EXCEPT (id) FROM t")).await;
    run(&session, "ALTER MODEL m SET OPTIONS (contamination = 0.2)").await;
    let again = "CREATE OR REPLACE MODEL m OPTIONS (warm_start = TRUE, max_iterations = 1, noise_level = 0.3)
                     AS SELECT * EXCEPT (id) FROM t";
    run(&session, again).await;
    let listed = described(&session, "m").await;
    for (property, expected) in [
        ("model", "m@3"),
        ("training.noise", "masking"),
        ("training.noise_level", "0.3"),
        ("training.learn_rate_schedule", "cosine"),
        ("error_metric", "mae"),
        ("contamination", "0.2"),
    ] {
        assert_eq!(listed[property], expected, "{property}");
    }
}

/// The Python of an environment with `tests/exported/requirements.txt`.
pub(crate) fn python() -> PathBuf {
    let python = std::env::var_os("AEFUSION_PYTHON").map(PathBuf::from);
    needed(python.ok_or_else(|| "needs AEFUSION_PYTHON, which cargo xtask test sets".to_owned()))
}

async fn other_programs_compute_the_same_from_the_exported_file() {
    let python = python();
    let session = session();
    let mut rng = Pcg64Mcg::seed_from_u64(4);
    let n = 1_000_i64;
    let whole: ArrayRef = Arc::new((0..n).map(|i| (i % 9 != 0).then_some(i % 50)).collect::<Int64Array>());
    let far: ArrayRef =
        Arc::new(Float64Array::from_iter_values((0..n).map(|_| 1_700_000_000.0 + 1000.0 * rng.random::<f64>())));
    let colours = ["red", "green", "", "blue"];
    let colour = |i: i64| (i % 7 != 0).then(|| colours[usize::try_from(i % 4).unwrap()]);
    let colour: ArrayRef = Arc::new((0..n).map(colour).collect::<StringArray>());
    let near: ArrayRef = Arc::new(Float64Array::from_iter_values((0..n).map(|_| rng.random::<f64>())));
    let label: ArrayRef = Arc::new(Int64Array::from_iter_values((0..n).map(|i| i % 3)));
    let columns = [("whole", whole), ("far", far), ("colour", colour), ("near", near), ("label", label)];
    session.context().register_batch("t", RecordBatch::try_from_iter(columns).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (activation, probabilities) in [
        ("relu", false),
        ("relu6", false),
        ("elu", false),
        ("selu", false),
        ("sigmoid", false),
        ("tanh", true),
        ("linear", false),
    ] {
        let (kind, columns, more) = match probabilities {
            true => (
                ", model_type = 'classifier', input_label_cols = ['label']",
                "*",
                ", ae_predict_proba('m') AS probabilities",
            ),
            false => ("", "* EXCEPT (label)", ""),
        };
        let file = folder.path().join(format!("{activation}.onnx"));
        let json = folder.path().join(format!("{activation}.json"));
        let (file, json) = (file.display().to_string(), json.display().to_string());
        run(
            &session,
            &format!(
                "CREATE OR REPLACE MODEL m OPTIONS (activation_fn = '{activation}', max_iterations = 3{kind})
                     AS SELECT {columns} FROM t"
            ),
        )
        .await;
        run(&session, &format!("EXPORT MODEL m TO '{file}'")).await;
        run(
            &session,
            &format!("COPY (SELECT *, ae_encode('m') AS code, ae_error('m') AS error{more} FROM t) TO '{json}'"),
        )
        .await;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/exported/check.py");
        let output = Command::new(&python).arg(script).args([file, json]).output().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout);
        assert_eq!(printed, "1000 rows agree\n", "{activation}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

async fn a_classifier_is_scored_class_by_class() {
    let session = session();
    session.context().register_batch("t", rows(4_000, 3, 31)).unwrap();
    run(
        &session,
        "CREATE VIEW l AS SELECT x0 + CASE WHEN id % 50 = 0 THEN 2.5 ELSE 0 END AS x0, x1, x2,
                CASE WHEN id % 50 = 0 THEN 'rare' ELSE 'common' END AS y FROM t",
    )
    .await;
    let mut recalls = Vec::new();
    for (model, weight) in [("equal", ""), ("balanced", ", class_weight = 'balanced'")] {
        run(
            &session,
            &format!(
                "CREATE MODEL {model} OPTIONS (model_type = 'classifier', input_label_cols = 'y', max_iterations = 20{weight})
                     AS SELECT * FROM l"
            ),
        )
        .await;
        let recall = format!("SELECT avg((ae_predict('{model}') = 'rare')::DOUBLE) FROM l WHERE y = 'rare'");
        recalls.push(numbers(&session, &recall).await[0]);
        let listed = described(&session, model).await;
        let json = |name: &str| -> serde_json::Value {
            serde_json::from_str(&listed[&format!("training.held_out_{name}")]).unwrap()
        };
        let confusion: Vec<Vec<f64>> = serde_json::from_value(json("confusion")).unwrap();
        let [[cc, cr], [rc, rr]] = [[confusion[0][0], confusion[0][1]], [confusion[1][0], confusion[1][1]]];
        assert!((cc + cr + rc + rr - json_number(&listed["training.held_out_rows"])).abs() < 1e-9);
        // of 80 rows, some 8 calibrate, and a ninth of the others is held out
        assert!((6.0..=9.0).contains(&(rc + rr)), "{confusion:?}");
        let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-12, "{found}, not {expected}");
        near(json_number(&listed["training.held_out_accuracy"]), (cc + rr) / (cc + cr + rc + rr));
        let f1 = |right: f64, others: f64| 2.0 * right / (2.0 * right + others);
        near(json_number(&listed["training.held_out_macro_f1"]), 0.5 * (f1(cc, cr + rc) + f1(rr, cr + rc)));
        let expected = serde_json::json!([["common", cc / (cc + cr)], ["rare", rr / (rc + rr)]]);
        assert_eq!(json("recall"), expected);
    }
    assert!(recalls[1] > recalls[0] + 0.2, "balanced classes are found more often: {recalls:?}");
}

fn json_number(text: &str) -> f64 {
    text.parse().unwrap()
}

async fn a_class_without_training_rows_is_an_error() {
    let session = session();
    session.context().register_batch("t", rows(1_000, 3, 32)).unwrap();
    let train = |option: &str, label: &str| {
        format!(
            "CREATE OR REPLACE MODEL m OPTIONS (model_type = 'classifier', input_label_cols = 'y', max_iterations = 1{option})
                 AS SELECT *, {label} AS y FROM t"
        )
    };
    let late = "CASE WHEN id >= 950 THEN 'late' WHEN x0 > 0 THEN 'up' ELSE 'down' END";
    let sql = train(", split_by_time = 'id'", late);
    let refused = session.context().ae_sql(&sql).await.unwrap_err().to_string();
    assert!(refused.contains("label 'late' of column \"y\" has no training row"), "{refused}");
    // by a hash, two rows of a class are training rows if they do not calibrate
    let rare = "CASE WHEN id IN (3, 5) THEN 'rare' WHEN x0 > 0 THEN 'up' ELSE 'down' END";
    run(&session, &train(", calibration_share = 0", rare)).await;
    let listed = described(&session, "m").await;
    assert!(listed["training.held_out_recall"].contains("[\"rare\",null]"), "{listed:?}");
}
