//! The program tries a model file in a child process. A file that crashes, hangs or takes all memory is refused.

use std::path::Path;
use std::process::{Command, Stdio};

use aefusion_udfs::catalog::Models;
use aefusion_udfs::model::metadata::Metadata;
use aefusion_udfs::model::onnx::proto::attribute_proto::AttributeType;
use aefusion_udfs::model::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
    type_proto,
};
use aefusion_udfs::store::ModelStore;
use bytes::Bytes;
use prost::Message;

use crate::random_model::node;

crate::harness::tests! {
    fn a_crash_of_onnx_runtime_is_an_error,
    fn a_crash_over_extreme_numbers_is_an_error,
    fn a_file_that_takes_all_memory_is_refused,
    fn a_slow_file_is_refused_after_the_time_of_the_setting,
    fn the_child_gives_the_errors_and_files_of_the_process_itself,
}

const FLOAT: i32 = 1;
const INT32: i32 = 6;
const INT64: i32 = 7;
const BOOL: i32 = 9;

/// `mean`, whose first operator reads the features plus zero times the number that `nodes` compute as `number`.
fn with(nodes: Vec<NodeProto>, weights: Vec<TensorProto>) -> Vec<u8> {
    let mut model = ModelProto::decode(std::fs::read("tests/models/mean.onnx").unwrap().as_slice()).unwrap();
    let graph = model.graph.as_mut().unwrap();
    let input = graph.input[0].name().to_owned();
    for name in graph.node.iter_mut().flat_map(|node| &mut node.input).filter(|name| **name == input) {
        *name = "moved".to_owned();
    }
    let add = node("Add", &[&input, "number"], "moved");
    graph.node.splice(0..0, nodes.into_iter().chain([add]));
    graph.initializer.extend(weights);
    model.encode_to_vec()
}

fn cast(from: &str, to: &str, element: i32) -> NodeProto {
    let attribute = AttributeProto {
        name: Some("to".to_owned()),
        r#type: Some(AttributeType::Int.into()),
        i: Some(element.into()),
        ..Default::default()
    };
    NodeProto { attribute: vec![attribute], ..node("Cast", &[from], to) }
}

fn number(name: &str, element: i32, dims: &[i64], bytes: &[u8]) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(element),
        dims: dims.to_vec(),
        raw_data: Some(Bytes::copy_from_slice(bytes)),
        ..Default::default()
    }
}

/// Runs statements after `CREATE MODEL m` of a file. Returns exit code, output and errors.
fn run(file: &[u8], before: &[&str], options: &str, after: &[&str]) -> (Option<i32>, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    std::fs::write(&path, file).unwrap();
    let store = folder.path().join("models");
    let create = format!("CREATE MODEL m OPTIONS (model_path = '{}'{options})", path.display());
    let mut program = Command::new(env!("CARGO_BIN_EXE_aefusion"));
    program.args(["sql", "--quiet", "--format", "csv", "--models"]).arg(&store).stdin(Stdio::null());
    for statement in before.iter().copied().chain([create.as_str()]).chain(after.iter().copied()) {
        program.args(["-c", statement]);
    }
    let output = program.output().unwrap();
    if output.status.code() != Some(0) {
        assert!(!has_files(&store), "the store has a file of a model that was refused");
    }
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn has_files(folder: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else { return false };
    entries.flatten().any(|entry| entry.path().is_file() || has_files(&entry.path()))
}

fn a_crash_of_onnx_runtime_is_an_error() {
    // ONNX Runtime computes it while it loads the graph; the processor cannot
    let least = number("least", INT32, &[1], &i32::MIN.to_le_bytes());
    let minus_one = number("minus_one", INT32, &[1], &(-1_i32).to_le_bytes());
    let nodes = vec![node("Div", &["least", "minus_one"], "whole"), cast("whole", "number", FLOAT)];
    let (code, out, err) = run(&with(nodes, vec![least, minus_one]), &[], "", &[]);
    assert_eq!(code, Some(1), "{err}");
    assert_eq!(out, "");
    assert!(err.starts_with("planning error: CREATE MODEL m: '"), "{err}");
    assert!(err.contains("m.onnx': the file ended the process that tried it: ONNX Runtime crashed (SIG"), "{err}");
}

fn a_crash_over_extreme_numbers_is_an_error() {
    // the remainder by -1: the processor cannot compute it for the smallest integer, whatever the other rows are
    let minus_one = number("minus_one", INT32, &[1], &(-1_i32).to_le_bytes());
    let nodes =
        vec![cast("x", "whole", INT32), node("Mod", &["whole", "minus_one"], "rest"), cast("rest", "number", FLOAT)];
    let (code, _, err) = run(&with(nodes, vec![minus_one]), &[], "", &[]);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("ONNX Runtime crashed (SIGFPE)"), "{err}");
}

fn a_file_that_takes_all_memory_is_refused() {
    let shape = number("shape", INT64, &[2], &[1_i64 << 20, 1 << 20].map(i64::to_le_bytes).concat());
    let nodes = vec![
        node("ConstantOfShape", &["shape"], "large"),
        node("ReduceSum", &["large"], "sum"),
        node("Squeeze", &["sum"], "number"),
    ];
    let (code, _, err) = run(&with(nodes, vec![shape]), &[], "", &[]);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("CREATE MODEL m: '") && !err.contains("panicked"), "{err}");
}

fn a_slow_file_is_refused_after_the_time_of_the_setting() {
    // 10^12 rounds take hours
    let end = number("end", INT64, &[], &1_000_000_000_000_i64.to_le_bytes());
    let (code, _, err) = run(
        &with(vec![endless(), cast("count", "number", FLOAT)], vec![end]),
        &["SET ae.registration_seconds = 2"],
        "",
        &[],
    );
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("its test runs took longer than 2 s and were stopped"), "{err}");
}

/// `count` = `end`, counted one by one.
fn endless() -> NodeProto {
    let body = GraphProto {
        name: Some("body".to_owned()),
        input: vec![of_type("i", INT64), of_type("before", BOOL), of_type("sum", INT64)],
        node: vec![node("Identity", &["before"], "go"), node("Add", &["sum", "i"], "next")],
        output: vec![of_type("go", BOOL), of_type("next", INT64)],
        ..Default::default()
    };
    let body = AttributeProto {
        name: Some("body".to_owned()),
        r#type: Some(AttributeType::Graph.into()),
        g: Some(body),
        ..Default::default()
    };
    NodeProto { attribute: vec![body], ..node("Loop", &["end", "", "end"], "count") }
}

/// A tensor of one number.
fn of_type(name: &str, element: i32) -> ValueInfoProto {
    let tensor = type_proto::Tensor { elem_type: Some(element), shape: Some(TensorShapeProto::default()) };
    let value = Some(type_proto::Value::TensorType(tensor));
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto { value, ..Default::default() }),
        ..Default::default()
    }
}

fn the_child_gives_the_errors_and_files_of_the_process_itself() {
    let file = std::fs::read("tests/models/mean.onnx").unwrap();
    let (code, out, err) = run(&file, &[], "", &["SELECT sha256 FROM ae_models()"]);
    assert_eq!(code, Some(0), "{err}");
    let here = Models::new(ModelStore::in_memory()).register_bytes("m", file.clone(), Metadata::default()).unwrap();
    assert!(out.contains(&here.sha256_hex()), "{out}");
    let (code, _, err) = run(&file, &[], ", code = 'nothing'", &[]);
    assert_eq!(code, Some(1));
    let name = err.trim().split_once("': ").unwrap().1;
    assert!(name.starts_with("code = 'nothing': no tensor has this name"), "{err}");
    let (code, _, err) = run(b"not a file", &[], "", &[]);
    assert_eq!(code, Some(1));
    assert!(err.contains("not an ONNX file, or an incomplete one"), "{err}");
}
