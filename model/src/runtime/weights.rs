//! Weights that the sessions of a graph share.

use std::sync::Arc;

use datafusion_common::error::Result;
use ort::session::builder::{PrepackedWeights, SessionBuilder};
use ort::value::{DynValue, Tensor};

use super::{Element, external, loaded};
use crate::onnx::proto::{ModelProto, TensorProto};

/// The large weights of a graph, one copy for all of its sessions: as the file stores them, and as the kernels pack
/// them.
#[derive(Debug)]
pub(crate) struct Weights {
    tensors: Vec<(String, Arc<DynValue>)>,
    packed: PrepackedWeights,
}

impl Weights {
    /// Smallest tensor that is shared. Smaller tensors may hold shapes and axes, which ONNX Runtime must see at
    /// loading.
    const SHARED_BYTES: usize = 4096;

    /// The weights of a graph.
    ///
    /// # Errors
    /// An execution error if ONNX Runtime is not found.
    pub(crate) fn of(graph: &ModelProto) -> Result<Self> {
        loaded()?;
        let initializers = graph.graph.iter().flat_map(|graph| &graph.initializer);
        let tensors = initializers.filter_map(|tensor| Some((tensor.name().to_owned(), floats(tensor)?)));
        let tensors = tensors.map(|(name, (shape, values))| {
            Ok((name, Arc::new(Tensor::from_array((shape, values)).map_err(external)?.into_dyn())))
        });
        Ok(Self { tensors: tensors.collect::<Result<_>>()?, packed: PrepackedWeights::new() })
    }

    /// Lets a session read these weights.
    pub(super) fn share(&self, builder: SessionBuilder) -> Result<SessionBuilder> {
        let failed = |e: ort::Error<SessionBuilder>| external(e.into());
        let builder = builder.with_prepacked_weights(&self.packed).map_err(failed)?;
        self.tensors.iter().try_fold(builder, |builder, (name, value)| {
            builder.with_initializer(name, Arc::clone(value)).map_err(failed)
        })
    }
}

/// Shape and values of a large `Float32` tensor; none for other tensors.
fn floats(tensor: &TensorProto) -> Option<(Vec<i64>, Vec<f32>)> {
    if Element::from_onnx(tensor.data_type()) != Some(Element::Float32) {
        return None;
    }
    let values = match &tensor.raw_data {
        Some(raw) => raw.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        None => tensor.float_data.clone(),
    };
    (size_of_val(values.as_slice()) >= Weights::SHARED_BYTES).then(|| (tensor.dims.clone(), values))
}
