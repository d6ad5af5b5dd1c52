//! Types and shapes of the tensors of a graph, from a test run.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use datafusion_common::error::Result;
use datafusion_common::plan_err;

use super::known::{Known, candidates, repeated};
use super::values::Values;
use super::{MAX_WIDTH, TensorSpec};
use crate::metadata::Metadata;
use crate::onnx::proto::{ModelProto, NodeProto, ValueInfoProto};
use crate::onnx::{Cut, computed_tensors, cut, declared_tensor};
use crate::runtime::{Element, Input, Observed, Purpose, Session, Weights};

/// Numbers of a block whose number of rows the graph fixes.
const MAX_FIXED: usize = 1 << 26;

/// Rows of the test run: the multiple that every block is padded to.
pub(crate) const PROBE_ROWS: usize = 16;

/// Operators whose results are no tensors, or may be none, and cannot be read.
const HIDDEN: [&str; 9] = [
    "Optional",
    "OptionalGetElement",
    "SequenceConstruct",
    "SequenceEmpty",
    "SequenceErase",
    "SequenceInsert",
    "SequenceMap",
    "SplitToSequence",
    "ZipMap",
];

/// Inputs and tensors of a graph.
#[derive(Debug)]
pub(super) struct Probed {
    pub(super) inputs: Vec<TensorSpec>,
    pub(super) fixed_rows: Option<usize>,
    /// Tensors with one row for each input row, by name; the inputs too.
    pub(super) tensors: HashMap<String, TensorSpec>,
    /// Memory that each computed tensor takes for one row, bytes.
    pub(super) row_bytes: HashMap<String, usize>,
    /// A row that the graph takes, if it does not take zeros.
    pub(super) known_row: Option<Vec<Known>>,
}

impl Probed {
    /// Memory of a computed tensor for one row, bytes; 0 if it is unknown.
    pub(super) fn row_bytes_of(&self, name: &str) -> usize {
        self.row_bytes.get(name).copied().unwrap_or(0)
    }

    pub(super) fn widest(&self) -> usize {
        self.inputs.iter().chain(self.tensors.values()).map(TensorSpec::width).max().unwrap_or(1).max(1)
    }
}

/// Runs the graph over rows of zeros, twice if the number of rows is free, with different numbers. A graph that refuses
/// zeros runs over the categories of its encoders. Keeps the tensors with one row of the same shape for each input row.
///
/// # Errors
/// A planning error if the inputs do not fit an autoencoder, or the graph does not run.
pub(super) fn probe(model: &ModelProto, metadata: &Metadata, weights: &Arc<Weights>) -> Result<Probed> {
    let (inputs, fixed_rows) = inputs(model, metadata)?;
    let rows = fixed_rows.unwrap_or(PROBE_ROWS);
    let Some(graph) = &model.graph else { return plan_err!("the ONNX file holds no graph") };
    let declared: Vec<String> = graph.output.iter().map(|value| value.name().to_owned()).collect();
    let mut all: Vec<String> = computed_tensors(graph).map(str::to_owned).collect();
    all.extend(declared.iter().filter(|name| !computed_tensors(graph).any(|other| other == name.as_str())).cloned());
    // Some inner tensors cannot be read (sequences, optional values). Then only the declared outputs are used.
    let (names, mut session) = match open(model, weights, &all) {
        Ok(session) => (all, session),
        Err(_) => {
            let session = open(model, weights, &declared)?;
            (declared, session)
        }
    };
    let (seen, known_row) = match observe(&mut session, &inputs, rows, None) {
        Ok(seen) => (seen, None),
        Err(of_zeros) => {
            let known = candidates(graph, &inputs).into_iter();
            let mut taken = known.filter_map(|row| Some((observe(&mut session, &inputs, rows, Some(&row)).ok()?, row)));
            match taken.next() {
                Some((seen, row)) => (seen, Some(row)),
                None => {
                    let text = "the model is tried on zeros and empty texts, then on the categories of its encoders, and \
                                takes none of these rows; let its encoders accept unknown values, in scikit-learn with \
                                handle_unknown='ignore'";
                    return Err(of_zeros.context(text));
                }
            }
        }
    };
    let again = match fixed_rows {
        Some(_) => None,
        None => Some(observe(&mut session, &inputs, 2 * rows, known_row.as_deref())?),
    };
    let row_bytes = names.iter().enumerate().map(|(index, name)| {
        let twice = again.as_ref().map(|again| &again[index]);
        (name.clone(), row_bytes(&seen[index], twice, rows))
    });
    let row_bytes = row_bytes.collect();
    let mut tensors = HashMap::new();
    for (index, name) in names.into_iter().enumerate() {
        let Some(tensor) = per_row(&name, &seen[index], rows) else { continue };
        if again.as_ref().is_none_or(|again| per_row(&name, &again[index], 2 * rows).as_ref() == Some(&tensor)) {
            tensors.insert(name, tensor);
        }
    }
    for input in &inputs {
        tensors.entry(input.name.clone()).or_insert_with(|| input.clone());
    }
    Ok(Probed { inputs, fixed_rows, tensors, row_bytes, known_row })
}

/// Memory of a tensor for one row, bytes, from a run over `rows` and one over twice as many. Tensors of one size in
/// both runs, such as weights that the graph transposes, take none.
fn row_bytes(seen: &Observed, twice: Option<&Observed>, rows: usize) -> usize {
    let bytes = |observed: &Observed| match observed {
        Some((element, shape)) => {
            shape.iter().fold(element.bytes(), |bytes, dim| bytes.saturating_mul(usize::try_from(*dim).unwrap_or(0)))
        }
        None => 0,
    };
    match twice {
        Some(twice) => bytes(twice).saturating_sub(bytes(seen)).div_ceil(rows),
        None => bytes(seen).div_ceil(rows),
    }
}

/// The shapes of the tensors of a graph in a run over rows of zeros, or of one known row. Those that cannot be read are
/// left out.
pub(crate) fn shapes(
    model: &ModelProto,
    weights: &Arc<Weights>,
    inputs: &[TensorSpec],
    rows: usize,
    known_row: Option<&[Known]>,
) -> HashMap<String, Vec<usize>> {
    let Some(graph) = &model.graph else { return HashMap::new() };
    let is_hidden = |node: &NodeProto| HIDDEN.contains(&node.op_type());
    let hidden: HashSet<&String> =
        graph.node.iter().filter(|node| is_hidden(node)).flat_map(|node| &node.output).collect();
    let names: Vec<String> = computed_tensors(graph).map(str::to_owned).filter(|name| !hidden.contains(name)).collect();
    let observed = open(model, weights, &names)
        .and_then(|mut session| observe(&mut session, inputs, rows, known_row))
        .unwrap_or_default();
    let sizes = |shape: &[i64]| shape.iter().map(|dim| usize::try_from(*dim).ok()).collect::<Option<Vec<usize>>>();
    let computed = names.into_iter().zip(observed).filter_map(|(name, observed)| Some((name, sizes(&observed?.1)?)));
    let given = inputs.iter().filter_map(|input| Some((input.name.clone(), sizes(&input.shape_of(rows))?)));
    let stored = graph.initializer.iter().filter_map(|tensor| Some((tensor.name().to_owned(), sizes(&tensor.dims)?)));
    computed.chain(given).chain(stored).collect()
}

fn open(model: &ModelProto, weights: &Arc<Weights>, outputs: &[String]) -> Result<Session> {
    let part = cut(model, &Cut { outputs: outputs.to_vec(), inputs: Vec::new() })?;
    weights.part(part).load(Purpose::Probe)
}

fn per_row(name: &str, observed: &Observed, rows: usize) -> Option<TensorSpec> {
    let (element, shape) = observed.as_ref()?;
    let (first, rest) = shape.split_first()?;
    let first = usize::try_from(*first).ok()?;
    let shape: Vec<usize> = rest.iter().map(|dim| usize::try_from(*dim).ok()).collect::<Option<_>>()?;
    let tensor = TensorSpec { name: name.to_owned(), element: *element, rows_per_row: first / rows, shape };
    (first % rows == 0 && (1..=MAX_WIDTH).contains(&tensor.width())).then_some(tensor)
}

/// The declared inputs, and the fixed number of rows if there is one.
pub(super) fn inputs(model: &ModelProto, metadata: &Metadata) -> Result<(Vec<TensorSpec>, Option<usize>)> {
    let Some(graph) = &model.graph else { return plan_err!("the ONNX file holds no graph") };
    let declared: Vec<&ValueInfoProto> = graph
        .input
        .iter()
        .filter(|input| !graph.initializer.iter().any(|weight| weight.name() == input.name()))
        .collect();
    if declared.is_empty() {
        return plan_err!("not an autoencoder: the graph has no inputs");
    }
    let named = metadata.features.as_ref().map(Vec::len).filter(|_| declared.len() == 1);
    let mut fixed_rows: Option<usize> = None;
    let mut inputs = Vec::new();
    for value in declared {
        let (tensor, rows) = input(value, named)?;
        if let (Some(rows), Some(other)) = (rows, fixed_rows)
            && rows != other
        {
            return plan_err!("the inputs take different numbers of rows: {other} and {rows}");
        }
        fixed_rows = fixed_rows.or(rows);
        inputs.push(tensor);
    }
    let width: usize = inputs.iter().map(TensorSpec::width).sum();
    if width > MAX_WIDTH {
        return plan_err!("the model takes {width} features, at most {MAX_WIDTH} are allowed");
    }
    if let Some(rows) = fixed_rows
        && rows.saturating_mul(width) > MAX_FIXED
    {
        return plan_err!(
            "the model takes {rows} rows of {width} numbers at once, at most {MAX_FIXED} numbers are allowed; export it \
             with a free or smaller batch size"
        );
    }
    Ok((inputs, fixed_rows))
}

fn input(value: &ValueInfoProto, named: Option<usize>) -> Result<(TensorSpec, Option<usize>)> {
    let name = value.name();
    let Some((element, dims)) = declared_tensor(value) else {
        return plan_err!("input \"{name}\" is not a tensor");
    };
    let Some(element) = Element::from_onnx(element) else {
        return plan_err!(
            "input \"{name}\" has the element type {element} of ONNX; float, int, bool and string are supported"
        );
    };
    let Some(dims) = dims else {
        return plan_err!("input \"{name}\" declares no shape; export the model with the shape [N, features]");
    };
    let Some((rows, dims)) = dims.split_first() else {
        return plan_err!("input \"{name}\" is a single number; its first dimension must be the rows");
    };
    let known: usize = dims
        .iter()
        .flatten()
        .try_fold(1_usize, |product, dim| product.checked_mul(usize::try_from(*dim).ok()?))
        .filter(|width| *width <= MAX_WIDTH)
        .ok_or_else(|| {
            datafusion_common::error::DataFusionError::Plan(format!("input \"{name}\" is wider than {MAX_WIDTH}"))
        })?;
    let free = match (dims.iter().filter(|dim| dim.is_none()).count(), named) {
        (0, _) => 0,
        (1, Some(width)) if width >= known && width % known == 0 => width / known,
        _ => {
            return plan_err!(
                "input \"{name}\" leaves its shape [N, {}] open; name its columns with the option input_cols, or \
                 export it with all dimensions fixed except the first",
                dims.iter().map(|dim| dim.map_or("?".to_owned(), |dim| dim.to_string())).collect::<Vec<_>>().join(", ")
            );
        }
    };
    let shape = dims.iter().map(|dim| dim.and_then(|dim| usize::try_from(dim).ok()).unwrap_or(free)).collect();
    let rows = rows.map(usize::try_from).transpose().ok().flatten();
    if rows.is_some_and(|rows| rows > MAX_WIDTH) {
        return plan_err!("input \"{name}\" takes {rows:?} rows at once; at most {MAX_WIDTH} are allowed");
    }
    Ok((TensorSpec { name: name.to_owned(), element, rows_per_row: 1, shape }, rows))
}

/// Runs rows of zeros, or one row again and again.
fn observe(session: &mut Session, inputs: &[TensorSpec], rows: usize, row: Option<&[Known]>) -> Result<Vec<Observed>> {
    let zero = |input: &TensorSpec| Values::zeros(input.element, rows * input.width());
    let values = match row {
        Some(row) => repeated(inputs, row, rows),
        None => inputs.iter().map(zero).collect::<Vec<Values>>(),
    };
    let shapes: Vec<Vec<i64>> = inputs.iter().map(|input| input.shape_of(rows)).collect();
    let inputs: Vec<(Input<'_>, &[i64])> =
        values.iter().zip(&shapes).map(|(values, shape)| (values.input(), shape.as_slice())).collect();
    session.observe(&inputs)
}
