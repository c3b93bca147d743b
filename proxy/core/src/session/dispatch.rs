//! From a unit to the server's bytes: statement names are replaced by interned ones, what a server
//! lacks is prepared on the way, and the ledger learns what to expect.

use std::rc::Rc;

use bytes::{BufMut, Bytes, BytesMut};

use super::inject::Injected;
use super::ledger::Expect;
use super::statements::{NAME_PREFIX, Statement};
use super::unit::{Copy, Extent, Forwarding, Shape};
use super::{Phase, Session, Shared, gather::Ends};
use crate::error::{ProxyError, SqlState, encode_response};
use crate::route::class::{Deallocate, Scope, SettingChange};
use crate::route::{Class, Control, Effects, TransactionControl};
use crate::wire::backend::{self, TxStatus};
use crate::wire::frontend::{self, Bind, Kind, Target};
use crate::wire::{self, WireError};

/// How a message leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaves {
    /// As it came, behind what was put before it.
    AsIs,
    /// Not at all; what was put before it stands in its place.
    Replaced,
}

impl Session {
    /// The unit is gathered: answers it here, or says that a server is needed.
    pub(super) fn choose_place(&mut self, rx: &mut BytesMut, shared: &mut Shared) {
        if self.unit.shape == Shape::Empty && self.server.is_none() && self.status == TxStatus::Idle {
            if self.unit.extent == Extent::Closed {
                backend::put_ready(&mut self.to_client, self.status);
            }
            return self.forget_unit(self.status, rx);
        }
        if self.server.is_none() && self.status != TxStatus::Idle {
            return self.answer_lost_transaction(rx);
        }
        if self.answer_own_commands(rx) {
            return;
        }
        let _ = shared;
        self.phase = if self.server.is_some() { Phase::Prepare } else { Phase::Acquire };
    }

    /// A server is attached: gives it the session's settings if it has others.
    pub(super) fn prepare(&mut self, shared: &mut Shared) {
        let Some(server) = &self.server else {
            self.phase = Phase::Acquire;
            return;
        };
        let mut sql = String::new();
        if self.status == TxStatus::Idle {
            if !Rc::ptr_eq(&server.profile, &self.kept.profile) {
                sql = server.profile.replay(&self.kept.profile);
            }
            if self.unit.effects.intersects(Effects::SEQUENCE_READ) {
                shared.sequences_are_read = true;
                // Another session's sequence values must not be taken for this one's: with this,
                // lastval() and currval() say that there are none.
                if self.pins.is_empty() && !server.is_of(&self.kept.mark) {
                    sql.push_str(if sql.is_empty() { "DISCARD SEQUENCES" } else { ";DISCARD SEQUENCES" });
                }
            }
        }
        if sql.is_empty() {
            return self.compare_or_dispatch();
        }
        self.replay_error = None;
        self.inject_now(&Injected::Settings(&sql), Expect::Injected);
        self.phase = Phase::Replay;
    }

    /// Sends the gathered unit.
    pub(super) fn dispatch(&mut self, rx: &BytesMut, shared: &mut Shared) -> Result<(), ProxyError> {
        self.phase = Phase::Run;
        self.kept.ended_by_commit = false;
        self.unit.forwarding = if self.unit.extent == Extent::Closed { Forwarding::Withheld } else { Forwarding::On };
        for buffer in [&mut self.to_server, &mut self.before] {
            shared.buffers.lend(buffer);
        }
        let unit = &rx[..self.unit.end];
        let (mut position, mut run) = (0, 0);
        while position < unit.len() {
            let Some((header, body)) = wire::complete(&unit[position..])? else {
                return Err(ProxyError::Internal("a gathered unit ends within a message".to_owned()));
            };
            self.before.clear();
            let leaves = self.send(header.tag, body, shared)?;
            if leaves == Leaves::Replaced || !self.before.is_empty() {
                self.to_server.put_slice(&unit[run..position]);
                self.to_server.put_slice(&self.before);
                run = if leaves == Leaves::AsIs { position } else { position + header.size };
            }
            position += header.size;
        }
        self.to_server.put_slice(&unit[run..]);
        self.before.clear();
        shared.buffers.give_back(&mut self.before);
        self.answer_known_now(&mut shared.buffers);
        Ok(())
    }

    /// While a unit runs: sends what belongs to it and arrives later, in an open unit or for COPY.
    pub(super) fn feed(&mut self, rx: &mut BytesMut, shared: &mut Shared) -> Result<(), ProxyError> {
        if self.unit.extent == Extent::Closed && self.unit.copy == Copy::None {
            if self.unit.forwarding == Forwarding::On {
                self.consume(rx);
            }
            return Ok(());
        }
        self.consume(rx);
        while self.unit.extent == Extent::Open || self.unit.copy == Copy::In {
            if self.unit.copy == Copy::In {
                let data = copy_data(rx)?;
                shared.buffers.forward(rx, data, &mut self.to_server);
            }
            let Some(header) = wire::complete(rx)?.map(|(header, _)| header) else {
                return Ok(());
            };
            let message = rx.split_to(header.size).freeze();
            if self.unit.copy == Copy::In {
                self.end_copy(header.tag, &message);
            } else if self.unit.skipping {
                self.feed_skipping(header.tag);
            } else {
                self.feed_message(header.tag, &message, shared)?;
            }
            if self.phase != Phase::Run {
                return Ok(());
            }
        }
        Ok(())
    }

    /// What comes behind data.
    fn end_copy(&mut self, tag: u8, message: &Bytes) {
        match tag {
            frontend::TERMINATE => return self.phase = Phase::Ended,
            // Ignored by a server in copy-in mode (manual, section 55.2.6); not sent, so that it is
            // not answered should the server leave that mode just now.
            frontend::SYNC => return,
            // The end of it; anything else makes the server fail the COPY.
            _ => self.unit.copy = Copy::None,
        }
        self.to_server.put_slice(message);
    }

    fn feed_skipping(&mut self, tag: u8) {
        match tag {
            frontend::TERMINATE => self.phase = Phase::Ended,
            frontend::SYNC => {
                frontend::put_empty(&mut self.to_server, frontend::SYNC);
                self.ledger.push(Expect::Sync);
                self.unit.skipping = false;
                self.unit.extent = Extent::Closed;
            }
            _ => {}
        }
    }

    fn feed_message(&mut self, tag: u8, message: &Bytes, shared: &mut Shared) -> Result<(), ProxyError> {
        let body = &message[wire::HEADER_BYTES..];
        match self.note(tag, body, shared)? {
            Ends::Leave => {
                self.phase = Phase::Ended;
                return Ok(());
            }
            Ends::Yes => self.unit.extent = Extent::Closed,
            Ends::No | Ends::Flush => {}
        }
        self.before.clear();
        let leaves = self.send(tag, body, shared)?;
        self.to_server.put_slice(&self.before);
        self.before.clear();
        if leaves == Leaves::AsIs {
            self.to_server.put_slice(message);
        }
        self.answer_known_now(&mut shared.buffers);
        Ok(())
    }

    /// Enters one message into the ledger; what must be sent before or instead of it is left in `before`.
    fn send(&mut self, tag: u8, body: &[u8], shared: &mut Shared) -> Result<Leaves, ProxyError> {
        match tag {
            frontend::QUERY => {
                // exec_simple_query drops it, unless an error before makes the server skip the Query.
                if let Some(server) = &mut self.server {
                    server.unnamed = None;
                }
                if let Some(class) = self.unit.class.clone() {
                    self.put_placeholders(&class);
                }
                self.ledger.push(Expect::Query);
                Ok(Leaves::AsIs)
            }
            frontend::FUNCTION_CALL => {
                self.ledger.push(Expect::Query);
                Ok(Leaves::AsIs)
            }
            frontend::SYNC => {
                self.ledger.push(Expect::Sync);
                Ok(Leaves::AsIs)
            }
            frontend::PARSE => Ok(self.send_parse(shared)),
            frontend::BIND => self.send_bind(body),
            frontend::DESCRIBE => self.send_describe(body),
            frontend::EXECUTE => {
                let (portal, _) = wire::take_cstr(body).ok_or(WireError::Body('E'))?;
                let statement = match self.ledger.pending_portal(portal) {
                    Some(pending) => pending.cloned(),
                    None => self.portals.iter().find(|(name, _)| **name == *portal).map(|(_, known)| known.clone()),
                };
                self.unit.leaves_failed |= statement.as_ref().is_some_and(|known| leaves_failed(known.class.control));
                let statement = statement.filter(|known| changes_session(&known.class));
                if let Some(statement) = &statement {
                    self.put_placeholders(&statement.class);
                }
                self.ledger.push(Expect::Execute { statement });
                Ok(Leaves::AsIs)
            }
            frontend::CLOSE => self.send_close(body),
            frontend::COPY_DATA | frontend::COPY_DONE | frontend::COPY_FAIL => Ok(Leaves::Replaced),
            _ => Ok(Leaves::AsIs),
        }
    }

    fn send_parse(&mut self, shared: &mut Shared) -> Leaves {
        let Some((name, statement)) = self.unit.parses.get(self.unit.parses_sent).cloned() else {
            return Leaves::AsIs;
        };
        self.unit.parses_sent += 1;
        let _ = shared;
        if statement.class.proxy.is_some() {
            return self.send_refused(
                SqlState::FEATURE_NOT_SUPPORTED,
                "commands for the proxy must be alone in their pipeline",
            );
        }
        let Some(server) = &mut self.server else {
            return Leaves::AsIs;
        };
        if name.is_empty() {
            server.unnamed = Some(statement.clone());
            self.ledger.push(Expect::Parse { name, statement });
            return Leaves::AsIs;
        }
        let taken = match self.ledger.pending_statement(&name) {
            Some(pending) => pending.is_some(),
            None => self.kept.statements.contains(&name),
        };
        let known = server.prepared.touch(statement.id());
        // What the server has it is not asked for, and would refuse in an aborted transaction.
        let aborted = self.unit.started == TxStatus::Failed && !self.unit.leaves_failed;
        if aborted && (taken || known) && !leaves_failed(statement.class.control) {
            return self.send_refused(SqlState(*b"25P02"), super::local::ABORTED);
        }
        if taken {
            let message = format!("prepared statement \"{}\" already exists", String::from_utf8_lossy(&name));
            return self.send_refused(SqlState(*b"42P05"), &message);
        }
        if known {
            self.ledger.push(Expect::KnownParse { name, statement });
        } else {
            let expect = Expect::Parse { name, statement: statement.clone() };
            self.put_parse(&statement, expect);
        }
        Leaves::Replaced
    }

    fn send_bind(&mut self, body: &[u8]) -> Result<Leaves, ProxyError> {
        let bind = Bind::read(body)?;
        let statement = self.sent_statement(bind.statement);
        let leaves = match &statement {
            None => match self.send_missing(bind.statement) {
                Some(refused) => return Ok(refused),
                None => Leaves::AsIs,
            },
            Some(statement) if bind.statement.is_empty() => {
                self.ensure_unnamed(statement);
                Leaves::AsIs
            }
            Some(statement) if statement.stale.get() => {
                return Ok(self.send_refusal(&super::compare::changed_type()));
            }
            Some(statement) => {
                self.ensure_named(statement);
                frontend::put_bind(&mut self.before, bind.portal, statement.name().as_bytes(), bind.rest);
                Leaves::Replaced
            }
        };
        self.ledger.push(Expect::Bind { portal: bind.portal.into(), statement });
        Ok(leaves)
    }

    fn send_describe(&mut self, body: &[u8]) -> Result<Leaves, ProxyError> {
        let target = Target::read(frontend::DESCRIBE, body)?;
        if target.kind == Kind::Portal {
            self.ledger.push(Expect::Describe { statement: None });
            return Ok(Leaves::AsIs);
        }
        let statement = self.sent_statement(target.name);
        let leaves = match &statement {
            None => match self.send_missing(target.name) {
                Some(refused) => return Ok(refused),
                None => Leaves::AsIs,
            },
            Some(statement) if target.name.is_empty() => {
                self.ensure_unnamed(statement);
                Leaves::AsIs
            }
            Some(statement) if statement.stale.get() => {
                return Ok(self.send_refusal(&super::compare::changed_type()));
            }
            Some(statement) => {
                self.ensure_named(statement);
                frontend::put_target(
                    &mut self.before,
                    frontend::DESCRIBE,
                    Kind::Statement,
                    statement.name().as_bytes(),
                );
                Leaves::Replaced
            }
        };
        self.ledger.push(Expect::Describe { statement });
        Ok(leaves)
    }

    fn send_close(&mut self, body: &[u8]) -> Result<Leaves, ProxyError> {
        let target = Target::read(frontend::CLOSE, body)?;
        let (kind, name) = (target.kind, Box::from(target.name));
        if kind == Kind::Statement && !target.name.is_empty() {
            self.ledger.push(Expect::KnownClose { name });
            return Ok(Leaves::Replaced);
        }
        self.ledger.push(Expect::Close { kind, name });
        Ok(Leaves::AsIs)
    }

    /// The statement a name leads to, seen from the end of what is sent.
    fn sent_statement(&self, name: &[u8]) -> Option<Rc<Statement>> {
        match self.ledger.pending_statement(name) {
            Some(pending) => pending.cloned(),
            None if name.is_empty() => self.kept.unnamed.clone(),
            None => self.kept.statements.get(name).cloned(),
        }
    }

    /// A statement the client does not have is named: sees to it that the server says so, even if
    /// it has one of that name for somebody else.
    fn send_missing(&mut self, name: &[u8]) -> Option<Leaves> {
        if name.is_empty() {
            self.inject(&Injected::CloseUnnamed, Expect::InjectedClose);
            return None;
        }
        if !name.starts_with(NAME_PREFIX.as_bytes()) {
            return None;
        }
        let message = format!("prepared statement \"{}\" does not exist", String::from_utf8_lossy(name));
        Some(self.send_refused(SqlState(*b"26000"), &message))
    }

    /// Lets the server fail in place of a request that the proxy refuses.
    fn send_refused(&mut self, code: SqlState, message: &str) -> Leaves {
        let mut error = BytesMut::new();
        encode_response(&mut error, b'E', "ERROR", code, message, None);
        self.send_refusal(&error)
    }

    /// As [`Session::send_refused`], with this ErrorResponse.
    fn send_refusal(&mut self, error: &[u8]) -> Leaves {
        frontend::put_target(&mut self.before, frontend::DESCRIBE, Kind::Statement, b"manatee refused this");
        self.ledger.push(Expect::Refused(error.into()));
        Leaves::Replaced
    }

    fn ensure_unnamed(&mut self, statement: &Rc<Statement>) {
        let has = self.server.as_ref().and_then(|server| server.unnamed.as_ref());
        if !has.is_some_and(|has| Rc::ptr_eq(has, statement)) {
            self.inject(&Injected::ParseUnnamed(statement), Expect::InjectedUnnamed(statement.clone()));
        }
    }

    fn ensure_named(&mut self, statement: &Rc<Statement>) {
        if self.server.as_mut().is_some_and(|server| !server.prepared.touch(statement.id())) {
            self.put_parse(statement, Expect::InjectedParse(statement.clone()));
        }
    }

    /// Statements that the client prepared by Parse have other names on the server: lets it have
    /// those that a DEALLOCATE is about to name, so that it finds them.
    fn put_placeholders(&mut self, class: &Class) {
        for deallocate in &class.deallocates {
            if let Deallocate::Name(name) = deallocate
                && !name.is_empty()
                && self.sent_statement(name.as_bytes()).is_some()
            {
                self.inject(&Injected::Placeholder(name.as_bytes()), Expect::Placeholder);
                self.unit.placeholders = true;
            }
        }
    }

    /// Parse under the statement's interned name; makes room for it.
    pub(super) fn put_parse(&mut self, statement: &Rc<Statement>, expect: Expect) {
        let evicted = self.server.as_ref().and_then(|server| server.prepared.in_the_way_of(statement.id()));
        if let Some(evicted) = evicted {
            self.inject(&Injected::Close(evicted), Expect::InjectedClose);
        }
        self.inject(&Injected::Parse(statement), expect);
    }

    /// What the unit, a Query of several statements, does first, if that ends the transaction.
    pub(super) fn ends_first(&self) -> Option<TransactionControl> {
        let first = match self.unit.control {
            Some(Control::Mixed { first, .. }) if self.unit.class.is_some() => first?,
            _ => return None,
        };
        matches!(first, TransactionControl::Commit { chain: false } | TransactionControl::Rollback { chain: false })
            .then_some(first)
    }
}

/// How many bytes of complete messages at the head of a client's buffer only go on with a COPY.
fn copy_data(rx: &[u8]) -> Result<usize, WireError> {
    let mut end = 0;
    while let Some((header, _)) = wire::complete(&rx[end..])? {
        if !matches!(header.tag, frontend::COPY_DATA | frontend::FLUSH) {
            break;
        }
        end += header.size;
    }
    Ok(end)
}

/// Whether the portals of a statement need be known.
pub(super) fn decides(class: &Class) -> bool {
    changes_session(class) || leaves_failed(class.control)
}

/// What a failed transaction lets through (`IsTransactionExitStmt`, postgres.c).
fn leaves_failed(control: Control) -> bool {
    match control {
        Control::None => false,
        Control::Mixed { .. } => true,
        Control::Alone(one) => matches!(
            one,
            TransactionControl::Commit { .. }
                | TransactionControl::Rollback { .. }
                | TransactionControl::PrepareTransaction
                | TransactionControl::Savepoint
        ),
    }
}

/// Whether running a text changes what the proxy remembers of the session.
pub(super) fn changes_session(class: &Class) -> bool {
    !class.deallocates.is_empty()
        || class.effects.intersects(Effects::DISCARD_ALL)
        || class.settings.iter().any(|change| {
            !matches!(
                change,
                SettingChange::Set { scope: Scope::Transaction, .. }
                    | SettingChange::Reset { scope: Scope::Transaction, .. }
            )
        })
}
