//! The large tensors of a graph, moved out of the graph into one block of memory.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use super::dataflow::subgraphs;
use super::external::elements;
use super::proto::{GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto, tensor_proto};
use crate::numbers::to_usize;

/// Smallest tensor that moves, bytes. Smaller tensors may hold shapes and axes, which ONNX Runtime must see at loading.
const SMALLEST: usize = 4096;
/// Each tensor begins at a multiple of this address, bytes: a cache line.
const ALIGNMENT: usize = 64;

/// The large tensors of a graph. A part of the graph that is encoded here refers to them as a file in memory.
#[derive(Debug)]
pub(crate) struct LargeTensors {
    bytes: Arc<[u8]>,
    tensors: Vec<LargeTensor>,
    /// Index in `tensors` of each name.
    by_name: HashMap<String, usize>,
}

/// A large tensor.
#[derive(Debug)]
pub(crate) struct LargeTensor {
    pub(crate) name: String,
    /// Its type in the ONNX schema (`TensorProto.DataType`).
    pub(crate) data_type: i32,
    pub(crate) dims: Vec<i64>,
    range: Range<usize>,
}

impl LargeTensors {
    /// The name of the file in memory.
    pub(crate) const FILE: &'static str = "aefusion-weights";

    /// Moves the large tensors out of a graph, which then refers to their new place. Nothing of the graph refers to the
    /// bytes of its file afterwards.
    pub(crate) fn take(model: &mut ModelProto) -> Self {
        let mut taken = Self { bytes: Arc::new([]), tensors: Vec::new(), by_name: HashMap::new() };
        let Some(graph) = &model.graph else { return taken };
        let unique = unique_names(graph);
        let large = |tensor: &TensorProto| Some((size(tensor)?, unique.contains(tensor.name())));
        let mut end = ALIGNMENT;
        let mut indices = Vec::new();
        for (index, tensor) in graph.initializer.iter().enumerate() {
            if let Some((size, true)) = large(tensor) {
                let start = end.next_multiple_of(ALIGNMENT);
                end = start + size;
                indices.push(index);
                taken.by_name.insert(tensor.name().to_owned(), taken.tensors.len());
                taken.tensors.push(LargeTensor {
                    name: tensor.name().to_owned(),
                    data_type: tensor.data_type(),
                    dims: tensor.dims.clone(),
                    range: start..end,
                });
            }
        }
        if indices.is_empty() {
            return taken;
        }
        let mut bytes: Arc<[u8]> = std::iter::repeat_n(0, end).collect();
        // the memory begins between two multiples of the alignment
        let before = bytes.as_ptr().addr().next_multiple_of(ALIGNMENT) - bytes.as_ptr().addr();
        for tensor in &mut taken.tensors {
            tensor.range = tensor.range.start - ALIGNMENT + before..tensor.range.end - ALIGNMENT + before;
        }
        if let (Some(graph), Some(into)) = (&mut model.graph, Arc::get_mut(&mut bytes)) {
            for (index, moved) in indices.iter().zip(&taken.tensors) {
                let tensor = &mut graph.initializer[*index];
                copy(tensor, &mut into[moved.range.clone()]);
                (tensor.raw_data, tensor.float_data) = (None, Vec::new());
            }
        }
        taken.bytes = bytes;
        // what is left shares memory with the whole file
        if let Ok(own) = ModelProto::decode(Bytes::from(model.encode_to_vec())) {
            *model = own;
        }
        if let Some(graph) = &mut model.graph {
            for (index, moved) in indices.iter().zip(&taken.tensors) {
                graph.initializer[*index].raw_data = Some(taken.slice(moved));
            }
        }
        taken
    }

    /// All tensors.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &LargeTensor> {
        self.tensors.iter()
    }

    /// The memory of all tensors.
    pub(crate) fn bytes(&self) -> &Arc<[u8]> {
        &self.bytes
    }

    /// The bytes of a tensor, without a copy.
    pub(crate) fn slice(&self, tensor: &LargeTensor) -> Bytes {
        Bytes::from_owner(Arc::clone(&self.bytes)).slice(tensor.range.clone())
    }

    /// Serialises a part of the graph, without the bytes of the large tensors. Returns also which of these it has.
    pub(crate) fn encode(&self, mut part: ModelProto) -> (Bytes, Vec<usize>) {
        let mut used = Vec::new();
        for tensor in part.graph.iter_mut().flat_map(|graph| &mut graph.initializer) {
            let Some(index) = self.by_name.get(tensor.name()) else { continue };
            let moved = &self.tensors[*index];
            let here = self.bytes[moved.range.clone()].as_ptr();
            if tensor.raw_data.as_ref().is_some_and(|raw| raw.as_ptr() == here) {
                used.push(*index);
                tensor.raw_data = None;
                tensor.data_location = Some(tensor_proto::DataLocation::External.into());
                tensor.external_data = reference(&moved.range);
            }
        }
        (Bytes::from(part.encode_to_vec()), used)
    }

    /// Undoes [`Self::encode`]: serialises the part with the bytes of all its tensors.
    pub(crate) fn encode_whole(&self, part: &Bytes) -> Bytes {
        let Ok(mut part) = ModelProto::decode(part.clone()) else { return Bytes::new() };
        for tensor in part.graph.iter_mut().flat_map(|graph| &mut graph.initializer) {
            if tensor.data_location() == tensor_proto::DataLocation::External
                && let Some(index) = self.by_name.get(tensor.name())
            {
                tensor.raw_data = Some(self.slice(&self.tensors[*index]));
                tensor.data_location = None;
                tensor.external_data = Vec::new();
            }
        }
        Bytes::from(part.encode_to_vec())
    }
}

/// Names of stored tensors that occur once, and in no sub-graph. ONNX Runtime finds shared tensors by name.
fn unique_names(graph: &GraphProto) -> HashSet<&str> {
    let mut count: HashMap<&str, usize> = HashMap::new();
    let mut add = |name| *count.entry(name).or_default() += 1;
    graph.initializer.iter().for_each(|tensor| add(tensor.name()));
    let mut nodes: Vec<&NodeProto> = graph.node.iter().collect();
    while let Some(node) = nodes.pop() {
        for inner in subgraphs(node) {
            inner.initializer.iter().for_each(|tensor| add(tensor.name()));
            nodes.extend(&inner.node);
        }
    }
    count.into_iter().filter(|(_, n)| *n == 1).map(|(name, _)| name).collect()
}

/// The size of a tensor that moves, bytes; none if it stays: it is small, incomplete or of another type.
fn size(tensor: &TensorProto) -> Option<usize> {
    // ONNX stores numbers with the lowest byte first
    let element = match (tensor.data_type(), cfg!(target_endian = "little")) {
        (2 | 3, true) => 1,
        (10, true) => 2,
        (1, true) => 4,
        (11, true) => 8,
        _ => return None,
    };
    let size = to_usize(elements(&tensor.dims)?).checked_mul(element)?;
    let is_whole = match &tensor.raw_data {
        Some(raw) => raw.len() == size && tensor.float_data.is_empty(),
        None => tensor.data_type() == 1 && size_of_val(tensor.float_data.as_slice()) == size,
    };
    let is_inside = tensor.data_location() == tensor_proto::DataLocation::Default && tensor.segment.is_none();
    (is_whole && is_inside && size >= SMALLEST).then_some(size)
}

fn copy(tensor: &TensorProto, into: &mut [u8]) {
    match &tensor.raw_data {
        Some(raw) => into.copy_from_slice(raw),
        None => {
            for (to, from) in into.as_chunks_mut::<4>().0.iter_mut().zip(&tensor.float_data) {
                *to = from.to_le_bytes();
            }
        }
    }
}

fn reference(range: &Range<usize>) -> Vec<StringStringEntryProto> {
    let entry = |key: &str, value: String| StringStringEntryProto { key: Some(key.to_owned()), value: Some(value) };
    vec![
        entry("location", LargeTensors::FILE.to_owned()),
        entry("offset", range.start.to_string()),
        entry("length", range.len().to_string()),
    ]
}
