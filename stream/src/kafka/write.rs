//! A topic as the target of a single statement `INSERT INTO t SELECT …`, outside of pipelines.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::runtime::SpawnedTask;
use datafusion::datasource::sink::DataSink;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::{DisplayAs, DisplayFormatType};
use futures::StreamExt;

use super::{Connection, Producer};
use crate::failure::Failure;
use crate::format::Encoder;
use crate::stop::StopHandle;

/// Writes rows to a topic. Rows that were written before an error stay in the topic.
#[derive(Debug)]
pub(crate) struct KafkaSink {
    connection: Connection,
    encoder: Encoder,
    schema: SchemaRef,
}

impl KafkaSink {
    pub(crate) fn new(connection: Connection, encoder: Encoder, schema: SchemaRef) -> Self {
        Self { connection, encoder, schema }
    }
}

impl DisplayAs for KafkaSink {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KafkaSink({})", self.connection)
    }
}

#[async_trait]
impl DataSink for KafkaSink {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    async fn write_all(&self, mut data: SendableRecordBatchStream, _: &Arc<TaskContext>) -> Result<u64> {
        let connection = self.connection.clone();
        let mut producer = blocking(move || Producer::idempotent(&connection, StopHandle::default())).await?;
        let mut rows = 0;
        while let Some(batch) = data.next().await.transpose()? {
            let records = self.encoder.encode(&batch)?;
            let topic = self.connection.topic.clone();
            producer = blocking(move || producer.send(&topic, &records).map(|()| producer)).await?;
            rows += batch.num_rows() as u64;
        }
        blocking(move || producer.flush()).await?;
        Ok(rows)
    }
}

async fn blocking<T: Send + 'static>(f: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T> {
    let done = SpawnedTask::spawn_blocking(f).join_unwind().await;
    done.map_err(|e| DataFusionError::External(Box::new(e)))?.map_err(Failure::into_error)
}
