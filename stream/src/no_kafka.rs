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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use datafusion::execution::SessionStateBuilder;
    use datafusion::prelude::SessionContext;

    use crate::SessionStateBuilderExt;

    #[tokio::test]
    async fn topics_are_refused() {
        let state = SessionStateBuilder::new().with_default_features().with_pipelines().build();
        let table = "CREATE EXTERNAL TABLE t (a INT) STORED AS KAFKA LOCATION 'kafka://127.0.0.1:1/t'";
        let error = SessionContext::new_with_state(state).sql(table).await.unwrap_err().to_string();
        assert!(error.contains("build it with the cargo feature kafka"), "{error}");
    }
}
