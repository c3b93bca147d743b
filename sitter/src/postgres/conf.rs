//! Being written.

use std::collections::BTreeMap;

use super::error::Error;

/// Refuses settings that Manatee owns.
pub(super) fn check_parameters(_parameters: &BTreeMap<String, String>) -> Result<(), Error> {
    Ok(())
}
