//! ReadyForQuery: the end of a unit's answer, or of what the proxy itself has asked.

use std::mem;

use super::answer::Answer;
use super::ledger::Expect;
use super::reply::{Fate, Fault, is_told};
use super::run::Course;
use super::state::{Link, Replay, Stage, State};
use super::{Session, Shared, dispatch};
use crate::error::ProxyError;
use crate::wire::backend::{self, TxStatus};

impl Session {
    pub(super) fn ready(&mut self, body: &[u8], shared: &mut Shared) -> Result<Fate, Fault> {
        let status = TxStatus::read(body)?;
        match self.pop() {
            Some(Expect::Probe) => {
                if status != TxStatus::Idle {
                    return Err(Fault::Unexpected('Z'));
                }
                self.end_probe(shared);
                return Ok(Fate::Swallow);
            }
            Some(Expect::Injected) => {
                if status != TxStatus::Idle {
                    return Err(Fault::Unexpected('Z'));
                }
                self.replayed(shared);
                return Ok(Fate::Swallow);
            }
            Some(Expect::Left) if status == TxStatus::Idle => {
                self.go_elsewhere();
                return Ok(Fate::Swallow);
            }
            Some(Expect::Begun) if status == TxStatus::InTransaction => {
                self.moved();
                return Ok(Fate::Swallow);
            }
            Some(Expect::Restored) if !self.is_outstanding() => {
                self.status = status;
                self.set_course(Course::Answered);
                return Ok(Fate::Forward);
            }
            Some(Expect::Sync) if !self.is_outstanding() => {}
            // A Query drops the unnamed statement, also one parsed in the same unit.
            Some(Expect::Query | Expect::RefusedQuery(_)) if !self.is_outstanding() => {
                if self.unit.class.is_some() {
                    self.kept.unnamed = None;
                }
            }
            _ => return Err(Fault::Unexpected('Z')),
        }
        if self.state.answer().is_discarded() {
            if status != TxStatus::Idle {
                self.leave_standby_again();
                return Ok(Fate::Swallow);
            }
            // The server is fit; only this unit has to go elsewhere.
            self.set_course(Course::Answered);
            self.status = status;
            return Ok(Fate::Swallow);
        }
        self.show();
        self.tell_commit_doubt();
        self.set_answer(Answer::Streaming);
        if let Some(class) = self.unit.class.clone()
            && self.state.run().is_some_and(|run| !run.errored)
            && dispatch::changes_session(&class)
        {
            self.stage(class);
        }
        if self.restore_startup(status) {
            return Ok(Fate::Swallow);
        }
        self.status = status;
        self.set_course(Course::Answered);
        Ok(Fate::Forward)
    }

    /// A commit that its sync has not confirmed is told as that. Whether there was one.
    pub(super) fn tell_commit_doubt(&mut self) -> bool {
        let told = self.state.run_mut().is_some_and(|run| mem::take(&mut run.commit_doubt));
        if told {
            self.news.error(&ProxyError::CommitNotReplicated);
            ProxyError::CommitNotReplicated.encode(&mut self.before);
        }
        told
    }

    /// The server has taken the session's settings, or refused them.
    fn replayed(&mut self, shared: &mut Shared) {
        let State::Attached(Link { server, .. }, Stage::Replaying(Replay::Settings(wanted, refused))) = &mut self.state
        else {
            return;
        };
        if let Some(words) = refused.take() {
            return self.settings_refused(words, shared);
        }
        self.kept.refused = None;
        server.profile = wanted.clone();
        for (name, value) in server.parameters.iter().filter(|(name, _)| is_told(name)) {
            if self.kept.reported.get(name) != Some(value) {
                self.kept.reported = shared.profiles.with(&self.kept.reported, name, value);
                backend::put_parameter_status(&mut self.to_client, name.as_bytes(), value.as_bytes());
            }
        }
        self.begin_or_dispatch();
    }
}
