//! Prepared statements under pooling.
//!
//! A client's name leads to a [`Statement`]: a text with its parameter types, and what PostgreSQL made of it when the
//! client prepared it. Clients to whom it said the same share one, and so the copies of it that servers have. But a
//! copy is only as good as the catalog and the search path were when it was made: PostgreSQL never infers parameter
//! types again, and it looks at the names in a text again only when something that the text uses has changed, not when
//! something new stands in front of it in the search path (plancache.c, `RevalidateCachedQuery`). So each Parse of a
//! client is carried out by a server, and a copy is good for the clients that prepared the statement before the copy
//! was made, not for those that did so after: for them it is made anew, once. What is prepared already costs nothing
//! more.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::rc::Rc;

use foldhash::fast::RandomState;

use crate::route::Class;

/// Prefix of statement names on servers.
pub const NAME_PREFIX: &str = "manatee_";

/// Above this many texts, those that no client has any more are forgotten.
const SWEEP_ABOVE: usize = 4096;

/// Above this many meanings of one text, those that no client has any more are forgotten.
const VARIANTS_ABOVE: usize = 8;

/// Signature of a statement: what PostgreSQL made of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// Parameter types: the body of a ParameterDescription, which is the end of a Parse too.
    types: Box<[u8]>,
    /// Of the rows it returns ([`rows`](super::compare::shape)), if it returns any.
    pub rows: Option<u64>,
}

/// A statement as it came in a Parse.
#[derive(Debug)]
pub struct Statement {
    /// SQL, NUL and parameter types: a Parse's body after the name.
    definition: Rc<[u8]>,
    /// Place of the NUL.
    text_bytes: usize,
    /// Class of the text.
    pub class: Rc<Class>,
    /// The settings on which it depends what PostgreSQL makes of a text; none: it is this one client's.
    settings: Option<u32>,
    id: u32,
    signature: OnceCell<Signature>,
}

impl Statement {
    /// SQL.
    pub fn text(&self) -> &[u8] {
        &self.definition[..self.text_bytes]
    }

    /// Parameter types for a Parse: those that PostgreSQL inferred, as it would take them itself when it analyses the
    /// text again, or else those that the client gave.
    pub fn types(&self) -> &[u8] {
        self.signature.get().map_or(&self.definition[self.text_bytes + 1..], |signature| &signature.types)
    }

    /// Number by which servers' copies are found.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Signature that PostgreSQL gave it, if that is known.
    pub fn signature(&self) -> Option<&Signature> {
        self.signature.get()
    }

    /// Whether both came as the same.
    pub(super) fn is_of(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.definition, &other.definition) && Rc::ptr_eq(&self.class, &other.class)
    }
}

/// A statement that a client has, or a server.
#[derive(Clone, Debug)]
pub struct Held {
    /// The statement.
    pub statement: Rc<Statement>,
    /// Time of its preparation, by the [`Interner`]'s clock.
    pub since: u64,
}

impl Held {
    /// Whether this one, which a server has, is good for a client that has `wanted`.
    pub fn serves(&self, wanted: &Self) -> bool {
        Rc::ptr_eq(&self.statement, &wanted.statement) && self.since >= wanted.since
    }
}

/// A client's names. Most clients have none: an empty one has no memory of its own.
#[derive(Debug, Default)]
pub(super) struct Names(Option<Box<ByName>>);

type ByName = HashMap<Box<[u8]>, Held, RandomState>;

impl Names {
    pub(super) fn get(&self, name: &[u8]) -> Option<&Held> {
        self.0.as_ref()?.get(name)
    }

    pub(super) fn get_mut(&mut self, name: &[u8]) -> Option<&mut Held> {
        self.0.as_mut()?.get_mut(name)
    }

    pub(super) fn contains(&self, name: &[u8]) -> bool {
        self.get(name).is_some()
    }

    /// Returns what the name led to before.
    pub(super) fn insert(&mut self, name: Box<[u8]>, held: Held) -> Option<Held> {
        self.0.get_or_insert_default().insert(name, held)
    }

    pub(super) fn remove(&mut self, name: &[u8]) -> Option<Held> {
        self.0.as_mut()?.remove(name)
    }

    pub(super) fn clear(&mut self) {
        self.0 = None;
    }

    /// The name of what came as this statement.
    pub(super) fn name_of(&self, statement: &Statement) -> Option<&[u8]> {
        let mut names = self.0.iter().flat_map(|names| names.iter());
        names.find(|(_, held)| held.statement.is_of(statement)).map(|(name, _)| &**name)
    }

    pub(super) fn held_mut(&mut self) -> impl Iterator<Item = &mut Held> {
        self.0.iter_mut().flat_map(|names| names.values_mut())
    }
}

/// The fields of an ErrorResponse about a prepared statement with the client's name of it in the place of the
/// server's, if that is there.
pub(super) fn with_clients_name(fields: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    let quoted = [b"\"", NAME_PREFIX.as_bytes()].concat();
    let at = fields.windows(quoted.len()).position(|bytes| *bytes == quoted)? + 1;
    let digits = fields[at + NAME_PREFIX.len()..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let end = at + NAME_PREFIX.len() + digits;
    (digits > 0 && fields.get(end) == Some(&b'"')).then(|| [&fields[..at], name, &fields[end..]].concat())
}

/// One text with its parameter types, read under the same settings.
#[derive(Debug)]
struct Family {
    /// As it came: what PostgreSQL makes of it is not known.
    plain: Rc<Statement>,
    /// Variants by the signature that PostgreSQL gave them.
    variants: Vec<Rc<Statement>>,
}

impl Family {
    /// Whether a client has one of them.
    fn is_held(&self) -> bool {
        Rc::strong_count(&self.plain) > 1 || self.variants.iter().any(|variant| Rc::strong_count(variant) > 1)
    }
}

type ByDefinition = HashMap<Rc<[u8]>, Family, RandomState>;

/// The statements of one thread and database.
#[derive(Debug)]
pub struct Interner {
    /// By settings and definition.
    families: HashMap<u32, ByDefinition, RandomState>,
    /// Number of families, and the number above which those that nobody has are looked for.
    count: usize,
    sweep_above: usize,
    next_id: u32,
    next_name: u64,
    clock: u64,
}

impl Default for Interner {
    fn default() -> Self {
        Self { families: HashMap::default(), count: 0, sweep_above: SWEEP_ABOVE, next_id: 0, next_name: 0, clock: 0 }
    }
}

impl Interner {
    /// The statement with this definition (`text`, NUL, `types`, contiguous as in a Parse), as it came. `settings`:
    /// those under which it is read. `classify` is asked only for a new one.
    pub fn intern(
        &mut self,
        definition: &[u8],
        text_bytes: usize,
        settings: u32,
        classify: impl FnOnce(&[u8]) -> Rc<Class>,
    ) -> Rc<Statement> {
        let known = self.families.get(&settings).and_then(|families| families.get(definition));
        if let Some(family) = known {
            return family.plain.clone();
        }
        self.sweep();
        let class = classify(&definition[..text_bytes]);
        let plain = self.new_statement(definition.into(), text_bytes, class, Some(settings));
        self.add(settings, &plain);
        plain
    }

    /// A statement that no other client finds.
    pub fn private(&mut self, definition: &[u8], text_bytes: usize, class: Rc<Class>) -> Rc<Statement> {
        self.new_statement(definition.into(), text_bytes, class, None)
    }

    /// The same statement, prepared now: what PostgreSQL makes of it will be known soon. `alone`: because of what
    /// went before in the transaction, it may not be the same for others.
    pub fn prepare(&mut self, plain: &Statement, alone: bool) -> Rc<Statement> {
        let settings = if alone { None } else { plain.settings };
        self.new_statement(plain.definition.clone(), plain.text_bytes, plain.class.clone(), settings)
    }

    /// The statement of which PostgreSQL has made this; `statement` itself, if it is the first.
    pub fn variant(&mut self, statement: &Rc<Statement>, types: &[u8], rows: Option<u64>) -> Rc<Statement> {
        let is =
            |one: &Statement| one.signature.get().is_some_and(|known| *known.types == *types && known.rows == rows);
        if is(statement) {
            return statement.clone();
        }
        let family =
            statement.settings.and_then(|settings| self.families.get_mut(&settings)?.get_mut(&*statement.definition));
        // A text that was found to write has become another one.
        let mut family = family.filter(|family| family.plain.is_of(statement));
        if let Some(known) = family.as_ref().and_then(|family| family.variants.iter().find(|one| is(one))) {
            return known.clone();
        }
        let is_new = statement.signature.get().is_none()
            && family.as_ref().is_none_or(|family| !Rc::ptr_eq(&family.plain, statement));
        let made = if is_new {
            statement.clone()
        } else {
            self.next_id = self.next_id.wrapping_add(1);
            copy_of(statement, self.next_id)
        };
        let _ = made.signature.set(Signature { types: types.into(), rows });
        if let Some(family) = &mut family {
            if family.variants.len() >= VARIANTS_ABOVE {
                family.variants.retain(|one| Rc::strong_count(one) > 1);
            }
            family.variants.push(made.clone());
        }
        made
    }

    /// The statement with another class: it was found to write.
    pub fn reclassified(&mut self, statement: &Rc<Statement>, class: &Rc<Class>) -> Rc<Statement> {
        let Some(settings) = statement.settings else {
            let definition = statement.definition.clone();
            let private = self.new_statement(definition, statement.text_bytes, class.clone(), None);
            if let Some(signature) = statement.signature.get() {
                let _ = private.signature.set(signature.clone());
            }
            return private;
        };
        let families = self.families.entry(settings).or_default();
        if families.get(&*statement.definition).is_some_and(|family| !Rc::ptr_eq(&family.plain.class, class)) {
            families.remove(&*statement.definition);
            self.count -= 1;
        }
        let plain = match self.families.get(&settings).and_then(|families| families.get(&*statement.definition)) {
            Some(family) => family.plain.clone(),
            None => {
                let definition = statement.definition.clone();
                let plain = self.new_statement(definition, statement.text_bytes, class.clone(), Some(settings));
                self.add(settings, &plain);
                plain
            }
        };
        match statement.signature.get() {
            Some(Signature { types, rows }) => self.variant(&plain, types, *rows),
            None => plain,
        }
    }

    /// Now.
    pub fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A name that no server has.
    pub fn name(&mut self) -> Rc<str> {
        self.next_name += 1;
        format!("{NAME_PREFIX}{}", self.next_name).into()
    }

    fn add(&mut self, settings: u32, plain: &Rc<Statement>) {
        let family = Family { plain: plain.clone(), variants: Vec::new() };
        if self.families.entry(settings).or_default().insert(plain.definition.clone(), family).is_none() {
            self.count += 1;
        }
    }

    fn sweep(&mut self) {
        if self.count < self.sweep_above {
            return;
        }
        self.families.values_mut().for_each(|families| families.retain(|_, family| family.is_held()));
        self.families.retain(|_, families| !families.is_empty());
        self.count = self.families.values().map(HashMap::len).sum();
        self.sweep_above = SWEEP_ABOVE.max(2 * self.count);
    }

    fn new_statement(
        &mut self,
        definition: Rc<[u8]>,
        text_bytes: usize,
        class: Rc<Class>,
        settings: Option<u32>,
    ) -> Rc<Statement> {
        self.next_id = self.next_id.wrapping_add(1);
        let id = self.next_id;
        Rc::new(Statement { definition, text_bytes, class, settings, id, signature: OnceCell::new() })
    }
}

fn copy_of(statement: &Statement, id: u32) -> Rc<Statement> {
    Rc::new(Statement {
        definition: statement.definition.clone(),
        text_bytes: statement.text_bytes,
        class: statement.class.clone(),
        settings: statement.settings,
        id,
        signature: OnceCell::new(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    use super::*;

    const TEXT: &[u8] = b"select $1\0\0\0";
    const INT: &[u8] = &[0, 1, 0, 0, 0, 23];

    fn class() -> Rc<Class> {
        Rc::new(Class::read_only())
    }

    fn intern(interner: &mut Interner, settings: u32) -> Rc<Statement> {
        interner.intern(TEXT, 9, settings, |_| class())
    }

    #[test]
    fn what_is_read_under_other_settings_is_another_statement() {
        let mut interner = Interner::default();
        let one = intern(&mut interner, 0);
        assert!(Rc::ptr_eq(&one, &intern(&mut interner, 0)));
        assert!(!Rc::ptr_eq(&one, &intern(&mut interner, 1)));
        assert_eq!((one.text(), one.types()), (&b"select $1"[..], &[0, 0][..]));
    }

    #[test]
    fn clients_that_were_told_the_same_share_a_statement() {
        let mut interner = Interner::default();
        let plain = intern(&mut interner, 0);
        let mut prepare = |types: &[u8], rows, alone| {
            let new = interner.prepare(&plain, alone);
            interner.variant(&new, types, rows)
        };
        let one = prepare(INT, Some(1), false);
        assert_eq!(one.types(), INT, "servers are given what was inferred");
        assert!(Rc::ptr_eq(&one, &prepare(INT, Some(1), false)));
        for other in [prepare(&[0, 0], Some(1), false), prepare(INT, Some(2), false), prepare(INT, None, false)] {
            assert!(!Rc::ptr_eq(&one, &other));
        }
        assert!(!Rc::ptr_eq(&one, &prepare(INT, Some(1), true)), "SET LOCAL was in front of it");
        assert!(plain.signature().is_none());
    }

    #[test]
    fn what_was_told_stays_when_a_text_is_found_to_write() {
        let mut interner = Interner::default();
        let plain = intern(&mut interner, 0);
        let new = interner.prepare(&plain, false);
        let old = interner.variant(&new, INT, Some(1));
        let writes = Rc::new(Class::primary(crate::route::class::Reason::Learned));
        let again = interner.reclassified(&old, &writes);
        assert_eq!((again.signature(), &*again.class), (old.signature(), &*writes));
        assert!(Rc::ptr_eq(&again, &interner.reclassified(&old, &writes)));
        assert!(Rc::ptr_eq(&intern(&mut interner, 0).class, &writes), "also for who prepares it next");
    }

    #[test]
    fn texts_that_nobody_has_are_forgotten() {
        let mut interner = Interner::default();
        let kept = intern(&mut interner, 0);
        for number in 0..2 * SWEEP_ABOVE {
            interner.intern(format!("select {number}\0\0\0").as_bytes(), 8, 0, |_| class());
        }
        assert!(interner.count <= SWEEP_ABOVE, "{}", interner.count);
        assert!(Rc::ptr_eq(&kept, &intern(&mut interner, 0)));
    }

    #[test]
    fn errors_name_what_the_client_named() {
        let named = |fields: &[u8]| with_clients_name(fields, b"own");
        assert_eq!(named(b"Mstatement \"manatee_70\" requires 2\0\0").unwrap(), b"Mstatement \"own\" requires 2\0\0");
        assert_eq!(named(b"Mstatement \"manatee_\"\0\0"), None);
        assert_eq!(named(b"Mstatement \"manatee_7"), None);
        assert_eq!(named(b"Mmanatee_70\0\0"), None);
    }
}
