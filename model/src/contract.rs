//! The contract of a model file. Loading checks it, SQL types follow from it, and exporters write it.

mod known;
mod names;
mod probe;
mod reconstructed;
mod roles;
mod values;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use datafusion_common::error::{DataFusionError, Result};
use datafusion_common::plan_err;

use crate::metadata::{ErrorMetric, Feature, Metadata, NullPolicy, Role, RowMode};
use crate::onnx::peak;
use crate::onnx::proto::ModelProto;
use crate::runtime::{Element, Weights};

pub(crate) use known::{Known, levels, values};
pub(crate) use probe::{PROBE_ROWS, shapes};
pub(crate) use values::Values;

/// Largest width of a row of features or outputs.
const MAX_WIDTH: usize = 1 << 20;

/// A row whose activations are larger runs alone, bytes. A block of 16 such rows would take more than 256 MiB. This
/// follows from the graph alone: a row may have other bits alone than in a block, and so always runs in the same way.
const LARGE_ROW: usize = 16 << 20;

/// A tensor of a model, without its first dimension (the rows).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TensorSpec {
    /// Name in the graph.
    pub name: String,
    /// Type of its elements.
    pub element: Element,
    /// Rows of the tensor for each row of the input. 1, except if an exporter flattens `[N, k]` to `[N·k, 1]`, as
    /// skl2onnx does for scikit-learn's `MLPRegressor`.
    pub rows_per_row: usize,
    /// Its dimensions after the first; empty for `[N]`.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// Numbers in a row.
    pub fn width(&self) -> usize {
        self.rows_per_row * self.shape.iter().product::<usize>()
    }

    /// Shape for a number of rows, for ONNX Runtime.
    pub(crate) fn shape_of(&self, rows: usize) -> Vec<i64> {
        std::iter::once(rows * self.rows_per_row).chain(self.shape.iter().copied()).map(crate::numbers::dim).collect()
    }
}

impl fmt::Display for TensorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\" [N", self.name)?;
        if self.rows_per_row > 1 {
            write!(f, "·{}", self.rows_per_row)?;
        }
        self.shape.iter().try_for_each(|dim| write!(f, ", {dim}"))?;
        write!(f, "] {:?}", self.element)
    }
}

/// A tensor with a role, or the reason why there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The tensor.
    Tensor(TensorSpec),
    /// No tensor.
    None {
        /// The reason.
        why: String,
    },
}

impl Found {
    fn none(why: impl Into<String>) -> Self {
        Self::None { why: why.into() }
    }

    /// The tensor, if there is one.
    pub fn tensor(&self) -> Option<&TensorSpec> {
        match self {
            Self::Tensor(tensor) => Some(tensor),
            Self::None { .. } => None,
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tensor(tensor) => tensor.fmt(f),
            Self::None { why } => write!(f, "none: {why}"),
        }
    }
}

/// The inputs and outputs of an autoencoder.
#[derive(Debug, Clone)]
pub struct Contract {
    /// Inputs of the graph: one tensor with all features, or several tensors, often with one feature each.
    pub inputs: Vec<TensorSpec>,
    /// The features, in the order of the inputs, row-major.
    pub features: Vec<Feature>,
    /// Rows of every run, if the graph or the mode fixes their number.
    pub fixed_rows: Option<usize>,
    /// Rows of every run, if the graph fixes their number.
    pub(crate) graph_rows: Option<usize>,
    /// How many rows run at once.
    pub row_mode: RowMode,
    /// The metric of the error.
    pub error_metric: ErrorMetric,
    /// The effect of a null feature.
    pub null_policy: NullPolicy,
    /// Expected share of anomalies.
    pub contamination: Option<f64>,
    /// The feature of each column that the error compares.
    pub error_features: Option<Vec<usize>>,
    /// The feature of each column of the reconstruction. A condition, a mask or an unused input has no column.
    pub reconstructed: Vec<usize>,
    /// Width of the widest tensor of the graph; block sizes follow from it.
    pub widest: usize,
    /// Memory that each computed tensor takes for one row, bytes.
    pub(crate) row_bytes: HashMap<String, usize>,
    /// Memory of the activations of one row that live at the same time, bytes, if the whole graph runs.
    pub(crate) peak_row_bytes: usize,
    code: Found,
    reconstruction: Found,
    scaled: Found,
    scaled_reconstruction: Found,
    logits: Found,
    /// A row that the graph takes, if it does not take zeros and empty texts.
    pub(crate) known_row: Option<Vec<Known>>,
    /// The tensor at which the decoder alone starts.
    decoder_entry: Found,
    /// Why there is no error although its tensors were found.
    no_error: Option<String>,
}

/// The name of the decoder among the roles whose rows influence each other.
pub(crate) const DECODER: &str = "decoder";

impl Contract {
    /// Whether both contracts, of the same graph, give the same errors.
    pub(crate) fn measures_as(&self, other: &Self) -> bool {
        let roles = [Role::Reconstruction, Role::Scaled, Role::ScaledReconstruction];
        let name = |contract: &Self, role| contract.tensor(role).map(|tensor| tensor.name.clone());
        self.error_metric == other.error_metric
            && self.row_mode == other.row_mode
            && self.null_policy == other.null_policy
            && self.reconstructed == other.reconstructed
            && roles.into_iter().all(|role| name(self, role) == name(other, role))
    }

    /// Detects the contract of a graph: by `metadata`, then by names, then by shapes.
    ///
    /// # Errors
    /// A planning error if a tensor is missing or ambiguous; it names the option to set.
    pub(crate) fn discover(model: &ModelProto, metadata: &Metadata, weights: &Arc<Weights>) -> Result<Self> {
        let probed = probe::probe(model, metadata, weights)?;
        let features = features(metadata, &probed.inputs)?;
        let roles = roles::find(model, metadata, &probed, &features)?;
        let has_all = roles.reconstructed.iter().copied().eq(0..features.len());
        let error_features = match (&roles.scaled, &roles.scaled_reconstruction) {
            (Found::Tensor(scaled), Found::Tensor(_)) => error_features(metadata, &features, scaled.width())?,
            _ if has_all => error_features(metadata, &features, features.len())?,
            _ => Some(roles.reconstructed.clone()),
        };
        let row_mode = metadata.rows.unwrap_or_default();
        let peak_row_bytes = model.graph.as_ref().map_or(0, |graph| peak(graph, |name| probed.row_bytes_of(name)));
        let fixed_rows = match (row_mode, probed.fixed_rows) {
            (RowMode::Alone, None) => Some(1),
            (RowMode::Together, None) if peak_row_bytes > LARGE_ROW => Some(1),
            (RowMode::Alone, Some(rows)) if rows > 1 => {
                return plan_err!("rows = 'alone' is impossible: the graph takes {rows} rows at once");
            }
            (_, rows) => rows,
        };
        let mut contract = Self {
            features,
            fixed_rows,
            graph_rows: probed.fixed_rows,
            row_mode,
            error_metric: metadata.error_metric.unwrap_or_default(),
            null_policy: metadata.null_policy.unwrap_or_default(),
            contamination: metadata.contamination,
            error_features,
            reconstructed: roles.reconstructed,
            widest: probed.widest(),
            row_bytes: probed.row_bytes,
            peak_row_bytes,
            known_row: probed.known_row,
            inputs: probed.inputs,
            code: roles.code,
            reconstruction: roles.reconstruction,
            scaled: roles.scaled,
            scaled_reconstruction: roles.scaled_reconstruction,
            logits: roles.logits,
            decoder_entry: roles.decoder_entry,
            no_error: None,
        };
        contract.leave_out(&metadata.mixed_rows);
        Ok(contract)
    }

    /// Leaves out roles, or [`DECODER`], for a reason each.
    pub(crate) fn leave_out(&mut self, reasons: &BTreeMap<String, String>) {
        let reason = |name: &str| reasons.get(name);
        let pair = [Role::Scaled, Role::ScaledReconstruction];
        if self.scaled.tensor().is_some() && self.scaled_reconstruction.tensor().is_some() {
            self.no_error = pair.into_iter().find_map(|role| reason(role.name())).cloned();
        }
        let founds = [
            (Role::Code.name(), &mut self.code),
            (Role::Reconstruction.name(), &mut self.reconstruction),
            (Role::Scaled.name(), &mut self.scaled),
            (Role::ScaledReconstruction.name(), &mut self.scaled_reconstruction),
            (Role::Logits.name(), &mut self.logits),
            (DECODER, &mut self.decoder_entry),
        ];
        for (name, found) in founds {
            if let Some(why) = reason(name) {
                *found = Found::none(why);
            }
        }
        let missing = [Role::Code, Role::Reconstruction].into_iter().find_map(|role| reason(role.name()));
        if let (Some(why), Found::Tensor(_)) = (missing, &self.decoder_entry) {
            self.decoder_entry = Found::none(why);
        }
    }

    /// Leaves out the roles that the metadata of a stored file do not name. Their rows were not checked: an older version
    /// did not find them.
    pub(crate) fn keep_checked(&mut self, metadata: &Metadata) {
        let is_stored =
            metadata.features.is_some() && metadata.error_metric.is_some() && metadata.null_policy.is_some();
        let is_new = |role: &Role| is_stored && self.tensor(*role).is_some() && !metadata.tensors.contains_key(role);
        let reason = |role: Role| {
            let why = "the model was stored by a version of aefusion that did not find it; create the model again from \
                       its file";
            (role.name().to_owned(), why.to_owned())
        };
        let reasons = Role::ALL.into_iter().filter(is_new).map(reason).collect();
        self.leave_out(&reasons);
    }

    /// Outputs that are named after an input each, in the order of the inputs.
    ///
    /// # Errors
    /// A planning error if the inputs do not fit an autoencoder.
    pub(crate) fn heads(model: &ModelProto, metadata: &Metadata) -> Result<Vec<String>> {
        let (inputs, _) = probe::inputs(model, metadata)?;
        let outputs: Vec<&str> =
            model.graph.iter().flat_map(|graph| graph.output.iter().map(|output| output.name())).collect();
        Ok(reconstructed::heads(&outputs, &inputs))
    }

    /// The features of tensors that are named after an input each, in the order of the tensors; none if one is not.
    ///
    /// # Errors
    /// A planning error if the inputs do not fit an autoencoder, or the metadata do not fit the inputs.
    pub(crate) fn features_of_heads(
        model: &ModelProto,
        metadata: &Metadata,
        heads: &[String],
    ) -> Result<Option<Vec<String>>> {
        let (inputs, _) = probe::inputs(model, metadata)?;
        let features = features(metadata, &inputs)?;
        let places = reconstructed::inputs_of_heads(heads, &inputs);
        Ok(places.map(|places| places.into_iter().map(|place| features[place].name.clone()).collect()))
    }

    /// The number of features of a graph, without a test run.
    ///
    /// # Errors
    /// A planning error if the inputs do not fit an autoencoder, or the metadata do not fit the inputs.
    pub(super) fn n_features(model: &ModelProto, metadata: &Metadata) -> Result<usize> {
        let (inputs, _) = probe::inputs(model, metadata)?;
        Ok(features(metadata, &inputs)?.len())
    }

    /// The tensor at which the decoder alone starts.
    pub fn decoder(&self) -> &Found {
        &self.decoder_entry
    }

    /// The tensor with a role, or the reason why there is none.
    pub fn found(&self, role: Role) -> &Found {
        match role {
            Role::Code => &self.code,
            Role::Reconstruction => &self.reconstruction,
            Role::Scaled => &self.scaled,
            Role::ScaledReconstruction => &self.scaled_reconstruction,
            Role::Logits => &self.logits,
        }
    }

    /// The tensor with a role, if there is one.
    pub fn tensor(&self, role: Role) -> Option<&TensorSpec> {
        self.found(role).tensor()
    }

    /// The tensor with a role.
    ///
    /// # Errors
    /// A planning error with the reason if there is none.
    pub fn require(&self, role: Role) -> Result<&TensorSpec> {
        match self.found(role) {
            Found::Tensor(tensor) => Ok(tensor),
            Found::None { why } => Err(no_tensor(role.name(), why)),
        }
    }

    /// The tensor at which the decoder alone starts; it has the width of the code.
    ///
    /// # Errors
    /// A planning error with the reason if the decoder cannot run alone.
    pub fn require_decoder(&self) -> Result<&TensorSpec> {
        match &self.decoder_entry {
            Found::Tensor(tensor) => Ok(tensor),
            Found::None { why } => Err(no_tensor("decoder that runs from the code alone", why)),
        }
    }

    /// The two tensors that the error compares. Without the first, the error compares the features themselves.
    ///
    /// # Errors
    /// A planning error if a tensor is missing.
    pub fn require_error(&self) -> Result<(Option<&TensorSpec>, &TensorSpec)> {
        if let Some(why) = &self.no_error {
            return Err(no_tensor("error", why));
        }
        if let (Some(scaled), Some(reconstruction)) = (self.scaled.tensor(), self.scaled_reconstruction.tensor()) {
            return Ok((Some(scaled), reconstruction));
        }
        let elements: Vec<Element> =
            self.inputs.iter().flat_map(|input| std::iter::repeat_n(input.element, input.width())).collect();
        if self.reconstructed.iter().any(|feature| elements.get(*feature) == Some(&Element::String)) {
            return Err(no_tensor(
                "scaled pair, which the error of a model with string inputs needs",
                "no outputs were found; set the options scaled and scaled_reconstruction",
            ));
        }
        Ok((None, self.require(Role::Reconstruction)?))
    }

    /// The feature of each column that the error compares.
    ///
    /// # Errors
    /// A planning error if it is unknown.
    pub fn require_error_features(&self) -> Result<&[usize]> {
        match &self.error_features {
            Some(features) => Ok(features),
            None => plan_err!(
                "the error compares {} columns, but the feature of each column is unknown; set the option \
                 scaled_features to one feature name for each column",
                self.error_width()
            ),
        }
    }

    /// Number of columns that the error compares.
    pub fn error_width(&self) -> usize {
        match (self.scaled.tensor(), self.scaled_reconstruction.tensor()) {
            (Some(scaled), Some(_)) => scaled.width(),
            _ => self.reconstructed.len(),
        }
    }
}

fn no_tensor(what: &str, why: &str) -> DataFusionError {
    DataFusionError::Plan(format!("it has no {what}: {why}"))
}

/// The features: from `metadata`; otherwise the names of the inputs, if each is one column; otherwise `f0`, `f1` ….
fn features(metadata: &Metadata, inputs: &[TensorSpec]) -> Result<Vec<Feature>> {
    let width: usize = inputs.iter().map(TensorSpec::width).sum();
    let Some(named) = &metadata.features else {
        if inputs.len() > 1 && inputs.len() == width {
            return Ok(inputs.iter().map(|input| Feature::named(&input.name)).collect());
        }
        return Ok((0..width).map(|i| Feature::named(format!("f{i}"))).collect());
    };
    if named.len() != width {
        return plan_err!("the model takes {width} features, but input_cols names {}", named.len());
    }
    for (i, feature) in named.iter().enumerate() {
        if named[..i].iter().any(|other| other.name == feature.name) {
            return plan_err!("input_cols names \"{}\" twice", feature.name);
        }
    }
    Ok(named.clone())
}

fn error_features(metadata: &Metadata, features: &[Feature], width: usize) -> Result<Option<Vec<usize>>> {
    let Some(names) = &metadata.scaled_features else {
        return Ok((width == features.len()).then(|| (0..width).collect()));
    };
    if names.len() != width {
        return plan_err!("the error compares {width} columns, but scaled_features names {}", names.len());
    }
    let position = |name: &String| match features.iter().position(|feature| feature.name == *name) {
        Some(index) => Ok(index),
        None => plan_err!("scaled_features names \"{name}\", which is not among input_cols"),
    };
    names.iter().map(position).collect::<Result<_>>().map(Some)
}
