//! Kinds of failures, told from errors. Errors of the system and of queries have codes; what programs print and what
//! PostgreSQL logs has none, so it is read here, next to where it comes from, and nowhere else. Programs run in the C
//! locale, and `lc_messages` is Manatee's.

use std::io::{self, ErrorKind};

use tokio_postgres::error::SqlState;

use super::error::Error;
use crate::machine::failure::FailureKind;

/// Texts of PostgreSQL and of the system's `strerror`, and their meaning. The first that is found counts.
const TEXTS: &[(&str, FailureKind)] = &[
    ("No space left on device", FailureKind::DiskFull),
    ("Disk quota exceeded", FailureKind::DiskFull),
    ("Permission denied", FailureKind::PermissionDenied),
    ("password authentication failed", FailureKind::Password),
    ("no password supplied", FailureKind::Password),
    ("max_wal_senders", FailureKind::WalSenders),
    ("unrecognized configuration parameter", FailureKind::Setting),
    ("invalid value for parameter", FailureKind::Setting),
    ("could not access file", FailureKind::Library),
    ("could not load library", FailureKind::Library),
    ("insufficient parameter settings", FailureKind::StandbySettings),
    ("lock file \"postmaster.pid\" already exists", FailureKind::PidFile),
    ("Input/output error", FailureKind::DiskBroken),
    ("Read-only file system", FailureKind::DiskBroken),
    ("No route to host", FailureKind::Network),
    ("Connection refused", FailureKind::Network),
    ("Connection timed out", FailureKind::Network),
    ("Network is unreachable", FailureKind::Network),
];

/// Kind of failure in the output of a program or in PostgreSQL's log.
pub(crate) fn in_text(text: &str) -> Option<FailureKind> {
    TEXTS.iter().find(|(words, _)| text.contains(words)).map(|(_, kind)| *kind)
}

fn of_io(error: &io::Error) -> Option<FailureKind> {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Some(FailureKind::DiskFull),
        ErrorKind::PermissionDenied => Some(FailureKind::PermissionDenied),
        ErrorKind::ReadOnlyFilesystem => Some(FailureKind::DiskBroken),
        ErrorKind::ConnectionRefused
        | ErrorKind::ConnectionReset
        | ErrorKind::HostUnreachable
        | ErrorKind::NetworkUnreachable
        | ErrorKind::TimedOut => Some(FailureKind::Network),
        _ => (error.raw_os_error() == Some(nix::errno::Errno::EIO as i32)).then_some(FailureKind::DiskBroken),
    }
}

fn of_query(error: &tokio_postgres::Error) -> Option<FailureKind> {
    let Some(db) = error.as_db_error() else {
        // The server said nothing: the connection is gone.
        return Some(FailureKind::Network);
    };
    match db.code() {
        code if *code == SqlState::DISK_FULL => Some(FailureKind::DiskFull),
        code if *code == SqlState::IO_ERROR => Some(FailureKind::DiskBroken),
        code if *code == SqlState::INVALID_PASSWORD => Some(FailureKind::Password),
        _ => in_text(db.message()),
    }
}

impl Error {
    /// Kind of this failure, where an operator can do something about it.
    pub fn kind(&self) -> Option<FailureKind> {
        match self {
            Self::Io { source, .. } => of_io(source),
            Self::Query { source, .. } => of_query(source),
            Self::Program { output, .. } => in_text(output),
            Self::StartFailed { log } => in_text(log),
            Self::ConnectTimeout { .. } => Some(FailureKind::Network),
            Self::NotCopyable { .. } => Some(FailureKind::SourceFiles),
            Self::Setting { .. } => Some(FailureKind::Setting),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_is_read_from_codes_and_from_what_programs_print() {
        for (code, kind) in [
            (28, Some(FailureKind::DiskFull)),
            (5, Some(FailureKind::DiskBroken)),
            (30, Some(FailureKind::DiskBroken)),
            (13, Some(FailureKind::PermissionDenied)),
            (113, Some(FailureKind::Network)),
            (2, None),
        ] {
            let error = Error::io("write", "/x")(io::Error::from_raw_os_error(code));
            assert_eq!(error.kind(), kind, "{error}");
        }
        for (log, kind) in [
            ("FATAL:  could not access file \"nosuch\": No such file or directory", Some(FailureKind::Library)),
            ("FATAL:  recovery aborted because of insufficient parameter settings", Some(FailureKind::StandbySettings)),
            ("FATAL:  lock file \"postmaster.pid\" already exists", Some(FailureKind::PidFile)),
            ("unrecognized configuration parameter \"work_memm\"", Some(FailureKind::Setting)),
            ("number of requested standby connections exceeds max_wal_senders", Some(FailureKind::WalSenders)),
            ("exited with 1", None),
        ] {
            assert_eq!(Error::StartFailed { log: log.to_owned() }.kind(), kind, "{log}");
        }
    }
}
