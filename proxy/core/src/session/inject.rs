//! What the proxy itself sends to a server, beside what its client sends: the one place that knows what each
//! such message does to the server, so that what is known of the server follows.

use std::rc::Rc;

use bytes::BytesMut;

use super::ledger::Expect;
use super::statements::{Statement, server_name};
use super::{ServerState, Session};
use crate::wire::frontend::{self, Kind};

/// A message of the proxy's own.
#[derive(Debug)]
pub(super) enum Injected<'a> {
    /// A Query that gives the session's settings.
    Settings(&'a str),
    /// A Query that asks what the session has left.
    Question(&'a str),
    /// A Query, DISCARD ALL, between two sessions.
    DiscardAll,
    /// Parse of what the server lacks, under its name on servers.
    Parse(&'a Rc<Statement>),
    /// Parse of the session's unnamed statement.
    ParseUnnamed(&'a Rc<Statement>),
    /// Parse of nothing under a name that a DEALLOCATE is going to give.
    Placeholder(&'a [u8]),
    /// Close of a statement: its number.
    Close(u32),
    /// Close of the unnamed statement.
    CloseUnnamed,
}

impl ServerState {
    /// Appends DISCARD ALL. Once that is done: [`ServerState::discarded`].
    pub fn discard_all(&mut self, out: &mut BytesMut) {
        self.inject(&Injected::DiscardAll, out);
    }

    /// Appends the message, and notes what the server has and has not once it has been carried out. What was
    /// refused or skipped is put right when the server says so.
    pub(super) fn inject(&mut self, message: &Injected<'_>, out: &mut BytesMut) {
        match message {
            // exec_simple_query (postgres.c) drops the unnamed statement before it looks at the text, and with it
            // goes the unnamed portal. Outside a transaction, where these are sent, there are no other portals.
            Injected::Settings(text) | Injected::Question(text) => {
                self.unnamed = None;
                frontend::put_query(out, text.as_bytes());
            }
            Injected::DiscardAll => {
                self.unnamed = None;
                frontend::put_query(out, b"DISCARD ALL");
            }
            Injected::Parse(statement) => {
                self.prepared.insert(statement.id());
                put_parse(out, statement.name().as_bytes(), statement);
            }
            Injected::ParseUnnamed(statement) => {
                self.unnamed = Some(Rc::clone(statement));
                put_parse(out, b"", statement);
            }
            // DEALLOCATE removes it; if it does not come to that the server is cleaned.
            Injected::Placeholder(name) => frontend::put_parse(out, name, b"", &[0, 0]),
            Injected::Close(id) => {
                self.prepared.remove(*id);
                frontend::put_target(out, frontend::CLOSE, Kind::Statement, server_name(*id).as_bytes());
            }
            Injected::CloseUnnamed => {
                self.unnamed = None;
                frontend::put_target(out, frontend::CLOSE, Kind::Statement, b"");
            }
        }
    }
}

fn put_parse(out: &mut BytesMut, name: &[u8], statement: &Statement) {
    let (text, types) = statement.definition.split_at(statement.text().len());
    frontend::put_parse(out, name, text, &types[1..]);
}

impl Session {
    /// Has the server do this in front of the message at hand. `expect`: what it answers.
    pub(super) fn inject(&mut self, message: &Injected<'_>, expect: Expect) {
        if let Some(server) = &mut self.server {
            server.inject(message, &mut self.before);
            self.ledger.push(expect);
        }
    }

    /// Has the server do this between two units.
    pub(super) fn inject_now(&mut self, message: &Injected<'_>, expect: Expect) {
        if let Some(server) = &mut self.server {
            server.inject(message, &mut self.to_server);
            self.ledger.push(expect);
        }
    }
}
