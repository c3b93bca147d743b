//! Failure of a step: a text for people, and the kind of failure where an operator can do something about it.

use serde::{Deserialize, Serialize};

/// Kind of a failure. It keeps its meaning once it was released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// There is no room on the disk.
    DiskFull,
    /// The disk fails, or turned read-only.
    DiskBroken,
    /// Files belong to somebody else.
    PermissionDenied,
    /// A password is not the role's.
    Password,
    /// Another peer's PostgreSQL cannot be reached.
    Network,
    /// The upstream has no place for another walsender.
    WalSenders,
    /// PostgreSQL does not know a setting, or refuses its value.
    Setting,
    /// A library that PostgreSQL is to load is missing.
    Library,
    /// A standby's settings are lower than its primary's.
    StandbySettings,
    /// A `postmaster.pid` names a process that lives.
    PidFile,
    /// The source's files cannot be copied.
    SourceFiles,
}

/// Failure of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepFailure {
    /// Problem, for people.
    pub problem: String,
    /// Kind of the failure; None: none that an operator can do something about.
    pub kind: Option<FailureKind>,
}

impl From<String> for StepFailure {
    /// A failure of no kind.
    fn from(problem: String) -> Self {
        Self { problem, kind: None }
    }
}
