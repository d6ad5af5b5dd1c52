//! What an autoencoder file must hold: the one definition that loading checks, SQL types follow and exporters write.

mod probe;
mod roles;

use std::fmt;

use datafusion::common::plan_err;
use datafusion::error::{DataFusionError, Result};

use super::metadata::{ErrorMetric, Feature, Metadata, NullPolicy, Role};
use super::onnx::proto::ModelProto;
use super::runtime::Element;

pub(crate) use probe::PROBE_ROWS;

/// Widest row that is accepted, features or outputs.
const MAX_WIDTH: usize = 1 << 20;

/// A tensor of a model, without its first dimension, the rows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TensorSpec {
    /// Name in the graph.
    pub name: String,
    /// Type of its elements.
    pub element: Element,
    /// Rows of the tensor for each row of the input; 1 but for exporters that flatten `[N, k]` to `[N·k, 1]`
    /// (scikit-learn's `MLPRegressor` by skl2onnx).
    pub rows_per_row: usize,
    /// Its other dimensions; empty for `[N]`.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// Numbers in a row.
    pub fn width(&self) -> usize {
        self.rows_per_row * self.shape.iter().product::<usize>()
    }

    /// Shape for a number of rows, as ONNX Runtime wants it.
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

/// A tensor with a role, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    Tensor(TensorSpec),
    None { why: String },
}

impl Found {
    fn none(why: impl Into<String>) -> Self {
        Self::None { why: why.into() }
    }

    pub(crate) fn tensor(&self) -> Option<&TensorSpec> {
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

/// An autoencoder, as far as its users can see it.
#[derive(Debug, Clone)]
pub struct Contract {
    /// Inputs of the graph. One tensor holds all features, or several hold some each (often one column each).
    pub inputs: Vec<TensorSpec>,
    /// The features, in the order of the inputs, row-major.
    pub features: Vec<Feature>,
    /// Rows that the graph takes at once, when that is fixed.
    pub fixed_rows: Option<usize>,
    /// How an error is measured.
    pub error_metric: ErrorMetric,
    /// What a null feature does.
    pub null_policy: NullPolicy,
    /// Share of rows that are expected to be anomalies.
    pub contamination: Option<f64>,
    /// For each column of the space in which the error is measured, the feature that it comes from.
    pub error_features: Option<Vec<usize>>,
    /// Most numbers a row that any tensor of the graph holds; block sizes follow from it.
    pub widest: usize,
    code: Found,
    reconstruction: Found,
    scaled: Found,
    scaled_reconstruction: Found,
    logits: Found,
    /// The tensor from which the decoder can be run alone.
    decoder_entry: Found,
}

impl Contract {
    /// Whether the errors of both are the same numbers, of the same graph.
    pub(crate) fn measures_as(&self, other: &Self) -> bool {
        let roles = [Role::Reconstruction, Role::Scaled, Role::ScaledReconstruction];
        let name = |contract: &Self, role| contract.tensor(role).map(|tensor| tensor.name.clone());
        self.error_metric == other.error_metric
            && self.null_policy == other.null_policy
            && roles.into_iter().all(|role| name(self, role) == name(other, role))
    }

    /// Finds out what a graph holds: by what is said in `metadata`, then by names, then by shapes.
    ///
    /// # Errors
    /// A planning error that says what is missing or ambiguous, and which option settles it.
    pub(crate) fn discover(model: &ModelProto, metadata: &Metadata) -> Result<Self> {
        let probed = probe::probe(model, metadata)?;
        let roles = roles::find(model, metadata, &probed)?;
        let features = features(metadata, &probed.inputs)?;
        let error_width = match (&roles.scaled, &roles.scaled_reconstruction) {
            (Found::Tensor(scaled), Found::Tensor(_)) => scaled.width(),
            _ => features.len(),
        };
        let error_features = error_features(metadata, &features, error_width)?;
        Ok(Self {
            features,
            fixed_rows: probed.fixed_rows,
            error_metric: metadata.error_metric.unwrap_or_default(),
            null_policy: metadata.null_policy.unwrap_or_default(),
            contamination: metadata.contamination,
            error_features,
            widest: probed.widest(),
            inputs: probed.inputs,
            code: roles.code,
            reconstruction: roles.reconstruction,
            scaled: roles.scaled,
            scaled_reconstruction: roles.scaled_reconstruction,
            logits: roles.logits,
            decoder_entry: roles.decoder_entry,
        })
    }

    /// The tensor from which the decoder runs alone.
    pub(crate) fn decoder(&self) -> &Found {
        &self.decoder_entry
    }

    pub(crate) fn found(&self, role: Role) -> &Found {
        match role {
            Role::Code => &self.code,
            Role::Reconstruction => &self.reconstruction,
            Role::Scaled => &self.scaled,
            Role::ScaledReconstruction => &self.scaled_reconstruction,
            Role::Logits => &self.logits,
        }
    }

    /// The tensor that plays a role, if there is one.
    pub fn tensor(&self, role: Role) -> Option<&TensorSpec> {
        self.found(role).tensor()
    }

    /// The tensor that plays a role.
    ///
    /// # Errors
    /// A planning error that says why there is none.
    pub fn require(&self, role: Role) -> Result<&TensorSpec> {
        match self.found(role) {
            Found::Tensor(tensor) => Ok(tensor),
            Found::None { why } => Err(no_tensor(role.name(), why)),
        }
    }

    /// The tensor from which the decoder runs alone; as wide as the code.
    ///
    /// # Errors
    /// A planning error that says why the decoder cannot run alone.
    pub fn require_decoder(&self) -> Result<&TensorSpec> {
        match &self.decoder_entry {
            Found::Tensor(tensor) => Ok(tensor),
            Found::None { why } => Err(no_tensor("decoder that runs from the code alone", why)),
        }
    }

    /// The two tensors whose difference is the error; without the first, the features themselves are compared.
    ///
    /// # Errors
    /// A planning error that says what is missing.
    pub fn require_error(&self) -> Result<(Option<&TensorSpec>, &TensorSpec)> {
        if let (Some(scaled), Some(reconstruction)) = (self.scaled.tensor(), self.scaled_reconstruction.tensor()) {
            return Ok((Some(scaled), reconstruction));
        }
        if self.inputs.iter().any(|input| input.element == Element::String) {
            return Err(no_tensor(
                "scaled pair, which the error of a model with string inputs needs",
                "no outputs were found; give the options scaled and scaled_reconstruction",
            ));
        }
        Ok((None, self.require(Role::Reconstruction)?))
    }

    /// For each column of the space in which the error is measured, the feature that it comes from.
    ///
    /// # Errors
    /// A planning error if that is not known.
    pub fn require_error_features(&self) -> Result<&[usize]> {
        match &self.error_features {
            Some(features) => Ok(features),
            None => plan_err!(
                "the error is measured over {} columns and it is not known which feature each comes from; give the option \
                 scaled_features with one feature name a column",
                self.error_width()
            ),
        }
    }

    /// Numbers a row in the space in which the error is measured.
    pub fn error_width(&self) -> usize {
        match (self.scaled.tensor(), self.scaled_reconstruction.tensor()) {
            (Some(scaled), Some(_)) => scaled.width(),
            _ => self.features.len(),
        }
    }
}

fn no_tensor(what: &str, why: &str) -> DataFusionError {
    DataFusionError::Plan(format!("it has no {what}: {why}"))
}

/// Features as `metadata` names them; else, with one input a column, as the inputs are called; else `f0`, `f1` ….
fn features(metadata: &Metadata, inputs: &[TensorSpec]) -> Result<Vec<Feature>> {
    let width: usize = inputs.iter().map(TensorSpec::width).sum();
    let Some(named) = &metadata.features else {
        if inputs.len() > 1 && inputs.len() == width {
            return Ok(inputs.iter().map(|input| Feature::named(&input.name)).collect());
        }
        return Ok((0..width).map(|i| Feature::named(format!("f{i}"))).collect());
    };
    if named.len() != width {
        return plan_err!("the model takes {width} features, input_cols names {}", named.len());
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
        return plan_err!("the error is measured over {width} columns, scaled_features names {}", names.len());
    }
    let position = |name: &String| match features.iter().position(|feature| feature.name == *name) {
        Some(index) => Ok(index),
        None => plan_err!("scaled_features names \"{name}\", which is not among input_cols"),
    };
    names.iter().map(position).collect::<Result<_>>().map(Some)
}
