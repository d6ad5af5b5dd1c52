//! Files that crash or hang ONNX Runtime, or take all memory: the program gives an error, or the right numbers.
//!
//! Each stands for a kind that `cargo xtask fuzz` looks for.

use std::path::PathBuf;
use std::time::Duration;

use aefusion_fuzz::sketch::{
    Sketch, declared, element, float, graph, int, int_tensor, tensor, tensor_attribute, text, undeclared,
};
use aefusion_fuzz::watch::survives;
use aefusion_udfs::model::onnx::proto::attribute_proto::AttributeType;
use aefusion_udfs::model::onnx::proto::{
    AttributeProto, FunctionProto, ModelProto, NodeProto, OperatorSetIdProto, SparseTensorProto,
    StringStringEntryProto, TensorProto,
};
use prost::Message;

crate::harness::tests! {
    fn a_chain_of_operators_ends,
    fn division_of_constants_ends,
    fn missing_inputs_end,
    fn ranges_of_random_numbers_end,
    fn functions_that_multiply_end,
    fn sparse_constants_of_functions_end,
    fn data_of_sparse_attributes_stay_outside,
    fn large_batches_end,
    fn endless_loops_end,
    fn large_shapes_end,
    fn deep_nesting_ends,
    fn long_names_end,
    fn outputs_without_a_node_end,
    fn unusual_modes_end,
}

/// Longest time of the program. It only ends a test whose file hangs.
const LIMIT: Duration = Duration::from_secs(120);
/// Address space of the program, KiB.
const MEMORY: u64 = 24 << 20;

/// An autoencoder over `x [N, 4]` with something between the features and the code.
fn autoencoder(between: impl FnOnce(&mut Sketch) -> String) -> ModelProto {
    let mut sketch = Sketch::new("t", element::FLOAT);
    let y = between(&mut sketch);
    let weights: Vec<f64> = [3, -5, 7, 2, 6, -4, 1, 8].map(|n| f64::from(n) / 8.0).to_vec();
    let (we, wd) = (sketch.numbers(&[4, 2], &weights), sketch.numbers(&[2, 4], &weights));
    for (from, weight, to) in [(y.as_str(), &we, "code"), ("code", &wd, "reconstruction")] {
        sketch.graph.node.push(NodeProto { output: vec![to.to_owned()], ..node("MatMul", &[from, weight]) });
    }
    sketch.graph.name = Some("g".to_owned());
    sketch.graph.input.push(declared("x", element::FLOAT, &[None, Some(4)]));
    sketch.graph.output.push(declared("code", element::FLOAT, &[None, Some(2)]));
    sketch.graph.output.push(declared("reconstruction", element::FLOAT, &[None, Some(4)]));
    let import = |domain: &str, version| OperatorSetIdProto { domain: Some(domain.to_owned()), version: Some(version) };
    ModelProto {
        ir_version: Some(9),
        opset_import: vec![import("", 18), import("my", 1)],
        graph: Some(sketch.graph),
        ..ModelProto::default()
    }
}

fn node(kind: &str, inputs: &[&str]) -> NodeProto {
    NodeProto {
        op_type: Some(kind.to_owned()),
        input: inputs.iter().map(|name| (*name).to_owned()).collect(),
        ..NodeProto::default()
    }
}

/// Registers a file with the program, and calls its functions.
fn try_file(name: &str, bytes: &[u8]) {
    let path = PathBuf::from("target/crashes").join(format!("{name}.onnx"));
    std::fs::create_dir_all("target/crashes").unwrap();
    std::fs::write(&path, bytes).unwrap();
    let zeros = "[0.5, 1.0, 1.5, 2.0]";
    let statements = [
        // what never ends need not take longer in a test
        "SET ae.registration_seconds = 10".to_owned(),
        format!("CREATE MODEL m OPTIONS (model_path = '{}')", path.display()),
        "SELECT * FROM ae_models()".to_owned(),
        format!("SELECT ae_error('m', {zeros})"),
        format!("SELECT ae_encode('m', {zeros})"),
    ];
    let options = ["sql", "--quiet", "--models", "memory:///"].map(str::to_owned).into_iter();
    let arguments: Vec<String> =
        options.chain(statements.into_iter().flat_map(|statement| ["--command".to_owned(), statement])).collect();
    let failure = survives(env!("CARGO_BIN_EXE_aefusion"), &arguments, LIMIT, MEMORY).unwrap();
    assert_eq!(failure, None, "{name}");
    std::fs::remove_file(&path).unwrap();
}

fn try_model(name: &str, model: &ModelProto) {
    try_file(name, &model.encode_to_vec());
}

fn a_chain_of_operators_ends() {
    for n in [10_000, 50_000] {
        let chain = autoencoder(|sketch| (0..n).fold("x".to_owned(), |x, _| sketch.op("Neg", &[&x])));
        try_model(&format!("chain_{n}"), &chain);
    }
}

fn division_of_constants_ends() {
    for kind in ["Div", "Mod"] {
        for (name, of) in [("int32", element::INT32), ("int64", element::INT64)] {
            let model = autoencoder(|sketch| {
                let smallest = if of == element::INT32 { i32::MIN.into() } else { i64::MIN };
                let numbers = [smallest, -1].map(|number| {
                    let constant = sketch.ints(&[1], &[number]);
                    sketch.op_with("Cast", &[&constant], vec![int("to", of.into())])
                });
                let quotient = sketch.op(kind, &[&numbers[0], &numbers[1]]);
                let quotient = sketch.op_with("Cast", &[&quotient], vec![int("to", element::FLOAT.into())]);
                sketch.op("Add", &["x", &quotient])
            });
            try_model(&format!("{kind}_{name}"), &model);
        }
    }
}

fn missing_inputs_end() {
    for kind in ["Sum", "Mean", "Max", "Min"] {
        try_model(&format!("{kind}_without"), &autoencoder(|sketch| sketch.op(kind, &["x", ""])));
        let unused = autoencoder(|sketch| {
            let unused = sketch.op(kind, &["x", "", "x"]);
            sketch.graph.output.push(undeclared(&unused));
            "x".to_owned()
        });
        try_model(&format!("{kind}_unused"), &unused);
    }
    for (name, inputs, equation) in [("two", &["x", ""][..], "ij,jk->ik"), ("one", &["x"], "edge")] {
        let equation = vec![text("equation", equation)];
        let model = autoencoder(|sketch| sketch.op_with("Einsum", inputs, equation));
        try_model(&format!("Einsum_{name}"), &model);
    }
}

fn ranges_of_random_numbers_end() {
    for (kind, bounds) in [("RandomUniformLike", ["low", "high"]), ("RandomNormalLike", ["mean", "scale"])] {
        for (name, values) in [("turned", [2.8, 1.0]), ("huge", [3.4e38, 1.0]), ("nan", [f32::NAN, -1.0])] {
            let attributes = bounds.into_iter().zip(values).map(|(name, value)| float(name, value)).collect();
            let model = autoencoder(|sketch| sketch.op_with(kind, &["x"], attributes));
            try_model(&format!("{kind}_{name}"), &model);
        }
    }
}

/// A call of the function `F0`, and functions `a` to `c` with these nodes.
fn with_functions(functions: Vec<Vec<NodeProto>>) -> ModelProto {
    let mut model = autoencoder(|sketch| sketch.op("my::F0", &["x"]));
    let imports = model.opset_import.clone();
    let function = |(place, node): (usize, Vec<NodeProto>)| FunctionProto {
        name: Some(format!("F{place}")),
        domain: Some("my".to_owned()),
        input: vec!["a".to_owned()],
        output: vec!["c".to_owned()],
        opset_import: imports.clone(),
        node,
        ..FunctionProto::default()
    };
    model.functions = functions.into_iter().enumerate().map(function).collect();
    model
}

fn to(node: NodeProto, output: &str) -> NodeProto {
    NodeProto { output: vec![output.to_owned()], ..node }
}

fn functions_that_multiply_end() {
    for depth in [12, 40] {
        let call = |place: usize, from: &str| match place {
            place if place < depth => {
                NodeProto { domain: Some("my".to_owned()), ..node(&format!("F{place}"), &[from]) }
            }
            _ => node("Neg", &[from]),
        };
        let twice = |place: usize| vec![to(call(place + 1, "a"), "b"), to(call(place + 1, "b"), "c")];
        try_model(&format!("functions_{depth}"), &with_functions((0..depth).map(twice).collect()));
    }
    // a function that calls itself
    let own = NodeProto { domain: Some("my".to_owned()), ..node("F0", &["a"]) };
    try_model("functions_circle", &with_functions(vec![vec![to(own, "c")]]));
}

fn sparse(dims: Vec<i64>, values: TensorProto) -> NodeProto {
    let sparse = SparseTensorProto { values: Some(values), indices: Some(int_tensor("", &[1], &[0])), dims };
    let value = AttributeProto {
        name: Some("sparse_value".to_owned()),
        r#type: Some(AttributeType::SparseTensor.into()),
        sparse_tensor: Some(sparse),
        ..AttributeProto::default()
    };
    NodeProto { attribute: vec![value], ..node("Constant", &[]) }
}

fn sparse_constants_of_functions_end() {
    let constant = sparse(vec![1, 4], tensor("", element::FLOAT, &[1], &[1.5]));
    try_model("sparse_function", &with_functions(vec![vec![to(constant, "b"), to(node("Add", &["a", "b"]), "c")]]));
    let huge = sparse(vec![1 << 20, 1 << 20], tensor("", element::FLOAT, &[1], &[1.5]));
    try_model("sparse_huge", &with_functions(vec![vec![to(huge, "b"), to(node("Add", &["a", "b"]), "c")]]));
}

fn data_of_sparse_attributes_stay_outside() {
    let entry =
        |key: &str, value: &str| StringStringEntryProto { key: Some(key.to_owned()), value: Some(value.to_owned()) };
    let outside = TensorProto {
        raw_data: None,
        data_location: Some(1),
        external_data: vec![entry("location", "/etc/passwd"), entry("length", "4")],
        ..tensor("k", element::FLOAT, &[1], &[])
    };
    let branch = |name: &str| {
        let mut inner = Sketch::new(name, element::FLOAT);
        inner.graph.node.push(to(sparse(vec![4], outside.clone()), "k"));
        let sum = inner.op("Add", &["x", "k"]);
        inner.graph.name = Some(name.to_owned());
        inner.graph.output.push(undeclared(&sum));
        inner.graph
    };
    let model = autoencoder(|sketch| {
        let condition = sketch.ints(&[], &[1]);
        let condition = sketch.op_with("Cast", &[&condition], vec![int("to", element::BOOL.into())]);
        let branches = vec![graph("then_branch", branch("then")), graph("else_branch", branch("else"))];
        sketch.op_with("If", &[&condition], branches)
    });
    try_model("sparse_outside", &model);
}

fn large_batches_end() {
    for width in [1 << 14, 1 << 20] {
        let mut model = autoencoder(|sketch| sketch.op("Identity", &["x"]));
        let mut sketch = Sketch::new("t", element::FLOAT);
        sketch.graph.node.push(to(node("Identity", &["x"]), "reconstruction"));
        sketch.graph.name = Some("g".to_owned());
        let dims = [Some(1 << 20), Some(width)];
        sketch.graph.input.push(declared("x", element::FLOAT, &dims));
        sketch.graph.output.push(declared("reconstruction", element::FLOAT, &dims));
        model.graph = Some(sketch.graph);
        try_model(&format!("batch_{width}"), &model);
    }
}

fn endless_loops_end() {
    for (name, trips) in [("without", None), ("long", Some(1_000_000_000_000)), ("longest", Some(i64::MAX))] {
        let model = autoencoder(|sketch| {
            let mut body = Sketch::new("b", element::FLOAT);
            let sum = body.op("Add", &["sum", "sum"]);
            let kept = body.op("Identity", &["keep"]);
            body.graph.name = Some("body".to_owned());
            body.graph.input = vec![
                declared("round", element::INT64, &[]),
                declared("keep", element::BOOL, &[]),
                declared("sum", element::FLOAT, &[None, Some(4)]),
            ];
            body.graph.output =
                vec![declared(&kept, element::BOOL, &[]), declared(&sum, element::FLOAT, &[None, Some(4)])];
            let trips = trips.map_or_else(String::new, |trips| sketch.ints(&[], &[trips]));
            sketch.op_with("Loop", &[&trips, "", "x"], vec![graph("body", body.graph)])
        });
        try_model(&format!("loop_{name}"), &model);
    }
}

fn large_shapes_end() {
    for (name, shape) in
        [("most", [i64::MAX, 1, -128, 2]), ("wide", [1, 1, 1 << 40, 4]), ("least", [i64::MIN, 1, 1, 4])]
    {
        for kind in ["Expand", "Reshape", "Tile"] {
            let model = autoencoder(|sketch| {
                let shape = sketch.list(&shape);
                sketch.op(kind, &["x", &shape])
            });
            try_model(&format!("{kind}_{name}"), &model);
        }
    }
    for columns in [-10, i64::MIN, i64::MAX, 1 << 40] {
        let model = autoencoder(|sketch| {
            let pads = sketch.list(&[0, columns, 0, 0]);
            let (from, end, axes) = (sketch.list(&[0]), sketch.list(&[4]), sketch.list(&[1]));
            let padded = sketch.op("Pad", &["x", &pads]);
            sketch.op("Slice", &[&padded, &from, &end, &axes])
        });
        try_model(&format!("pad_{columns}"), &model);
    }
    let model = autoencoder(|sketch| {
        let shape = sketch.list(&[1 << 40]);
        let value = tensor_attribute("value", tensor("", element::FLOAT, &[1], &[1.0]));
        let ones = sketch.op_with("ConstantOfShape", &[&shape], vec![value]);
        let sum = sketch.op("ReduceSum", &[&ones]);
        sketch.op("Add", &["x", &sum])
    });
    try_model("constant_of_shape", &model);
}

/// Types of sequences of sequences, as the bytes of a file: the decoder of the program does not write them.
fn deep_nesting_ends() {
    for depth in [10_000, 100_000] {
        let mut file = autoencoder(|sketch| sketch.op("Identity", &["x"])).encode_to_vec();
        // the lengths are written from the inside to the outside
        let mut reversed: Vec<u8> = Vec::new();
        for field in std::iter::repeat_n([1, 4], depth).flatten().chain([2, 13, 7]) {
            let length = reversed.len();
            let mut header = vec![field << 3 | 2_u8];
            let mut rest = length;
            while rest > 127 {
                header.push(u8::try_from(rest & 127).unwrap() | 128);
                rest >>= 7;
            }
            header.push(u8::try_from(rest).unwrap());
            reversed.extend(header.into_iter().rev());
        }
        file.extend(reversed.into_iter().rev());
        try_file(&format!("types_{depth}"), &file);
        let mut model = autoencoder(|sketch| sketch.op("Identity", &["x"]));
        let deep = format!("[{{\"name\": \"a\", \"levels\": {}", "[".repeat(depth));
        for key in ["features", "training", "classes"] {
            let key = format!("aefusion.{key}");
            model.metadata_props = vec![StringStringEntryProto { key: Some(key), value: Some(deep.clone()) }];
            try_model(&format!("levels_{depth}"), &model);
        }
    }
}

fn long_names_end() {
    let name = "n".repeat(10 << 20);
    let model = autoencoder(|sketch| {
        sketch.graph.node.push(to(node("Identity", &["x"]), &name));
        name.clone()
    });
    try_model("name", &model);
    let mut model = autoencoder(|sketch| sketch.op(&name, &["x"]));
    try_model("operator", &model);
    model.metadata_props = vec![StringStringEntryProto { key: Some("aefusion.code".to_owned()), value: Some(name) }];
    try_model("code", &model);
}

fn outputs_without_a_node_end() {
    let given = autoencoder(|sketch| {
        sketch.graph.output.push(declared("x", element::FLOAT, &[None, Some(4)]));
        sketch.op("Identity", &["x"])
    });
    try_model("output_is_input", &given);
    let weight = autoencoder(|sketch| {
        let weight = sketch.numbers(&[4, 4], &[1.0; 16]);
        sketch.graph.output.push(declared(&weight, element::FLOAT, &[Some(4), Some(4)]));
        sketch.op("MatMul", &["x", &weight])
    });
    try_model("output_is_weight", &weight);
}

fn unusual_modes_end() {
    for mode in [1, 5, -1] {
        let model = autoencoder(|sketch| {
            let (one, zero) = (sketch.numbers(&[4], &[1.0; 4]), sketch.numbers(&[4], &[0.0; 4]));
            let inputs = ["x", &one, &zero, &zero, &one];
            sketch.ops("BatchNormalization", &inputs, vec![int("training_mode", mode)], 3).swap_remove(0)
        });
        try_model(&format!("training_mode_{mode}"), &model);
    }
    let model = autoencoder(|sketch| {
        let sizes = sketch.list(&[0, i64::MIN, 0, 3]);
        let padded = sketch.op("Pad", &["x", &sizes]);
        sketch.graph.output.push(undeclared(&padded));
        "x".to_owned()
    });
    try_model("dimension_below_zero", &model);
}
