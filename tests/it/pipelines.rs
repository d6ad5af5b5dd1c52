//! Pipelines in the session of an application, without the aefusion program and without a broker.

use aefusion_stream::{Pipelines, RunOptions, SessionStateBuilderExt as _};
use aefusion_udfs::SessionStateBuilderExt as _;
use aefusion_udfs::catalog::Models;
use aefusion_udfs::store::ModelStore;
use datafusion::error::Result;
use datafusion::execution::SessionStateBuilder;
use datafusion::prelude::SessionContext;

crate::harness::tests! {
    async a_script_is_planned_without_a_broker,
    async tables_of_the_session_stay,
    async scripts_that_cannot_be_planned,
    async queries_that_need_several_micro_batches_end_the_run,
    async a_wrong_instance_name_is_refused,
    async a_stop_ends_pipelines_that_reach_no_broker,
    async settings_and_topics_are_part_of_the_session,
}

/// Two topics of a broker that does not exist: port 1 refuses connections.
const TABLES: &str = "
    CREATE EXTERNAL TABLE payments (id BIGINT, amount DOUBLE)
        STORED AS KAFKA LOCATION 'kafka://127.0.0.1:1/payments';
    CREATE EXTERNAL TABLE alerts (id BIGINT, amount DOUBLE) STORED AS KAFKA LOCATION 'kafka://127.0.0.1:1/alerts';";

fn session() -> Result<SessionContext> {
    let state = SessionStateBuilder::new()
        .with_default_features()
        .with_autoencoders(Models::new(ModelStore::open("memory:///")?))
        .with_pipelines()
        .build();
    Ok(SessionContext::new_with_state(state))
}

const COPY: &str = "INSERT INTO alerts SELECT id, amount FROM payments WHERE amount > 100;";

async fn plan(statements: &str) -> Result<Pipelines> {
    Pipelines::plan(&session()?, &format!("{TABLES} {statements}"), "shop").await
}

async fn a_script_is_planned_without_a_broker() {
    let second = "SET stream.name = 'large'; INSERT INTO alerts SELECT id, amount FROM payments WHERE amount > 1e6;";
    let pipelines = plan(&format!("{COPY} {second}")).await.unwrap();
    let names: Vec<&str> = pipelines.stats().iter().map(|stats| stats.pipeline()).collect();
    assert_eq!(names, ["shop-alerts", "large"]);
    assert!(pipelines.stats().iter().all(|stats| !stats.is_ready()));
    assert_eq!(pipelines.stats()[0].line(), "shop-alerts: 0 records, 0/s, lag 0, 0 written — starting");
}

async fn tables_of_the_session_stay() {
    let context = session().unwrap();
    context.sql("CREATE TABLE limits AS VALUES (100.0)").await.unwrap().collect().await.unwrap();
    let join = "INSERT INTO alerts SELECT id, amount FROM payments JOIN limits ON amount > column1;";
    Pipelines::plan(&context, &format!("{TABLES} {join}"), "shop").await.unwrap();
    for table in ["limits", "payments", "alerts"] {
        assert!(context.table(table).await.is_ok(), "{table}");
    }
}

async fn scripts_that_cannot_be_planned() {
    let cases = [
        (COPY.repeat(2), "two pipelines have the name 'shop-alerts'; use SET stream.name"),
        (format!("{COPY} SELECT 1;"), "SELECT 1: a script of pipelines cannot return rows"),
        (format!("{COPY} EXPLAIN SELECT 1;"), "a script of pipelines cannot return rows"),
        ("SET stream.max_batch_rows = 5;".to_owned(), "the script has no pipeline; add an INSERT INTO"),
        ("INSERT INTO alerts VALUES (1, 2.0);".to_owned(), "the query reads no table that is STORED AS KAFKA"),
        (format!("SET stream.file_rows = 0; {COPY}"), "stream.file_rows must be a positive whole number; found 0"),
        (format!("SET stream.name = 'a/b'; {COPY}"), "the pipeline name must consist of letters, digits"),
        (format!("SET stream.no_such = 1; {COPY}"), "no_such"),
    ];
    for (statements, reason) in cases {
        let error = plan(&statements).await.unwrap_err().to_string();
        assert!(error.contains(reason), "{statements}: {error}");
    }
}

async fn queries_that_need_several_micro_batches_end_the_run() {
    let pipelines = plan("INSERT INTO alerts SELECT max(id), avg(amount) FROM payments;").await.unwrap();
    let error = pipelines.run(&RunOptions::default()).await.unwrap_err().to_string();
    assert!(error.contains("an aggregate (GROUP BY, count, avg, …) needs rows of more than one"), "{error}");
}

async fn a_wrong_instance_name_is_refused() {
    let options = RunOptions { instance: "pod 1".to_owned(), ..RunOptions::default() };
    let expected = "the instance name must consist of letters, digits, '_' and '-'; found 'pod 1'";
    for error in [options.check().unwrap_err(), plan(COPY).await.unwrap().run(&options).await.unwrap_err()] {
        assert!(error.to_string().contains(expected), "{error}");
    }
}

/// Without a broker, a pipeline retries continuously. After a stop, it ends with the error of its last attempt.
async fn a_stop_ends_pipelines_that_reach_no_broker() {
    let pipelines = plan(COPY).await.unwrap();
    let (stop, stats) = (pipelines.stop_handle(), pipelines.stats().to_vec());
    stop.stop();
    assert!(pipelines.stop_handle().is_stopping());
    let ended = pipelines.run(&RunOptions::default()).await;
    let error = ended.unwrap_err().to_string();
    assert!(error.contains("pipeline 'shop-alerts': ") && error.contains("no answer from 127.0.0.1:1"), "{error}");
    assert!(!stats[0].is_ready());
}

async fn settings_and_topics_are_part_of_the_session() {
    let context = session().unwrap();
    context.sql("SET stream.max_batch_ms = 20").await.unwrap();
    assert_eq!(aefusion_stream::StreamOptions::of(context.state().config_options()).0.max_batch_ms, 20);
    for table in TABLES.split_inclusive(';') {
        context.sql(table).await.unwrap();
    }
    let plan = context.sql("SELECT amount FROM payments LIMIT 3").await.unwrap().create_physical_plan().await.unwrap();
    let shown = datafusion::physical_plan::displayable(plan.as_ref()).indent(false).to_string();
    let leaf = shown.lines().last().unwrap().trim();
    assert_eq!(leaf, "KafkaExec: kafka://127.0.0.1:1/payments, columns=[amount], limit=3");
}
