//! Models made by other programs give the numbers that onnxruntime gives in Python; see `tests/interop/README.md`.

use std::collections::BTreeMap;
use std::sync::Arc;

use aefusion::session::{Session, SessionOptions};
use aefusion_udfs::sql::SessionContextExt;
use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use datafusion::arrow::compute::{cast, concat_batches};
use datafusion::arrow::datatypes::{DataType, Float64Type};
use libtest_mimic::Trial;
use serde::Deserialize;

use crate::harness;

/// One entry of `tests/interop/cases.json`.
#[derive(Debug, Clone, Deserialize)]
struct Case {
    name: String,
    /// The file of the rows, which cases may share.
    rows: String,
    features: Vec<String>,
    options: BTreeMap<String, String>,
    model: Option<String>,
    outputs: Vec<String>,
    rtol: f64,
    atol: f64,
}

/// Lists of numbers are `Float32` in SQL, whatever the model computes in.
const FLOAT32_ROUNDING: f64 = 6e-8;

/// A test for each case.
pub(crate) fn trials() -> Vec<Trial> {
    let cases: Vec<Case> = serde_json::from_slice(&std::fs::read("tests/interop/cases.json").unwrap()).unwrap();
    let test = |case: Case| {
        harness::trial(format!("interop::{}", case.name), move || {
            harness::block_on(check(&case)).unwrap_or_else(|error| panic!("{error}"));
        })
    };
    cases.into_iter().map(test).collect()
}

async fn check(case: &Case) -> Result<(), String> {
    let folder = format!("{}/tests/interop", env!("CARGO_MANIFEST_DIR"));
    let options = SessionOptions { models: "memory:///".to_owned(), ..SessionOptions::default() };
    let session = Session::open(&options).map_err(|e| e.to_string())?;
    let mut given: Vec<String> = vec!["model_type = 'onnx'".to_owned()];
    for (key, value) in &case.options {
        let is_path = key.ends_with("_path");
        given.push(if is_path { format!("{key} = '{folder}/{value}'") } else { format!("{key} = '{value}'") });
    }
    given.extend(case.model.iter().map(|file| format!("model_path = '{folder}/{file}'")));
    let names: Vec<String> = case.features.iter().map(|name| format!("'{name}'")).collect();
    given.push(format!("input_cols = [{}]", names.join(", ")));
    query(&session, &format!("CREATE MODEL m OPTIONS ({})", given.join(", "))).await?;

    let table = format!("'{folder}/{}'", case.rows);
    let columns = case.features.join(", ");
    let fields: Vec<String> = case.features.iter().map(|name| format!("'{name}', {name}")).collect();
    let has_list =
        query(&session, &format!("SELECT * FROM {table}")).await?.schema().field_with_name("features").is_ok();
    let mut forms = vec![
        ("by name", "'m'".to_owned()),
        ("columns", format!("'m', {columns}")),
        ("struct", format!("'m', named_struct({})", fields.join(", "))),
        ("version", format!("'m@1', {columns}")),
    ];
    if has_list {
        forms.push(("list", "'m', features".to_owned()));
        forms.push(("no model", "features".to_owned()));
    }
    for (form, arguments) in forms {
        for output in &case.outputs {
            let function = match output.as_str() {
                "code" => "ae_encode",
                "reconstruction" => "ae_reconstruct",
                "error" => "ae_error",
                "scaled" | "scaled_reconstruction" => continue,
                other => return Err(format!("unknown output {other}")),
            };
            let sql = format!("SELECT {output} AS expected, {function}({arguments}) AS found FROM {table} ORDER BY id");
            let rows = query(&session, &sql).await.map_err(|e| format!("{form}: {e}"))?;
            compare(case, &rows).map_err(|e| format!("{output}, {form}: {e}"))?;
        }
    }
    if case.outputs.contains(&"reconstruction".to_owned()) && case.name != "decoder_reads_input" {
        let sql = format!(
            "SELECT reconstruction AS expected, ae_decode('m', ae_encode('m')) AS found FROM {table} ORDER BY id"
        );
        let rows = query(&session, &sql).await?;
        // a code went through Float32 on the way
        let through_float32 = Case { rtol: case.rtol.max(1e-5), atol: case.atol.max(1e-6), ..case.clone() };
        compare(&through_float32, &rows).map_err(|e| format!("decoded: {e}"))?;
    }
    Ok(())
}

async fn query(session: &Session, sql: &str) -> Result<RecordBatch, String> {
    let rows = session.context().ae_sql(sql).await.map_err(|e| e.to_string())?;
    let schema = Arc::new(rows.schema().as_arrow().clone());
    let batches = rows.collect().await.map_err(|e| e.to_string())?;
    let schema = batches.first().map_or(schema, RecordBatch::schema);
    concat_batches(&schema, &batches).map_err(|e| e.to_string())
}

fn compare(case: &Case, rows: &RecordBatch) -> Result<(), String> {
    let (mut expected, found) = (numbers(rows.column(0)), numbers(rows.column(1)));
    if let DataType::Struct(fields) = rows.column(1).data_type()
        && fields.iter().all(|field| field.data_type().is_integer())
    {
        // a struct has the types of the source columns
        expected.iter_mut().flatten().for_each(|value| *value = value.round());
    }
    assert!(rows.num_rows() >= 50 && expected.len() == found.len());
    let rtol = match rows.column(1).data_type() {
        DataType::Float64 => case.rtol,
        _ => case.rtol.max(FLOAT32_ROUNDING),
    };
    for (row, (expected, found)) in expected.iter().zip(&found).enumerate() {
        if expected.len() != found.len() {
            return Err(format!("row {row}: {} numbers expected, {} found", expected.len(), found.len()));
        }
        for (want, got) in expected.iter().zip(found) {
            // the tolerance of cases.json, which says why for each
            let is_near = (got - want).abs() <= case.atol + rtol * want.abs();
            if !is_near {
                return Err(format!("row {row}: {want} expected, {got} found"));
            }
        }
    }
    Ok(())
}

/// Numbers of each row, of a number, a list or a struct.
fn numbers(array: &ArrayRef) -> Vec<Vec<f64>> {
    let columns: Vec<ArrayRef> = match array.data_type() {
        DataType::Struct(_) => array.as_struct().columns().to_vec(),
        DataType::Float64 => vec![Arc::clone(array)],
        _ => {
            let lists = cast(array, &DataType::new_list(DataType::Float64, true)).unwrap();
            let row = |list: Option<ArrayRef>| list.unwrap().as_primitive::<Float64Type>().values().to_vec();
            return lists.as_list::<i32>().iter().map(row).collect();
        }
    };
    let columns: Vec<ArrayRef> = columns.iter().map(|column| cast(column, &DataType::Float64).unwrap()).collect();
    let row = |row: usize| columns.iter().map(|column| column.as_primitive::<Float64Type>().value(row)).collect();
    (0..array.len()).map(row).collect()
}
