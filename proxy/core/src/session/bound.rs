//! Bonds of a session to its server beyond a transaction, and its error when there is no room for them: a
//! pool keeps a share of its connections for sessions that are bound to none.

use bytes::BytesMut;

use super::Session;
use super::state::{Stage, State};
use crate::error::ProxyError;
use crate::route::Effects;
use crate::terms::Mode;

/// Causes of a bond, by the names that the metrics have.
pub const CAUSES: [(Effects, &str); 9] = [
    (Effects::TEMP_OBJECT, "temporary_objects"),
    (Effects::ADVISORY_LOCK, "advisory_locks"),
    (Effects::LISTEN, "listen"),
    (Effects::HOLD_CURSOR, "held_cursors"),
    (Effects::PREPARE_SQL, "sql_prepare"),
    (Effects::SETTINGS_UNKNOWN, "unknown_settings"),
    (Effects::SEED, "setseed"),
    (Effects::LOAD, "load"),
    (Effects::ROLE, "session_authorization"),
];

/// All of them. SET ROLE, which has the same effect as SET SESSION AUTHORIZATION, is carried from server to server.
const BINDING: Effects = Effects::TEMP_OBJECT
    .union(Effects::ADVISORY_LOCK)
    .union(Effects::LISTEN)
    .union(Effects::HOLD_CURSOR)
    .union(Effects::PREPARE_SQL)
    .union(Effects::SETTINGS_UNKNOWN)
    .union(Effects::SEED)
    .union(Effects::LOAD);

/// Server connections of a pool that sessions are bound to, and how many it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Crowd {
    /// Bound.
    pub bound: usize,
    /// At most, bound or not.
    pub size: usize,
}

impl Session {
    /// Effects that bind the session to its server, or surely will once what runs is over. `before`: what this gave
    /// last. With a server for each session, by nothing.
    pub fn bound_by(&self, before: Effects) -> Effects {
        if self.kept.config.mode == Mode::Session || self.state.link().is_none() {
            return Effects::NONE;
        }
        // What is being asked about is as it was.
        let asked = match &self.state {
            State::Attached(_, Stage::Probing(findings)) => findings.asked().minus(before),
            _ => Effects::NONE,
        };
        let lasting = self.pins.both(BINDING.union(Effects::ROLE)).minus(asked);
        match self.state.run().is_some_and(|run| run.refusal.is_some()) {
            true => lasting,
            false => lasting.union(self.surely_binds()),
        }
    }

    /// Effects that the unit at hand makes, if it is not refused. A lock may not be got, and a search path that begins
    /// with the temporary schema creates nothing: of these it is seen afterwards.
    fn surely_binds(&self) -> Effects {
        let effects = self.unit.effects.both(BINDING).minus(Effects::ADVISORY_LOCK);
        if self.unit.effects.intersects(Effects::DDL) { effects } else { effects.minus(Effects::TEMP_OBJECT) }
    }

    /// Says whether the session may bind itself to the server it has: not if so many are bound already.
    pub fn set_crowd(&mut self, crowd: Option<Crowd>) {
        if let Some(link) = self.state.link_mut() {
            link.exchange.crowd = crowd;
        }
    }

    /// Decides whether the unit at hand is refused because it would bind the session. In a transaction too: its
    /// server has to fail in its place.
    pub(super) fn refuse_to_bind(&mut self) {
        let Some((link, run)) = self.state.at_run() else { return };
        let Some(Crowd { bound, size }) = link.exchange.crowd else { return };
        let binds = self.unit.effects.intersects(BINDING) && !self.pins.intersects(BINDING);
        if !binds || self.kept.config.mode == Mode::Session {
            return;
        }
        let error = ProxyError::TooManyBound { bound, size };
        self.news.error(&error);
        let mut words = BytesMut::new();
        error.encode(&mut words);
        run.refusal = Some(words[..].into());
    }
}
