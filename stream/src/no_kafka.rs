//! What stands in for Kafka in a build without it.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider, TableProviderFactory};
use datafusion::common::not_impl_err;
use datafusion::error::Result;
use datafusion::logical_expr::CreateExternalTable;

/// Refuses tables that are `STORED AS KAFKA`.
#[derive(Debug)]
pub struct KafkaTables;

#[async_trait]
impl TableProviderFactory for KafkaTables {
    async fn create(&self, _: &dyn Session, statement: &CreateExternalTable) -> Result<Arc<dyn TableProvider>> {
        not_impl_err!(
            "{}: this build has no Kafka; build it with the cargo feature kafka to read and write topics",
            statement.name
        )
    }
}
