//! End of a session whose client sends no more: because it has left, because it waits for an answer
//! without having asked for one, or because it wants what runs to be cancelled.
//!
//! PostgreSQL looks at its socket between two statements only (`PostgresMain`, postgres.c). So what stands in front
//! of a Terminate, or of the end of the connection, is done and answered as if nothing had followed.

use super::Session;
use super::ledger::{Expect, Ledger};
use super::run::Course;
use super::state::{Stage, State, Then};
use crate::wire::{backend, frontend};

/// Aim of a cancel request of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelAim {
    /// Nothing: no statement of the client is under way.
    Nothing,
    /// A statement that waits for a server, or for what the proxy asks of it first.
    Held,
    /// The statement that the server runs.
    Server,
}

impl Session {
    /// Aim of a cancel request now. Never a statement of the proxy's own.
    pub fn cancel_aim(&self) -> CancelAim {
        match &self.state {
            State::Waiting(_) => CancelAim::Held,
            State::Attached(_, stage) => match stage {
                Stage::Preparing | Stage::Replaying(_) | Stage::Releasing(Then::Wait) => CancelAim::Held,
                Stage::Running(run) => match run.course {
                    Course::Describing | Course::Answering if self.is_outstanding() => CancelAim::Server,
                    Course::Starting | Course::Describing | Course::Resuming => CancelAim::Held,
                    Course::Answering | Course::Answered => CancelAim::Nothing,
                },
                Stage::Refused(_) | Stage::Probing(_) | Stage::Releasing(_) => CancelAim::Nothing,
            },
            _ => CancelAim::Nothing,
        }
    }

    /// Whether what is outstanding at the server was asked by the proxy for itself, between two units.
    pub fn asks_for_itself(&self) -> bool {
        self.state.ledger().is_some_and(Ledger::is_own)
    }

    /// The client sends nothing more than what has been read of it.
    pub fn client_ended(&mut self) {
        self.ended = true;
    }

    /// Whether the unit at hand does nothing but answer, and nothing but a Terminate stands behind it: if nobody
    /// reads the answer it may as well not run.
    pub fn only_reads(&self, rx: &[u8]) -> bool {
        let under_way = match &self.state {
            State::Waiting(_) => true,
            State::Attached(_, Stage::Preparing | Stage::Replaying(_) | Stage::Releasing(Then::Wait)) => true,
            State::Attached(_, Stage::Running(run)) => run.course != Course::Answered,
            _ => false,
        };
        let behind = rx.get(self.unit.end).copied();
        under_way && self.unit.repeatable && matches!(behind, None | Some(frontend::TERMINATE))
    }

    /// Writes something to the client that means nothing to it, so that the network says if it is gone: a
    /// parameter's value as it is (manual, section 55.2.7: at any time, to be expected always). False if that
    /// cannot be done.
    pub fn prod_client(&mut self) -> bool {
        if self.is_within_message() || !self.to_client.is_empty() {
            return true;
        }
        let Some((name, value)) = self.kept.reported.entries().next() else { return false };
        backend::put_parameter_status(&mut self.to_client, name.as_bytes(), value.as_bytes());
        true
    }

    /// Whether nothing happens any more unless the client says something.
    pub fn is_stuck(&self) -> bool {
        match &self.state {
            State::Gathering(_) | State::SkippingToSync(_) => true,
            State::Attached(_, Stage::Running(run)) if run.course == Course::Answering => {
                self.unit.input.is_copy() || (self.unit.input.is_open() && !self.is_outstanding())
            }
            _ => false,
        }
    }

    /// Whether a unit was begun that the client did not end, in whole messages, of which `bytes` were read: it may
    /// wait for an answer, an error above all, which PostgreSQL sends at once (`send_message_to_frontend`, elog.c).
    /// What is for the proxy itself is answered as a whole.
    pub fn is_stalled(&self, bytes: usize) -> bool {
        self.is_gathering() && self.unit.end > 0 && self.unit.end == bytes && self.unit.proxied == 0
    }

    /// It has waited for long enough: what there is of the unit is sent.
    pub fn end_stall(&mut self) {
        if self.is_gathering() && self.unit.end > 0 {
            self.unit.open();
        }
    }

    /// Nothing more of an open unit comes: asks the server for what it has kept back of its answers, once.
    pub(super) fn flush_for_last_time(&mut self) {
        let Some((link, run)) = self.state.at_run() else { return };
        let is_late = link.exchange.ledger.head().is_some_and(is_answered_late);
        if self.unit.input.is_open() && !run.flushed && is_late {
            run.flushed = true;
            frontend::put_empty(&mut self.to_server, frontend::FLUSH);
        }
    }
}

/// A server keeps the answers to extended messages until it is asked, or has many.
fn is_answered_late(head: &Expect) -> bool {
    !matches!(head, Expect::Query | Expect::RefusedQuery(_) | Expect::Sync)
}
