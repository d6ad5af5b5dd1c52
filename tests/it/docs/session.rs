//! The session of a page.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use aefusion::session::{Session, SessionOptions};
use aefusion_train::Watch;
use aefusion_udfs::message;
use aefusion_udfs::sql::{execute, parse};
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::util::pretty::pretty_format_batches;
use datafusion::error::Result;
use datafusion::prelude::SessionContext;

const PRELUDE: &str = "
    CREATE MODEL sat OPTIONS (model_type = 'onnx', model_path = 'examples/demo/satimage-2.onnx');
    CREATE VIEW pixels AS SELECT * FROM 'examples/demo/satimage-2.parquet';";

/// How a block ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is shown only.
    NotRun,
    /// What a page may say that it prints.
    Printed(Vec<String>),
    /// The error.
    Failed(String),
}

/// A session with a store in memory, the model `sat` and the view `pixels`.
pub(super) struct PageSession {
    session: Session,
    summaries: Arc<Summaries>,
}

/// Keeps the lines that the program prints at the end of a training.
#[derive(Debug, Default)]
struct Summaries(Mutex<Vec<String>>);

impl Watch for Summaries {
    fn finished(&self, summary: &[(&'static str, serde_json::Value)]) {
        let summary: BTreeMap<_, _> = summary.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        self.0.lock().unwrap().extend(aefusion::cli::summary_lines(&summary));
    }
}

impl PageSession {
    pub(super) async fn open() -> Self {
        let summaries = Arc::new(Summaries::default());
        let options = SessionOptions {
            models: "memory:///".to_owned(),
            watch: Arc::clone(&summaries) as _,
            ..SessionOptions::default()
        };
        let session = Self { session: Session::open(&options).unwrap(), summaries };
        session.tables(PRELUDE).await.unwrap();
        session
    }

    pub(super) fn context(&self) -> &SessionContext {
        self.session.context()
    }

    /// Runs statements. A page shows the last table, all tables, the lines of a training, or the lines and the tables.
    pub(super) async fn run(&self, sql: &str) -> Outcome {
        let tables = self.tables(sql).await;
        let lines = std::mem::take(&mut *self.summaries.0.lock().unwrap()).join("\n");
        match tables {
            Ok(tables) => {
                let (last, all) = (tables.last().cloned().unwrap_or_default(), tables.join("\n"));
                let mut shown = vec![last, all.clone()];
                if !lines.is_empty() {
                    shown.extend([lines.clone(), format!("{lines}\n{all}")]);
                }
                Outcome::Printed(shown)
            }
            Err(error) => Outcome::Failed(message(&error)),
        }
    }

    /// The table of each statement.
    async fn tables(&self, sql: &str) -> Result<Vec<String>> {
        let mut tables = Vec::new();
        for statement in parse(self.context(), sql)? {
            let rows = execute(self.context(), statement).await?;
            let schema = Arc::new(rows.schema().as_arrow().clone());
            let mut batches = rows.collect().await?;
            if batches.is_empty() {
                batches.push(RecordBatch::new_empty(schema));
            }
            tables.push(pretty_format_batches(&batches)?.to_string());
        }
        Ok(tables)
    }

    pub(super) fn parse(&self, sql: &str) -> Result<(), String> {
        parse(self.context(), sql).map(drop).map_err(|e| message(&e))
    }

    /// Makes tables and settings of a block over topics, and plans its queries and pipelines, without a broker.
    #[cfg(feature = "kafka")]
    pub(super) async fn plan(&self, sql: &str) -> Result<(), String> {
        let statements = parse(self.context(), sql).map_err(|e| message(&e))?;
        let has_pipeline = sql.lines().any(|line| line.trim_start().to_uppercase().starts_with("INSERT INTO"));
        // a page shows a table with other options again
        for name in created_tables(sql) {
            self.context().deregister_table(name).map_err(|e| message(&e))?;
        }
        if has_pipeline {
            let planned = aefusion_stream::Pipelines::plan(self.context(), sql, "page").await;
            return planned.map(drop).map_err(|e| message(&e));
        }
        for statement in statements {
            // the plan of a query: its topics are read when it runs
            let planned = execute(self.context(), statement).await.map_err(|e| message(&e))?;
            planned.into_optimized_plan().map_err(|e| message(&e))?;
        }
        Ok(())
    }

    #[cfg(not(feature = "kafka"))]
    pub(super) async fn plan(&self, sql: &str) -> Result<(), String> {
        self.parse(sql)
    }

    /// The names of the models that there are.
    pub(super) async fn models(&self) -> Vec<String> {
        let names = self.context().sql("SELECT DISTINCT model FROM ae_models()").await.unwrap();
        let batches = names.collect().await.unwrap();
        let column = |batch: &RecordBatch| {
            let names =
                datafusion::arrow::compute::cast(batch.column(0), &datafusion::arrow::datatypes::DataType::Utf8);
            let names = names.unwrap();
            let names = datafusion::arrow::array::AsArray::as_string::<i32>(&names);
            names.iter().flatten().map(str::to_owned).collect::<Vec<_>>()
        };
        batches.iter().flat_map(column).collect()
    }
}

/// The names after CREATE EXTERNAL TABLE.
#[cfg(feature = "kafka")]
fn created_tables(sql: &str) -> Vec<&str> {
    let after = sql.split("CREATE EXTERNAL TABLE ").skip(1);
    after.filter_map(|text| text.split(|c: char| !(c.is_alphanumeric() || c == '_')).next()).collect()
}
