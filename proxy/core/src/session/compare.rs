//! "cached plan must not change result type" (plancache.c), for statements that move between servers.
//!
//! A client that was told what rows its prepared statement returns must not get other rows from it. A
//! server that prepared it before a change of schema says so itself; one that prepares it only now
//! would not. So before such a statement is brought along to a server, that server is asked for its
//! description, in a round trip of its own: once per statement and server.

use bytes::{BufMut, BytesMut};
use foldhash::fast::FixedState;
use std::hash::{BuildHasher, Hasher};
use std::rc::Rc;

use super::ledger::Expect;
use super::statements::Statement;
use super::{Phase, Session, Shared};
use crate::wire::backend::TxStatus;
use crate::wire::frontend::{self, Kind};
use crate::wire::{put_message, take_cstr};

/// What makes two RowDescriptions those of different rows: names, types, sizes and modifiers, not the
/// tables they come from (`equalTupleDescs`). NoData has an empty body.
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

impl Session {
    /// The settings are right: asks for descriptions first, if there is something to compare.
    pub(super) fn compare_or_dispatch(&mut self) {
        self.phase = Phase::Dispatch;
        if self.unit.bound.is_empty() || self.status == TxStatus::Failed {
            return;
        }
        let bound = std::mem::take(&mut self.unit.bound);
        self.before.clear();
        for statement in &bound {
            if self.server.as_ref().is_some_and(|server| !server.prepared.has(statement.id())) {
                self.put_parse(statement, Expect::InjectedParse(statement.clone()));
                let name = statement.name().as_bytes();
                frontend::put_target(&mut self.before, frontend::DESCRIBE, Kind::Statement, name);
                self.ledger.push(Expect::Compare(statement.clone()));
            }
        }
        self.unit.bound = bound;
        if self.ledger.is_empty() {
            return;
        }
        frontend::put_empty(&mut self.before, frontend::SYNC);
        self.ledger.push(Expect::Compared);
        self.to_server.put_slice(&self.before);
        self.before.clear();
        self.phase = Phase::Compare;
    }

    /// The server's description of a statement.
    pub(super) fn compare(&mut self, statement: &Rc<Statement>, body: &[u8], shared: &mut Shared) {
        if statement.shape.get().is_some_and(|told| told != shape(body)) {
            shared.interner.forget(statement);
            statement.stale.set(true);
        }
    }

    /// A client is told what rows a statement returns. If others were told something else before, the
    /// statement is another one from now on, and theirs is stale.
    pub(super) fn tell_shape(&mut self, statement: &Rc<Statement>, body: &[u8], shared: &mut Shared) {
        let told = shape(body);
        if statement.shape.replace(Some(told)).is_none_or(|before| before == told) {
            return;
        }
        statement.stale.set(true);
        shared.interner.forget(statement);
        let class = statement.class.clone();
        let new = shared.interner.intern(&statement.definition, statement.text().len(), |_| class);
        new.shape.set(Some(told));
        self.replace_statement(statement, &new);
    }
}

/// The error, as PostgreSQL words it: drivers look at code, message and routine.
pub(super) fn changed_type() -> BytesMut {
    let mut error = BytesMut::new();
    put_message(&mut error, crate::wire::backend::ERROR_RESPONSE, |out| {
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
        assert_ne!(one, shape(b""));
    }
}
