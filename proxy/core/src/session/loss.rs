//! Loss of a session's server: by the session's state, and by the table in [`lost`].

use std::mem;

use bytes::{BufMut, BytesMut};

use super::answer::Answer;
use super::lost::{self, How, Sent, Verdict};
use super::moving::Opening;
use super::reply::{self, Passing};
use super::run::{Course, Run};
use super::state::{Stage, State, Then};
use super::{ServedBy, Session};
use crate::error::ProxyError;
use crate::route::Effects;
use crate::wire::backend::{self, TxStatus};
use crate::wire::put_message;

/// Facts about a server that is lost.
struct Lost {
    sent: Sent,
    how: How,
    on_standby: bool,
    passing: Option<Passing>,
    words: Option<Box<[u8]>>,
}

impl Session {
    /// The server is gone, or was given up; the driver has closed it.
    pub fn server_lost(&mut self, how: How, rx: &mut BytesMut) {
        let sent = if self.to_server.is_empty() { Sent::Whole } else { Sent::Partly };
        self.to_server.clear();
        // Until it is known what follows: reading, without a server.
        let (mut link, stage) = match mem::replace(&mut self.state, State::Gathering(None)) {
            State::Attached(link, stage) => (link, Some(stage)),
            State::Gathering(Some(link)) => (link, None),
            elsewhere => return self.lose_unused(elsewhere),
        };
        self.lose_ties();
        let lost = Lost {
            sent,
            how,
            on_standby: link.served_by == ServedBy::Standby,
            passing: link.exchange.passing.take(),
            words: link.exchange.last_words.take(),
        };
        self.drop_link(link);
        if self.is_own_end(lost.words.as_deref()) || !self.pins.is_empty() {
            if lost.passing.is_some() {
                self.to_client.clear();
                return self.go_end();
            }
            return self.end_with_words(lost.words.as_deref());
        }
        match stage {
            // A lost transaction is told when the client next asks for something of it.
            None | Some(Stage::Probing(_) | Stage::Releasing(Then::Gather)) => {}
            Some(Stage::Releasing(Then::SkipToSync)) => self.go_skip(),
            Some(Stage::Releasing(Then::Wait)) => self.go_elsewhere(),
            Some(Stage::Preparing | Stage::Replaying(_) | Stage::Refused(_))
                if self.unit.started == TxStatus::Idle || self.opening.is_moving() =>
            {
                self.unit.rewind();
                self.go_elsewhere();
            }
            Some(Stage::Preparing | Stage::Replaying(_) | Stage::Refused(_)) => {
                self.opening = Opening::Never;
                self.tell(&ProxyError::TransactionLost, TxStatus::Failed, rx);
            }
            Some(Stage::Running(mut run)) => {
                self.lose_run(&mut run, &lost, rx);
                self.spare.keep_run(run);
            }
        }
    }

    /// A server was lost that the unit at hand, if any, does not use.
    fn lose_unused(&mut self, state: State) {
        self.lose_ties();
        self.state = state;
        if let Some(link) = self.state.take_link() {
            self.drop_link(link);
        }
    }

    /// Forgets the state that the session has had on the server that is lost.
    fn lose_ties(&mut self) {
        if self.status != TxStatus::Idle {
            // What the transaction may have set is rolled back.
            self.pins = self.pins.minus(Effects::SETTINGS_DOUBT);
            self.doubts.forget_names();
        }
        // Sequence values are gone with it: whoever asks for them is told that there are none.
        self.pins = self.pins.minus(Effects::SEQUENCE_READ);
    }

    /// The server of a unit that was sent, or was about to be, is lost.
    fn lose_run(&mut self, run: &mut Run, lost: &Lost, rx: &mut BytesMut) {
        match run.course {
            Course::Answered => {
                self.consume(rx);
                // It was answered, so it happened; only the server's own state is lost.
                return self.unit.reset(self.status);
            }
            // Nothing had been executed, at most was the server asked what a statement returns.
            Course::Starting | Course::Describing | Course::Resuming if self.unit.can_rerun() && !run.executed => {
                return self.rerun_lost(run);
            }
            _ => {}
        }
        self.opening = Opening::Never;
        if run.answer.is_discarded() && self.unit.started == TxStatus::Idle {
            return self.rerun_lost(run);
        }
        if lost.passing.is_some_and(Passing::is_forwarded) {
            // The client is in the middle of a message: no error fits there.
            self.to_client.clear();
            return self.go_end();
        }
        if matches!(run.answer, Answer::ErrorSent) {
            backend::put_ready(&mut self.to_client, TxStatus::Idle);
            return self.forget_unit(TxStatus::Idle, rx);
        }
        match lost::verdict(&self.unit, run, lost.sent, lost.how, lost.on_standby) {
            Verdict::Rerun => self.rerun_lost(run),
            Verdict::NothingCommitted(status) => self.tell(&ProxyError::TransactionLost, status, rx),
            Verdict::InDoubt => self.tell(&ProxyError::CommitInDoubt, TxStatus::Idle, rx),
            Verdict::Answered(status) => self.end_told(status, rx),
            Verdict::ServersWords => {
                let mut error = BytesMut::new();
                lost::as_error(lost.words.as_deref().unwrap_or_default(), lost::HINT, &mut error);
                self.tell_words(&error, TxStatus::Idle, rx);
            }
            Verdict::Completed(tag) => self.complete_lost(tag, rx),
        }
    }

    /// Its unit runs again elsewhere: nothing that was answered is known any more.
    fn rerun_lost(&mut self, run: &mut Run) {
        if let Answer::Withheld(withheld) = &mut run.answer {
            withheld.undo(&mut self.kept);
        }
        self.run_again();
    }

    /// Whether the server ended the connection because of a limit that the client has set itself, or that is
    /// set for its role: then its connection ends, as without the proxy. Between two transactions a server
    /// that is nobody's is idle.
    fn is_own_end(&self, words: Option<&[u8]>) -> bool {
        let limit = words.is_some_and(|words| reply::is_own_limit(backend::ErrorFields::read(words).code));
        let is_idle_pooled = self.status == TxStatus::Idle
            && self.pins.is_empty()
            && words.is_some_and(|words| backend::ErrorFields::read(words).code == b"57P05");
        limit && !is_idle_pooled
    }

    /// The session ends with its server, in that one's words if it said any.
    fn end_with_words(&mut self, words: Option<&[u8]>) {
        let Some(words) = words else {
            return self.end_with(&ProxyError::SessionLost);
        };
        self.news.servers_error(backend::ErrorFields::read(words).code);
        put_message(&mut self.to_client, backend::ERROR_RESPONSE, |out| out.put_slice(words));
        self.go_end();
    }
}
