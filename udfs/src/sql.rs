//! The statements about models, in addition to those of DataFusion.

mod dropped;
mod factory;
mod handler;
mod options;
mod parser;
mod trainer;

use async_trait::async_trait;
use datafusion::error::Result;
use datafusion::prelude::{DataFrame, SessionContext};
use datafusion::sql::parser::Statement as DataFusionStatement;
use datafusion::sql::sqlparser::ast::Query;

use crate::store::ModelRef;

pub(crate) use factory::OnnxFunctions;
pub use handler::execute;
pub use options::{OptionValue, Options};
pub use parser::parse;
pub use trainer::{AfterPublication, Trainer, TrainerHandle, TrainingJob};

/// A statement of DataFusion or about models.
#[derive(Debug, Clone)]
pub enum Statement {
    /// A statement of DataFusion.
    DataFusion(Box<DataFusionStatement>),
    /// `CREATE [OR REPLACE] MODEL [IF NOT EXISTS] name [OPTIONS (…)] [AS query]`
    CreateModel(CreateModel),
    /// `DROP MODEL [IF EXISTS] name[@version]`
    DropModel {
        /// The model, with all its versions, or one version.
        model: ModelRef,
        /// Whether the model may be missing.
        if_exists: bool,
    },
    /// `SHOW MODELS`
    ShowModels,
    /// `DESCRIBE MODEL name[@version]`
    DescribeModel(ModelRef),
    /// `ALTER MODEL name SET OPTIONS (…)`
    AlterModel {
        /// The model. The statement writes its next version.
        model: ModelRef,
        /// The options to change.
        options: Options,
    },
    /// `EXPORT MODEL name[@version] TO 'path or URL'`
    ExportModel {
        /// The model.
        model: ModelRef,
        /// Path or URL of the copy.
        to: String,
    },
}

/// `CREATE MODEL`.
#[derive(Debug, Clone)]
pub struct CreateModel {
    /// The name, without a version.
    pub model: ModelRef,
    /// Whether the statement may write the next version of an existing name.
    pub or_replace: bool,
    /// Whether the statement does nothing if the name exists.
    pub if_not_exists: bool,
    /// The options in `OPTIONS (…)`.
    pub options: Options,
    /// The query after `AS`.
    pub query: Option<Box<Query>>,
}

/// [`SessionContext::sql`] with the statements about models.
///
/// Pass only text that you trust. For other text, use DataFusion's own method with options that refuse all statements
/// but queries:
///
/// ```
/// # use datafusion::prelude::{SQLOptions, SessionContext};
/// # async fn run(session: &SessionContext, text: &str) -> datafusion::error::Result<()> {
/// let options = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
/// let rows = session.sql_with_options(text, options).await?;
/// # rows.show().await
/// # }
/// ```
#[async_trait]
pub trait SessionContextExt {
    /// Runs one statement of any kind.
    ///
    /// # Errors
    /// The errors of [`SessionContext::sql`], and planning errors of the statements about models.
    async fn ae_sql(&self, sql: &str) -> Result<DataFrame>;
}

#[async_trait]
impl SessionContextExt for SessionContext {
    async fn ae_sql(&self, sql: &str) -> Result<DataFrame> {
        let mut statements = parse(self, sql)?;
        match (statements.pop(), statements.is_empty()) {
            (Some(statement), true) => execute(self, statement).await,
            (None, _) => datafusion::common::plan_err!("no statement was given"),
            _ => {
                datafusion::common::plan_err!(
                    "expected one statement, found several; split them with aefusion_udfs::sql::parse"
                )
            }
        }
    }
}
