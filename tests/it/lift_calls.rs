//! Lifting calls into shared runs changes no row.
//!
//! Random queries run with the rules, with lifting off, and with the functions alone. The model runs no row twice, and no row
//! that the query does not need.

mod files;

use std::cell::Cell;
use std::sync::Arc;

use aefusion_udfs::SessionStateBuilderExt;
use aefusion_udfs::catalog::Models;
use aefusion_udfs::config::AeOptions;
use aefusion_udfs::model::Model;
use aefusion_udfs::model::metadata::Metadata;
use aefusion_udfs::store::ModelStore;
use datafusion::arrow::array::{ArrayRef, AsArray, Float32Array, Int64Array, RecordBatch};
use datafusion::arrow::datatypes::Int64Type;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::datasource::MemTable;
use datafusion::execution::SessionStateBuilder;
use datafusion::prelude::{SessionConfig, SessionContext};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, RngAlgorithm, RngSeed, TestRunner};

use crate::random_model::RandomModel;
use files::lifting_changes_no_row_over_files;

crate::harness::tests! {
    fn lifting_changes_no_row,
    fn lifting_changes_no_row_over_files,
    fn no_row_runs_twice_and_none_that_is_not_needed,
    fn a_branch_runs_only_the_rows_that_take_it,
    fn a_limit_that_is_soon_met_runs_about_a_block_a_partition,
}

const ROWS: i64 = 500;
const FEATURES: usize = 3;

/// Sessions over the same rows, and the models of the first.
struct Sessions {
    lifted: SessionContext,
    not_lifted: SessionContext,
    functions_only: SessionContext,
    model: Arc<Model>,
    imputing: Arc<Model>,
}

fn sessions() -> Sessions {
    let models = Models::new(ModelStore::in_memory());
    let random = RandomModel::new([FEATURES, 9, 2], "Tanh", [7; 32]);
    let model = models.register_bytes("m", random.onnx(), Metadata::default()).unwrap();
    // takes two columns, and fills nulls in
    let imputing = models.register_file("imp", "tests/models/impute.onnx", Metadata::default()).unwrap();
    let built = |lift: &str| {
        let mut config = SessionConfig::new().with_target_partitions(3).with_batch_size(64);
        config.options_mut().extensions.insert(AeOptions::default());
        let config = config.set_str("ae.lift_calls", lift);
        let builder = SessionStateBuilder::new().with_config(config).with_default_features();
        SessionContext::new_with_state(builder.with_autoencoders(models.clone()).build())
    };
    let functions_only = SessionContext::new();
    for function in aefusion_udfs::scalar_functions(&models, &AeOptions::default()) {
        functions_only.register_udf(function.as_ref().clone());
    }
    let sessions = Sessions { lifted: built("true"), not_lifted: built("false"), functions_only, model, imputing };
    for session in [&sessions.lifted, &sessions.not_lifted, &sessions.functions_only] {
        for (name, step) in [("t", 1), ("u", 3)] {
            let rows = table(step);
            let partitions = rows.chunks(2).map(<[RecordBatch]>::to_vec).collect();
            session.register_table(name, Arc::new(MemTable::try_new(rows[0].schema(), partitions).unwrap())).unwrap();
        }
    }
    sessions
}

/// Batches of 100 rows; every seventh feature is null, every eleventh row has none.
fn table(step: i64) -> Vec<RecordBatch> {
    let ids: Vec<i64> = (0..ROWS).step_by(usize::try_from(step).unwrap()).collect();
    let batch = |ids: &[i64]| {
        let id: ArrayRef = Arc::new(Int64Array::from(ids.to_vec()));
        let x: ArrayRef = Arc::new(Int64Array::from_iter(ids.iter().map(|id| (id % 5 > 0).then_some(id % 4))));
        let feature = |j: i64| -> ArrayRef {
            let value = |id: &i64| {
                let is_null = (id * 3 + j) % 7 == 0 || id % 11 == 0;
                (!is_null).then_some(f32::from(i16::try_from((id * 37 + j * 11) % 101).unwrap()) / 50.0 - 1.0)
            };
            Arc::new(Float32Array::from_iter(ids.iter().map(value)))
        };
        RecordBatch::try_from_iter([("id", id), ("x", x), ("a", feature(0)), ("b", feature(1)), ("c", feature(2))])
            .unwrap()
    };
    ids.chunks(100).map(batch).collect()
}

/// Rows as text, in order.
async fn rows(session: &SessionContext, sql: &str) -> Result<Vec<String>, String> {
    let batches = session.sql(sql).await.map_err(|e| e.to_string())?.collect().await.map_err(|e| e.to_string())?;
    let options = FormatOptions::default().with_null("NULL");
    let mut rows = Vec::new();
    for batch in batches {
        let columns: Vec<_> =
            batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options).unwrap()).collect();
        let row = |row| columns.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>().join(" | ");
        rows.extend((0..batch.num_rows()).map(row));
    }
    rows.sort();
    Ok(rows)
}

/// Features, in the forms and orders in which they are given.
fn features() -> impl Strategy<Value = &'static str> {
    select(vec![
        "'m', t.a, t.b, t.c",
        "'m', [t.a, t.b, t.c]",
        "'m', t.c, t.b, t.a",
        "'imp', t.a, t.b",
        "'imp', [t.b, t.c]",
    ])
}

/// An expression of a template, `@` being features.
fn filled(templates: Vec<&'static str>) -> impl Strategy<Value = String> {
    (select(templates), features()).prop_map(|(template, features)| template.replace('@', features))
}

/// An expression that calls a model for every row.
fn call() -> impl Strategy<Value = String> {
    filled(vec![
        "ae_error(@)",
        "ae_encode(@)",
        "ae_reconstruct(@)",
        "ae_run(@)",
        "ae_encode(@)[1]",
        "ae_error(@) + 1",
        "ae_error(@) > 0.3",
        "NULLIF(ae_error(@), 0.5)",
        "COALESCE(ae_error(@), -1)",
        "CASE WHEN ae_error(@) > 0.3 THEN 'odd' END",
        "ae_contributions(@)[1]['feature']",
        "ae_error(@) IS NULL",
    ])
}

/// An expression that calls a model for some rows only.
fn branch() -> impl Strategy<Value = String> {
    filled(vec![
        "CASE WHEN t.x > 1 THEN ae_error(@) ELSE -1 END",
        "COALESCE(t.a, CAST(ae_error(@) AS FLOAT))",
        "t.x = 1 OR ae_error(@) > 0.3",
        "t.x = 1 AND ae_error(@) > 0.3",
        "CASE t.x WHEN 1 THEN ae_encode(@)[1] WHEN 2 THEN ae_encode(@)[1] * 2 END",
        "t.id IN (1, CAST(ae_error(@) * 10 AS BIGINT))",
    ])
}

/// Something to sort and group by.
fn key() -> impl Strategy<Value = String> {
    filled(vec!["ae_error(@)", "ae_encode(@)[1]", "ae_error(@) > 0.3", "CASE WHEN t.x > 1 THEN ae_error(@) END"])
}

fn cheap() -> impl Strategy<Value = String> {
    select(vec!["t.id % 3 = 0", "t.x > 0", "t.a > 0", "t.b IS NOT NULL", "t.x IS NULL", "t.id < 200", "t.id = 7"])
        .prop_map(str::to_owned)
}

fn condition() -> impl Strategy<Value = String> {
    let costly = filled(vec!["ae_error(@) > 0.2", "ae_encode(@)[1] > 0", "(ae_error(@) < 0.6 OR t.x = 2)"]);
    prop_oneof![cheap(), costly, branch().prop_map(|branch| format!("({branch}) IS NOT NULL"))]
}

fn from() -> impl Strategy<Value = &'static str> {
    select(vec![
        "t",
        "t",
        "(SELECT * FROM t WHERE id % 2 = 0) t",
        "t JOIN u ON t.id = u.id",
        "u LEFT JOIN t ON t.id = u.id AND t.x > 1",
        "(SELECT *, ae_error('m', a, b, c) AS e FROM t) t",
        "(SELECT * FROM t WHERE ae_error('imp', a, b) > 0.1) t",
        "t JOIN u ON t.id = u.id AND ae_error('m', t.a, u.b, t.c) > 0.2",
        "t LEFT JOIN u ON t.id = u.id AND ae_error('m', t.a, t.b, t.c) > 0.2",
        "(SELECT * FROM t ORDER BY id LIMIT 70) t",
        "(SELECT * FROM t UNION ALL SELECT * FROM u) t",
    ])
}

fn query() -> impl Strategy<Value = String> {
    let selected = proptest::collection::vec(prop_oneof![3 => call(), 1 => branch()], 1..4);
    let conditions = proptest::collection::vec(condition(), 0..4);
    (selected, conditions, from(), 0..7_usize, key()).prop_map(|(selected, conditions, from, shape, key)| {
        let filter = match conditions.is_empty() {
            true => String::new(),
            false => format!(" WHERE {}", conditions.join(" AND ")),
        };
        let named = selected.iter().enumerate().map(|(i, expr)| format!("{expr} AS c{i}"));
        let list = named.collect::<Vec<_>>().join(", ");
        match shape {
            0 => format!("SELECT t.x, min({key}), max(t.id), count(*) FROM {from}{filter} GROUP BY t.x"),
            1 => format!(
                "SELECT {key}, count(*), max(t.id) FROM {from}{filter} GROUP BY 1 HAVING max({key}) IS NOT NULL"
            ),
            2 => format!("SELECT t.id, {list} FROM {from}{filter} ORDER BY {key}, t.id LIMIT 9"),
            3 => format!("SELECT t.id, {list}, rank() OVER (PARTITION BY t.x ORDER BY {key}) FROM {from}{filter}"),
            4 => format!("SELECT v.id FROM u AS v WHERE v.id IN (SELECT t.id FROM {from}{filter})"),
            5 => format!("SELECT DISTINCT ON ({key}) t.id, {list} FROM {from}{filter} ORDER BY {key}, t.id"),
            _ => format!("SELECT t.id, {list} FROM {from}{filter}"),
        }
    })
}

fn runner(cases: u32, seed: u64) -> TestRunner {
    TestRunner::new(Config {
        cases,
        rng_seed: RngSeed::Fixed(seed),
        rng_algorithm: RngAlgorithm::ChaCha,
        failure_persistence: None,
        ..Config::default()
    })
}

fn lifting_changes_no_row() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build().unwrap();
    let sessions = sessions();
    let (ran, failed) = (Cell::new(0), Cell::new(0));
    let result = runner(400, 3).run(&query(), |sql| {
        let expected = runtime.block_on(rows(&sessions.functions_only, &sql));
        ran.set(ran.get() + 1);
        failed.set(failed.get() + usize::from(expected.is_err()));
        for session in [&sessions.not_lifted, &sessions.lifted] {
            let found = runtime.block_on(rows(session, &sql));
            match (&expected, &found) {
                (Ok(expected), Ok(found)) => prop_assert_eq!(expected, found, "{}", sql),
                (Err(_), Err(_)) => {}
                (expected, found) => prop_assert!(false, "{}: {:?} and {:?}", sql, expected, found),
            }
        }
        Ok(())
    });
    result.unwrap();
    assert!(failed.get() * 10 < ran.get(), "{} of {} queries fail in every session", failed.get(), ran.get());
}

/// Counts the rows of `t` that pass the conditions without a model: all, and those with their features.
async fn needed(session: &SessionContext, filter: &str) -> (u64, u64) {
    let sql = format!("SELECT count(*), count(CASE WHEN a + b + c IS NOT NULL THEN 1 END) FROM t{filter}");
    let batches = session.sql(&sql).await.unwrap().collect().await.unwrap();
    let count = |column: usize| u64::try_from(batches[0].column(column).as_primitive::<Int64Type>().value(0)).unwrap();
    (count(0), count(1))
}

fn no_row_runs_twice_and_none_that_is_not_needed() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build().unwrap();
    let sessions = sessions();
    let template = select(vec![
        "SELECT t.id, ae_error('m', a, b, c), ae_encode('m', a, b, c), ae_reconstruct('m', a, b, c) FROM t WHERE CHEAP AND ae_error('m', a, b, c) > 0.2",
        "SELECT t.id, e, ae_encode('m', a, b, c) FROM (SELECT *, ae_error('m', a, b, c) AS e FROM t) t WHERE e > 0.2 AND CHEAP",
        "SELECT max(ae_error('m', a, b, c)) FROM t WHERE CHEAP GROUP BY ae_error('m', a, b, c) > 0.3 HAVING max(ae_encode('m', a, b, c)[1]) > 0",
        "SELECT t.id FROM t WHERE CHEAP ORDER BY ae_error('m', a, b, c), ae_encode('m', a, b, c)[1]",
        "SELECT r['f0'], r['f1'], r['f2'] FROM (SELECT ae_reconstruct('m', a, b, c) AS r FROM t WHERE CHEAP)",
        "SELECT t.id, rank() OVER (ORDER BY ae_error('m', a, b, c)) AS r, CASE WHEN x = 1 THEN ae_encode('m', a, b, c) END FROM t WHERE CHEAP QUALIFY r < 9",
        "SELECT t.id FROM t JOIN u ON t.id = u.id AND ae_error('m', t.a, t.b, t.c) > 0.2 AND ae_encode('m', t.a, t.b, t.c)[1] > 0 WHERE CHEAP",
    ]);
    runner(60, 3)
        .run(&(template, proptest::collection::vec(cheap(), 1..3)), |(template, cheap)| {
            let cheap = cheap.join(" AND ");
            let sql = template.replace("CHEAP", &cheap);
            let (all, whole) = runtime.block_on(needed(&sessions.functions_only, &format!(" WHERE {cheap}")));
            let before = sessions.model.rows_run();
            runtime.block_on(rows(&sessions.lifted, &sql)).unwrap();
            let ran = sessions.model.rows_run() - before;
            // a block whose rows all lack a feature need not run
            prop_assert!((whole..=all).contains(&ran), "{}: {} rows ran, {} were needed", sql, ran, all);
            Ok(())
        })
        .unwrap();
}

fn a_branch_runs_only_the_rows_that_take_it() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let sessions = sessions();
    let before = sessions.imputing.rows_run();
    let sql = "SELECT CASE WHEN t.id < 10 THEN ae_error('imp', a, b) END FROM t";
    runtime.block_on(rows(&sessions.lifted, sql)).unwrap();
    assert_eq!(sessions.imputing.rows_run() - before, 10);
}

fn a_limit_that_is_soon_met_runs_about_a_block_a_partition() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let sessions = sessions();
    for (sql, most) in [
        ("SELECT ae_error('imp', a, b) FROM t LIMIT 10", 10),
        ("SELECT id FROM t WHERE ae_error('imp', a, b) >= 0 LIMIT 10", 3 * 64),
    ] {
        let before = sessions.imputing.rows_run();
        runtime.block_on(rows(&sessions.lifted, sql)).unwrap();
        let ran = sessions.imputing.rows_run() - before;
        assert!((10..=most).contains(&ran), "{sql}: {ran} rows ran");
    }
}
