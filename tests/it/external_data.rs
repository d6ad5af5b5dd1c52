//! Model files with tensors in other files: read from their own folder, and from nowhere else.

use std::path::Path;
use std::sync::Arc;

use aefusion_udfs::catalog::Models;
use aefusion_udfs::model::metadata::{Metadata, Role};
use aefusion_udfs::model::onnx::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, SparseTensorProto,
    StringStringEntryProto, TensorProto, attribute_proto, tensor_proto,
};
use aefusion_udfs::sql::SessionContextExt;
use aefusion_udfs::store::ModelStore;
use datafusion::prelude::{SessionConfig, SessionContext};
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};
use prost::Message;
use url::Url;

use crate::harness::needed;

crate::harness::tests! {
    async data_beside_the_file_is_stored_in_one_file,
    async data_of_both_files_of_a_pair_is_read,
    async data_in_an_object_store_is_read_from_the_same_prefix,
    async data_elsewhere_is_refused,
    async links_do_not_lead_out_of_the_folder,
    async lengths_are_checked_before_data_is_read,
    async tensors_everywhere_are_checked,
    fn applications_register_files_with_data,
    fn the_line_of_python_joins_the_files,
}

/// `half` and `one`, as `tests/models/make.py` has them: both begin with 8 bytes.
fn data() -> Vec<u8> {
    [0.5_f32, 0.5, 1.0, 1.0].iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn mean() -> ModelProto {
    ModelProto::decode(std::fs::read("tests/models/mean.onnx").unwrap().as_slice()).unwrap()
}

/// Moves the data of a tensor to another file.
fn move_out(tensor: &mut TensorProto, entries: &[(&str, &str)]) {
    tensor.raw_data = None;
    tensor.data_location = Some(tensor_proto::DataLocation::External.into());
    let entry =
        |(key, value): &(&str, &str)| StringStringEntryProto { key: Some((*key).into()), value: Some((*value).into()) };
    tensor.external_data = entries.iter().map(entry).collect();
}

/// The model `mean` with the tensor `half` elsewhere.
fn half_at(entries: &[(&str, &str)]) -> ModelProto {
    let mut model = mean();
    move_out(&mut model.graph.as_mut().unwrap().initializer[0], entries);
    model
}

/// The model `mean` with both tensors in `file`.
fn both_at(file: &str) -> ModelProto {
    let mut model = half_at(&[("location", file), ("offset", "0"), ("length", "8")]);
    move_out(&mut model.graph.as_mut().unwrap().initializer[1], &[("location", file), ("offset", "8")]);
    model
}

fn session() -> SessionContext {
    let session = SessionContext::new_with_config(SessionConfig::new());
    aefusion_udfs::register_all(&session, Models::new(ModelStore::in_memory())).unwrap();
    session
}

/// The outcome of a registration.
async fn create(session: &SessionContext, path: &str) -> Result<(), String> {
    let sql = format!("CREATE OR REPLACE MODEL m OPTIONS (model_path = '{path}')");
    session.ae_sql(&sql).await.map(drop).map_err(|e| e.to_string())
}

async fn error_of(session: &SessionContext, path: &Path) -> String {
    create(session, path.to_str().unwrap()).await.unwrap_err()
}

/// (1, 5): the mean is 3, the squares are 4 and 4.
async fn assert_right(session: &SessionContext) {
    let sql = "SELECT 1 / CAST(ae_error('m', 1, 5) = 4 AS INT)";
    session.ae_sql(sql).await.unwrap().collect().await.unwrap();
}

async fn data_beside_the_file_is_stored_in_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let at = |path: &str| folder.path().join(path);
    let names = ["m.onnx.data", "weights", "m onnx#1%20é.data", "onnx::MatMul_12", "..data", "./m.onnx.data"];
    for name in names.into_iter().filter(|name| cfg!(unix) || !name.contains(':')) {
        std::fs::write(at("m.onnx"), both_at(name).encode_to_vec()).unwrap();
        std::fs::write(at(name), data()).unwrap();
        let session = session();
        create(&session, at("m.onnx").to_str().unwrap()).await.unwrap();
        std::fs::remove_file(at(name)).unwrap();
        assert_right(&session).await;
        let export = format!("EXPORT MODEL m TO '{}'", at("out.onnx").display());
        session.ae_sql(&export).await.unwrap();
        let stored = ModelProto::decode(std::fs::read(at("out.onnx")).unwrap().as_slice()).unwrap();
        for (tensor, expected) in stored.graph.unwrap().initializer.iter().zip(data().chunks(8)) {
            assert!(tensor.external_data.is_empty() && tensor.data_location.is_none());
            assert_eq!(tensor.raw_data(), expected);
        }
        std::fs::remove_file(at("out.onnx")).unwrap();
    }
}

async fn data_of_both_files_of_a_pair_is_read() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["encoder", "decoder"] {
        let mut model =
            ModelProto::decode(std::fs::read(format!("tests/interop/two_files_{name}.onnx")).unwrap().as_slice())
                .unwrap();
        let mut data = Vec::new();
        for tensor in &mut model.graph.as_mut().unwrap().initializer {
            let (offset, bytes) = (data.len().to_string(), tensor.raw_data().to_vec());
            assert!(!bytes.is_empty());
            move_out(tensor, &[("location", "shared.data"), ("offset", &offset)]);
            data.extend(bytes);
        }
        std::fs::create_dir(folder.path().join(name)).unwrap();
        std::fs::write(folder.path().join(name).join("m.onnx"), model.encode_to_vec()).unwrap();
        std::fs::write(folder.path().join(name).join("shared.data"), data).unwrap();
    }
    let session = session();
    let sql = |encoder: &str, decoder: &str| {
        format!("CREATE OR REPLACE MODEL m OPTIONS (encoder_path = '{encoder}', decoder_path = '{decoder}')")
    };
    let path = |name: &str| folder.path().join(name).join("m.onnx").to_str().unwrap().to_owned();
    session.ae_sql(&sql(&path("encoder"), &path("decoder"))).await.unwrap();
    let whole = sql("tests/interop/two_files_encoder.onnx", "tests/interop/two_files_decoder.onnx");
    session.ae_sql(&whole.replace(" m ", " whole ")).await.unwrap();
    let n: usize = session.ae_sql("SELECT * FROM ae_features('m')").await.unwrap().count().await.unwrap();
    let features = vec!["0.5"; n].join(", ");
    let same = format!("SELECT 1 / CAST(ae_error('m', {features}) = ae_error('whole', {features}) AS INT)");
    session.ae_sql(&same).await.unwrap().collect().await.unwrap();
}

async fn data_in_an_object_store_is_read_from_the_same_prefix() {
    let session = session();
    let store = Arc::new(InMemory::new());
    session.runtime_env().register_object_store(&Url::parse("bucket://b").unwrap(), Arc::clone(&store) as _);
    let put = async |path: &str, bytes: Vec<u8>| {
        store.put(&path.into(), bytes.into()).await.unwrap();
    };
    for prefix in ["", "some/prefix/"] {
        put(&format!("{prefix}m.onnx"), both_at("m.onnx.data").encode_to_vec()).await;
        let url = format!("bucket://b/{prefix}m.onnx");
        let missing = create(&session, &url).await.unwrap_err();
        assert!(missing.contains("could not read 'm.onnx.data'"), "{missing}");
        // a longer file is read in part
        for length in [16, 20] {
            let mut data = data();
            data.resize(length, 7);
            put(&format!("{prefix}m.onnx.data"), data).await;
            create(&session, &url).await.unwrap();
            assert_right(&session).await;
        }
        put(&format!("{prefix}m.onnx.data"), data()[..15].to_vec()).await;
        let short = create(&session, &url).await.unwrap_err();
        assert!(short.contains("'m.onnx.data' has 15 bytes, but the tensors of the model need 16"), "{short}");
        put(&format!("{prefix}m.onnx"), both_at("../m.onnx.data").encode_to_vec()).await;
        let outside = create(&session, &url).await.unwrap_err();
        assert!(outside.contains("only files in the folder of the model are read"), "{outside}");
    }
    let listed = store.list_with_delimiter(None).await.unwrap().objects.len();
    assert_eq!(listed, 2);
}

async fn data_elsewhere_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = |path: &str| folder.path().join(path);
    std::fs::create_dir_all(at("models/below")).unwrap();
    for place in ["m.data", "models/m.data", "models/below/m.data"] {
        std::fs::write(at(place), data()).unwrap();
    }
    let absolute = at("models/m.data").to_str().unwrap().to_owned();
    let session = session();
    let file = at("models/m.onnx");
    let locations =
        ["", ".", "..", "./", "../m.data", "./../m.data", "below/../m.data", "below/../../m.data", "below/m.data"];
    let odd =
        [&*absolute, "/etc/passwd", "/dev/zero", "//m.data", "..\\m.data", "m.data\0", "m\n.data", "file:///m.data"];
    for location in locations.into_iter().chain(odd) {
        std::fs::write(&file, half_at(&[("location", location)]).encode_to_vec()).unwrap();
        let error = error_of(&session, &file).await;
        assert!(error.contains("only files in the folder of the model are read"), "{location:?}: {error}");
        assert!(error.contains("python -c"), "{location:?}: {error}");
    }
    for (entries, expected) in [
        (&[][..], "names none"),
        (&[("location", "below")], "is not a file"),
        (&[("location", "none.data")], "could not read 'none.data', in which the ONNX file stores tensors"),
        (&[("location", "m.data"), ("location", "../m.data")], "gives the location of its data twice"),
        (&[("location", "m.data"), ("offset", "0"), ("offset", "8")], "gives the offset of its data twice"),
    ] {
        std::fs::write(&file, half_at(entries).encode_to_vec()).unwrap();
        let error = error_of(&session, &file).await;
        assert!(error.contains(expected), "{entries:?}: {error}");
    }
}

#[cfg(unix)]
async fn links_do_not_lead_out_of_the_folder() {
    use std::os::unix::fs::symlink;

    let folder = tempfile::tempdir().unwrap();
    let at = |path: &str| folder.path().join(path);
    std::fs::create_dir_all(at("models")).unwrap();
    std::fs::write(at("outside.data"), data()).unwrap();
    std::fs::write(at("models/inside.data"), data()).unwrap();
    std::fs::write(at("models/m.onnx"), both_at("m.data").encode_to_vec()).unwrap();
    let session = session();
    for target in [at("outside.data"), "../outside.data".into(), "/dev/zero".into(), "..".into()] {
        symlink(&target, at("models/m.data")).unwrap();
        let error = error_of(&session, &at("models/m.onnx")).await;
        assert!(error.contains("is a link out of its folder"), "{}: {error}", target.display());
        std::fs::remove_file(at("models/m.data")).unwrap();
    }
    // a folder with the same beginning is another folder
    std::fs::create_dir(at("models2")).unwrap();
    std::fs::write(at("models2/m.data"), data()).unwrap();
    symlink(at("models2/m.data"), at("models/m.data")).unwrap();
    assert!(error_of(&session, &at("models/m.onnx")).await.contains("is a link out of its folder"));
    std::fs::remove_file(at("models/m.data")).unwrap();
    // links that stay inside, and a linked folder
    symlink("inside.data", at("models/m.data")).unwrap();
    symlink(at("models"), at("linked")).unwrap();
    for path in ["models/m.onnx", "linked/m.onnx", "models2/../models/m.onnx"] {
        create(&session, at(path).to_str().unwrap()).await.unwrap();
        assert_right(&session).await;
    }
}

#[cfg(not(unix))]
async fn links_do_not_lead_out_of_the_folder() {}

async fn lengths_are_checked_before_data_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let at = |path: &str| folder.path().join(path);
    std::fs::write(at("m.data"), data()).unwrap();
    // takes no space on the disk
    std::fs::File::create(at("huge.data")).unwrap().set_len(1 << 40).unwrap();
    let session = session();
    let far = (1_u64 << 33).to_string();
    let beyond = (1_u64 << 30).to_string();
    for (entries, expected) in [
        (&[("location", "m.data"), ("offset", "12")][..], "has 16 bytes, but the tensors of the model need 20"),
        (
            &[("location", "m.data"), ("offset", "17"), ("length", "8")],
            "has 16 bytes, but the tensors of the model need 25",
        ),
        (
            &[("location", "m.data"), ("length", "4")],
            "needs 8 bytes for its shape [2, 1], but its data has the length 4",
        ),
        (&[("location", "m.data"), ("length", "9")], "but its data has the length 9"),
        (&[("location", "m.data"), ("offset", "-1")], "the offset of its data is no whole number"),
        (&[("location", "m.data"), ("offset", "18446744073709551615")], "at most 2 GiB"),
        (&[("location", "m.data"), ("length", "18446744073709551616")], "the length of its data is no whole number"),
        (
            &[("location", "huge.data"), ("offset", &far)],
            "a model is stored as one protobuf, which holds at most 2 GiB",
        ),
        (
            &[("location", "huge.data"), ("offset", &beyond)],
            "at most 536870912 are allowed for a model (ae.max_model_bytes)",
        ),
    ] {
        std::fs::write(at("m.onnx"), half_at(entries).encode_to_vec()).unwrap();
        let error = error_of(&session, &at("m.onnx")).await;
        assert!(error.contains(expected), "{entries:?}: {error}");
    }
    // many tensors of the same bytes: each has its own bytes in the joined file
    let mut many = mean();
    let graph = many.graph.as_mut().unwrap();
    for i in 0..5 {
        let mut tensor = TensorProto {
            dims: vec![1 << 29],
            data_type: Some(2),
            name: Some(format!("w{i}")),
            ..TensorProto::default()
        };
        move_out(&mut tensor, &[("location", "huge.data")]);
        graph.initializer.push(tensor);
    }
    std::fs::write(at("m.onnx"), many.encode_to_vec()).unwrap();
    let error = error_of(&session, &at("m.onnx")).await;
    assert!(error.contains("at most 2 GiB"), "{error}");
    // shapes and types without a size
    for (dims, data_type) in
        [(vec![i64::MAX, 2], 1), (vec![-1, 2], 1), (vec![2, 1], 8), (vec![2, 1], 0), (vec![2, 1], 999)]
    {
        let mut model = half_at(&[("location", "m.data")]);
        let half = &mut model.graph.as_mut().unwrap().initializer[0];
        (half.dims, half.data_type) = (dims, Some(data_type));
        std::fs::write(at("m.onnx"), model.encode_to_vec()).unwrap();
        let error = error_of(&session, &at("m.onnx")).await;
        assert!(error.contains("has the impossible shape"), "{data_type}: {error}");
    }
    // the limit of the session
    std::fs::write(at("m.onnx"), both_at("m.data").encode_to_vec()).unwrap();
    let size = std::fs::metadata(at("m.onnx")).unwrap().len() + 15;
    session.ae_sql(&format!("SET ae.max_model_bytes = {size}")).await.unwrap();
    let error = error_of(&session, &at("m.onnx")).await;
    assert!(error.contains("with the files of its tensors, has"), "{error}");
}

/// A node with a tensor in an attribute.
fn constant(attribute: AttributeProto) -> NodeProto {
    NodeProto {
        op_type: Some("Constant".to_owned()),
        output: vec!["unused".to_owned()],
        attribute: vec![attribute],
        ..NodeProto::default()
    }
}

fn attribute(name: &str, r#type: attribute_proto::AttributeType) -> AttributeProto {
    AttributeProto { name: Some(name.to_owned()), r#type: Some(r#type.into()), ..AttributeProto::default() }
}

/// One tensor lies elsewhere, or is too large, in each place where a file has tensors.
async fn tensors_everywhere_are_checked() {
    use attribute_proto::AttributeType;

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("m.onnx");
    let session = session();
    let mut elsewhere =
        TensorProto { dims: vec![1], data_type: Some(1), name: Some("w".into()), ..TensorProto::default() };
    move_out(&mut elsewhere, &[("location", "/etc/passwd")]);
    let mut unnamed = elsewhere.clone();
    unnamed.data_location = None;
    let large = TensorProto { dims: vec![1 << 40], ..mean().graph.unwrap().initializer[0].clone() };
    let cases = [
        (elsewhere, "stores its data in \"/etc/passwd\""),
        (unnamed, "stores its data in another file"),
        (large, "has the impossible shape [1099511627776]"),
    ];
    for (tensor, expected) in cases {
        let indices = TensorProto { dims: vec![1], data_type: Some(7), int64_data: vec![0], ..TensorProto::default() };
        let sparse = SparseTensorProto { values: Some(tensor.clone()), indices: Some(indices.clone()), dims: vec![4] };
        let values = TensorProto { dims: vec![1], data_type: Some(1), float_data: vec![1.0], ..TensorProto::default() };
        let indexed = SparseTensorProto { values: Some(values), indices: Some(tensor.clone()), dims: vec![4] };
        let in_graph = GraphProto { initializer: vec![tensor.clone()], ..GraphProto::default() };
        let sparse_in_graph = GraphProto { sparse_initializer: vec![sparse.clone()], ..GraphProto::default() };
        let attributes = [
            AttributeProto { t: Some(tensor.clone()), ..attribute("value", AttributeType::Tensor) },
            AttributeProto { tensors: vec![tensor.clone()], ..attribute("values", AttributeType::Tensors) },
            AttributeProto {
                sparse_tensor: Some(sparse.clone()),
                ..attribute("sparse_value", AttributeType::SparseTensor)
            },
            AttributeProto { sparse_tensors: vec![indexed.clone()], ..attribute("s", AttributeType::SparseTensors) },
            AttributeProto { g: Some(in_graph), ..attribute("body", AttributeType::Graph) },
            AttributeProto { graphs: vec![sparse_in_graph], ..attribute("bodies", AttributeType::Graphs) },
        ];
        let mut models = Vec::new();
        let mut with = |change: &dyn Fn(&mut ModelProto)| {
            let mut model = mean();
            change(&mut model);
            models.push(model);
        };
        with(&|model| model.graph.as_mut().unwrap().initializer.push(tensor.clone()));
        with(&|model| model.graph.as_mut().unwrap().sparse_initializer.push(sparse.clone()));
        with(&|model| model.graph.as_mut().unwrap().sparse_initializer.push(indexed.clone()));
        for attribute in attributes {
            let node = constant(attribute.clone());
            let function = FunctionProto {
                name: Some("F".to_owned()),
                domain: Some("mine".to_owned()),
                opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(18) }],
                ..FunctionProto::default()
            };
            with(&|model| model.graph.as_mut().unwrap().node.push(node.clone()));
            with(&|model| model.functions.push(FunctionProto { node: vec![node.clone()], ..function.clone() }));
            with(&|model| {
                model.functions.push(FunctionProto { attribute_proto: vec![attribute.clone()], ..function.clone() });
            });
        }
        for (i, model) in models.iter().enumerate() {
            std::fs::write(&file, model.encode_to_vec()).unwrap();
            let error = error_of(&session, &file).await;
            assert!(error.contains(expected), "{i}: {error}");
        }
    }
    // few values of a large dense tensor, and several tensors that are large together
    let graph = |dims: i64, n: usize| {
        let mut model = mean();
        let values =
            TensorProto { dims: vec![0], data_type: Some(1), name: Some("w".into()), ..TensorProto::default() };
        let indices = TensorProto { dims: vec![0], data_type: Some(7), ..TensorProto::default() };
        let sparse = SparseTensorProto { values: Some(values), indices: Some(indices), dims: vec![dims] };
        model.graph.as_mut().unwrap().sparse_initializer = vec![sparse; n];
        model
    };
    for (model, expected) in
        [(graph(1 << 40, 1), "impossible shape"), (graph(1 << 26, 3), "sparse tensors made dense, has 805306368")]
    {
        std::fs::write(&file, model.encode_to_vec()).unwrap();
        let error = error_of(&session, &file).await;
        assert!(error.contains(expected), "{error}");
    }
}

fn applications_register_files_with_data() {
    let models = Models::new(ModelStore::in_memory());
    let model = models.register_file("m", "tests/models/scattered/mean.onnx", Metadata::default()).unwrap();
    assert_eq!(model.contract().tensor(Role::Code).unwrap().width(), 1);
    let bytes = std::fs::read("tests/models/scattered/mean.onnx").unwrap();
    let error = models.register_bytes("n", bytes, Metadata::default()).unwrap_err().to_string();
    assert!(error.contains("stores its data in another file") && error.contains("python -c"), "{error}");
}

/// Runs the lines of Python that errors give.
fn the_line_of_python_joins_the_files() {
    let python = std::env::var_os("AEFUSION_PYTHON");
    let python = needed(python.ok_or_else(|| "needs AEFUSION_PYTHON, which cargo xtask test sets".to_owned()));
    let folder = tempfile::tempdir().unwrap();
    let at = |path: &str| folder.path().join(path);
    let models = Models::new(ModelStore::in_memory());
    std::fs::create_dir(at("below")).unwrap();
    std::fs::write(at("below/m.data"), data()).unwrap();
    std::fs::write(at("m.data"), data()).unwrap();
    let outside = at("m.data").to_str().unwrap().to_owned();
    for (location, result) in [("below/m.data", "one.onnx"), (&outside, "fixed.onnx"), ("../m.data", "fixed.onnx")] {
        std::fs::write(at("model.onnx"), both_at(location).encode_to_vec()).unwrap();
        let error = models.register_file("m", at("model.onnx"), Metadata::default()).unwrap_err().to_string();
        let line = error.split_once("python -c \"").unwrap().1.split('"').next().unwrap();
        let ran = std::process::Command::new(&python).args(["-c", line]).current_dir(folder.path()).output().unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        models.register_file("m", at(result), Metadata::default()).unwrap();
        std::fs::remove_file(at(result)).unwrap();
    }
}
