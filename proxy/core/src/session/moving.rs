//! A READ ONLY transaction that began on a standby and has done nothing so far moves to the primary if its first
//! statement needs that: what only the primary has (unlogged tables, the session's own sequence values, WAL
//! positions, a snapshot that others are to import), and what has an effect beyond the transaction (locks, NOTIFY,
//! LISTEN). Its BEGIN is said again there; nothing that the client has seen depends on where it was said first.

use std::mem;

use super::Session;
use super::inject::Injected;
use super::ledger::Expect;
use super::state::{Link, Replay, Stage};
use crate::route::TransactionControl;
use crate::route::class::{Hint, Route};
use crate::terms::Access;
use crate::wire::backend::TxStatus;
use crate::wire::frontend::{self, Bind};
use crate::wire::{self};

/// Beginning of a transaction on a standby, for beginning it again. The texts are BEGIN, and what has chosen
/// characteristics since.
#[derive(Debug, Default)]
pub(super) enum Opening {
    /// Not at all: the transaction has done something, or is elsewhere.
    #[default]
    Never,
    /// It has done nothing so far.
    Untouched(String),
    /// Something else of it was sent to the standby.
    Tried(String),
    /// It is on its way to the primary.
    Moving(String),
}

impl Opening {
    /// It is on its way to the primary.
    pub(super) fn is_moving(&self) -> bool {
        matches!(self, Self::Moving(_))
    }

    fn of(text: Option<String>) -> Self {
        text.filter(|text| !text.is_empty()).map_or(Self::Never, Self::Untouched)
    }
}

/// Texts that choose a transaction's characteristics, altogether: more are not remembered.
const MOST_BYTES: usize = 1024;

impl Session {
    /// A unit is sent to a standby.
    pub(super) fn note_opening(&mut self, unit: &[u8]) {
        let begins = match (self.unit.started, self.unit.alone()) {
            (TxStatus::Idle, Some(TransactionControl::Begin { .. })) => true,
            (TxStatus::InTransaction, Some(TransactionControl::SetTransaction { .. })) => false,
            _ => {
                if let Opening::Untouched(text) = &mut self.opening {
                    self.opening = Opening::Tried(mem::take(text));
                }
                return;
            }
        };
        let text = self.text_of(unit);
        self.opening = match (mem::take(&mut self.opening), text) {
            (_, text) if begins => Opening::of(text),
            (Opening::Untouched(before), Some(text)) if before.len() + text.len() < MOST_BYTES => {
                Opening::Untouched(before + ";" + &text)
            }
            _ => Opening::Never,
        };
    }

    /// The text of a unit that runs one.
    fn text_of(&self, mut unit: &[u8]) -> Option<String> {
        while let Ok(Some((header, body))) = wire::complete(unit) {
            let text = match header.tag {
                frontend::QUERY => frontend::query_text(body).ok().map(<[u8]>::to_vec),
                frontend::BIND => {
                    let bind = Bind::read(body).ok()?;
                    self.noted_statement(bind.statement).map(|statement| statement.text().to_vec())
                }
                _ => None,
            };
            if let Some(text) = text {
                return String::from_utf8(text).ok().filter(|text| text.len() < MOST_BYTES && text.is_ascii());
            }
            unit = &unit[header.size..];
        }
        None
    }

    /// The unit is over: what it may have done is done.
    pub(super) fn end_opening(&mut self) {
        if !matches!(self.opening, Opening::Untouched(_)) || self.status != TxStatus::InTransaction {
            self.opening = Opening::Never;
        }
    }

    /// Whether the transaction can go to the primary as if nothing had happened.
    fn may_move(&self) -> bool {
        let asked_for_standby =
            self.unit.hint == Some(Hint::Standby) || self.unit.hint.is_none() && self.kept.route == Route::Standby;
        self.state.is_on_standby()
            && self.kept.config.access == Access::ReadWrite
            && !asked_for_standby
            && self.pins.is_empty()
    }

    /// Whether the unit at hand, which was not sent yet, has to run on the primary, and its transaction can.
    pub(super) fn must_move(&self) -> bool {
        !self.unit.read_only
            && matches!(self.opening, Opening::Untouched(_))
            && self.status == TxStatus::InTransaction
            && self.may_move()
    }

    /// Whether the transaction's first statement, which the standby has refused, can run on the primary.
    pub(super) fn may_still_move(&self) -> bool {
        matches!(self.opening, Opening::Tried(_))
            && self.unit.started == TxStatus::InTransaction
            && self.state.answer().is_withheld()
            && !self.unit.input.is_open()
            && self.unit.is_here()
            && self.may_move()
    }

    /// Ends the transaction on the standby. The unit runs on the primary.
    pub(super) fn leave_standby(&mut self) {
        self.unit.needs_primary = true;
        if let Opening::Untouched(text) | Opening::Tried(text) = mem::take(&mut self.opening) {
            self.opening = Opening::Moving(text);
        }
        self.inject_now(&Injected::Settings("ROLLBACK"), Expect::Left);
        self.go_attached(Stage::Replaying(Replay::Leaving));
    }

    /// The standby has refused the transaction's first statement, and that is over.
    pub(super) fn leave_standby_again(&mut self) {
        self.staged.clear();
        self.news.rerun();
        self.unit.rewind();
        self.leave_standby();
    }

    /// The settings are right: begins the transaction anew, if it has moved here.
    pub(super) fn begin_or_dispatch(&mut self) {
        let Opening::Moving(text) = &self.opening else { return self.go_run() };
        if let Some(Link { server, exchange, .. }) = self.state.link_mut() {
            server.inject(&Injected::Settings(text), &mut self.to_server);
            exchange.ledger.push(Expect::Begun);
        }
        self.go_attached(Stage::Replaying(Replay::Beginning));
    }

    /// The transaction goes on where it is now.
    pub(super) fn moved(&mut self) {
        self.opening = Opening::Never;
        self.go_run();
    }

    /// The transaction that was on its way has failed, as far as the client can tell. Its status.
    pub(super) fn fail_moving(&mut self) -> TxStatus {
        match mem::take(&mut self.opening).is_moving() {
            true => TxStatus::Failed,
            false => self.status,
        }
    }
}
