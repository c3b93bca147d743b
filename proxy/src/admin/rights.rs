//! Rights of roles on the console.

use crate::config::Admin;

/// Rights of a console's user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// SHOW.
    Look,
    /// Everything.
    Rule,
}

impl Rights {
    /// Of this role, if any.
    pub fn of(settings: &Admin, user: &str) -> Option<Self> {
        let named = |list: &[String]| list.iter().any(|name| name == user);
        if named(&settings.admin_users) {
            Some(Self::Rule)
        } else if named(&settings.stats_users) {
            Some(Self::Look)
        } else {
            None
        }
    }
}
