//! The program itself: its output, its log and its exit code.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use insta::assert_snapshot;
use nix::sys::signal::Signal;

use crate::program::Running;

crate::harness::tests! {
    fn statements_print_tables,
    fn an_error_ends_the_script_with_code_1,
    fn a_panic_is_the_error_of_its_statement,
    #[cfg(target_os = "linux")]
    fn a_file_that_is_cut_short_is_an_error,
    fn rows_come_in_every_format,
    fn files_of_every_format_are_tables,
    fn a_script_comes_from_standard_input,
    fn models_stay_in_their_store,
    fn a_missing_or_old_runtime_is_one_clear_error,
    fn doctor_shows_what_is_in_use,
    fn a_sort_beyond_the_memory_limit_spills_or_fails_by_name,
    fn an_interrupt_stops_the_query,
    fn an_interrupt_ends_a_training_without_a_model_or_with_its_best,
    fn an_interrupt_ends_an_epoch_of_a_training_soon,
    fn a_second_interrupt_ends_the_program,
    fn a_second_interrupt_does_not_wait_for_a_file,
    fn a_report_is_one_page_that_needs_no_network,
}

const MEAN: &str =
    "CREATE MODEL mean OPTIONS (model_type = 'onnx', model_path = 'tests/models/mean.onnx', input_cols = ['a', 'b'])";

/// The program, in the root of the repository.
pub(crate) fn aefusion() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aefusion"));
    command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env_remove("AEFUSION_MODELS")
        .env_remove("AEFUSION_READ_FILES")
        .env("RUST_BACKTRACE", "0");
    command
}

/// Exit code, standard output and standard error.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let code = output.status.code().map_or("none".to_owned(), |code| code.to_string());
    format!("exit code {code}\n--- out\n{out}--- err\n{err}")
}

fn sql(arguments: &[&str]) -> String {
    run(aefusion().args(["sql", "--models", "memory:///"]).args(arguments))
}

fn statements_print_tables() {
    let script = "SELECT ae_encode('mean', 1, 3) AS code; SELECT ae_error('mean', 1, 3) AS error; DROP MODEL mean";
    let printed = sql(&["-c", MEAN, "-c", script]);
    // the first table holds a checksum; see models_stay_in_their_store
    let rest = printed.split_once("| mean@1 | 2        | 1    | ").unwrap().1.split_once("-+\n").unwrap().1;
    assert_snapshot!(rest, @r"
    +-------+
    | code  |
    +-------+
    | [2.0] |
    +-------+
    +-------+
    | error |
    +-------+
    | 1.0   |
    +-------+
    +-------+------------------+
    | model | versions_removed |
    +-------+------------------+
    | mean  | 1                |
    +-------+------------------+
    --- err
    ");
}

fn an_error_ends_the_script_with_code_1() {
    assert_snapshot!(sql(&["-c", "SELECT 1 AS one", "-c", "SELECT ae_error('nobody', 1)", "-c", "SELECT 2"]), @r"
    exit code 1
    --- out
    +-----+
    | one |
    +-----+
    | 1   |
    +-----+
    --- err
    planning error: ae_error('nobody'): model nobody not found in memory:///
    ");
    assert_snapshot!(sql(&["-c", "SELEC 1"]), @r"
    exit code 1
    --- out
    --- err
    syntax error: Expected: an SQL statement, found: SELEC at Line: 1, Column: 1
    ");
    assert_snapshot!(sql(&["-c", "SELECT * FROM 'nothing.parquet'"]), @r"
    exit code 1
    --- out
    --- err
    execution error: no such file: 'nothing.parquet'
    ");
    assert_snapshot!(sql(&["-f", "nothing.sql"]), @r"
    exit code 1
    --- out
    --- err
    error: could not read nothing.sql: No such file or directory (os error 2)
    ");
}

/// Reads a line of a query over a file, cuts the file short, and reads the other lines: how many they are, and the end.
#[cfg(target_os = "linux")]
fn cut_short_while_read(options: &[&str]) -> (usize, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rows.parquet");
    let rows = "SELECT value, value * 2 AS twice FROM generate_series(1, 1000000)";
    let pages = "'max_row_group_size' '1000000', 'data_page_row_count_limit' '1000'";
    sql(&["-c", &format!("COPY ({rows}) TO '{}' STORED AS PARQUET OPTIONS ({pages})", file.display())]);
    let mut query = Running::watch_out(
        aefusion()
            .args(["sql", "--models", "memory:///", "--format", "csv", "-c"])
            .arg("SET datafusion.execution.target_partitions = 1")
            .args(["-c", &format!("SELECT * FROM '{}'", file.display())])
            .args(options),
    );
    query.prints("value,twice");
    std::fs::File::options().write(true).open(&file).unwrap().set_len(1000).unwrap();
    let ended = query.end();
    (ended.watched.lines().count() - 1, format!("exit code {:?}: {}", ended.code, ended.other))
}

/// Without its optimizer rules, DataFusion panics on LIMIT 0.
fn a_panic_is_the_error_of_its_statement() {
    let script = "CREATE TABLE t (id INT) AS VALUES (1); SET datafusion.optimizer.max_passes = 0; \
                  SELECT id FROM t ORDER BY id LIMIT 0";
    let printed = sql(&["-c", script]);
    assert!(printed.starts_with("exit code 1\n") && printed.contains("the statement panicked: "), "{printed}");
}

#[cfg(target_os = "linux")]
fn a_file_that_is_cut_short_is_an_error() {
    let (printed, ended) = cut_short_while_read(&[]);
    assert!(printed < 1_000_000, "{printed} rows");
    assert_snapshot!(ended, @"exit code Some(1): error: a local file was truncated, or its disk failed, while a query read it; the output of the query is incomplete. Run the query again, with --read-files if other programs write to the file");
    assert_eq!(cut_short_while_read(&["--read-files"]), (1_000_000, "exit code Some(0): ".to_owned()));
}

fn rows_come_in_every_format() {
    let query =
        "SELECT * FROM (VALUES (1, [1.5, 2.0], named_struct('x', true)), (2, NULL, NULL)) AS t(id, list, struct)";
    assert_snapshot!(sql(&["--format", "csv", "-c", query]), @r#"
    exit code 0
    --- out
    id,list,struct
    1,"[1.5, 2.0]",{x: true}
    2,,
    --- err
    "#);
    assert_snapshot!(sql(&["--format", "json", "-c", query]), @r#"
    exit code 0
    --- out
    [{"id":1,"list":[1.5,2.0],"struct":{"x":true}},{"id":2,"list":null,"struct":null}]
    --- err
    "#);
    assert_snapshot!(sql(&["--format", "ndjson", "-c", query]), @r#"
    exit code 0
    --- out
    {"id":1,"list":[1.5,2.0],"struct":{"x":true}}
    {"id":2,"list":null,"struct":null}
    --- err
    "#);
    assert_snapshot!(sql(&["--format", "json", "-c", "SELECT 1 AS one WHERE false"]), @r"
    exit code 0
    --- out
    []
    --- err
    ");
    assert_snapshot!(sql(&["--max-rows", "2", "-c", "SELECT value FROM generate_series(1, 5)"]), @r"
    exit code 0
    --- out
    +-------+
    | value |
    +-------+
    | 1     |
    | 2     |
    +-------+
    showing 2 of 5 rows; use --max-rows 0 to show all
    --- err
    ");
}

fn files_of_every_format_are_tables() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("t.csv"), "a,b\n1,3\n0,-4\n").unwrap();
    std::fs::write(path("t.tsv"), "a\tb\n1\t3\n0\t-4\n").unwrap();
    std::fs::write(path("t.jsonl"), "{\"a\":1,\"b\":3}\n{\"a\":0,\"b\":-4}\n").unwrap();
    let copies: Vec<String> = ["t.parquet", "t.arrow", "t.json", "t2.csv"]
        .iter()
        .map(|name| format!("COPY (SELECT * FROM '{}') TO '{}'", path("t.csv"), path(name)))
        .collect();
    let copies: Vec<&str> = copies.iter().flat_map(|copy| ["-c", copy]).collect();
    assert!(sql(&[&["--quiet"], copies.as_slice()].concat()).starts_with("exit code 0"));
    for name in ["t.csv", "t.tsv", "t.jsonl", "t.parquet", "t.arrow", "t.json", "t2.csv"] {
        let query = format!("SELECT sum(ae_error('mean')) AS total FROM '{}'", path(name));
        let found = sql(&["--format", "csv", "-c", &format!("{MEAN}; {query}")]);
        // by hand: (1, 3) has the error 1, (0, -4) has 4
        assert!(found.contains("total\n5.0\n"), "{name}: {found}");
    }
    let folder = format!("SELECT count(*) AS n FROM '{}/*.csv'", folder.path().display());
    assert!(sql(&["--format", "csv", "-c", &folder]).contains("n\n4\n"));
}

fn a_script_comes_from_standard_input() {
    let mut child = aefusion()
        .args(["sql", "--models", "memory:///", "--format", "csv"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"SELECT 1 AS one;\nSELECT 2 AS two").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "one\n1\ntwo\n2\n");
}

fn models_stay_in_their_store() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("a store").display().to_string();
    let with_store = |query: &str| run(aefusion().args(["sql", "--format", "csv", "--models", &store, "-c", query]));
    assert!(with_store(MEAN).starts_with("exit code 0"));
    let file = folder.path().join("a store/mean/1/model.onnx");
    let checksum = Command::new("sha256sum").arg(&file).output().unwrap().stdout;
    let checksum = String::from_utf8_lossy(&checksum[..64]).into_owned();
    assert!(with_store("SELECT sha256 FROM ae_models()").contains(&checksum));
    assert!(with_store("SELECT ae_error('mean', 1, 3) AS e").contains("e\n1.0\n"));
    // versions are numbers, not text
    for _ in 2..=11 {
        assert!(with_store(&MEAN.replace("CREATE", "CREATE OR REPLACE")).starts_with("exit code 0"));
    }
    assert!(with_store("SELECT max(version) AS newest FROM ae_models()").contains("newest\n11\n"));
    assert!(with_store("CREATE MODEL IF NOT EXISTS mean").contains("mean@11"));
    // what was refused leaves nothing behind
    let refused = with_store("CREATE MODEL bad OPTIONS (model_path = 'tests/models/truncated.onnx')");
    assert!(refused.starts_with("exit code 1") && !folder.path().join("a store/bad").exists(), "{refused}");
    let url = format!("file://{}", folder.path().join("a store").display()).replace(' ', "%20");
    let found = run(aefusion().args([
        "sql",
        "--format",
        "csv",
        "--models",
        &url,
        "-c",
        "SELECT ae_error('mean@7', 1, 3) AS e",
    ]));
    assert!(found.contains("e\n1.0\n"), "{found}");
}

fn a_missing_or_old_runtime_is_one_clear_error() {
    let missing = run(aefusion().env("ORT_DYLIB_PATH", "/nowhere/libonnxruntime.so").args([
        "sql",
        "--models",
        "memory:///",
        "-c",
        MEAN,
    ]));
    assert!(missing.starts_with("exit code 1"), "{missing}");
    assert!(
        missing.contains("ORT_DYLIB_PATH is /nowhere/libonnxruntime.so, but this file does not exist"),
        "{missing}"
    );
    assert!(missing.contains("cargo xtask setup") && !missing.contains("panicked"), "{missing}");

    let folder = tempfile::tempdir().unwrap();
    let not_a_library = folder.path().join("libonnxruntime.so");
    std::fs::write(&not_a_library, "text").unwrap();
    let broken = run(aefusion().env("ORT_DYLIB_PATH", &not_a_library).arg("doctor"));
    assert!(broken.starts_with("exit code 1") && broken.contains("cannot be used"), "{broken}");

    let old = old_library(folder.path());
    let old = run(aefusion().env("ORT_DYLIB_PATH", old).args(["sql", "--models", "memory:///", "-c", MEAN]));
    assert!(old.starts_with("exit code 1") && !old.contains("panicked"), "{old}");
    assert!(old.contains("1.10.0") && old.contains("cargo xtask setup"), "{old}");
}

/// A library that reports version 1.10.0 of ONNX Runtime.
fn old_library(folder: &Path) -> std::path::PathBuf {
    let source = "
        struct base { const void *(*api)(unsigned); const char *(*version)(void); };
        static const void *api(unsigned v) { return 0; }
        static const char *version(void) { return \"1.10.0\"; }
        static const struct base b = { api, version };
        const struct base *OrtGetApiBase(void) { return &b; }";
    let (c, library) = (folder.join("old.c"), folder.join("libold.so"));
    std::fs::write(&c, source).unwrap();
    let status = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&c).status().unwrap();
    assert!(status.success());
    library
}

fn doctor_shows_what_is_in_use() {
    let found = run(aefusion().args(["doctor", "--models", "memory:///"]));
    assert!(found.starts_with("exit code 0"), "{found}");
    for part in
        ["ONNX Runtime", "DataFusion    55", "cpu", "memory:///: 0 model files", "ae.batch_rows", "target_partitions"]
    {
        assert!(found.contains(part), "no {part} in {found}");
    }
}

fn a_sort_beyond_the_memory_limit_spills_or_fails_by_name() {
    let sort = "EXPLAIN ANALYZE SELECT value, repeat('x', 50) AS text FROM generate_series(1, 2000000)
                ORDER BY value % 1000, value DESC";
    let one = "SET datafusion.execution.target_partitions = 1";
    let found = sql(&["--memory-limit", "60MB", "--format", "csv", "-c", one, "-c", sort]);
    // 2,000,000 rows of 59 bytes do not fit
    let spilled = found.split_once("spill_count=").unwrap_or_else(|| panic!("{found}")).1;
    assert!(!spilled.starts_with("0,") && found.contains("spilled_rows=2.00 M"), "{found}");
    let roomy = sql(&["--memory-limit", "1GB", "--format", "csv", "-c", one, "-c", sort]);
    assert!(roomy.contains("spill_count=0,"), "{roomy}");
    let grouped =
        "SELECT count(*) FROM (SELECT value, array_agg(value) FROM generate_series(1, 3000000) GROUP BY value)";
    let failed = sql(&["--memory-limit", "1MB", "-c", grouped]);
    assert!(failed.starts_with("exit code 1") && failed.contains("Resources exhausted"), "{failed}");
    assert!(sql(&["--memory-limit", "much", "-c", "SELECT 1"]).starts_with("exit code 2"));
}

fn an_interrupt_stops_the_query() {
    // the first row comes at once, the second one never
    let endless = "SELECT 1 AS begun UNION ALL SELECT count(*) FROM generate_series(1, 1000000000) AS a,
                   generate_series(1, 1000000) AS b WHERE a.value % 7 = b.value % 5";
    let mut query = Running::watch_out(
        aefusion()
            .args(["sql", "--models", "memory:///", "--format", "csv", "-c"])
            .arg("SET datafusion.execution.target_partitions = 1")
            .args(["-c", endless]),
    );
    query.prints("1");
    query.signal(Signal::SIGINT);
    let ended = query.end();
    assert_eq!((ended.code, ended.watched.as_str()), (Some(130), "begun\n1\n"));
    assert_eq!(ended.other, "interrupted\n");
}

/// A training that does not end, after its first epoch.
fn endless_training(models: &Path, options: &str, rows: &str) -> Running {
    let train =
        format!("CREATE MODEL m OPTIONS (max_iterations = 1000000, early_stop = FALSE{options}) AS SELECT {rows}");
    let mut training = Running::watch_err(aefusion().args(["sql", "--models"]).arg(models).args(["-c", &train]));
    training.prints("epoch 1 of");
    training
}

fn n_models(models: &Path) -> String {
    let mut list = aefusion();
    list.args(["sql", "--quiet", "--format", "csv", "--models"]).arg(models);
    run(list.args(["-c", "SELECT count(*) AS models FROM ae_models()"]))
}

fn an_interrupt_ends_a_training_without_a_model_or_with_its_best() {
    for (option, expected, models, says) in [
        ("", 130, 0, "interrupted: nothing is published"),
        (", on_interrupt = 'keep'", 0, 1, "interrupted: the model is the best epoch so far"),
    ] {
        let store = tempfile::tempdir().unwrap();
        let rows = "sin(value) AS a, cos(value) AS b FROM generate_series(1, 5000)";
        let training = endless_training(store.path(), option, rows);
        training.signal(Signal::SIGINT);
        let ended = training.end();
        assert!(ended.watched.contains(says), "{option}: {}", ended.watched);
        assert_eq!(ended.code, Some(expected), "{option}");
        let listed = n_models(store.path());
        assert_eq!(listed, format!("exit code 0\n--- out\nmodels\n{models}\n--- err\n"), "{option}");
    }
}

/// An epoch that takes long ends at once: without a model, or with the weights so far.
fn an_interrupt_ends_an_epoch_of_a_training_soon() {
    let columns: Vec<String> = (0..20).map(|i| format!("sin(value * {i} + {i}) AS x{i}")).collect();
    for (option, code, models) in [("", 130, 0), (", on_interrupt = 'keep'", 0, 1)] {
        let store = tempfile::tempdir().unwrap();
        let create = format!(
            "CREATE MODEL m OPTIONS (hidden_units = [1024, 8, 1024], batch_size = 128{option})
                 AS SELECT {} FROM generate_series(1, 200000)",
            columns.join(", ")
        );
        let program = Running::watch_err(aefusion().args(["sql", "--models"]).arg(store.path()).args(["-c", &create]));
        // after the rows are read, and before the first epoch ends
        std::thread::sleep(Duration::from_secs(5));
        let interrupted = Instant::now();
        program.signal(Signal::SIGINT);
        let ended = program.end();
        assert_eq!(ended.code, Some(code), "{}", ended.watched);
        // a second, and as much for other programs on this machine
        assert!(interrupted.elapsed() < Duration::from_secs(4), "{:?}", interrupted.elapsed());
        assert_eq!(n_models(store.path()), format!("exit code 0\n--- out\nmodels\n{models}\n--- err\n"));
    }
}

/// The first interrupt asks a training to end with its best epoch, which takes a while with an epoch of one large step.
/// The second one does not wait for that.
fn a_second_interrupt_ends_the_program() {
    let store = tempfile::tempdir().unwrap();
    let columns: Vec<String> = (0..200).map(|i| format!("sin(value * {i} + {i}) AS x{i}")).collect();
    let rows = format!("{} FROM generate_series(1, 8000)", columns.join(", "));
    let options = ", on_interrupt = 'keep', hidden_units = [2048], batch_size = 8000";
    let mut training = endless_training(store.path(), options, &rows);
    // two signals at once are one to a process
    while training.is_running() {
        training.signal(Signal::SIGINT);
        std::thread::sleep(Duration::from_millis(50));
    }
    let ended = training.end();
    assert_eq!(ended.code, Some(130), "{}", ended.watched);
    assert_eq!(n_models(store.path()), "exit code 0\n--- out\nmodels\n0\n--- err\n");
}

/// A thread that opens a pipe waits until another program writes to it. After the first interrupt, the program waits for
/// this thread, but not long.
fn a_second_interrupt_does_not_wait_for_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let (encoder, decoder) = (folder.path().join("encoder.onnx"), folder.path().join("decoder.onnx"));
    assert!(Command::new("mkfifo").args([&encoder, &decoder]).status().unwrap().success());
    let options = format!("encoder_path = '{}', decoder_path = '{}'", encoder.display(), decoder.display());
    let create = format!("CREATE MODEL m OPTIONS ({options})");
    let mut program = Running::watch_err(aefusion().args(["sql", "--models", "memory:///", "-c", &create]));
    // waits until the program has opened the first pipe; nothing ever writes to the second
    drop(std::fs::File::options().write(true).open(&encoder).unwrap());
    program.signal(Signal::SIGINT);
    program.prints("interrupted");
    let interrupted = Instant::now();
    program.signal(Signal::SIGINT);
    let ended = program.end();
    assert_eq!((ended.code, ended.watched.as_str()), (Some(130), "interrupted\n"));
    assert!(interrupted.elapsed() < Duration::from_secs(5), "{:?}", interrupted.elapsed());
}

fn a_report_is_one_page_that_needs_no_network() {
    let folder = tempfile::tempdir().unwrap();
    let (models, page) = (folder.path().join("models"), folder.path().join("report.html"));
    let train = "CREATE MODEL m OPTIONS (max_iterations = 3) AS
                 SELECT sin(value) AS a, cos(value) AS b, CASE WHEN value % 2 = 0 THEN 'even' ELSE 'odd' END AS c
                 FROM generate_series(1, 500)";
    let trained = run(aefusion().args(["sql", "--models"]).arg(&models).args(["-c", train]));
    assert!(trained.starts_with("exit code 0"), "{trained}");
    let data = "SELECT sin(value) AS a, 3 * cos(value) AS b, 'odd <b>' AS c, value % 5 = 0 AS is_known FROM generate_series(1, 200)";
    let report = |more: &[&str]| {
        run(aefusion().args(["report", "m", "--models"]).arg(&models).arg("--output").arg(&page).args(more))
    };
    let printed = report(&["--data", data, "--label", "is_known"]);
    assert_eq!(printed, format!("exit code 0\n--- out\n{}\n--- err\n", page.display()));
    let html = std::fs::read_to_string(&page).unwrap();
    // loss, errors, codes, ROC, precision and recall, two rows
    assert_eq!(html.matches("<svg").count(), 7);
    assert!(html.contains("200 rows") && html.contains("odd &lt;b&gt;") && html.contains("max_iterations"));
    assert!(!html.contains("src=") && !html.contains("href="), "the page loads something");
    // a comment at the end, and rows without an error
    let strange = "SELECT CASE WHEN value < 3 THEN CAST('Infinity' AS DOUBLE) ELSE sin(value) END AS a, cos(value) AS b, 'odd' AS c
                   FROM generate_series(1, 200) -- all of them";
    let printed = report(&["--data", strange]);
    assert!(printed.starts_with("exit code 0"), "{printed}");
    let html = std::fs::read_to_string(&page).unwrap();
    assert!(html.contains("198 rows") && html.contains("2 rows with an infinite or NaN error are left out"));
    // without rows: loss and the errors of the calibration
    report(&[]);
    assert_eq!(std::fs::read_to_string(&page).unwrap().matches("<svg").count(), 2);
    assert_snapshot!(report(&["--data", "SELECT 1 AS a"]), @r#"
    exit code 1
    --- out
    --- err
    planning error: ae_error('m@1'): needs 3 features (model m@1), found 1: no column "b", "c" in scope
    "#);
    assert_snapshot!(report(&["--data", data, "--label", "c"]), @r"
    exit code 1
    --- out
    --- err
    planning error: --label c: the column must be Boolean, or a number that is 0 for normal rows; found Utf8
    ");
}
