//! Changes of attributes, weights and declarations.

use aefusion_model::onnx::proto::attribute_proto::AttributeType;
use aefusion_model::onnx::proto::{
    AttributeProto, GraphProto, NodeProto, SparseTensorProto, StringStringEntryProto, TensorProto, TypeProto,
    ValueInfoProto, tensor_shape_proto, type_proto,
};
use prost::bytes::Bytes;

use super::prefix;
use crate::lists::{ATTRIBUTES, DIMS, ELEMENTS, FLOATS, INTS, TEXTS};
use crate::random::Random;
use crate::sketch::{element, float, int, int_tensor, ints, tensor_attribute, text};

/// Changes, adds or removes an attribute.
pub(super) fn change_attribute(graph: &mut GraphProto, random: &mut Random) {
    let with: Vec<usize> = (0..graph.node.len()).filter(|node| !graph.node[*node].attribute.is_empty()).collect();
    let is_new = with.is_empty() || random.one_in(3);
    let place = if is_new { random.below(graph.node.len()) } else { random.of(&with).unwrap_or_default() };
    let Some(node) = graph.node.get_mut(place) else { return };
    if is_new {
        let name = random.word(ATTRIBUTES);
        node.attribute.push(new_attribute(name, random));
        return;
    }
    let place = random.below(node.attribute.len());
    if random.one_in(8) {
        drop(node.attribute.remove(place));
    } else {
        change_value(&mut node.attribute[place], random);
    }
}

fn small_or_any(random: &mut Random) -> i64 {
    if random.one_in(3) { random.one(INTS) } else { random.one([0, 1, -1, 2]) }
}

#[allow(clippy::cast_possible_truncation, reason = "the nearest float32")]
fn single(random: &mut Random) -> f32 {
    (if random.one_in(2) { random.one(FLOATS) } else { random.normal() }) as f32
}

fn new_attribute(name: &str, random: &mut Random) -> AttributeProto {
    match random.below(6) {
        0..=2 => int(name, small_or_any(random)),
        3 => float(name, single(random)),
        4 => {
            let values: Vec<i64> = (0..random.below(5)).map(|_| small_or_any(random)).collect();
            ints(name, &values)
        }
        _ => text(name, random.one(TEXTS)),
    }
}

fn change_value(attribute: &mut AttributeProto, random: &mut Random) {
    let is = |kind: AttributeType| attribute.r#type == Some(kind.into());
    if random.one_in(12) {
        attribute.r#type = Some(i32::try_from(random.below(16)).unwrap_or(0));
    } else if is(AttributeType::Int) {
        attribute.i = Some(small_or_any(random));
    } else if is(AttributeType::Float) {
        attribute.f = Some(single(random));
    } else if is(AttributeType::Ints) {
        change_list(&mut attribute.ints, random, small_or_any);
    } else if is(AttributeType::Floats) {
        change_list(&mut attribute.floats, random, single);
    } else if is(AttributeType::String) {
        attribute.s = Some(Bytes::from_static(random.one(TEXTS).as_bytes()));
    } else if is(AttributeType::Strings) {
        change_list(&mut attribute.strings, random, |random| Bytes::from_static(random.one(TEXTS).as_bytes()));
    } else if let Some(tensor) = &mut attribute.t {
        change_tensor(tensor, random);
    } else {
        attribute.ref_attr_name = Some("a".to_owned());
    }
}

fn change_list<T: Clone>(list: &mut Vec<T>, random: &mut Random, value: impl Fn(&mut Random) -> T) {
    let n = list.len();
    match (random.below(4), n) {
        (0, _) | (_, 0) => list.push(value(random)),
        (1, n) => drop(list.remove(random.below(n))),
        (_, n) => list[random.below(n)] = value(random),
    }
}

/// Changes the numbers, the shape or the type of a weight.
pub(super) fn change_weight(graph: &mut GraphProto, random: &mut Random) {
    let place = random.below(graph.initializer.len());
    if let Some(tensor) = graph.initializer.get_mut(place) {
        change_tensor(tensor, random);
    }
}

fn change_tensor(tensor: &mut TensorProto, random: &mut Random) {
    match random.below(12) {
        0..=7 => change_numbers(tensor, random),
        8 => change_list(&mut tensor.dims, random, |random| random.one(DIMS)),
        9 => tensor.dims.reverse(),
        10 => tensor.data_type = Some(random.one(ELEMENTS)),
        _ => {
            let mut raw = tensor.raw_data.take().unwrap_or_default();
            raw.truncate(random.below(raw.len() + 1));
            tensor.raw_data = Some(raw);
        }
    }
}

/// Sets one number, some, or all.
fn change_numbers(tensor: &mut TensorProto, random: &mut Random) {
    let size = match tensor.data_type() {
        element::FLOAT | element::INT32 => 4,
        element::DOUBLE | element::INT64 => 8,
        element::FLOAT16 => 2,
        _ => 1,
    };
    let mut raw = tensor.raw_data.take().unwrap_or_default().to_vec();
    let n = raw.len() / size;
    let changed: Vec<usize> = match random.below(4) {
        0 => (0..n).collect(),
        1 => (0..n).filter(|_| random.one_in(3)).collect(),
        _ => (0..n.min(1)).map(|_| random.below(n)).collect(),
    };
    let one = bytes_of(tensor.data_type(), random);
    for place in changed {
        let value = if random.one_in(3) { bytes_of(tensor.data_type(), random) } else { one.clone() };
        for (to, from) in raw[place * size..(place + 1) * size].iter_mut().zip(value) {
            *to = from;
        }
    }
    tensor.raw_data = Some(Bytes::from(raw));
    change_stored(&mut tensor.float_data, random, single);
    change_stored(&mut tensor.int64_data, random, small_or_any);
    change_stored(&mut tensor.int32_data, random, |random| random.one([0, 1, -1, i32::MIN, i32::MAX, 255]));
}

fn change_stored<T>(values: &mut [T], random: &mut Random, value: impl Fn(&mut Random) -> T) {
    let place = random.below(values.len());
    if let Some(number) = values.get_mut(place) {
        *number = value(random);
    }
}

fn bytes_of(kind: i32, random: &mut Random) -> Vec<u8> {
    match kind {
        element::FLOAT => single(random).to_le_bytes().to_vec(),
        element::DOUBLE => random.one(FLOATS).to_le_bytes().to_vec(),
        element::INT64 => small_or_any(random).to_le_bytes().to_vec(),
        element::INT32 => random.one([0_i32, 1, -1, 2, i32::MIN, i32::MAX]).to_le_bytes().to_vec(),
        _ => random.bits().to_le_bytes().to_vec(),
    }
}

/// Changes the declared type or shape of an input or output.
pub(super) fn change_declaration(graph: &mut GraphProto, random: &mut Random) {
    let n_inputs = graph.input.len();
    let place = random.below(n_inputs + graph.output.len());
    let value = match place.checked_sub(n_inputs) {
        None => graph.input.get_mut(place),
        Some(place) => graph.output.get_mut(place),
    };
    let Some(value) = value else { return };
    if random.one_in(16) {
        return nest(value, random);
    }
    let Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), .. }) = &mut value.r#type else {
        value.r#type = None;
        return;
    };
    match random.below(8) {
        0 => tensor.elem_type = Some(random.one(ELEMENTS)),
        1 => tensor.shape = None,
        _ => {
            let dims = &mut tensor.shape.get_or_insert_default().dim;
            let dim = |random: &mut Random| tensor_shape_proto::Dimension {
                value: match random.below(6) {
                    0 => None,
                    1 => Some(tensor_shape_proto::dimension::Value::DimParam("N".to_owned())),
                    _ => Some(tensor_shape_proto::dimension::Value::DimValue(random.one(DIMS))),
                },
                ..tensor_shape_proto::Dimension::default()
            };
            match random.below(3) {
                // a fixed batch, or a free one
                0 if !dims.is_empty() => dims[0] = dim(random),
                _ => change_list(dims, random, dim),
            }
        }
    }
}

/// Makes a type a sequence, optional value or map of itself.
fn nest(value: &mut ValueInfoProto, random: &mut Random) {
    for _ in 0..random.one([1, 2, 20]) {
        let inner = value.r#type.take().map(Box::new);
        let outer = match random.below(3) {
            0 => type_proto::Value::SequenceType(Box::new(type_proto::Sequence { elem_type: inner })),
            1 => type_proto::Value::OptionalType(Box::new(type_proto::Optional { elem_type: inner })),
            _ => type_proto::Value::MapType(Box::new(type_proto::Map { key_type: Some(7), value_type: inner })),
        };
        value.r#type = Some(TypeProto { value: Some(outer), ..TypeProto::default() });
    }
}

/// Makes a weight sparse, or adds a constant that is.
pub(super) fn make_sparse(graph: &mut GraphProto, random: &mut Random) {
    let dims: Vec<i64> = (0..random.from_to(1, 3)).map(|_| random.one(DIMS)).collect();
    let place = random.below(graph.initializer.len());
    let Some(weight) = graph.initializer.get(place).cloned() else { return };
    let dims = if random.one_in(2) { weight.dims.clone() } else { dims };
    let n = if random.one_in(3) { 1 } else { 2 };
    let numbers: Vec<i64> = (0..n).map(|place| if random.one_in(4) { random.one(INTS) } else { place }).collect();
    let mut values = crate::sketch::tensor(weight.name(), element::FLOAT, &[n], &vec![1.5; numbers.len()]);
    let sparse = |values: TensorProto| SparseTensorProto {
        values: Some(values),
        indices: Some(int_tensor("", &[n], &numbers)),
        dims: dims.clone(),
    };
    if random.one_in(2) {
        graph.initializer.remove(place);
        graph.sparse_initializer.push(sparse(values));
        return;
    }
    values.name = None;
    let mut constant = tensor_attribute("sparse_value", TensorProto::default());
    constant.t = None;
    constant.r#type = Some(AttributeType::SparseTensor.into());
    constant.sparse_tensor = Some(sparse(values));
    let name = format!("{}_sparse", prefix(random));
    graph.node.insert(
        0,
        NodeProto {
            op_type: Some("Constant".to_owned()),
            output: vec![name.clone()],
            attribute: vec![constant],
            ..NodeProto::default()
        },
    );
    let reader = random.below(graph.node.len());
    if let Some(input) = graph.node[reader].input.last_mut() {
        *input = name;
    }
}

/// Makes a tensor say that its data are in another file.
pub(super) fn move_outside(graph: &mut GraphProto, random: &mut Random) {
    let entry =
        |key: &str, value: &str| StringStringEntryProto { key: Some(key.to_owned()), value: Some(value.to_owned()) };
    let location = random.one(["weights.bin", "../x", "/etc/passwd", "", "Cargo.toml", "/dev/zero"]);
    let data = vec![entry("location", location), entry("offset", random.one(["0", "-1", "9223372036854775807"]))];
    let weights = graph.initializer.iter_mut();
    let attributes = graph.node.iter_mut().flat_map(|node| &mut node.attribute).flat_map(|a| a.t.iter_mut());
    let mut tensors: Vec<&mut TensorProto> = weights.chain(attributes).collect();
    let place = random.below(tensors.len());
    if let Some(tensor) = tensors.get_mut(place) {
        tensor.external_data = data;
        tensor.data_location = Some(random.one([1, 1, 0]));
    }
    if random.one_in(4) {
        make_sparse(graph, random);
    }
}
