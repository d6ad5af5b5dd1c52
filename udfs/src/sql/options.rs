//! `OPTIONS (key = value, …)`.

use std::collections::BTreeMap;

use datafusion::common::plan_err;
use datafusion::error::Result;

use crate::choice::Choice;
use crate::suggest;

/// A literal value.
#[derive(Debug, Clone, PartialEq)]
pub enum OptionValue {
    /// `'text'`
    Text(String),
    /// `0`, `9007199254740993`: a whole number that an `f64` may not hold.
    Whole(u64),
    /// `-1`, `0.5`
    Number(f64),
    /// `TRUE`, `FALSE`
    Boolean(bool),
    /// `[…]` or `ARRAY[…]`
    List(Vec<OptionValue>),
}

impl OptionValue {
    fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a string",
            Self::Whole(_) | Self::Number(_) => "a number",
            Self::Boolean(_) => "a boolean",
            Self::List(_) => "a list",
        }
    }
}

/// Options by name. Each option is taken once; those that are left at the end are unknown.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Options(BTreeMap<String, OptionValue>);

impl Options {
    /// Adds an option.
    ///
    /// # Errors
    /// A planning error if the option is already set.
    pub fn insert(&mut self, key: String, value: OptionValue) -> Result<()> {
        match self.0.insert(key.clone(), value) {
            None => Ok(()),
            Some(_) => plan_err!("option {key} is given twice"),
        }
    }

    /// Whether an option is set.
    pub fn contains(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// An option, without taking it.
    pub fn get(&self, key: &str) -> Option<&OptionValue> {
        self.0.get(key)
    }

    /// Takes an option.
    pub fn take(&mut self, key: &str) -> Option<OptionValue> {
        self.0.remove(key)
    }

    /// Takes a string.
    ///
    /// # Errors
    /// A planning error if it has another type.
    pub fn take_text(&mut self, key: &str) -> Result<Option<String>> {
        match self.take(key) {
            None => Ok(None),
            Some(OptionValue::Text(text)) => Ok(Some(text)),
            Some(other) => plan_err!("option {key} must be a string, found {}", other.kind()),
        }
    }

    /// Takes the name of a value.
    ///
    /// # Errors
    /// A planning error if it is not a string or not one of the names.
    pub fn take_choice<T: Choice>(&mut self, key: &str) -> Result<Option<T>> {
        self.take_text(key)?.map(|name| T::parse(&format!("option {key}"), &name)).transpose()
    }

    /// Takes a number.
    ///
    /// # Errors
    /// A planning error if it has another type.
    pub fn take_number(&mut self, key: &str) -> Result<Option<f64>> {
        match self.take(key) {
            None => Ok(None),
            Some(OptionValue::Number(number)) => Ok(Some(number)),
            Some(OptionValue::Whole(number)) => Ok(Some(number as f64)),
            Some(other) => plan_err!("option {key} must be a number, found {}", other.kind()),
        }
    }

    /// Takes a whole number from 0 up.
    ///
    /// # Errors
    /// A planning error if it has another type.
    pub fn take_whole(&mut self, key: &str) -> Result<Option<u64>> {
        let value = self.take(key);
        value.map(|value| whole(key, value)).transpose()
    }

    /// Takes `TRUE` or `FALSE`.
    ///
    /// # Errors
    /// A planning error if it has another type.
    pub fn take_boolean(&mut self, key: &str) -> Result<Option<bool>> {
        match self.take(key) {
            None => Ok(None),
            Some(OptionValue::Boolean(value)) => Ok(Some(value)),
            Some(other) => plan_err!("option {key} must be TRUE or FALSE, found {}", other.kind()),
        }
    }

    /// Takes a list of whole numbers from 0 up.
    ///
    /// # Errors
    /// A planning error if it has another type.
    pub fn take_wholes(&mut self, key: &str) -> Result<Option<Vec<u64>>> {
        match self.take(key) {
            None => Ok(None),
            Some(OptionValue::List(values)) => {
                values.into_iter().map(|value| whole(key, value)).collect::<Result<_>>().map(Some)
            }
            Some(other) => plan_err!("option {key} must be a list of whole numbers, found {}", other.kind()),
        }
    }

    /// Takes a list of strings.
    ///
    /// # Errors
    /// A planning error if it has another type.
    pub fn take_texts(&mut self, key: &str) -> Result<Option<Vec<String>>> {
        let text = |value| match value {
            OptionValue::Text(text) => Ok(text),
            other => plan_err!("option {key} must be a list of strings, found {} in it", other.kind()),
        };
        match self.take(key) {
            None => Ok(None),
            Some(OptionValue::List(values)) => values.into_iter().map(text).collect::<Result<_>>().map(Some),
            Some(other) => plan_err!("option {key} must be a list of strings, found {}", other.kind()),
        }
    }

    /// Checks that no option is left.
    ///
    /// # Errors
    /// A planning error that names an unknown option and the nearest known options.
    pub fn finish(&self, known: &[&str]) -> Result<()> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(key) => plan_err!(
                "unknown option {key}{}; the options here are {}",
                suggest::hint(key, known.iter().copied()),
                known.join(", ")
            ),
        }
    }
}

/// 2^53: all whole numbers below are exact as `f64`.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;

fn whole(key: &str, value: OptionValue) -> Result<u64> {
    match value {
        OptionValue::Whole(number) => Ok(number),
        OptionValue::Number(number) => match crate::numbers::whole(number).filter(|_| number < MAX_EXACT) {
            Some(whole) => Ok(whole),
            None => plan_err!("option {key} must be a whole number from 0 up, found {number}"),
        },
        other => plan_err!("option {key} must be a whole number, found {}", other.kind()),
    }
}
