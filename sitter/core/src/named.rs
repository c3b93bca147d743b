//! Values of enumerations that another version may have more of.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

/// A value of an enumeration, or the name of one that only another version knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Named<T> {
    /// One that is known here.
    Known(T),
    /// Another version's.
    Other(String),
}

impl<T> Named<T> {
    /// The value, if it is known here.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Other(_) => None,
        }
    }
}

impl<T: PartialEq> PartialEq<T> for Named<T> {
    fn eq(&self, other: &T) -> bool {
        self.known() == Some(other)
    }
}

impl<T> From<T> for Named<T> {
    fn from(value: T) -> Self {
        Self::Known(value)
    }
}

impl<T: fmt::Display> fmt::Display for Named<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(value) => value.fmt(f),
            Self::Other(name) => f.pad(name),
        }
    }
}

/// Reads a value that a later version may have added as None.
pub(crate) fn if_known<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    Ok(match Option::<Named<T>>::deserialize(deserializer)? {
        Some(Named::Known(value)) => Some(value),
        Some(Named::Other(_)) | None => None,
    })
}
