//! Requests that a server has not answered yet, in order. A pipeline may have a hundred thousand
//! requests under way: nothing here looks through all of them.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use foldhash::fast::RandomState;

use super::statements::{Held, Statement};
use crate::wire::frontend::Kind;

/// One outstanding request.
#[derive(Debug)]
pub(super) enum Expect {
    /// Query or FunctionCall: answered up to ReadyForQuery.
    Query,
    /// The proxy's own Query that gives settings: swallowed up to ReadyForQuery.
    Injected,
    /// The proxy's own Query that gives what the session began with after a RESET: swallowed, but for what is reported
    /// of it, and for ReadyForQuery, which is the unit's.
    Restored,
    /// The proxy's own ROLLBACK on a standby that the transaction leaves: swallowed up to ReadyForQuery.
    Left,
    /// The proxy's own BEGIN of the transaction on the primary: swallowed up to ReadyForQuery.
    Begun,
    /// The proxy's own Query about pins: swallowed up to ReadyForQuery.
    Probe,
    /// Sync: ReadyForQuery.
    Sync,
    /// The client's Parse: ParseComplete.
    Parse {
        /// The client's name; empty: unnamed.
        name: Box<[u8]>,
        /// Statement that it defines.
        held: Held,
    },
    /// The proxy's Describe behind a Parse: the description is swallowed.
    Signature {
        /// The client's name.
        name: Box<[u8]>,
        /// Statement that is described.
        statement: Rc<Statement>,
    },
    /// The proxy's Parse of what the server lacks: ParseComplete is swallowed.
    InjectedParse(Rc<Statement>),
    /// The proxy's Parse of the unnamed statement: ParseComplete is swallowed.
    InjectedUnnamed(Rc<Statement>),
    /// The proxy's Parse of nothing under a name that the client's DEALLOCATE is going to give:
    /// ParseComplete is swallowed.
    Placeholder,
    /// The proxy's Describe of a statement it brings along: compared with what the client was told.
    Compare(Rc<Statement>),
    /// The proxy's Close: CloseComplete is swallowed. The name, unless it is the unnamed statement.
    InjectedClose(Option<Rc<str>>),
    /// Bind: BindComplete.
    Bind {
        /// The portal it makes; empty: unnamed.
        portal: Box<[u8]>,
        /// The statement, for an error about its plan.
        statement: Option<Rc<Statement>>,
    },
    /// Describe: RowDescription or NoData.
    Describe {
        /// The statement, if it describes the unnamed one.
        unnamed: Option<Rc<Statement>>,
    },
    /// Execute: CommandComplete, EmptyQueryResponse or PortalSuspended.
    Execute {
        /// Its statement, if its completion changes the session.
        statement: Option<Rc<Statement>>,
    },
    /// Close forwarded to the server: CloseComplete.
    Close {
        /// Statement or portal.
        kind: Kind,
        /// Its name.
        name: Box<[u8]>,
    },
    /// Close of a named statement, which stays on the server: CloseComplete is made here.
    KnownClose {
        /// The client's name.
        name: Box<[u8]>,
    },
    /// A request the proxy refuses. The server was sent one that fails in its place, so that it
    /// skips up to Sync as it should; its ErrorResponse is replaced by this one.
    Refused(Box<[u8]>),
    /// The same in place of a Query: answered up to ReadyForQuery.
    RefusedQuery(Box<[u8]>),
}

/// A name whose meaning a request changes, and what it is going to lead to.
enum Change<'a> {
    Statement(&'a [u8], Option<&'a Held>),
    Portal(&'a [u8], Option<&'a Rc<Statement>>),
}

impl Expect {
    /// A Query of the proxy itself.
    pub(super) fn is_own(&self) -> bool {
        matches!(self, Self::Injected | Self::Restored | Self::Left | Self::Begun | Self::Probe)
    }

    fn change(&self) -> Option<Change<'_>> {
        match self {
            Self::Parse { name, held } => Some(Change::Statement(name, Some(held))),
            Self::KnownClose { name } | Self::Close { kind: Kind::Statement, name } => {
                Some(Change::Statement(name, None))
            }
            Self::Close { kind: Kind::Portal, name } => Some(Change::Portal(name, None)),
            Self::Bind { portal, statement } => Some(Change::Portal(portal, statement.as_ref())),
            _ => None,
        }
    }
}

/// Target of a name once all is answered, and the number of requests that change it on the way.
#[derive(Debug)]
struct Pending<T> {
    changes: usize,
    last: Option<T>,
}

/// By name. The empty name, which nearly every Bind has, is looked for nowhere.
#[derive(Debug)]
struct Names<T> {
    unnamed: Option<Pending<T>>,
    named: HashMap<Box<[u8]>, Pending<T>, RandomState>,
}

impl<T> Default for Names<T> {
    fn default() -> Self {
        Self { unnamed: None, named: HashMap::default() }
    }
}

impl<T> Names<T> {
    fn get(&self, name: &[u8]) -> Option<&Pending<T>> {
        if name.is_empty() { self.unnamed.as_ref() } else { self.named.get(name) }
    }

    fn get_mut(&mut self, name: &[u8]) -> Option<&mut Pending<T>> {
        if name.is_empty() { self.unnamed.as_mut() } else { self.named.get_mut(name) }
    }

    /// A request is sent after which `name` leads to `last`.
    fn change(&mut self, name: &[u8], last: Option<T>) {
        match self.get_mut(name) {
            Some(pending) => *pending = Pending { changes: pending.changes + 1, last },
            None if name.is_empty() => self.unnamed = Some(Pending { changes: 1, last }),
            None => drop(self.named.insert(name.into(), Pending { changes: 1, last })),
        }
    }

    /// The oldest request that changes `name` was answered.
    fn answered(&mut self, name: &[u8]) {
        match self.get_mut(name) {
            Some(pending) if pending.changes > 1 => pending.changes -= 1,
            _ if name.is_empty() => self.unnamed = None,
            _ => drop(self.named.remove(name)),
        }
    }

    fn clear(&mut self) {
        self.unnamed = None;
        self.named.clear();
    }
}

/// The outstanding requests of one unit.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    expected: VecDeque<Expect>,
    statements: Names<Held>,
    portals: Names<Rc<Statement>>,
}

impl Ledger {
    /// The oldest.
    pub(super) fn head(&self) -> Option<&Expect> {
        self.expected.front()
    }

    /// Number of requests that there is room for.
    pub(super) fn room(&self) -> usize {
        self.expected.capacity().max(self.statements.named.capacity()).max(self.portals.named.capacity())
    }

    /// The oldest is a Query of the proxy itself.
    pub(super) fn is_own(&self) -> bool {
        self.head().is_some_and(Expect::is_own)
    }

    /// Appends a request.
    pub(super) fn push(&mut self, expect: Expect) {
        match expect.change() {
            Some(Change::Statement(name, held)) => self.statements.change(name, held.cloned()),
            Some(Change::Portal(name, statement)) => self.portals.change(name, statement.cloned()),
            None => {}
        }
        self.expected.push_back(expect);
    }

    /// The oldest was answered.
    pub(super) fn pop(&mut self) -> Option<Expect> {
        let expect = self.expected.pop_front()?;
        match expect.change() {
            Some(Change::Statement(name, _)) => self.statements.answered(name),
            Some(Change::Portal(name, _)) => self.portals.answered(name),
            None => {}
        }
        Some(expect)
    }

    /// Takes the oldest if it is answered without the server.
    pub(super) fn pop_known(&mut self) -> Option<Expect> {
        match self.head() {
            Some(Expect::KnownClose { .. }) => self.pop(),
            _ => None,
        }
    }

    /// After an error in the extended protocol the server skips up to Sync: takes what will not be
    /// answered. `None` at the end or at a Sync, which stays.
    pub(super) fn pop_skipped(&mut self) -> Option<Expect> {
        match self.head() {
            None | Some(Expect::Sync) => None,
            _ => self.pop(),
        }
    }

    /// A server that enters copy-in mode ignores a Sync sent behind the Execute (manual, section
    /// 55.2.6): it will not be answered.
    pub(super) fn drop_trailing_sync(&mut self) {
        if matches!(self.expected.back(), Some(Expect::Sync)) {
            self.expected.pop_back();
        }
    }

    /// Statement that the client's name `wanted` is going to mean: `Some(None)` if it is going to be closed.
    pub(super) fn pending_statement(&self, wanted: &[u8]) -> Option<Option<&Held>> {
        self.statements.get(wanted).map(|pending| pending.last.as_ref())
    }

    /// Statement that the portal `wanted` is going to run: `Some(None)` if it is going to be closed, or if its
    /// statement is not known.
    pub(super) fn pending_portal(&self, wanted: &[u8]) -> Option<Option<&Rc<Statement>>> {
        self.portals.get(wanted).map(|pending| pending.last.as_ref())
    }

    /// Forgets everything: the server is gone.
    pub(super) fn clear(&mut self) {
        self.expected.clear();
        self.statements.clear();
        self.portals.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_where_the_last_request_takes_them() {
        leads_where_the_last_request_takes_it(b"a");
    }

    #[test]
    fn so_does_the_empty_name() {
        leads_where_the_last_request_takes_it(b"");
    }

    fn leads_where_the_last_request_takes_it(name: &[u8]) {
        let mut ledger = Ledger::default();
        let close = |kind| Expect::Close { kind, name: name.into() };
        let bind = || Expect::Bind { portal: name.into(), statement: None };
        assert!(ledger.pending_portal(name).is_none());
        for expect in [bind(), close(Kind::Statement), bind(), Expect::Sync] {
            ledger.push(expect);
        }
        assert!(ledger.pending_portal(name).is_some() && ledger.pending_statement(name).is_some());
        ledger.pop();
        assert!(ledger.pending_portal(name).is_some(), "there is another one");
        ledger.pop();
        assert!(ledger.pending_statement(name).is_none());
        assert!(ledger.pop_skipped().is_some() && ledger.pending_portal(name).is_none());
        ledger.push(bind());
        ledger.clear();
        assert!(ledger.head().is_none() && ledger.pending_portal(name).is_none());
    }
}
