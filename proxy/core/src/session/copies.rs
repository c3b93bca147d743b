//! The copies of prepared statements that one server connection has.

use std::collections::HashMap;
use std::rc::Rc;

use foldhash::fast::RandomState;

use super::statements::Held;

/// Statements one server connection keeps at most; above that the one unused longest is closed.
pub const MAX_PER_SERVER: usize = 512;

/// A server's copy of a statement.
#[derive(Debug)]
struct Copy {
    name: Rc<str>,
    /// Time of its making, by the clock of the [`Interner`](super::statements::Interner).
    since: u64,
    /// Time of its last use (a count).
    used: u64,
}

/// The named statements of one server connection.
#[derive(Debug, Default)]
pub struct Prepared {
    copies: HashMap<u32, Copy, RandomState>,
    /// Names of what has been replaced, or has to make room: to be closed before the next one is prepared.
    superseded: Vec<Rc<str>>,
    uses: u64,
}

impl Prepared {
    /// The name of a copy that is good for a client that has `wanted`; counts as use.
    pub fn find(&mut self, wanted: &Held) -> Option<Rc<str>> {
        let copy = self.copies.get_mut(&wanted.statement.id()).filter(|copy| copy.since >= wanted.since)?;
        self.uses += 1;
        copy.used = self.uses;
        Some(copy.name.clone())
    }

    /// Sees to it that the server will have no more than it may when this statement is added.
    pub fn make_room(&mut self, id: u32) {
        self.supersede(id);
        if self.copies.len() >= MAX_PER_SERVER
            && let Some(oldest) = self.copies.iter().min_by_key(|(_, copy)| copy.used).map(|(id, _)| *id)
        {
            self.supersede(oldest);
        }
    }

    /// The server will have it.
    pub fn insert(&mut self, held: &Held, name: &Rc<str>) {
        self.uses += 1;
        let copy = Copy { name: name.clone(), since: held.since, used: self.uses };
        self.copies.insert(held.statement.id(), copy);
    }

    /// The copy is one of another statement.
    pub fn rename(&mut self, from: u32, to: u32) {
        if let Some(copy) = self.copies.remove(&from) {
            self.supersede(to);
            self.copies.insert(to, copy);
        }
    }

    /// The copy, if there is one, is not good any more.
    pub fn supersede(&mut self, id: u32) {
        self.superseded.extend(self.copies.remove(&id).map(|copy| copy.name));
    }

    /// Statements to be closed now.
    pub fn take_superseded(&mut self) -> Vec<Rc<str>> {
        std::mem::take(&mut self.superseded)
    }

    /// It was not closed.
    pub fn not_closed(&mut self, name: Rc<str>) {
        self.superseded.push(name);
    }

    /// The server does not have it.
    pub fn remove(&mut self, id: u32) {
        self.copies.remove(&id);
    }

    /// The server has none (any more).
    pub fn clear(&mut self) {
        self.copies.clear();
        self.superseded.clear();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    use super::*;
    use crate::route::Class;
    use crate::session::statements::{Interner, Statement};

    fn intern(interner: &mut Interner) -> Rc<Statement> {
        interner.intern(b"select 1\0\0\0", 8, 0, |_| Rc::new(Class::read_only()))
    }

    #[test]
    fn a_copy_is_good_for_who_prepared_before_it_was_made() {
        let mut interner = Interner::default();
        let statement = intern(&mut interner);
        let mut held = || Held { statement: statement.clone(), since: interner.tick() };
        let (before, made, after) = (held(), held(), held());
        let mut prepared = Prepared::default();
        prepared.insert(&made, &"a".into());
        assert_eq!(prepared.find(&before).as_deref(), Some("a"));
        assert_eq!(prepared.find(&made).as_deref(), Some("a"));
        assert_eq!(prepared.find(&after), None);
        prepared.make_room(statement.id());
        prepared.insert(&after, &"b".into());
        assert_eq!(prepared.find(&before).as_deref(), Some("b"));
        assert_eq!(prepared.take_superseded(), ["a".into()]);
        assert!(made.serves(&before) && !made.serves(&after));
    }

    #[test]
    fn the_statement_unused_longest_makes_room() {
        let mut interner = Interner::default();
        let plain = intern(&mut interner);
        let mut new = || Held { statement: interner.prepare(&plain, false), since: 1 };
        let mut prepared = Prepared::default();
        let all: Vec<Held> = (0..MAX_PER_SERVER).map(|_| new()).collect();
        for (number, held) in all.iter().enumerate() {
            prepared.make_room(held.statement.id());
            prepared.insert(held, &number.to_string().into());
        }
        assert!(prepared.find(&all[0]).is_some() && prepared.take_superseded().is_empty());
        prepared.make_room(new().statement.id());
        assert_eq!(prepared.take_superseded(), ["1".into()]);
        assert!(prepared.find(&all[1]).is_none());
    }
}
