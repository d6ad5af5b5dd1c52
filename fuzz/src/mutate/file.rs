//! Changes of what stands beside the graph: functions, metadata, versions.

use aefusion_model::onnx::proto::{FunctionProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto};

use super::{names, prefix};
use crate::lists::NAMES;
use crate::random::Random;
use crate::sketch::declared;

/// The domain of functions.
const DOMAIN: &str = "fuzz";

/// Moves some neighbouring nodes of the graph, or of a function, into a function.
pub(super) fn wrap_in_function(model: &mut ModelProto, random: &mut Random) {
    let inside =
        if model.functions.is_empty() || random.one_in(2) { None } else { Some(random.below(model.functions.len())) };
    let prefix = prefix(random);
    let opset_import = model.opset_import.clone();
    let nodes = match (inside, &mut model.graph) {
        (Some(place), _) => &mut model.functions[place].node,
        (None, Some(graph)) => &mut graph.node,
        (None, None) => return,
    };
    if nodes.is_empty() {
        return;
    }
    let place = random.below(nodes.len());
    let n = random.from_to(1, 3).min(nodes.len() - place);
    let moved: Vec<NodeProto> = nodes.splice(place..place + n, []).collect();
    let computed: Vec<&String> = moved.iter().flat_map(|node| &node.output).filter(|name| !name.is_empty()).collect();
    let mut input: Vec<String> = Vec::new();
    for name in moved.iter().flat_map(|node| &node.input).filter(|name| !name.is_empty()) {
        if !computed.contains(&name) && !input.contains(name) {
            input.push(name.clone());
        }
    }
    let output: Vec<String> = computed.into_iter().cloned().collect();
    let call = NodeProto {
        domain: Some(DOMAIN.to_owned()),
        op_type: Some(prefix.clone()),
        input: input.clone(),
        output: output.clone(),
        ..NodeProto::default()
    };
    nodes.insert(place, call);
    let mut imports = opset_import;
    imports.push(OperatorSetIdProto { domain: Some(DOMAIN.to_owned()), version: Some(1) });
    let function = FunctionProto {
        name: Some(prefix),
        domain: Some(DOMAIN.to_owned()),
        input,
        output,
        node: moved,
        opset_import: imports,
        ..FunctionProto::default()
    };
    model.functions.push(function);
    if !model.opset_import.iter().any(|import| import.domain() == DOMAIN) {
        model.opset_import.push(OperatorSetIdProto { domain: Some(DOMAIN.to_owned()), version: Some(1) });
    }
}

/// Makes a function call another one or itself, or changes its inputs and outputs.
pub(super) fn change_function(model: &mut ModelProto, random: &mut Random) {
    if model.functions.is_empty() {
        wrap_in_function(model, random);
    }
    let kinds: Vec<String> = model.functions.iter().map(|function| function.name().to_owned()).collect();
    let place = random.below(model.functions.len());
    let Some(function) = model.functions.get_mut(place) else { return };
    match random.below(5) {
        0 => {
            let called = random.below(function.node.len());
            if let Some(node) = function.node.get_mut(called) {
                node.domain = Some(DOMAIN.to_owned());
                node.op_type = random.of(&kinds);
            }
        }
        1 => function.input.reverse(),
        2 => drop(function.output.pop()),
        3 => {
            let again = function.clone();
            model.functions.push(again);
        }
        _ => function.opset_import.clear(),
    }
}

/// Names a tensor as the code, the reconstruction or another role, in the metadata.
pub(super) fn choose_tensor(model: &mut ModelProto, random: &mut Random) {
    let Some(graph) = &model.graph else { return };
    let Some(name) = random.of(&names(graph)) else { return };
    let role = random.one(["code", "code", "code", "reconstruction", "scaled", "scaled_reconstruction", "logits"]);
    put(model, &format!("aefusion.{role}"), &name);
}

fn put(model: &mut ModelProto, key: &str, value: &str) {
    model.metadata_props.retain(|entry| entry.key() != key);
    model.metadata_props.push(StringStringEntryProto { key: Some(key.to_owned()), value: Some(value.to_owned()) });
}

/// Writes an entry of the metadata, valid or not.
pub(super) fn change_metadata(model: &mut ModelProto, random: &mut Random) {
    let deep = "[".repeat(random.one([10, 200, 100_000]));
    let calibration = r#"{"errors":[0.1,0.2,1e308,null],"rows":4}"#;
    let features = r#"[{"name":"a"},{"name":"b","type":"Utf8","levels":["x","x"]},{"name":"a"},{"name":""}]"#;
    let values = [
        "",
        "0",
        "-1",
        "1e400",
        "null",
        "[]",
        "{}",
        "\"\"",
        "mae",
        "rmse",
        "alone",
        "impute",
        "[1,2]",
        "18446744073709551616",
        calibration,
        features,
        &deep,
    ];
    let keys = [
        "features",
        "code_width",
        "scaled_features",
        "error_metric",
        "null_policy",
        "rows",
        "mixed_rows",
        "contamination",
        "calibration",
        "statistics",
        "classes",
        "training",
        "format_version",
        "code",
    ];
    let (key, value) = match random.below(3) {
        0 => random.one([
            ("error_metric", "mae"),
            ("error_metric", "rmse"),
            ("rows", "alone"),
            ("null_policy", "impute"),
        ]),
        _ => (random.one(keys), random.of(&values).unwrap_or_default()),
    };
    put(model, &format!("aefusion.{key}"), value);
    if random.one_in(6) {
        put(model, random.one(NAMES), "x");
    }
}

/// Changes a version of the format or of operators.
pub(super) fn change_versions(model: &mut ModelProto, random: &mut Random) {
    let version =
        random.one([-1_i64, 0, 1, 5, 6, 7, 9, 10, 11, 12, 13, 14, 16, 17, 18, 19, 20, 21, 22, 23, 24, 99, i64::MAX]);
    match random.below(5) {
        0 => model.ir_version = Some(random.one([-1, 0, 1, 3, 4, 8, 10, 11, 13, i64::MAX])),
        1 => model.opset_import.clear(),
        2 => {
            let domain = random.one(["", "ai.onnx", "ai.onnx.ml", "com.microsoft", "fuzz"]).to_owned();
            model.opset_import.push(OperatorSetIdProto { domain: Some(domain), version: Some(version) });
        }
        _ => {
            let place = random.below(model.opset_import.len());
            if let Some(import) = model.opset_import.get_mut(place) {
                import.version = Some(version);
            }
        }
    }
}

/// Makes the file large where it is small: a long chain, functions that multiply, a large batch. Most are harmless:
/// each of the others takes as long as the limits allow.
pub(super) fn make_large(model: &mut ModelProto, random: &mut Random) {
    let is_extreme = random.one_in(20);
    match random.below(3) {
        0 => chain(model, if is_extreme { random.one([3000, 20_000]) } else { random.from_to(2, 60) }),
        1 => multiplied(model, if is_extreme { random.one([20, 40]) } else { random.from_to(1, 5) }),
        _ => {
            let rows = if is_extreme { random.one([1 << 20, 1 << 31]) } else { random.one([2, 5, 64, 300]) };
            let Some(graph) = &mut model.graph else { return };
            for value in &mut graph.input {
                let Some((kind, Some(dims))) = aefusion_model::onnx::declared_tensor(value) else { continue };
                let dims: Vec<Option<i64>> = std::iter::once(Some(rows)).chain(dims.into_iter().skip(1)).collect();
                *value = declared(value.name(), kind, &dims);
            }
        }
    }
}

/// A chain of operators after the first tensor.
fn chain(model: &mut ModelProto, n: usize) {
    let Some(graph) = &mut model.graph else { return };
    let Some(first) = graph.node.first_mut() else { return };
    let Some(input) = first.input.first_mut() else { return };
    let start = std::mem::replace(input, format!("chain{}", n - 1));
    let link = |place: usize| NodeProto {
        op_type: Some("Neg".to_owned()),
        input: vec![place.checked_sub(1).map_or_else(|| start.clone(), |before| format!("chain{before}"))],
        output: vec![format!("chain{place}")],
        ..NodeProto::default()
    };
    graph.node.splice(0..0, (0..n).map(link));
}

/// Functions that call the next one twice each.
fn multiplied(model: &mut ModelProto, depth: usize) {
    let Some(graph) = &mut model.graph else { return };
    let Some(first) = graph.node.first_mut() else { return };
    let Some(input) = first.input.first_mut() else { return };
    let start = std::mem::replace(input, "multiplied".to_owned());
    let call = |place: usize, from: &str, to: &str| NodeProto {
        domain: (place < depth).then(|| DOMAIN.to_owned()),
        op_type: Some(if place < depth { format!("F{place}") } else { "Neg".to_owned() }),
        input: vec![from.to_owned()],
        output: vec![to.to_owned()],
        ..NodeProto::default()
    };
    let mut imports = model.opset_import.clone();
    imports.push(OperatorSetIdProto { domain: Some(DOMAIN.to_owned()), version: Some(1) });
    let function = |place: usize| FunctionProto {
        name: Some(format!("F{place}")),
        domain: Some(DOMAIN.to_owned()),
        input: vec!["a".to_owned()],
        output: vec!["c".to_owned()],
        node: vec![call(place + 1, "a", "b"), call(place + 1, "b", "c")],
        opset_import: imports.clone(),
        ..FunctionProto::default()
    };
    model.functions.extend((0..depth).map(function));
    graph.node.insert(0, call(0, &start, "multiplied"));
    model.opset_import = imports;
}
