//! The stored numbers of a graph.

use std::collections::HashMap;

use half::f16;

use super::proto::{AttributeProto, GraphProto, TensorProto};

/// Stored tensors by name: weights, and the outputs of `Constant`.
#[derive(Debug, Default, Clone)]
pub(crate) struct Constants<'a>(HashMap<&'a str, Stored<'a>>);

#[derive(Debug, Clone, Copy)]
enum Stored<'a> {
    Tensor(&'a TensorProto),
    /// Numbers in an attribute.
    Attribute(&'a AttributeProto),
}

impl<'a> Constants<'a> {
    /// The stored tensors of a graph.
    pub(crate) fn of(graph: &'a GraphProto) -> Self {
        Self::default().and(graph)
    }

    /// Those of a sub-graph, too.
    pub(crate) fn and(mut self, graph: &'a GraphProto) -> Self {
        self.0.extend(graph.initializer.iter().map(|tensor| (tensor.name(), Stored::Tensor(tensor))));
        self.0.extend(graph.node.iter().filter(|node| node.op_type() == "Constant").filter_map(|node| {
            let attribute = node.attribute.first()?;
            let stored = attribute.t.as_ref().map_or(Stored::Attribute(attribute), Stored::Tensor);
            Some((node.output.first()?.as_str(), stored))
        }));
        self
    }

    /// The numbers of a tensor; none if it is not stored, or no tensor of numbers.
    pub(crate) fn numbers(&self, name: &str) -> Option<Vec<f64>> {
        match *self.0.get(name)? {
            Stored::Tensor(tensor) => numbers(tensor),
            Stored::Attribute(attribute) => Some(match attribute.name() {
                "value_float" => vec![attribute.f().into()],
                "value_floats" => attribute.floats.iter().copied().map(f64::from).collect(),
                "value_int" => vec![crate::numbers::f64_from_i64(attribute.i())],
                "value_ints" => attribute.ints.iter().copied().map(crate::numbers::f64_from_i64).collect(),
                _ => return None,
            }),
        }
    }
}

fn numbers(tensor: &TensorProto) -> Option<Vec<f64>> {
    let raw = tensor.raw_data.as_deref();
    macro_rules! of {
        ($bytes:literal, $number:ty, $typed:expr) => {
            match raw {
                Some(raw) => {
                    raw.as_chunks::<$bytes>().0.iter().map(|b| f64::from(<$number>::from_le_bytes(*b))).collect()
                }
                None => $typed,
            }
        };
    }
    Some(match tensor.data_type() {
        1 => of!(4, f32, tensor.float_data.iter().copied().map(f64::from).collect()),
        6 => of!(4, i32, tensor.int32_data.iter().copied().map(f64::from).collect()),
        7 => match raw {
            Some(raw) => {
                raw.as_chunks::<8>().0.iter().map(|b| crate::numbers::f64_from_i64(i64::from_le_bytes(*b))).collect()
            }
            None => tensor.int64_data.iter().copied().map(crate::numbers::f64_from_i64).collect(),
        },
        10 => of!(2, f16, return None),
        11 => of!(8, f64, tensor.double_data.clone()),
        _ => return None,
    })
}
