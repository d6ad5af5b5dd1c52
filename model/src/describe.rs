//! Files with their contract in their metadata, as the store keeps them.

use std::sync::Arc;

use bytes::Bytes;
use datafusion_common::error::Result;
use datafusion_common::plan_err;

use crate::calibration::Calibration;
use crate::contract::{Contract, TensorSpec};
use crate::file::{ModelFile, declared_width};
use crate::independence::mixed_roles;
use crate::metadata::{Metadata, RandomMode, Role};
use crate::onnx::proto::ModelProto;
use crate::onnx::{DECODER_PREFIX, LargeTensors, Limits, at_mean, computed_tensors, encode, join, merge, parse};
use crate::runtime::{Purpose, Weights};
use crate::suggest;

/// A copy of a file with its contract and the `options` in its metadata.
///
/// # Errors
/// As [`crate::model::Model::load`].
pub(crate) fn describe(bytes: &Bytes, options: Metadata, limits: &Limits) -> Result<Bytes> {
    let graph = parse(bytes, limits)?;
    described(graph, options)
}

/// One file from an encoder file and a decoder file; see [`describe`].
///
/// # Errors
/// A planning error if the files do not fit together.
pub(crate) fn describe_pair(encoder: &Bytes, decoder: &Bytes, mut options: Metadata, limits: &Limits) -> Result<Bytes> {
    let encoder = parse(encoder, limits).map_err(|e| e.context("encoder_path"))?;
    let decoder = parse(decoder, limits).map_err(|e| e.context("decoder_path"))?;
    let outputs: Vec<&str> =
        encoder.graph.iter().flat_map(|graph| graph.output.iter().map(|value| value.name())).collect();
    let code = match (options.tensors.get(&Role::Code), outputs.as_slice()) {
        (Some(name), _) => name.clone(),
        (None, [only]) => (*only).to_owned(),
        (None, _) => {
            return plan_err!("the encoder file has the outputs {outputs:?}; name the code with the option code");
        }
    };
    let merged = merge(&encoder, &decoder, &code)?;
    // the merge renamed the tensors of the decoder; options have the names of the decoder file
    let names: Vec<&str> = merged.graph.iter().flat_map(computed_tensors).collect();
    let heads = options.heads.iter_mut().flat_map(|(role, heads)| heads.iter_mut().map(move |head| (role, head)));
    for (role, name) in options.tensors.iter_mut().chain(heads).filter(|(role, _)| **role != Role::Code) {
        let renamed = format!("{DECODER_PREFIX}{name}");
        let is_decoded = matches!(role, Role::Reconstruction | Role::ScaledReconstruction);
        if names.contains(&renamed.as_str()) && (is_decoded || !names.contains(&name.as_str())) {
            *name = renamed;
        }
    }
    options.tensors.insert(Role::Code, code);
    described(merged, options)
}

/// A copy of a file that has its contract, with another calibration.
///
/// # Errors
/// An error if the metadata cannot be written.
pub fn calibrated(file: &ModelFile, calibration: Calibration) -> Result<Bytes> {
    let metadata = Metadata { calibration: Some(calibration), ..file.metadata.clone() };
    let mut graph = file.graph.clone();
    metadata.write(&mut graph)?;
    Ok(encode(&graph))
}

/// Names of the features in the metadata of a file; empty if it has none.
///
/// # Errors
/// A planning error if the file cannot be read.
pub fn feature_names(bytes: &Bytes, limits: &Limits) -> Result<Vec<String>> {
    let features = Metadata::read(&parse(bytes, limits)?)?.features.unwrap_or_default();
    Ok(features.into_iter().map(|feature| feature.name).collect())
}

fn described(mut graph: ModelProto, options: Metadata) -> Result<Bytes> {
    // functions run parts of the graph; a file that is wrong elsewhere is refused too
    let weights = Weights::of(LargeTensors::take(&mut graph))?;
    weights.part(graph.clone()).load(Purpose::Probe)?;
    let mut chosen = options.tensors.clone();
    chosen.extend(options.heads.iter().map(|(role, heads)| (*role, heads.join("', '"))));
    let is_calibration_given = options.calibration.is_some();
    let own = Metadata::read(&graph)?;
    let mut metadata = options.or(own.clone());
    if metadata.random == Some(RandomMode::Mean) {
        at_mean(&mut graph)?;
    }
    join_heads(&mut graph, &mut metadata)?;
    let was_calibrated = own.calibration.is_some() && !is_calibration_given;
    let old = if was_calibrated { Contract::discover(&graph, &own, &weights).ok() } else { None };
    metadata.mixed_rows.clear();
    let mut contract = discover(&mut graph, &mut metadata, &weights)?;
    metadata.mixed_rows = mixed_roles(&graph, &contract, &weights)?;
    for (role, tensor) in chosen {
        if let Some(why) = metadata.mixed_rows.get(role.name()) {
            return plan_err!("{role} = '{tensor}': {why}");
        }
    }
    contract.leave_out(&metadata.mixed_rows);
    if Role::ALL.into_iter().all(|role| contract.tensor(role).is_none() || role == Role::Scaled) {
        let reasons: Vec<&str> = metadata.mixed_rows.values().map(String::as_str).collect();
        return plan_err!("no code and no reconstruction can be used: {}", reasons.join("; "));
    }
    if was_calibrated && !old.is_some_and(|old| old.measures_as(&contract)) {
        metadata.calibration = None;
    }
    let has_all = contract.reconstructed.iter().copied().eq(0..contract.features.len());
    let name = |feature: &usize| contract.features.get(*feature).map(|feature| feature.name.clone());
    metadata.reconstruction_features = match contract.tensor(Role::Reconstruction) {
        Some(_) if !has_all || metadata.reconstruction_features.is_some() => {
            contract.reconstructed.iter().map(name).collect()
        }
        _ => None,
    };
    for role in Role::ALL {
        if let Some(tensor) = contract.tensor(role) {
            metadata.tensors.insert(role, tensor.name.clone());
        }
    }
    // the graph declares the widths of its outputs; other widths are known only from a test run
    metadata.code_width = contract
        .tensor(Role::Code)
        .filter(|code| declared_width(&graph, &code.name) != Some(code.width()))
        .map(TensorSpec::width);
    metadata.features = Some(contract.features);
    metadata.error_metric = Some(contract.error_metric);
    metadata.null_policy = Some(contract.null_policy);
    metadata.write(&mut graph)?;
    Ok(encode(&graph))
}

/// The contract of a graph. If no output reconstructs features, but several outputs are named after an input each, as
/// `amount_hat` and `age_hat`, these are joined.
fn discover(graph: &mut ModelProto, metadata: &mut Metadata, weights: &Arc<Weights>) -> Result<Contract> {
    let found = Contract::discover(graph, metadata, weights);
    let roles = [Role::Reconstruction, Role::ScaledReconstruction];
    let is_decoded = |contract: &Contract| roles.into_iter().any(|role| contract.tensor(role).is_some());
    if found.as_ref().is_ok_and(is_decoded) || roles.iter().any(|role| metadata.tensors.contains_key(role)) {
        return found;
    }
    let heads = Contract::heads(graph, metadata)?;
    if heads.len() < 2 {
        return found;
    }
    let (mut joined, mut options) = (graph.clone(), metadata.clone());
    options.heads.insert(Role::Reconstruction, heads);
    join_heads(&mut joined, &mut options)?;
    match Contract::discover(&joined, &options, weights) {
        Ok(contract) => {
            (*graph, *metadata) = (joined, options);
            Ok(contract)
        }
        Err(_) => found,
    }
}

/// Joins tensors that have a role together.
fn join_heads(graph: &mut ModelProto, metadata: &mut Metadata) -> Result<()> {
    let mut heads = std::mem::take(&mut metadata.heads);
    if let Some(names) = heads.get(&Role::Reconstruction)
        && metadata.reconstruction_features.is_none()
    {
        metadata.reconstruction_features = Contract::features_of_heads(graph, metadata, names)?;
    }
    for (role, tensors) in heads.drain() {
        let inputs = graph.graph.iter().flat_map(|graph| graph.input.iter().map(|input| input.name()));
        let mut known: Vec<&str> = graph.graph.iter().flat_map(computed_tensors).collect();
        known.extend(inputs.filter(|_| role == Role::Scaled));
        if let Some(tensor) = tensors.iter().find(|tensor| !known.contains(&tensor.as_str())) {
            return plan_err!(
                "{role} names \"{tensor}\", and no operator of the graph computes it{}",
                suggest::hint(tensor, known)
            );
        }
        let joined = match tensors.as_slice() {
            [] => return plan_err!("{role} names no tensor"),
            [only] => only.clone(),
            _ => join(graph, &tensors, role.name()),
        };
        metadata.tensors.insert(role, joined);
    }
    Ok(())
}
