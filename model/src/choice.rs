//! Options whose values have names, such as `error_metric = 'mae'`.

use std::str::FromStr;

use datafusion_common::error::Result;
use datafusion_common::plan_err;
use strum::VariantNames;

use crate::suggest;

/// An enum whose values have names, as options and metadata spell them.
///
/// Derive `EnumString`, `IntoStaticStr` and `VariantNames` of the crate `strum`; this trait then applies by itself.
///
/// ```
/// use aefusion_model::choice::Choice;
/// use strum::{EnumString, IntoStaticStr, VariantNames};
///
/// #[derive(Debug, Clone, Copy, PartialEq, EnumString, IntoStaticStr, VariantNames)]
/// #[strum(serialize_all = "snake_case", ascii_case_insensitive)]
/// enum Delivery {
///     ExactlyOnce,
///     AtLeastOnce,
/// }
///
/// assert_eq!(Delivery::parse("stream.delivery", "Exactly_Once")?, Delivery::ExactlyOnce);
/// assert_eq!(Delivery::AtLeastOnce.name(), "at_least_once");
/// let error = Delivery::parse("stream.delivery", "exactly_one").unwrap_err();
/// assert!(error.to_string().ends_with(
///     "stream.delivery must be one of exactly_once, at_least_once; found 'exactly_one'; did you mean \"exactly_once\"?"
/// ));
/// # Ok::<(), datafusion_common::error::DataFusionError>(())
/// ```
pub trait Choice: Copy + FromStr + Into<&'static str> + VariantNames {
    /// The name of a value.
    fn name(self) -> &'static str {
        self.into()
    }

    /// The value with a name, in any case. `what` names the option or setting in the error.
    ///
    /// # Errors
    /// A planning error that lists all names and suggests the nearest.
    fn parse(what: &str, text: &str) -> Result<Self> {
        match Self::from_str(text) {
            Ok(value) => Ok(value),
            Err(_) => plan_err!(
                "{what} must be one of {}; found '{text}'{}",
                Self::VARIANTS.join(", "),
                suggest::hint(text, Self::VARIANTS.iter().copied())
            ),
        }
    }
}

impl<T: Copy + FromStr + Into<&'static str> + VariantNames> Choice for T {}
