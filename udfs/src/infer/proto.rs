//! Plans as messages of `datafusion-proto`, for other processes that run the same model files.

mod message;

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::common::{TableReference, internal_err, plan_err};
use datafusion::error::Result;
use datafusion::execution::TaskContext;
use datafusion::logical_expr::{AggregateUDF, Extension, LogicalPlan, ScalarUDF, WindowUDF};
use datafusion::physical_plan::{ExecutionPlan, PhysicalExpr};
use datafusion_proto::logical_plan::{
    DefaultLogicalExtensionCodec, LogicalExtensionCodec, from_proto::parse_exprs, to_proto::serialize_exprs,
};
use datafusion_proto::physical_plan::{
    DefaultPhysicalExtensionCodec, PhysicalExtensionCodec, PhysicalPlanDecodeContext, PhysicalProtoConverterExtension,
};
use datafusion_proto::protobuf::ArrowType;

use super::exec::InferExec;
use super::node::Infer;
use super::{Job, Output};
use crate::blocking::wait;
use crate::catalog::Models;
use crate::config::AeOptions;
use crate::functions::{self, Bound, Function, ModelFunction, OnnxFunction};
use crate::model::Model;
use crate::model::file::hex;
use crate::store::{ModelName, ModelRef};
use crate::tables::{ModelsExec, ModelsTable, Subject};
use message::{
    CreatedMessage, FunctionMessage, InferMessage, ModelMessage, Node, NodeMessage, OutputMessage, TableMessage,
    created_message, external, infer_message, model_message, read, table_message, write,
};

/// Encodes and decodes `Infer` nodes, the `ae_*` functions, tables about models and functions of `CREATE FUNCTION` for
/// `datafusion-proto`.
///
/// A message holds name, version and SHA-256 of a model. The receiver takes the model from its own [`Models`], and
/// refuses a file with another checksum. A function that was created from a file carries the file. Everything else goes to other [codecs](InferCodec::with_codecs), by default
/// those of DataFusion.
#[derive(Debug)]
pub struct InferCodec {
    models: Models,
    logical: Arc<dyn LogicalExtensionCodec>,
    physical: Arc<dyn PhysicalExtensionCodec>,
}

impl InferCodec {
    /// A codec over the models of this process.
    pub fn new(models: Models) -> Self {
        let (logical, physical) = (DefaultLogicalExtensionCodec {}, DefaultPhysicalExtensionCodec {});
        Self::with_codecs(models, Arc::new(logical), Arc::new(physical))
    }

    /// A codec that passes other nodes and functions to these codecs.
    pub fn with_codecs(
        models: Models,
        logical: Arc<dyn LogicalExtensionCodec>,
        physical: Arc<dyn PhysicalExtensionCodec>,
    ) -> Self {
        Self { models, logical, physical }
    }

    /// The model of a message.
    ///
    /// # Errors
    /// A planning error if it is not in the store of this process, or has another checksum.
    fn model(&self, message: Option<&ModelMessage>) -> Result<Arc<Model>> {
        let Some(message) = message else { return internal_err!("a message without a model") };
        let reference = ModelRef { name: ModelName::new(&message.name)?, version: Some(message.version) };
        let (models, limits) = (self.models.clone(), AeOptions::default().limits());
        let model = wait(async move { models.find(&reference, &limits).await })?;
        if model.sha256().as_slice() != message.sha256 {
            return plan_err!(
                "the plan was made with another file of model {model} than the one in {}: SHA-256 {} there, {} here; \
                 give both processes the same store",
                self.models.store().location(),
                hex(&message.sha256),
                model.sha256_hex()
            );
        }
        Ok(model)
    }

    fn job(&self, message: &InferMessage) -> Result<Job> {
        let model = self.model(message.model.as_ref())?;
        let output =
            |output: &OutputMessage| Ok(Output { function: function(&output.function)?, name: output.column.clone() });
        let outputs = message.outputs.iter().map(output).collect::<Result<Vec<_>>>()?;
        let Some(first) = outputs.first() else { return internal_err!("a message without outputs") };
        Ok(Job { model, start: first.function.start(), outputs })
    }

    /// Encodes a bound call or a function of `CREATE FUNCTION`; false for other functions.
    fn encode_function(&self, node: &ScalarUDF, buf: &mut Vec<u8>) -> Result<bool> {
        let inner = node.inner();
        let message = if let Some(bound) = inner.downcast_ref::<ModelFunction>().and_then(ModelFunction::bound) {
            let model = Some(model_message(&bound.model));
            FunctionMessage { model, is_named: bound.is_named, created: None }
        } else if let Some(created) = inner.downcast_ref::<OnnxFunction>() {
            FunctionMessage { created: Some(created_message(created)?), ..FunctionMessage::default() }
        } else {
            return Ok(false);
        };
        write(&message, buf);
        Ok(true)
    }

    fn decode_function(&self, name: &str, buf: &[u8]) -> Result<Option<Arc<ScalarUDF>>> {
        let Some(message) = read::<FunctionMessage>(buf)? else { return Ok(None) };
        if let Some(created) = message.created {
            return self.decode_created(name, created).map(Some);
        }
        let bound = Bound { model: self.model(message.model.as_ref())?, is_named: message.is_named };
        let function = ModelFunction::new(function(name)?, self.models.clone(), AeOptions::default());
        Ok(Some(Arc::new(function.bind(bound).into_udf())))
    }
}

impl InferCodec {
    fn decode_created(&self, name: &str, message: CreatedMessage) -> Result<Arc<ScalarUDF>> {
        let is_stored = message.model.is_some();
        let model = match message.file {
            Some(file) => {
                let (models, name, limits) =
                    (self.models.clone(), ModelName::new(name)?, AeOptions::default().limits());
                wait(async move { models.of_file(&name, file, &limits).await })?
            }
            None => self.model(message.model.as_ref())?,
        };
        let data_type = |data_type: &ArrowType| DataType::try_from(data_type).map_err(external);
        let arguments = message.arguments.iter().map(data_type).collect::<Result<Vec<_>>>()?;
        let Some(return_type) = &message.return_type else { return internal_err!("a function without a result") };
        let output = function(&message.output)?;
        let created =
            OnnxFunction::try_new(name.to_owned(), model, is_stored, output, arguments, data_type(return_type)?)?;
        Ok(Arc::new(ScalarUDF::new_from_impl(created)))
    }

    fn subject(&self, message: &TableMessage) -> Result<Subject> {
        let model = message.model.as_deref().map(ModelRef::parse).transpose()?;
        match message.function.as_str() {
            "ae_models" => Ok(Subject::Models),
            "ae_features" => Ok(Subject::Features(model)),
            "ae_training" => Ok(Subject::Training(model)),
            other => plan_err!("this version of aefusion has no function {other}"),
        }
    }

    fn decode_scan(&self, message: &TableMessage) -> Result<ModelsExec> {
        let number = |number: &u64| usize::try_from(*number).map_err(external);
        let columns = message.columns.iter().map(number).collect::<Result<Vec<_>>>()?;
        ModelsExec::try_new(
            &self.models,
            self.subject(message)?,
            columns,
            message.limit.as_ref().map(number).transpose()?,
        )
    }

    fn decode_infer(
        &self,
        message: &InferMessage,
        inputs: &[Arc<dyn ExecutionPlan>],
        ctx: &TaskContext,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<InferExec> {
        let [input] = inputs else { return internal_err!("InferExec has one input") };
        let context = PhysicalPlanDecodeContext::new(ctx, self);
        let feature = |feature| converter.proto_to_physical_expr(feature, &input.schema(), &context);
        let features = message.physical_features.iter().map(feature).collect::<Result<Vec<Arc<dyn PhysicalExpr>>>>()?;
        let block_rows = message.block_rows.map(usize::try_from).transpose().map_err(external)?;
        InferExec::try_new(Arc::clone(input), features, self.job(message)?, block_rows)
    }
}

fn function(name: &str) -> Result<Arc<dyn Function>> {
    match functions::all().into_iter().find(|function| function.name() == name) {
        Some(function) => Ok(function),
        None => plan_err!("this version of aefusion has no function {name}"),
    }
}

impl LogicalExtensionCodec for InferCodec {
    fn try_decode(&self, buf: &[u8], inputs: &[LogicalPlan], ctx: &TaskContext) -> Result<Extension> {
        let Some(message) = read::<InferMessage>(buf)? else { return self.logical.try_decode(buf, inputs, ctx) };
        let [input] = inputs else { return internal_err!("Infer has one input") };
        let features = parse_exprs(&message.features, ctx, self).map_err(external)?;
        let node = Infer::new(input.clone(), features, self.job(&message)?)?;
        Ok(Extension { node: Arc::new(node) })
    }

    fn try_encode(&self, node: &Extension, buf: &mut Vec<u8>) -> Result<()> {
        let Some(infer) = node.node.as_any().downcast_ref::<Infer>() else {
            return self.logical.try_encode(node, buf);
        };
        let features = serialize_exprs(infer.features(), self).map_err(external)?;
        write(&InferMessage { features, ..infer_message(infer.job()) }, buf);
        Ok(())
    }

    fn try_decode_table_provider(
        &self,
        buf: &[u8],
        table_ref: &TableReference,
        schema: SchemaRef,
        ctx: &TaskContext,
    ) -> Result<Arc<dyn TableProvider>> {
        match read::<TableMessage>(buf)? {
            Some(message) => Ok(Arc::new(ModelsTable::new(&self.models, self.subject(&message)?))),
            None => self.logical.try_decode_table_provider(buf, table_ref, schema, ctx),
        }
    }

    fn try_encode_table_provider(
        &self,
        table_ref: &TableReference,
        node: Arc<dyn TableProvider>,
        buf: &mut Vec<u8>,
    ) -> Result<()> {
        match node.downcast_ref::<ModelsTable>() {
            Some(table) => {
                write(&table_message(table.subject()), buf);
                Ok(())
            }
            None => self.logical.try_encode_table_provider(table_ref, node, buf),
        }
    }

    fn try_decode_file_format(
        &self,
        buf: &[u8],
        ctx: &TaskContext,
    ) -> Result<Arc<dyn datafusion::datasource::file_format::FileFormatFactory>> {
        self.logical.try_decode_file_format(buf, ctx)
    }

    fn try_encode_file_format(
        &self,
        buf: &mut Vec<u8>,
        node: Arc<dyn datafusion::datasource::file_format::FileFormatFactory>,
    ) -> Result<()> {
        self.logical.try_encode_file_format(buf, node)
    }

    fn try_decode_udf(&self, name: &str, buf: &[u8]) -> Result<Arc<ScalarUDF>> {
        match self.decode_function(name, buf)? {
            Some(function) => Ok(function),
            None => self.logical.try_decode_udf(name, buf),
        }
    }

    fn try_encode_udf(&self, node: &ScalarUDF, buf: &mut Vec<u8>) -> Result<()> {
        match self.encode_function(node, buf)? {
            true => Ok(()),
            false => self.logical.try_encode_udf(node, buf),
        }
    }

    fn try_decode_udaf(&self, name: &str, buf: &[u8]) -> Result<Arc<AggregateUDF>> {
        self.logical.try_decode_udaf(name, buf)
    }

    fn try_encode_udaf(&self, node: &AggregateUDF, buf: &mut Vec<u8>) -> Result<()> {
        self.logical.try_encode_udaf(node, buf)
    }

    fn try_decode_udwf(&self, name: &str, buf: &[u8]) -> Result<Arc<WindowUDF>> {
        self.logical.try_decode_udwf(name, buf)
    }

    fn try_encode_udwf(&self, node: &WindowUDF, buf: &mut Vec<u8>) -> Result<()> {
        self.logical.try_encode_udwf(node, buf)
    }
}

impl PhysicalExtensionCodec for InferCodec {
    fn try_decode(
        &self,
        buf: &[u8],
        inputs: &[Arc<dyn ExecutionPlan>],
        ctx: &TaskContext,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(message) = read::<NodeMessage>(buf)? else {
            return self.physical.try_decode(buf, inputs, ctx, converter);
        };
        match message.node {
            Some(Node::Infer(message)) => Ok(Arc::new(self.decode_infer(&message, inputs, ctx, converter)?)),
            Some(Node::Models(message)) => Ok(Arc::new(self.decode_scan(&message)?)),
            None => plan_err!("the plan was made by a newer version of aefusion"),
        }
    }

    fn try_encode(
        &self,
        node: Arc<dyn ExecutionPlan>,
        buf: &mut Vec<u8>,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<()> {
        if let Some(scan) = node.downcast_ref::<ModelsExec>() {
            let columns = scan.columns().iter().map(|column| *column as u64).collect();
            let limit = scan.fetch().map(|limit| limit as u64);
            let message = TableMessage { columns, limit, ..table_message(scan.subject()) };
            write(&NodeMessage { node: Some(Node::Models(message)) }, buf);
            return Ok(());
        }
        let Some(infer) = node.downcast_ref::<InferExec>() else {
            return self.physical.try_encode(node, buf, converter);
        };
        let feature = |feature| converter.physical_expr_to_proto(feature, self);
        let physical_features = infer.features().iter().map(feature).collect::<Result<Vec<_>>>()?;
        let block_rows = infer.block_rows().map(|rows| rows as u64);
        let message = InferMessage { physical_features, block_rows, ..infer_message(infer.job()) };
        write(&NodeMessage { node: Some(Node::Infer(message)) }, buf);
        Ok(())
    }

    fn try_decode_udf(&self, name: &str, buf: &[u8]) -> Result<Arc<ScalarUDF>> {
        match self.decode_function(name, buf)? {
            Some(function) => Ok(function),
            None => self.physical.try_decode_udf(name, buf),
        }
    }

    fn try_encode_udf(&self, node: &ScalarUDF, buf: &mut Vec<u8>) -> Result<()> {
        match self.encode_function(node, buf)? {
            true => Ok(()),
            false => self.physical.try_encode_udf(node, buf),
        }
    }

    fn try_decode_udaf(&self, name: &str, buf: &[u8]) -> Result<Arc<AggregateUDF>> {
        self.physical.try_decode_udaf(name, buf)
    }

    fn try_encode_udaf(&self, node: &AggregateUDF, buf: &mut Vec<u8>) -> Result<()> {
        self.physical.try_encode_udaf(node, buf)
    }

    fn try_decode_udwf(&self, name: &str, buf: &[u8]) -> Result<Arc<WindowUDF>> {
        self.physical.try_decode_udwf(name, buf)
    }

    fn try_encode_udwf(&self, node: &WindowUDF, buf: &mut Vec<u8>) -> Result<()> {
        self.physical.try_encode_udwf(node, buf)
    }
}
