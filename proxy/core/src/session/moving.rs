//! A READ ONLY transaction that began on a standby and has done nothing so far moves to the primary if its first
//! statement needs that: what only the primary has (unlogged tables, the session's own sequence values, WAL
//! positions, a snapshot that others are to import), and what has an effect beyond the transaction (locks, NOTIFY,
//! LISTEN). Its BEGIN is said again there; nothing that the client has seen depends on where it was said first.

use super::inject::Injected;
use super::ledger::Expect;
use super::unit::{Extent, Forwarding};
use super::{Phase, ServedBy, Session};
use crate::route::TransactionControl;
use crate::route::class::{Hint, Route};
use crate::terms::Access;
use crate::wire::backend::TxStatus;
use crate::wire::frontend::{self, Bind};
use crate::wire::{self};

/// How a transaction on a standby can be begun again.
#[derive(Debug, Default)]
pub(super) struct Opening {
    /// BEGIN, and what has chosen characteristics since. Empty: the transaction has done something, or is elsewhere.
    text: String,
    /// Something else of it was sent to the standby.
    ran: bool,
    /// It is on its way to the primary.
    pub(super) moving: bool,
}

/// Texts that choose a transaction's characteristics, altogether: more are not remembered.
const MOST_BYTES: usize = 1024;

impl Session {
    /// A unit is sent to a standby.
    pub(super) fn note_opening(&mut self, unit: &[u8]) {
        let begins = match (self.unit.started, self.unit.alone()) {
            (TxStatus::Idle, Some(TransactionControl::Begin { .. })) => true,
            (TxStatus::InTransaction, Some(TransactionControl::SetTransaction { .. })) => false,
            _ => return self.opening.ran = true,
        };
        let text = self.text_of(unit);
        let opening = &mut self.opening;
        if begins {
            *opening = Opening { text: text.unwrap_or_default(), ..Opening::default() };
        } else if let Some(text) = text.filter(|text| opening.text.len() + text.len() < MOST_BYTES)
            && !opening.text.is_empty()
            && !opening.ran
        {
            opening.text.push(';');
            opening.text.push_str(&text);
        } else {
            *opening = Opening::default();
        }
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
        if self.opening.ran || self.status != TxStatus::InTransaction {
            self.opening = Opening::default();
        }
    }

    /// Whether the transaction can go to the primary as if nothing had happened.
    fn may_move(&self) -> bool {
        let asked_for_standby =
            self.unit.hint == Some(Hint::Standby) || self.unit.hint.is_none() && self.kept.route == Route::Standby;
        !self.opening.text.is_empty()
            && self.served_by == ServedBy::Standby
            && self.kept.config.access == Access::ReadWrite
            && !asked_for_standby
            && self.pins.is_empty()
    }

    /// Whether the unit at hand, which was not sent yet, has to run on the primary, and its transaction can.
    pub(super) fn must_move(&self) -> bool {
        !self.unit.read_only && !self.opening.ran && self.status == TxStatus::InTransaction && self.may_move()
    }

    /// Whether the transaction's first statement, which the standby has refused, can run on the primary.
    pub(super) fn may_still_move(&self) -> bool {
        self.opening.ran
            && self.unit.started == TxStatus::InTransaction
            && self.unit.forwarding == Forwarding::Withheld
            && self.unit.extent == Extent::Closed
            && !self.unit.consumed
            && self.may_move()
    }

    /// Ends the transaction on the standby. The unit runs on the primary.
    pub(super) fn leave_standby(&mut self) {
        self.unit.needs_primary = true;
        self.opening.ran = false;
        self.opening.moving = true;
        self.inject_now(&Injected::Settings("ROLLBACK"), Expect::Left);
        self.phase = Phase::Replay;
    }

    /// The standby has refused the transaction's first statement, and that is over.
    pub(super) fn leave_standby_again(&mut self) {
        self.withheld.clear();
        self.undo_definitions();
        self.staged.clear();
        self.reruns += 1;
        self.unit.rewind();
        self.leave_standby();
    }

    /// The settings are right: begins the transaction anew, if it has moved here.
    pub(super) fn begin_or_dispatch(&mut self) {
        if !self.opening.moving {
            self.phase = Phase::Dispatch;
            return;
        }
        let text = std::mem::take(&mut self.opening.text);
        self.inject_now(&Injected::Settings(&text), Expect::Begun);
        self.opening.text = text;
        self.phase = Phase::Replay;
    }

    /// The transaction goes on where it is now.
    pub(super) fn moved(&mut self) {
        self.opening = Opening::default();
        self.phase = Phase::Dispatch;
    }

    /// The transaction that was on its way has failed, as far as the client can tell. Its status.
    pub(super) fn fail_moving(&mut self) -> TxStatus {
        match std::mem::take(&mut self.opening).moving {
            true => TxStatus::Failed,
            false => self.status,
        }
    }
}
