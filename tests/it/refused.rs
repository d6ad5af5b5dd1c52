//! A statement that cannot be a pipeline or a table over a topic is refused before a broker is asked, with the reason.

use std::process::{Command, Stdio};

crate::harness::tests! {
    fn queries_that_need_more_than_a_micro_batch,
    fn files_that_are_no_pipeline,
    fn tables_that_cannot_be,
}

const TABLES: &str = "
    CREATE EXTERNAL TABLE t (id BIGINT, a DOUBLE, name VARCHAR) STORED AS KAFKA LOCATION 'kafka://127.0.0.1:1/t';
    CREATE EXTERNAL TABLE u (id BIGINT, a DOUBLE) STORED AS KAFKA LOCATION 'kafka://127.0.0.1:1/u';
    CREATE EXTERNAL TABLE elsewhere (id BIGINT) STORED AS KAFKA LOCATION 'kafka://127.0.0.1:2/u';
    CREATE EXTERNAL TABLE numbered (id BIGINT, _offset BIGINT) STORED AS KAFKA LOCATION 'kafka://127.0.0.1:1/u';
    CREATE EXTERNAL TABLE csv (id BIGINT) STORED AS CSV LOCATION 'csv/';
    CREATE TABLE still AS VALUES (1, 2.0);";

/// The error of `aefusion run` or `aefusion sql` for a file of statements.
fn error_of(command: &str, statements: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pipeline.sql");
    std::fs::write(&file, statements).unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_aefusion"));
    match command {
        "run" => program.args(["run", "--quiet"]).arg(&file),
        _ => program.args(["sql", "--file"]).arg(&file),
    };
    program.args(["--models", "memory:///"]).current_dir(folder.path()).stdin(Stdio::null()).env("NAMED", "x");
    let output = program.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{statements}");
    String::from_utf8(output.stderr).unwrap()
}

fn queries_that_need_more_than_a_micro_batch() {
    let cases = [
        (
            "INSERT INTO u SELECT count(*), 0 FROM t",
            "an aggregate (GROUP BY, count, avg, …) needs rows of more than one micro-batch",
        ),
        ("INSERT INTO u SELECT id, max(a) FROM t GROUP BY id", "an aggregate"),
        ("INSERT INTO u SELECT id, a FROM t ORDER BY a", "ORDER BY compares rows of more than one micro-batch"),
        ("INSERT INTO u SELECT id, a FROM t LIMIT 3", "LIMIT counts rows"),
        ("INSERT INTO u SELECT DISTINCT id, a FROM t", "rows of more than one micro-batch"),
        ("INSERT INTO u SELECT id, lag(a) OVER (ORDER BY id) FROM t", "a window function (OVER) needs"),
        ("INSERT INTO u SELECT t.id, s.a FROM t JOIN t s ON s.id = t.id", "a join of a topic with a topic needs"),
        ("INSERT INTO u SELECT id, a FROM t UNION ALL SELECT id, a FROM t", "UNION: a pipeline reads one topic once"),
        (
            "INSERT INTO u SELECT column1, t.a FROM still LEFT JOIN t ON t.id = column1",
            "Left JOIN, which returns rows of the table that no record matches",
        ),
        ("INSERT INTO u SELECT column1, t.a FROM t FULL JOIN still ON t.id = column1", "Full JOIN"),
        ("INSERT INTO u SELECT column1, 0 FROM still WHERE column1 IN (SELECT id FROM t)", "micro-batch"),
        ("INSERT INTO u SELECT id, a FROM t WHERE a > (SELECT avg(a) FROM t)", "micro-batch"),
        (
            "INSERT INTO u SELECT id, date_part('year', now()) FROM t",
            "now() would return the start time of the pipeline",
        ),
    ];
    for (statement, reason) in cases {
        let error = error_of("run", &format!("{TABLES} {statement};"));
        assert!(error.starts_with("planning error: ") && error.contains(reason), "{statement}: {error}");
    }
}

fn files_that_are_no_pipeline() {
    let copy = "INSERT INTO u SELECT id, a FROM t;";
    let cases = [
        ("SELECT 1;".to_owned(), "a script of pipelines cannot return rows; run queries with aefusion sql"),
        ("SET stream.max_batch_ms = 5;".to_owned(), "the script has no pipeline; add an INSERT INTO … SELECT …"),
        (
            "INSERT INTO u SELECT column1, column2 FROM still;".to_owned(),
            "the query reads no table that is STORED AS KAFKA",
        ),
        ("INSERT INTO u SELECT t.id, u.a FROM t, u;".to_owned(), "the query reads more than one topic"),
        ("INSERT INTO elsewhere SELECT id FROM t;".to_owned(), "one transaction cannot span two clusters"),
        (
            "INSERT INTO numbered SELECT id, id + 1 FROM t;".to_owned(),
            "the column _offset of the table cannot be written",
        ),
        ("INSERT INTO csv SELECT id FROM t;".to_owned(), "a pipeline can write files of Parquet or JSON"),
        (
            "INSERT INTO still SELECT id, a FROM t;".to_owned(),
            "a pipeline must write to a table that is STORED AS KAFKA",
        ),
        (copy.repeat(2), "two pipelines have the name 'pipeline-u'; use SET stream.name = '…'"),
        (
            format!("SET stream.name = 'a b'; {copy}"),
            "the pipeline name must consist of letters, digits, '_' and '-'; found 'a b'",
        ),
        (format!("SET stream.max_batch_rows = 0; {copy}"), "stream.max_batch_rows must be a positive whole number"),
        (
            format!("SET stream.max_batch_ms = 0; {copy}"),
            "stream.max_batch_ms must be a positive whole number of milliseconds",
        ),
        (
            format!("SET stream.delivery = 'exactly'; {copy}"),
            "stream.delivery must be one of exactly_once, at_least_once",
        ),
        (
            "CREATE EXTERNAL TABLE early (id BIGINT, a DOUBLE) STORED AS KAFKA LOCATION 'kafka://127.0.0.1:1/t'
               OPTIONS ('isolation.level' 'read_uncommitted'); INSERT INTO u SELECT id, a FROM early;"
                .to_owned(),
            "exactly-once delivery from kafka://127.0.0.1:1/t is not possible with isolation.level = 'read_uncommitted'",
        ),
        (format!("SET stream.reload = 'yes'; {copy}"), "stream.reload must be one of none, poll"),
    ];
    for (statements, reason) in cases {
        let error = error_of("run", &format!("{TABLES} {statements}"));
        assert!(error.contains(reason), "{statements}: {error}");
    }
}

fn tables_that_cannot_be() {
    const K: &str = "STORED AS KAFKA LOCATION 'kafka://127.0.0.1:1/t'";
    let cases = [
        (format!("(a INT) {}", K.replace("127.0.0.1:1/t", "t")), "LOCATION must be 'kafka://host:port/topic'"),
        (
            format!("(a INT) {}", K.replace("1/t", "1/a b")),
            "which may have up to 249 letters, digits, '.', '_' and '-'",
        ),
        (format!("(a INT) {}", K.replace("127.0.0.1:1", "env:UNNAMED")), "there is no environment variable UNNAMED"),
        (K.to_owned(), "a topic has no schema"),
        (format!("(_key BIGINT) {K}"), "_key must be VARCHAR or BYTEA; found Int64"),
        (format!("(_headers BIGINT) {K}"), "_headers must be STRUCT<key VARCHAR, value BYTEA>[]"),
        (
            format!("(a INT) {K} OPTIONS ('format' 'xml')"),
            "the option format must be one of json, csv, avro, raw; found 'xml'",
        ),
        (
            format!("(a INT, b INT) {K} OPTIONS ('format' 'raw')"),
            "requires exactly one column for the value, VARCHAR or BYTEA; found a Int32, b Int32",
        ),
        (format!("(a INT) {K} OPTIONS ('format' 'csv', 'delimiter' '::')"), "the option delimiter must be one byte"),
        (format!("(a INT) {K} OPTIONS ('format' 'avro', 'avro_schema' '[')"), "avro_schema: "),
        (
            format!("(a INT) {K} OPTIONS ('format' 'avro', 'avro_framing' 'confluent')"),
            "requires the option avro_schema.N",
        ),
        (format!("(a INT) {K} OPTIONS ('malformed' 'dead_letter')"), "requires the option dead_letter_topic"),
        (
            format!("(a INT) {K} OPTIONS ('malformed' 'dead_letter', 'dead_letter_topic' 't')"),
            "must differ from the topic of the table",
        ),
        (
            format!("(a INT) {K} OPTIONS ('dead_letter_topic' 'd')"),
            "dead_letter_topic requires malformed = 'dead_letter'",
        ),
        (format!("(a INT) {K} OPTIONS ('partitions' '0')"), "the option partitions must be a whole number from 1 up"),
        (
            format!("(a INT) {K} OPTIONS ('formt' 'json')"),
            "the option 'formt' is neither an option of the table nor a setting that librdkafka accepts",
        ),
        (format!("(a INT) {K} OPTIONS ('acks' 'some')"), "acks"),
        (
            format!("(a INT) {K} OPTIONS ('group.id' 'mine')"),
            "the option 'group.id' cannot be set: the table and the pipeline determine it",
        ),
        (
            format!("(a INT) {K} OPTIONS ('plugin.library.paths' 'x')"),
            "the option 'plugin.library.paths' cannot be set",
        ),
        (format!("(a INT) {K} OPTIONS ('sasl.password' 'hunter2')"), "the option 'sasl.password' is a secret"),
        (format!("(a INT) {K} OPTIONS ('sasl.password' 'env:UNNAMED')"), "there is no environment variable UNNAMED"),
        (format!("(a INT) {K} OPTIONS ('ssl.key.pem' 'file:nowhere')"), "could not read the file 'nowhere'"),
    ];
    for (statement, reason) in cases {
        let error = error_of("sql", &format!("CREATE EXTERNAL TABLE x {statement};"));
        assert!(error.starts_with("planning error: ") && error.contains(reason), "{statement}: {error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}
