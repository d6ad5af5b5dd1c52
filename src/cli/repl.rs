//! The shell: history, multi-line statements, completion.

use std::io::{self, Write};

use datafusion::common::TableReference;
use datafusion::error::{DataFusionError, Result};
use datafusion::sql::sqlparser::dialect::Dialect;
use datafusion::sql::sqlparser::keywords::ALL_KEYWORDS;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};
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
End statements with a semicolon. They can span several lines.
  SHOW MODELS;                       list models and versions
  DESCRIBE MODEL m;                  show inputs, outputs and options of a model
  SELECT * FROM ae_features('m');    list its features
  SHOW FUNCTIONS LIKE 'ae_%';        list the functions
  SELECT * FROM 'file.parquet';      query any Parquet, CSV, JSON or Arrow file
  \\q                                 quit (or Ctrl-D)
Press Tab to complete keywords, functions, models, tables and columns. Press Ctrl-C to stop a query, and again to quit
if it does not stop.";

/// Keywords of our statements that the parser does not know.
const OWN_KEYWORDS: [&str; 3] = ["MODEL", "MODELS", "ONNX"];

/// Reads and runs statements until the user quits.
pub(super) fn run(shell: &Shell, runtime: &tokio::runtime::Runtime) -> Result<Outcome> {
    let external = |e: ReadlineError| DataFusionError::External(Box::new(e));
    let config = Config::builder().auto_add_history(true).max_history_size(10_000).map_err(external)?.build();
    let mut editor: Editor<ShellHelper, DefaultHistory> = Editor::with_config(config).map_err(external)?;
    editor.set_helper(Some(ShellHelper { session: shell.session.clone(), runtime: runtime.handle().clone() }));
    let history = dirs::data_dir().map(|folder| folder.join("aefusion").join("history"));
    if let Some(history) = history.as_ref().filter(|history| history.exists()) {
        // the shell starts without a history that cannot be read
        editor.load_history(history).unwrap_or_else(|e| tracing::warn!("could not read {}: {e}", history.display()));
    }
    writeln!(io::stderr(), "aefusion {}; \\? for help, \\q to quit", env!("CARGO_PKG_VERSION"))?;
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
            tracing::warn!("could not write {}: {e}", history.display());
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
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let input = context.input().trim();
        let is_command = input.starts_with('\\') || ["quit", "exit", "help"].contains(&input);
        let is_complete = is_command || is_complete(self.session.dialect().as_ref(), input);
        Ok(if is_complete { ValidationResult::Valid(None) } else { ValidationResult::Incomplete })
    }
}

/// Whether a text ends with a semicolon, outside strings and comments, or has nothing but comments.
fn is_complete(dialect: &dyn Dialect, text: &str) -> bool {
    let (tokens, is_whole) = tokens(dialect, text);
    let last = tokens.iter().rfind(|token| !matches!(token, Token::Whitespace(_)));
    is_whole && last.is_none_or(|last| *last == Token::SemiColon)
}

/// The tokens of a text up to an open string or comment, and whether there is none.
fn tokens(dialect: &dyn Dialect, text: &str) -> (Vec<Token>, bool) {
    let mut tokens = Vec::new();
    let is_whole = Tokenizer::new(dialect, text).tokenize_with_location_into_buf(&mut tokens).is_ok();
    (tokens.into_iter().map(|token| token.token).collect(), is_whole)
}

impl Completer for ShellHelper {
    type Candidate = Pair;

    fn complete(&self, line: &str, position: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        let before = &line[..position];
        let start = before
            .rfind(|c: char| !c.is_alphanumeric() && c != '_')
            .map_or(0, |i| i + before[i..].chars().next().map_or(1, char::len_utf8));
        let word = &before[start..];
        // inside a string, only models make sense
        let in_string = !tokens(self.session.dialect().as_ref(), before).1;
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
        let mut words: Vec<String> = ALL_KEYWORDS.iter().chain(&OWN_KEYWORDS).map(|word| (*word).to_owned()).collect();
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

    /// Columns of the files in the statement: its strings that are tables.
    fn file_columns(&self, line: &str) -> Vec<String> {
        let string = |token| match token {
            Token::SingleQuotedString(text) if text.contains('.') => Some(text),
            _ => None,
        };
        let schema = |name: String| {
            let table = self.session.context().table_provider(TableReference::bare(name));
            self.runtime.block_on(table).ok().map(|table| table.schema())
        };
        let (tokens, _) = tokens(self.session.dialect().as_ref(), line);
        let schemas = tokens.into_iter().filter_map(string).filter_map(schema);
        schemas
            .flat_map(|schema| schema.fields().iter().map(|field| field.name().clone()).collect::<Vec<_>>())
            .collect()
    }

    fn models(&self) -> Vec<String> {
        let names = self.runtime.block_on(self.session.models().names()).unwrap_or_default();
        names.iter().map(ToString::to_string).collect()
    }
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::dialect::GenericDialect;

    use super::*;

    #[test]
    fn a_statement_is_complete_at_its_semicolon() {
        for text in ["", "SELECT 1;", "SELECT 1; -- done", "SELECT ';'; /* ; */", "-- nothing"] {
            assert!(is_complete(&GenericDialect, text), "{text}");
        }
        for text in
            ["SELECT 1", "SELECT 'a;", "SELECT 1 -- one;", "SELECT /* one;", "SELECT \"a;", "SELECT 1; SELECT 2"]
        {
            assert!(!is_complete(&GenericDialect, text), "{text}");
        }
    }

    #[test]
    fn our_keywords_are_not_the_parsers() {
        for word in OWN_KEYWORDS {
            assert!(!ALL_KEYWORDS.contains(&word), "{word}");
        }
        assert!(ALL_KEYWORDS.contains(&"SELECT") && ALL_KEYWORDS.contains(&"EXPORT"));
    }
}
