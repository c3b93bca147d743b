//! The end of a unit: what it leaves behind on the server and in the session, and whether the
//! server can be given back.

use std::rc::Rc;

use bytes::BytesMut;

use super::answer::{Answer, Lesson};
use super::profile::{Profile, Profiles};
use super::state::{Link, Stage, Then};
use super::{Cleanup, PINS, ServerState, Session, Shared, dispatch};
use crate::route::class::{Deallocate, Scope, SettingChange};
use crate::route::{Class, Control, Effects, TransactionControl};
use crate::terms::Mode;
use crate::wire::backend::TxStatus;
use crate::wire::{self, frontend};

impl Session {
    /// After ReadyForQuery.
    pub(super) fn finish(&mut self, rx: &mut BytesMut, shared: &mut Shared) {
        let Some((Link { server, served_by, .. }, run)) = self.state.at_run() else { return };
        let effects = self.unit.effects;
        // What was refused has done nothing; what stood in front of it may have, and is asked about.
        let effects = if run.refusal.is_some() { effects.both(super::probe::ASKED) } else { effects };
        taint(server, effects);
        if let Answer::Discarded(lesson) = &mut run.answer {
            let lesson = std::mem::take(lesson);
            self.learn(lesson, rx, shared);
            return self.run_again();
        }
        let (errored, served_by) = (run.errored, *served_by);
        self.consume(rx);
        self.pin(effects, errored, shared);
        self.doubt_settings();
        self.doubt_pins(effects, errored);
        let idle = self.status == TxStatus::Idle;
        self.sets = !idle && (self.sets || self.unit.sets);
        if idle {
            self.portals.clear();
            self.end_transaction(errored, shared);
            self.news.used(served_by);
        }
        self.end_opening();
        self.unit.reset(self.status);
        let may_leave = idle && self.kept.config.mode == Mode::Transaction;
        if may_leave && self.start_probe() {
            return;
        }
        if may_leave && self.pins.is_empty() {
            return self.go_attached(Stage::Releasing(Then::Gather));
        }
        self.go_gather();
    }

    /// A text that changes the session was run to its end.
    pub(super) fn stage(&mut self, class: Rc<Class>) {
        if !class.deallocates.is_empty() {
            self.doubts.pins.insert(Effects::PREPARE_SQL);
        }
        // Not undone by a rollback.
        for deallocate in &class.deallocates {
            match deallocate {
                Deallocate::Name(name) => {
                    self.kept.statements.remove(name.as_bytes());
                }
                Deallocate::All => {
                    self.kept.statements.clear();
                    if let Some(server) = self.state.server_mut() {
                        server.prepared.clear();
                    }
                }
            }
        }
        if dispatch::changes_session(&class) {
            self.staged.push(class);
        }
    }

    fn pin(&mut self, effects: Effects, errored: bool, shared: &mut Shared) {
        const UNDONE_BY_ROLLBACK: Effects =
            Effects::TEMP_OBJECT.union(Effects::LISTEN).union(Effects::HOLD_CURSOR).union(Effects::SETTINGS_UNKNOWN);
        let rolled_back = errored && self.unit.started == TxStatus::Idle && !self.unit.commits;
        let kept = if rolled_back { effects.minus(UNDONE_BY_ROLLBACK) } else { effects };
        // What is not a pin is masked out by taking away everything else.
        let others = kept.minus(PINS);
        self.pins.insert(kept.minus(others));
        if effects.intersects(Effects::UNREAD) {
            self.doubt_everything();
        }
        if effects.intersects(Effects::SETTINGS_DOUBT) {
            self.pins.insert(Effects::SETTINGS_DOUBT);
            self.discard_afterwards();
        }
        // What is created where temporary objects come first is temporary without saying so.
        if effects.intersects(Effects::DDL.union(Effects::UNKNOWN))
            && self.kept.profile.get("search_path").is_some_and(|path| path.trim_start().starts_with("pg_temp"))
        {
            self.pins.insert(Effects::TEMP_OBJECT);
            self.doubts.pins.insert(Effects::TEMP_OBJECT);
            self.discard_afterwards();
        }
        // In session mode the server is its own anyway.
        if effects.intersects(Effects::MAY_SET) && !rolled_back && self.kept.config.mode == Mode::Transaction {
            let known = shared.classifier.catalog().map_or(&[][..], |catalog| catalog.custom_settings());
            self.doubts.add_names(self.unit.may_set.drain(..).chain(known.iter().cloned()));
            self.pins.insert(Effects::SETTINGS_DOUBT);
        }
        if self.unit.leaves_traces {
            if let Some(server) = self.state.server_mut() {
                server.owner = self.kept.mark.leave();
            }
            if shared.sequences_are_read {
                self.pins.insert(Effects::SEQUENCE_READ);
            }
        }
        if !errored {
            if effects.intersects(Effects::DISCARD_SEQUENCES) {
                self.pins = self.pins.minus(Effects::SEQUENCE_READ);
            }
            if effects.intersects(Effects::UNLISTEN_ALL) {
                self.pins = self.pins.minus(Effects::LISTEN);
            }
            if effects.intersects(Effects::DISCARD_TEMP) {
                self.pins = self.pins.minus(Effects::TEMP_OBJECT);
            }
        }
    }

    /// The server is cleaned before another session gets it.
    pub(super) fn discard_afterwards(&mut self) {
        if let Some(server) = self.state.server_mut() {
            server.cleanup = server.cleanup.max(Cleanup::DiscardAll);
        }
    }

    /// Leaves the settings in doubt: where it cannot be known which changes survived, only this server knows them.
    fn doubt_settings(&mut self) {
        if self.staged.is_empty() {
            return;
        }
        let unclear =
            matches!(self.unit.control, Some(Control::Mixed { .. } | Control::Alone(TransactionControl::Savepoint)));
        if unclear {
            self.pins.insert(Effects::SETTINGS_DOUBT);
            let names = self.staged.iter().flat_map(|class| &class.settings).filter_map(|change| match change {
                SettingChange::Set { name, .. } if name.contains('.') => Some(name.clone()),
                _ => None,
            });
            self.doubts.add_names(names);
            self.discard_afterwards();
        }
    }

    fn end_transaction(&mut self, errored: bool, shared: &mut Shared) {
        if self.staged.is_empty() {
            return;
        }
        let alone = self.unit.started == TxStatus::Idle && matches!(self.unit.control, None | Some(Control::None));
        let committed = if alone { !errored } else { self.kept.ended_by_commit };
        let staged = std::mem::take(&mut self.staged);
        if committed {
            for class in &staged {
                self.apply(class, shared);
            }
            self.kept.read_sql_context();
        }
        self.staged = staged;
        self.staged.clear();
    }

    fn apply(&mut self, class: &Class, shared: &mut Shared) {
        let profiles = &mut shared.profiles;
        if class.effects.intersects(Effects::DISCARD_ALL) {
            self.kept.profile = self.kept.startup.clone();
            // What is loaded stays.
            self.pins = self.pins.minus(self.pins.minus(Effects::LOAD));
            // Not the unnamed one (`DiscardAll` in discard.c); a Query has dropped it before.
            self.kept.statements.clear();
            if let Some(server) = self.state.server_mut() {
                let cleanup = server.cleanup;
                server.discarded(profiles);
                server.cleanup = if cleanup == Cleanup::Close { cleanup } else { Cleanup::None };
            }
            return;
        }
        for change in &class.settings {
            match change {
                // Decides what else may be set, and how: not replayed.
                SettingChange::Set { name, scope: Scope::Session, .. } if **name == *"session_authorization" => {
                    self.pins.insert(Effects::ROLE);
                }
                SettingChange::Reset { name, scope: Scope::Session } if **name == *"session_authorization" => {
                    self.pins = self.pins.minus(Effects::ROLE);
                }
                _ => {}
            }
        }
        // What the server reports says more than the text: `SET datestyle = 'ymd'` sets one half of it.
        // (After a RESET it reports its own default, not what the session began with.)
        let sets = |wanted: &str| {
            let last = class.settings.iter().rev().find_map(|change| match change {
                SettingChange::Set { name, scope: Scope::Session, .. } if **name == *wanted => Some(true),
                SettingChange::Reset { name, scope: Scope::Session } if **name == *wanted => Some(false),
                SettingChange::ResetAll => Some(false),
                _ => None,
            });
            last == Some(true)
        };
        let told = |profile: Rc<Profile>, profiles: &mut Profiles| {
            self.kept.reported.entries().fold(profile, |profile, (name, value)| {
                let name = name.to_ascii_lowercase();
                // Reported, but not replayed: the session stays on its server.
                let is_replayed = name != "session_authorization";
                if is_replayed && sets(&name) { profiles.with(&profile, &name, value) } else { profile }
            })
        };
        let wanted = profiles.apply(&self.kept.profile, &class.settings, &self.kept.startup);
        self.kept.profile = told(wanted, profiles);
        if let Some(server) = self.state.server_mut() {
            let nothing = profiles.empty();
            let has = profiles.apply(&server.profile, &class.settings, &nothing);
            server.profile = told(has, profiles);
        }
    }

    /// A standby refused the unit as a write: its texts are read anew.
    fn learn(&mut self, lesson: Lesson, rx: &BytesMut, shared: &mut Shared) {
        let old = match lesson {
            Lesson::Nothing => return,
            Lesson::Statement(old) => old,
            Lesson::Text => {
                if let Ok(Some((header, body))) = wire::complete(rx)
                    && header.tag == frontend::QUERY
                    && let Ok(text) = frontend::query_text(body)
                {
                    shared.classifier.learn_writes(text, self.kept.sql);
                }
                return;
            }
        };
        let Shared { classifier, interner, .. } = shared;
        let class = classifier.classify(old.text(), self.kept.sql);
        let parsed = self.unit.parses.iter_mut().map(|(_, statement)| statement);
        let held = self.kept.statements.held_mut().chain(&mut self.kept.unnamed).map(|held| &mut held.statement);
        for statement in parsed.chain(held).filter(|statement| statement.is_of(&old)) {
            *statement = interner.reclassified(statement, &class);
        }
    }
}

fn taint(server: &mut ServerState, effects: Effects) {
    if effects.intersects(Effects::LOAD) {
        server.cleanup = Cleanup::Close;
    } else if effects.intersects(Effects::TAINTS) {
        server.cleanup = server.cleanup.max(Cleanup::DiscardAll);
    }
}
