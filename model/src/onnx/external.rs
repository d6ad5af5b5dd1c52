//! Tensors that a file stores in other files (external data), put into the file.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use datafusion_common::error::Result;
use datafusion_common::plan_err;
use prost::Message;

use super::encode;
use super::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, tensor_proto};
use super::read::Limits;
use crate::numbers::to_usize;

/// Puts the tensors of a file of any layout into one file, if their data lies in the folder of the file.
pub(super) const JOIN: &str = "python -c \"import onnx; onnx.save(onnx.load('model.onnx'), 'one.onnx')\"";

/// Names the data by file, without a folder.
const RENAME: &str = "python -c \"import onnx, os; m = onnx.load('model.onnx', load_external_data=False); [setattr(e, 'value', \
                      os.path.basename(e.value)) for t in m.graph.initializer for e in t.external_data if e.key == \
                      'location']; onnx.save(m, 'fixed.onnx')\"";

/// A file with tensors in other files.
#[derive(Debug)]
pub struct ScatteredFile {
    model: ModelProto,
    /// The other files, and the bytes from the start of each that the tensors need.
    files: BTreeMap<String, u64>,
}

impl ScatteredFile {
    /// Reads a file; none if all its tensors are in it, or if it is no ONNX file.
    ///
    /// # Errors
    /// A planning error if a tensor is not in a file beside it, or is too large.
    pub fn read(bytes: &Bytes, limits: &Limits) -> Result<Option<Self>> {
        let Ok(mut model) = ModelProto::decode(bytes.clone()) else { return Ok(None) };
        model.training_info.clear();
        let (mut files, mut size) = (BTreeMap::new(), bytes.len() as u64);
        each_tensor(&mut model, &mut |tensor| {
            if tensor.data_location() == tensor_proto::DataLocation::External {
                let place = Place::of(tensor)?;
                // tensors may share bytes, and have their own in the joined file
                size = size.saturating_add(place.length);
                let needed: &mut u64 = files.entry(place.file).or_default();
                *needed = place.offset.saturating_add(place.length).max(*needed);
            }
            Ok(())
        })?;
        let read = files.values().fold(bytes.len() as u64, |sum, needed| sum.saturating_add(*needed));
        limits.check_size("the ONNX file, with the files of its tensors,", size.max(read))?;
        Ok((!files.is_empty()).then_some(Self { model, files }))
    }

    /// The other files, which belong into the folder of the file: their names, and the bytes from the start of each that
    /// the tensors need.
    pub fn files(&self) -> impl Iterator<Item = (&str, u64)> {
        self.files.iter().map(|(file, needed)| (file.as_str(), *needed))
    }

    /// One file with all tensors. `files` has the contents of all other files.
    ///
    /// # Errors
    /// A planning error if a file is missing or too short.
    pub fn join(mut self, files: &HashMap<String, Bytes>) -> Result<Bytes> {
        each_tensor(&mut self.model, &mut |tensor| {
            if tensor.data_location() != tensor_proto::DataLocation::External {
                return Ok(());
            }
            let place = Place::of(tensor)?;
            let Some(data) = files.get(&place.file) else {
                return plan_err!("the file '{}' of tensor \"{}\" is missing", place.file, tensor.name());
            };
            let needed = place.offset.saturating_add(place.length);
            check_length(&place.file, data.len() as u64, needed)?;
            let range = to_usize(place.offset)..to_usize(needed);
            *tensor = TensorProto {
                dims: std::mem::take(&mut tensor.dims),
                data_type: tensor.data_type,
                name: tensor.name.take(),
                doc_string: tensor.doc_string.take(),
                raw_data: Some(data.slice(range)),
                ..TensorProto::default()
            };
            Ok(())
        })?;
        Ok(encode(&self.model))
    }
}

/// Checks that a file has all bytes of the tensors of a model.
///
/// # Errors
/// A planning error if it does not.
pub fn check_length(file: &str, length: u64, needed: u64) -> Result<()> {
    if length < needed {
        return plan_err!(
            "'{file}' has {length} bytes, but the tensors of the model need {needed}; the file is incomplete, or belongs \
             to another model"
        );
    }
    Ok(())
}

/// The bytes of a tensor in another file.
struct Place {
    file: String,
    offset: u64,
    length: u64,
}

impl Place {
    /// Reads the place of a tensor with external data.
    fn of(tensor: &TensorProto) -> Result<Self> {
        let name = tensor.name();
        let entry = |key: &str| -> Result<Option<&str>> {
            let mut values = tensor.external_data.iter().filter(|entry| entry.key() == key).map(|entry| entry.value());
            match (values.next(), values.next()) {
                (value, None) => Ok(value),
                (_, Some(_)) => plan_err!("tensor \"{name}\" of the ONNX file gives the {key} of its data twice"),
            }
        };
        let number = |key: &str| match entry(key)?.map(str::parse::<u64>) {
            None => Ok(None),
            Some(Ok(number)) => Ok(Some(number)),
            Some(Err(_)) => {
                plan_err!("tensor \"{name}\" of the ONNX file: the {key} of its data is no whole number from 0 up")
            }
        };
        let Some(length) = bytes_of(tensor) else {
            return plan_err!(
                "tensor \"{name}\" of the ONNX file has the impossible shape {:?}, or a type (number {}) that cannot be \
                 stored in another file",
                tensor.dims,
                tensor.data_type()
            );
        };
        match number("length")? {
            Some(found) if found != length => {
                return plan_err!(
                    "tensor \"{name}\" of the ONNX file needs {length} bytes for its shape {:?}, but its data has the \
                     length {found}",
                    tensor.dims
                );
            }
            _ => {}
        }
        let Some(location) = entry("location")? else {
            return plan_err!("tensor \"{name}\" of the ONNX file stores its data in another file, but names none");
        };
        Ok(Self { file: plain_name(name, location)?, offset: number("offset")?.unwrap_or(0), length })
    }
}

/// The name of a file in the folder of the model.
fn plain_name(tensor: &str, location: &str) -> Result<String> {
    let file = location.strip_prefix("./").unwrap_or(location);
    let separators: &[char] = if cfg!(windows) { &['/', '\\', ':'] } else { &['/', '\\'] };
    if !["", ".", ".."].contains(&file) && !file.contains(separators) && !file.contains(char::is_control) {
        return Ok(file.to_owned());
    }
    let is_below = !location.is_empty()
        && !location.starts_with('/')
        && !location.contains(['\\', ':'])
        && location.split('/').all(|part| part != "..");
    let remedy = match is_below {
        true => format!("save the model as one file: {JOIN}"),
        false => format!("put that file beside the model, and name it without a folder: {RENAME}"),
    };
    plan_err!(
        "tensor \"{tensor}\" of the ONNX file stores its data in {location:?}; only files in the folder of the model \
         are read; {remedy}"
    )
}

/// The size of a tensor; none if it has no size, or strings.
fn bytes_of(tensor: &TensorProto) -> Option<u64> {
    let elements = elements(&tensor.dims)?;
    let bits = bits(tensor.data_type())?;
    Some(elements.checked_mul(bits)?.div_ceil(8))
}

/// The number of elements of a shape; none if it is impossible.
pub(super) fn elements(dims: &[i64]) -> Option<u64> {
    dims.iter().try_fold(1_u64, |product, dim| product.checked_mul(u64::try_from(*dim).ok()?))
}

/// Bits of an element, by the number of its type in the schema; none for strings and unknown types.
pub(super) fn bits(data_type: i32) -> Option<u64> {
    use tensor_proto::DataType;
    Some(match DataType::try_from(data_type).ok()? {
        // the layout of the last two is not settled
        DataType::Undefined | DataType::String | DataType::Float6e2m3 | DataType::Float6e3m2 => return None,
        DataType::Uint2 | DataType::Int2 => 2,
        DataType::Uint4 | DataType::Int4 | DataType::Float4e2m1 => 4,
        DataType::Uint8
        | DataType::Int8
        | DataType::Bool
        | DataType::Float8e4m3fn
        | DataType::Float8e4m3fnuz
        | DataType::Float8e5m2
        | DataType::Float8e5m2fnuz
        | DataType::Float8e8m0 => 8,
        DataType::Uint16 | DataType::Int16 | DataType::Float16 | DataType::Bfloat16 => 16,
        DataType::Float | DataType::Int32 | DataType::Uint32 => 32,
        DataType::Double | DataType::Int64 | DataType::Uint64 | DataType::Complex64 => 64,
        DataType::Complex128 => 128,
    })
}

/// What is done with each tensor.
type Visit<'a> = &'a mut dyn FnMut(&mut TensorProto) -> Result<()>;

/// Visits all tensors of a file: of graphs, sub-graphs, sparse tensors, attributes and functions.
fn each_tensor(model: &mut ModelProto, visit: Visit<'_>) -> Result<()> {
    model.graph.iter_mut().try_for_each(|graph| in_graph(graph, visit))?;
    model.functions.iter_mut().try_for_each(|function| {
        in_nodes(&mut function.node, visit)?;
        in_attributes(&mut function.attribute_proto, visit)
    })
}

fn in_graph(graph: &mut GraphProto, visit: Visit<'_>) -> Result<()> {
    graph.initializer.iter_mut().try_for_each(&mut *visit)?;
    graph.sparse_initializer.iter_mut().try_for_each(|sparse| in_sparse(sparse, visit))?;
    in_nodes(&mut graph.node, visit)
}

fn in_nodes(nodes: &mut [NodeProto], visit: Visit<'_>) -> Result<()> {
    nodes.iter_mut().try_for_each(|node| in_attributes(&mut node.attribute, visit))
}

fn in_attributes(attributes: &mut [AttributeProto], visit: Visit<'_>) -> Result<()> {
    attributes.iter_mut().try_for_each(|attribute| {
        attribute.t.iter_mut().chain(&mut attribute.tensors).try_for_each(&mut *visit)?;
        let mut sparse = attribute.sparse_tensor.iter_mut().chain(&mut attribute.sparse_tensors);
        sparse.try_for_each(|sparse| in_sparse(sparse, visit))?;
        attribute.g.iter_mut().chain(&mut attribute.graphs).try_for_each(|graph| in_graph(graph, visit))
    })
}

fn in_sparse(sparse: &mut SparseTensorProto, visit: Visit<'_>) -> Result<()> {
    sparse.values.iter_mut().chain(&mut sparse.indices).try_for_each(&mut *visit)
}
