//! SQL with its results: one file under `tests/slt/` for each function and statement.
//!
//! `UPDATE_SLT=1 cargo test --test it -- slt` rewrites the expected results. Read the difference: a result must be right by
//! hand, not because it was printed.

use std::path::{Path, PathBuf};

use aefusion::session::{Session, SessionOptions};
use aefusion_udfs::sql::{execute, parse};
use async_trait::async_trait;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::error::{DataFusionError, Result};
use libtest_mimic::Trial;
use sqllogictest::{
    AsyncDB, DBOutput, DefaultColumnType, Runner, default_column_validator, default_normalizer, default_validator,
};

use crate::harness;

/// A test for each file.
pub(crate) fn trials() -> Vec<Trial> {
    let mut files: Vec<PathBuf> = std::fs::read_dir("tests/slt").unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let name = |path: &Path| format!("slt::{}", path.file_stem().unwrap().to_string_lossy());
    files.into_iter().map(|path| harness::trial(name(&path), move || harness::block_on(run(&path)))).collect()
}

async fn run(path: &Path) {
    let mut runner = Runner::new(|| async { Database::open().map_err(Shown::from) });
    if std::env::var_os("UPDATE_SLT").is_some() {
        let (validator, columns) = (default_validator, default_column_validator);
        return runner.update_test_file(path, " ", validator, default_normalizer, columns).await.unwrap();
    }
    // not Debug, which has no line breaks
    if let Err(error) = runner.run_file_async(path).await {
        panic!("{error}");
    }
}

/// A session with a store of its own, in memory.
struct Database(Session);

impl Database {
    fn open() -> Result<Self> {
        Session::open(&SessionOptions { models: "memory:///".to_owned(), ..SessionOptions::default() }).map(Self)
    }

    async fn rows(&self, sql: &str) -> Result<DBOutput<DefaultColumnType>> {
        let (mut types, mut rows) = (Vec::new(), Vec::new());
        for statement in parse(self.0.context(), sql)? {
            let found = execute(self.0.context(), statement).await?;
            types = vec![DefaultColumnType::Any; found.schema().fields().len()];
            rows.clear();
            for batch in found.collect().await? {
                let options = FormatOptions::default().with_null("NULL");
                let columns = batch
                    .columns()
                    .iter()
                    .map(|column| ArrayFormatter::try_new(column.as_ref(), &options))
                    .collect::<Result<Vec<_>, _>>()?;
                let cell = |column: &ArrayFormatter<'_>, row| match column.value(row).to_string() {
                    text if text.is_empty() => "(empty)".to_owned(),
                    text => text,
                };
                rows.extend((0..batch.num_rows()).map(|row| columns.iter().map(|c| cell(c, row)).collect::<Vec<_>>()));
            }
        }
        match types.is_empty() {
            true => Ok(DBOutput::StatementComplete(0)),
            false => Ok(DBOutput::Rows { types, rows }),
        }
    }
}

/// The text that a user sees.
#[derive(Debug)]
struct Shown(String);

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Shown {}

impl From<DataFusionError> for Shown {
    fn from(error: DataFusionError) -> Self {
        Self(aefusion_udfs::message(&error))
    }
}

#[async_trait]
impl AsyncDB for Database {
    type Error = Shown;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>, Shown> {
        Ok(self.rows(sql).await?)
    }

    async fn shutdown(&mut self) {}
}
