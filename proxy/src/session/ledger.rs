//! What has been asked of a server and is not answered yet, in order.

use std::collections::VecDeque;
use std::rc::Rc;

use super::statements::Statement;
use crate::wire::frontend::Kind;

/// One outstanding request.
#[derive(Debug)]
pub(super) enum Expect {
    /// Query or FunctionCall: answered up to ReadyForQuery.
    Query,
    /// The proxy's own Query that gives settings: swallowed up to ReadyForQuery.
    Injected,
    /// The proxy's own Query about pins: swallowed up to ReadyForQuery.
    Probe,
    /// Sync: ReadyForQuery.
    Sync,
    /// The client's Parse: ParseComplete.
    Parse {
        /// The client's name; empty: unnamed.
        name: Box<[u8]>,
        /// What it defines.
        statement: Rc<Statement>,
    },
    /// The client's Parse of what the server already has: ParseComplete is made here.
    KnownParse {
        /// The client's name.
        name: Box<[u8]>,
        /// What it defines.
        statement: Rc<Statement>,
    },
    /// The proxy's Parse under an interned name: ParseComplete is swallowed.
    InjectedParse(Rc<Statement>),
    /// The proxy's Parse of the unnamed statement: ParseComplete is swallowed.
    InjectedUnnamed(Rc<Statement>),
    /// The proxy's Parse of nothing under a name that the client's DEALLOCATE is going to give:
    /// ParseComplete is swallowed.
    Placeholder,
    /// The proxy's Describe of a statement it brings along: compared with what the client was told.
    Compare(Rc<Statement>),
    /// The proxy's Sync behind those: swallowed.
    Compared,
    /// The proxy's Close: CloseComplete is swallowed.
    InjectedClose,
    /// Bind: BindComplete.
    Bind {
        /// The portal it makes; empty: unnamed.
        portal: Box<[u8]>,
        /// The statement, for an error about its plan.
        statement: Option<Rc<Statement>>,
    },
    /// Describe: RowDescription or NoData.
    Describe {
        /// The statement, if it describes one.
        statement: Option<Rc<Statement>>,
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
}

/// The outstanding requests of one unit.
#[derive(Debug, Default)]
pub(super) struct Ledger(VecDeque<Expect>);

impl Ledger {
    /// Nothing is outstanding.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The oldest.
    pub(super) fn head(&self) -> Option<&Expect> {
        self.0.front()
    }

    /// The oldest is a Query of the proxy itself.
    pub(super) fn is_own(&self) -> bool {
        matches!(self.head(), Some(Expect::Injected | Expect::Probe))
    }

    /// Appends a request.
    pub(super) fn push(&mut self, expect: Expect) {
        self.0.push_back(expect);
    }

    /// The oldest was answered.
    pub(super) fn pop(&mut self) -> Option<Expect> {
        self.0.pop_front()
    }

    /// Takes the oldest if it is answered without the server.
    pub(super) fn pop_known(&mut self) -> Option<Expect> {
        match self.head() {
            Some(Expect::KnownParse { .. } | Expect::KnownClose { .. }) => self.pop(),
            _ => None,
        }
    }

    /// After an error in the extended protocol the server skips up to Sync: takes what will not be
    /// answered. `None` at the end or at a Sync, which stays.
    pub(super) fn pop_skipped(&mut self) -> Option<Expect> {
        match self.head() {
            None | Some(Expect::Sync | Expect::Compared) => None,
            _ => self.pop(),
        }
    }

    /// A server that enters copy-in mode ignores a Sync sent behind the Execute (manual, section
    /// 55.2.6): it will not be answered.
    pub(super) fn drop_trailing_sync(&mut self) {
        if matches!(self.0.back(), Some(Expect::Sync)) {
            self.0.pop_back();
        }
    }

    /// What the client's statement `name` is going to be: `Some(None)` if it is going to be closed.
    pub(super) fn pending_statement(&self, wanted: &[u8]) -> Option<Option<&Rc<Statement>>> {
        self.0.iter().rev().find_map(|expect| match expect {
            Expect::Parse { name, statement } | Expect::KnownParse { name, statement } if **name == *wanted => {
                Some(Some(statement))
            }
            Expect::KnownClose { name } | Expect::Close { kind: Kind::Statement, name } if **name == *wanted => {
                Some(None)
            }
            _ => None,
        })
    }

    /// What the portal `wanted` is going to run: `Some(None)` if it is going to be closed, or if its
    /// statement is not known.
    pub(super) fn pending_portal(&self, wanted: &[u8]) -> Option<Option<&Rc<Statement>>> {
        self.0.iter().rev().find_map(|expect| match expect {
            Expect::Bind { portal, statement } if **portal == *wanted => Some(statement.as_ref()),
            Expect::Close { kind: Kind::Portal, name } if **name == *wanted => Some(None),
            _ => None,
        })
    }

    /// Forgets everything: the server is gone.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
