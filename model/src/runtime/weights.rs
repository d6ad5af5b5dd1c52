//! Weights that the sessions of a model share.

use std::ffi::CString;
use std::sync::Arc;

use bytes::Bytes;
use datafusion_common::error::{DataFusionError, Result};
use half::f16;
use ort::AsPointer;
use ort::session::builder::{PrepackedWeights, SessionBuilder};

use super::{DynInput, Input, Purpose, Session, external, loaded, value};
use crate::onnx::LargeTensors;
use crate::onnx::proto::ModelProto;

/// The large weights of a model, as the file stores them and as the kernels pack them. All sessions of all its parts share
/// one copy.
#[derive(Debug)]
pub(crate) struct Weights {
    values: Vec<(CString, Value)>,
    packed: PrepackedWeights,
    /// The memory of `values`.
    tensors: LargeTensors,
}

impl Weights {
    /// The weights of a graph.
    ///
    /// # Errors
    /// An execution error if ONNX Runtime is not found.
    pub(crate) fn of(tensors: LargeTensors) -> Result<Arc<Self>> {
        loaded()?;
        let values = tensors.iter().map(|tensor| {
            let name = CString::new(tensor.name.as_str()).map_err(|e| DataFusionError::External(e.into()))?;
            Ok((name, Value::of(&tensors.slice(tensor), tensor.data_type, &tensor.dims)?))
        });
        Ok(Arc::new(Self { values: values.collect::<Result<_>>()?, packed: PrepackedWeights::new(), tensors }))
    }

    /// A part of the graph that reads these weights.
    pub(crate) fn part(self: &Arc<Self>, graph: ModelProto) -> Part {
        let (graph, used) = self.tensors.encode(graph);
        Part { graph, used, weights: Arc::clone(self), is_wide: false }
    }

    /// Memory of the weights, as stored and as packed, bytes.
    pub(crate) fn bytes(&self) -> usize {
        2 * self.tensors.bytes().len()
    }
}

/// A part of a graph, without its large weights.
#[derive(Debug)]
pub(crate) struct Part {
    graph: Bytes,
    /// The weights that it has, by index.
    used: Vec<usize>,
    weights: Arc<Weights>,
    is_wide: bool,
}

impl Part {
    /// Whether the activations of a row are large.
    pub(crate) fn wide(self, is_wide: bool) -> Self {
        Self { is_wide, ..self }
    }

    /// Loads the graph that one thread runs. The session reads the large weights without a copy.
    ///
    /// # Errors
    /// A planning error if ONNX Runtime refuses it.
    pub(crate) fn load(&self, purpose: Purpose) -> Result<Session> {
        match Session::load_sharing(&self.graph, purpose, Some(self)) {
            Err(e) if !self.used.is_empty() => {
                log::debug!("a graph does not load with shared weights, so its session gets a copy: {e}");
                Session::load(&self.weights.tensors.encode_whole(&self.graph), purpose)
            }
            loaded => loaded,
        }
    }

    /// The weights, which a session must not outlive.
    pub(super) fn weights(&self) -> &Arc<Weights> {
        &self.weights
    }

    /// Lets a session read the weights.
    pub(super) fn configure(&self, builder: SessionBuilder, purpose: Purpose) -> Result<SessionBuilder> {
        let failed = |e: ort::Error<SessionBuilder>| external(e.into());
        // a pattern is one more block of memory for all activations; wide graphs run as fast without it
        let builder = builder.with_memory_pattern(!self.is_wide).map_err(failed)?;
        if self.used.is_empty() {
            return Ok(builder);
        }
        let bytes = Arc::clone(self.weights.tensors.bytes());
        // optimisers read the file in memory; kernels get the values, whose packed form they share
        let mut builder =
            builder.with_external_initializer_file_in_memory(LargeTensors::FILE, bytes).map_err(failed)?;
        if purpose == Purpose::Score {
            builder = builder.with_prepacked_weights(&self.weights.packed).map_err(failed)?;
        }
        for (name, value) in self.used.iter().map(|index| &self.weights.values[*index]) {
            // SAFETY: the options, the name and the value are valid, and the session keeps the weights, with the value,
            // until it ends.
            let status = unsafe { (ort::api().AddInitializer)(builder.ptr_mut(), name.as_ptr(), value.0.ptr()) };
            // SAFETY: `status` comes from the call above and is not used again.
            unsafe { ort::Error::result_from_status(status) }.map_err(external)?;
        }
        Ok(builder)
    }
}

/// A tensor over the memory of [`Weights`].
struct Value(DynInput<'static>);

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Value")
    }
}

impl Value {
    fn of(bytes: &Bytes, data_type: i32, dims: &[i64]) -> Result<Self> {
        let input = match data_type {
            2 => Input::UInt8(numbers(bytes)),
            3 => Input::Int8(numbers(bytes)),
            10 => Input::Float16(numbers::<f16>(bytes)),
            11 => Input::Float64(numbers(bytes)),
            _ => Input::Float32(numbers(bytes)),
        };
        value(&input, dims).map(Self)
    }
}

/// The numbers of a large tensor. They must not be used after the memory of the weights is freed.
fn numbers<T: 'static>(bytes: &Bytes) -> &'static [T] {
    // SAFETY: any bits are a number of the types above, and large tensors are aligned. The slice lives as long as the
    // memory of the weights, which `Weights` holds beside all values.
    unsafe {
        let (_, numbers, _) = bytes.align_to::<T>();
        std::slice::from_raw_parts(numbers.as_ptr(), numbers.len())
    }
}
