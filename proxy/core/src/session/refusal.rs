//! Treatment of a server's refusal of a session's settings.
//!
//! A server may refuse because of what it has been through before (a timeout of the session before, a cancel that
//! was meant for it, temporary tables, loaded libraries): then it is unfit, and another one is asked. A standby may
//! not know yet what a setting names (a role, a schema): then the primary is asked. What remains is the session's
//! own: its statement is answered by the server's words, as each statement is without the proxy while, say, its
//! role is gone. The session goes on, and can change the setting.

use std::rc::Rc;

use bytes::BytesMut;

use super::profile::Profile;
use super::state::{Stage, State, Then};
use super::unit::Unit;
use super::{Cleanup, Session, Shared, lost};
use crate::route::Effects;
use crate::terms::{Access, Mode};
use crate::wire::backend::ErrorFields;

/// Servers that are asked for one statement, at most: each costs a connection if it is the session's fault after all.
const MOST_SERVERS: u8 = 3;

/// Next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Ask the same server again.
    Again,
    /// Ask the primary; this one is fit.
    Primary,
    /// Ask another one; this one is not fit.
    Other,
    /// Tell the client.
    Tell,
}

/// Facts about a refusal.
#[derive(Clone, Copy, Debug)]
struct Facts<'a> {
    code: &'a [u8],
    /// The primary may be asked instead.
    on_standby: bool,
    /// Refusals of this unit's settings before.
    before: u8,
    /// The same settings were refused for good before.
    known: bool,
    /// The session cannot have another server.
    bound: bool,
}

impl Facts<'_> {
    /// It says something of a value, a name or a right (classes 22 and 42).
    fn is_about_value(self) -> bool {
        matches!(self.code, [b'2', b'2', ..] | [b'4', b'2', ..])
    }

    /// It says that the transaction was broken off: nothing of the settings.
    fn is_broken_off(self) -> bool {
        matches!(self.code, b"57014" | b"40001" | b"40P01")
    }

    fn next(self) -> Next {
        if self.is_broken_off() && self.before == 0 {
            return Next::Again;
        }
        if self.bound {
            return Next::Tell;
        }
        if self.is_about_value() && self.on_standby {
            return Next::Primary;
        }
        if self.before + 1 >= MOST_SERVERS || self.is_about_value() && self.known {
            return Next::Tell;
        }
        Next::Other
    }
}

impl Session {
    /// The settings that the server has to have for the unit at hand.
    pub(super) fn wanted_settings(&self, shared: &mut Shared) -> Rc<Profile> {
        let Unit { without_own, effects, changes, .. } = &self.unit;
        match without_own {
            false => self.kept.profile.clone(),
            true if effects.intersects(Effects::DISCARD_ALL) => shared.profiles.empty(),
            true => shared.profiles.without(&self.kept.profile, changes),
        }
    }

    /// The server has refused the settings, in these words. It has the settings it had: all or nothing.
    pub(super) fn settings_refused(&mut self, words: Box<[u8]>, shared: &mut Shared) {
        let code = ErrorFields::read(&words).code;
        let known = self.kept.refused.as_ref().is_some_and(|refused| Rc::ptr_eq(refused, &self.kept.profile));
        let facts = Facts {
            code,
            on_standby: self.state.is_on_standby() && self.kept.config.access != Access::ReadOnly,
            before: self.unit.refusals,
            known,
            bound: !self.pins.is_empty(),
        };
        match facts.next() {
            Next::Again => {
                self.unit.refusals += 1;
                self.go_attached(Stage::Preparing);
            }
            Next::Primary => {
                self.unit.needs_primary = true;
                self.go_elsewhere();
            }
            Next::Other => {
                self.unit.refusals += 1;
                if let Some(server) = self.state.server_mut() {
                    server.cleanup = Cleanup::Close;
                }
                self.go_elsewhere();
            }
            Next::Tell => {
                if facts.is_about_value() {
                    self.kept.refused = Some(self.kept.profile.clone());
                }
                // A statement that is about the setting itself (RESET ROLE) does without what was there before.
                let own = self.unit.single && !self.unit.changes.is_empty() && !self.unit.without_own;
                self.unit.without_own = own;
                if own && !Rc::ptr_eq(&self.wanted_settings(shared), &self.kept.profile) {
                    return self.go_attached(Stage::Preparing);
                }
                self.go_attached(Stage::Refused(words));
            }
        }
    }

    /// Tells the client what was refused.
    pub(super) fn tell_refused(&mut self, rx: &mut BytesMut) {
        let Some(Stage::Refused(words)) = self.state.stage_mut() else { return };
        let words = std::mem::take(words);
        let mut error = BytesMut::new();
        lost::as_error(&words, HINT, &mut error);
        let status = self.fail_moving();
        self.tell_words(&error, status, rx);
        if self.kept.config.mode == Mode::Session || !self.pins.is_empty() {
            return;
        }
        let then = if self.is_gathering() { Then::Gather } else { Then::SkipToSync };
        if let Some(link) = self.leave_state() {
            self.state = State::Attached(link, Stage::Releasing(then));
        }
    }
}

/// Hint for the client.
const HINT: &[u8] = b"The server refused a setting of this session, so the statement was not run: \
    change the setting with SET or RESET.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_is_at_fault_first() {
        let facts = |code: &'static str, on_standby, before| Facts {
            code: code.as_bytes(),
            on_standby,
            before,
            known: false,
            bound: false,
        };
        let table = [
            (facts("57014", true, 0), Next::Again),
            (facts("57014", true, 1), Next::Other),
            (facts("57014", false, 2), Next::Tell),
            (facts("22023", true, 0), Next::Primary),
            (facts("22023", false, 0), Next::Other),
            (facts("22023", false, 2), Next::Tell),
            (facts("0A000", true, 0), Next::Other),
            (Facts { known: true, ..facts("22023", false, 0) }, Next::Tell),
            (Facts { known: true, ..facts("22023", true, 0) }, Next::Primary),
            (Facts { known: true, ..facts("0A000", false, 0) }, Next::Other),
            (Facts { bound: true, ..facts("22023", false, 0) }, Next::Tell),
            (Facts { bound: true, ..facts("57014", false, 0) }, Next::Again),
        ];
        for (facts, expected) in table {
            assert_eq!(facts.next(), expected, "{facts:?}");
        }
    }
}
