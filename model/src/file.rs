//! A model file that was read, and does not run.

use std::collections::HashMap;

use bytes::Bytes;
use datafusion_common::error::Result;
use sha2::{Digest, Sha256};

use crate::contract::Contract;
use crate::metadata::{Metadata, Role};
use crate::onnx::proto::{ModelProto, TensorProto};
use crate::onnx::{LargeTensors, Limits, declared_tensor, parse};

/// The contents of a model file. They say all that `ae_models()` lists; a [`crate::model::Model`] can also run.
#[derive(Debug)]
pub struct ModelFile {
    pub(crate) sha256: [u8; 32],
    bytes: FileBytes,
    pub(crate) graph: ModelProto,
    pub(crate) metadata: Metadata,
}

impl ModelFile {
    /// Reads a file, and runs nothing.
    ///
    /// # Errors
    /// A planning error if the file is refused.
    pub fn read(bytes: Bytes, limits: &Limits) -> Result<Self> {
        let graph = parse(&bytes, limits)?;
        let metadata = Metadata::read(&graph)?;
        Ok(Self { sha256: sha256(&bytes), bytes: FileBytes { rest: bytes, moved: Vec::new() }, graph, metadata })
    }

    /// Moves the large tensors out of the graph and out of the bytes of the file, which both refer to them afterwards.
    pub(crate) fn take_tensors(&mut self) -> LargeTensors {
        let places = self.bytes.places(&self.graph);
        let tensors = LargeTensors::take(&mut self.graph);
        let moved = tensors.iter().filter_map(|tensor| {
            let place = places.get(&tensor.name)?;
            Some((*place, tensors.slice(tensor)))
        });
        self.bytes = FileBytes::new(&self.bytes.rest, moved.collect());
        tensors
    }

    /// The file; a copy if a model runs it.
    pub fn bytes(&self) -> Bytes {
        self.bytes.whole()
    }

    /// Size of the file, bytes.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// SHA-256 of the file in hexadecimal.
    pub fn sha256_hex(&self) -> String {
        hex(&self.sha256)
    }

    /// The program that made the file.
    pub fn producer(&self) -> String {
        format!("{} {}", self.graph.producer_name(), self.graph.producer_version()).trim().to_owned()
    }

    /// The number of features.
    ///
    /// # Errors
    /// A planning error if the inputs do not fit an autoencoder.
    pub fn n_features(&self) -> Result<usize> {
        Contract::n_features(&self.graph, &self.metadata)
    }

    /// The width of the code, if the metadata name a code.
    pub fn code_width(&self) -> Option<usize> {
        let code = self.metadata.tensors.get(&Role::Code)?;
        self.metadata.code_width.or_else(|| declared_width(&self.graph, code))
    }
}

/// The bytes of a file, some of which are kept elsewhere.
#[derive(Debug)]
struct FileBytes {
    /// The other bytes, in order.
    rest: Bytes,
    /// Bytes that are kept elsewhere: the number of bytes of `rest` before each, ascending.
    moved: Vec<(usize, Bytes)>,
}

impl FileBytes {
    /// A file without the bytes at these places, ascending and apart.
    fn new(file: &Bytes, mut taken: Vec<(usize, Bytes)>) -> Self {
        taken.sort_by_key(|(place, _)| *place);
        let mut rest = Vec::with_capacity(file.len() - taken.iter().map(|(_, bytes)| bytes.len()).sum::<usize>());
        let mut moved = Vec::with_capacity(taken.len());
        let mut from = 0;
        for (place, bytes) in taken {
            rest.extend_from_slice(&file[from..place]);
            from = place + bytes.len();
            moved.push((rest.len(), bytes));
        }
        rest.extend_from_slice(&file[from..]);
        Self { rest: rest.into(), moved }
    }

    /// Where the bytes of stored tensors begin, by name, if the graph shares memory with this file.
    fn places(&self, model: &ModelProto) -> HashMap<String, usize> {
        let start = self.rest.as_ptr().addr();
        let place = |tensor: &TensorProto| {
            let raw = tensor.raw_data.as_ref()?;
            let place = raw.as_ptr().addr().checked_sub(start)?;
            (place + raw.len() <= self.rest.len()).then(|| (tensor.name().to_owned(), place))
        };
        model.graph.iter().flat_map(|graph| &graph.initializer).filter_map(place).collect()
    }

    fn len(&self) -> usize {
        self.rest.len() + self.moved.iter().map(|(_, bytes)| bytes.len()).sum::<usize>()
    }

    fn whole(&self) -> Bytes {
        if self.moved.is_empty() {
            return self.rest.clone();
        }
        let mut whole = Vec::with_capacity(self.len());
        let mut from = 0;
        for (place, bytes) in &self.moved {
            whole.extend_from_slice(&self.rest[from..*place]);
            whole.extend_from_slice(bytes);
            from = *place;
        }
        whole.extend_from_slice(&self.rest[from..]);
        whole.into()
    }
}

/// The width of an output that the graph declares, without the first dimension.
pub(crate) fn declared_width(model: &ModelProto, name: &str) -> Option<usize> {
    let output = model.graph.as_ref()?.output.iter().find(|output| output.name() == name)?;
    let (_, dims) = declared_tensor(output)?;
    let (_, row) = dims.as_deref()?.split_first()?;
    row.iter().try_fold(1, |width: usize, dim| width.checked_mul(usize::try_from((*dim)?).ok()?))
}

/// SHA-256 of a file.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_some_bytes_has_all_of_them() {
        let file = Bytes::from_static(b"0123456789");
        let taken = |ranges: &[std::ops::Range<usize>]| {
            let moved = ranges.iter().map(|range| (range.start, file.slice(range.clone())));
            FileBytes::new(&file, moved.collect())
        };
        let some = taken(&[7..9, 2..5]);
        assert_eq!((some.rest.as_ref(), some.len()), (b"01569".as_slice(), 10));
        assert_eq!(some.whole(), file);
        for cuts in [[0, 0, 0], [0, 10, 10], [0, 3, 6], [9, 10, 10]] {
            let ranges = [cuts[0]..cuts[1], cuts[1]..cuts[2]];
            assert_eq!(taken(&ranges).whole(), file, "{ranges:?}");
        }
    }
}
