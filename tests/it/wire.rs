//! Plans that cross a wire give the same rows on the other side, and only with the same file.

use aefusion_udfs::SessionStateBuilderExt;
use aefusion_udfs::catalog::Models;
use aefusion_udfs::infer::InferCodec;
use aefusion_udfs::model::metadata::{Feature, Metadata};
use aefusion_udfs::store::ModelStore;
use datafusion::arrow::util::pretty::pretty_format_batches;
use datafusion::execution::SessionStateBuilder;
use datafusion::physical_plan::collect;
use datafusion::prelude::{CsvReadOptions, SessionConfig, SessionContext};
use datafusion_proto::bytes::{
    logical_plan_from_bytes_with_extension_codec, logical_plan_to_bytes_with_extension_codec,
    physical_plan_from_bytes_with_extension_codec, physical_plan_to_bytes_with_extension_codec,
};

crate::harness::tests! {
    async plans_give_the_same_rows_on_the_other_side,
    async another_file_under_the_same_name_is_refused,
}

/// In both forms, beside each other, with a call that stays, and below a decoder.
const QUERIES: [&str; 8] = [
    "SELECT id, ae_encode('m', a, b), ae_error('m', [a, b]) FROM t WHERE ae_error('m', a, b) > 0.5 AND id > 1 ORDER BY id",
    "SELECT id, CASE WHEN id = 2 THEN ae_error('m', a, b) END FROM t ORDER BY id",
    "SELECT ae_decode('m', ae_encode('m', a, b)), ae_reconstruct('m', a + 1, b) FROM t ORDER BY id",
    "SELECT max(ae_error('m', a, b)), ae_encode('m', a, b)[1] > 1 FROM t GROUP BY 2 ORDER BY 2",
    "SELECT id, stored(a, b) FROM t WHERE stored(a, b) > 0.5 ORDER BY id",
    "SELECT feature, \"type\" FROM ae_features('m') ORDER BY position",
    "SELECT model, version, sha256 FROM ae_models() WHERE version > 0 LIMIT 3",
    // the far side has no such file
    "SELECT id, from_file([CAST(a AS DOUBLE), b]) FROM t ORDER BY id",
];

const FUNCTIONS: [&str; 2] = [
    "CREATE FUNCTION stored(DOUBLE, DOUBLE) RETURNS DOUBLE LANGUAGE ONNX AS 'm?output=error'",
    "CREATE FUNCTION from_file(DOUBLE[]) RETURNS FLOAT[] LANGUAGE ONNX AS 'tests/models/mean.onnx?output=code'",
];

struct Side {
    session: SessionContext,
    codec: InferCodec,
}

async fn side(file: &str) -> Side {
    let models = Models::new(ModelStore::in_memory());
    let features = Some(vec![Feature::named("a"), Feature::named("b")]);
    models.register_file("m", file, Metadata { features, ..Metadata::default() }).unwrap();
    let state = SessionStateBuilder::new()
        .with_config(SessionConfig::new().with_target_partitions(2))
        .with_default_features()
        .with_autoencoders(models.clone())
        .build();
    let session = SessionContext::new_with_state(state);
    session.register_csv("t", "tests/models/rows.csv", CsvReadOptions::new()).await.unwrap();
    Side { session, codec: InferCodec::new(models) }
}

async fn rows(session: &SessionContext, sql: &str) -> String {
    let batches = session.sql(sql).await.unwrap().collect().await.unwrap();
    pretty_format_batches(&batches).unwrap().to_string()
}

async fn plans_give_the_same_rows_on_the_other_side() {
    let here = side("tests/models/mean.onnx").await;
    create_functions(&here).await;
    let there = side("tests/models/mean.onnx").await;
    let context = there.session.task_ctx();
    for sql in QUERIES {
        let expected = rows(&here.session, sql).await;
        let frame = here.session.sql(sql).await.unwrap();

        let logical = frame.clone().into_optimized_plan().unwrap();
        let bytes = logical_plan_to_bytes_with_extension_codec(&logical, &here.codec).unwrap();
        let decoded = logical_plan_from_bytes_with_extension_codec(&bytes, &context, &there.codec).unwrap();
        assert_eq!(decoded.display_indent().to_string(), logical.display_indent().to_string(), "{sql}");
        let found = there.session.execute_logical_plan(decoded).await.unwrap().collect().await.unwrap();
        assert_eq!(pretty_format_batches(&found).unwrap().to_string(), expected, "{sql}");

        let physical = frame.create_physical_plan().await.unwrap();
        let bytes = physical_plan_to_bytes_with_extension_codec(physical, &here.codec).unwrap();
        let decoded = physical_plan_from_bytes_with_extension_codec(&bytes, &context, &there.codec).unwrap();
        let found = collect(decoded, there.session.task_ctx()).await.unwrap();
        assert_eq!(pretty_format_batches(&found).unwrap().to_string(), expected, "{sql}");
    }
}

async fn create_functions(side: &Side) {
    for function in FUNCTIONS {
        side.session.sql(function).await.unwrap();
    }
}

async fn another_file_under_the_same_name_is_refused() {
    let here = side("tests/models/mean.onnx").await;
    create_functions(&here).await;
    let there = side("tests/models/scaled.onnx").await;
    let context = there.session.task_ctx();
    for sql in &QUERIES[..5] {
        let frame = here.session.sql(sql).await.unwrap();
        let logical = frame.clone().into_optimized_plan().unwrap();
        let bytes = logical_plan_to_bytes_with_extension_codec(&logical, &here.codec).unwrap();
        let refused = logical_plan_from_bytes_with_extension_codec(&bytes, &context, &there.codec).unwrap_err();
        assert!(refused.to_string().contains("another file of model m@1"), "{refused}");
        let physical = frame.create_physical_plan().await.unwrap();
        let bytes = physical_plan_to_bytes_with_extension_codec(physical, &here.codec).unwrap();
        let refused = physical_plan_from_bytes_with_extension_codec(&bytes, &context, &there.codec).unwrap_err();
        assert!(refused.to_string().contains("another file of model m@1"), "{refused}");
    }
}
