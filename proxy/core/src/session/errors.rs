//! A server's error: whether the unit runs again because of it, what the client is told instead, and what the server
//! will not answer any more.

use std::rc::Rc;

use bytes::BufMut;

use super::answer::Lesson;
use super::ledger::{Expect, Ledger};
use super::reply::{Fate, Fault};
use super::state::{Replay, Stage};
use super::statements::{Held, Statement};
use super::unit::{Input, Shape};
use super::{Session, Shared};
use crate::route::Hint;
use crate::route::class::Route;
use crate::wire;
use crate::wire::backend::{self, ErrorFields};

impl Session {
    pub(super) fn error(&mut self, body: &[u8], shared: &mut Shared) -> Result<Fate, Fault> {
        let fields = ErrorFields::read(body);
        if fields.is_fatal() {
            let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
            let (severity, code, message) = (text(fields.severity), text(fields.code), text(fields.message));
            if let Some(link) = self.state.link_mut() {
                link.exchange.last_words = Some(body.into());
            }
            return Err(Fault::Fatal { severity, code, message });
        }
        match self.head() {
            Some(Expect::Injected | Expect::Probe) => {
                match self.state.stage_mut() {
                    Some(Stage::Replaying(Replay::Settings(_, refused))) => *refused = Some(body.into()),
                    Some(Stage::Probing(findings)) => findings.fail(),
                    _ => {}
                }
                return Ok(Fate::Swallow);
            }
            Some(Expect::Restored) => return Ok(Fate::Swallow),
            None | Some(Expect::Left | Expect::Begun) => return Err(Fault::Unexpected('E')),
            _ => {}
        }
        if self.is_describing() {
            self.end_waiting();
        }
        let rerun = self.rerun_for(&fields, shared)?;
        let renamed = self.with_clients_name(body);
        let refused = self.skip_failed();
        self.unit.end_copy();
        if let Some(run) = self.state.run_mut() {
            run.errored = true;
            if run.placeholders {
                // They may be left.
                self.discard_afterwards();
            }
        }
        if let Some(lesson) = rerun {
            self.discard_answer(lesson);
        }
        if self.state.answer().is_swallowed() {
            return Ok(Fate::Swallow);
        }
        self.show();
        if let Some(error) = refused {
            self.before.put_slice(&error);
            return Ok(Fate::Swallow);
        }
        if let Some(fields) = renamed {
            wire::put_message(&mut self.before, backend::ERROR_RESPONSE, |out| out.put_slice(&fields));
            return Ok(Fate::Swallow);
        }
        Ok(Fate::Forward)
    }

    /// An error of a Bind, if it names a statement as the server does (`exec_bind_message` in postgres.c).
    fn with_clients_name(&self, fields: &[u8]) -> Option<Vec<u8>> {
        let Some(Expect::Bind { statement: Some(statement), .. }) = self.head() else { return None };
        let name = self.kept.statements.name_of(statement)?;
        super::statements::with_clients_name(fields, name)
    }

    /// Whether the unit shall run again, on the primary, because of this error; what is learned from that.
    fn rerun_for(&mut self, fields: &ErrorFields<'_>, shared: &mut Shared) -> Result<Option<Lesson>, Fault> {
        // A Query that ends a pipeline is skipped with it, and its end does not come before the next Sync.
        let skipped = self.unit.shape == Shape::Simple && !matches!(self.head(), Some(Expect::Query));
        let moves = self.may_still_move();
        if !moves && (!self.state.answer().is_withheld() || !self.unit.can_rerun()) || skipped {
            return Ok(None);
        }
        let on_standby = self.state.is_on_standby();
        match fields.code {
            b"0A000" if on_standby && fields.routine == b"GetSerializableTransactionSnapshot" => {
                self.kept.serializable_by_default = true;
                Ok((self.kept.config.access == crate::terms::Access::ReadWrite).then_some(Lesson::Nothing))
            }
            b"25006" if moves => Ok(Some(Lesson::Nothing)),
            b"25006" if on_standby => {
                // Not for who asked for a standby: then it is an answer.
                let asked = self.kept.config.access == crate::terms::Access::ReadOnly
                    || self.unit.hint == Some(Hint::Standby)
                    || (self.unit.hint.is_none() && self.kept.route == Route::Standby);
                if asked {
                    return Ok(None);
                }
                Ok(Some(self.learn_writes(shared)))
            }
            b"25006" => {
                let standby = self.state.server().and_then(|server| server.parameter("in_hot_standby")) == Some("on");
                if standby { Err(Fault::ReadOnlyPrimary) } else { Ok(None) }
            }
            // Conflicts with recovery (manual, section 27.4.2), and what hot standby cannot do.
            // An internal error (XX000) is what remains for what recovery cannot do (GetNewTransactionId).
            // What is not there (42P01 …), or not granted, may be on the primary: just created, or of this
            // session alone.
            // Nor does a standby know a role (22023) or a value of an enum (22P02) before it has replayed them.
            b"40001"
            | b"40P01"
            | b"57P04"
            | b"0A000"
            | b"55000"
            | b"XX000"
            | b"3F000"
            | b"22023"
            | b"22P02"
            | [b'4', b'2', ..]
                if on_standby && self.kept.config.access == crate::terms::Access::ReadWrite =>
            {
                Ok(Some(Lesson::Nothing))
            }
            _ => Ok(None),
        }
    }

    /// Sees to it that the text which failed is not sent to a standby again.
    fn learn_writes(&mut self, shared: &mut Shared) -> Lesson {
        if let Some(Expect::Execute { .. } | Expect::Bind { .. }) = self.head()
            && let Some(statement) = self.last_bound.take()
        {
            shared.classifier.learn_writes(statement.text(), self.kept.sql);
            // The client's names lead to the old class: let it be found anew.
            return Lesson::Statement(statement);
        }
        if self.unit.class.is_some() { Lesson::Text } else { Lesson::Nothing }
    }

    /// Strikes what the server will not answer after an error. Returns the words to use instead of
    /// the server's.
    fn skip_failed(&mut self) -> Option<Box<[u8]>> {
        match self.head() {
            Some(Expect::Query) => return None,
            Some(Expect::RefusedQuery(words)) => return Some(words.clone()),
            _ => {}
        }
        let mut words = None;
        let mut first = true;
        while let Some(skipped) = self.state.ledger_mut().and_then(Ledger::pop_skipped) {
            match skipped {
                Expect::Parse { held, name } if name.is_empty() => {
                    // exec_parse_message drops the old unnamed statement first.
                    if first {
                        self.define(name, None);
                    }
                    self.forget_unnamed(&held.statement);
                }
                Expect::InjectedUnnamed(statement) => self.forget_unnamed(&statement),
                Expect::Parse { held: Held { statement, .. }, .. } | Expect::InjectedParse(statement) => {
                    if let Some(server) = self.state.server_mut() {
                        server.prepared.remove(statement.id());
                    }
                }
                // It was not compared.
                Expect::Compare(statement) => {
                    if let Some(server) = self.state.server_mut() {
                        server.prepared.supersede(statement.id());
                        server.unnamed = None;
                    }
                }
                Expect::InjectedClose(Some(name)) => {
                    if let Some(server) = self.state.server_mut() {
                        server.prepared.not_closed(name);
                    }
                }
                Expect::Refused(error) if first => words = Some(error),
                _ => {}
            }
            first = false;
        }
        if !self.is_outstanding() {
            // The unit ended with a Query, which the server skips like everything up to Sync.
            self.unit.input = Input::SkipToSync;
        }
        words
    }

    fn forget_unnamed(&mut self, statement: &Rc<Statement>) {
        if let Some(server) = self.state.server_mut()
            && server.unnamed.as_ref().is_some_and(|has| Rc::ptr_eq(&has.statement, statement))
        {
            server.unnamed = None;
        }
    }
}
