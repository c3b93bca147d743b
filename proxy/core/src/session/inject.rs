//! Injected messages: those that the proxy itself sends to a server, beside its client's. The one place that knows what
//! each such message does to the server, so that what is known of the server follows.

use std::rc::Rc;

use bytes::BytesMut;

use super::ledger::Expect;
use super::state::Link;
use super::statements::{Held, Statement};
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
    /// Parse of a statement, as the server will have it, under this name.
    Parse(&'a Held, &'a Rc<str>),
    /// Parse of the session's unnamed statement, as the server will have it.
    ParseUnnamed(&'a Held),
    /// Describe of a statement of this name.
    Describe(&'a str),
    /// Parse of nothing under a name that a DEALLOCATE is going to give.
    Placeholder(&'a [u8]),
    /// Close of a statement that is no longer counted as there.
    Close(&'a str),
    /// Close of the unnamed statement.
    CloseUnnamed,
    /// Flush: what was asked up to here is wanted now.
    Flush,
    /// Sync, in the place of the client's, after an error.
    Sync,
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
            Injected::Parse(held, name) => {
                self.prepared.insert(held, name);
                put_parse(out, name.as_bytes(), &held.statement);
            }
            // exec_parse_message drops the old one first.
            Injected::ParseUnnamed(held) => {
                self.unnamed = Some(Held::clone(held));
                put_parse(out, b"", &held.statement);
            }
            Injected::Describe(name) => {
                frontend::put_target(out, frontend::DESCRIBE, Kind::Statement, name.as_bytes());
            }
            // DEALLOCATE removes it; if it does not come to that the server is cleaned.
            Injected::Placeholder(name) => frontend::put_parse(out, name, b"", &[0, 0]),
            Injected::Close(name) => frontend::put_target(out, frontend::CLOSE, Kind::Statement, name.as_bytes()),
            Injected::CloseUnnamed => {
                self.unnamed = None;
                frontend::put_target(out, frontend::CLOSE, Kind::Statement, b"");
            }
            Injected::Flush => frontend::put_empty(out, frontend::FLUSH),
            // Outside a transaction block the portals go with it; within one nothing does.
            Injected::Sync => frontend::put_empty(out, frontend::SYNC),
        }
    }
}

fn put_parse(out: &mut BytesMut, name: &[u8], statement: &Statement) {
    frontend::put_parse(out, name, statement.text(), statement.types());
}

impl Session {
    /// Has the server do this in front of the message at hand. `expect`: what it answers.
    pub(super) fn inject(&mut self, message: &Injected<'_>, expect: Expect) {
        if let Some(Link { server, exchange, .. }) = self.state.link_mut() {
            server.inject(message, &mut self.before);
            exchange.ledger.push(expect);
        }
    }

    /// As [`Session::inject`], where nothing is answered.
    pub(super) fn inject_unanswered(&mut self, message: &Injected<'_>) {
        if let Some(server) = self.state.server_mut() {
            server.inject(message, &mut self.before);
        }
    }

    /// Has the server do this at once.
    pub(super) fn inject_now(&mut self, message: &Injected<'_>, expect: Expect) {
        if let Some(Link { server, exchange, .. }) = self.state.link_mut() {
            server.inject(message, &mut self.to_server);
            exchange.ledger.push(expect);
        }
    }
}
