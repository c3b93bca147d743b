//! The unit of routing: one Query, one FunctionCall, or the extended messages up to Sync; what is known about it.

use std::rc::Rc;

use super::statements::Statement;
use crate::route::class::{Hint, Statements};
use crate::route::{Class, Control, Effects, SettingChange};
use crate::wire::backend::TxStatus;

/// Kinds of messages in a unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Shape {
    /// A Sync and nothing else, or nothing yet.
    #[default]
    Empty,
    /// One Query (possibly behind extended messages), or one FunctionCall.
    Simple,
    /// Extended messages.
    Extended,
}

/// Extent of a unit behind the data of a COPY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// The next unit.
    Closed,
    /// More of this one.
    Open,
}

/// Meaning of the client's next bytes to the unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Input {
    /// The next unit: this one ends with the message that makes the server send ReadyForQuery.
    #[default]
    Whole,
    /// More of it: the client asked for answers with Flush, or it is too long to wait for its end.
    Open,
    /// CopyData, which the server takes. What comes behind it is as the extent says.
    CopyIn(Extent),
    /// Nothing: the server skips to the next Sync, and so do we.
    SkipToSync,
}

impl Input {
    /// More of the unit will come.
    pub(super) fn is_open(self) -> bool {
        matches!(self, Self::Open | Self::CopyIn(Extent::Open) | Self::SkipToSync)
    }

    /// The server takes CopyData.
    pub(super) fn is_copy(self) -> bool {
        matches!(self, Self::CopyIn(_))
    }

    /// The server has begun to take CopyData.
    fn with_copy(self) -> Self {
        match self {
            Self::Whole => Self::CopyIn(Extent::Closed),
            Self::Open => Self::CopyIn(Extent::Open),
            Self::CopyIn(_) | Self::SkipToSync => self,
        }
    }

    /// The server takes no CopyData any more.
    fn without_copy(self) -> Self {
        match self {
            Self::CopyIn(Extent::Closed) => Self::Whole,
            Self::CopyIn(Extent::Open) => Self::Open,
            Self::Whole | Self::Open | Self::SkipToSync => self,
        }
    }
}

/// The unit at hand.
#[derive(Debug, Default)]
pub(super) struct Unit {
    /// Its bytes at the head of the client's buffer, as far as looked at; 0 once they are taken from there.
    pub(super) end: usize,
    /// Messages.
    pub(super) shape: Shape,
    /// Meaning of the client's next bytes to it.
    pub(super) input: Input,
    /// Transaction status when it began.
    pub(super) started: TxStatus,
    /// Nothing in it needs the primary.
    pub(super) read_only: bool,
    /// It can run twice without harm: reads only, autocommit.
    pub(super) repeatable: bool,
    /// Its transaction control.
    pub(super) control: Option<Control>,
    /// An explicit commit is in it.
    pub(super) commits: bool,
    /// Effects on the server.
    pub(super) effects: Effects,
    /// It may make sequence values, or leave something that no text shows.
    pub(super) leaves_traces: bool,
    /// Hint at the start of its text.
    pub(super) hint: Option<Hint>,
    /// Class of the Query's text.
    pub(super) class: Option<Rc<Class>>,
    /// Number of texts that were mentioned…
    pub(super) mentions: u32,
    /// …and how many of them are for the proxy itself.
    pub(super) proxied: u32,
    /// One statement at most; unknown counts as many.
    pub(super) single: bool,
    /// Its Parse messages in order: name and statement.
    pub(super) parses: Vec<(Box<[u8]>, Rc<Statement>)>,
    /// Some of its messages change what names of statements lead to.
    pub(super) renames: bool,
    /// A text that changes settings is run.
    pub(super) sets: bool,
    /// Number of times that it was run already.
    pub(super) attempts: u8,
    /// A standby has refused it.
    pub(super) needs_primary: bool,
    /// Databases that it needs nobody to be connected to, for the driver to take.
    pub(super) vacates: Vec<Box<str>>,
    /// Settings that its texts change.
    pub(super) changes: Vec<SettingChange>,
    /// Custom settings that its texts may change without showing how.
    pub(super) may_set: Vec<Box<str>>,
    /// Number of times that servers have refused the session's settings for it.
    pub(super) refusals: u8,
    /// It runs without the values that the settings which it changes had before: no server takes them.
    pub(super) without_own: bool,
}

impl Unit {
    /// Ready for the next one; buffers are kept.
    pub(super) fn reset(&mut self, started: TxStatus) {
        let mut parses = std::mem::take(&mut self.parses);
        parses.clear();
        *self = Self { parses, started, read_only: true, repeatable: true, single: true, ..Self::default() };
    }

    /// Number of messages that there is room for.
    pub(super) fn room(&self) -> usize {
        self.parses.capacity()
    }

    /// Ready to be run again.
    pub(super) fn rewind(&mut self) {
        self.end_copy();
        self.attempts += 1;
    }

    /// A text is mentioned: prepared or described.
    pub(super) fn mention(&mut self, class: &Class) {
        self.mentions += 1;
        self.proxied += u32::from(class.proxy.is_some());
        self.read_only &= class.access.is_read_only();
        self.repeatable &= class.is_plain_read();
        self.hint = self.hint.or(class.hint);
    }

    /// A text is run.
    pub(super) fn run(&mut self, class: &Class) {
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
    pub(super) fn run_unknown(&mut self) {
        self.read_only = false;
        self.repeatable = false;
        self.single = false;
        self.leaves_traces = true;
    }

    /// Its transaction control, if it is one such statement and nothing else.
    pub(super) fn alone(&self) -> Option<crate::route::TransactionControl> {
        match self.control {
            Some(Control::Alone(one)) => Some(one),
            _ => None,
        }
    }

    /// Its bytes are still at the head of the client's buffer.
    pub(super) fn is_here(&self) -> bool {
        self.end > 0
    }

    /// Its end has come.
    pub(super) fn close(&mut self) {
        self.input = Input::Whole;
    }

    /// More of it will come.
    pub(super) fn open(&mut self) {
        self.input = match self.input {
            Input::Whole => Input::Open,
            Input::CopyIn(_) => Input::CopyIn(Extent::Open),
            open => open,
        };
    }

    /// The server takes CopyData for it.
    pub(super) fn begin_copy(&mut self) {
        self.input = self.input.with_copy();
    }

    /// The server takes no CopyData any more.
    pub(super) fn end_copy(&mut self) {
        self.input = self.input.without_copy();
    }

    /// Nothing of its answer reached the client and its bytes are still here.
    pub(super) fn can_rerun(&self) -> bool {
        self.is_here() && !self.input.is_open() && self.started == TxStatus::Idle && self.attempts < MAX_ATTEMPTS
    }
}

/// A unit is tried this often at most; each try needs another reason to believe it will work.
pub(super) const MAX_ATTEMPTS: u8 = 10;
