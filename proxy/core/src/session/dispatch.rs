//! From a unit to the server's bytes: statement names are replaced by interned ones, what a server
//! lacks is prepared on the way, and the ledger learns what to expect.

use std::rc::Rc;

use bytes::{BufMut, Bytes, BytesMut};

use super::compare::Brought;
use super::inject::Injected;
use super::ledger::Expect;
use super::profile::ServerEncoding;
use super::run::Course;
use super::state::{Link, Replay, Stage, State};
use super::statements::{Held, NAME_PREFIX};
use super::unit::{Input, Shape};
use super::{Session, Shared, gather::Ends};
use crate::error::{ProxyError, SqlState, encode_response};
use crate::route::class::{Deallocate, Scope, SettingChange};
use crate::route::{Class, Control, Effects, TransactionControl};
use crate::wire::backend::{self, TxStatus};
use crate::wire::frontend::{self, Bind, Kind, Target};
use crate::wire::{self, WireError};

/// Text that a server is sent, as a name or as a text, so that it fails.
const REFUSED: &[u8] = b"manatee refused this";

/// Way in which a message leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaves {
    /// As it came, behind what was put before it.
    AsIs,
    /// Not at all; what was put before it stands in its place.
    Replaced,
    /// Not yet: what was put before it has to be answered first.
    Waits,
}

impl Session {
    /// The unit is gathered: answers it here, or says that a server is needed.
    pub(super) fn choose_place(&mut self, rx: &mut BytesMut) {
        let has_server = self.state.link().is_some();
        if self.unit.shape == Shape::Empty && !has_server && self.status == TxStatus::Idle {
            if !self.unit.input.is_open() {
                backend::put_ready(&mut self.to_client, self.status);
            }
            return self.forget_unit(self.status, rx);
        }
        if !has_server && self.status != TxStatus::Idle {
            return self.answer_lost_transaction(rx);
        }
        if self.answer_own_commands(rx) {
            return;
        }
        if self.must_move() {
            return self.leave_standby();
        }
        match self.cancels_client(rx) {
            Some(client) => self.state = State::Signalling(client, self.leave_state()),
            None => self.go_attached(Stage::Preparing),
        }
    }

    /// A server is attached: gives it the session's settings if it has others.
    pub(super) fn prepare(&mut self, shared: &mut Shared) {
        let wanted = self.wanted_settings(shared);
        let Some(server) = self.state.server() else { return };
        let mut sql = String::new();
        if self.status == TxStatus::Idle || self.opening.is_moving() {
            if !Rc::ptr_eq(&server.profile, &wanted) {
                let encoding = ServerEncoding::named(server.parameter("server_encoding"));
                sql = server.profile.replay(&wanted, encoding);
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
            return self.begin_or_dispatch();
        }
        self.inject_now(&Injected::Settings(&sql), Expect::Injected);
        self.go_attached(Stage::Replaying(Replay::Settings(wanted, None)));
    }

    /// Sends the gathered unit, or what is left of it.
    pub(super) fn dispatch(&mut self, rx: &BytesMut, shared: &mut Shared) -> Result<(), ProxyError> {
        let Some(run) = self.state.run_mut() else { return Ok(()) };
        let (course, sent) = (run.course, run.sent);
        run.course = Course::Answering;
        if course == Course::Starting {
            self.refuse_to_bind();
        }
        for buffer in [&mut self.to_server, &mut self.before] {
            shared.buffers.lend(buffer);
        }
        let unit = &rx[..self.unit.end];
        if course == Course::Starting && self.state.is_on_standby() {
            self.note_opening(unit);
        }
        let (mut position, mut run) = (sent, sent);
        while position < unit.len() {
            let Some((header, body)) = wire::complete(&unit[position..])? else {
                return Err(ProxyError::Internal("a gathered unit ends within a message".to_owned()));
            };
            self.before.clear();
            let leaves = self.send(header.tag, body, shared)?;
            if leaves == Leaves::Waits {
                self.to_server.put_slice(&unit[run..position]);
                self.to_server.put_slice(&self.before);
                if let Some(run) = self.state.run_mut() {
                    (run.sent, run.course) = (position, Course::Describing);
                }
                run = unit.len();
                break;
            }
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
        if self.unit.input == Input::Whole {
            if self.state.answer().is_streaming() {
                self.consume(rx);
            }
            return Ok(());
        }
        self.consume(rx);
        while self.unit.input != Input::Whole {
            if self.unit.input.is_copy() {
                let data = copy_data(rx)?;
                shared.buffers.forward(rx, data, &mut self.to_server);
            }
            let Some(header) = wire::complete(rx)?.map(|(header, _)| header) else {
                if self.ended {
                    self.flush_for_last_time();
                }
                return Ok(());
            };
            // What stands before them decides what they are: an end, and data or nothing (a server that has not been
            // told to begin a COPY ignores them).
            let waits = matches!(
                header.tag,
                frontend::TERMINATE | frontend::COPY_DATA | frontend::COPY_DONE | frontend::COPY_FAIL
            );
            if waits && self.unit.input == Input::Open && self.is_outstanding() {
                self.flush_for_last_time();
                return Ok(());
            }
            let message = rx.split_to(header.size).freeze();
            match self.unit.input {
                Input::CopyIn(_) => self.end_copy(header.tag, &message),
                Input::SkipToSync => self.feed_skipping(header.tag),
                Input::Open | Input::Whole => {
                    self.feed_message(header.tag, &message, shared)?;
                    if self.is_describing() {
                        // It comes again.
                        let mut again = BytesMut::from(message);
                        again.extend_from_slice(rx);
                        *rx = again;
                    }
                }
            }
            if self.state.run().is_none_or(|run| run.course != Course::Answering) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Sends on the end of a COPY's data.
    fn end_copy(&mut self, tag: u8, message: &Bytes) {
        match tag {
            frontend::TERMINATE => return self.go_end(),
            // Ignored by a server in copy-in mode (manual, section 55.2.6); not sent, so that it is
            // not answered should the server leave that mode just now.
            frontend::SYNC => return,
            // The end of it; anything else makes the server fail the COPY.
            _ => self.unit.end_copy(),
        }
        self.to_server.put_slice(message);
    }

    fn feed_skipping(&mut self, tag: u8) {
        match tag {
            frontend::TERMINATE => self.go_end(),
            frontend::SYNC => {
                frontend::put_empty(&mut self.to_server, frontend::SYNC);
                self.expect(Expect::Sync);
                self.unit.close();
            }
            _ => {}
        }
    }

    fn feed_message(&mut self, tag: u8, message: &Bytes, shared: &mut Shared) -> Result<(), ProxyError> {
        let body = &message[wire::HEADER_BYTES..];
        let noted = self.state.run_mut().is_some_and(|run| {
            run.flushed = false;
            std::mem::take(&mut run.noted)
        });
        if !noted {
            match self.note(tag, body, shared)? {
                Ends::Leave => {
                    self.go_end();
                    return Ok(());
                }
                Ends::Yes => self.unit.close(),
                Ends::No | Ends::Flush => {}
            }
        }
        if self.state.run().is_some_and(|run| run.refusal.is_none()) {
            self.refuse_to_bind();
        }
        self.before.clear();
        let leaves = self.send(tag, body, shared)?;
        self.to_server.put_slice(&self.before);
        self.before.clear();
        match leaves {
            Leaves::AsIs => self.to_server.put_slice(message),
            Leaves::Replaced => {}
            Leaves::Waits => {
                if let Some(run) = self.state.run_mut() {
                    (run.noted, run.course) = (true, Course::Describing);
                }
            }
        }
        self.answer_known_now(&mut shared.buffers);
        Ok(())
    }

    /// Enters one message into the ledger; what must be sent before or instead of it is left in `before`.
    fn send(&mut self, tag: u8, body: &[u8], shared: &mut Shared) -> Result<Leaves, ProxyError> {
        match tag {
            frontend::QUERY => {
                // exec_simple_query drops it, unless an error before makes the server skip the Query.
                if let Some(server) = self.state.server_mut() {
                    server.unnamed = None;
                }
                if let Some(words) = self.refusal() {
                    frontend::put_query(&mut self.before, REFUSED);
                    self.expect(Expect::RefusedQuery(words));
                    return Ok(Leaves::Replaced);
                }
                if let Some(class) = self.unit.class.clone() {
                    self.put_placeholders(&class);
                }
                self.expect(Expect::Query);
                Ok(Leaves::AsIs)
            }
            frontend::FUNCTION_CALL => {
                self.expect(Expect::Query);
                Ok(Leaves::AsIs)
            }
            frontend::SYNC => {
                self.expect(Expect::Sync);
                Ok(Leaves::AsIs)
            }
            frontend::PARSE => Ok(self.send_parse(shared)),
            frontend::BIND => self.send_bind(body, shared),
            frontend::DESCRIBE => self.send_describe(body, shared),
            frontend::EXECUTE => {
                let (portal, _) = wire::take_cstr(body).ok_or(WireError::Body('E'))?;
                if let Some(words) = self.refusal() {
                    self.note_executed(false);
                    return Ok(self.send_refusal(&words));
                }
                let statement = match self.state.ledger().and_then(|ledger| ledger.pending_portal(portal)) {
                    Some(pending) => pending.cloned(),
                    None => self.portals.iter().find(|(name, _)| **name == *portal).map(|(_, known)| known.clone()),
                };
                self.note_executed(statement.as_ref().is_some_and(|known| leaves_failed(known.class.control)));
                let statement = statement.filter(|known| changes_session(&known.class));
                if let Some(statement) = &statement {
                    self.put_placeholders(&statement.class);
                }
                self.expect(Expect::Execute { statement });
                Ok(Leaves::AsIs)
            }
            frontend::CLOSE => self.send_close(body),
            frontend::COPY_DATA | frontend::COPY_DONE | frontend::COPY_FAIL => Ok(Leaves::Replaced),
            _ => Ok(Leaves::AsIs),
        }
    }

    /// Error for the client instead of what it asks for.
    fn refusal(&self) -> Option<Box<[u8]>> {
        self.state.run()?.refusal.clone()
    }

    /// Something is executed. `leaves_failed`: a failed transaction lets it through.
    fn note_executed(&mut self, leaves_failed: bool) {
        if let Some(run) = self.state.run_mut() {
            run.executed = true;
            run.leaves_failed |= leaves_failed;
        }
    }

    fn send_parse(&mut self, shared: &mut Shared) -> Leaves {
        let Some((Link { server, exchange, .. }, run)) = self.state.at_run() else { return Leaves::AsIs };
        let Some((name, statement)) = self.unit.parses.get(run.parses_sent).cloned() else {
            return Leaves::AsIs;
        };
        run.parses_sent += 1;
        if statement.class.proxy.is_some() {
            return self.send_refused(
                SqlState::FEATURE_NOT_SUPPORTED,
                "commands for the proxy must be alone in their pipeline",
            );
        }
        let since = shared.interner.tick();
        if name.is_empty() {
            let held = Held { statement, since };
            server.unnamed = Some(held.clone());
            exchange.ledger.push(Expect::Parse { name, held });
            return Leaves::AsIs;
        }
        let taken = match exchange.ledger.pending_statement(&name) {
            Some(pending) => pending.is_some(),
            None => self.kept.statements.contains(&name),
        };
        if taken {
            let aborted = self.unit.started == TxStatus::Failed && !run.leaves_failed;
            if aborted && !leaves_failed(statement.class.control) {
                return self.send_refused(SqlState(*b"25P02"), super::local::ABORTED);
            }
            let message = format!("prepared statement \"{}\" already exists", String::from_utf8_lossy(&name));
            return self.send_refused(SqlState(*b"42P05"), &message);
        }
        // What SET LOCAL and the like have changed is not in the profile.
        let unsettled = self.pins.union(self.unit.effects).intersects(Effects::SETTINGS_UNKNOWN);
        let alone = self.sets || self.unit.sets || unsettled;
        let held = Held { statement: shared.interner.prepare(&statement, alone), since };
        let given = self.put_parse(&held, Expect::Parse { name: name.clone(), held: held.clone() }, shared);
        self.inject(&Injected::Describe(&given), Expect::Signature { name, statement: held.statement });
        Leaves::Replaced
    }

    fn send_bind(&mut self, body: &[u8], shared: &mut Shared) -> Result<Leaves, ProxyError> {
        let bind = Bind::read(body)?;
        let held = self.sent_statement(bind.statement);
        let leaves = match &held {
            None => match self.send_missing(bind.statement) {
                Some(refused) => return Ok(refused),
                None => Leaves::AsIs,
            },
            Some(held) => match self.bring(bind.statement, held, shared) {
                Brought::Waits => return Ok(Leaves::Waits),
                Brought::Differs => return Ok(self.send_refusal(&super::compare::changed_type())),
                Brought::Unnamed => Leaves::AsIs,
                Brought::Named(name) => {
                    frontend::put_bind(&mut self.before, bind.portal, name.as_bytes(), bind.rest);
                    Leaves::Replaced
                }
            },
        };
        let statement = held.map(|held| held.statement);
        self.expect(Expect::Bind { portal: bind.portal.into(), statement });
        Ok(leaves)
    }

    fn send_describe(&mut self, body: &[u8], shared: &mut Shared) -> Result<Leaves, ProxyError> {
        let target = Target::read(frontend::DESCRIBE, body)?;
        let held = match target.kind {
            Kind::Portal => {
                self.expect(Expect::Describe { unnamed: None });
                return Ok(Leaves::AsIs);
            }
            Kind::Statement => self.sent_statement(target.name),
        };
        let (leaves, unnamed) = match held {
            None => match self.send_missing(target.name) {
                Some(refused) => return Ok(refused),
                None => (Leaves::AsIs, None),
            },
            Some(held) => match self.bring(target.name, &held, shared) {
                Brought::Waits => return Ok(Leaves::Waits),
                Brought::Differs => return Ok(self.send_refusal(&super::compare::changed_type())),
                Brought::Unnamed => (Leaves::AsIs, Some(held.statement)),
                Brought::Named(name) => {
                    frontend::put_target(&mut self.before, frontend::DESCRIBE, Kind::Statement, name.as_bytes());
                    (Leaves::Replaced, None)
                }
            },
        };
        self.expect(Expect::Describe { unnamed });
        Ok(leaves)
    }

    fn send_close(&mut self, body: &[u8]) -> Result<Leaves, ProxyError> {
        let target = Target::read(frontend::CLOSE, body)?;
        let (kind, name) = (target.kind, Box::from(target.name));
        if kind == Kind::Statement && !target.name.is_empty() {
            self.expect(Expect::KnownClose { name });
            return Ok(Leaves::Replaced);
        }
        self.expect(Expect::Close { kind, name });
        Ok(Leaves::AsIs)
    }

    /// The statement a name leads to, seen from the end of what is sent.
    fn sent_statement(&self, name: &[u8]) -> Option<Held> {
        match self.state.ledger().and_then(|ledger| ledger.pending_statement(name)) {
            Some(pending) => pending.cloned(),
            None => self.kept.held(name).cloned(),
        }
    }

    /// A statement the client does not have is named: sees to it that the server says so, even if
    /// it has one of that name for somebody else.
    fn send_missing(&mut self, name: &[u8]) -> Option<Leaves> {
        if name.is_empty() {
            self.inject(&Injected::CloseUnnamed, Expect::InjectedClose(None));
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
        frontend::put_target(&mut self.before, frontend::DESCRIBE, Kind::Statement, REFUSED);
        self.expect(Expect::Refused(error.into()));
        Leaves::Replaced
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
                if let Some(run) = self.state.run_mut() {
                    run.placeholders = true;
                }
            }
        }
    }

    /// Parse under a name of its own, which is returned; makes room for it.
    pub(super) fn put_parse(&mut self, copy: &Held, expect: Expect, shared: &mut Shared) -> Rc<str> {
        let name = shared.interner.name();
        let superseded = match self.state.server_mut() {
            Some(server) => {
                server.prepared.make_room(copy.statement.id());
                server.prepared.take_superseded()
            }
            None => Vec::new(),
        };
        for old in superseded {
            self.inject(&Injected::Close(&old), Expect::InjectedClose(Some(old.clone())));
        }
        self.inject(&Injected::Parse(copy, &name), expect);
        name
    }

    /// First statement of a Query of several, if it ends the transaction.
    pub(super) fn ends_first(&self) -> Option<TransactionControl> {
        let first = match self.unit.control {
            Some(Control::Mixed { first, .. }) if self.unit.class.is_some() => first?,
            _ => return None,
        };
        matches!(first, TransactionControl::Commit { chain: false } | TransactionControl::Rollback { chain: false })
            .then_some(first)
    }
}

/// Bytes of complete messages at the head of a client's buffer that only go on with a COPY.
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

/// Whether a failed transaction lets it through (`IsTransactionExitStmt`, postgres.c).
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
