//! A topic as a table, and the factory for `CREATE EXTERNAL TABLE … STORED AS KAFKA`.

use std::collections::BTreeMap;
use std::sync::Arc;

use aefusion_udfs::choice::Choice;
use async_trait::async_trait;
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::catalog::{Session, TableProvider, TableProviderFactory};
use datafusion::common::plan_err;
use datafusion::datasource::sink::DataSinkExec;
use datafusion::error::Result;
use datafusion::logical_expr::dml::InsertOp;
use datafusion::logical_expr::{CreateExternalTable, Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;

use super::connection::{Connection, OnMalformed, resolve};
use super::read::TopicScan;
use super::write::KafkaSink;
use crate::columns::Columns;
use crate::format::{Decoder, Encoder, Format};
use crate::scan::ScanExec;

/// A topic as a table. For a query, the table ends where the topic ends when the query starts.
#[derive(Debug, Clone)]
pub(crate) struct KafkaTable {
    pub(crate) connection: Connection,
    pub(crate) columns: Columns,
    pub(crate) format: Format,
    pub(crate) on_malformed: OnMalformed,
    /// The dead-letter topic of a pipeline, for its malformed records.
    pub(crate) dead_letters: Option<Connection>,
}

impl KafkaTable {
    fn try_new(location: &str, options: BTreeMap<String, String>, schema: &Schema) -> Result<Self> {
        if schema.fields().is_empty() {
            return plan_err!("a topic has no schema: list the columns, CREATE EXTERNAL TABLE t (a DOUBLE, …) …");
        }
        let columns = Columns::try_new(Arc::new(schema.clone()))?;
        let mut options =
            options.into_iter().map(|(key, value)| Ok((key.clone(), resolve(&key, value)?))).collect::<Result<_>>()?;
        let format = Format::take(&mut options, &columns.values)?;
        let on_malformed = options.remove("malformed").unwrap_or_else(|| "fail".to_owned());
        let on_malformed = OnMalformed::parse("the option malformed", &on_malformed)?;
        let dead_letter_topic = options.remove("dead_letter_topic");
        let connection = Connection::try_new(location, options)?;
        let dead_letters = match (on_malformed, dead_letter_topic) {
            (OnMalformed::DeadLetter, Some(topic)) if topic == connection.topic => {
                return plan_err!("the option dead_letter_topic must differ from the topic of the table");
            }
            (OnMalformed::DeadLetter, Some(topic)) => Some(connection.to(&topic)?),
            (OnMalformed::DeadLetter, None) => {
                return plan_err!("malformed = 'dead_letter' requires the option dead_letter_topic");
            }
            (_, Some(_)) => return plan_err!("the option dead_letter_topic requires malformed = 'dead_letter'"),
            (_, None) => None,
        };
        Ok(Self { connection, columns, format, on_malformed, dead_letters })
    }

    /// A decoder of records into some of the columns.
    pub(crate) fn decoder(&self, projection: Option<&Vec<usize>>) -> Result<Decoder> {
        Ok(Decoder::new(self.format.clone(), &self.columns, self.columns.project(projection)?))
    }

    /// An encoder of rows into records.
    pub(crate) fn encoder(&self) -> Result<Encoder> {
        Encoder::try_new(self.format.clone(), self.columns.clone())
    }

    /// Whether a pipeline must read the headers of records.
    pub(crate) fn with_headers(&self) -> bool {
        self.columns.has("_headers") || self.dead_letters.is_some()
    }
}

#[async_trait]
impl TableProvider for KafkaTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.columns.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let (table, decoder) = (self.clone(), self.decoder(projection)?);
        let scan = TopicScan { table, decoder, batch_rows: state.config().batch_size(), limit };
        Ok(Arc::new(ScanExec::new(scan, 1)))
    }

    async fn insert_into(
        &self,
        _: &dyn Session,
        input: Arc<dyn ExecutionPlan>,
        insert_op: InsertOp,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if insert_op != InsertOp::Append {
            return plan_err!(
                "{}: records of a topic cannot be replaced; use INSERT INTO to add records",
                self.connection
            );
        }
        let sink = KafkaSink::new(self.connection.clone(), self.encoder()?, Arc::clone(&self.columns.schema));
        Ok(Arc::new(DataSinkExec::new(input, Arc::new(sink), None)))
    }
}

/// Creates tables over topics, for `CREATE EXTERNAL TABLE … STORED AS KAFKA`.
///
/// [`with_pipelines`](crate::SessionStateBuilderExt::with_pipelines) registers it in a session under the name `KAFKA`.
/// Creating a table connects to no broker.
#[derive(Debug)]
pub struct KafkaTables;

#[async_trait]
impl TableProviderFactory for KafkaTables {
    async fn create(&self, _: &dyn Session, statement: &CreateExternalTable) -> Result<Arc<dyn TableProvider>> {
        let what = format!("CREATE EXTERNAL TABLE {}", statement.name);
        let table = || {
            let [location] = statement.locations.as_slice() else {
                return plan_err!("expected one LOCATION; found {}", statement.locations.len());
            };
            if !statement.table_partition_cols.is_empty() || !statement.order_exprs.is_empty() {
                return plan_err!("PARTITIONED BY and WITH ORDER are not supported for topics; remove them");
            }
            // the planner adds this prefix to names without a dot
            let option = |key: &String| key.strip_prefix("format.").unwrap_or(key).to_owned();
            let options = statement.options.iter().map(|(key, value)| (option(key), value.clone())).collect();
            KafkaTable::try_new(location, options, statement.schema.as_arrow())
        };
        table().map(|table| Arc::new(table) as _).map_err(|e| aefusion_udfs::explain(what, e))
    }
}
