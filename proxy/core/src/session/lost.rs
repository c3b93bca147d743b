//! What a client is told when the server under its unit is lost: a table of facts to verdicts.
//!
//! A unit is run again only when it provably did not run, or when running it twice does no harm and
//! nobody saw its first answer. Where a commit may have happened and its answer is lost, the client
//! is told just that.

use super::unit::{Copy, Forwarding, Shape, Unit};
use crate::route::{Control, Effects, TransactionControl};
use crate::wire::backend::TxStatus;

/// How much of the unit had been written to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Its last message had not been written to its end.
    Partly,
    /// All.
    Whole,
}

/// How the server went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The connection closed, broke, or was given up because the topology says so.
    Gone,
    /// It said FATAL 57P01 or 57P03 first. `ProcessInterrupts` (postgres.c) raises it between or within
    /// statements, never once a commit has begun: interrupts are held off there, and a backend told to
    /// end while it waits for the sync sends a WARNING and then nothing (`SyncRepWaitForLSN`).
    /// So a single statement that was not answered has not been committed.
    Refused,
    /// It refused the unit because it is a standby, although it was taken for the primary.
    ReadOnly,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Run the unit again on another server.
    Rerun,
    /// Tell 40001: nothing of it was committed; afterwards the client is in this status.
    NothingCommitted(TxStatus),
    /// Tell 08007: it may have been committed.
    InDoubt,
    /// It ends as if the server had answered with this command tag.
    Completed(&'static str),
}

/// The table.
pub fn verdict(unit: &Unit, sent: Sent, how: How, on_standby: bool) -> Verdict {
    let nothing_seen = !unit.consumed && unit.forwarding != Forwarding::On;
    match unit.started {
        TxStatus::Failed => match unit.alone() {
            Some(TransactionControl::Commit { chain: false } | TransactionControl::Rollback { chain: false })
                if nothing_seen =>
            {
                Verdict::Completed("ROLLBACK")
            }
            _ => Verdict::NothingCommitted(TxStatus::Failed),
        },
        TxStatus::InTransaction => match unit.alone() {
            Some(TransactionControl::Rollback { chain: false }) if nothing_seen => Verdict::Completed("ROLLBACK"),
            // A standby commits nothing, so nothing can be in doubt.
            Some(TransactionControl::Commit { chain: false }) if nothing_seen && on_standby => {
                Verdict::Completed("COMMIT")
            }
            _ if unit.commits && !on_standby => Verdict::InDoubt,
            _ => Verdict::NothingCommitted(TxStatus::Failed),
        },
        TxStatus::Idle => autocommit(unit, sent, how, on_standby),
    }
}

/// Whether anything is won by keeping the unit's answer from the client: however its server goes from here
/// on, what the client has seen would keep the unit from being run again or completed.
pub(super) fn may_be_spared(unit: &Unit, on_standby: bool) -> bool {
    [How::Gone, How::Refused]
        .into_iter()
        .any(|how| matches!(verdict(unit, Sent::Whole, how, on_standby), Verdict::Rerun | Verdict::Completed(_)))
}

fn autocommit(unit: &Unit, sent: Sent, how: How, on_standby: bool) -> Verdict {
    let begins = matches!(unit.alone(), Some(TransactionControl::Begin { .. }));
    if unit.can_rerun() && unit.forwarding != Forwarding::On {
        let not_run = match (sent, how) {
            // The server cannot begin a Query it has not read to its end.
            (Sent::Partly, _) => unit.shape == Shape::Simple,
            (Sent::Whole, How::Refused) => {
                // A procedure may have committed on its way.
                unit.single && !unit.completed_any && !unit.effects.intersects(Effects::UNKNOWN)
            }
            (Sent::Whole, How::ReadOnly) => true,
            (Sent::Whole, How::Gone) => false,
        };
        if not_run || unit.repeatable || begins || unit.shape == Shape::Empty || on_standby {
            return Verdict::Rerun;
        }
    }
    if unit.copy == Copy::In {
        return Verdict::NothingCommitted(TxStatus::Idle);
    }
    if let Some(
        Control::Alone(TransactionControl::Begin { .. })
        | Control::Mixed { first: Some(TransactionControl::Begin { .. }), commits: false },
    ) = unit.control
        && !unit.commits
    {
        return Verdict::NothingCommitted(TxStatus::Failed);
    }
    if unit.repeatable || on_standby {
        return Verdict::NothingCommitted(TxStatus::Idle);
    }
    Verdict::InDoubt
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::route::Class;
    use crate::route::class::Reason;

    fn unit(started: TxStatus, class: &Class) -> Unit {
        let mut unit = Unit::default();
        unit.reset(started);
        unit.shape = Shape::Simple;
        unit.forwarding = Forwarding::Withheld;
        unit.run(class);
        unit
    }

    fn control(one: TransactionControl) -> Class {
        Class { control: Control::Alone(one), ..Class::primary(Reason::Transaction) }
    }

    #[test]
    fn the_table() {
        use TransactionControl::{Begin, Commit, Rollback};
        use TxStatus::{Failed, Idle, InTransaction};
        let read = Class::read_only();
        let write = Class::primary(Reason::Write);
        let commit = control(Commit { chain: false });
        let rollback = control(Rollback { chain: false });
        let begin = control(Begin { read_only: None, serializable: false });
        let whole = (Sent::Whole, How::Gone);
        let partly = (Sent::Partly, How::Gone);
        let refused = (Sent::Whole, How::Refused);
        let table = [
            (Idle, &read, whole, Verdict::Rerun),
            (Idle, &write, whole, Verdict::InDoubt),
            (Idle, &write, partly, Verdict::Rerun),
            (Idle, &write, refused, Verdict::Rerun),
            (Idle, &begin, whole, Verdict::Rerun),
            (InTransaction, &read, whole, Verdict::NothingCommitted(Failed)),
            (InTransaction, &write, whole, Verdict::NothingCommitted(Failed)),
            (InTransaction, &commit, whole, Verdict::InDoubt),
            (InTransaction, &rollback, whole, Verdict::Completed("ROLLBACK")),
            (Failed, &write, whole, Verdict::NothingCommitted(Failed)),
            (Failed, &commit, whole, Verdict::Completed("ROLLBACK")),
        ];
        for (started, class, (sent, how), expected) in table {
            assert_eq!(
                verdict(&unit(started, class), sent, how, false),
                expected,
                "{started:?} {class:?} {sent:?} {how:?}"
            );
        }
    }

    #[test]
    fn what_the_client_has_seen_is_not_run_again() {
        let mut read = unit(TxStatus::Idle, &Class::read_only());
        read.forwarding = Forwarding::On;
        assert_eq!(verdict(&read, Sent::Whole, How::Gone, true), Verdict::NothingCommitted(TxStatus::Idle));
        let mut write = unit(TxStatus::Idle, &Class::primary(Reason::Write));
        write.forwarding = Forwarding::On;
        assert_eq!(verdict(&write, Sent::Partly, How::Refused, false), Verdict::InDoubt);
        write.copy = Copy::In;
        assert_eq!(verdict(&write, Sent::Whole, How::Gone, false), Verdict::NothingCommitted(TxStatus::Idle));
    }

    #[test]
    fn a_commit_on_a_standby_is_never_in_doubt() {
        let commit = unit(TxStatus::InTransaction, &control(TransactionControl::Commit { chain: false }));
        assert_eq!(verdict(&commit, Sent::Whole, How::Gone, true), Verdict::Completed("COMMIT"));
    }

    #[test]
    fn nothing_is_won_by_withholding_what_cannot_run_again() {
        use TransactionControl::Rollback;
        use TxStatus::{Idle, InTransaction};
        let opaque = Class { effects: Effects::UNKNOWN, ..Class::primary(Reason::Opaque) };
        assert!(may_be_spared(&unit(Idle, &Class::read_only()), false));
        assert!(may_be_spared(&unit(Idle, &Class::primary(Reason::Write)), false), "it runs again after 57P01");
        assert!(may_be_spared(&unit(InTransaction, &control(Rollback { chain: false })), false));
        assert!(!may_be_spared(&unit(Idle, &opaque), false));
        assert!(!may_be_spared(&unit(InTransaction, &Class::read_only()), false));
        let mut several = unit(Idle, &Class::primary(Reason::Write));
        several.single = false;
        assert!(!may_be_spared(&several, false));
    }

    #[test]
    fn several_statements_may_have_committed_before_the_server_refused() {
        let mut several = unit(TxStatus::Idle, &Class::primary(Reason::Write));
        several.single = false;
        assert_eq!(verdict(&several, Sent::Whole, How::Refused, false), Verdict::InDoubt);
    }
}
