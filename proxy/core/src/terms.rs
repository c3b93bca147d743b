//! Terms that the configuration, the pool and sessions share.

/// Access that the listener's address asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Writes to the primary, reads to standbys.
    #[default]
    ReadWrite,
    /// Everything read-only, to a standby.
    ReadOnly,
    /// Everything to the primary.
    PrimaryOnly,
}

/// Moment at which a server connection goes back to the pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// After each transaction.
    #[default]
    Transaction,
    /// At the client's end.
    Session,
}
