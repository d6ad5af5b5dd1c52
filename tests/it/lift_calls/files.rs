//! Random queries over Parquet files of small row groups: joins whose sides have equal names, IN, top-k, views.
//!
//! Unlike tables in memory, such files take filters.
//!
//! The oracle is the same query over columns that were computed beforehand, in memory, in one partition.

use std::path::Path;

use aefusion::session::{Session, SessionOptions};
use aefusion_udfs::model::metadata::Metadata;
use proptest::prelude::*;
use proptest::sample::select;

use super::{rows, runner};
use crate::random_model::RandomModel;

/// Queries of a run of the tests. `AEFUSION_QUERIES` and `AEFUSION_SEED` give other numbers.
const QUERIES: u32 = 300;
const SEED: u64 = 18;

fn given(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

/// A session over the files in a folder, and one over the same rows in memory.
async fn sessions(folder: &Path) -> [Session; 2] {
    let open =
        || Session::open(&SessionOptions { models: "memory:///".to_owned(), ..SessionOptions::default() }).unwrap();
    let sessions = [open(), open()];
    for session in &sessions {
        let model = RandomModel::new([3, 9, 2], "Tanh", [7; 32]);
        session.models().register_bytes("m", model.onnx(), Metadata::default()).unwrap();
    }
    let run = async |session: &Session, sql: &str| {
        session.context().sql(sql).await.unwrap().collect().await.unwrap();
    };
    let [files, memory] = &sessions;
    run(memory, "SET datafusion.execution.parquet.max_row_group_size = 20").await;
    run(memory, "SET datafusion.execution.target_partitions = 1").await;
    run(memory, "SET ae.lift_calls = false").await;
    let location = |name: &str| folder.join(format!("{name}.parquet")).display().to_string();
    for (name, k, step) in [("l", "value", 1), ("r", "400 - value", 1), ("s", "value * 3", 3)] {
        let feature = |j: usize| {
            format!("CASE WHEN (value + {j}) % 13 > 0 THEN CAST((value * 37 + {j} * 11) % 101 AS FLOAT) / 50 - 1 END")
        };
        let columns = format!(
            "value AS id, {k} AS k, value % 4 AS x, {} AS a, {} AS b, {} AS c FROM range(0, 400, {step})",
            feature(name.len() + step),
            feature(step * 2),
            feature(step * 5)
        );
        let computed = "ae_error('m', a, b, c) AS err, ae_encode('m', a, b, c)[1] AS code";
        run(memory, &format!("CREATE TABLE {name} AS SELECT *, {computed} FROM (SELECT {columns})")).await;
        run(memory, &format!("COPY (SELECT * FROM {name} ORDER BY id) TO '{}'", location(name))).await;
        let external = format!("CREATE EXTERNAL TABLE {name} STORED AS PARQUET LOCATION '{}'", location(name));
        run(files, &external).await;
    }
    for session in &sessions {
        run(session, "CREATE TABLE small (v BIGINT) AS VALUES (5), (10), (395), (17), (111), (NULL)").await;
        let view = |error: &str| {
            format!(
                "CREATE VIEW scored AS SELECT l.id, l.k AS lk, r.k AS rk, l.x, {error} AS e FROM l JOIN r ON l.id = r.id"
            )
        };
        run(session, &view(if std::ptr::eq(session, files) { "ae_error('m', l.a, l.b, l.c)" } else { "l.err" })).await;
    }
    sessions
}

/// A query; `ERROR(t)` and `CODE(t)` stand for calls.
#[derive(Debug, Clone)]
struct Case {
    query: String,
    settings: Vec<(&'static str, String)>,
}

/// The query with calls, or with the columns that were computed beforehand.
fn filled(query: &str, has_calls: bool) -> String {
    let mut query = query.to_owned();
    for table in ["l", "r", "s"] {
        let features = format!("'m', {table}.a, {table}.b, {table}.c");
        let (error, code) = match has_calls {
            true => (format!("ae_error({features})"), format!("ae_encode({features})[1]")),
            false => (format!("{table}.err"), format!("{table}.code")),
        };
        query = query.replace(&format!("ERROR({table})"), &error).replace(&format!("CODE({table})"), &code);
    }
    query
}

fn one_of(texts: &[&'static str]) -> impl Strategy<Value = &'static str> + use<> {
    select(texts.to_vec())
}

/// A table of the columns `id`, `lk`, `rk`, `x`, `e` and `f`.
fn scored() -> impl Strategy<Value = String> {
    let value =
        || one_of(&["ERROR(l)", "ERROR(r)", "CODE(l)", "CODE(r)", "ERROR(l) + ERROR(r)", "coalesce(ERROR(r), -1.0)"]);
    let join = one_of(&[
        "l JOIN r ON l.id = r.id",
        "l JOIN r ON l.id = r.k",
        "l JOIN r ON l.k = r.id AND ERROR(l) > 0.3",
        "l LEFT JOIN r ON l.id = r.id AND ERROR(r) > 0.3",
        "l RIGHT JOIN r ON l.id = r.k AND l.x = 1",
        "l FULL JOIN r ON l.id = r.id AND l.x = 2",
        "l JOIN s AS r ON l.id = r.id",
        "(SELECT * FROM l WHERE ERROR(l) > 0.2) AS l JOIN r ON l.id = r.id",
        "l JOIN (SELECT * FROM r WHERE x > 0) AS r ON CAST(l.id AS TEXT) = CAST(r.id AS TEXT)",
        "l RIGHT JOIN (SELECT * FROM r WHERE id > 10) AS r ON l.id + 1 = r.k",
        "(SELECT * FROM l ORDER BY k LIMIT 90) AS l JOIN r ON l.id = r.id",
    ]);
    let condition = one_of(&[
        "",
        "",
        " WHERE l.x > 0",
        " WHERE ERROR(l) > 0.3",
        " WHERE ERROR(r) < 0.6 AND r.x <> 1",
        " WHERE l.k < 300 AND CODE(l) > 0",
        " WHERE l.a IS NULL",
        " WHERE r.k IN (SELECT v FROM small)",
        " WHERE CASE WHEN l.x > 1 THEN ERROR(l) > 0.3 ELSE r.k > 100 END",
    ]);
    let computed = (value(), value(), join, condition).prop_map(|(e, f, from, condition)| {
        format!("(SELECT l.id, l.k AS lk, r.k AS rk, l.x, {e} AS e, {f} AS f FROM {from}{condition}) AS z")
    });
    prop_oneof![4 => computed, 1 => Just("(SELECT *, e AS f FROM scored) AS z".to_owned())]
}

fn case() -> impl Strategy<Value = Case> {
    let outer = one_of(&[
        "SELECT z.id, z.lk, z.rk, z.e FROM Z WHERE z.rk IN (SELECT v FROM small)",
        "SELECT z.id, z.lk, z.rk, z.f FROM Z WHERE z.lk IN (SELECT v FROM small) AND z.e > 0.2",
        "SELECT z.id, z.rk, z.e FROM Z JOIN small ON small.v = z.rk",
        "SELECT z.id, z.rk, z.e FROM small JOIN Z ON small.v = z.lk WHERE z.f IS NOT NULL",
        "SELECT z.id, z.rk, z.e FROM small LEFT JOIN Z ON small.v = z.rk",
        "SELECT z.id, z.rk, z.e, ERROR(s) FROM Z JOIN s ON s.k = z.rk",
        "SELECT z.id, z.rk, s.k, CODE(s) FROM s JOIN Z ON s.id = z.lk AND s.k > 30 WHERE ERROR(s) > 0.3",
        "SELECT z.id, z.rk FROM Z WHERE z.rk NOT IN (SELECT v FROM small WHERE v IS NOT NULL) AND z.e > 0.5",
        "SELECT z.id, z.rk FROM Z WHERE EXISTS (SELECT 1 FROM s WHERE s.id = z.rk AND ERROR(s) > 0.3)",
        "SELECT s.id, s.k FROM s WHERE s.k IN (SELECT z.rk FROM Z WHERE z.e > 0.3)",
        "SELECT z.id, z.lk, z.rk, z.e FROM Z ORDER BY z.e, z.id, z.lk, z.rk LIMIT 7",
        "SELECT z.id, z.lk, z.rk, z.e FROM Z ORDER BY z.rk DESC NULLS LAST, z.id, z.lk LIMIT 7",
        "SELECT z.id, z.lk, z.rk, z.f FROM Z ORDER BY z.lk, z.id, z.rk LIMIT 5 OFFSET 3",
        "SELECT z.x, count(*), max(z.e), min(z.rk) FROM Z GROUP BY z.x",
        "SELECT z.x, z.lk % 3, count(*), max(z.rk) FROM Z GROUP BY ROLLUP (z.x, z.lk % 3)",
        "SELECT 'u' AS u, z.x, count(*), min(z.e) FROM Z WHERE z.x = 2 GROUP BY CUBE ('u', z.x)",
        "SELECT max(z.rk), min(z.lk) FROM Z WHERE z.e > 0.3",
        "SELECT z.id, z.rk, rank() OVER (PARTITION BY z.x ORDER BY z.e, z.id, z.lk, z.rk) AS n FROM Z",
        "SELECT z.id, z.rk, count(*) OVER (PARTITION BY abs(z.e) > 0.4) AS n FROM Z",
        "SELECT z.id, z.rk, z.e FROM Z QUALIFY row_number() OVER (PARTITION BY z.x ORDER BY z.rk, z.id, z.lk) < 3",
        "SELECT DISTINCT ON (z.x) z.x, z.rk, z.e FROM Z ORDER BY z.x, z.rk, z.id, z.lk, z.rk",
        "SELECT z.rk FROM Z WHERE z.e > 0.3 UNION SELECT s.k FROM s WHERE ERROR(s) > 0.3",
        "SELECT z.lk FROM Z INTERSECT SELECT s.k FROM s WHERE CODE(s) > 0",
        "SELECT z.id, (SELECT max(ERROR(s)) FROM s WHERE s.id = z.lk) AS m FROM Z WHERE z.x = 1",
        "SELECT y.id, z.rk, y.e FROM Z JOIN scored AS y ON y.rk = z.rk WHERE z.e > 0.2 AND y.lk < 200",
    ]);
    (scored(), outer, settings())
        .prop_map(|(scored, outer, settings)| Case { query: outer.replace('Z', &scored), settings })
}

/// Settings that must not change a result.
fn settings() -> impl Strategy<Value = Vec<(&'static str, String)>> {
    let number = |name, values: &[u32]| {
        let values = values.iter().map(u32::to_string).collect::<Vec<_>>();
        select(values).prop_map(move |value| (name, value))
    };
    let switch = |name| proptest::bool::ANY.prop_map(move |is_on| (name, is_on.to_string()));
    let settings: (_, _, _, _, _, _, _, _, _, _) = (
        proptest::bool::weighted(0.7).prop_map(|lifted| ("ae.lift_calls", lifted.to_string())),
        number("datafusion.execution.target_partitions", &[1, 2, 3, 4]),
        number("datafusion.execution.batch_size", &[1, 7, 8192]),
        number("ae.batch_rows", &[0, 1, 16]),
        switch("datafusion.optimizer.enable_dynamic_filter_pushdown"),
        switch("datafusion.optimizer.repartition_joins"),
        switch("datafusion.optimizer.repartition_aggregations"),
        switch("datafusion.optimizer.enable_round_robin_repartition"),
        switch("datafusion.execution.parquet.pushdown_filters"),
        switch("datafusion.optimizer.prefer_existing_sort"),
    );
    settings.prop_map(|(a, b, c, d, e, f, g, h, i, j)| vec![a, b, c, d, e, f, g, h, i, j])
}

pub(super) fn lifting_changes_no_row_over_files() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let [files, memory] = runtime.block_on(sessions(folder.path()));
    let seed = given("AEFUSION_SEED").unwrap_or(SEED);
    let queries = given("AEFUSION_QUERIES").map_or(QUERIES, |queries| u32::try_from(queries).unwrap());
    eprintln!("{queries} queries, AEFUSION_SEED={seed}");
    let (ran, failed) = (std::cell::Cell::new(0_u32), std::cell::Cell::new(0_u32));
    let result = runner(queries, seed).run(&case(), |Case { query, settings }| {
        let sql = filled(&query, true);
        let expected = runtime.block_on(rows(memory.context(), &filled(&query, false)));
        let found = runtime.block_on(async {
            for (name, value) in &settings {
                files.context().sql(&format!("SET {name} = {value}")).await.unwrap();
            }
            rows(files.context(), &sql).await
        });
        ran.set(ran.get() + 1);
        match (expected, found) {
            (Ok(expected), Ok(found)) => prop_assert_eq!(expected, found, "{}; {:?}", sql, settings),
            (Err(_), Err(_)) => failed.set(failed.get() + 1),
            (expected, found) => prop_assert!(false, "{}; {:?}: {:?} and {:?}", sql, settings, expected, found),
        }
        Ok(())
    });
    eprintln!("{} queries ran, {} of them fail in both sessions", ran.get(), failed.get());
    result.unwrap();
    assert!(failed.get() * 20 <= ran.get(), "{} of {} queries fail in both sessions", failed.get(), ran.get());
}
