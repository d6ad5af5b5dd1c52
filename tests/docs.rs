//! The pages under `docs/sql/`, and the training guide: there is a page for each function and statement, and examples print
//! what they say.
//!
//! A ```` ```sql ```` block runs; a ```` ```text ```` block after it is the table that it prints, an ```` ```error ````
//! block the error. `UPDATE_DOCS=1 cargo test --test docs` writes those anew; read the difference.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aefusion::session::{Session, SessionOptions};
use aefusion_udfs::sql::{execute, parse};
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::util::pretty::pretty_format_batches;
use datafusion::error::Result;
use libtest_mimic::{Arguments, Failed, Trial};

const PRELUDE: &str = "
    CREATE MODEL sat OPTIONS (model_type = 'onnx', model_path = 'examples/demo/satimage-2.onnx');
    CREATE VIEW pixels AS SELECT * FROM 'examples/demo/satimage-2.parquet';";

const STATEMENTS: [&str; 7] =
    ["create_model", "drop_model", "show_models", "describe_model", "alter_model", "export_model", "create_function"];

fn main() {
    std::env::set_current_dir(env!("CARGO_MANIFEST_DIR")).unwrap();
    let mut pages: Vec<PathBuf> = std::fs::read_dir("docs/sql").unwrap().map(|entry| entry.unwrap().path()).collect();
    pages.sort();
    pages.push(PathBuf::from("docs/training.md"));
    let name = |page: &Path| page.file_stem().unwrap().to_string_lossy().into_owned();
    let mut trials: Vec<Trial> = pages
        .iter()
        .map(|page| (name(page), page.clone()))
        .map(|(name, page)| Trial::test(name, move || run(&page)))
        .collect();
    let known: Vec<String> = pages.iter().map(|page| name(page)).collect();
    trials.push(Trial::test("every_function_and_statement_has_a_page", move || has_pages(&known)));
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn has_pages(known: &[String]) -> Result<(), Failed> {
    let session = open().map_err(|e| e.to_string())?;
    let state = session.context().state();
    let functions = state.scalar_functions().keys().chain(state.table_functions().keys());
    let functions = functions.filter(|name| name.starts_with("ae_")).map(String::as_str);
    let missing: Vec<&str> =
        functions.chain(STATEMENTS).filter(|name| !known.iter().any(|page| page == name)).collect();
    if missing.is_empty() { Ok(()) } else { Err(format!("no page under docs/sql for {missing:?}").into()) }
}

fn open() -> Result<Session> {
    Session::open(&SessionOptions { models: "memory:///".to_owned(), ..SessionOptions::default() })
}

/// A fenced block of a page: what stands after the backticks, its text, and where its lines are.
struct Block<'a> {
    kind: &'a str,
    text: String,
    lines: std::ops::Range<usize>,
}

fn blocks<'a>(lines: &[&'a str]) -> Vec<Block<'a>> {
    let mut blocks = Vec::new();
    let mut open: Option<(usize, &str)> = None;
    for (i, line) in lines.iter().enumerate() {
        match (open, line.strip_prefix("```")) {
            (None, Some(kind)) => open = Some((i, kind.trim())),
            (Some((start, kind)), Some("")) => {
                blocks.push(Block { kind, text: lines[start + 1..i].join("\n"), lines: start + 1..i });
                open = None;
            }
            _ => {}
        }
    }
    blocks
}

fn run(page: &Path) -> Result<(), Failed> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(check(page)).map_err(Failed::from)
}

async fn check(page: &Path) -> Result<(), String> {
    let text = std::fs::read_to_string(page).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let blocks = blocks(&lines);
    let session = open().map_err(|e| aefusion::message(&e))?;
    // what pages export goes here; pages run beside each other
    let folder = Path::new("target/docs");
    if page.ends_with("export_model.md") && folder.exists() {
        std::fs::remove_dir_all(folder).unwrap();
    }
    printed(&session, PRELUDE).await.map_err(|e| aefusion::message(&e))?;
    let update = std::env::var_os("UPDATE_DOCS").is_some();
    let mut anew: Vec<(std::ops::Range<usize>, String)> = Vec::new();
    for (i, block) in blocks.iter().enumerate().filter(|(_, block)| block.kind == "sql") {
        let next = blocks.get(i + 1).filter(|next| next.lines.start <= block.lines.end + 3);
        let found = printed(&session, &block.text).await.map_err(|e| aefusion::message(&e));
        let (expected, found) = match (next, found) {
            (Some(next), Ok(found)) if next.kind == "text" => (next, found),
            (Some(next), Err(found)) if next.kind == "error" => (next, found),
            (_, Ok(_)) if next.is_none_or(|next| next.kind != "error") => continue,
            (_, Ok(found)) => return Err(format!("an error was expected of\n{}\nit printed\n{found}", block.text)),
            (_, Err(error)) => return Err(format!("{}\n{error}", block.text)),
        };
        if expected.text.trim() != found.trim() {
            match update {
                true => anew.push((expected.lines.clone(), found)),
                false => {
                    return Err(format!("{}\nprints\n{found}\nthe page says\n{}", block.text, expected.text));
                }
            }
        }
    }
    if !anew.is_empty() {
        let mut lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        for (range, found) in anew.into_iter().rev() {
            lines.splice(range, found.trim().lines().map(str::to_owned));
        }
        std::fs::write(page, lines.join("\n") + "\n").unwrap();
    }
    Ok(())
}

/// The table that the last statement prints.
async fn printed(session: &Session, sql: &str) -> Result<String> {
    let mut table = String::new();
    for statement in parse(session.context(), sql)? {
        let rows = execute(session.context(), statement).await?;
        let schema = Arc::new(rows.schema().as_arrow().clone());
        let mut batches = rows.collect().await?;
        if batches.is_empty() {
            batches.push(RecordBatch::new_empty(schema));
        }
        table = pretty_format_batches(&batches)?.to_string();
    }
    Ok(table)
}
