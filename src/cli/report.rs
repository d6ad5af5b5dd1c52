//! `aefusion report`: a page about a model, in one HTML file that needs no network.

mod charts;
mod page;

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use aefusion_udfs::config::AeOptions;
use aefusion_udfs::model::Model;
use aefusion_udfs::model::metadata::Role;
use aefusion_udfs::store::ModelRef;
use clap::Args;
use datafusion::arrow::array::{Array, AsArray, RecordBatch};
use datafusion::arrow::compute::{cast, concat_batches};
use datafusion::arrow::datatypes::{DataType, Float32Type, Float64Type};
use datafusion::common::{ScalarValue, TableReference, exec_err, internal_err, plan_err};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::FunctionRegistry;
use datafusion::functions::core::expr_ext::FieldAccessor;
use datafusion::logical_expr::{Expr, ident, lit};
use datafusion::prelude::DataFrame;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::Statement as SqlStatement;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::Token;

use super::{Outcome, SessionArgs};
use crate::session::Session;
use aefusion_train::Unwatched;

/// Number of rows in the list of the largest errors.
const WORST: usize = 10;

/// Names of the columns of scored rows.
const ERROR: &str = "error";
const RESULT: &str = "result";

#[derive(Debug, Args)]
pub(super) struct ReportArgs {
    #[command(flatten)]
    session: SessionArgs,

    /// Name of the model, or name@version
    model: String,

    /// Rows to score: a query, or the path of a file
    #[arg(long, value_name = "SQL|PATH")]
    data: Option<String>,

    /// Column of those rows that marks known anomalies: true, or a number other than 0
    #[arg(long, value_name = "COLUMN", requires = "data")]
    label: Option<String>,

    /// File for the page [default: MODEL.html]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Results of the scored rows.
#[derive(Debug, Default)]
pub(super) struct Scored {
    /// Finite errors.
    errors: Vec<f64>,
    /// Number of rows whose error is infinite or NaN. They are left out.
    not_finite: usize,
    /// Codes of the rows in `errors`, if the model has a code.
    codes: Vec<Vec<f64>>,
    /// Whether the rows in `errors` are known anomalies, if there is a label column.
    labels: Option<Vec<bool>>,
    /// The rows with the largest errors.
    worst: Vec<Worst>,
    /// The row with the median error and the row with the largest error: error, scaled input, scaled reconstruction.
    rows: Vec<(f64, Vec<f64>, Vec<f64>)>,
}

/// A row with a large error.
#[derive(Debug)]
pub(super) struct Worst {
    error: f64,
    /// Largest share first.
    causes: Vec<Cause>,
}

/// The contribution of a feature to an error.
#[derive(Debug)]
pub(super) struct Cause {
    feature: String,
    value: String,
    expected: String,
    /// Share of the error, 0 to 1.
    share: f64,
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

/// Writes a file completely, or not at all.
fn write_whole(path: &std::path::Path, text: &str) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(std::path::Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut file = aefusion_udfs::temporary_file(folder)?;
    file.write_all(text.as_bytes())?;
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

/// Runs the model on the rows.
async fn score(session: &Session, model: &Model, data: &str, label: Option<&str>) -> Result<Scored> {
    if model.contract().require_error().is_err() {
        return plan_err!(
            "report {model}: the model has no reconstruction error, which --data needs; leave --data out, or give a model \
             with a reconstruction"
        );
    }
    let rows =
        Rows { session, name: format!("{}@{}", model.name(), model.version()), rows: rows_of(session, data).await? };
    let code = match model.contract().tensor(Role::Code) {
        Some(_) => rows.call("ae_encode")?,
        None => lit(ScalarValue::Null),
    };
    let mut columns = vec![rows.call("ae_error")?.alias(ERROR), code.alias("code")];
    columns.extend(label.map(|label| ident(label).alias("label")));
    let scored = collect(rows.rows.clone().select(columns)?).await?;
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
        return exec_err!(
            "report {model}: the errors of all rows of --data are null or not finite; give rows with a finite error"
        );
    }
    if model.contract().require_error_features().is_ok() {
        found.worst = rows.worst().await?;
    }
    if model.contract().tensor(Role::Scaled).is_some() {
        for place in [found.errors.len() / 2, found.errors.len() - 1] {
            found.rows.extend(rows.at_rank(place).await?);
        }
    }
    Ok(found)
}

/// The rows of `--data`: a query, or a path.
async fn rows_of(session: &Session, data: &str) -> Result<DataFrame> {
    let first_word = data.split_whitespace().next().map(str::to_uppercase);
    let rows = match first_word.as_deref() {
        Some("SELECT" | "WITH" | "VALUES" | "TABLE" | "FROM") => {
            let query = Parser::new(session.dialect().as_ref()).try_with_sql(data).and_then(|mut parser| {
                let query = parser.parse_query()?;
                while parser.consume_token(&Token::SemiColon) {}
                parser.expect_token(&Token::EOF)?;
                Ok(query)
            });
            let query = query.map_err(|e| DataFusionError::SQL(Box::new(e), None))?;
            let query = Statement::Statement(Box::new(SqlStatement::Query(query)));
            let plan = session.context().state().statement_to_plan(query).await?;
            session.context().execute_logical_plan(plan).await?
        }
        _ => session.context().table(TableReference::bare(data)).await?,
    };
    rows.alias("rows")
}

/// Rows that a model scores.
struct Rows<'a> {
    session: &'a Session,
    /// `name@version` of the model.
    name: String,
    rows: DataFrame,
}

impl Rows<'_> {
    /// A call on the model with the columns of the features' names.
    fn call(&self, function: &str) -> Result<Expr> {
        Ok(self.session.context().udf(function)?.call(vec![lit(self.name.as_str())]))
    }

    /// The errors and another result, of the rows whose error is a finite number.
    fn with_error(&self, result: Expr) -> Result<DataFrame> {
        let rows = self.rows.clone().select(vec![self.call("ae_error")?.alias(ERROR), result.alias(RESULT)])?;
        rows.filter(ident(ERROR).lt(lit(f64::INFINITY)))
    }

    /// The row at a place in ascending order of errors: its error, scaled input and scaled reconstruction.
    async fn at_rank(&self, place: usize) -> Result<Option<(f64, Vec<f64>, Vec<f64>)>> {
        let rows = self.with_error(self.call("ae_run")?)?;
        let rows = rows.sort(vec![ident(ERROR).sort(true, false)])?.limit(place, Some(1))?;
        let run = |field: &str| ident(RESULT).field(field);
        let batch = collect(rows.select(vec![ident(ERROR), run("scaled"), run("scaled_reconstruction")])?).await?;
        if batch.num_rows() == 0 {
            return Ok(None);
        }
        let values = |column: usize| -> Vec<f64> {
            let list = batch.column(column).as_fixed_size_list().value(0);
            list.as_primitive::<Float32Type>().values().iter().copied().map(f64::from).collect()
        };
        Ok(Some((batch.column(0).as_primitive::<Float64Type>().value(0), values(1), values(2))))
    }

    /// The rows with the largest errors.
    async fn worst(&self) -> Result<Vec<Worst>> {
        let rows = self.with_error(self.call("ae_contributions")?)?;
        let batch = collect(rows.sort(vec![ident(ERROR).sort(false, false)])?.limit(0, Some(WORST))?).await?;
        let errors = batch.column(0).as_primitive::<Float64Type>();
        let causes = batch.column(1).as_list::<i32>();
        let worst = |row: usize| Ok(Worst { error: errors.value(row), causes: causes_of(&causes.value(row))? });
        (0..batch.num_rows()).map(worst).collect()
    }
}

/// The contributions to one error: the elements of a list of `ae_contributions`.
fn causes_of(contributions: &dyn Array) -> Result<Vec<Cause>> {
    let contributions = contributions.as_struct();
    let column = |name: &str| match contributions.column_by_name(name) {
        Some(column) => Ok(column),
        None => internal_err!("ae_contributions has no field {name}"),
    };
    let text = |name: &str| cast(column(name)?, &DataType::Utf8);
    let (features, values, expected) = (text("feature")?, text("value")?, text("expected")?);
    let shares = column("share")?.as_primitive::<Float64Type>();
    let shown = |array: &dyn Array, row: usize| {
        let strings = array.as_string::<i32>();
        if strings.is_valid(row) { strings.value(row).to_owned() } else { "missing".to_owned() }
    };
    let cause = |row: usize| Cause {
        feature: shown(&features, row),
        value: page::rounded(&shown(&values, row)),
        expected: page::rounded(&shown(&expected, row)),
        share: shares.value(row),
    };
    Ok((0..contributions.len()).map(cause).collect())
}

/// Which rows are known anomalies.
fn is_labelled(scored: &RecordBatch, label: &str) -> Result<Vec<bool>> {
    let column = scored.column(2);
    if !column.data_type().is_numeric() && *column.data_type() != DataType::Boolean {
        return plan_err!(
            "--label {label}: the column must be Boolean, or a number that is 0 for normal rows; found {}",
            column.data_type()
        );
    }
    let flags = cast(column, &DataType::Boolean)?;
    Ok(flags.as_boolean().iter().map(|flag| flag.unwrap_or_default()).collect())
}

/// All rows in one batch.
async fn collect(rows: DataFrame) -> Result<RecordBatch> {
    let schema = Arc::clone(rows.schema().inner());
    let batches = rows.collect().await?;
    let schema = batches.first().map_or(schema, RecordBatch::schema);
    Ok(concat_batches(&schema, &batches)?)
}
