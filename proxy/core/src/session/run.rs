//! One try of a unit on a server, from its first byte to its last answer.

use super::answer::Answer;

/// Progress of a try.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Course {
    /// Nothing of the unit was sent.
    #[default]
    Starting,
    /// A message of it waits for the server's description of the statement that it names.
    Describing,
    /// The rest, which has waited, can be sent.
    Resuming,
    /// The answer is sent, as far as it is there.
    Answering,
    /// ReadyForQuery has come.
    Answered,
}

/// State of a try.
#[derive(Debug, Default)]
pub(super) struct Run {
    pub(super) course: Course,
    /// Progress of its answer.
    pub(super) answer: Answer,
    /// Number of the gathered bytes that were sent on, if it waits for a server's description in the middle.
    pub(super) sent: usize,
    /// Number of the unit's Parse messages that were sent.
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
    /// Error for the client instead: it would bind the session to its server, and too many are.
    pub(super) refusal: Option<Box<[u8]>>,
    /// The server reported an error.
    pub(super) errored: bool,
    /// A CommandComplete has come.
    pub(super) completed_any: bool,
    /// "canceling wait for synchronous replication" was seen and not yet told.
    pub(super) commit_doubt: bool,
}
