//! The unit of routing: one Query, one FunctionCall, or the extended messages up to Sync; what is
//! known about it, and how far its answer has come.

use std::rc::Rc;

use super::statements::{Held, Statement};
use crate::route::class::{Hint, Statements};
use crate::route::{Class, Control, Effects, SettingChange};
use crate::wire::backend::TxStatus;

/// What messages a unit is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// A Sync and nothing else, or nothing yet.
    #[default]
    Empty,
    /// One Query (possibly behind extended messages), or one FunctionCall.
    Simple,
    /// Extended messages.
    Extended,
}

/// Whether its end is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Extent {
    /// It ends with the message that makes the server send ReadyForQuery.
    #[default]
    Closed,
    /// More will come: the client asked for answers with Flush, or it is too long to wait for its end.
    Open,
}

/// COPY over the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Copy {
    /// None under way.
    #[default]
    None,
    /// The server takes CopyData.
    In,
}

/// What becomes of the server's next messages up to ReadyForQuery.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Forwarding {
    /// Kept back: so far nothing that could not be said again by another server.
    Withheld,
    /// Passed on.
    #[default]
    On,
    /// Swallowed: the client was told an error instead.
    Told,
    /// Swallowed: the unit runs again, on the primary if so asked.
    Rerun {
        /// Not on a standby again.
        on_primary: bool,
    },
}

/// A client's name and the statement it leads to, if any.
pub(super) type Definition = (Box<[u8]>, Option<Held>);

/// The unit at hand.
#[derive(Debug, Default)]
pub struct Unit {
    /// Its bytes at the head of the client's buffer, as far as looked at.
    pub end: usize,
    /// Messages.
    pub shape: Shape,
    /// Whether its end is known.
    pub extent: Extent,
    /// Transaction status when it began.
    pub started: TxStatus,
    /// Nothing in it needs the primary.
    pub read_only: bool,
    /// It can run twice without harm: reads only, autocommit.
    pub repeatable: bool,
    /// Its transaction control.
    pub control: Option<Control>,
    /// An explicit commit is in it.
    pub commits: bool,
    /// What it leaves behind on the server.
    pub effects: Effects,
    /// It may make sequence values, or leave something that no text shows.
    pub leaves_traces: bool,
    /// Hint at the start of its text.
    pub hint: Option<Hint>,
    /// Class of the Query's text.
    pub class: Option<Rc<Class>>,
    /// How many texts were mentioned…
    pub mentions: u32,
    /// …and how many of them are for the proxy itself.
    pub proxied: u32,
    /// One statement at most; unknown counts as many.
    pub single: bool,
    /// Its Parse messages in order: name and statement.
    pub parses: Vec<(Box<[u8]>, Rc<Statement>)>,
    /// How many of them were sent.
    pub parses_sent: usize,
    /// Some of its messages change what names of statements lead to.
    pub renames: bool,
    /// A text that changes settings is run.
    pub sets: bool,
    /// How many of its bytes were sent on, if it waits for a server's description in the middle.
    pub sent: usize,
    /// The message to be sent next was noted already, and then had to wait.
    pub noted: bool,
    /// Something of it was executed.
    pub executed: bool,
    /// Number of the statement of which the server has other rows than the client was told.
    pub mismatch: Option<u32>,
    /// Where the client's names led that its answered requests changed, oldest first.
    pub undo: Vec<Definition>,
    /// Execute of something that a failed transaction lets through was sent.
    pub leaves_failed: bool,
    /// Fate of its answer.
    pub forwarding: Forwarding,
    /// Its bytes were taken from the client's buffer: it cannot run again.
    pub consumed: bool,
    /// The server reported an error in it.
    pub errored: bool,
    /// A CommandComplete has come.
    pub completed_any: bool,
    /// "canceling wait for synchronous replication" was seen and not yet told.
    pub commit_doubt: bool,
    /// COPY under way.
    pub copy: Copy,
    /// The server skips to the next Sync; so do we.
    pub skipping: bool,
    /// How often it was run already.
    pub attempts: u8,
    /// A standby has refused it.
    pub needs_primary: bool,
    /// Databases that it needs nobody to be connected to, for the driver to take.
    pub vacates: Vec<Box<str>>,
    /// Names were put on the server for a DEALLOCATE to remove.
    pub placeholders: bool,
    /// What the client is told instead: it would bind the session to its server, and too many are.
    pub refusal: Option<Box<[u8]>>,
    /// Nothing more of it comes, and its answers were asked for.
    pub flushed: bool,
    /// Settings that its texts change.
    pub changes: Vec<SettingChange>,
    /// Custom settings that its texts may change without showing how.
    pub may_set: Vec<Box<str>>,
    /// How often servers have refused the session's settings for it.
    pub refusals: u8,
    /// It runs without the values that the settings which it changes had before: no server takes them.
    pub without_own: bool,
}

impl Unit {
    /// Ready for the next one; buffers are kept.
    pub fn reset(&mut self, started: TxStatus) {
        let mut parses = std::mem::take(&mut self.parses);
        parses.clear();
        let mut undo = std::mem::take(&mut self.undo);
        undo.clear();
        *self = Self { parses, undo, started, read_only: true, repeatable: true, single: true, ..Self::default() };
    }

    /// For how many messages there is room.
    pub(super) fn room(&self) -> usize {
        self.parses.capacity().max(self.undo.capacity())
    }

    /// Ready to be run again.
    pub fn rewind(&mut self) {
        self.parses_sent = 0;
        self.leaves_failed = false;
        self.forwarding = Forwarding::Withheld;
        self.errored = false;
        self.completed_any = false;
        self.commit_doubt = false;
        self.copy = Copy::None;
        self.skipping = false;
        self.placeholders = false;
        self.sent = 0;
        self.noted = false;
        self.executed = false;
        self.mismatch = None;
        self.flushed = false;
        self.refusal = None;
        self.attempts += 1;
    }

    /// A text is mentioned: prepared or described.
    pub fn mention(&mut self, class: &Class) {
        self.mentions += 1;
        self.proxied += u32::from(class.proxy.is_some());
        self.read_only &= class.access.is_read_only();
        self.repeatable &= class.is_plain_read();
        self.hint = self.hint.or(class.hint);
    }

    /// A text is run.
    pub fn run(&mut self, class: &Class) {
        self.mention(class);
        self.effects.insert(class.effects);
        self.changes.extend(class.settings.iter().cloned());
        self.may_set.extend(class.may_set.iter().cloned());
        self.leaves_traces |= class.may_leave_traces();
        self.sets |= !class.settings.is_empty();
        self.commits |= class.control.commits();
        self.vacates.extend(class.vacates.iter().cloned());
        self.single &= matches!(class.statements, Statements::One | Statements::None);
        if matches!(class.statements, Statements::Unknown) {
            self.commits = true;
        }
        self.control = match (self.control, class.control) {
            (None, control) => Some(control),
            (Some(Control::None), Control::None) => {
                self.single = false;
                Some(Control::None)
            }
            (Some(before), control) => {
                self.single = false;
                let first = match before {
                    Control::Alone(first) => Some(first),
                    Control::Mixed { first, .. } => first,
                    Control::None => None,
                };
                Some(Control::Mixed { first, commits: before.commits() || control.commits() })
            }
        };
    }

    /// Something unknown is run.
    pub fn run_unknown(&mut self) {
        self.read_only = false;
        self.repeatable = false;
        self.single = false;
        self.leaves_traces = true;
    }

    /// Its transaction control, if it is one such statement and nothing else.
    pub fn alone(&self) -> Option<crate::route::TransactionControl> {
        match self.control {
            Some(Control::Alone(one)) => Some(one),
            _ => None,
        }
    }

    /// Nothing of its answer reached the client and its bytes are still here.
    pub fn can_rerun(&self) -> bool {
        !self.consumed
            && self.extent == Extent::Closed
            && self.started == TxStatus::Idle
            && self.attempts < MAX_ATTEMPTS
    }
}

/// A unit is tried this often at most; each try needs another reason to believe it will work.
pub(super) const MAX_ATTEMPTS: u8 = 10;
