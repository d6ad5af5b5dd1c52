//! Topics and pipelines in a session.

use std::sync::Arc;

use datafusion::execution::SessionStateBuilder;

use crate::{KafkaTables, StreamOptions};

/// Adds topics and the settings of pipelines to a session that is being built.
pub trait SessionStateBuilderExt {
    /// Adds the settings `stream.…` and tables that are `STORED AS KAFKA`.
    ///
    /// Without the cargo feature `kafka`, a statement that creates such a table fails, and the error names the feature.
    #[must_use]
    fn with_pipelines(self) -> Self;
}

impl SessionStateBuilderExt for SessionStateBuilder {
    fn with_pipelines(mut self) -> Self {
        let config = self.config().get_or_insert_default();
        if config.options().extensions.get::<StreamOptions>().is_none() {
            config.options_mut().extensions.insert(StreamOptions::default());
        }
        self.with_table_factory("KAFKA".to_owned(), Arc::new(KafkaTables))
    }
}
