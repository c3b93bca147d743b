//! Prepared statements under pooling: a client's name leads to an interned (text, types), and that
//! to a name which is the same on every server of the thread.

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;

use foldhash::fast::RandomState;

use crate::route::Class;

/// What servers' statement names begin with.
pub const NAME_PREFIX: &str = "manatee_";

/// Statements one server connection keeps at most; above that the one unused longest is closed.
pub const MAX_PER_SERVER: usize = 512;

/// Above this many, those that no client and no server has any more are forgotten.
const SWEEP_ABOVE: usize = 4096;

/// A statement as it came in a Parse. One per (text, types) and thread.
#[derive(Debug)]
pub struct Statement {
    /// SQL, NUL and parameter types: a Parse's body after the name.
    pub definition: Box<[u8]>,
    /// Where the NUL is.
    text_bytes: usize,
    /// What the text means.
    pub class: Rc<Class>,
    id: u32,
    name: Box<str>,
    /// Of the rows that clients were last told it returns.
    pub shape: Cell<Option<u64>>,
    /// It returns other rows now: who has it has to prepare it anew.
    pub stale: Cell<bool>,
}

impl Statement {
    /// SQL.
    pub fn text(&self) -> &[u8] {
        &self.definition[..self.text_bytes]
    }

    /// Number in the name on servers.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Name on servers.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// The name on servers of the statement with this number.
pub(super) fn server_name(id: u32) -> Box<str> {
    format!("{NAME_PREFIX}{id}").into_boxed_str()
}

/// A client's names. Most clients have none: an empty one has no memory of its own.
#[derive(Debug, Default)]
pub(super) struct Names(Option<Box<ByName>>);

type ByName = HashMap<Box<[u8]>, Rc<Statement>, RandomState>;

impl Names {
    pub(super) fn get(&self, name: &[u8]) -> Option<&Rc<Statement>> {
        self.0.as_ref()?.get(name)
    }

    pub(super) fn contains(&self, name: &[u8]) -> bool {
        self.get(name).is_some()
    }

    /// Returns what the name led to before.
    pub(super) fn insert(&mut self, name: Box<[u8]>, statement: Rc<Statement>) -> Option<Rc<Statement>> {
        self.0.get_or_insert_default().insert(name, statement)
    }

    pub(super) fn remove(&mut self, name: &[u8]) -> Option<Rc<Statement>> {
        self.0.as_mut()?.remove(name)
    }

    pub(super) fn clear(&mut self) {
        self.0 = None;
    }

    pub(super) fn statements_mut(&mut self) -> impl Iterator<Item = &mut Rc<Statement>> {
        self.0.iter_mut().flat_map(|names| names.values_mut())
    }
}

/// The statements of one thread and database.
#[derive(Debug, Default)]
pub struct Interner {
    by_definition: HashMap<Box<[u8]>, Rc<Statement>, RandomState>,
    next_id: u32,
}

impl Interner {
    /// The statement with this definition (`text`, NUL, `types`, contiguous as in a Parse).
    /// `classify` is asked only for a new one.
    pub fn intern(
        &mut self,
        definition: &[u8],
        text_bytes: usize,
        classify: impl FnOnce(&[u8]) -> Rc<Class>,
    ) -> Rc<Statement> {
        if let Some(known) = self.by_definition.get(definition) {
            return known.clone();
        }
        if self.by_definition.len() >= SWEEP_ABOVE {
            self.by_definition.retain(|_, statement| Rc::strong_count(statement) > 1);
        }
        let class = classify(&definition[..text_bytes]);
        let statement = self.new_statement(definition, text_bytes, class);
        self.by_definition.insert(definition.into(), statement.clone());
        statement
    }

    /// A statement that no other Parse finds.
    pub fn private(&mut self, definition: &[u8], text_bytes: usize, class: Rc<Class>) -> Rc<Statement> {
        self.new_statement(definition, text_bytes, class)
    }

    fn new_statement(&mut self, definition: &[u8], text_bytes: usize, class: Rc<Class>) -> Rc<Statement> {
        self.next_id = self.next_id.wrapping_add(1);
        Rc::new(Statement {
            definition: definition.into(),
            text_bytes,
            class,
            id: self.next_id,
            name: server_name(self.next_id),
            shape: Cell::default(),
            stale: Cell::default(),
        })
    }

    /// Lets the next Parse of this text make another statement, with another class and name: it was
    /// found to write, or its plans return another type of row than the tables have now.
    pub fn forget(&mut self, statement: &Statement) {
        if self.by_definition.get(&statement.definition).is_some_and(|known| known.id == statement.id) {
            self.by_definition.remove(&statement.definition);
        }
    }
}

/// What one server connection has prepared, with the moment (a count) of last use.
#[derive(Debug, Default)]
pub struct Prepared {
    last_used: HashMap<u32, u64, RandomState>,
    clock: u64,
}

impl Prepared {
    /// Whether the server has it; counts as use.
    pub fn touch(&mut self, id: u32) -> bool {
        self.clock += 1;
        self.last_used.get_mut(&id).map(|used| *used = self.clock).is_some()
    }

    /// Whether the server has it.
    pub fn has(&self, id: u32) -> bool {
        self.last_used.contains_key(&id)
    }

    /// Which one must be closed before this one can be added, if the server has as many as it may.
    pub fn in_the_way_of(&self, id: u32) -> Option<u32> {
        if self.last_used.len() < MAX_PER_SERVER || self.has(id) {
            return None;
        }
        self.last_used.iter().min_by_key(|(_, used)| **used).map(|(id, _)| *id)
    }

    /// The server will have it.
    pub fn insert(&mut self, id: u32) {
        self.clock += 1;
        self.last_used.insert(id, self.clock);
    }

    /// The server does not have it (any more).
    pub fn remove(&mut self, id: u32) {
        self.last_used.remove(&id);
    }

    /// The server has none (any more).
    pub fn clear(&mut self) {
        self.last_used.clear();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn same_definition_same_statement_until_it_is_forgotten() {
        let mut interner = Interner::default();
        let class = || Rc::new(Class::read_only());
        let one = interner.intern(b"select 1\0\0\0", 8, |_| class());
        let two = interner.intern(b"select 1\0\0\0", 8, |_| unreachable!());
        assert!(Rc::ptr_eq(&one, &two));
        assert_eq!(one.text(), b"select 1");
        interner.forget(&one);
        assert_ne!(interner.intern(b"select 1\0\0\0", 8, |_| class()).id(), one.id());
    }

    #[test]
    fn the_statement_unused_longest_makes_room() {
        let mut prepared = Prepared::default();
        for id in 0..MAX_PER_SERVER as u32 {
            assert_eq!(prepared.in_the_way_of(id), None);
            prepared.insert(id);
        }
        assert!(prepared.touch(0));
        assert_eq!(prepared.in_the_way_of(0), None);
        assert_eq!(prepared.in_the_way_of(9999), Some(1));
    }
}
