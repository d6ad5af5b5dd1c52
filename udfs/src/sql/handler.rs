//! Runs the statements about models.

use std::sync::Arc;

use bytes::Bytes;
use datafusion::arrow::array::{ArrayRef, RecordBatch, StringArray, UInt64Array};
use datafusion::common::plan_err;
use datafusion::error::Result;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::{ExecutionPlanProperties, execute_stream};
use datafusion::prelude::{DataFrame, SessionContext};
use datafusion::sql::parser::Statement as DataFusionStatement;
use datafusion::sql::sqlparser::ast::{Query, Statement as SqlStatement};
use futures::StreamExt;

use super::{AfterPublication, CreateModel, OptionValue, Options, Statement, TrainerHandle, TrainingJob};
use crate::bind::bind_prepared;
use crate::blocking::offload;
use crate::catalog::Models;
use crate::choice::Choice;
use crate::config::AeOptions;
use crate::explain::explain;
use crate::model::calibration::Errors;
use crate::model::describe::{calibrated, feature_names};
use crate::model::metadata::{Feature, Metadata, Role, RowMode, parse_contamination};
use crate::model::registration::{Registration, Source, verified};
use crate::model::{Limits, Model, Trial};
use crate::store::{ModelName, ModelRef, Outcome, Publish, read, write_new};
use crate::suggest;
use crate::tables::ModelsTable;

/// Options that describe the contract of a file.
const CONTRACT_OPTIONS: [&str; 13] = [
    "input_cols",
    "code",
    "reconstruction",
    "scaled",
    "scaled_reconstruction",
    "logits",
    "scaled_features",
    "reconstruction_features",
    "error_metric",
    "null_policy",
    "rows",
    "random",
    "contamination",
];

/// Types of models that `CREATE MODEL` creates. All but the first are trained.
const MODEL_TYPES: [&str; 3] = ["onnx", "autoencoder", "classifier"];

/// Runs a statement. A statement about models returns rows with its result.
///
/// # Errors
/// A planning error if the statement is invalid, an execution error if a file cannot be read or written.
pub async fn execute(session: &SessionContext, statement: Statement) -> Result<DataFrame> {
    match statement {
        Statement::DataFusion(statement) => {
            let state = session.state();
            let plan = bind_prepared(state.statement_to_plan(*statement).await?, state.config_options())?;
            session.execute_logical_plan(plan).await
        }
        statement => Handler::new(session)?.execute(statement).await,
    }
}

struct Handler<'a> {
    session: &'a SessionContext,
    models: Arc<Models>,
    limits: Limits,
}

impl<'a> Handler<'a> {
    fn new(session: &'a SessionContext) -> Result<Self> {
        let state = session.state();
        let limits = AeOptions::of(state.config_options()).limits();
        Ok(Self { session, models: Models::of(state.config())?, limits })
    }

    async fn execute(&self, statement: Statement) -> Result<DataFrame> {
        match statement {
            Statement::CreateModel(create) => {
                let name = create.model.to_string();
                self.create(create).await.map_err(|e| explain(format!("CREATE MODEL {name}"), e))
            }
            Statement::DropModel { model, if_exists } => self.drop(&model, if_exists).await,
            Statement::ShowModels => self.session.read_table(Arc::new(ModelsTable::of(&self.models))),
            Statement::DescribeModel(model) => {
                self.describe(&model).await.map_err(|e| explain(format!("DESCRIBE MODEL {model}"), e))
            }
            Statement::AlterModel { model, options } => {
                self.alter(&model, options).await.map_err(|e| explain(format!("ALTER MODEL {model}"), e))
            }
            Statement::ExportModel { model, to } => {
                self.export(&model, &to).await.map_err(|e| explain(format!("EXPORT MODEL {model}"), e))
            }
            Statement::DataFusion(statement) => plan_err!("not a statement about models: {statement}"),
        }
    }

    async fn create(&self, create: CreateModel) -> Result<DataFrame> {
        let name = &create.model.name;
        self.models.store().check_name(name)?;
        let newest = self.models.newest(name).await?;
        if newest > 0 && create.if_not_exists {
            return self.found(&create.model).await;
        }
        self.models.check_not_of_session(name)?;
        if newest > 0 && !create.or_replace {
            return plan_err!("it exists already; CREATE OR REPLACE MODEL {name} … publishes its next version");
        }
        let mode = match (create.or_replace, create.options.get("warm_start")) {
            (false, _) => Publish::New,
            (true, Some(OptionValue::Boolean(true))) if newest > 0 => Publish::After(newest),
            (true, _) => Publish::NextVersion,
        };
        let mut options = create.options;
        let model_type = match options.take_text("model_type")? {
            Some(model_type) => model_type.to_lowercase(),
            None if options.contains("model_path") || options.contains("encoder_path") => "onnx".to_owned(),
            None => "autoencoder".to_owned(),
        };
        let after_publication = AfterPublication::default();
        let model = match (model_type.as_str(), create.query) {
            ("onnx", query) => self.import_file(name, options, query).await?,
            (other, _) if !MODEL_TYPES.contains(&other) => {
                return plan_err!(
                    "unknown model_type '{other}'{}; the types are {}",
                    suggest::hint(other, MODEL_TYPES),
                    MODEL_TYPES.join(", ")
                );
            }
            (_, Some(query)) => self.train(&create.model, model_type, options, query, &after_publication).await?,
            (_, None) => {
                options.finish(&import_options())?;
                return plan_err!(
                    "a model of type '{model_type}' is trained from the rows of a query (… AS SELECT …); register an \
                     existing file with OPTIONS (model_type = 'onnx', model_path = '…')"
                );
            }
        };
        match self.models.publish(name, &model, mode).await? {
            Outcome::Published(version) => {
                after_publication.run();
                self.published(version, &model)
            }
            // another statement published it in the meantime
            Outcome::Refused { .. } if create.if_not_exists => self.found(&create.model).await,
            Outcome::Refused { newest } => Err(mode.refusal(name, newest)),
        }
    }

    async fn import_file(
        &self,
        name: &ModelName,
        mut options: Options,
        query: Option<Box<Query>>,
    ) -> Result<Arc<Model>> {
        let path = options.take_text("model_path")?;
        let pair = (options.take_text("encoder_path")?, options.take_text("decoder_path")?);
        let mut metadata = take_metadata(&mut options)?;
        options.finish(&import_options())?;
        let rows = match query {
            Some(query) => Some(self.session.execute_logical_plan(self.plan(query).await?).await?),
            None => None,
        };
        let file = match &path {
            Some(path) => Some((path, self.read(path).await?)),
            None => None,
        };
        let rows = match (rows, &file) {
            // `describe` below reports a file that cannot be read
            (Some(rows), Some((_, file))) => {
                Some(in_order_of(&feature_names(file, &self.limits).unwrap_or_default(), rows)?)
            }
            (rows, _) => rows,
        };
        if let Some(rows) = &rows
            && metadata.features.replace(features_of(rows)).is_some()
        {
            return plan_err!("set input_cols or use AS SELECT, not both: each names the inputs");
        }
        let model = match (file, pair) {
            (Some((path, file)), (None, None)) => {
                let model = self.try_file(name, file.into(), metadata).await;
                model.map_err(|e| explain(format!("'{path}'"), e))?
            }
            (None, (Some(encoder), Some(decoder))) => {
                let (encoder, decoder) = (self.read(&encoder).await?, self.read(&decoder).await?);
                self.try_file(name, Source::Pair { encoder, decoder }, metadata).await?
            }
            _ => return plan_err!("set the option model_path, or both encoder_path and decoder_path"),
        };
        match rows {
            None => Ok(model),
            Some(rows) => self.calibrated(name, model, rows).await,
        }
    }

    async fn try_file(&self, name: &ModelName, source: Source, options: Metadata) -> Result<Arc<Model>> {
        let registration = Registration { name: name.clone(), version: 0, source, options, limits: self.limits };
        self.models.try_file(registration).await
    }

    /// The model with the errors of rows as its calibration. Only the user knows whether the model was trained on these
    /// rows.
    async fn calibrated(&self, name: &ModelName, model: Arc<Model>, rows: DataFrame) -> Result<Arc<Model>> {
        if model.contract().require_error().is_err() {
            return Ok(model);
        }
        let trial = Arc::new(Trial::from(Arc::clone(&model)));
        let context = Arc::new(rows.task_ctx());
        let plan = rows.create_physical_plan().await?;
        if plan.boundedness().is_unbounded() {
            return plan_err!("the rows to calibrate on have no end; add a LIMIT to the query");
        }
        let (mut rows, mut errors) = (execute_stream(plan, context)?, Errors::default());
        while let Some(batch) = rows.next().await {
            let (trial, batch) = (Arc::clone(&trial), batch?);
            let append = move || errors.append(trial.errors(batch.columns())?.iter().flatten()).map(|()| errors);
            errors = offload(append).await?;
        }
        // a query without rows only names the inputs
        if errors.is_empty() {
            return Ok(model);
        }
        let (name, limits) = (name.clone(), self.limits);
        let calibrate = move || {
            let file = calibrated(model.file(), errors.calibration()?)?;
            Model::load(&name, 0, file, &limits).map(Arc::new)
        };
        offload(calibrate).await
    }

    async fn read(&self, location: &str) -> Result<Bytes> {
        read(&self.session.runtime_env(), location, &self.limits).await
    }

    async fn plan(&self, query: Box<Query>) -> Result<LogicalPlan> {
        let statement = DataFusionStatement::Statement(Box::new(SqlStatement::Query(query)));
        self.session.state().statement_to_plan(statement).await
    }

    async fn train(
        &self,
        model: &ModelRef,
        model_type: String,
        mut options: Options,
        query: Box<Query>,
        after_publication: &AfterPublication,
    ) -> Result<Arc<Model>> {
        let Some(trainer) = self.session.state().config().get_extension::<TrainerHandle>() else {
            return plan_err!(
                "this session has no trainer and cannot train from a query; register an existing file with \
                 OPTIONS (model_type = 'onnx', model_path = '…')"
            );
        };
        options.insert("model_type".to_owned(), OptionValue::Text(model_type))?;
        let rows = self.session.execute_logical_plan(self.plan(query).await?).await?;
        let after_publication = after_publication.clone();
        let job = TrainingJob { name: model.name.clone(), options, rows, after_publication };
        let file = trainer.0.train(self.session, job).await?;
        let (name, limits) = (model.name.clone(), self.limits);
        offload(move || verified(&name, 0, file, &limits).map(Arc::new)).await
    }

    async fn drop(&self, model: &ModelRef, if_exists: bool) -> Result<DataFrame> {
        let removed = self.models.remove(model).await?;
        if removed == 0 && !if_exists {
            // this error lists similar names
            self.models.find(model, &self.limits).await.map_err(|e| explain(format!("DROP MODEL {model}"), e))?;
        }
        self.row(vec![("model", text(model.to_string())), ("versions_removed", number(removed))])
    }

    async fn alter(&self, model: &ModelRef, mut options: Options) -> Result<DataFrame> {
        self.models.check_not_of_session(&model.name)?;
        self.models.newest(&model.name).await?;
        let found = self.models.find(model, &self.limits).await?;
        let metadata = take_metadata(&mut options)?;
        options.finish(&CONTRACT_OPTIONS)?;
        if metadata == Metadata::default() {
            return plan_err!("no option is set; the options are {}", CONTRACT_OPTIONS.join(", "));
        }
        let altered = self.try_file(&model.name, found.file().bytes().into(), metadata).await?;
        let mode = Publish::After(found.version());
        match self.models.publish(&model.name, &altered, mode).await? {
            Outcome::Published(version) => self.published(version, &altered),
            Outcome::Refused { newest } => Err(mode.refusal(&model.name, newest)),
        }
    }

    async fn export(&self, model: &ModelRef, to: &str) -> Result<DataFrame> {
        let found = self.models.find(model, &self.limits).await?;
        write_new(&self.session.runtime_env(), to, found.file().bytes()).await?;
        self.row(vec![
            ("model", text(found.to_string())),
            ("path", text(to.to_owned())),
            ("size_bytes", number(found.file().size())),
            ("sha256", text(found.sha256_hex())),
        ])
    }

    /// The answer of a statement about a model that exists.
    async fn found(&self, model: &ModelRef) -> Result<DataFrame> {
        let found = self.models.find(model, &self.limits).await?;
        self.published(found.version(), &found)
    }

    /// The answer of a statement that published a version.
    fn published(&self, version: u64, model: &Model) -> Result<DataFrame> {
        let contract = model.contract();
        let code = contract.tensor(Role::Code).map(|code| code.width() as u64);
        self.row(vec![
            ("model", text(format!("{}@{version}", model.name()))),
            ("features", number(contract.features.len())),
            ("code", Arc::new(UInt64Array::from(vec![code]))),
            ("sha256", text(model.sha256_hex())),
        ])
    }

    async fn describe(&self, model: &ModelRef) -> Result<DataFrame> {
        let found = self.models.find(model, &self.limits).await?;
        let properties = properties(&found);
        let (names, values): (Vec<_>, Vec<_>) = properties.into_iter().unzip();
        self.row(vec![("property", Arc::new(StringArray::from(names))), ("value", Arc::new(StringArray::from(values)))])
    }

    fn row(&self, columns: Vec<(&str, ArrayRef)>) -> Result<DataFrame> {
        self.session.read_batch(RecordBatch::try_from_iter(columns)?)
    }
}

/// The columns in the order of a file, if the file names exactly these.
fn in_order_of(features: &[String], rows: DataFrame) -> Result<DataFrame> {
    let columns: Vec<&String> = rows.schema().fields().iter().map(|field| field.name()).collect();
    let is_another_order = columns.len() == features.len()
        && columns.iter().all(|column| features.contains(column))
        && !columns.iter().zip(features).all(|(column, feature)| *column == feature);
    if !is_another_order {
        return Ok(rows);
    }
    let columns = features.iter().map(datafusion::logical_expr::ident);
    rows.select(columns)
}

/// The columns of a query as features: names and types.
fn features_of(rows: &DataFrame) -> Vec<Feature> {
    let feature = |field: &Arc<datafusion::arrow::datatypes::Field>| Feature {
        type_name: Some(field.data_type().to_string()),
        ..Feature::named(field.name())
    };
    rows.schema().fields().iter().map(feature).collect()
}

fn properties(model: &Model) -> Vec<(String, String)> {
    let contract = model.contract();
    let names: Vec<&str> = contract.features.iter().map(|feature| feature.name.as_str()).collect();
    let inputs: Vec<String> = contract.inputs.iter().map(ToString::to_string).collect();
    let mut properties = vec![
        ("model", model.to_string()),
        ("sha256", model.sha256_hex()),
        ("size_bytes", model.file().size().to_string()),
        ("producer", model.producer()),
        ("inputs", inputs.join(", ")),
        ("features", format!("{}: {}", names.len(), names.join(", "))),
    ];
    for role in Role::ALL {
        properties.push((role.name(), contract.found(role).to_string()));
    }
    properties.push(("decoder", contract.decoder().to_string()));
    properties.push(("error_metric", contract.error_metric.name().to_owned()));
    properties.push(("null_policy", contract.null_policy.name().to_owned()));
    if let Some(contamination) = contract.contamination {
        properties.push(("contamination", contamination.to_string()));
    }
    if contract.row_mode != RowMode::Together {
        properties.push(("rows", contract.row_mode.name().to_owned()));
    }
    if let Some(rows) = contract.fixed_rows.filter(|_| contract.row_mode == RowMode::Together) {
        properties.push(("fixed_batch", rows.to_string()));
    }
    let metadata = model.metadata();
    if let Some(random) = metadata.random {
        properties.push(("random", random.name().to_owned()));
    }
    if let Some(calibration) = &metadata.calibration {
        properties.push(("calibration_rows", calibration.rows.to_string()));
        properties.push(("smallest_p_value", calibration.smallest_p_value().to_string()));
        if let Some(threshold) = contract.contamination.and_then(|share| calibration.threshold(share)) {
            properties.push(("threshold", threshold.to_string()));
        }
    }
    if let Some(classes) = &metadata.classes {
        properties.push(("classes", format!("{}: {}", classes.column, classes.labels.join(", "))));
    }
    let own = |(name, value): (&str, String)| (name.to_owned(), value);
    let mut properties: Vec<(String, String)> = properties.into_iter().map(own).collect();
    if let Some(training) = &metadata.training {
        // these are listed above, and ALTER MODEL may have changed them
        let is_listed = |name: &str| {
            ["threshold", "calibration_rows", "calibration_rows_wanted", "smallest_p_value", "contamination"]
                .contains(&name)
        };
        let recorded = training.summary.iter().chain(&training.options).filter(|(name, _)| !is_listed(name));
        properties.extend(recorded.map(|(name, value)| match value {
            serde_json::Value::String(text) => (format!("training.{name}"), text.clone()),
            other => (format!("training.{name}"), other.to_string()),
        }));
    }
    properties
}

/// Options for the registration of a file.
fn import_options() -> Vec<&'static str> {
    ["model_type", "model_path", "encoder_path", "decoder_path"].into_iter().chain(CONTRACT_OPTIONS).collect()
}

/// Takes the options that describe the contract of a file.
fn take_metadata(options: &mut Options) -> Result<Metadata> {
    let mut metadata = Metadata {
        features: options.take_texts("input_cols")?.map(|names| names.into_iter().map(Feature::named).collect()),
        scaled_features: options.take_texts("scaled_features")?,
        reconstruction_features: options.take_texts("reconstruction_features")?,
        error_metric: options.take_choice("error_metric")?,
        null_policy: options.take_choice("null_policy")?,
        rows: options.take_choice("rows")?,
        random: options.take_choice("random")?,
        contamination: options
            .take_number("contamination")?
            .map(|share| parse_contamination(&share.to_string()))
            .transpose()?,
        ..Metadata::default()
    };
    for role in Role::ALL {
        if let Some(OptionValue::List(_)) = options.get(role.name()) {
            metadata.heads.extend(options.take_texts(role.name())?.map(|tensors| (role, tensors)));
        } else if let Some(tensor) = options.take_text(role.name())? {
            metadata.tensors.insert(role, tensor);
        }
    }
    Ok(metadata)
}

fn text(value: String) -> ArrayRef {
    Arc::new(StringArray::from(vec![value]))
}

fn number(value: usize) -> ArrayRef {
    Arc::new(UInt64Array::from(vec![value as u64]))
}
