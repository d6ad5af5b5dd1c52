//! The messages of plans across a wire.

use bytes::Bytes;
use datafusion::arrow::datatypes::DataType;
use datafusion::error::{DataFusionError, Result};
use datafusion_proto::protobuf::{ArrowType, LogicalExprNode, PhysicalExprNode};
use prost::{Message, Oneof};

use crate::functions::OnnxFunction;
use crate::infer::{Job, Output};
use crate::model::Model;
use crate::store::ModelRef;
use crate::tables::Subject;

/// First bytes of a message. Messages of other codecs do not start with them.
const MAGIC: &[u8] = b"aefusion-infer-3:";

/// A model file. The receiver finds it by name and version in its own store, and refuses another checksum.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ModelMessage {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(uint64, tag = "2")]
    pub(super) version: u64,
    #[prost(bytes = "vec", tag = "3")]
    pub(super) sha256: Vec<u8>,
}

/// A bound call.
#[derive(Clone, PartialEq, Message)]
pub(super) struct FunctionMessage {
    #[prost(message, optional, tag = "1")]
    pub(super) model: Option<ModelMessage>,
    /// Whether the first argument names the model.
    #[prost(bool, tag = "2")]
    pub(super) is_named: bool,
    /// A function of `CREATE FUNCTION`, instead of a bound call.
    #[prost(message, optional, tag = "3")]
    pub(super) created: Option<CreatedMessage>,
}

/// A function of `CREATE FUNCTION`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct CreatedMessage {
    /// The model in the store.
    #[prost(message, optional, tag = "1")]
    pub(super) model: Option<ModelMessage>,
    /// The model itself, if it is not in the store.
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub(super) file: Option<Bytes>,
    /// Name of the function with the same result.
    #[prost(string, tag = "3")]
    pub(super) output: String,
    #[prost(message, repeated, tag = "4")]
    pub(super) arguments: Vec<ArrowType>,
    #[prost(message, optional, tag = "5")]
    pub(super) return_type: Option<ArrowType>,
}

/// A table about models: the call of its function.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TableMessage {
    #[prost(string, tag = "1")]
    pub(super) function: String,
    /// None for the default model.
    #[prost(string, optional, tag = "2")]
    pub(super) model: Option<String>,
    /// Indices of the columns of a scan.
    #[prost(uint64, repeated, tag = "3")]
    pub(super) columns: Vec<u64>,
    #[prost(uint64, optional, tag = "4")]
    pub(super) limit: Option<u64>,
}

/// A physical node.
#[derive(Clone, PartialEq, Message)]
pub(super) struct NodeMessage {
    #[prost(oneof = "Node", tags = "1, 2")]
    pub(super) node: Option<Node>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum Node {
    #[prost(message, tag = "1")]
    Infer(InferMessage),
    #[prost(message, tag = "2")]
    Models(TableMessage),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct OutputMessage {
    #[prost(string, tag = "1")]
    pub(super) function: String,
    #[prost(string, tag = "2")]
    pub(super) column: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct InferMessage {
    #[prost(message, optional, tag = "1")]
    pub(super) model: Option<ModelMessage>,
    #[prost(message, repeated, tag = "2")]
    pub(super) outputs: Vec<OutputMessage>,
    /// Features of a logical node.
    #[prost(message, repeated, tag = "3")]
    pub(super) features: Vec<LogicalExprNode>,
    /// Features of a physical node.
    #[prost(message, repeated, tag = "4")]
    pub(super) physical_features: Vec<PhysicalExprNode>,
    #[prost(uint64, optional, tag = "5")]
    pub(super) block_rows: Option<u64>,
}

pub(super) fn created_message(created: &OnnxFunction) -> Result<CreatedMessage> {
    let data_type = |data_type: &DataType| ArrowType::try_from(data_type).map_err(external);
    let (model, file) = match created.is_stored {
        true => (Some(model_message(&created.model)), None),
        false => (None, Some(created.model.file().bytes())),
    };
    Ok(CreatedMessage {
        model,
        file,
        output: created.output.name().to_owned(),
        arguments: created.arguments.iter().map(data_type).collect::<Result<_>>()?,
        return_type: Some(data_type(&created.return_type)?),
    })
}

pub(super) fn table_message(subject: &Subject) -> TableMessage {
    let (function, model) = subject.call();
    TableMessage { function: function.to_owned(), model: model.map(ModelRef::to_string), ..TableMessage::default() }
}

pub(super) fn external(error: impl std::error::Error + Send + Sync + 'static) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

pub(super) fn model_message(model: &Model) -> ModelMessage {
    ModelMessage { name: model.name().to_owned(), version: model.version(), sha256: model.sha256().to_vec() }
}

pub(super) fn infer_message(job: &Job) -> InferMessage {
    let output =
        |output: &Output| OutputMessage { function: output.function.name().to_owned(), column: output.name.clone() };
    InferMessage {
        model: Some(model_message(&job.model)),
        outputs: job.outputs.iter().map(output).collect(),
        ..InferMessage::default()
    }
}

pub(super) fn write(message: &impl Message, buf: &mut Vec<u8>) {
    buf.extend_from_slice(MAGIC);
    buf.extend(message.encode_to_vec());
}

/// Decodes a message; none if another codec wrote it.
pub(super) fn read<M: Message + Default>(buf: &[u8]) -> Result<Option<M>> {
    match buf.strip_prefix(MAGIC) {
        Some(bytes) => M::decode(bytes).map(Some).map_err(external),
        None => Ok(None),
    }
}
