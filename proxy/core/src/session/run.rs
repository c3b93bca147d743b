//! One try of a unit on a server, from its first byte to its last answer.

use super::answer::Answer;

/// How far a try is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Course {
    /// Nothing of the unit was sent.
    #[default]
    Starting,
    /// A message of it waits for the server's description of the statement that it names.
    Describing,
    /// What has waited can be sent.
    Resuming,
    /// What there is of it is sent.
    Answering,
    /// ReadyForQuery has come.
    Answered,
}

/// What is known of a try.
#[derive(Debug, Default)]
pub(super) struct Run {
    pub(super) course: Course,
    /// How far its answer has come.
    pub(super) answer: Answer,
    /// How many of the gathered bytes were sent on, if it waits for a server's description in the middle.
    pub(super) sent: usize,
    /// How many of the unit's Parse messages were sent.
    pub(super) parses_sent: usize,
    /// The message to be sent next was noted already, and then had to wait.
    pub(super) noted: bool,
    /// Something of it was executed.
    pub(super) executed: bool,
    /// Execute of something that a failed transaction lets through was sent.
    pub(super) leaves_failed: bool,
    /// Names were put on the server for a DEALLOCATE to remove.
    pub(super) placeholders: bool,
    /// Nothing more of the unit comes, and its answers were asked for.
    pub(super) flushed: bool,
    /// Number of the statement of which the server has other rows than the client was told.
    pub(super) mismatch: Option<u32>,
    /// What the client is told instead: it would bind the session to its server, and too many are.
    pub(super) refusal: Option<Box<[u8]>>,
    /// The server reported an error.
    pub(super) errored: bool,
    /// A CommandComplete has come.
    pub(super) completed_any: bool,
    /// "canceling wait for synchronous replication" was seen and not yet told.
    pub(super) commit_doubt: bool,
}
