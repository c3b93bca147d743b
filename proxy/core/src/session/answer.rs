//! Progress of the answer to a unit, as its client sees it.
//!
//! While it is withheld, another server may say it again: the bytes are kept, and so is what its requests have changed
//! of the client's names. Whatever shows something of it gives both up for good.

use std::mem;
use std::rc::Rc;

use bytes::{BufMut, BytesMut};

use super::buffers::Buffers;
use super::run::Run;
use super::statements::{Held, Statement};
use super::{Kept, Session};

/// Of an answer this much is withheld at most, for each session that has one under way. More than a description
/// and some notices is not worth it: any role can make a server say gigabytes that are no rows. What is above it
/// is passed on, and the unit cannot run again then.
const WITHHELD_BYTES: usize = 64 << 10;

/// A client's name and the statement it led to, if any.
pub(super) type Definition = (Box<[u8]>, Option<Held>);

/// Fate of the server's messages up to ReadyForQuery.
#[derive(Debug, Default)]
pub(super) enum Answer {
    /// Kept back: so far nothing that could not be said again by another server.
    Withheld(Box<Withheld>),
    /// Passed on.
    #[default]
    Streaming,
    /// Swallowed: the client was told an error instead.
    ErrorSent,
    /// Swallowed: the unit runs again, on the primary.
    Discarded(Lesson),
}

/// Part of an answer that is kept until something of it is shown.
#[derive(Debug, Default)]
pub(super) struct Withheld {
    bytes: BytesMut,
    /// Definitions of the client's names before answered requests changed them, oldest first.
    undo: Vec<Definition>,
}

/// Lesson from a unit that a standby has refused as a write.
#[derive(Debug, Default)]
pub(super) enum Lesson {
    /// Nothing.
    #[default]
    Nothing,
    /// Its Query writes.
    Text,
    /// This statement does.
    Statement(Rc<Statement>),
}

impl Answer {
    /// Nothing of it was shown, and it can still be said again.
    pub(super) fn is_withheld(&self) -> bool {
        matches!(self, Self::Withheld(_))
    }

    /// It is withheld, and nothing of it was kept so far.
    pub(super) fn holds_nothing(&self) -> bool {
        matches!(self, Self::Withheld(kept) if kept.bytes.is_empty())
    }

    /// The client reads it as it comes.
    pub(super) fn is_streaming(&self) -> bool {
        matches!(self, Self::Streaming)
    }

    /// The unit is going to run again.
    pub(super) fn is_discarded(&self) -> bool {
        matches!(self, Self::Discarded(_))
    }

    /// Whether the rest of the answer is not for the client.
    pub(super) fn is_swallowed(&self) -> bool {
        matches!(self, Self::ErrorSent | Self::Discarded(_))
    }
}

impl Withheld {
    /// Number of changes that there is room for.
    pub(super) fn room(&self) -> usize {
        self.undo.capacity()
    }

    /// Gives the buffer back if nothing is in it.
    pub(super) fn trim(&mut self, buffers: &mut Buffers) {
        buffers.give_back(&mut self.bytes);
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.undo.clear();
    }

    /// The unit will run again: its names lead where they led before.
    pub(super) fn undo(&mut self, kept: &mut Kept) {
        while let Some((name, before)) = self.undo.pop() {
            match (before, name.is_empty()) {
                (before, true) => kept.unnamed = before,
                (Some(held), false) => {
                    kept.statements.insert(name, held);
                }
                (None, false) => {
                    kept.statements.remove(&name);
                }
            }
        }
    }
}

impl Session {
    /// Sets the answer, and forgets the part of it that was kept.
    pub(super) fn set_answer(&mut self, next: Answer) {
        if let Some(run) = self.state.run_mut() {
            self.spare.keep_answer(mem::replace(&mut run.answer, next));
        }
    }

    /// From here on the client sees the unit's answer.
    pub(super) fn show(&mut self) {
        let Some(Run { answer, .. }) = self.state.run_mut() else { return };
        let Answer::Withheld(kept) = answer else { return };
        if self.to_client.is_empty() {
            mem::swap(&mut self.to_client, &mut kept.bytes);
        } else {
            self.to_client.put_slice(&kept.bytes);
        }
        self.spare.keep_answer(mem::take(answer));
    }

    /// Appends for the client, now or when the answer is no longer withheld.
    pub(super) fn pass(&mut self, bytes: &[u8], buffers: &mut Buffers) {
        if bytes.is_empty() {
            return;
        }
        if let Answer::Withheld(kept) = self.state.answer()
            && kept.bytes.len() + bytes.len() > WITHHELD_BYTES
        {
            self.show();
        }
        let to = match self.state.run_mut().map(|run| &mut run.answer) {
            Some(Answer::Withheld(kept)) => &mut kept.bytes,
            Some(Answer::Discarded(_)) => return,
            Some(Answer::Streaming | Answer::ErrorSent) | None => &mut self.to_client,
        };
        buffers.lend(to);
        to.put_slice(bytes);
    }

    /// The client was told an error, and gets nothing more of the answer.
    pub(super) fn end_answer(&mut self) {
        self.show();
        if let Some(run) = self.state.run_mut() {
            run.errored = true;
            run.answer = Answer::ErrorSent;
        }
    }

    /// The unit is going to run again on the primary. Its names lead where they led before.
    pub(super) fn discard_answer(&mut self, lesson: Lesson) {
        if let Some(Run { answer: Answer::Withheld(kept), .. }) = self.state.run_mut() {
            kept.undo(&mut self.kept);
        }
        self.unit.needs_primary = true;
        self.set_answer(Answer::Discarded(lesson));
    }

    /// The client's name leads to this statement from now on, or to none.
    pub(super) fn define(&mut self, name: Box<[u8]>, held: Option<Held>) {
        let before = match (&held, name.is_empty()) {
            (_, true) => mem::replace(&mut self.kept.unnamed, held),
            (Some(held), false) => self.kept.statements.insert(name.clone(), held.clone()),
            (None, false) => self.kept.statements.remove(&name),
        };
        if let Some(Run { answer: Answer::Withheld(withheld), .. }) = self.state.run_mut() {
            withheld.undo.push((name, before));
        }
    }
}
