//! Writes preprocessing and network as one ONNX graph, and reads the weights back.

use std::collections::HashSet;

use aefusion_udfs::model::metadata::{Feature as FileFeature, Metadata, Role};
use aefusion_udfs::model::onnx::proto::ModelProto;
use datafusion::common::internal_err;
use datafusion::error::Result;
use prost::Message;

use crate::activation::Activation;
use crate::design::{Design, Encoding, Feature};
use crate::network::{Layer, Network};
use crate::onnx::{Attribute, DOUBLE, FLOAT, Graph, STRING};
use aefusion_udfs::numbers::to_f32;

/// The networks of a model.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Networks {
    /// From the scaled space to the code.
    pub(crate) encoder: Network,
    /// From the code to the scaled space.
    pub(crate) decoder: Network,
    /// From the code to the logits.
    pub(crate) head: Option<Network>,
}

/// Adjacent features that share an input tensor.
struct Input<'a> {
    name: String,
    features: &'a [Feature],
}

impl Input<'_> {
    fn is_double(&self) -> bool {
        matches!(self.features[0].encoding, Encoding::Number { is_double: true, .. })
    }

    /// Means and deviations of the number features.
    fn scales(&self) -> (Vec<f64>, Vec<f64>) {
        let scale = |feature: &Feature| match feature.encoding {
            Encoding::Number { mean, deviation, .. } => Some((mean, deviation)),
            Encoding::Category { .. } => None,
        };
        self.features.iter().filter_map(scale).unzip()
    }
}

/// The ONNX file of a model. Adds the tensors and the features to `metadata`, and writes it to the file.
///
/// # Errors
/// An external error if the metadata cannot be written as JSON.
pub(crate) fn export(name: &str, design: &Design, networks: &Networks, mut metadata: Metadata) -> Result<ModelProto> {
    let inputs = inputs(design);
    let mut graph = Graph::default();
    scale(&mut graph, &inputs);
    layers(&mut graph, "encoder", &networks.encoder, "aefusion/filled", Role::Code.name());
    layers(&mut graph, "decoder", &networks.decoder, Role::Code.name(), Role::ScaledReconstruction.name());
    let element = unscale(&mut graph, &inputs);
    graph.output(Role::Code.name(), FLOAT, networks.encoder.outputs());
    graph.output(Role::Reconstruction.name(), element, design.features.len());
    graph.output(Role::Scaled.name(), FLOAT, design.width);
    graph.output(Role::ScaledReconstruction.name(), FLOAT, design.width);
    if let Some(head) = &networks.head {
        layers(&mut graph, "head", head, Role::Code.name(), Role::Logits.name());
        graph.output(Role::Logits.name(), FLOAT, head.outputs());
    }
    for role in Role::ALL.into_iter().filter(|role| *role != Role::Logits || networks.head.is_some()) {
        metadata.tensors.insert(role, role.name().to_owned());
    }
    metadata.features = Some(design.features.iter().map(file_feature).collect());
    let columns = |feature: &Feature| std::iter::repeat_n(feature.name.clone(), feature.encoding.width());
    metadata.scaled_features = Some(design.features.iter().flat_map(columns).collect());
    let mut model = graph.into_model(name);
    metadata.write(&mut model)?;
    Ok(model)
}

fn file_feature(feature: &Feature) -> FileFeature {
    let levels = match &feature.encoding {
        Encoding::Category { levels, .. } => levels.clone(),
        Encoding::Number { .. } => Vec::new(),
    };
    FileFeature { name: feature.name.clone(), type_name: Some(feature.data_type.to_string()), levels }
}

/// Adjacent numbers of one precision share an input. Each text column has its own.
fn inputs(design: &Design) -> Vec<Input<'_>> {
    let together = |a: &Feature, b: &Feature| match (&a.encoding, &b.encoding) {
        (Encoding::Number { is_double: a, .. }, Encoding::Number { is_double: b, .. }) => a == b,
        _ => false,
    };
    let groups: Vec<&[Feature]> = design.features.chunk_by(together).collect();
    let mut taken: HashSet<String> = Role::ALL.iter().map(|role| role.name().to_owned()).collect();
    let mut inputs = Vec::new();
    for features in &groups {
        let mut name = match (groups.len(), *features) {
            (_, [one]) => one.name.clone(),
            (1, _) => "features".to_owned(),
            (_, many) => format!("{} to {}", many[0].name, many[many.len() - 1].name),
        };
        while name.is_empty() || name.starts_with("aefusion/") || !taken.insert(name.clone()) {
            name.push('_');
        }
        inputs.push(Input { name, features });
    }
    inputs
}

/// The nodes from the inputs to the scaled space, where a missing number is NaN, and to the filled rows.
fn scale(graph: &mut Graph, inputs: &[Input<'_>]) {
    let mut parts = Vec::new();
    for (i, input) in inputs.iter().enumerate() {
        let part = |what: &str| format!("aefusion/input{i}/{what}");
        let width = input.features.len();
        if let Encoding::Category { levels, .. } = &input.features[0].encoding {
            graph.input(&input.name, STRING, 1);
            one_hot(graph, &input.name, levels, &part);
        } else {
            let (means, deviations) = input.scales();
            let factors = deviations.iter().map(|deviation| 1.0 / deviation);
            let (mean, factor) = (part("mean"), part("factor"));
            let scaled = part("scaled");
            if input.is_double() {
                graph.input(&input.name, DOUBLE, width);
                graph.doubles(&mean, &[width], &means);
                graph.doubles(&factor, &[width], &factors.collect::<Vec<_>>());
                graph.node("Sub", &[&input.name, &mean], &part("centered"), &[]);
                graph.node("Mul", &[&part("centered"), &factor], &part("double"), &[]);
                let to = [("to", Attribute::Whole(i64::from(FLOAT)))];
                graph.node("Cast", &[&part("double")], &scaled, &to);
            } else {
                graph.input(&input.name, FLOAT, width);
                graph.floats(&mean, &[width], &means.iter().copied().map(to_f32).collect::<Vec<_>>());
                graph.floats(&factor, &[width], &factors.map(to_f32).collect::<Vec<_>>());
                graph.node("Sub", &[&input.name, &mean], &part("centered"), &[]);
                graph.node("Mul", &[&part("centered"), &factor], &scaled, &[]);
            }
        }
        parts.push(part("scaled"));
    }
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let scaled = Role::Scaled.name();
    graph.node("Concat", &parts, scaled, &[("axis", Attribute::Whole(1))]);
    graph.floats("aefusion/zero", &[], &[0.0]);
    graph.node("IsNaN", &[scaled], "aefusion/missing", &[]);
    graph.node("Where", &["aefusion/missing", "aefusion/zero", scaled], "aefusion/filled", &[]);
}

/// The nodes of a category: one column for each level, one for other texts, one for the empty or missing text.
fn one_hot(graph: &mut Graph, input: &str, levels: &[String], part: &impl Fn(&str) -> String) {
    let whole = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let (n, depth) = (levels.len(), levels.len() + 2);
    let keys: Vec<String> = levels.iter().cloned().chain([String::new()]).collect();
    let places = (0..n).chain([n + 1]).map(whole).collect();
    let attributes = [
        ("keys_strings", Attribute::Texts(&keys)),
        ("values_int64s", Attribute::Wholes(places)),
        ("default_int64", Attribute::Whole(whole(n))),
    ];
    graph.node("LabelEncoder", &[input], &part("level"), &attributes);
    graph.wholes(&part("depth"), &[], &[whole(depth)]);
    graph.floats(&part("off_on"), &[2], &[0.0, 1.0]);
    graph.node("OneHot", &[&part("level"), &part("depth"), &part("off_on")], &part("one_hot"), &[]);
    graph.wholes(&part("shape"), &[2], &[-1, whole(depth)]);
    graph.node("Reshape", &[&part("one_hot"), &part("shape")], &part("scaled"), &[]);
}

/// The nodes of a network from one tensor to another.
fn layers(graph: &mut Graph, name: &str, network: &Network, from: &str, to: &str) {
    let mut given = from.to_owned();
    let last = network.layers().len() - 1;
    for (i, layer) in network.layers().iter().enumerate() {
        let part = |what: &str| format!("{name}/{i}/{what}");
        let result = if i == last { to.to_owned() } else { part("output") };
        let sum = if layer.activation == Activation::Linear { result.clone() } else { part("sum") };
        graph.floats(&part("weight"), &[layer.inputs, layer.outputs], network.weight(i));
        graph.floats(&part("bias"), &[layer.outputs], network.bias(i));
        graph.node("Gemm", &[&given, &part("weight"), &part("bias")], &sum, &[]);
        activation(graph, layer.activation, &sum, &result);
        given = result;
    }
}

fn activation(graph: &mut Graph, activation: Activation, from: &str, to: &str) {
    let operator = match activation {
        Activation::Linear => return,
        Activation::Relu => "Relu",
        Activation::Elu => return graph.node("Elu", &[from], to, &[("alpha", Attribute::Number(1.0))]),
        Activation::Selu => "Selu",
        Activation::Sigmoid => "Sigmoid",
        Activation::Tanh => "Tanh",
        Activation::Relu6 => {
            let (low, high) = (format!("{to}/low"), format!("{to}/high"));
            graph.floats(&low, &[], &[0.0]);
            graph.floats(&high, &[], &[6.0]);
            return graph.node("Clip", &[from, &low, &high], to, &[]);
        }
    };
    graph.node(operator, &[from], to, &[]);
}

/// The nodes from the scaled reconstruction back to the units of the features. A category becomes the place of its level.
/// Returns the element type of the result.
fn unscale(graph: &mut Graph, inputs: &[Input<'_>]) -> i32 {
    let element = if inputs.iter().any(Input::is_double) { DOUBLE } else { FLOAT };
    let to = [("to", Attribute::Whole(i64::from(element)))];
    let axis = [("axis", Attribute::Whole(1))];
    let whole = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    graph.wholes("aefusion/columns", &[1], &[1]);
    let mut parts = Vec::new();
    for (i, input) in inputs.iter().enumerate() {
        let part = |what: &str| format!("aefusion/output{i}/{what}");
        let first = input.features[0].first;
        let last = match &input.features[0].encoding {
            // the columns of other and of missing texts stand for no level
            Encoding::Category { levels, .. } => first + levels.len(),
            Encoding::Number { .. } => first + input.features.len(),
        };
        graph.wholes(&part("from"), &[1], &[whole(first)]);
        graph.wholes(&part("to"), &[1], &[whole(last)]);
        let slice = [Role::ScaledReconstruction.name(), &part("from"), &part("to"), "aefusion/columns"];
        graph.node("Slice", &slice, &part("part"), &[]);
        let result = part("result");
        if let Encoding::Category { .. } = &input.features[0].encoding {
            graph.node("ArgMax", &[&part("part")], &part("place"), &axis);
            graph.node("Cast", &[&part("place")], &result, &to);
        } else {
            let (means, deviations) = input.scales();
            let width = means.len();
            let given = if element == DOUBLE { part("double") } else { part("part") };
            if element == DOUBLE {
                graph.node("Cast", &[&part("part")], &given, &to);
                graph.doubles(&part("mean"), &[width], &means);
                graph.doubles(&part("deviation"), &[width], &deviations);
            } else {
                let single = |values: Vec<f64>| values.into_iter().map(to_f32).collect::<Vec<_>>();
                graph.floats(&part("mean"), &[width], &single(means));
                graph.floats(&part("deviation"), &[width], &single(deviations));
            }
            graph.node("Mul", &[&given, &part("deviation")], &part("spread"), &[]);
            graph.node("Add", &[&part("spread"), &part("mean")], &result, &[]);
        }
        parts.push(result);
    }
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    graph.node("Concat", &parts, Role::Reconstruction.name(), &axis);
    element
}

/// The parameters of a network that [`export`] wrote: for each layer its weight, then its bias.
///
/// # Errors
/// An internal error if a tensor is missing or has another size.
pub(crate) fn parameters(file: &[u8], name: &str, layers: &[Layer]) -> Result<Vec<f32>> {
    let model = match ModelProto::decode(file) {
        Ok(model) => model,
        Err(e) => return internal_err!("a stored model cannot be read: {e}"),
    };
    let tensors = model.graph.map(|graph| graph.initializer).unwrap_or_default();
    let mut parameters = Vec::new();
    for (i, layer) in layers.iter().enumerate() {
        for (what, size) in [("weight", layer.inputs * layer.outputs), ("bias", layer.outputs)] {
            let wanted = format!("{name}/{i}/{what}");
            let tensor = tensors.iter().find(|tensor| tensor.name() == wanted);
            let bytes = tensor.map(|tensor| tensor.raw_data()).unwrap_or_default();
            let (numbers, incomplete) = bytes.as_chunks::<4>();
            if numbers.len() != size || !incomplete.is_empty() {
                return internal_err!("the stored model has no tensor \"{wanted}\" of {size} numbers");
            }
            parameters.extend(numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)));
        }
    }
    Ok(parameters)
}
