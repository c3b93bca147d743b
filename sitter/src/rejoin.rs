//! The rejoin ladder: the cheapest way to bring data back in line with the shard's primary.

use serde::{Deserialize, Serialize};

/// What was done to the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rung {
    /// Nothing: it lies on the source's history and can stream as it is.
    AsIs,
    /// `pg_rewind`.
    Rewind,
    /// Set aside and copied in full.
    Copy,
}
