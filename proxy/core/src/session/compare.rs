//! Descriptions of statements by servers: kept with them ([`Signature`](super::statements::Signature)), and compared
//! when a statement is brought along to a server that lacks it.
//!
//! A client that was told what rows its prepared statement returns must not get other rows from it. A server that
//! prepared it before a change of schema says so itself, "cached plan must not change result type" (plancache.c); one
//! that prepares it only now would not. So there a Describe goes in front of the Bind, in the same place of the
//! client's pipeline, without a Sync: what stands in front of it counts as it should, and errors come where
//! PostgreSQL has them. What reads only, outside a transaction, is sent on at once: if the rows are others, nothing has
//! happened, and the client is not shown them. All else waits for the description before it is sent.

use bytes::{BufMut, BytesMut};
use foldhash::fast::FixedState;
use std::hash::{BuildHasher, Hasher};
use std::rc::Rc;

use super::answer::Lesson;
use super::inject::Injected;
use super::ledger::Expect;
use super::run::Course;
use super::state::Link;
use super::statements::{Held, Statement};
use super::unit::Shape;
use super::{Session, Shared};
use crate::terms::Access;
use crate::wire::backend::{self, TxStatus};
use crate::wire::{put_message, take_cstr};

/// A statement on a server.
#[derive(Debug)]
pub(super) enum Brought {
    /// It has it, or will have it by what was put in front: under this name.
    Named(Rc<str>),
    /// As its unnamed statement.
    Unnamed,
    /// The server has to say something first: the message that needs it has to wait.
    Waits,
    /// It returns other rows there than the client was told.
    Differs,
}

/// Fingerprint of a RowDescription that tells different rows apart: names, types, sizes and modifiers, not the
/// tables they come from (`equalTupleDescs`).
pub(super) fn shape(body: &[u8]) -> u64 {
    // Name, table and column number, type, size, modifier, format: manual, section 55.7.
    const BEHIND_NAME: usize = 18;
    const OF_TABLE: usize = 6;
    let mut hasher = FixedState::default().build_hasher();
    let mut rest = body.get(2..).unwrap_or_default();
    while let Some((name, after)) = take_cstr(rest)
        && let Some((field, after)) = after.split_at_checked(BEHIND_NAME)
    {
        hasher.write(name);
        hasher.write_u8(0);
        hasher.write(&field[OF_TABLE..]);
        rest = after;
    }
    hasher.finish()
}

/// Whether PostgreSQL may say something else of the rows of this text each time it is asked, without calling its plan
/// out of date: what is not analysed has no plan that could be (`stmt_requires_parse_analysis` in analyze.c).
fn varies(text: &[u8]) -> bool {
    let word = text.trim_ascii_start();
    [&b"fetch"[..], b"show", b"execute"]
        .iter()
        .any(|known| word.get(..known.len()).is_some_and(|begins| begins.eq_ignore_ascii_case(known)))
}

impl Session {
    /// Sees to it that the server has what the client has under this name.
    pub(super) fn bring(&mut self, name: &[u8], held: &Held, shared: &mut Shared) -> Brought {
        let Some((Link { server, .. }, run)) = self.state.at_run() else { return Brought::Unnamed };
        if !name.is_empty() {
            if let Some(found) = server.prepared.find(held) {
                return Brought::Named(found);
            }
        } else if server.unnamed.as_ref().is_some_and(|has| has.serves(held)) {
            return Brought::Unnamed;
        }
        let statement = &held.statement;
        if run.mismatch == Some(statement.id()) {
            return Brought::Differs;
        }
        let copy = Held { statement: statement.clone(), since: shared.interner.tick() };
        let (given, brought) = if name.is_empty() {
            self.inject(&Injected::ParseUnnamed(&copy), Expect::InjectedUnnamed(statement.clone()));
            (Rc::from(""), Brought::Unnamed)
        } else {
            let given = self.put_parse(&copy, Expect::InjectedParse(statement.clone()), shared);
            (given.clone(), Brought::Named(given))
        };
        match statement.signature() {
            None if name.is_empty() => {}
            None => {
                let expect = Expect::Signature { name: name.into(), statement: statement.clone() };
                self.inject(&Injected::Describe(&given), expect);
            }
            Some(signature) if signature.rows.is_none() || varies(statement.text()) => {}
            Some(_) => {
                self.inject(&Injected::Describe(&given), Expect::Compare(statement.clone()));
                if !self.is_undone_by_silence() {
                    self.inject_unanswered(&Injected::Flush);
                    return Brought::Waits;
                }
            }
        }
        brought
    }

    /// Whether nothing of the unit has happened if its client is not shown what came of it.
    fn is_undone_by_silence(&self) -> bool {
        self.unit.started == TxStatus::Idle
            && !self.unit.input.is_open()
            && self.unit.shape == Shape::Extended
            && self.unit.repeatable
            && !self.unit.renames
    }

    /// The server has described a statement behind its Parse.
    pub(super) fn learn_signature(
        &mut self,
        name: &[u8],
        statement: &Rc<Statement>,
        rows: Option<u64>,
        shared: &mut Shared,
    ) {
        let Some(Link { server, exchange, .. }) = self.state.link_mut() else { return };
        let variant = shared.interner.variant(statement, &exchange.described, rows);
        if Rc::ptr_eq(&variant, statement) {
            return;
        }
        let is_it = |held: &&mut Held| Rc::ptr_eq(&held.statement, statement);
        if name.is_empty() {
            for held in self.kept.unnamed.iter_mut().chain(&mut server.unnamed).filter(is_it) {
                held.statement = variant.clone();
            }
            return;
        }
        if let Some(held) = self.kept.statements.get_mut(name).filter(is_it) {
            held.statement = variant.clone();
        }
        server.prepared.rename(statement.id(), variant.id());
    }

    /// The server has described a statement that was brought along.
    pub(super) fn compare(&mut self, statement: &Rc<Statement>, rows: Option<u64>) {
        let waits = self.is_describing();
        if statement.signature().is_none_or(|told| told.rows == rows) {
            if waits {
                self.go_on();
            }
            return;
        }
        if let Some(server) = self.state.server_mut() {
            server.prepared.supersede(statement.id());
            server.unnamed = None;
        }
        // A standby may not have heard of the change that the client was told of.
        let elsewhere = self.state.is_on_standby()
            && self.kept.config.access == Access::ReadWrite
            && self.state.answer().is_withheld()
            && self.unit.shape == Shape::Extended
            && self.unit.can_rerun();
        if elsewhere {
            self.discard_answer(Lesson::Nothing);
            if waits {
                self.end_waiting();
            }
        } else if waits {
            if let Some(run) = self.state.run_mut() {
                run.mismatch = Some(statement.id());
            }
            self.go_on();
        } else {
            self.before.put_slice(&changed_type());
            self.end_answer();
        }
    }

    /// Whether a message waits for a description.
    pub(super) fn is_describing(&self) -> bool {
        self.state.run().is_some_and(|run| run.course == Course::Describing)
    }

    /// Lets the part of the unit that waited be sent.
    fn go_on(&mut self) {
        self.set_course(if self.unit.is_here() { Course::Resuming } else { Course::Answering });
    }

    /// Drops the part of the unit that waited: the rest of the unit is nothing but its Sync.
    pub(super) fn end_waiting(&mut self) {
        self.set_course(Course::Answering);
        if !self.unit.input.is_open() && self.unit.shape != Shape::Simple {
            self.inject_now(&Injected::Sync, Expect::Sync);
        }
    }
}

/// The error, as PostgreSQL words it: drivers look at code, message and routine.
pub(super) fn changed_type() -> BytesMut {
    let mut error = BytesMut::new();
    put_message(&mut error, backend::ERROR_RESPONSE, |out| {
        out.put_slice(b"SERROR\0VERROR\0C0A000\0Mcached plan must not change result type\0RRevalidateCachedQuery\0\0");
    });
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    fn description(fields: &[(&str, u32, u32)]) -> Vec<u8> {
        let mut out = BytesMut::new();
        out.put_u16(u16::try_from(fields.len()).unwrap_or(0));
        for (name, table, oid) in fields {
            out.put_slice(name.as_bytes());
            out.put_u8(0);
            out.put_u32(*table);
            out.put_u16(1);
            out.put_u32(*oid);
            out.put_slice(&[0; 8]);
        }
        out.to_vec()
    }

    #[test]
    fn rows_differ_by_names_and_types_not_by_tables() {
        let one = shape(&description(&[("a", 1, 23), ("b", 1, 25)]));
        assert_eq!(one, shape(&description(&[("a", 2, 23), ("b", 2, 25)])));
        assert_ne!(one, shape(&description(&[("a", 1, 23)])));
        assert_ne!(one, shape(&description(&[("a", 1, 20), ("b", 1, 25)])));
        assert_ne!(one, shape(&description(&[("a", 1, 23), ("c", 1, 25)])));
        assert_ne!(one, shape(&description(&[])));
    }

    #[test]
    fn what_is_not_analysed_may_say_something_else_each_time() {
        assert!(varies(b" FETCH 5 FROM c") && varies(b"show all"));
        assert!(!varies(b"select 1") && !varies(b"sho"));
    }
}
