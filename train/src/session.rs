//! A trainer for a session that is being built.

use std::sync::Arc;

use aefusion_udfs::sql::TrainerHandle;
use datafusion::execution::SessionStateBuilder;

use crate::{SqlTrainer, Watch};

/// A trainer for a session that is being built.
pub trait SessionStateBuilderExt {
    /// Lets the session train models with `CREATE MODEL … AS SELECT`; `watch` receives the progress of all trainings.
    ///
    /// The session also needs the functions and the models of [`aefusion_udfs::SessionStateBuilderExt`]. Call
    /// `with_config` before this method, because the trainer is stored in the session's configuration.
    #[must_use]
    fn with_trainer(self, watch: Arc<dyn Watch>) -> Self;
}

impl SessionStateBuilderExt for SessionStateBuilder {
    fn with_trainer(mut self, watch: Arc<dyn Watch>) -> Self {
        let trainer = TrainerHandle(Arc::new(SqlTrainer::new(watch)));
        self.config().get_or_insert_default().set_extension(Arc::new(trainer));
        self
    }
}
