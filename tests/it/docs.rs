//! README.md, the pages of `docs/` and others for readers: their blocks run in order, in one session a page, and print what the page says.
//!
//! | block | what is checked |
//! | --- | --- |
//! | `sql` | runs in a session with the model `sat` and the view `pixels` |
//! | `sql kafka` | runs where it makes tables and settings; queries and pipelines are planned, without a broker |
//! | `sql no-run` | is parsed |
//! | `sh` | `aefusion …` and `cargo run … -- …` run; of other commands, the names are checked |
//! | `python` | runs, with the packages of `tests/exported/requirements.txt` |
//! | `python no-run` | is compiled |
//! | `rust` | stands in `examples/embedded` or in a doc comment, which is compiled |
//! | `text`, next after a block that runs | is its output; `…` stands for any text |
//! | `error`, next after a block that runs | is its error |
//!
//! Blocks with `no-run` are counted in [`NOT_RUN`]. `UPDATE_DOCS=1 cargo test --test it -- docs` writes the outputs anew;
//! read the difference.

mod commands;
mod session;
mod shell;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use libtest_mimic::Trial;

use crate::harness;
use crate::page::{self, Block, Page};
use session::{Outcome, PageSession};
use shell::Shell;

crate::harness::tests! {
    fn outputs_are_compared,
    fn every_function_and_statement_has_a_page,
    fn blocks_that_do_not_run,
}

/// Blocks with `no-run`, by page. A new one needs a reason: its statements need a broker, a bucket or files of the
/// reader, or its commands do not end.
const NOT_RUN: &[(&str, usize)] = &[
    ("docs/models.md", 3),
    ("docs/operations.md", 1),
    ("docs/security.md", 1),
    ("docs/sql/README.md", 1),
    ("docs/sql/create_model.md", 1),
    ("docs/sql/export_model.md", 1),
    ("docs/streaming-reference.md", 4),
    // the tutorial, which tests/kafka/tutorial.rs runs
    ("docs/streaming.md", 10),
];

/// Languages that are shown only.
const SHOWN: [&str; 9] = ["text", "error", "ebnf", "mermaid", "ini", "json", "yaml", "toml", "csv"];

const STATEMENTS: [&str; 7] =
    ["create_model", "drop_model", "show_models", "describe_model", "alter_model", "export_model", "create_function"];

fn pages() -> Vec<PathBuf> {
    let folder = |folder: &str| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect()
    };
    let others =
        ["README.md", "CONTRIBUTING.md", "benches/README.md", "examples/README.md", "examples/embedded/README.md"];
    let mut pages = [others.map(PathBuf::from).to_vec(), folder("docs"), folder("docs/sql")].concat();
    pages.sort();
    pages
}

/// `docs/sql/ae_error.md` is `docs::sql::ae_error`.
fn name(page: &Path) -> String {
    let path = page.with_extension("").display().to_string().to_lowercase();
    format!("docs::{}", path.strip_prefix("docs/").unwrap_or(&path).replace('/', "::"))
}

/// A test for each page. One for all of it and one without its Python, where it has some that runs.
pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for path in pages() {
        let page = Page::read(&path);
        let has_python = page.blocks.iter().any(|block| block.language == "python" && block.modifier.is_empty());
        trials.push(harness::trial(name(&path), {
            let path = path.clone();
            move || harness::block_on(check(&path, None))
        }));
        if has_python {
            trials.push(harness::trial(format!("{}::python", name(&path)), move || {
                let python = crate::training::python();
                harness::block_on(check(&path, Some(&python)));
            }));
        }
    }
    trials
}

fn outputs_are_compared() {
    for (expected, found, is_like) in [
        ("a\nb", "a \nb\n", true),
        ("a\nb", "a\nc", false),
        ("took … s, 3 rows", "took 0.1 s, 3 rows", true),
        ("took … s, 3 rows", "took 0.1 s, 4 rows", false),
        ("…", "", true),
        ("a…", "ba", false),
        ("a … c … c", "a b c", false),
    ] {
        assert_eq!(page::matches(expected, found), is_like, "{expected:?} and {found:?}");
    }
    let failed = |block: &str| {
        harness::block_on(async { matches!(PageSession::open().await.run(block).await, Outcome::Failed(_)) })
    };
    assert!(!failed("SELECT ae_error('sat') FROM pixels LIMIT 1") && failed("SELECT ae_error('nobody') FROM pixels"));
    for (command, is_known) in [
        ("cargo xtask demo stream", true),
        ("cargo xtask demos", false),
        ("cargo build --package aefusion-udfs --features load-dynamic", true),
        ("cargo build --package aefusion-ufds", false),
        ("cargo test --test it", true),
        ("cargo test --test cli", false),
        ("bash .ci/run", true),
        ("bash .ci/ran", false),
        ("aefuson sql", false),
    ] {
        assert_eq!(commands::kind(command).is_ok(), is_known, "{command}");
    }
    let script = "a 'b\nc' \\\n  d # e\ncat > f <<'SQL'\nSELECT 1;\nSQL\n";
    assert_eq!(commands::split(script).unwrap(), ["a 'b\nc'   d", "cat > f <<'SQL'\nSELECT 1;\nSQL\n"]);
}

fn every_function_and_statement_has_a_page() {
    harness::block_on(async {
        let session = PageSession::open().await;
        let state = session.context().state();
        let functions = state.scalar_functions().keys().chain(state.table_functions().keys());
        let functions = functions.filter(|name| name.starts_with("ae_")).map(String::as_str);
        let has_page = |name: &str| Path::new("docs/sql").join(name).with_extension("md").exists();
        let missing: Vec<&str> = functions.chain(STATEMENTS).filter(|name| !has_page(name)).collect();
        assert!(missing.is_empty(), "no page in docs/sql for {missing:?}");
    });
}

fn blocks_that_do_not_run() {
    let mut found = BTreeMap::new();
    for path in pages() {
        let n = Page::read(&path).blocks.iter().filter(|block| block.modifier == "no-run").count();
        if n > 0 {
            found.insert(path.display().to_string(), n);
        }
    }
    let listed: BTreeMap<String, usize> = NOT_RUN.iter().map(|(page, n)| ((*page).to_owned(), *n)).collect();
    assert_eq!(found, listed, "blocks with no-run, and those that tests/it/docs.rs lists");
}

/// Runs a page; without `python`, leaves its Python out.
async fn check(path: &Path, python: Option<&Path>) {
    let page = Page::read(path);
    // EXPORT MODEL writes no file that is there
    let exports = Path::new("target/docs");
    if path.ends_with("export_model.md") && exports.exists() {
        std::fs::remove_dir_all(exports).unwrap();
    }
    let session = PageSession::open().await;
    let shell = Shell::new();
    let (mut wrong, mut anew) = (Vec::new(), Vec::new());
    for (i, block) in page.blocks.iter().enumerate() {
        let outcome = match run(block, &session, &shell, python).await {
            Ok(outcome) => outcome,
            Err(error) => {
                wrong.push(format!("{}\n{error}", block.shown()));
                continue;
            }
        };
        let next = page.blocks.get(i + 1).filter(|next| matches!(next.language, "text" | "error"));
        match compare(block, outcome, next) {
            Ok(()) => {}
            Err(Wrong::Output(found)) if std::env::var_os("UPDATE_DOCS").is_some() => {
                anew.extend(next.zip(Some(found)))
            }
            Err(Wrong::Output(found)) => {
                let expected = next.map(|next| next.text.as_str()).unwrap_or_default();
                wrong.push(format!("{}\nprints\n{found}\nThe page says\n{expected}", block.shown()));
            }
            Err(Wrong::Ending(error)) => wrong.push(format!("{}\n{error}", block.shown())),
        }
    }
    page.write(anew);
    assert!(wrong.is_empty(), "{} of {}:\n\n{}", wrong.len(), path.display(), wrong.join("\n\n"));
}

/// Runs or checks a block.
async fn run(
    block: &Block<'_>,
    session: &PageSession,
    shell: &Shell,
    python: Option<&Path>,
) -> Result<Outcome, String> {
    match (block.language, block.modifier) {
        ("sql", "") => Ok(session.run(&block.text).await),
        ("sql", "kafka") => session.plan(&block.text).await.map(|()| Outcome::NotRun),
        ("sql", "no-run") => session.parse(&block.text).map(|()| Outcome::NotRun),
        ("sh", "") => shell.run(&block.text, session).await,
        ("sh", "no-run") => Ok(Outcome::NotRun),
        ("python", "") => Ok(python.map_or(Outcome::NotRun, |python| python_output(python, &block.text))),
        ("python", "no-run") => compiled(&block.text).map(|()| Outcome::NotRun),
        ("rust", "") => stands_in_code(&block.text).map(|()| Outcome::NotRun),
        (language, "") if SHOWN.contains(&language) => Ok(Outcome::NotRun),
        ("", _) => Err("the block names no language; text is one".to_owned()),
        (language, modifier) => Err(format!("no rule for a block of {language} {modifier}")),
    }
}

enum Wrong {
    /// The page has another output than this.
    Output(String),
    /// It failed, or it did not.
    Ending(String),
}

fn compare(block: &Block<'_>, outcome: Outcome, next: Option<&Block<'_>>) -> Result<(), Wrong> {
    match (outcome, next) {
        (Outcome::NotRun, _) => Ok(()),
        (Outcome::Printed(found), Some(next)) if next.language == "text" => {
            match found.iter().any(|found| page::matches(&next.text, found)) {
                true => Ok(()),
                false => Err(Wrong::Output(page::nearest(&next.text, found))),
            }
        }
        (Outcome::Printed(found), Some(_)) => {
            Err(Wrong::Ending(format!("printed, where the page has an error,\n{}", found.concat())))
        }
        (Outcome::Printed(_), None) => Ok(()),
        (Outcome::Failed(error), Some(next)) if next.language == "error" => match page::matches(&next.text, &error) {
            true => Ok(()),
            false => Err(Wrong::Output(error)),
        },
        (Outcome::Failed(error), _) => Err(Wrong::Ending(format!("failed in line {}: {error}", block.line()))),
    }
}

fn python_output(python: &Path, text: &str) -> Outcome {
    let output = Command::new(python).args(["-c", text]).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.success() {
        true => Outcome::Printed(vec![printed]),
        false => Outcome::Failed(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

fn compiled(text: &str) -> Result<(), String> {
    let program = "import sys; compile(sys.argv[1], 'block', 'exec')";
    let output = Command::new("python3").args(["-c", program, text]).output().map_err(|e| format!("python3: {e}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// That code is part of `examples/embedded` or of a doc comment.
fn stands_in_code(text: &str) -> Result<(), String> {
    let squeezed = |text: &str| text.split_whitespace().collect::<String>();
    let wanted = squeezed(text);
    let example = std::fs::read_to_string("examples/embedded/src/main.rs").unwrap();
    let documented =
        ["model/src", "udfs/src", "train/src", "stream/src"].into_iter().flat_map(|folder| sources(Path::new(folder)));
    let mut places = std::iter::once(example).chain(documented.map(|path| doc_comments(&path)));
    match places.any(|code| squeezed(&code).contains(&wanted)) {
        true => Ok(()),
        false => Err("is neither in examples/embedded/src/main.rs nor in a doc comment of a crate".to_owned()),
    }
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

/// The lines of doc comments, without those that documentation hides.
fn doc_comments(path: &Path) -> String {
    let Ok(source) = std::fs::read_to_string(path) else { return String::new() };
    let lines = source.lines().filter_map(|line| {
        let line = line.trim_start();
        line.strip_prefix("//!").or_else(|| line.strip_prefix("///"))
    });
    lines.filter(|line| !line.trim_start().starts_with("# ")).flat_map(|line| [line, "\n"]).collect()
}
