//! What an operator needs of its inputs: their values, or only their shapes.

use super::dataflow::{has_subgraph, reads};
use super::proto::NodeProto;

/// What of a tensor counts. The values include the shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Need {
    /// Only the shape.
    Shape,
    /// The values.
    Values,
}

/// The newest version of the operators of ONNX for which [`VALUES_SHAPE`] is complete.
pub(super) const KNOWN_VERSION: i64 = 25;

/// Operators whose result does not depend on the values of an input, and the place of that input.
const SHAPE_READ: [(&str, usize); 6] =
    [("Shape", 0), ("Size", 0), ("EyeLike", 0), ("RandomNormalLike", 0), ("RandomUniformLike", 0), ("CastLike", 1)];

/// Operators with a result whose shape depends on values, and the first input whose values count. The shapes of the
/// other results of ONNX and `ai.onnx.ml` follow from the shapes of the inputs.
const VALUES_SHAPE: [(&str, usize); 57] = [
    ("AffineGrid", 1),
    ("BlackmanWindow", 0),
    ("CastMap", 0),
    ("CenterCropPad", 1),
    ("Col2Im", 1),
    ("Compress", 1),
    ("ConcatFromSequence", 0),
    ("ConstantOfShape", 0),
    ("DFT", 1),
    ("DictVectorizer", 0),
    ("DynamicSlice", 1),
    ("Expand", 1),
    ("HammingWindow", 0),
    ("HannWindow", 0),
    ("ImageDecoder", 0),
    ("MaxUnpool", 2),
    ("MelWeightMatrix", 0),
    ("NonMaxSuppression", 0),
    ("NonZero", 0),
    ("OneHot", 1),
    ("Optional", 0),
    ("OptionalGetElement", 0),
    ("OptionalHasElement", 0),
    ("Pad", 1),
    ("Range", 0),
    ("ReduceL1", 1),
    ("ReduceL2", 1),
    ("ReduceLogSum", 1),
    ("ReduceLogSumExp", 1),
    ("ReduceMax", 1),
    ("ReduceMean", 1),
    ("ReduceMin", 1),
    ("ReduceProd", 1),
    ("ReduceSum", 1),
    ("ReduceSumSquare", 1),
    ("Reshape", 1),
    ("Resize", 1),
    ("STFT", 1),
    ("SequenceAt", 0),
    ("SequenceConstruct", 0),
    ("SequenceEmpty", 0),
    ("SequenceErase", 0),
    ("SequenceInsert", 0),
    ("SequenceLength", 0),
    ("SequenceMap", 0),
    ("Slice", 1),
    ("Split", 1),
    ("SplitToSequence", 0),
    ("Squeeze", 1),
    ("StringNormalizer", 0),
    ("StringSplit", 0),
    ("Tile", 1),
    ("TopK", 1),
    ("Unique", 0),
    ("Unsqueeze", 1),
    ("Upsample", 1),
    ("ZipMap", 0),
];

/// The tensors that a node reads, and what of each its results need. `wanted` is what counts of the results. Of an
/// operator that `is_known` does not cover, all values count.
pub(super) fn needs(node: &NodeProto, wanted: Need, is_known: bool) -> Vec<(&str, Need)> {
    if !is_known || has_subgraph(node) {
        return reads(node).into_iter().map(|name| (name, Need::Values)).collect();
    }
    let kind = node.op_type();
    let need = |place: usize| match wanted {
        Need::Values if SHAPE_READ.contains(&(kind, place)) => Need::Shape,
        Need::Values => Need::Values,
        Need::Shape => match VALUES_SHAPE.iter().find(|(name, _)| *name == kind) {
            Some((_, first)) if place >= *first => Need::Values,
            _ => Need::Shape,
        },
    };
    let inputs = node.input.iter().enumerate().filter(|(_, name)| !name.is_empty());
    inputs.map(|(place, name)| (name.as_str(), need(place))).collect()
}
