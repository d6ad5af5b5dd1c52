//! Names of models, with or without a version.

use std::fmt;

use datafusion_common::error::Result;
use datafusion_common::plan_err;

/// Name of a model: letters, digits, `_` and `-`; the first is a letter or `_`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelName(String);

impl ModelName {
    /// A name that is valid in a path and in `name@version`.
    ///
    /// # Errors
    /// A planning error if it is not.
    pub fn new(name: &str) -> Result<Self> {
        let mut characters = name.chars();
        let first = characters.next().is_some_and(|c| c.is_alphabetic() || c == '_');
        if !first || name.len() > 128 || !characters.all(|c| c.is_alphanumeric() || c == '_' || c == '-') {
            return plan_err!(
                "'{name}' cannot name a model: a name has up to 128 bytes of letters, digits, _ and -, and begins with \
                 a letter or _"
            );
        }
        Ok(Self(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `fraud`, the newest version, or `fraud@3`, version 3.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ModelRef {
    /// The name.
    pub name: ModelName,
    /// The version; none for the newest.
    pub version: Option<u64>,
}

impl ModelRef {
    /// Reads `name` or `name@version`.
    ///
    /// # Errors
    /// A planning error if the text is neither.
    pub fn parse(text: &str) -> Result<Self> {
        let Some((name, version)) = text.split_once('@') else {
            return Ok(Self { name: ModelName::new(text)?, version: None });
        };
        match version.parse() {
            Ok(version) if version > 0 => Ok(Self { name: ModelName::new(name)?, version: Some(version) }),
            _ => plan_err!("'{text}' names no model: the version after @ must be a whole number from 1 up"),
        }
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            Some(version) => write!(f, "{}@{version}", self.name),
            None => write!(f, "{}", self.name),
        }
    }
}
