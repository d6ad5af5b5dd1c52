//! Choices among named values, as options and metadata spell them.

use datafusion::common::plan_err;
use datafusion::error::Result;

use crate::near;

/// A type whose values have names.
pub trait Named: Sized + Copy + PartialEq + 'static {
    /// Every value and its name.
    const NAMES: &'static [(&'static str, Self)];

    /// The name of a value.
    fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, value)| *value == self).map_or("", |(name, _)| name)
    }

    /// The value that a text names, whatever its case; `what` says in the error whose text it is.
    ///
    /// # Errors
    /// A planning error that lists the names.
    fn named(what: &str, text: &str) -> Result<Self> {
        if let Some((_, value)) = Self::NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)) {
            return Ok(*value);
        }
        let names: Vec<&str> = Self::NAMES.iter().map(|(name, _)| *name).collect();
        plan_err!(
            "{what} must be one of {}; found '{text}'{}",
            names.join(", "),
            near::hint(text, names.iter().copied())
        )
    }
}
