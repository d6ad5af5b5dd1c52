//! The table factory of a build without the feature `kafka`.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider, TableProviderFactory};
use datafusion::common::not_impl_err;
use datafusion::error::Result;
use datafusion::logical_expr::CreateExternalTable;

/// Refuses tables that are `STORED AS KAFKA`, because this build lacks the cargo feature `kafka`.
#[derive(Debug)]
pub struct KafkaTables;

#[async_trait]
impl TableProviderFactory for KafkaTables {
    async fn create(&self, _: &dyn Session, statement: &CreateExternalTable) -> Result<Arc<dyn TableProvider>> {
        not_impl_err!(
            "CREATE EXTERNAL TABLE {}: this build does not support Kafka; build it with the cargo feature kafka to \
             read and write topics",
            statement.name
        )
    }
}
