//! `aefusion report`: a page about a model, in one file that needs no network.

mod charts;
mod page;

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use aefusion_udfs::config::AeOptions;
use aefusion_udfs::model::Model;
use aefusion_udfs::model::metadata::Role;
use aefusion_udfs::model::store::ModelRef;
use clap::Args;
use datafusion::arrow::array::{Array, AsArray, RecordBatch};
use datafusion::arrow::compute::{cast, concat_batches};
use datafusion::arrow::datatypes::{DataType, Float32Type, Float64Type};
use datafusion::common::{exec_err, plan_err};
use datafusion::error::Result;

use super::{Outcome, SessionArgs};
use crate::session::Session;
use aefusion_train::Unwatched;

/// Rows whose causes are shown.
const WORST: usize = 10;

#[derive(Debug, Args)]
pub(super) struct ReportArgs {
    #[command(flatten)]
    session: SessionArgs,

    /// Name of the model, or name@version
    model: String,

    /// Rows to score: a query, or the path of a file
    #[arg(long, value_name = "SQL|PATH")]
    data: Option<String>,

    /// Column of those rows that tells known anomalies: true, or a number other than 0
    #[arg(long, value_name = "COLUMN", requires = "data")]
    label: Option<String>,

    /// Where the page goes; by default MODEL.html
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// What rows came to.
#[derive(Debug, Default)]
pub(super) struct Scored {
    /// Errors, of the rows that have one.
    errors: Vec<f64>,
    /// Rows whose error is infinite or not a number, which are left out.
    not_finite: usize,
    /// Their codes, if the model has one.
    codes: Vec<Vec<f64>>,
    /// Whether they are known anomalies, if a label was given.
    labels: Option<Vec<bool>>,
    /// The rows with the largest errors, and what these come from.
    worst: Vec<Worst>,
    /// A row with the middle error, and the one with the largest: error, scaled input, scaled reconstruction.
    rows: Vec<(f64, Vec<f64>, Vec<f64>)>,
}

/// A row with a large error.
#[derive(Debug)]
pub(super) struct Worst {
    error: f64,
    /// Feature, value, expected, share of the error; largest share first.
    causes: Vec<(String, String, String, f64)>,
}

impl ReportArgs {
    pub(super) fn run(self) -> Result<Outcome> {
        let session = self.session.open(Arc::new(Unwatched))?;
        let runtime = tokio::runtime::Runtime::new()?;
        runtime.block_on(async {
            let reference = ModelRef::parse(&self.model)?;
            let limits = AeOptions::of(session.context().state().config_options()).limits();
            let model = session.models().find(&reference, &limits).await?;
            let scored = match &self.data {
                Some(data) => Some(score(&session, &model, data, self.label.as_deref()).await?),
                None => None,
            };
            let page = page::page(&model, self.data.as_deref(), scored.as_ref())?;
            let output = self.output.unwrap_or_else(|| PathBuf::from(format!("{}.html", model.name())));
            write_whole(&output, &page)?;
            writeln!(io::stdout(), "{}", output.display())?;
            Ok(Outcome::Done)
        })
    }
}

/// Writes a file, all of it or nothing.
fn write_whole(path: &std::path::Path, text: &str) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(std::path::Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut file = aefusion_udfs::temporary_file(folder)?;
    file.write_all(text.as_bytes())?;
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

/// Runs the model over the rows.
async fn score(session: &Session, model: &Arc<Model>, data: &str, label: Option<&str>) -> Result<Scored> {
    if model.contract().require_error().is_err() {
        return plan_err!("report {model}: the model has no reconstruction error; leave --data out");
    }
    let rows = match data.split_whitespace().next().map(str::to_uppercase).as_deref() {
        // the line break ends a comment
        Some("SELECT" | "WITH" | "VALUES" | "TABLE" | "FROM") => format!("({}\n)", data.trim().trim_end_matches(';')),
        _ => format!("'{}'", data.replace('\'', "''")),
    };
    let name = format!("{}@{}", model.name(), model.version());
    let code = match model.contract().tensor(Role::Code) {
        Some(_) => format!("ae_encode('{name}')"),
        None => "NULL".to_owned(),
    };
    let label_column = match label {
        Some(label) => format!(", \"{}\" AS label", label.replace('"', "\"\"")),
        None => String::new(),
    };
    let scored = query(
        session,
        &format!("SELECT ae_error('{name}') AS error, {code} AS code{label_column} FROM {rows} AS rows"),
    )
    .await?;
    let mut found = Scored { labels: label.map(|_| Vec::new()), ..Scored::default() };
    let errors = scored.column(0).as_primitive::<Float64Type>();
    let labels = label.map(|label| is_labelled(&scored, label)).transpose()?;
    for row in (0..scored.num_rows()).filter(|row| errors.is_valid(*row)) {
        if !errors.value(row).is_finite() {
            found.not_finite += 1;
            continue;
        }
        found.errors.push(errors.value(row));
        if let Some(codes) = scored.column(1).as_fixed_size_list_opt() {
            let code = codes.value(row);
            found.codes.push(code.as_primitive::<Float32Type>().values().iter().copied().map(f64::from).collect());
        }
        if let (Some(into), Some(labels)) = (&mut found.labels, &labels) {
            into.push(labels[row]);
        }
    }
    if found.errors.is_empty() {
        return exec_err!("report {model}: no row of --data has an error that is a finite number");
    }
    if model.contract().require_error_features().is_ok() {
        found.worst = worst(session, &name, &rows, model.contract().features.len()).await?;
    }
    if model.contract().tensor(Role::Scaled).is_some() {
        found.rows = middle_and_worst(session, &name, &rows, found.errors.len()).await?;
    }
    Ok(found)
}

async fn middle_and_worst(
    session: &Session,
    name: &str,
    rows: &str,
    n_errors: usize,
) -> Result<Vec<(f64, Vec<f64>, Vec<f64>)>> {
    let mut found = Vec::new();
    for place in [n_errors / 2, n_errors - 1] {
        let batch = query(
            session,
            &format!(
                "SELECT error, run['scaled'], run['scaled_reconstruction']
                 FROM (SELECT ae_error('{name}') AS error, ae_run('{name}') AS run FROM {rows} AS rows)
                 WHERE error < CAST('Infinity' AS DOUBLE) ORDER BY error LIMIT 1 OFFSET {place}"
            ),
        )
        .await?;
        let values = |column: usize| -> Vec<f64> {
            let list = batch.column(column).as_fixed_size_list().value(0);
            list.as_primitive::<Float32Type>().values().iter().copied().map(f64::from).collect()
        };
        if batch.num_rows() > 0 {
            found.push((batch.column(0).as_primitive::<Float64Type>().value(0), values(1), values(2)));
        }
    }
    Ok(found)
}

/// Which rows are known anomalies.
fn is_labelled(scored: &RecordBatch, label: &str) -> Result<Vec<bool>> {
    let column = scored.column(2);
    if !column.data_type().is_numeric() && *column.data_type() != DataType::Boolean {
        return plan_err!(
            "--label {label}: the column is {}; it must be Boolean, or a number that is 0 for usual rows",
            column.data_type()
        );
    }
    let flags = cast(column, &DataType::Boolean)?;
    Ok(flags.as_boolean().iter().map(|flag| flag.unwrap_or_default()).collect())
}

async fn worst(session: &Session, name: &str, rows: &str, n_features: usize) -> Result<Vec<Worst>> {
    let batch = query(
        session,
        &format!(
            "SELECT error, unnest(causes)['feature'] AS feature, CAST(unnest(causes)['value'] AS VARCHAR) AS value,
                    CAST(unnest(causes)['expected'] AS VARCHAR) AS expected, unnest(causes)['share'] AS share
             FROM (SELECT * FROM (SELECT ae_error('{name}') AS error, ae_contributions('{name}') AS causes
                                  FROM {rows} AS rows)
                   WHERE error < CAST('Infinity' AS DOUBLE) ORDER BY error DESC LIMIT {WORST})"
        ),
    )
    .await?;
    let errors = batch.column(0).as_primitive::<Float64Type>();
    let text = |column: usize| cast(batch.column(column), &DataType::Utf8);
    let (features, values, expected) = (text(1)?, text(2)?, text(3)?);
    let shares = batch.column(4).as_primitive::<Float64Type>();
    let shown = |array: &dyn Array, row: usize| {
        let strings = array.as_string::<i32>();
        if strings.is_valid(row) { strings.value(row).to_owned() } else { "missing".to_owned() }
    };
    let mut worst: Vec<Worst> = Vec::new();
    for row in 0..batch.num_rows() {
        if row % n_features == 0 {
            worst.push(Worst { error: errors.value(row), causes: Vec::new() });
        }
        if let Some(last) = worst.last_mut() {
            let cause = (
                shown(&features, row),
                page::rounded(&shown(&values, row)),
                page::rounded(&shown(&expected, row)),
                shares.value(row),
            );
            last.causes.push(cause);
        }
    }
    Ok(worst)
}

async fn query(session: &Session, sql: &str) -> Result<RecordBatch> {
    let rows = session.context().sql(sql).await?;
    let schema = Arc::clone(rows.schema().inner());
    let batches = rows.collect().await?;
    let schema = batches.first().map_or(schema, RecordBatch::schema);
    Ok(concat_batches(&schema, &batches)?)
}
