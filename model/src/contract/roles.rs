//! Detects the roles of tensors.

use std::collections::{HashMap, HashSet};

use datafusion_common::error::Result;
use datafusion_common::plan_err;

use super::probe::Probed;
use super::{Found, TensorSpec};
use crate::metadata::{Metadata, Role};
use crate::onnx::proto::{GraphProto, ModelProto};
use crate::onnx::{Dataflow, Need, computed_tensors, decoder_entry};
use crate::suggest;

/// Common names of tensors, lower case.
fn common_names(role: Role) -> &'static [&'static str] {
    match role {
        Role::Code => &[
            "code",
            "codes",
            "latent",
            "latents",
            "embedding",
            "embeddings",
            "z",
            "z_mean",
            "mu",
            "bottleneck",
            "encoded",
            "encoding",
            "encoder_output",
        ],
        Role::Reconstruction => &[
            "reconstruction",
            "reconstructed",
            "recon",
            "recon_x",
            "decoded",
            "decoder_output",
            "output",
            "x_hat",
            "xhat",
            "x_recon",
        ],
        Role::Scaled => &["scaled", "scaled_input"],
        Role::ScaledReconstruction => &["scaled_reconstruction"],
        Role::Logits => &["logits"],
    }
}

/// Operators that mix features. Equally wide tensors before and after one are two bottlenecks.
const MIXING: [&str; 12] = [
    "MatMul",
    "Gemm",
    "Conv",
    "ConvTranspose",
    "LSTM",
    "GRU",
    "RNN",
    "MatMulInteger",
    "QLinearMatMul",
    "QGemm",
    "QLinearConv",
    "Einsum",
];

#[derive(Debug)]
pub(super) struct Roles {
    pub(super) code: Found,
    pub(super) reconstruction: Found,
    pub(super) scaled: Found,
    pub(super) scaled_reconstruction: Found,
    pub(super) logits: Found,
    pub(super) decoder_entry: Found,
}

/// The first match is taken: `metadata`, common names, shapes, and for the code the narrowest activation.
pub(super) fn find(model: &ModelProto, metadata: &Metadata, probed: &Probed) -> Result<Roles> {
    let Some(graph) = &model.graph else { return plan_err!("the ONNX file holds no graph") };
    let search = Search {
        graph,
        metadata,
        probed,
        flow: Dataflow::new(model, graph),
        features: probed.inputs.iter().map(TensorSpec::width).sum(),
    };
    let scaled = search.named(Role::Scaled)?;
    let scaled_reconstruction = search.named(Role::ScaledReconstruction)?;
    if let (Some(scaled), Some(reconstruction)) = (scaled.tensor(), scaled_reconstruction.tensor()) {
        if scaled.width() != reconstruction.width() {
            return plan_err!("scaled {scaled} and scaled_reconstruction {reconstruction} differ in width");
        }
        if !same_order(&scaled.shape, &reconstruction.shape) {
            return plan_err!(
                "scaled {scaled} and scaled_reconstruction {reconstruction} have the numbers of a row in different \
                 orders; export both with channels first, or both with channels last"
            );
        }
    }
    let logits = search.named(Role::Logits)?;
    let mut taken: HashSet<String> = [&scaled, &scaled_reconstruction, &logits]
        .into_iter()
        .filter_map(|found| found.tensor().map(|tensor| tensor.name.clone()))
        .collect();
    let code_named = search.named(Role::Code)?;
    taken.extend(code_named.tensor().map(|tensor| tensor.name.clone()));
    let reconstruction = match search.named(Role::Reconstruction)? {
        Found::Tensor(tensor) => Found::Tensor(tensor),
        Found::None { why } => search
            .by_shape(Role::Reconstruction, &taken, |width| width == search.features)?
            .unwrap_or(Found::None { why }),
    };
    taken.extend(reconstruction.tensor().map(|tensor| tensor.name.clone()));
    let decoded = scaled_reconstruction.tensor().or(reconstruction.tensor());
    let code = match code_named {
        Found::Tensor(tensor) => Found::Tensor(tensor),
        Found::None { why } => match search.by_shape(Role::Code, &taken, |width| width < search.features)? {
            Some(found) => found,
            None => search.narrowest(decoded)?.unwrap_or(Found::None { why }),
        },
    };
    if code.tensor().is_none() && decoded.is_none() {
        return plan_err!(
            "found no code and no reconstruction of the {} features; name them with the options code and \
             reconstruction; the outputs are {}",
            search.features,
            search.outputs_text()
        );
    }
    let decoder_entry = search.decoder(model, &code, &reconstruction)?;
    Ok(Roles { code, reconstruction, scaled, scaled_reconstruction, logits, decoder_entry })
}

struct Search<'a> {
    graph: &'a GraphProto,
    metadata: &'a Metadata,
    probed: &'a Probed,
    flow: Dataflow<'a>,
    features: usize,
}

impl Search<'_> {
    /// The tensor that has a role by the metadata or by a common name.
    fn named(&self, role: Role) -> Result<Found> {
        if let Some(name) = self.metadata.tensors.get(&role) {
            return self.given(role, name).map(Found::Tensor);
        }
        let common = common_names(role);
        let mut why = format!("no output has a common name for it; set the option {role} = 'tensor'");
        let mut candidates = Vec::new();
        for tensor in self.outputs() {
            if !common.contains(&plain(&tensor.name).as_str())
                || (role == Role::Reconstruction && tensor.width() != self.features)
            {
                continue;
            }
            if let Some(kind) = self.not_computed(role, &tensor.name) {
                why = format!("{tensor} {kind}");
                continue;
            }
            if let Some(reason) = self.in_other_order(role, tensor) {
                why = reason;
                continue;
            }
            match self.flow.random_source(&tensor.name) {
                Some(operator) => why = random(tensor, operator),
                None => candidates.push(tensor),
            }
        }
        match candidates.as_slice() {
            [] => Ok(Found::None { why }),
            [tensor] => self.checked(role, tensor).map(Found::Tensor),
            _ => ambiguous(role, &candidates),
        }
    }

    fn given(&self, role: Role, name: &str) -> Result<TensorSpec> {
        let Some(tensor) = self.probed.tensors.get(name) else {
            let known: Vec<&str> = computed_tensors(self.graph).collect();
            if known.contains(&name) {
                return plan_err!("{role} = '{name}': this tensor does not have one row for each input row");
            }
            return plan_err!(
                "{role} = '{name}': no tensor has this name{}; the outputs are {}",
                suggest::hint(name, known),
                self.outputs_text()
            );
        };
        if let Some(operator) = self.flow.random_source(name) {
            return plan_err!("{role} = '{name}': {}", random(tensor, operator));
        }
        if let Some(kind) = self.not_computed(role, name) {
            return plan_err!("{role} = '{name}': {tensor} {kind}");
        }
        self.checked(role, tensor)
    }

    /// What a tensor is that a role cannot have, because no node computes it from the features. The features themselves
    /// can be compared with a reconstruction of them.
    fn not_computed(&self, role: Role, name: &str) -> Option<&'static str> {
        match (self.is_feature(name), role) {
            (true, Role::Scaled) => None,
            (true, _) => Some("is an input of the graph, and no result; choose a tensor that the graph computes"),
            (false, _) if self.depends_on_features(name) => None,
            (false, _) => Some("does not depend on the features; choose a tensor that the graph computes from them"),
        }
    }

    fn checked(&self, role: Role, tensor: &TensorSpec) -> Result<TensorSpec> {
        if role == Role::Reconstruction && tensor.width() != self.features {
            return plan_err!(
                "reconstruction {tensor} has {} numbers a row, but the model takes {} features",
                tensor.width(),
                self.features
            );
        }
        match self.in_other_order(role, tensor) {
            Some(reason) => plan_err!("{reason}"),
            None => Ok(tensor.clone()),
        }
    }

    /// Why a reconstruction cannot be compared number by number with the features. Its shape shows another order of the
    /// numbers of a row, such as channels last instead of first.
    fn in_other_order(&self, role: Role, tensor: &TensorSpec) -> Option<String> {
        let [input] = self.probed.inputs.as_slice() else { return None };
        (role == Role::Reconstruction && !same_order(&input.shape, &tensor.shape)).then(|| {
            format!(
                "reconstruction {tensor} has the numbers of a row in another order than the input {input}; export both \
                 with channels first, or both with channels last"
            )
        })
    }

    fn by_shape(&self, role: Role, taken: &HashSet<String>, fits: impl Fn(usize) -> bool) -> Result<Option<Found>> {
        let candidates: Vec<&TensorSpec> = self
            .outputs()
            .filter(|tensor| tensor.element.is_float() && fits(tensor.width()) && !taken.contains(&tensor.name))
            .filter(|tensor| self.depends_on_features(&tensor.name))
            .collect();
        let reason = |tensor: &&TensorSpec| self.in_other_order(role, tensor);
        let other_order = candidates.iter().find_map(reason);
        let candidates: Vec<_> = candidates.into_iter().filter(|tensor| reason(tensor).is_none()).collect();
        let (from_random, candidates): (Vec<_>, Vec<_>) =
            candidates.into_iter().partition(|tensor| self.flow.random_source(&tensor.name).is_some());
        match (candidates.as_slice(), from_random.as_slice()) {
            ([], []) => Ok(other_order.map(Found::none)),
            ([], [tensor, ..]) => {
                let operator = self.flow.random_source(&tensor.name).unwrap_or_default();
                Ok(Some(Found::none(random(tensor, operator))))
            }
            ([tensor], _) => Ok(Some(Found::Tensor((*tensor).clone()))),
            _ => ambiguous(role, &candidates),
        }
    }

    /// The narrowest activation on every path from the features to `decoded`.
    fn narrowest(&self, decoded: Option<&TensorSpec>) -> Result<Option<Found>> {
        let Some(decoded) = decoded else { return Ok(None) };
        let is_feature = |name: &str| self.is_feature(name);
        let passed = self.flow.passages(&decoded.name, &is_feature).into_iter();
        let mut passed: Vec<&TensorSpec> = passed
            .filter_map(|name| self.probed.tensors.get(name))
            .filter(|tensor| tensor.element.is_float() && tensor.width() < self.features)
            .collect();
        let Some(width) = passed.iter().map(|tensor| tensor.width()).min() else { return Ok(None) };
        // all lie on one path: each is computed from the tensor before it
        passed.retain(|tensor| tensor.width() == width);
        let mixes = |pair: &[&TensorSpec]| {
            let nodes = self.flow.reached(&[&pair[1].name], &[&pair[0].name]).nodes;
            nodes.iter().any(|index| MIXING.contains(&self.graph.node[*index].op_type()))
        };
        if passed.windows(2).any(mixes) {
            return ambiguous(Role::Code, &passed);
        }
        if let Some(tensor) = passed.last()
            && let Some(operator) = self.flow.random_source(&tensor.name)
        {
            return Ok(Some(Found::none(random(tensor, operator))));
        }
        Ok(passed.last().map(|tensor| Found::Tensor((*tensor).clone())))
    }

    fn depends_on_features(&self, name: &str) -> bool {
        self.has_feature(&self.flow.reached(&[name], &[]).leaves)
    }

    fn has_feature(&self, leaves: &HashMap<&str, Need>) -> bool {
        leaves.iter().any(|(leaf, need)| *need == Need::Values && self.is_feature(leaf))
    }

    fn is_feature(&self, name: &str) -> bool {
        self.probed.inputs.iter().any(|input| input.name == name)
    }

    fn decoder(&self, model: &ModelProto, code: &Found, reconstruction: &Found) -> Result<Found> {
        let (Found::Tensor(code), Found::Tensor(reconstruction)) = (code, reconstruction) else {
            return Ok(Found::none("it needs a code and a reconstruction"));
        };
        match decoder_entry(model, &code.name, &[&reconstruction.name]) {
            Err(e) => Ok(Found::none(e.strip_backtrace().trim_start_matches("Error during planning: "))),
            Ok(entry) => Ok(match self.probed.tensors.get(&entry) {
                Some(tensor) if tensor.width() == code.width() => Found::Tensor(tensor.clone()),
                _ => Found::none(format!("the decoder reads \"{entry}\" instead of the code")),
            }),
        }
    }

    fn outputs(&self) -> impl Iterator<Item = &TensorSpec> {
        self.graph.output.iter().filter_map(|value| self.probed.tensors.get(value.name()))
    }

    fn outputs_text(&self) -> String {
        let outputs: Vec<_> = self.outputs().collect();
        if outputs.is_empty() {
            return "none with one row for each input row".to_owned();
        }
        list(&outputs)
    }
}

/// Whether rows of two shapes have their numbers in one order. Both have equally many numbers. One shape then joins
/// neighbouring axes of the other, as `[64, 3]` or `[192]` do with `[8, 8, 3]`.
fn same_order(a: &[usize], b: &[usize]) -> bool {
    let ends = |shape: &[usize]| {
        let mut end = 1;
        let ends = shape.iter().rev().map(|dim| {
            end *= *dim;
            end
        });
        // axes of one number do not matter
        ends.filter(|end| *end > 1).collect::<HashSet<usize>>()
    };
    let (a, b) = (ends(a), ends(b));
    a.is_subset(&b) || b.is_subset(&a)
}

/// The name of a tensor without the additions of frameworks: `Dense_3/code:0` becomes `code`.
fn plain(name: &str) -> String {
    let name = name.rsplit('/').next().unwrap_or(name);
    let name = name.split(':').next().unwrap_or(name);
    name.to_ascii_lowercase()
}

fn random(tensor: &TensorSpec, operator: &str) -> String {
    format!(
        "{tensor} depends on the random operator {operator}; it is not used, because a query must give the same result \
         each time"
    )
}

fn ambiguous<T>(role: Role, candidates: &[&TensorSpec]) -> Result<T> {
    plan_err!("the {role} could be any of {}; choose one with the option {role} = 'tensor'", list(candidates))
}

fn list(tensors: &[&TensorSpec]) -> String {
    tensors.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::same_order;

    #[test]
    fn joined_axes_keep_the_order_and_turned_axes_do_not() {
        for (a, b) in
            [(&[8, 8, 3][..], &[64, 3][..]), (&[8, 8, 3], &[192]), (&[1, 8, 8], &[8, 8, 1]), (&[12, 1], &[4, 3])]
        {
            assert!(same_order(a, b) && same_order(b, a), "{a:?} {b:?}");
        }
        for (a, b) in [(&[3, 8, 8][..], &[8, 8, 3][..]), (&[4, 6], &[6, 4]), (&[3, 64], &[8, 8, 3])] {
            assert!(!same_order(a, b) && !same_order(b, a), "{a:?} {b:?}");
        }
    }
}
