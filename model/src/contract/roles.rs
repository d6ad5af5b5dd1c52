//! Detects the roles of tensors.

use std::collections::HashSet;

use datafusion_common::error::{DataFusionError, Result};
use datafusion_common::plan_err;

use super::names::{common_names, plain};
use super::probe::Probed;
use super::reconstructed::{Match, match_inputs, named};
use super::{Found, TensorSpec};
use crate::metadata::{Feature, Metadata, Role};
use crate::onnx::proto::{GraphProto, ModelProto};
use crate::onnx::{Dataflow, Need, WITH_MEAN, computed_tensors, decoder_entry, heads_of};
use crate::runtime::Element;
use crate::suggest;

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
    /// The feature of each column of the reconstruction; all features without one.
    pub(super) reconstructed: Vec<usize>,
}

/// Most tensors that an error lists.
const LISTED: usize = 5;
/// Why a role has no tensor, if nothing else is known.
const UNNAMED: &str = "no output has a common name for it";
/// Most outputs whose paths are searched for a bottleneck.
const SEARCHED: usize = 8;

/// The first match is taken: `metadata`, common names, shapes, and for the code the narrowest activation.
pub(super) fn find(model: &ModelProto, metadata: &Metadata, probed: &Probed, features: &[Feature]) -> Result<Roles> {
    let Some(graph) = &model.graph else { return plan_err!("the ONNX file holds no graph") };
    let search = Search { graph, metadata, probed, flow: Dataflow::new(model, graph), features };
    let scaled = search.named(Role::Scaled)?;
    let scaled_reconstruction = search.named(Role::ScaledReconstruction)?;
    if let (Some(scaled), Some(reconstruction)) = (scaled.tensor(), scaled_reconstruction.tensor()) {
        if scaled.width() != reconstruction.width() {
            return plan_err!("scaled {scaled} and scaled_reconstruction {reconstruction} differ in width");
        }
        if !super::reconstructed::same_order(&scaled.shape, &reconstruction.shape) {
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
    let reconstruction = search.reconstruction(&taken)?;
    taken.extend(reconstruction.tensor().map(|tensor| tensor.name.clone()));
    taken.extend(reconstruction.tensor().into_iter().flat_map(|tensor| heads_of(graph, &tensor.name)));
    let reconstructed = match reconstruction.tensor() {
        Some(tensor) => search.reconstructed(tensor)?,
        None => (0..features.len()).collect(),
    };
    let code = match code_named {
        Found::Tensor(tensor) => Found::Tensor(tensor),
        Found::None { why } => match search.by_shape(Role::Code, &taken, &|tensor| tensor.width() < features.len())? {
            Some(found) => found,
            None => search.narrowest(&scaled, &scaled_reconstruction, &reconstruction)?.unwrap_or(Found::None { why }),
        },
    };
    if code.tensor().is_none() && reconstruction.tensor().or(scaled_reconstruction.tensor()).is_none() {
        let unfit = match &reconstruction {
            Found::None { why } if !why.starts_with(UNNAMED) => format!(": {why}"),
            _ => String::new(),
        };
        return plan_err!(
            "found no code and no reconstruction of the {} features{unfit}; name them with the options code and \
             reconstruction; the outputs are {}{}{}",
            features.len(),
            search.outputs_text(),
            search.inner_text(Role::Code),
            search.inner_text(Role::Reconstruction)
        );
    }
    let decoder_entry = search.decoder(model, &code, &reconstruction)?;
    Ok(Roles { code, reconstruction, scaled, scaled_reconstruction, logits, decoder_entry, reconstructed })
}

struct Search<'a> {
    graph: &'a GraphProto,
    metadata: &'a Metadata,
    probed: &'a Probed,
    flow: Dataflow<'a>,
    features: &'a [Feature],
}

impl Search<'_> {
    /// The tensor that has a role by the metadata or by a common name.
    fn named(&self, role: Role) -> Result<Found> {
        match self.metadata.tensors.get(&role) {
            Some(name) => self.given(role, name).map(Found::Tensor),
            None => self.by_name(role, &|_| true),
        }
    }

    /// The output that has a role by a common name.
    fn by_name(&self, role: Role, fits: &dyn Fn(&TensorSpec) -> bool) -> Result<Found> {
        let common = common_names(role);
        let mut why = format!("{UNNAMED}; set the option {role} = 'tensor'");
        let mut candidates = Vec::new();
        for tensor in self.outputs().filter(|tensor| common.contains(&plain(&tensor.name).as_str()) && fits(tensor)) {
            if let Some(kind) = self.not_computed(role, &tensor.name) {
                why = format!("{tensor} {kind}");
                continue;
            }
            if let Some(reason) = self.not_compared(role, tensor) {
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

    /// The reconstruction of all features, by name or by shape, or otherwise of the features of some inputs.
    fn reconstruction(&self, taken: &HashSet<String>) -> Result<Found> {
        let role = Role::Reconstruction;
        if self.metadata.tensors.contains_key(&role) {
            return self.named(role);
        }
        let wanted = self.metadata.reconstruction_features.as_ref().map_or(self.features.len(), Vec::len);
        let has_all = |tensor: &TensorSpec| tensor.width() == wanted;
        let mut why = match self.by_name(role, &has_all)? {
            Found::None { why } => why,
            found => return Ok(found),
        };
        // numbers cannot reconstruct a text whose levels are not known
        let has_texts = self.probed.inputs.iter().any(|input| input.element == Element::String)
            && self.features.iter().all(|feature| feature.levels.is_empty());
        match self.by_shape(role, taken, &|tensor| has_all(tensor) && !has_texts)? {
            Some(Found::None { why: reason }) => why = reason,
            Some(found) => return Ok(found),
            None => {}
        }
        if self.metadata.reconstruction_features.is_some() {
            return Ok(Found::None {
                why: format!("no output of {wanted} numbers fits reconstruction_features: {why}"),
            });
        }
        let has_some = |tensor: &TensorSpec| tensor.width() < wanted;
        let is_named = |tensor: &TensorSpec| common_names(role).contains(&plain(&tensor.name).as_str());
        // stored models have no reconstruction here, and stay usable if there are several candidates
        let reason = match self.by_name(role, &has_some).unwrap_or_else(|e| Found::none(text(&e))) {
            Found::None { why } => self.outputs().any(|tensor| is_named(tensor) && has_some(tensor)).then_some(why),
            found => return Ok(found),
        };
        let mut decoded = self.outputs().filter(|tensor| self.is_decoded(tensor, taken)).take(SEARCHED);
        match (decoded.next(), decoded.next()) {
            (Some(tensor), None) => Ok(Found::Tensor(tensor.clone())),
            _ => Ok(Found::None { why: reason.unwrap_or(why) }),
        }
    }

    /// Whether an output without a common name reconstructs the features of some inputs. It has their shape, and all
    /// paths from them pass a narrower tensor.
    fn is_decoded(&self, tensor: &TensorSpec, taken: &HashSet<String>) -> bool {
        let is_free = tensor.element.is_float()
            && tensor.width() < self.features.len()
            && !taken.contains(&tensor.name)
            && !common_names(Role::Code).contains(&plain(&tensor.name).as_str());
        if !is_free || self.flow.random_source(&tensor.name).is_some() {
            return false;
        }
        match self.matched(tensor) {
            Match::Features(features) => !self.passed(tensor, &self.inputs_with(&features), tensor.width()).is_empty(),
            _ => false,
        }
    }

    /// The features that a tensor reconstructs by its shape and its name.
    fn matched(&self, tensor: &TensorSpec) -> Match {
        if let Some(names) = &self.metadata.reconstruction_features {
            return named(names, tensor.width(), self.features, &self.probed.inputs, tensor)
                .map_or(Match::Unknown, Match::Features);
        }
        let leaves = self.flow.reached(&[&tensor.name], &[]).leaves;
        match_inputs(tensor, &self.probed.inputs, |input| leaves.get(input) == Some(&Need::Values))
    }

    /// The features of the reconstruction.
    fn reconstructed(&self, tensor: &TensorSpec) -> Result<Vec<usize>> {
        if let Some(names) = &self.metadata.reconstruction_features {
            return named(names, tensor.width(), self.features, &self.probed.inputs, tensor);
        }
        match (self.matched(tensor), self.not_compared(Role::Reconstruction, tensor)) {
            (Match::Features(features), _) => Ok(features),
            (_, reason) => plan_err!("{}", reason.unwrap_or_default()),
        }
    }

    /// The inputs with some of these features.
    fn inputs_with(&self, features: &[usize]) -> HashSet<&str> {
        let mut first = 0;
        let mut names = HashSet::new();
        for input in &self.probed.inputs {
            let range = first..first + input.width();
            first = range.end;
            if features.iter().any(|feature| range.contains(feature)) {
                names.insert(input.name.as_str());
            }
        }
        names
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
        if role == Role::Reconstruction && self.metadata.reconstruction_features.is_some() {
            self.reconstructed(tensor)?;
        }
        match self.not_compared(role, tensor) {
            Some(reason) => plan_err!("{reason}"),
            None => Ok(tensor.clone()),
        }
    }

    /// Why a reconstruction cannot be compared number by number with features. Its shape fits no input, or it shows
    /// another order of the numbers of a row, such as channels last instead of first.
    fn not_compared(&self, role: Role, tensor: &TensorSpec) -> Option<String> {
        if role != Role::Reconstruction {
            return None;
        }
        let (width, features) = (tensor.width(), self.features.len());
        match self.matched(tensor) {
            Match::Features(_) => None,
            Match::OtherOrder(place) => Some(format!(
                "reconstruction {tensor} has the numbers of a row in another order than the input {}; export both \
                 with channels first, or both with channels last",
                self.probed.inputs[place]
            )),
            Match::Unknown if width < features => Some(format!(
                "reconstruction {tensor} has {width} numbers a row, the model takes {features} features, and neither \
                 shapes nor names show which of them it reconstructs; set the option reconstruction_features to the \
                 feature of each of its columns"
            )),
            Match::Unknown => Some(format!(
                "reconstruction {tensor} has {width} numbers a row, but the model takes {features} features"
            )),
        }
    }

    fn by_shape(
        &self,
        role: Role,
        taken: &HashSet<String>,
        fits: &dyn Fn(&TensorSpec) -> bool,
    ) -> Result<Option<Found>> {
        let candidates: Vec<&TensorSpec> = self
            .outputs()
            .filter(|tensor| tensor.element.is_float() && fits(tensor) && !taken.contains(&tensor.name))
            .filter(|tensor| self.depends_on_features(&tensor.name))
            .collect();
        let reason = |tensor: &&TensorSpec| self.not_compared(role, tensor);
        let other_order = candidates.iter().find_map(reason);
        let candidates: Vec<_> = candidates.into_iter().filter(|tensor| reason(tensor).is_none()).collect();
        let (from_random, candidates): (Vec<_>, Vec<_>) =
            candidates.into_iter().partition(|tensor| self.flow.random_source(&tensor.name).is_some());
        // an output with the name of a reconstruction is a code only if there is no other
        let is_named = |tensor: &&&TensorSpec| {
            role == Role::Code && common_names(Role::Reconstruction).contains(&plain(&tensor.name).as_str())
        };
        let unnamed: Vec<&TensorSpec> = candidates.iter().filter(|tensor| !is_named(tensor)).copied().collect();
        let candidates = if unnamed.is_empty() { candidates } else { unnamed };
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

    /// The narrowest activation on every path from the reconstructed features to their reconstruction. Other inputs, such
    /// as a condition, may reach the decoder beside the code.
    fn narrowest(
        &self,
        scaled: &Found,
        scaled_reconstruction: &Found,
        reconstruction: &Found,
    ) -> Result<Option<Found>> {
        let Some(decoded) = scaled_reconstruction.tensor().or(reconstruction.tensor()) else { return Ok(None) };
        let all = || self.probed.inputs.iter().map(|input| input.name.as_str()).collect::<HashSet<&str>>();
        let inputs = match (scaled_reconstruction.tensor(), scaled.tensor()) {
            (Some(_), Some(scaled)) => {
                let leaves = self.flow.reached(&[&scaled.name], &[]).leaves;
                all().into_iter().filter(|name| *name == scaled.name || leaves.contains_key(name)).collect()
            }
            (Some(_), None) => all(),
            (None, _) => self.inputs_with(&self.reconstructed(decoded)?),
        };
        let wide = self.probed.inputs.iter().filter(|input| inputs.contains(input.name.as_str()));
        let mut passed = self.passed(decoded, &inputs, wide.map(TensorSpec::width).sum());
        let Some(width) = passed.iter().map(|tensor| tensor.width()).min() else { return Ok(None) };
        // all lie on one path: each is computed from the tensor before it
        passed.retain(|tensor| tensor.width() == width);
        let mixes = |pair: &[&TensorSpec]| {
            let nodes = self.flow.reached(&[&pair[1].name], &[&pair[0].name]).nodes;
            nodes.iter().any(|index| MIXING.contains(&self.graph.node[*index].op_type()))
        };
        if passed.windows(2).any(mixes) {
            let several = ambiguous(Role::Code, &passed);
            // stored models, which have a role, stay usable
            return if self.metadata.tensors.is_empty() {
                several
            } else {
                several.or_else(|e| Ok(Some(Found::none(text(&e)))))
            };
        }
        if let Some(tensor) = passed.last()
            && let Some(operator) = self.flow.random_source(&tensor.name)
        {
            return Ok(Some(Found::none(random(tensor, operator))));
        }
        Ok(passed.last().map(|tensor| Found::Tensor((*tensor).clone())))
    }

    /// The tensors narrower than `width` through which alone `decoded` depends on the values of `inputs`, each computed
    /// from the one before it.
    fn passed(&self, decoded: &TensorSpec, inputs: &HashSet<&str>, width: usize) -> Vec<&TensorSpec> {
        let passages = self.flow.passages(&decoded.name, &|name: &str| inputs.contains(name)).into_iter();
        let tensors = passages.filter_map(|name| self.probed.tensors.get(name));
        tensors.filter(|tensor| tensor.element.is_float() && tensor.width() < width).collect()
    }

    fn depends_on_features(&self, name: &str) -> bool {
        let leaves = self.flow.reached(&[name], &[]).leaves;
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
            Err(e) => Ok(Found::none(text(&e))),
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

    /// Inner tensors that would fit a role, for the end of an error: the narrowest codes, and the last reconstructions.
    fn inner_text(&self, role: Role) -> String {
        let fits = |tensor: &TensorSpec| match role {
            Role::Reconstruction => matches!(self.matched(tensor), Match::Features(_)),
            _ => tensor.width() < self.features.len(),
        };
        let mut inner: Vec<&TensorSpec> = computed_tensors(self.graph)
            .filter(|name| !self.graph.output.iter().any(|output| output.name() == *name))
            .filter_map(|name| self.probed.tensors.get(name))
            .filter(|tensor| tensor.element.is_float() && tensor.width() <= self.features.len())
            .collect();
        match role {
            Role::Reconstruction => inner.reverse(),
            _ => inner.sort_by_key(|tensor| tensor.width()),
        }
        inner.truncate(SEARCHED * LISTED);
        inner.retain(|tensor| {
            fits(tensor) && self.depends_on_features(&tensor.name) && self.flow.random_source(&tensor.name).is_none()
        });
        inner.truncate(LISTED);
        match inner.is_empty() {
            true => String::new(),
            false => format!("; inner tensors that fit as {role} are {}", list(&inner)),
        }
    }
}

/// The text of a planning error.
fn text(error: &DataFusionError) -> String {
    error.strip_backtrace().trim_start_matches("Error during planning: ").to_owned()
}

fn random(tensor: &TensorSpec, operator: &str) -> String {
    let remedy = match WITH_MEAN.contains(&operator) {
        true => "the option random = 'mean' runs the graph at the mean of its random operators",
        false => "it has no mean that could replace it: export a graph without it",
    };
    format!(
        "{tensor} depends on the random operator {operator}; it is not used, because a query must give the same result \
         each time; {remedy}"
    )
}

fn ambiguous<T>(role: Role, candidates: &[&TensorSpec]) -> Result<T> {
    plan_err!("the {role} could be any of {}; choose one with the option {role} = 'tensor'", list(candidates))
}

fn list(tensors: &[&TensorSpec]) -> String {
    tensors.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
