//! Kind of server that the unit at hand needs.

use super::{Need, PINS, Session};
use crate::route::class::{Route, setting_needs_primary};
use crate::route::{Effects, Hint, TransactionControl};
use crate::terms::{Access, Mode};

impl Session {
    /// Kind of server that the unit at hand needs.
    pub(super) fn need(&self) -> Need {
        match self.kept.config.access {
            Access::PrimaryOnly => return Need::Primary,
            Access::ReadOnly => return Need::StandbyOnly,
            Access::ReadWrite => {}
        }
        if self.unit.needs_primary
            || self.unit.input.is_open()
            || !self.kept.config.split
            || self.kept.config.mode == Mode::Session
            || self.unit.effects.intersects(PINS)
            // A lock may be among what the session has left somewhere without its text saying so.
            || (self.unit.effects.intersects(Effects::ADVISORY_UNLOCK) && self.kept.mark.is_left())
        {
            return Need::Primary;
        }
        match (self.unit.hint, self.kept.route) {
            (Some(Hint::Primary), _) | (None, Route::Primary) => return Need::Primary,
            (Some(Hint::Standby), _) | (None, Route::Standby) => return Need::Standby,
            (None, Route::Auto) => {}
        }
        let begins_read_only = || {
            matches!(self.unit.alone(), Some(TransactionControl::Begin { read_only: None, serializable: false }))
                && matches!(self.kept.profile.get("default_transaction_read_only"), Some("on" | "true" | "yes" | "1"))
        };
        let needs_primary = match self.kept.profile.get("default_transaction_isolation") {
            Some(level) => setting_needs_primary("default_transaction_isolation", level),
            None => self.kept.serializable_by_default,
        };
        if (self.unit.read_only || begins_read_only()) && !needs_primary { Need::Standby } else { Need::Primary }
    }
}
