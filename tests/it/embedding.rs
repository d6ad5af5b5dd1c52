//! What an application gives to a session: its own object stores, and models of the session only.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use aefusion_udfs::SessionStateBuilderExt;
use aefusion_udfs::catalog::Models;
use aefusion_udfs::infer::{InferPlanner, LiftCalls, query_planner};
use aefusion_udfs::model::metadata::Metadata;
use aefusion_udfs::sql::SessionContextExt;
use aefusion_udfs::store::ModelStore;
use async_trait::async_trait;
use datafusion::catalog::Session;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::context::QueryPlanner;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner};
use datafusion::prelude::SessionContext;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use url::Url;

crate::harness::tests! {
    async a_model_path_is_read_from_the_stores_of_the_session,
    async a_plan_reads_no_model,
    async an_alter_of_a_version_that_is_replaced_meanwhile_is_refused,
    async a_model_of_the_session_can_be_removed,
    async a_name_is_of_the_session_or_of_the_store,
    async register_all_keeps_what_the_session_has,
    async register_all_again_replaces_the_models,
    async a_planner_that_was_there_before_stays,
    async a_planner_that_comes_later_must_know_the_node,
}

const FILE: &str = "tests/models/mean.onnx";

/// A store of the application, which counts the files that are read.
#[derive(Debug, Default)]
struct Counting {
    inner: InMemory,
    reads: AtomicUsize,
    /// Whether another process publishes version 2 of `m` while somebody reads version 1.
    is_replaced: AtomicBool,
}

impl fmt::Display for Counting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("counting")
    }
}

#[async_trait]
impl ObjectStore for Counting {
    async fn put_opts(&self, path: &Path, bytes: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.inner.put_opts(path, bytes, options).await
    }

    async fn put_multipart_opts(&self, path: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        if !options.head {
            self.reads.fetch_add(1, Ordering::Relaxed);
        }
        if self.is_replaced.swap(false, Ordering::Relaxed) {
            self.inner.copy(path, &Path::from("models/m/2/model.onnx")).await?;
        }
        self.inner.get_opts(path, options).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// A session over a store of the application.
fn session(store: &Arc<Counting>) -> (SessionContext, Models) {
    let models = Models::new(ModelStore::new(Arc::clone(store) as _, "models"));
    let state = SessionStateBuilder::new().with_default_features().with_autoencoders(models.clone()).build();
    (SessionContext::new_with_state(state), models)
}

/// The rows of a statement as text, or its error.
async fn run(session: &SessionContext, sql: &str) -> String {
    let rows = async { session.ae_sql(sql).await?.to_string().await };
    rows.await.unwrap_or_else(|error| error.to_string())
}

async fn a_model_path_is_read_from_the_stores_of_the_session() {
    let (session, _) = session(&Arc::default());
    let files = Arc::new(InMemory::new());
    files.put(&Path::from("exported/mean.onnx"), std::fs::read(FILE).unwrap().into()).await.unwrap();
    session.register_object_store(&Url::parse("mine://bucket").unwrap(), Arc::clone(&files) as _);
    let answer = run(&session, "CREATE MODEL m OPTIONS (model_path = 'mine://bucket/exported/mean.onnx')").await;
    assert!(answer.contains("m@1"), "{answer}");
    let answer = run(&session, "EXPORT MODEL m TO 'mine://bucket/copy.onnx'").await;
    assert!(answer.contains("mine://bucket/copy.onnx"), "{answer}");
    files.head(&Path::from("copy.onnx")).await.unwrap();
}

async fn a_plan_reads_no_model() {
    let store = Arc::<Counting>::default();
    let (session, _) = session(&store);
    run(&session, &format!("CREATE MODEL m OPTIONS (model_path = '{FILE}')")).await;
    let reads = async |sql: &str| {
        let before = store.reads.load(Ordering::Relaxed);
        let answer = run(&session, sql).await;
        (store.reads.load(Ordering::Relaxed) - before, answer)
    };
    for sql in [
        "EXPLAIN SELECT * FROM ae_models()",
        "EXPLAIN SELECT * FROM ae_features('m')",
        "EXPLAIN SELECT * FROM ae_training()",
        "SELECT model, version, size_bytes, published FROM ae_models()",
        "SELECT count(*) FROM ae_models()",
    ] {
        assert_eq!(reads(sql).await.0, 0, "{sql}");
    }
    let (files, answer) = reads("SHOW MODELS").await;
    assert_eq!(files, 1, "{answer}");
    assert!(answer.contains("| m     | 1       | 2        | 1    | by hand"), "{answer}");
}

async fn an_alter_of_a_version_that_is_replaced_meanwhile_is_refused() {
    let store = Arc::<Counting>::default();
    let (session, _) = session(&store);
    run(&session, &format!("CREATE MODEL m OPTIONS (model_path = '{FILE}')")).await;
    store.is_replaced.store(true, Ordering::Relaxed);
    let alter = "ALTER MODEL m SET OPTIONS (error_metric = 'mae')";
    let error = run(&session, alter).await;
    let expected = "the newest version of model m is now 2, but this statement started from version 1";
    assert!(error.contains(expected), "{error}");
    // another process publishes, and this session has just looked the name up
    run(&session, "SELECT ae_error('m', 1, 3)").await;
    store.inner.copy(&Path::from("models/m/1/model.onnx"), &Path::from("models/m/3/model.onnx")).await.unwrap();
    let answer = run(&session, alter).await;
    assert!(answer.contains("m@4"), "{answer}");
}

async fn a_model_of_the_session_can_be_removed() {
    let (session, models) = session(&Arc::default());
    let register = || models.register("m", std::fs::read(FILE).unwrap(), Metadata::default());
    assert_eq!(register().await.unwrap().to_string(), "m@1");
    assert_eq!(register().await.unwrap().to_string(), "m@2");
    let answer = run(&session, "SELECT ae_error('m@3', 1, 3)").await;
    assert!(answer.contains("model m@3 not found: the newest version is 2"), "{answer}");
    assert_eq!(models.unregister("m@2").unwrap(), 1);
    let answer = run(&session, "SELECT model, version FROM ae_models()").await;
    assert!(answer.contains("| m     | 1       |"), "{answer}");
    assert_eq!((models.unregister("m").unwrap(), models.unregister("m").unwrap()), (1, 0));
    let answer = run(&session, "SELECT ae_error('m', 1, 3)").await;
    assert!(answer.contains("model m not found"), "{answer}");
}

async fn a_name_is_of_the_session_or_of_the_store() {
    let (session, models) = session(&Arc::default());
    let create = async |name: &str, how: &str| {
        run(&session, &format!("CREATE {how} {name} OPTIONS (model_path = '{FILE}')")).await
    };
    let register = |name: &'static str| models.register(name, std::fs::read(FILE).unwrap(), Metadata::default());
    create("stored", "MODEL").await;
    let error = register("stored").await.unwrap_err().to_string();
    assert!(error.contains("has a model stored (version 1)"), "{error}");
    register("own").await.unwrap();
    for error in [
        create("own", "MODEL").await,
        create("own", "OR REPLACE MODEL").await,
        run(&session, "ALTER MODEL own SET OPTIONS (error_metric = 'mae')").await,
    ] {
        assert!(error.contains("registered a model own for this session"), "{error}");
    }
    let answer = create("own", "MODEL IF NOT EXISTS").await;
    assert!(answer.contains("own@1"), "{answer}");
    assert!(run(&session, "DROP MODEL own").await.contains("| own   | 1"));
    assert!(create("own", "MODEL").await.contains("own@1"));
}

/// Counts the runs of a model in the plan of a query with two calls.
async fn count_runs(session: &SessionContext) -> usize {
    let query = "SELECT ae_error('m', x, x + 2), ae_encode('m', x, x + 2) FROM (VALUES (1.0), (2.0)) t (x)";
    let explained = run(session, &format!("EXPLAIN {query}")).await;
    assert_eq!(explained.matches("InferExec").count(), explained.matches("Infer:").count(), "{explained}");
    assert!(run(session, query).await.contains("1.0"), "{explained}");
    explained.matches("InferExec").count()
}

async fn models_with_m() -> Models {
    let models = Models::new(ModelStore::in_memory());
    models.register("m", std::fs::read(FILE).unwrap(), Metadata::default()).await.unwrap();
    models
}

async fn register_all_keeps_what_the_session_has() {
    let session = SessionContext::new();
    run(&session, "PREPARE p (BIGINT) AS SELECT $1 + 1 AS next").await;
    let id = session.session_id();
    aefusion_udfs::register_all(&session, models_with_m().await).unwrap();
    assert_eq!((session.session_id(), session.state().session_id()), (id.clone(), id.as_str()));
    assert!(run(&session, "EXECUTE p (6)").await.contains("| 7"));
    assert_eq!(count_runs(&session).await, 0);
    // a session with the planner of the crate shares runs
    let state = SessionStateBuilder::new().with_default_features().with_query_planner(query_planner()).build();
    let session = SessionContext::new_with_state(state);
    aefusion_udfs::register_all(&session, models_with_m().await).unwrap();
    aefusion_udfs::register_all(&session, models_with_m().await).unwrap();
    assert_eq!(count_runs(&session).await, 1);
}

async fn register_all_again_replaces_the_models() {
    let session = SessionContext::new();
    aefusion_udfs::register_all(&session, Models::new(ModelStore::in_memory())).unwrap();
    let call = "SELECT ae_error('m', 1, 3)";
    assert!(run(&session, call).await.contains("model m not found"));
    aefusion_udfs::register_all(&session, models_with_m().await).unwrap();
    assert!(run(&session, call).await.contains("| 1.0"));
    let create = "CREATE FUNCTION e(DOUBLE, DOUBLE) RETURNS DOUBLE LANGUAGE ONNX AS 'm?output=error'";
    run(&session, create).await;
    assert!(run(&session, "SELECT e(1, 3)").await.contains("| 1.0"));
    assert!(run(&session, "SELECT model FROM ae_models()").await.contains("| m "));
}

/// The planner of an application, with or without the node of this crate.
#[derive(Debug)]
struct OwnPlanner(bool);

#[async_trait]
impl QueryPlanner for OwnPlanner {
    async fn create_physical_plan(
        &self,
        plan: &LogicalPlan,
        session: &dyn Session,
    ) -> datafusion::error::Result<Arc<dyn ExecutionPlan>> {
        let own: Vec<Arc<dyn ExtensionPlanner + Send + Sync>> = match self.0 {
            true => vec![Arc::new(InferPlanner)],
            false => Vec::new(),
        };
        DefaultPhysicalPlanner::with_extension_planners(own).create_physical_plan(plan, session).await
    }
}

async fn a_planner_that_was_there_before_stays() {
    for knows_node in [true, false] {
        let builder =
            SessionStateBuilder::new().with_default_features().with_query_planner(Arc::new(OwnPlanner(knows_node)));
        let state = builder.with_autoencoders(models_with_m().await).build();
        assert!(format!("{:?}", state.query_planner()).contains("OwnPlanner"));
        assert_eq!(count_runs(&SessionContext::new_with_state(state.clone())).await, 0);
        if knows_node {
            let state = SessionStateBuilder::new_from_existing(state)
                .with_analyzer_rule(Arc::new(LiftCalls))
                .with_optimizer_rule(Arc::new(LiftCalls));
            assert_eq!(count_runs(&SessionContext::new_with_state(state.build())).await, 1);
        }
    }
    // DataFusion's planner gives way
    let state = SessionStateBuilder::new_from_existing(SessionContext::new().state());
    let session = SessionContext::new_with_state(state.with_autoencoders(models_with_m().await).build());
    assert_eq!(count_runs(&session).await, 1);
}

async fn a_planner_that_comes_later_must_know_the_node() {
    let builder = async || SessionStateBuilder::new().with_default_features().with_autoencoders(models_with_m().await);
    let state = builder().await.with_query_planner(Arc::new(OwnPlanner(true))).build();
    assert_eq!(count_runs(&SessionContext::new_with_state(state)).await, 1);
    let state = builder().await.with_query_planner(Arc::new(OwnPlanner(false))).build();
    let error =
        run(&SessionContext::new_with_state(state), "SELECT ae_error('m', x, x) FROM (VALUES (1.0)) t (x)").await;
    let expected = "Infer of model m@1; add aefusion_udfs::infer::InferPlanner to the query planner of the session";
    assert!(error.contains(expected), "{error}");
}
