//! Errors of the local PostgreSQL.

use std::path::PathBuf;
use std::time::Duration;

/// Reason why something could not be done to the local PostgreSQL.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The sitter's configuration cannot work.
    #[error("setting `{key}`: {problem}")]
    Setting {
        /// The key in the sitter's configuration.
        key: String,
        /// Problem and remedy.
        problem: String,
    },
    /// A file or folder.
    #[error("could not {what} {}", path.display())]
    Io {
        /// "read", "write", …
        what: &'static str,
        /// File or folder.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// A program of PostgreSQL's could not be run, or failed.
    #[error("{program} failed ({outcome}): {output}")]
    Program {
        /// Its name.
        program: &'static str,
        /// Exit status or signal.
        outcome: String,
        /// The end of what it printed.
        output: String,
    },
    /// A query.
    #[error("could not {what}: {}", describe(source))]
    Query {
        /// Purpose.
        what: &'static str,
        /// Cause.
        #[source]
        source: tokio_postgres::Error,
    },
    /// TLS with another peer's PostgreSQL.
    #[error("TLS with {target}: {problem}")]
    Tls {
        /// Peer at the other end.
        target: String,
        /// Problem.
        problem: String,
    },
    /// Another action is being executed.
    #[error("another action on PostgreSQL is in progress")]
    Busy,
    /// Needs a running, answering server.
    #[error("PostgreSQL is not answering")]
    NotAnswering,
    /// The server must be stopped for this.
    #[error("PostgreSQL is running")]
    Running,
    /// There must be no data directory for this.
    #[error("there is a data directory already")]
    DataPresent,
    /// A standby's directory must not be started as a primary: the old timeline would go on.
    #[error("the data directory is a standby's: it is started in recovery and promoted")]
    StandbyData,
    /// There must be a complete data directory for this.
    #[error("the data directory cannot be started: {0}")]
    DataNotFit(String),
    /// The postmaster ended while starting.
    #[error("PostgreSQL ended while starting: {log}")]
    StartFailed {
        /// The end of its log.
        log: String,
    },
    /// Nothing wrong was seen, but it took too long.
    #[error("{what} was not confirmed within {} ms", timeout.as_millis())]
    Timeout {
        /// Condition that was waited for.
        what: String,
        /// The bound.
        timeout: Duration,
    },
    /// PostgreSQL did not take over what was rendered.
    #[error("PostgreSQL did not apply the configuration: {0}")]
    NotApplied(String),
    /// The source cannot give what is needed.
    #[error("the source {source_peer} is not fit: {problem}")]
    SourceNotFit {
        /// Peer that was asked.
        source_peer: manatee_shared::ids::PeerId,
        /// Problem.
        problem: String,
    },
    /// The source's PostgreSQL cannot read its own files.
    #[error("the source {source_peer} could not be copied: {problem}")]
    NotCopyable {
        /// Peer that was asked.
        source_peer: manatee_shared::ids::PeerId,
        /// Its words about them.
        problem: String,
    },
    /// Another peer's PostgreSQL did not let us in in time.
    #[error("no connection to the PostgreSQL of {peer} within {} ms", timeout.as_millis())]
    ConnectTimeout {
        /// The peer.
        peer: manatee_shared::ids::PeerId,
        /// The bound.
        timeout: Duration,
    },
    /// The rest of an interrupted stream cannot be had here.
    #[error("the interrupted transfer cannot be resumed: {0}")]
    NotResumable(String),
    /// The source belongs to another cluster (rule 10).
    #[error("the source's system identifier is {found}, this shard's is {expected}")]
    OtherSystem {
        /// Of the source.
        found: String,
        /// Ours.
        expected: String,
    },
}

impl Error {
    /// For `map_err` on file operations.
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }

    /// SQLSTATE of the server's answer, if it gave one.
    pub(crate) fn code(&self) -> Option<&tokio_postgres::error::SqlState> {
        match self {
            Self::Query { source, .. } => source.code(),
            _ => None,
        }
    }

    /// For `map_err` on queries.
    pub(crate) fn query(what: &'static str) -> impl FnOnce(tokio_postgres::Error) -> Self {
        move |source| Self::Query { what, source }
    }
}

/// tokio-postgres shows only "db error" for what the server said.
fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} ({})", db.message(), db.code().code()),
        None => error.to_string(),
    }
}
