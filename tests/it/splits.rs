//! The parts of a training: a row keeps its part, groups stay together, the last rows calibrate.

use std::collections::BTreeMap;

use aefusion::session::Session;
use aefusion_udfs::sql::SessionContextExt;

use crate::training::{described, numbers, rows, run, session};

crate::harness::tests! {
    async neither_order_nor_copies_of_rows_change_the_parts,
    async a_warm_start_never_calibrates_on_rows_of_an_earlier_training,
    async a_classifier_never_calibrates_on_rows_of_its_base,
    async a_base_without_calibration_rows_leaves_none,
    async groups_stay_together,
    async the_last_rows_calibrate,
    async a_warm_start_keeps_the_split_of_its_model,
    async scales_and_levels_are_of_the_training_rows,
    async a_model_of_an_earlier_version_is_calibrated_with_a_warning,
}

/// The error of a statement.
async fn error(session: &Session, sql: &str) -> String {
    session.context().ae_sql(sql).await.unwrap_err().to_string()
}

/// Numbers of training, held-out and calibration rows.
async fn parts(session: &Session, model: &str) -> [usize; 3] {
    let listed = described(session, model).await;
    let number = |property: &str| listed.get(property).map_or(0, |number| number.parse().unwrap());
    [number("training.rows"), number("training.held_out_rows"), number("calibration_rows")]
}

/// Mean p-value of rows, and the share of p-values under 0.05.
async fn p_values(session: &Session, model: &str, rows: &str) -> [f64; 2] {
    let sql = |aggregate: &str| format!("SELECT avg({aggregate}) FROM (SELECT ae_pvalue('{model}') AS p FROM {rows})");
    [numbers(session, &sql("p")).await[0], numbers(session, &sql("(p < 0.05)::DOUBLE")).await[0]]
}

const LINEAR: &str = "activation_fn = 'linear', hidden_units = [2]";

async fn neither_order_nor_copies_of_rows_change_the_parts() {
    let session = session();
    session.context().register_batch("t", rows(2_000, 4, 21)).unwrap();
    for (model, query) in [
        ("plain", "SELECT x0, x1, x2, x3 FROM t"),
        ("sorted", "SELECT x0, x1, x2, x3 FROM t ORDER BY x0"),
        ("columns", "SELECT x3, x1, x0, x2 FROM t ORDER BY x1"),
        ("twice", "SELECT x0, x1, x2, x3 FROM t UNION ALL SELECT x0, x1, x2, x3 FROM t"),
        ("half", "SELECT x0, x1, x2, x3 FROM t WHERE id < 1000"),
    ] {
        run(&session, &format!("CREATE MODEL {model} OPTIONS ({LINEAR}) AS {query}")).await;
    }
    let plain = parts(&session, "plain").await;
    assert_eq!(plain.iter().sum::<usize>(), 2_000);
    // four deviations of a binomial count around 200
    assert!(plain[1].abs_diff(200) < 54 && plain[2].abs_diff(200) < 54, "{plain:?}");
    for model in ["sorted", "columns"] {
        assert_eq!(parts(&session, model).await, plain, "{model}");
        let differences = format!("SELECT max(abs(ae_pvalue('{model}') - ae_pvalue('plain'))) FROM t");
        // errors that differ by rounding may swap ranks
        assert!(numbers(&session, &differences).await[0] < 0.02, "{model}: the same rows calibrate");
    }
    assert_eq!(parts(&session, "twice").await, plain.map(|rows| 2 * rows), "copies stay together");
    let [train, held_out, calibration] = parts(&session, "half").await;
    assert!(train < plain[0] && held_out < plain[1] && calibration < plain[2]);
    // another seed deals anew
    run(&session, &format!("CREATE MODEL seed OPTIONS ({LINEAR}, seed = 5) AS SELECT x0, x1, x2, x3 FROM t")).await;
    assert_ne!(parts(&session, "seed").await, plain);
}

/// A network that learns its rows by heart: its errors on them are far smaller than on others.
const BY_HEART: &str =
    "hidden_units = [64, 2, 64], activation_fn = 'relu', code_activation_fn = 'linear', early_stop = FALSE,
     data_split_eval_fraction = 0, calibration_share = 0.3, max_iterations = 1500, learn_rate = 0.003";

/// A table `t` of 150 rows for [`BY_HEART`] and of others.
fn by_heart() -> Session {
    let session = session();
    session.context().register_batch("t", rows(10_000, 3, 22)).unwrap();
    session
}

async fn a_warm_start_never_calibrates_on_rows_of_an_earlier_training() {
    let session = by_heart();
    run(&session, &format!("CREATE MODEL w OPTIONS ({BY_HEART}) AS SELECT x0, x1, x2 FROM t WHERE id < 150")).await;
    let before = p_values(&session, "w", "t WHERE id > 1000").await;
    let again = "CREATE OR REPLACE MODEL w OPTIONS (warm_start = TRUE, max_iterations = 1, learn_rate = 1e-9)
                 AS SELECT x0, x1, x2 FROM t WHERE id > 0 AND id < 151";
    run(&session, again).await;
    let after = p_values(&session, "w", "t WHERE id > 1000").await;
    // one of some 45 calibration rows may go, and one may come
    assert!((after[0] - before[0]).abs() < 0.04 && (after[1] - before[1]).abs() < 0.06, "{before:?}, then {after:?}");
}

async fn a_classifier_never_calibrates_on_rows_of_its_base() {
    let session = by_heart();
    run(&session, &format!("CREATE MODEL base OPTIONS ({BY_HEART}) AS SELECT x0, x1, x2 FROM t WHERE id < 150")).await;
    let before = p_values(&session, "base", "t WHERE id > 1000").await;
    run(
        &session,
        "CREATE MODEL k OPTIONS (model_type = 'classifier', base_model = 'base', fine_tune = 'all', seed = 9,
                                 input_label_cols = ['y'], max_iterations = 1, learn_rate = 1e-9)
         AS SELECT x2, x1, x0, id % 2 AS y FROM t WHERE id < 150 ORDER BY x0",
    )
    .await;
    let after = p_values(&session, "k", "t WHERE id > 1000").await;
    assert_eq!(parts(&session, "k").await[2], parts(&session, "base").await[2]);
    assert!((after[0] - before[0]).abs() < 1e-3, "{before:?}, then {after:?}");
}

async fn a_base_without_calibration_rows_leaves_none() {
    let session = session();
    session.context().register_batch("t", rows(300, 3, 23)).unwrap();
    let options = "calibration_share = 0, max_iterations = 1";
    run(&session, &format!("CREATE MODEL m OPTIONS ({options}) AS SELECT x0, x1, x2 FROM t")).await;
    let again =
        |more: &str| format!("CREATE OR REPLACE MODEL m OPTIONS (warm_start = TRUE{more}) AS SELECT x0, x1, x2 FROM t");
    run(&session, &again(", max_iterations = 1")).await;
    assert_eq!(parts(&session, "m").await[2], 0);
    let refused = error(&session, &again(", calibration_share = 0.1")).await;
    assert!(refused.contains("calibration_share must be at most 0 with warm_start, found 0.1"), "{refused}");
}

async fn groups_stay_together() {
    let session = session();
    session.context().register_batch("t", rows(3_000, 3, 24)).unwrap();
    for (model, group) in [("numbers", "id / 10"), ("texts", "'group ' || (id / 10)")] {
        run(
            &session,
            &format!(
                "CREATE MODEL {model} OPTIONS ({LINEAR}, split_by = 'g') AS SELECT x0, {group} AS g, x1, x2 FROM t"
            ),
        )
        .await;
        let found = parts(&session, model).await;
        assert!(found.iter().all(|rows| *rows > 0 && rows % 10 == 0), "{model}: {found:?}");
        assert_eq!(found.iter().sum::<usize>(), 3_000);
        let listed = described(&session, model).await;
        assert_eq!(listed["features"], "3: x0, x1, x2", "the column is not a feature");
        assert_eq!(listed["training.split_by"], "g");
    }
}

async fn the_last_rows_calibrate() {
    let session = session();
    session.context().register_batch("t", rows(1_000, 3, 25)).unwrap();
    // the last tenth has other errors
    run(
        &session,
        "CREATE VIEW later AS SELECT id, to_timestamp(1700000000 + 60 * id) AS ts, x0, x1 + CASE WHEN id >= 900 THEN 50 ELSE 0 END AS x1, x2
             FROM t ORDER BY x0",
    )
    .await;
    let train = |model: &str, option: &str, columns: &str| {
        format!("CREATE MODEL {model} OPTIONS ({LINEAR}{option}) AS SELECT {columns} FROM later")
    };
    run(&session, &train("time", ", split_by_time = 'ts'", "x0, x1, x2, ts")).await;
    assert_eq!(parts(&session, "time").await, [800, 100, 100]);
    let [mean, small] = p_values(&session, "time", "later WHERE id >= 900").await;
    assert!(mean > 0.4 && small < 0.1, "{mean}, {small}: the rows are those of the calibration");
    let [mean, _] = p_values(&session, "time", "later WHERE id < 800").await;
    assert!(mean > 0.9, "{mean}: all others have smaller errors");
    for (option, columns, expected) in [
        (", split_by_time = 'ts', split_by = 'x0'", "x0, x1, ts", "exclude each other"),
        (", split_by_time = 'tss'", "x0, x1, ts", "no column \"tss\"; its columns are x0, x1, ts"),
        (", split_by_time = 'way'", "x0, x1, 'up' AS way", "is Utf8, expected a timestamp, a date or a number"),
        (", split_by_time = 'ts'", "x0, x1, nullif(ts, to_timestamp(1700000000)) AS ts", "NULL in 1 rows"),
    ] {
        let refused = error(&session, &train("e", option, columns)).await;
        assert!(refused.contains(expected), "{refused}");
    }
}

async fn a_warm_start_keeps_the_split_of_its_model() {
    let session = session();
    session.context().register_batch("t", rows(2_000, 3, 26)).unwrap();
    let train = |options: &str, columns: &str, ids: &str| {
        format!(
            "CREATE OR REPLACE MODEL m OPTIONS (max_iterations = 1, {options}) AS SELECT {columns} FROM t WHERE id {ids}"
        )
    };
    let columns = "id, x0, x1, x2";
    run(&session, &train("split_by_time = 'id'", columns, "< 1000")).await;
    assert_eq!(parts(&session, "m").await, [800, 100, 100]);
    // 300 rows later
    run(&session, &train("warm_start = TRUE", columns, "BETWEEN 300 AND 1299")).await;
    assert_eq!(parts(&session, "m").await, [800, 100, 100]);
    assert_eq!(described(&session, "m").await["training.split_by_time"], "id");
    // the second training was fitted to rows up to 1199
    run(&session, &train("warm_start = TRUE", columns, "BETWEEN 250 AND 1249")).await;
    assert_eq!(parts(&session, "m").await, [850, 100, 50]);
    run(&session, &train("warm_start = TRUE", columns, "< 1000")).await;
    assert_eq!(parts(&session, "m").await, [900, 100, 0]);
    let refused = error(&session, &train("warm_start = TRUE, split_by = 'x2'", columns, "< 1000")).await;
    assert!(refused.contains("splits its rows by the time \"id\", not by the column \"x2\""), "{refused}");
    let refused = error(&session, &train("warm_start = TRUE", "x0, x1, x2", "< 1000")).await;
    assert!(refused.contains("option split_by_time: the query has no column \"id\""), "{refused}");
}

async fn scales_and_levels_are_of_the_training_rows() {
    let session = session();
    run(
        &session,
        "CREATE VIEW t AS SELECT value AS id, CASE WHEN value > 900 THEN 1e6 ELSE value % 7 END AS x,
                CASE WHEN value > 900 THEN 'new' WHEN value % 2 = 0 THEN 'even' ELSE 'odd' END AS way
             FROM generate_series(1, 1000) AS s(value)",
    )
    .await;
    run(&session, "CREATE MODEL m OPTIONS (split_by_time = 'id', max_iterations = 1) AS SELECT * FROM t").await;
    // two levels, all others, missing
    assert_eq!(numbers(&session, "SELECT array_length(ae_run('m', 3, 'odd')['scaled'])::DOUBLE").await, [5.0]);
    let scaled = numbers(&session, "SELECT ae_run('m', 3, 'odd')['scaled'][1]::DOUBLE").await[0];
    let expected = numbers(&session, "SELECT (3 - avg(x)) / stddev_pop(x) FROM t WHERE id <= 800").await[0];
    assert!((scaled - expected).abs() < 1e-5, "{scaled}, not {expected}");
    // the statistics are of all rows
    let features = "SELECT max FROM ae_features('m') WHERE feature = 'x'";
    assert!((numbers(&session, features).await[0] - 1e6).abs() < 1e-9);
}

/// `tests/models/trained_earlier.onnx` is the file of a version that split rows by their place, and did not record it:
///
/// ```sql
/// CREATE VIEW t AS SELECT sin(value) AS a, cos(value) AS b, sin(value) + 0.1 * cos(3 * value) AS c,
///   CASE WHEN sin(value) > 0 THEN 'up' ELSE 'down' END AS way FROM generate_series(1, 300) AS s(value);
/// CREATE MODEL m OPTIONS (hidden_units = [4, 2, 4], max_iterations = 30, learn_rate = 0.01, calibration_fraction = 0.2)
///   AS SELECT a, b, c, way FROM t;
/// EXPORT MODEL m TO 'tests/models/trained_earlier.onnx';
/// ```
async fn a_model_of_an_earlier_version_is_calibrated_with_a_warning() {
    let session = session();
    run(
        &session,
        "CREATE VIEW t AS SELECT sin(value) AS a, cos(value) AS b, sin(value) + 0.1 * cos(3 * value) AS c,
                CASE WHEN sin(value) > 0 THEN 'up' ELSE 'down' END AS way FROM generate_series(1, 300) AS s(value)",
    )
    .await;
    run(&session, "CREATE MODEL m OPTIONS (model_path = 'tests/models/trained_earlier.onnx')").await;
    let smallest = numbers(&session, "SELECT ae_pvalue('m', 100, 100, -100, 'up')").await[0];
    assert!((smallest - 1.0 / 61.0).abs() < 1e-12, "{smallest}: of 60 calibration rows");
    run(&session, "CREATE OR REPLACE MODEL m OPTIONS (warm_start = TRUE, max_iterations = 1) AS SELECT * FROM t").await;
    let listed = described(&session, "m").await;
    assert_eq!(listed["training.calibration_may_have_trained"], "true");
    assert_eq!(listed["training.calibration_share"], "0.2", "by its earlier name");
    let summary: BTreeMap<String, serde_json::Value> =
        [("calibration_may_have_trained".to_owned(), true.into())].into_iter().collect();
    let lines = aefusion::cli::summary_lines(&summary).join("\n");
    assert!(lines.contains("warning: an earlier version trained the existing model"), "{lines}");
    // the split is known from then on
    run(&session, "CREATE OR REPLACE MODEL m OPTIONS (warm_start = TRUE, max_iterations = 1) AS SELECT * FROM t").await;
    assert!(described(&session, "m").await.contains_key("training.calibration_may_have_trained"), "it may still be so");
}
