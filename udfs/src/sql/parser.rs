//! Parses the statements about models. DataFusion parses all others.

use std::collections::VecDeque;

use datafusion::common::plan_err;
use datafusion::error::{DataFusionError, Result};
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::{DFParser, DFParserBuilder};
use datafusion::sql::sqlparser::ast::{Expr, UnaryOperator, Value};
use datafusion::sql::sqlparser::dialect::dialect_from_str;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::ParserError;
use datafusion::sql::sqlparser::tokenizer::Token;

use super::{CreateModel, OptionValue, Options, Statement, dropped};
use crate::store::ModelRef;

/// Parses statements that are separated by semicolons.
///
/// # Errors
/// The first syntax error, or a planning error for a clause that the planner would ignore.
pub fn parse(session: &SessionContext, sql: &str) -> Result<Vec<Statement>> {
    let state = session.state();
    let options = state.config_options();
    let name = options.sql_parser.dialect;
    let Some(dialect) = dialect_from_str(name) else {
        return plan_err!("unknown SQL dialect {name}");
    };
    let parser = DFParserBuilder::new(sql)
        .with_dialect(dialect.as_ref())
        .with_recursion_limit(options.sql_parser.recursion_limit.get())
        .build()?;
    let normalize = options.sql_parser.enable_ident_normalization;
    let statements = ModelParser { parser, normalize }.statements()?;
    for statement in &statements {
        match statement {
            Statement::DataFusion(statement) => dropped::check(statement, &state)?,
            Statement::CreateModel(CreateModel { query: Some(query), .. }) => dropped::check_query(query, &state)?,
            _ => {}
        }
    }
    Ok(statements)
}

struct ModelParser<'a> {
    parser: DFParser<'a>,
    /// Whether names without quotes become lower case.
    normalize: bool,
}

impl ModelParser<'_> {
    fn statements(&mut self) -> Result<Vec<Statement>> {
        let mut statements = Vec::new();
        loop {
            while self.parser.parser.consume_token(&Token::SemiColon) {}
            if self.parser.parser.peek_token() == Token::EOF {
                return Ok(statements);
            }
            statements.push(self.statement()?);
            let next = self.parser.parser.peek_token();
            if next != Token::SemiColon && next != Token::EOF {
                return self.unexpected("the end of the statement");
            }
        }
    }

    fn statement(&mut self) -> Result<Statement> {
        let words: VecDeque<String> = (0..4).map(|n| self.word_ahead(n)).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["CREATE", "MODEL", ..] => self.skip(2).create(false),
            ["CREATE", "OR", "REPLACE", "MODEL"] => self.skip(4).create(true),
            ["DROP", "MODEL", ..] => self.skip(2).drop(),
            ["SHOW", "MODELS", ..] => {
                self.skip(2);
                Ok(Statement::ShowModels)
            }
            ["DESCRIBE" | "DESC", "MODEL", next, ..] if !next.is_empty() => {
                self.skip(2).model().map(Statement::DescribeModel)
            }
            ["ALTER", "MODEL", ..] => self.skip(2).alter(),
            ["EXPORT", "MODEL", ..] => self.skip(2).export(),
            _ => Ok(Statement::DataFusion(Box::new(self.parser.parse_statement()?))),
        }
    }

    /// The word `n` tokens ahead, in upper case; `'` for a string; empty for any other token.
    fn word_ahead(&self, n: usize) -> String {
        match self.parser.parser.peek_nth_token(n).token {
            Token::Word(word) => word.value.to_uppercase(),
            Token::SingleQuotedString(_) => "'".to_owned(),
            _ => String::new(),
        }
    }

    fn skip(&mut self, n: usize) -> &mut Self {
        for _ in 0..n {
            self.parser.parser.next_token();
        }
        self
    }

    fn create(&mut self, or_replace: bool) -> Result<Statement> {
        let if_not_exists = self.parser.parser.parse_keywords(&[Keyword::IF, Keyword::NOT, Keyword::EXISTS]);
        if or_replace && if_not_exists {
            return plan_err!("CREATE MODEL: use either OR REPLACE or IF NOT EXISTS");
        }
        let model = self.model()?;
        if model.version.is_some() {
            return plan_err!("CREATE MODEL {model}: the store assigns the version; leave it out");
        }
        let options = match self.parser.parser.parse_keyword(Keyword::OPTIONS) {
            true => self.options()?,
            false => Options::default(),
        };
        let query = match self.parser.parser.parse_keyword(Keyword::AS) {
            true => Some(self.parser.parser.parse_query().map_err(syntax)?),
            false => None,
        };
        Ok(Statement::CreateModel(CreateModel { model, or_replace, if_not_exists, options, query }))
    }

    fn drop(&mut self) -> Result<Statement> {
        let if_exists = self.parser.parser.parse_keywords(&[Keyword::IF, Keyword::EXISTS]);
        Ok(Statement::DropModel { model: self.model()?, if_exists })
    }

    fn alter(&mut self) -> Result<Statement> {
        let model = self.model()?;
        if model.version.is_some() {
            return plan_err!("ALTER MODEL {model}: only the newest version can be altered; leave the version out");
        }
        if !self.parser.parser.parse_keywords(&[Keyword::SET, Keyword::OPTIONS]) {
            return self.unexpected("SET OPTIONS (…)");
        }
        Ok(Statement::AlterModel { model, options: self.options()? })
    }

    fn export(&mut self) -> Result<Statement> {
        let model = self.model()?;
        if !self.parser.parser.parse_keyword(Keyword::TO) {
            return self.unexpected("TO 'path or URL'");
        }
        match self.parser.parser.next_token().token {
            Token::SingleQuotedString(to) => Ok(Statement::ExportModel { model, to }),
            _ => {
                self.parser.parser.prev_token();
                self.unexpected("a path or URL in single quotes")
            }
        }
    }

    /// `name`, `name@version`, `"Name"` or `'name@version'`.
    fn model(&mut self) -> Result<ModelRef> {
        let name = match self.parser.parser.next_token().token {
            Token::Word(word) if word.quote_style.is_none() && self.normalize => word.value.to_lowercase(),
            Token::Word(word) => word.value,
            Token::SingleQuotedString(name) => return ModelRef::parse(&name),
            _ => {
                self.parser.parser.prev_token();
                return self.unexpected("the name of a model");
            }
        };
        // in most dialects, @ is part of the name
        if !name.contains('@') && self.parser.parser.consume_token(&Token::AtSign) {
            let version = self.parser.parser.next_token().token.to_string();
            return ModelRef::parse(&format!("{name}@{version}"));
        }
        ModelRef::parse(&name)
    }

    fn options(&mut self) -> Result<Options> {
        let mut options = Options::default();
        self.parser.parser.expect_token(&Token::LParen).map_err(syntax)?;
        while !self.parser.parser.consume_token(&Token::RParen) {
            let key = self.parser.parser.parse_identifier().map_err(syntax)?.value.to_lowercase();
            self.parser.parser.expect_token(&Token::Eq).map_err(syntax)?;
            let value = self.parser.parser.parse_expr().map_err(syntax)?;
            options.insert(key.clone(), literal(&key, &value)?)?;
            if !self.parser.parser.consume_token(&Token::Comma) && self.parser.parser.peek_token() != Token::RParen {
                return self.unexpected("a comma or a closing parenthesis");
            }
        }
        Ok(options)
    }

    fn unexpected<T>(&self, expected: &str) -> Result<T> {
        let found = self.parser.parser.peek_token();
        Err(syntax(ParserError::ParserError(format!("Expected: {expected}, found: {found}{}", found.span.start))))
    }
}

fn syntax(error: ParserError) -> DataFusionError {
    DataFusionError::SQL(Box::new(error), None)
}

fn literal(key: &str, value: &Expr) -> Result<OptionValue> {
    match value {
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) | Value::DoubleQuotedString(text) => Ok(OptionValue::Text(text.clone())),
            Value::Boolean(value) => Ok(OptionValue::Boolean(*value)),
            Value::Number(text, _) => match (text.parse(), text.parse()) {
                (Ok(number), _) => Ok(OptionValue::Whole(number)),
                (_, Ok(number)) => Ok(OptionValue::Number(number)),
                _ => plan_err!("option {key}: {text} is not a number"),
            },
            other => {
                plan_err!("option {key} must be a string, a number, TRUE, FALSE or a list of these, found {other}")
            }
        },
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => match literal(key, expr)? {
            OptionValue::Number(number) => Ok(OptionValue::Number(-number)),
            OptionValue::Whole(number) => Ok(OptionValue::Number(-(number as f64))),
            _ => plan_err!("option {key}: only a number can be negative"),
        },
        Expr::Array(array) => {
            array.elem.iter().map(|value| literal(key, value)).collect::<Result<_>>().map(OptionValue::List)
        }
        other => plan_err!("option {key} must be a string, a number, TRUE, FALSE or a list of these, found {other}"),
    }
}
