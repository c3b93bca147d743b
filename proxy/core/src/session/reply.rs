//! From the server's bytes to the client's: most are passed on in one piece; the ledger is kept,
//! what the proxy itself asked for is swallowed, and a few messages are looked into.

use std::mem;
use std::num::NonZeroUsize;

use bytes::{BufMut, BytesMut};

use super::buffers::{Buffers, consume};
use super::ledger::{Expect, Ledger};
use super::lost::may_be_spared;
use super::state::{Link, Stage};
use super::{How, Ids, Session, Shared};
use crate::route::Effects;
use crate::route::class::TextEncoding;
use crate::wire::backend::{self, ErrorFields};
use crate::wire::frontend::Kind;
use crate::wire::{self, Header, WireError};

/// Above this size a DataRow or CopyData is passed on before it is all there. Below it messages
/// stay whole, so that an error can be told between any two.
const STREAM_ABOVE_BYTES: usize = 64 << 10;

/// Reason why a server cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It ended the connection.
    #[error("server: {severity} {code}: {message}")]
    Fatal {
        /// FATAL or PANIC.
        severity: String,
        /// SQLSTATE.
        code: String,
        /// Its words.
        message: String,
    },
    /// Bytes that are no message.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A message nobody asked for.
    #[error("unexpected message {0:?} from the server")]
    Unexpected(char),
    /// It says it is a standby although it was taken for the primary.
    #[error("the server believed to be primary is read-only")]
    ReadOnlyPrimary,
}

impl Fault {
    /// Loss that it amounts to.
    pub fn how(&self) -> How {
        match self {
            Self::Fatal { code, .. } if matches!(code.as_str(), "57P01" | "57P03") || is_own_limit(code.as_bytes()) => {
                How::Refused
            }
            Self::ReadOnlyPrimary => How::ReadOnly,
            _ => How::Gone,
        }
    }
}

/// Whether a connection ends with this code because its client has asked for it: a limit on how long it is
/// idle in a transaction (25P03), how long that lasts (25P04), how long it is idle (57P05).
pub(super) fn is_own_limit(code: &[u8]) -> bool {
    matches!(code, b"25P03" | b"25P04" | b"57P05")
}

/// Fate of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Fate {
    /// The client gets it, now or when the answer is no longer withheld.
    #[default]
    Forward,
    /// The client gets it at once, though the answer is withheld, unless something of the answer stands before it.
    Past,
    /// The client does not get it.
    Swallow,
}

/// A message that is passed on without being looked at, as its bytes come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Passing {
    left: NonZeroUsize,
    fate: Fate,
}

impl Passing {
    /// The client gets it.
    pub(super) fn is_forwarded(self) -> bool {
        self.fate != Fate::Swallow
    }
}

/// Number of bytes of a message that have to be there before it is dealt with. Of rows and data too long to be held
/// nothing is looked at, of such errors and notices their first fields: severity, code and text.
fn looked_at(header: &Header) -> usize {
    match header.tag {
        backend::DATA_ROW | wire::frontend::COPY_DATA if header.size > STREAM_ABOVE_BYTES => wire::HEADER_BYTES,
        backend::ERROR_RESPONSE | backend::NOTICE_RESPONSE => header.size.min(STREAM_ABOVE_BYTES),
        _ => header.size,
    }
}

/// Number of bytes of complete messages at the head that have this tag, and are not to be passed on in parts.
fn alike(bytes: &[u8], tag: u8) -> usize {
    let mut end = 0;
    while let Some(rest) = bytes.get(end..)
        && let Ok(Some(header)) = Header::read(rest)
        && header.tag == tag
        && header.size <= STREAM_ABOVE_BYTES.min(rest.len())
    {
        end += header.size;
    }
    end
}

impl Session {
    /// Takes what the server sent. On a fault the driver closes it and calls
    /// [`Session::server_lost`].
    ///
    /// # Errors
    /// The server cannot be used any more.
    pub fn server_bytes(&mut self, rx: &mut BytesMut, shared: &mut Shared) -> Result<(), Fault> {
        // `run..position` is to be forwarded as it is.
        let (mut position, mut run) = (0, 0);
        let result = loop {
            if let Some(fate) = self.pass_on(rx.len(), &mut position)
                && (!self.state.answer().is_streaming() || fate == Fate::Swallow)
            {
                run = position;
            }
            let rest = &rx[position..];
            let header = match Header::read(rest) {
                Ok(Some(header)) => header,
                Ok(None) => break Ok(()),
                Err(error) => break Err(error.into()),
            };
            let looked_at = looked_at(&header);
            let streams = looked_at < header.size;
            let Some(body) = rest.get(wire::HEADER_BYTES..looked_at) else {
                break Ok(());
            };
            let fate = match self.reply(header.tag, body, shared) {
                Ok(fate) => fate,
                Err(fault) => break Err(fault),
            };
            if !self.before.is_empty() || fate == Fate::Swallow {
                self.pass(&rx[run..position], &mut shared.buffers);
                let before = mem::take(&mut self.before);
                self.pass(&before, &mut shared.buffers);
                self.before = before;
                self.before.clear();
                run = position;
            }
            if streams {
                if let (Some(link), Some(left)) = (self.state.link_mut(), NonZeroUsize::new(header.size)) {
                    link.exchange.passing = Some(Passing { left, fate });
                }
                if fate != Fate::Swallow {
                    self.show();
                }
                continue;
            }
            if fate == Fate::Past {
                self.pass(&rx[run..position], &mut shared.buffers);
                run = position;
                if self.state.answer().holds_nothing() {
                    shared.buffers.lend(&mut self.to_client);
                    self.to_client.put_slice(&rx[run..run + header.size]);
                    run += header.size;
                }
            }
            position += header.size;
            if fate == Fate::Swallow {
                run = position;
            } else if matches!(header.tag, backend::DATA_ROW | wire::frontend::COPY_DATA)
                && self.state.answer().is_streaming()
                && self.after.is_empty()
            {
                // What was found of the first of many is true of the others.
                position += alike(&rx[position..], header.tag);
            }
            if !self.after.is_empty() {
                self.pass(&rx[run..position], &mut shared.buffers);
                self.pass_after(&mut shared.buffers);
                run = position;
            }
        };
        if run == 0 && self.state.answer().is_streaming() {
            shared.buffers.forward(rx, position, &mut self.to_client);
        } else {
            self.pass(&rx[run..position], &mut shared.buffers);
            consume(rx, position);
        }
        result
    }

    /// Goes on with a message that is passed on in parts, as far as it has come. Its fate.
    fn pass_on(&mut self, come: usize, position: &mut usize) -> Option<Fate> {
        let exchange = &mut self.state.link_mut()?.exchange;
        let Passing { left, fate } = exchange.passing.take()?;
        let take = left.get().min(come - *position);
        *position += take;
        exchange.passing = NonZeroUsize::new(left.get() - take).map(|left| Passing { left, fate });
        Some(fate)
    }

    /// Whether the client has a part of a message whose rest is still to come.
    pub(super) fn is_within_message(&self) -> bool {
        self.state.link().and_then(|link| link.exchange.passing).is_some_and(Passing::is_forwarded)
    }

    /// Passes on what was put behind the message at hand.
    fn pass_after(&mut self, buffers: &mut Buffers) {
        let after = mem::take(&mut self.after);
        self.pass(&after, buffers);
        self.after = after;
        self.after.clear();
    }

    fn reply(&mut self, tag: u8, body: &[u8], shared: &mut Shared) -> Result<Fate, Fault> {
        match tag {
            backend::NOTICE_RESPONSE => return Ok(self.notice(body)),
            backend::PARAMETER_STATUS => return self.parameter(body, shared),
            backend::NOTIFICATION_RESPONSE => return Ok(self.notification(body)),
            backend::ERROR_RESPONSE => return self.error(body, shared),
            backend::READY_FOR_QUERY => return self.ready(body, shared),
            _ => {}
        }
        let Some(head) = self.head() else {
            return Err(Fault::Unexpected(char::from(tag)));
        };
        if head.is_own() {
            if tag == backend::DATA_ROW
                && let Some(Stage::Probing(findings)) = self.state.stage_mut()
            {
                findings.row(body);
            }
            return Ok(Fate::Swallow);
        }
        let fate = match tag {
            backend::DATA_ROW | wire::frontend::COPY_DATA | wire::frontend::COPY_DONE => {
                self.show();
                Fate::Forward
            }
            backend::FUNCTION_CALL_RESPONSE | backend::COPY_OUT_RESPONSE => {
                self.show();
                Fate::Forward
            }
            backend::COPY_IN_RESPONSE => {
                self.show();
                self.copy_in();
                Fate::Forward
            }
            backend::ROW_DESCRIPTION | backend::NO_DATA => self.description(tag, body, shared),
            backend::PARAMETER_DESCRIPTION => {
                let own = matches!(head, Expect::Compare(_) | Expect::Signature { .. });
                if (own || matches!(head, Expect::Describe { unnamed: Some(_) }))
                    && let Some(Link { exchange, .. }) = self.state.link_mut()
                {
                    exchange.described.clear();
                    exchange.described.extend_from_slice(body);
                }
                if own { Fate::Swallow } else { Fate::Forward }
            }
            backend::PARSE_COMPLETE | backend::BIND_COMPLETE | backend::CLOSE_COMPLETE => self.step_complete(tag)?,
            backend::COMMAND_COMPLETE | backend::EMPTY_QUERY_RESPONSE | backend::PORTAL_SUSPENDED => {
                self.command_complete(tag, body)?
            }
            _ => return Err(Fault::Unexpected(char::from(tag))),
        };
        self.answer_known();
        if self.state.answer().is_swallowed() {
            self.after.clear();
            return Ok(Fate::Swallow);
        }
        Ok(fate)
    }

    /// Answers those requests at the head of the ledger that need no server: behind the message at
    /// hand, which was what they waited for.
    pub(super) fn answer_known(&mut self) {
        while let Some(known) = self.state.ledger_mut().and_then(Ledger::pop_known) {
            if let Expect::KnownClose { name } = known {
                self.define(name, None);
                backend::put_empty(&mut self.after, backend::CLOSE_COMPLETE);
            }
        }
    }

    /// As [`Session::answer_known`], while no message of the server is at hand.
    pub(super) fn answer_known_now(&mut self, buffers: &mut Buffers) {
        self.answer_known();
        if !self.after.is_empty() {
            self.pass_after(buffers);
        }
    }

    /// Rows as they are described; a Query's too.
    fn description(&mut self, tag: u8, body: &[u8], shared: &mut Shared) -> Fate {
        let rows = || (tag == backend::ROW_DESCRIPTION).then(|| super::compare::shape(body));
        match self.head() {
            Some(Expect::Describe { .. } | Expect::Compare(_) | Expect::Signature { .. }) => {}
            _ => return Fate::Forward,
        }
        match self.pop() {
            Some(Expect::Compare(statement)) => {
                self.compare(&statement, rows());
                Fate::Swallow
            }
            Some(Expect::Signature { name, statement }) => {
                self.learn_signature(&name, &statement, rows(), shared);
                Fate::Swallow
            }
            Some(Expect::Describe { unnamed: Some(statement) }) => {
                self.learn_signature(b"", &statement, rows(), shared);
                Fate::Forward
            }
            _ => Fate::Forward,
        }
    }

    fn step_complete(&mut self, tag: u8) -> Result<Fate, Fault> {
        match (tag, self.pop()) {
            (backend::PARSE_COMPLETE, Some(Expect::Parse { name, held })) => {
                self.define(name, Some(held));
                Ok(Fate::Forward)
            }
            (
                backend::PARSE_COMPLETE,
                Some(Expect::InjectedParse(_) | Expect::InjectedUnnamed(_) | Expect::Placeholder),
            )
            | (backend::CLOSE_COMPLETE, Some(Expect::InjectedClose(_))) => Ok(Fate::Swallow),
            (backend::BIND_COMPLETE, Some(Expect::Bind { portal, statement })) => {
                self.portals.retain(|(name, _)| *name != portal);
                if let Some(statement) = &statement
                    && super::dispatch::decides(&statement.class)
                {
                    self.portals.push((portal, statement.clone()));
                }
                self.last_bound = statement;
                Ok(Fate::Forward)
            }
            (backend::CLOSE_COMPLETE, Some(Expect::Close { kind, name })) => {
                if kind == Kind::Portal {
                    self.portals.retain(|(known, _)| *known != name);
                } else if name.is_empty() {
                    self.define(name, None);
                    if let Some(server) = self.state.server_mut() {
                        server.unnamed = None;
                    }
                }
                Ok(Fate::Forward)
            }
            _ => Err(Fault::Unexpected(char::from(tag))),
        }
    }

    fn command_complete(&mut self, tag: u8, body: &[u8]) -> Result<Fate, Fault> {
        match self.head() {
            Some(Expect::Execute { .. }) => {
                if let Some(Expect::Execute { statement: Some(statement) }) = self.pop()
                    && tag == backend::COMMAND_COMPLETE
                {
                    self.stage(statement.class.clone());
                }
            }
            Some(Expect::Query) => {}
            _ => return Err(Fault::Unexpected(char::from(tag))),
        }
        if tag == backend::COMMAND_COMPLETE {
            if let Some(run) = self.state.run_mut() {
                run.completed_any = true;
            }
            if body.starts_with(b"COMMIT\0") || body.starts_with(b"PREPARE TRANSACTION\0") {
                self.kept.ended_by_commit = true;
            } else if body.starts_with(b"ROLLBACK\0") {
                self.kept.ended_by_commit = false;
            }
        }
        if tag == backend::COMMAND_COMPLETE && self.tell_commit_doubt() {
            self.end_answer();
            return Ok(Fate::Swallow);
        }
        self.show();
        Ok(Fate::Forward)
    }

    fn copy_in(&mut self) {
        let all_sent = !self.unit.input.is_open() && !self.is_describing();
        self.unit.begin_copy();
        if let Some(ledger) = self.state.ledger_mut()
            && matches!(ledger.head(), Some(Expect::Execute { .. }))
            && all_sent
        {
            ledger.drop_trailing_sync();
            self.unit.open();
        }
    }

    /// The session's own notifications bear the process id that its client was told, by which it knows them for its
    /// own; those of others that of a server process.
    fn notification(&mut self, body: &[u8]) -> Fate {
        if !self.pins.union(self.unit.effects).intersects(Effects::LISTEN) {
            return Fate::Swallow;
        }
        let ids = self.state.link().map_or(Ids::default(), |link| link.exchange.ids);
        match body.split_first_chunk::<4>() {
            Some((from, rest)) if u32::from_be_bytes(*from) == ids.server && ids.server != 0 => {
                let client = ids.client;
                wire::put_message(&mut self.before, backend::NOTIFICATION_RESPONSE, |out| {
                    out.put_u32(client);
                    out.put_slice(rest);
                });
                Fate::Swallow
            }
            _ => Fate::Forward,
        }
    }

    /// Of a unit whose answer is withheld they pass if nothing was withheld yet: a client takes a notice at any time
    /// (protocol-flow, "Asynchronous Operations"), and a unit that is run again says its notices again, as it did run
    /// twice. Not so on a standby, which refuses in its midst what needs the primary.
    fn notice(&mut self, body: &[u8]) -> Fate {
        let fields = ErrorFields::read(body);
        // syncrep.c: the transaction is committed here, but the standby has not confirmed it.
        if fields.routine == b"SyncRepWaitForLSN" {
            if let Some(run) = self.state.run_mut() {
                run.commit_doubt = true;
            }
            return Fate::Swallow;
        }
        // The server is going (`quickdie`, postgres.c); the client's connection is not.
        let going = fields.routine == b"quickdie" && matches!(fields.code, b"57P01" | b"57P02" | b"57P03");
        if going || self.asks_for_itself() {
            return Fate::Swallow;
        }
        let on_standby = self.state.is_on_standby();
        let Some(run) = self.state.run().filter(|run| run.answer.is_withheld()) else { return Fate::Forward };
        if !may_be_spared(&self.unit, run, on_standby) {
            self.show();
        } else if !on_standby {
            return Fate::Past;
        }
        Fate::Forward
    }

    fn parameter(&mut self, body: &[u8], shared: &mut Shared) -> Result<Fate, Fault> {
        let (name, value) = backend::parameter_status(body)?;
        let (name, value) = (String::from_utf8_lossy(name), String::from_utf8_lossy(value));
        let injected = self.asks_for_itself() && !matches!(self.head(), Some(Expect::Restored));
        if let Some(server) = self.state.server_mut() {
            remember(&mut server.parameters, &name, &value);
        }
        if injected || !is_told(&name) || !self.is_outstanding() {
            return Ok(Fate::Swallow);
        }
        self.kept.reported = shared.profiles.with(&self.kept.reported, &name, &value);
        if !belongs_to_session(&name) {
            return Ok(Fate::Forward);
        }
        if !value.is_ascii() && self.kept.sql.encoding != TextEncoding::Utf8 {
            // In the client's encoding, not in ours: the text says what was set.
            return Ok(Fate::Forward);
        }
        let lower = name.to_ascii_lowercase();
        self.kept.profile = shared.profiles.with(&self.kept.profile, &lower, &value);
        if let Some(server) = self.state.server_mut() {
            server.profile = shared.profiles.with(&server.profile, &lower, &value);
        }
        self.kept.read_sql_context();
        Ok(Fate::Forward)
    }
}

/// Parameters that a client is told of: its settings, and what follows from its role.
pub(super) fn is_told(name: &str) -> bool {
    belongs_to_session(name) || matches!(name, "is_superuser" | "session_authorization")
}

/// Parameters that say something of the session's settings, not of the server.
fn belongs_to_session(name: &str) -> bool {
    !matches!(
        name,
        "in_hot_standby"
            | "is_superuser"
            | "server_version"
            | "server_encoding"
            | "integer_datetimes"
            | "session_authorization"
    )
}

pub(super) fn remember(parameters: &mut Vec<(String, String)>, name: &str, value: &str) {
    match parameters.iter_mut().find(|(key, _)| key == name) {
        Some((_, old)) => {
            value.clone_into(old);
        }
        None => parameters.push((name.to_owned(), value.to_owned())),
    }
}
