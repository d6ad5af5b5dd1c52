//! The shell: history, statements of several lines, completion.

use std::io::{self, Write};

use datafusion::common::TableReference;
use datafusion::error::{DataFusionError, Result};
use futures::executor::block_on;
use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::history::DefaultHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Config, Context, Editor, Helper, Highlighter, Hinter};

use super::Outcome;
use super::sql::Shell;
use crate::session::Session;

const HELP: &str = "\
Statements end with a semicolon and may take several lines.
  SHOW MODELS;                       models and versions
  DESCRIBE MODEL m;                  what a model takes and gives
  SELECT * FROM ae_features('m');    its features
  SHOW FUNCTIONS LIKE 'ae_%';        the functions
  SELECT * FROM 'file.parquet';      any Parquet, CSV, JSON or Arrow file
  \\q                                 leave (or Ctrl-D)
Tab completes keywords, functions, models, tables and columns; Ctrl-C stops a query.";

const KEYWORDS: [&str; 48] = [
    "ALTER", "AND", "AS", "ASC", "BETWEEN", "BY", "CASE", "CAST", "COPY", "CREATE", "DELETE", "DESC", "DESCRIBE",
    "DISTINCT", "DROP", "ELSE", "END", "EXISTS", "EXPLAIN", "EXPORT", "FROM", "FUNCTION", "GROUP", "HAVING", "IN",
    "INSERT", "INTO", "IS", "JOIN", "LEFT", "LIKE", "LIMIT", "MODEL", "MODELS", "NOT", "NULL", "ON", "OPTIONS", "OR",
    "ORDER", "OVER", "REPLACE", "SELECT", "SET", "SHOW", "TABLE", "WHERE", "WITH",
];

/// Reads and runs statements until the user leaves.
pub(super) fn run(shell: &Shell, runtime: &tokio::runtime::Runtime) -> Result<Outcome> {
    let external = |e: ReadlineError| DataFusionError::External(Box::new(e));
    let config = Config::builder().auto_add_history(true).max_history_size(10_000).map_err(external)?.build();
    let mut editor: Editor<ShellHelper, DefaultHistory> = Editor::with_config(config).map_err(external)?;
    editor.set_helper(Some(ShellHelper { session: shell.session.clone(), runtime: runtime.handle().clone() }));
    let history = dirs::data_dir().map(|folder| folder.join("aefusion").join("history"));
    if let Some(history) = history.as_ref().filter(|history| history.exists()) {
        // a history that cannot be read is no reason not to start
        editor.load_history(history).unwrap_or_else(|e| log::warn!("history: {e}"));
    }
    writeln!(io::stderr(), "aefusion {}; \\? for help, \\q to leave", env!("CARGO_PKG_VERSION"))?;
    loop {
        let line = match editor.readline("ae> ") {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => break,
            Err(e) => return Err(external(e)),
        };
        match line.trim().trim_end_matches(';').trim() {
            "" => {}
            "\\q" | "quit" | "exit" => break,
            "\\?" | "help" => writeln!(io::stdout(), "{HELP}")?,
            _ => match runtime.block_on(shell.script(&line)) {
                Ok(_) => {}
                Err(e) => super::report(&e),
            },
        }
    }
    if let Some(history) = history {
        let saved = history.parent().map_or(Ok(()), std::fs::create_dir_all);
        if let Err(e) = saved.map_err(ReadlineError::Io).and_then(|()| editor.save_history(&history)) {
            log::warn!("history: {e}");
        }
    }
    Ok(Outcome::Done)
}

#[derive(Helper, Hinter, Highlighter)]
struct ShellHelper {
    session: Session,
    runtime: tokio::runtime::Handle,
}

impl Validator for ShellHelper {
    /// A statement is complete at its semicolon.
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let input = context.input().trim();
        let is_complete = input.is_empty()
            || input.ends_with(';')
            || input.starts_with('\\')
            || ["quit", "exit", "help"].contains(&input);
        Ok(if is_complete { ValidationResult::Valid(None) } else { ValidationResult::Incomplete })
    }
}

impl Completer for ShellHelper {
    type Candidate = Pair;

    fn complete(&self, line: &str, position: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        let before = &line[..position];
        let start = before
            .rfind(|c: char| !c.is_alphanumeric() && c != '_')
            .map_or(0, |i| i + before[i..].chars().next().map_or(1, char::len_utf8));
        let word = &before[start..];
        // inside of a string only models make sense
        let in_string = before.matches('\'').count() % 2 == 1;
        let mut candidates = if in_string { self.models() } else { self.words(line) };
        candidates.retain(|candidate| candidate.to_lowercase().starts_with(&word.to_lowercase()));
        candidates.sort();
        candidates.dedup();
        if word.is_empty() && !in_string {
            candidates.clear();
        }
        Ok((start, candidates.into_iter().map(|name| Pair { display: name.clone(), replacement: name }).collect()))
    }
}

impl ShellHelper {
    fn words(&self, line: &str) -> Vec<String> {
        let state = self.session.context().state();
        let mut words: Vec<String> = KEYWORDS.iter().map(|word| (*word).to_owned()).collect();
        words.extend(state.scalar_functions().keys().cloned());
        words.extend(state.aggregate_functions().keys().cloned());
        words.extend(state.window_functions().keys().cloned());
        words.extend(state.table_functions().keys().cloned());
        words.extend(self.models());
        words.extend(self.file_columns(line));
        let catalogs = state.catalog_list();
        for catalog in catalogs.catalog_names().into_iter().filter_map(|name| catalogs.catalog(&name)) {
            let names = catalog.schema_names().into_iter().filter(|name| name != "information_schema");
            for schema in names.filter_map(|name| catalog.schema(&name)) {
                for table in schema.table_names() {
                    if let Ok(Some(provider)) = block_on(schema.table(&table)) {
                        words.extend(provider.schema().fields().iter().map(|field| field.name().clone()));
                    }
                    words.push(table);
                }
            }
        }
        words
    }

    /// Columns of the files that the statement names: what stands between quotes and is a table.
    fn file_columns(&self, line: &str) -> Vec<String> {
        let quoted = line.split('\'').skip(1).step_by(2).filter(|name| name.contains('.'));
        let schema = |name: &str| {
            let table = self.session.context().table_provider(TableReference::bare(name));
            self.runtime.block_on(table).ok().map(|table| table.schema())
        };
        let schemas = quoted.filter_map(schema);
        schemas
            .flat_map(|schema| schema.fields().iter().map(|field| field.name().clone()).collect::<Vec<_>>())
            .collect()
    }

    fn models(&self) -> Vec<String> {
        let names = self.runtime.block_on(self.session.models().names()).unwrap_or_default();
        names.iter().map(ToString::to_string).collect()
    }
}
