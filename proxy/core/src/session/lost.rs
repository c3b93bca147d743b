//! Answer to a client when the server under its unit is lost: a table of facts to verdicts.
//!
//! A unit is run again only when it provably did not run, or when running it twice does no harm and
//! nobody saw its first answer. Where a commit may have happened and its answer is lost, the client
//! is told just that.
//!
//! Proof that a loss gives about a unit that began outside a transaction and was not answered:
//!
//! | loss | statement | proof |
//! |---|---|---|
//! | the Query was not written to its end | any, alone | it did not begin: `SocketBackend` (postgres.c) reads a message whole |
//! | FATAL by `ProcessInterrupts` (57P01 …) | one, in one transaction | rolled back: interrupts are held off from the commit's first record on (`CommitTransaction`, xact.c), and the words come behind every CommandComplete sent before |
//! | the same | several | none: those before the last may have committed (a COMMIT in the text, VACUUM in a pipeline) |
//! | the same | with transactions of its own: CREATE INDEX, DROP INDEX, REINDEX CONCURRENTLY, DETACH PARTITION CONCURRENTLY, VACUUM, ANALYZE, CLUSTER, REINDEX, CALL, DO | none: it leaves an invalid index, half of the tables … |
//! | the same | acts outside of its transaction: CREATE/DROP DATABASE, TABLESPACE, SUBSCRIPTION, ALTER SYSTEM, COPY to a file or a program, `pg_terminate_backend`, volatile functions of users (dblink …) | none: it may have done that before |
//! | FATAL 57P03 (`ProcessStartupPacket`) | any | the server has not read a request |
//! | the end of the connection without words | a plain read; a lone BEGIN | none is needed |
//! | the same | anything else | none: it may have committed |
//! | the node is a standby | whatever stays within its transaction | nothing commits there |
//!
//! Not seen by a text, hence taken for undone by a rollback: what triggers, rules and defaults do outside of
//! the transaction of a statement that itself stays within it.

use bytes::{BufMut, BytesMut};

use super::run::Run;
use super::unit::{Shape, Unit};
use crate::route::{Control, Effects, TransactionControl};
use crate::wire::backend::{ERROR_RESPONSE, TxStatus};
use crate::wire::{put_cstr, put_message, take_cstr};

/// Part of the unit that had been written to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// Its last message had not been written to its end.
    Partly,
    /// All.
    Whole,
}

/// Way in which the server went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The connection closed, broke, or was given up because the topology says so.
    Gone,
    /// It said why it ends: FATAL 57P01 or 57P03, or one of the client's own limits. `ProcessInterrupts`
    /// (postgres.c) raises it between or within statements, never once a commit has begun: interrupts are
    /// held off there, and a backend told to end while it waits for the sync sends a WARNING and then
    /// nothing (`SyncRepWaitForLSN`). So a single statement that was not answered has not been committed.
    Refused,
    /// It refused the unit because it is a standby, although it was taken for the primary.
    ReadOnly,
}

/// Verdict: the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Run the unit again on another server.
    Rerun,
    /// Tell 40001: nothing of it was committed; afterwards the client is in this status.
    NothingCommitted(TxStatus),
    /// Tell 08007: it may have been committed.
    InDoubt,
    /// Tell what the server said as it went: the transaction was rolled back, but not all that the statement
    /// does is undone by that.
    ServersWords,
    /// It was told an error, after which nothing of the unit runs; the client is in this status.
    Answered(TxStatus),
    /// It ends as if the server had answered with this command tag.
    Completed(&'static str),
}

/// The table.
pub(super) fn verdict(unit: &Unit, run: &Run, sent: Sent, how: How, on_standby: bool) -> Verdict {
    let nothing_seen = unit.is_here() && !run.answer.is_streaming();
    // After an error the server skips the rest of a Query's text, or all up to Sync.
    if run.errored && run.answer.is_streaming() && !run.commit_doubt {
        let idle = unit.started == TxStatus::Idle && unit.control.is_none_or(|control| control == Control::None);
        return Verdict::Answered(if idle { TxStatus::Idle } else { TxStatus::Failed });
    }
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
        TxStatus::Idle => autocommit(unit, run, sent, how, on_standby),
    }
}

/// Whether anything is won by keeping the unit's answer from the client: however its server goes from here
/// on, what the client has seen would keep the unit from being run again or completed.
pub(super) fn may_be_spared(unit: &Unit, run: &Run, on_standby: bool) -> bool {
    [How::Gone, How::Refused]
        .into_iter()
        .any(|how| matches!(verdict(unit, run, Sent::Whole, how, on_standby), Verdict::Rerun | Verdict::Completed(_)))
}

/// Whether what was done of it may outlast a rollback.
fn outlasts_rollback(unit: &Unit) -> bool {
    unit.effects.intersects(Effects::UNKNOWN.union(Effects::NOT_UNDONE))
}

fn autocommit(unit: &Unit, run: &Run, sent: Sent, how: How, on_standby: bool) -> Verdict {
    let begins = matches!(unit.alone(), Some(TransactionControl::Begin { .. }));
    let stays_within = !outlasts_rollback(unit);
    // One statement of which nothing was answered, of a server that said that it rolled it back.
    let rolled_back = sent == Sent::Whole && how == How::Refused && unit.single && !run.completed_any;
    if unit.can_rerun() && !run.answer.is_streaming() {
        let not_run = match (sent, how) {
            // The server cannot begin a Query it has not read to its end; what stands before it in the unit it can.
            (Sent::Partly, _) => unit.shape == Shape::Simple && unit.mentions <= 1,
            (Sent::Whole, How::Refused) => rolled_back && stays_within,
            (Sent::Whole, How::ReadOnly) => true,
            (Sent::Whole, How::Gone) => false,
        };
        if not_run || unit.repeatable || begins || unit.shape == Shape::Empty || on_standby && stays_within {
            return Verdict::Rerun;
        }
    }
    if unit.input.is_copy() {
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
    if unit.repeatable || on_standby && stays_within {
        return Verdict::NothingCommitted(TxStatus::Idle);
    }
    if rolled_back && !unit.commits || on_standby && how == How::Refused {
        return Verdict::ServersWords;
    }
    Verdict::InDoubt
}

/// A server's ErrorResponse as an ERROR (its connection may have ended with it, the client's goes on), with this
/// hint.
pub(super) fn as_error(words: &[u8], hint: &[u8], out: &mut BytesMut) {
    put_message(out, ERROR_RESPONSE, |out| {
        out.put_slice(b"SERROR\0VERROR\0");
        let mut rest = words;
        while let Some((&kind, after)) = rest.split_first()
            && kind != 0
            && let Some((value, after)) = take_cstr(after)
        {
            if !matches!(kind, b'S' | b'V' | b'H') {
                out.put_u8(kind);
                put_cstr(out, value);
            }
            rest = after;
        }
        out.put_u8(b'H');
        put_cstr(out, hint);
        out.put_u8(0);
    });
}

/// Reason why it was not run again.
pub(super) const HINT: &[u8] = b"It was not run again, because not all that it does is undone with its transaction. \
    Look at what it has done before you run it again.";

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    use super::super::answer::Answer;
    use super::*;
    use crate::route::Class;
    use crate::route::class::Reason;

    fn unit(started: TxStatus, class: &Class) -> Unit {
        let mut unit = Unit::default();
        unit.reset(started);
        unit.shape = Shape::Simple;
        unit.end = 5;
        unit.run(class);
        unit
    }

    /// Nothing of its answer was shown.
    fn unseen() -> Run {
        Run { answer: Answer::Withheld(Box::default()), ..Run::default() }
    }

    /// Some of it was.
    fn seen() -> Run {
        Run { answer: Answer::Streaming, ..Run::default() }
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
        let outlasting = |effects| Class { effects, ..Class::primary(Reason::Command) };
        let concurrently = outlasting(Effects::NOT_UNDONE);
        let call = outlasting(Effects::UNKNOWN);
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
            (Idle, &concurrently, whole, Verdict::InDoubt),
            (Idle, &concurrently, partly, Verdict::Rerun),
            (Idle, &concurrently, refused, Verdict::ServersWords),
            (Idle, &call, whole, Verdict::InDoubt),
            (Idle, &call, refused, Verdict::ServersWords),
            (InTransaction, &read, whole, Verdict::NothingCommitted(Failed)),
            (InTransaction, &write, whole, Verdict::NothingCommitted(Failed)),
            (InTransaction, &commit, whole, Verdict::InDoubt),
            (InTransaction, &rollback, whole, Verdict::Completed("ROLLBACK")),
            (Failed, &write, whole, Verdict::NothingCommitted(Failed)),
            (Failed, &commit, whole, Verdict::Completed("ROLLBACK")),
        ];
        for (started, class, (sent, how), expected) in table {
            assert_eq!(
                verdict(&unit(started, class), &unseen(), sent, how, false),
                expected,
                "{started:?} {class:?} {sent:?} {how:?}"
            );
        }
    }

    #[test]
    fn what_the_client_has_seen_is_not_run_again() {
        let read = unit(TxStatus::Idle, &Class::read_only());
        assert_eq!(verdict(&read, &seen(), Sent::Whole, How::Gone, true), Verdict::NothingCommitted(TxStatus::Idle));
        let mut write = unit(TxStatus::Idle, &Class::primary(Reason::Write));
        assert_eq!(verdict(&write, &seen(), Sent::Partly, How::Refused, false), Verdict::InDoubt);
        write.begin_copy();
        assert_eq!(verdict(&write, &seen(), Sent::Whole, How::Gone, false), Verdict::NothingCommitted(TxStatus::Idle));
    }

    #[test]
    fn a_commit_on_a_standby_is_never_in_doubt() {
        let commit = unit(TxStatus::InTransaction, &control(TransactionControl::Commit { chain: false }));
        assert_eq!(verdict(&commit, &unseen(), Sent::Whole, How::Gone, true), Verdict::Completed("COMMIT"));
    }

    #[test]
    fn nothing_is_won_by_withholding_what_cannot_run_again() {
        use TransactionControl::Rollback;
        use TxStatus::{Idle, InTransaction};
        let opaque = Class { effects: Effects::UNKNOWN, ..Class::primary(Reason::Opaque) };
        assert!(may_be_spared(&unit(Idle, &Class::read_only()), &unseen(), false));
        assert!(
            may_be_spared(&unit(Idle, &Class::primary(Reason::Write)), &unseen(), false),
            "it runs again after 57P01"
        );
        assert!(may_be_spared(&unit(InTransaction, &control(Rollback { chain: false })), &unseen(), false));
        assert!(!may_be_spared(&unit(Idle, &opaque), &unseen(), false));
        assert!(!may_be_spared(&unit(InTransaction, &Class::read_only()), &unseen(), false));
        let mut several = unit(Idle, &Class::primary(Reason::Write));
        several.single = false;
        assert!(!may_be_spared(&several, &unseen(), false));
    }

    #[test]
    fn what_acts_outside_of_its_transaction_is_not_run_again_on_a_standby_either() {
        let class = Class { effects: Effects::NOT_UNDONE, ..Class::primary(Reason::Node) };
        let acts = unit(TxStatus::Idle, &class);
        assert_eq!(verdict(&acts, &unseen(), Sent::Whole, How::Refused, true), Verdict::ServersWords);
        assert_eq!(verdict(&acts, &unseen(), Sent::Whole, How::Gone, true), Verdict::InDoubt);
    }

    #[test]
    fn what_stands_before_a_query_in_its_unit_may_have_run() {
        let mut two = unit(TxStatus::Idle, &Class::primary(Reason::Write));
        two.run(&Class::primary(Reason::Write));
        assert_eq!(verdict(&two, &unseen(), Sent::Partly, How::Gone, false), Verdict::InDoubt);
    }

    #[test]
    fn the_servers_words_become_an_error() {
        let mut out = BytesMut::new();
        as_error(b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0RProcessInterrupts\0\0", HINT, &mut out);
        let text = String::from_utf8_lossy(&out[5..]).replace('\0', "|");
        assert!(text.starts_with("SERROR|VERROR|C57P01|Mterminating connection|RProcessInterrupts|HIt was"), "{text}");
        assert!(text.ends_with("||"), "{text}");
        as_error(b"", HINT, &mut out);
    }

    #[test]
    fn several_statements_may_have_committed_before_the_server_refused() {
        let mut several = unit(TxStatus::Idle, &Class::primary(Reason::Write));
        several.single = false;
        assert_eq!(verdict(&several, &unseen(), Sent::Whole, How::Refused, false), Verdict::InDoubt);
    }
}
