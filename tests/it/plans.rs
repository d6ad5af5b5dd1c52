//! Where calls of models stand in optimized plans: what is lifted into `Infer` nodes, what is shared, what stays.
//!
//! The model `m` takes `a` and `b`; `n` is the same file under another name.

use aefusion_udfs::SessionStateBuilderExt;
use aefusion_udfs::catalog::Models;
use aefusion_udfs::infer::models_of;
use aefusion_udfs::model::metadata::{Feature, Metadata};
use aefusion_udfs::store::ModelStore;
use datafusion::execution::SessionStateBuilder;
use datafusion::prelude::{SessionConfig, SessionContext};
use insta::assert_snapshot;

crate::harness::tests! {
    fn projection_and_filter_share_a_run,
    fn cheap_conditions_come_first_wherever_they_were_written,
    fn a_filter_over_a_subquery_is_split,
    fn outer_queries_use_the_runs_of_inner_ones,
    fn fields_of_a_struct_come_from_one_run,
    fn sort_keys,
    fn groups_aggregates_and_having,
    fn windows_and_qualify,
    fn distinct_on,
    fn join_conditions,
    fn a_run_below_a_join_serves_above_it,
    fn subqueries,
    fn a_cte_that_is_used_twice,
    fn branches_of_a_union,
    fn calls_in_the_features_of_others,
    fn other_models_and_other_features_are_other_runs,
    fn limits_go_below,
    fn what_nobody_reads_is_not_run,
    fn branches_that_not_every_row_takes_stay,
    fn what_every_row_evaluates_is_lifted_out_of_branches,
    fn a_branch_shares_the_run_of_what_is_lifted,
    fn volatile_and_constant_features_stay,
    fn a_side_of_an_outer_join_that_may_be_null_is_not_shared,
    async a_statement_uses_one_version_of_a_model,
}

async fn session() -> SessionContext {
    let models = Models::new(ModelStore::in_memory());
    let options = Metadata { features: Some(vec![Feature::named("a"), Feature::named("b")]), ..Metadata::default() };
    for name in ["m", "n"] {
        models.register_file(name, "tests/models/mean.onnx", options.clone()).unwrap();
    }
    let state = SessionStateBuilder::new()
        .with_config(SessionConfig::new().with_target_partitions(2))
        .with_default_features()
        .with_autoencoders(models)
        .build();
    let session = SessionContext::new_with_state(state);
    for table in ["t", "u"] {
        let sql = format!("CREATE TABLE {table} (id BIGINT, a FLOAT, b FLOAT, x INT)");
        session.sql(&sql).await.unwrap().collect().await.unwrap();
    }
    session
}

/// The optimized plan; without the checksum, which is that of the file and the version of its metadata.
fn plan(sql: &str) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let plan = runtime.block_on(async {
        session().await.sql(sql).await.unwrap().into_optimized_plan().unwrap().display_indent().to_string()
    });
    let (mut text, mut rest) = (String::new(), plan.as_str());
    while let Some((before, after)) = rest.split_once(" (sha256:") {
        text.push_str(before);
        rest = after.split_once(')').unwrap().1;
    }
    text + rest
}

fn projection_and_filter_share_a_run() {
    assert_snapshot!(plan("SELECT id, ae_encode('m'), ae_error('m'), ae_reconstruct('m') FROM t WHERE id % 10 = 0 AND ae_error('m') > 4"), @r"
    Projection: t.id, __ae_1.code AS ae_encode('m'), __ae_1.error AS ae_error('m'), __ae_1.reconstruction AS ae_reconstruct('m')
      Filter: __ae_1.error > Float64(4)
        Projection: t.id, __ae_1.error, __ae_1.code, __ae_1.reconstruction
          Infer: model=m@1, features=[a, b], outputs=[error, code, reconstruction]
            Filter: t.id % Int64(10) = Int64(0)
              TableScan: t projection=[id, a, b]
    ");
}

fn cheap_conditions_come_first_wherever_they_were_written() {
    assert_snapshot!(plan("SELECT id FROM t WHERE ae_error('m') > 4 AND x = 1 AND ae_error('n') > 1 AND b < 2"), @r"
    Projection: t.id
      Filter: __ae_2.error > Float64(1)
        Projection: t.id, __ae_2.error
          Infer: model=n@1, features=[a, b], outputs=[error]
            Projection: t.id, t.a, t.b
              Filter: __ae_1.error > Float64(4)
                Projection: t.id, t.a, t.b, __ae_1.error
                  Infer: model=m@1, features=[a, b], outputs=[error]
                    Filter: t.x = Int32(1) AND t.b < Float32(2)
                      TableScan: t projection=[id, a, b, x]
    ");
}

fn a_filter_over_a_subquery_is_split() {
    assert_snapshot!(plan("SELECT id, e FROM (SELECT *, ae_error('m') AS e FROM t) WHERE e > 0.5 AND x = 1"), @r"
    Projection: t.id, __ae_1.error AS e
      Filter: __ae_1.error > Float64(0.5)
        Projection: t.id, __ae_1.error
          Infer: model=m@1, features=[a, b], outputs=[error]
            Filter: t.x = Int32(1)
              TableScan: t projection=[id, a, b, x]
    ");
}

fn outer_queries_use_the_runs_of_inner_ones() {
    assert_snapshot!(plan("SELECT s.id, ae_encode('m') FROM (SELECT * FROM t WHERE ae_error('m') > 1 LIMIT 5) s"), @r"
    Projection: s.id, s.__ae_1.code AS ae_encode('m')
      SubqueryAlias: s
        Limit: skip=0, fetch=5
          Projection: t.id, __ae_1.code
            Filter: __ae_1.error > Float64(1)
              Projection: t.id, __ae_1.error, __ae_1.code
                Infer: model=m@1, features=[a, b], outputs=[error, code]
                  TableScan: t projection=[id, a, b]
    ");
    assert_snapshot!(plan("SELECT ae_error('m', s.p, s.q) FROM (SELECT a AS p, b AS q, ae_error('m') AS e FROM t) s WHERE e > 1"), @r"
    Projection: s.e AS ae_error('m',s.p,s.q)
      SubqueryAlias: s
        Projection: __ae_1.error AS e
          Filter: __ae_1.error > Float64(1)
            Projection: __ae_1.error
              Infer: model=m@1, features=[a, b], outputs=[error]
                TableScan: t projection=[a, b]
    ");
}

fn fields_of_a_struct_come_from_one_run() {
    assert_snapshot!(plan("SELECT r['a'], r['b'] FROM (SELECT ae_reconstruct('m') AS r FROM t)"), @r#"
    Projection: get_field(__ae_1.reconstruction, Utf8("a")) AS r[a], get_field(__ae_1.reconstruction, Utf8("b")) AS r[b]
      Infer: model=m@1, features=[a, b], outputs=[reconstruction]
        TableScan: t projection=[a, b]
    "#);
}

fn sort_keys() {
    assert_snapshot!(plan("SELECT id FROM t ORDER BY ae_error('m') DESC LIMIT 3"), @r"
    Projection: t.id
      Sort: __ae_sort_0 DESC NULLS FIRST, fetch=3
        Projection: t.id, __ae_1.error AS __ae_sort_0
          Infer: model=m@1, features=[a, b], outputs=[error]
            TableScan: t projection=[id, a, b]
    ");
}

fn groups_aggregates_and_having() {
    assert_snapshot!(plan("SELECT ae_error('m') > 1, avg(ae_error('m')) FROM t GROUP BY 1 HAVING max(ae_error('m')) > 2"), @r"
    Projection: ae_error('m') > Int64(1), avg(ae_error('m'))
      Filter: max(ae_error('m')) > Float64(2)
        Aggregate: groupBy=[[__ae_1.error > Float64(1) AS ae_error('m') > Int64(1)]], aggr=[[avg(__ae_1.error) AS avg(ae_error('m')), max(__ae_1.error) AS max(ae_error('m'))]]
          Projection: __ae_1.error
            Infer: model=m@1, features=[a, b], outputs=[error]
              TableScan: t projection=[a, b]
    ");
    assert_snapshot!(plan("SELECT x, ae_error('m') > 1 AS odd, count(*) FROM t GROUP BY ROLLUP (x, ae_error('m') > 1)"), @r"
    Projection: t.x, ae_error('m') > Int64(1) AS odd, count(Int64(1)) AS count(*)
      Aggregate: groupBy=[[ROLLUP (t.x, __ae_1.error > Float64(1) AS ae_error('m') > Int64(1))]], aggr=[[count(Int64(1))]]
        Projection: t.x, __ae_1.error
          Infer: model=m@1, features=[a, b], outputs=[error]
            TableScan: t projection=[a, b, x]
    ");
}

fn windows_and_qualify() {
    assert_snapshot!(plan("SELECT id, ae_encode('m') FROM t QUALIFY rank() OVER (PARTITION BY x ORDER BY ae_error('m')) < 3"), @r#"
    Projection: t.id, __ae_1.code AS ae_encode('m')
      Filter: rank() PARTITION BY [t.x] ORDER BY [ae_error(Utf8("m")) ASC NULLS LAST] RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW < UInt64(3)
        Projection: t.id, __ae_1.code, rank() PARTITION BY [t.x] ORDER BY [ae_error(Utf8("m")) ASC NULLS LAST] RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
          WindowAggr: windowExpr=[[rank() PARTITION BY [t.x] ORDER BY [__ae_1.error ASC NULLS LAST] RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW AS rank() PARTITION BY [t.x] ORDER BY [ae_error(Utf8("m")) ASC NULLS LAST] RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW]]
            Projection: t.id, t.x, __ae_1.error, __ae_1.code
              Infer: model=m@1, features=[a, b], outputs=[error, code]
                TableScan: t projection=[id, a, b, x]
    "#);
}

fn distinct_on() {
    assert_snapshot!(plan("SELECT DISTINCT ON (ae_error('m') > 1) id, ae_error('m') FROM t ORDER BY ae_error('m') > 1, ae_error('m')"), @r"
    Projection: first_value(t.id) ORDER BY [__ae_1.error > Float64(1) AS __ae_1.error > Int64(1) ASC NULLS LAST, __ae_1.error ASC NULLS LAST] AS id, first_value(ae_error('m')) ORDER BY [__ae_1.error > Float64(1) AS __ae_1.error > Int64(1) ASC NULLS LAST, __ae_1.error ASC NULLS LAST] AS ae_error('m')
      Sort: __ae_1.error > Int64(1) AS __ae_1.error > Int64(1) ASC NULLS LAST
        Aggregate: groupBy=[[__common_expr_1 AS __ae_1.error > Int64(1)]], aggr=[[first_value(t.id) ORDER BY [__common_expr_1 AS __ae_1.error > Int64(1) ASC NULLS LAST, __ae_1.error ASC NULLS LAST] AS first_value(t.id) ORDER BY [__ae_1.error > Float64(1) AS __ae_1.error > Int64(1) ASC NULLS LAST, __ae_1.error ASC NULLS LAST], first_value(__ae_1.error AS ae_error('m')) ORDER BY [__common_expr_1 AS __ae_1.error > Int64(1) ASC NULLS LAST, __ae_1.error ASC NULLS LAST] AS first_value(ae_error('m')) ORDER BY [__ae_1.error > Float64(1) AS __ae_1.error > Int64(1) ASC NULLS LAST, __ae_1.error ASC NULLS LAST]]]
          Projection: __ae_1.error > Float64(1) AS __common_expr_1, t.id, __ae_1.error
            Infer: model=m@1, features=[a, b], outputs=[error]
              TableScan: t projection=[id, a, b]
    ");
}

fn join_conditions() {
    assert_snapshot!(plan("SELECT t.id FROM t JOIN u ON t.id = u.id AND ae_error('m', t.a, t.b) > u.x"), @r"
    Projection: t.id
      Inner Join: t.id = u.id Filter: __ae_1.error > CAST(u.x AS Float64)
        Projection: t.id, __ae_1.error
          Infer: model=m@1, features=[a, b], outputs=[error]
            TableScan: t projection=[id, a, b]
        TableScan: u projection=[id, x]
    ");
    assert_snapshot!(plan("SELECT t.id FROM t JOIN u ON t.id = u.id AND ae_error('m', t.a, u.b) > 1"), @r"
    Projection: t.id
      Filter: __ae_1.error > Float64(1)
        Projection: t.id, __ae_1.error
          Infer: model=m@1, features=[a, b], outputs=[error]
            Inner Join: t.id = u.id
              TableScan: t projection=[id, a]
              TableScan: u projection=[id, b]
    ");
    assert_snapshot!(plan("SELECT t.id, u.x FROM t LEFT JOIN u ON CAST(ae_error('m', t.a, t.b) AS INT) = u.x"), @r"
    Projection: t.id, u.x
      Left Join: CAST(__ae_1.error AS Int32) = u.x
        Projection: t.id, __ae_1.error
          Infer: model=m@1, features=[a, b], outputs=[error]
            TableScan: t projection=[id, a, b]
        TableScan: u projection=[x]
    ");
}

fn a_run_below_a_join_serves_above_it() {
    assert_snapshot!(plan("SELECT ae_encode('m', t.a, t.b) FROM t JOIN u ON t.id = u.id AND ae_error('m', t.a, t.b) > u.x"), @r"
    Projection: __ae_1.code AS ae_encode('m',t.a,t.b)
      Inner Join: t.id = u.id Filter: __ae_1.error > CAST(u.x AS Float64)
        Projection: t.id, __ae_1.error, __ae_1.code
          Infer: model=m@1, features=[a, b], outputs=[error, code]
            TableScan: t projection=[id, a, b]
        TableScan: u projection=[id, x]
    ");
}

fn subqueries() {
    assert_snapshot!(plan("SELECT id FROM u WHERE id IN (SELECT id FROM t WHERE ae_error('m') > 1)"), @r"
    LeftSemi Join: u.id = __correlated_sq_1.id
      TableScan: u projection=[id]
      SubqueryAlias: __correlated_sq_1
        Projection: t.id
          Filter: __ae_1.error > Float64(1)
            Projection: t.id, __ae_1.error
              Infer: model=m@1, features=[a, b], outputs=[error]
                TableScan: t projection=[id, a, b]
    ");
    assert_snapshot!(plan("SELECT id FROM u WHERE EXISTS (SELECT 1 FROM t WHERE t.id = u.id AND ae_error('m', t.a, t.b) > 1)"), @r"
    LeftSemi Join: u.id = __correlated_sq_1.id
      TableScan: u projection=[id]
      SubqueryAlias: __correlated_sq_1
        Projection: t.id
          Filter: __ae_1.error > Float64(1)
            Projection: t.id, __ae_1.error
              Infer: model=m@1, features=[a, b], outputs=[error]
                TableScan: t projection=[id, a, b]
    ");
    assert_snapshot!(plan("SELECT id, (SELECT max(ae_error('m', t.a, t.b)) FROM t WHERE t.id = u.id) FROM u"), @r"
    Projection: u.id, __scalar_sq_1.max(ae_error('m',t.a,t.b)) AS max(ae_error('m',t.a,t.b))
      Left Join: u.id = __scalar_sq_1.id
        TableScan: u projection=[id]
        SubqueryAlias: __scalar_sq_1
          Projection: max(ae_error('m',t.a,t.b)), t.id
            Aggregate: groupBy=[[t.id]], aggr=[[max(__ae_1.error) AS max(ae_error('m',t.a,t.b))]]
              Projection: t.id, __ae_1.error
                Infer: model=m@1, features=[a, b], outputs=[error]
                  TableScan: t projection=[id, a, b]
    ");
    assert_snapshot!(plan("SELECT id, (SELECT max(ae_error('m')) FROM t) AS most FROM u"), @r"
    Projection: u.id, (<subquery>) AS most
      Subquery:
        Aggregate: groupBy=[[]], aggr=[[max(__ae_1.error) AS max(ae_error('m'))]]
          Projection: __ae_1.error
            Infer: model=m@1, features=[a, b], outputs=[error]
              TableScan: t projection=[a, b]
      TableScan: u projection=[id]
    ");
}

fn a_cte_that_is_used_twice() {
    assert_snapshot!(plan("WITH s AS (SELECT id, ae_error('m') AS e FROM t) SELECT p.id, q.e FROM s p JOIN s q ON p.id = q.id WHERE p.e > 1"), @r"
    Projection: p.id, q.e
      Inner Join: p.id = q.id
        SubqueryAlias: p
          SubqueryAlias: s
            Projection: t.id
              Filter: __ae_1.error > Float64(1)
                Projection: t.id, __ae_1.error
                  Infer: model=m@1, features=[a, b], outputs=[error]
                    TableScan: t projection=[id, a, b]
        SubqueryAlias: q
          SubqueryAlias: s
            Projection: t.id, __ae_2.error AS e
              Infer: model=m@1, features=[a, b], outputs=[error]
                TableScan: t projection=[id, a, b]
    ");
}

fn branches_of_a_union() {
    assert_snapshot!(plan("SELECT id, ae_error('m') AS e FROM t UNION ALL SELECT id, ae_error('n') FROM u"), @r"
    Union
      Projection: t.id, __ae_1.error AS e
        Infer: model=m@1, features=[a, b], outputs=[error]
          TableScan: t projection=[id, a, b]
      Projection: u.id, __ae_2.error AS e
        Infer: model=n@1, features=[a, b], outputs=[error]
          TableScan: u projection=[id, a, b]
    ");
}

fn calls_in_the_features_of_others() {
    assert_snapshot!(plan("SELECT ae_decode('m', ae_encode('m')), ae_error('m') FROM t"), @r"
    Projection: __ae_2.decoded AS ae_decode('m',ae_encode('m')), __ae_1.error AS ae_error('m')
      Infer: model=m@1, features=[__ae_1.code], outputs=[decoded]
        Infer: model=m@1, features=[a, b], outputs=[code, error]
          TableScan: t projection=[a, b]
    ");
}

fn other_models_and_other_features_are_other_runs() {
    assert_snapshot!(plan("SELECT ae_error('m'), ae_error('n'), ae_error('m', b, a) FROM t"), @r"
    Projection: __ae_1.error AS ae_error('m'), __ae_2.error AS ae_error('n'), __ae_3.error AS ae_error('m',t.b,t.a)
      Infer: model=m@1, features=[b, a], outputs=[error]
        Infer: model=n@1, features=[a, b], outputs=[error]
          Infer: model=m@1, features=[a, b], outputs=[error]
            TableScan: t projection=[a, b]
    ");
}

fn limits_go_below() {
    assert_snapshot!(plan("SELECT id, ae_error('m') FROM t LIMIT 10"), @r"
    Projection: t.id, __ae_1.error AS ae_error('m')
      Limit: skip=0, fetch=10
        Infer: model=m@1, features=[a, b], outputs=[error]
          Limit: skip=0, fetch=10
            Limit: skip=0, fetch=10
              Limit: skip=0, fetch=10
                TableScan: t projection=[id, a, b], fetch=10
    ");
}

fn what_nobody_reads_is_not_run() {
    assert_snapshot!(plan("SELECT id FROM (SELECT id, ae_error('m') AS e, ae_encode('m') AS c FROM t)"), @r"
    TableScan: t projection=[id]
    ");
    assert_snapshot!(plan("SELECT id, c FROM (SELECT id, ae_error('m') AS e, ae_encode('m') AS c FROM t)"), @r"
    Projection: t.id, __ae_1.code AS c
      Infer: model=m@1, features=[a, b], outputs=[code]
        TableScan: t projection=[id, a, b]
    ");
}

fn branches_that_not_every_row_takes_stay() {
    assert_snapshot!(plan("SELECT CASE WHEN x = 1 THEN ae_error('m') ELSE 0 END FROM t"), @r#"
    Projection: CASE WHEN t.x = Int32(1) THEN ae_error(Utf8("m"), t.a, t.b) ELSE Float64(0) END AS CASE WHEN t.x = Int64(1) THEN ae_error('m') ELSE Int64(0) END
      TableScan: t projection=[a, b, x]
    "#);
    assert_snapshot!(plan("SELECT COALESCE(b, ae_error('m')) FROM t"), @r#"
    Projection: CASE WHEN __common_expr_1 IS NOT NULL THEN __common_expr_1 ELSE ae_error(Utf8("m"), t.a, t.b) END AS coalesce(t.b,ae_error('m'))
      Projection: CAST(t.b AS Float64) AS __common_expr_1, t.a, t.b
        TableScan: t projection=[a, b]
    "#);
    assert_snapshot!(plan("SELECT id FROM t WHERE x = 1 OR ae_error('m') > 1"), @r#"
    Projection: t.id
      Filter: t.x = Int32(1) OR ae_error(Utf8("m"), t.a, t.b) > Float64(1)
        TableScan: t projection=[id, a, b, x]
    "#);
    assert_snapshot!(plan("SELECT x = 1 AND ae_error('m') > 1 FROM t"), @r#"
    Projection: t.x = Int32(1) AND ae_error(Utf8("m"), t.a, t.b) > Float64(1) AS t.x = Int64(1) AND ae_error('m') > Int64(1)
      TableScan: t projection=[a, b, x]
    "#);
    assert_snapshot!(plan("SELECT avg(ae_error('m')) FILTER (WHERE x = 1) FROM t"), @r#"
    Aggregate: groupBy=[[]], aggr=[[avg(ae_error(Utf8("m"), t.a, t.b)) FILTER (WHERE t.x = Int32(1)) AS avg(ae_error('m')) FILTER (WHERE t.x = Int64(1))]]
      TableScan: t projection=[a, b, x]
    "#);
}

fn what_every_row_evaluates_is_lifted_out_of_branches() {
    assert_snapshot!(plan("SELECT CASE WHEN ae_error('m') > 1 THEN 1 ELSE 0 END, COALESCE(ae_error('m'), 0), NULLIF(x, ae_error('m')), ae_error('m') > 1 OR x = 1 FROM t"), @r"
    Projection: CASE WHEN __common_expr_1 THEN Int64(1) ELSE Int64(0) END AS CASE WHEN ae_error('m') > Int64(1) THEN Int64(1) ELSE Int64(0) END, CASE WHEN __ae_1.error IS NOT NULL THEN __ae_1.error ELSE Float64(0) END AS coalesce(ae_error('m'),Int64(0)), nullif(CAST(t.x AS Float64), __ae_1.error) AS nullif(t.x,ae_error('m')), __common_expr_1 OR t.x = Int32(1) AS ae_error('m') > Int64(1) OR t.x = Int64(1)
      Projection: __ae_1.error > Float64(1) AS __common_expr_1, t.x, __ae_1.error
        Infer: model=m@1, features=[a, b], outputs=[error]
          TableScan: t projection=[a, b, x]
    ");
}

fn a_branch_shares_the_run_of_what_is_lifted() {
    assert_snapshot!(plan("SELECT ae_error('m'), CASE WHEN x = 1 THEN ae_encode('m') END FROM t"), @r"
    Projection: __ae_1.error AS ae_error('m'), CASE WHEN t.x = Int32(1) THEN __ae_1.code END AS CASE WHEN t.x = Int64(1) THEN ae_encode('m') END
      Infer: model=m@1, features=[a, b], outputs=[error, code]
        TableScan: t projection=[a, b, x]
    ");
}

fn volatile_and_constant_features_stay() {
    assert_snapshot!(plan("SELECT ae_error('m', random(), b) FROM t"), @r#"
    Projection: ae_error(Utf8("m"), random(), t.b)
      TableScan: t projection=[b]
    "#);
    assert_snapshot!(plan("SELECT ae_error('m', 1.0, 3.0) FROM t"), @r"
    Projection: Float64(1) AS ae_error('m',Float64(1),Float64(3))
      TableScan: t projection=[]
    ");
}

fn a_side_of_an_outer_join_that_may_be_null_is_not_shared() {
    assert_snapshot!(plan("SELECT ae_encode('m', u.a, u.b) FROM t LEFT JOIN (SELECT * FROM u WHERE ae_error('m') > 1) u ON t.id = u.id"), @r"
    Projection: __ae_2.code AS ae_encode('m',u.a,u.b)
      Infer: model=m@1, features=[a, b], outputs=[code]
        Left Join: t.id = u.id
          TableScan: t projection=[id]
          SubqueryAlias: u
            Projection: u.id, u.a, u.b
              Filter: __ae_1.error > Float64(1)
                Infer: model=m@1, features=[a, b], outputs=[error]
                  TableScan: u projection=[id, a, b]
    ");
}

/// Versions are published while statements of many calls are planned.
async fn a_statement_uses_one_version_of_a_model() {
    let models = Models::new(ModelStore::in_memory());
    let options = Metadata { features: Some(vec![Feature::named("a"), Feature::named("b")]), ..Metadata::default() };
    let file = std::fs::read("tests/models/mean.onnx").unwrap();
    models.register_bytes("m", file.clone(), options.clone()).unwrap();
    let builder = SessionStateBuilder::new().with_default_features().with_autoencoders(models.clone());
    let session = SessionContext::new_with_state(builder.build());
    session.sql("CREATE TABLE t (a FLOAT, b FLOAT)").await.unwrap().collect().await.unwrap();
    let calls: Vec<String> = (0..40).map(|i| format!("ae_error('m', a, b + {i}), ae_error(a, b - {i})")).collect();
    let sql = format!("SELECT {} FROM t", calls.join(", "));
    let publisher = std::thread::spawn(move || {
        for _ in 0..60 {
            models.register_bytes("m", file.clone(), options.clone()).unwrap();
        }
    });
    let mut planned = 0;
    while !publisher.is_finished() {
        let plan = session.sql(&sql).await.unwrap().into_optimized_plan().unwrap();
        let versions: Vec<u64> = models_of(&plan).unwrap().iter().map(|model| model.version()).collect();
        assert_eq!(versions.len(), 1, "{versions:?}");
        planned += 1;
    }
    publisher.join().unwrap();
    assert!(planned > 0);
}
