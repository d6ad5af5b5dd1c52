//! Plans as messages of `datafusion-proto`, for other processes that run the same model files.

use std::sync::Arc;

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use datafusion::common::{TableReference, internal_err, plan_err};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::logical_expr::{AggregateUDF, Extension, LogicalPlan, ScalarUDF, WindowUDF};
use datafusion::physical_plan::{ExecutionPlan, PhysicalExpr};
use datafusion_proto::logical_plan::{
    DefaultLogicalExtensionCodec, LogicalExtensionCodec, from_proto::parse_exprs, to_proto::serialize_exprs,
};
use datafusion_proto::physical_plan::{
    DefaultPhysicalExtensionCodec, PhysicalExtensionCodec, PhysicalPlanDecodeContext, PhysicalProtoConverterExtension,
};
use datafusion_proto::protobuf::{LogicalExprNode, PhysicalExprNode};
use prost::Message;

use super::exec::InferExec;
use super::node::Infer;
use super::{Job, Output};
use crate::blocking::wait;
use crate::catalog::Models;
use crate::config::AeOptions;
use crate::functions::{self, Bound, Function, ModelFunction};
use crate::model::Model;
use crate::model::file::hex;
use crate::store::{ModelName, ModelRef};

/// First bytes of a message. Messages of other codecs do not start with them.
const MAGIC: &[u8] = b"aefusion-infer-2:";

/// A model file. The receiver finds it by name and version in its own store, and refuses another checksum.
#[derive(Clone, PartialEq, Message)]
struct ModelMessage {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint64, tag = "2")]
    version: u64,
    #[prost(bytes = "vec", tag = "3")]
    sha256: Vec<u8>,
}

/// A bound call.
#[derive(Clone, PartialEq, Message)]
struct FunctionMessage {
    #[prost(message, optional, tag = "1")]
    model: Option<ModelMessage>,
    /// Whether the first argument names the model.
    #[prost(bool, tag = "2")]
    is_named: bool,
}

#[derive(Clone, PartialEq, Message)]
struct OutputMessage {
    #[prost(string, tag = "1")]
    function: String,
    #[prost(string, tag = "2")]
    column: String,
}

#[derive(Clone, PartialEq, Message)]
struct InferMessage {
    #[prost(message, optional, tag = "1")]
    model: Option<ModelMessage>,
    #[prost(message, repeated, tag = "2")]
    outputs: Vec<OutputMessage>,
    /// Features of a logical node.
    #[prost(message, repeated, tag = "3")]
    features: Vec<LogicalExprNode>,
    /// Features of a physical node.
    #[prost(message, repeated, tag = "4")]
    physical_features: Vec<PhysicalExprNode>,
    #[prost(uint64, optional, tag = "5")]
    block_rows: Option<u64>,
}

/// Encodes and decodes `Infer` nodes and the `ae_*` functions for `datafusion-proto`.
///
/// A message holds name, version and SHA-256 of a model. The receiver takes the model from its own [`Models`], and
/// refuses a file with another checksum. Everything else goes to other [codecs](InferCodec::with_codecs), by default
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

    fn encode_function(&self, node: &ScalarUDF, buf: &mut Vec<u8>) -> bool {
        let function = node.inner().downcast_ref::<ModelFunction>();
        let Some(bound) = function.and_then(ModelFunction::bound) else { return false };
        write(&FunctionMessage { model: Some(model_message(&bound.model)), is_named: bound.is_named }, buf);
        true
    }

    fn decode_function(&self, name: &str, buf: &[u8]) -> Result<Option<Arc<ScalarUDF>>> {
        let Some(message) = read::<FunctionMessage>(buf)? else { return Ok(None) };
        let bound = Bound { model: self.model(message.model.as_ref())?, is_named: message.is_named };
        let function = ModelFunction::new(function(name)?, self.models.clone(), AeOptions::default());
        Ok(Some(Arc::new(function.bind(bound).into_udf())))
    }
}

fn function(name: &str) -> Result<Arc<dyn Function>> {
    match functions::all().into_iter().find(|function| function.name() == name) {
        Some(function) => Ok(function),
        None => plan_err!("this version of aefusion has no function {name}"),
    }
}

fn model_message(model: &Model) -> ModelMessage {
    ModelMessage { name: model.name().to_owned(), version: model.version(), sha256: model.sha256().to_vec() }
}

fn infer_message(job: &Job) -> InferMessage {
    let output =
        |output: &Output| OutputMessage { function: output.function.name().to_owned(), column: output.name.clone() };
    InferMessage {
        model: Some(model_message(&job.model)),
        outputs: job.outputs.iter().map(output).collect(),
        ..InferMessage::default()
    }
}

fn write(message: &impl Message, buf: &mut Vec<u8>) {
    buf.extend_from_slice(MAGIC);
    buf.extend(message.encode_to_vec());
}

/// Decodes a message; none if another codec wrote it.
fn read<M: Message + Default>(buf: &[u8]) -> Result<Option<M>> {
    match buf.strip_prefix(MAGIC) {
        Some(bytes) => M::decode(bytes).map(Some).map_err(|e| DataFusionError::External(e.into())),
        None => Ok(None),
    }
}

impl LogicalExtensionCodec for InferCodec {
    fn try_decode(&self, buf: &[u8], inputs: &[LogicalPlan], ctx: &TaskContext) -> Result<Extension> {
        let Some(message) = read::<InferMessage>(buf)? else { return self.logical.try_decode(buf, inputs, ctx) };
        let [input] = inputs else { return internal_err!("Infer has one input") };
        let features = parse_exprs(&message.features, ctx, self).map_err(|e| DataFusionError::External(Box::new(e)))?;
        let node = Infer::new(input.clone(), features, self.job(&message)?)?;
        Ok(Extension { node: Arc::new(node) })
    }

    fn try_encode(&self, node: &Extension, buf: &mut Vec<u8>) -> Result<()> {
        let Some(infer) = node.node.as_any().downcast_ref::<Infer>() else {
            return self.logical.try_encode(node, buf);
        };
        let features = serialize_exprs(infer.features(), self).map_err(|e| DataFusionError::External(Box::new(e)))?;
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
        self.logical.try_decode_table_provider(buf, table_ref, schema, ctx)
    }

    fn try_encode_table_provider(
        &self,
        table_ref: &TableReference,
        node: Arc<dyn TableProvider>,
        buf: &mut Vec<u8>,
    ) -> Result<()> {
        self.logical.try_encode_table_provider(table_ref, node, buf)
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
        match self.encode_function(node, buf) {
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
        let Some(message) = read::<InferMessage>(buf)? else {
            return self.physical.try_decode(buf, inputs, ctx, converter);
        };
        let [input] = inputs else { return internal_err!("InferExec has one input") };
        let context = PhysicalPlanDecodeContext::new(ctx, self);
        let feature = |feature| converter.proto_to_physical_expr(feature, &input.schema(), &context);
        let features = message.physical_features.iter().map(feature).collect::<Result<Vec<Arc<dyn PhysicalExpr>>>>()?;
        let block_rows = message.block_rows.map(usize::try_from).transpose();
        let block_rows = block_rows.map_err(|e| DataFusionError::External(e.into()))?;
        Ok(Arc::new(InferExec::try_new(Arc::clone(input), features, self.job(&message)?, block_rows)?))
    }

    fn try_encode(
        &self,
        node: Arc<dyn ExecutionPlan>,
        buf: &mut Vec<u8>,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<()> {
        let Some(infer) = node.downcast_ref::<InferExec>() else {
            return self.physical.try_encode(node, buf, converter);
        };
        let feature = |feature| converter.physical_expr_to_proto(feature, self);
        let physical_features = infer.features().iter().map(feature).collect::<Result<Vec<_>>>()?;
        let block_rows = infer.block_rows().map(|rows| rows as u64);
        write(&InferMessage { physical_features, block_rows, ..infer_message(infer.job()) }, buf);
        Ok(())
    }

    fn try_decode_udf(&self, name: &str, buf: &[u8]) -> Result<Arc<ScalarUDF>> {
        match self.decode_function(name, buf)? {
            Some(function) => Ok(function),
            None => self.physical.try_decode_udf(name, buf),
        }
    }

    fn try_encode_udf(&self, node: &ScalarUDF, buf: &mut Vec<u8>) -> Result<()> {
        match self.encode_function(node, buf) {
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
