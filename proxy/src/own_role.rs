//! The proxy's own role, by which it looks up verifiers, follows the nodes and reads the functions of databases: its
//! passwords, and the servers that refuse them.
//!
//! A change of password needs no moment at which file and database change together: the file may hold the new one
//! and the one before, and both are tried. A reload replaces them everywhere at once. A refusal is logged once per
//! node and cause, counted each time, and shown until a login succeeds.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use manatee_shared::config::{self, ConfigError, Secret};
use manatee_shared::ids::{PeerId, ShardName};
use tokio_postgres::error::SqlState;

use crate::metrics;

/// Passwords in the order in which they are written.
struct Passwords {
    all: Vec<Secret>,
    /// The one that was accepted last: tried first, so that the other one's refusals do not fill the servers' logs.
    accepted: AtomicUsize,
}

/// The proxy's own role. Shared by everything that logs in with it.
pub struct OwnRole {
    name: String,
    passwords: ArcSwap<Passwords>,
    refusals: Mutex<BTreeMap<(ShardName, PeerId), String>>,
}

/// One attempt's password, and its number among those of its time.
pub(crate) struct Attempt {
    passwords: Arc<Passwords>,
    index: usize,
}

impl Attempt {
    /// The password.
    pub(crate) fn password(&self) -> &str {
        self.passwords.all.get(self.index).map_or("", Secret::expose)
    }
}

impl OwnRole {
    /// A role with one password.
    pub fn new(name: impl Into<String>, password: impl Into<String>) -> Self {
        Self::with(name.into(), vec![Secret::new(password)])
    }

    /// A role with the passwords of a file; see [`config::read_secrets`].
    ///
    /// # Errors
    /// [`ConfigError`]
    pub fn load(name: &str, password_file: &Path) -> Result<Self, ConfigError> {
        config::read_secrets(password_file).map(|passwords| Self::with(name.to_owned(), passwords))
    }

    fn with(name: String, passwords: Vec<Secret>) -> Self {
        let passwords = Passwords { all: passwords, accepted: AtomicUsize::new(0) };
        Self { name, passwords: ArcSwap::from_pointee(passwords), refusals: Mutex::default() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes over other passwords, for every login from now on.
    pub fn replace(&self, passwords: Vec<Secret>) {
        if self.passwords.load().all != passwords {
            self.passwords.store(Arc::new(Passwords { all: passwords, accepted: AtomicUsize::new(0) }));
        }
    }

    /// The passwords to try, the candidate_nodes first.
    pub(crate) fn attempts(&self) -> impl Iterator<Item = Attempt> {
        let passwords = self.passwords.load_full();
        let (first, count) = (passwords.accepted.load(Ordering::Relaxed), passwords.all.len());
        (0..count).map(move |step| Attempt { passwords: passwords.clone(), index: (first + step) % count })
    }

    /// Notes that a server accepted a password.
    pub(crate) fn note_accepted(&self, shard: &ShardName, node: PeerId, attempt: &Attempt) {
        attempt.passwords.accepted.store(attempt.index, Ordering::Relaxed);
        if self.refusals().remove(&(shard.clone(), node)).is_some() {
            tracing::info!(%shard, %node, role = self.name, "the proxy's own role can log in again");
        }
    }

    /// Notes that a server let none of the passwords in.
    pub(crate) fn note_refused(&self, shard: &ShardName, node: PeerId, error: &tokio_postgres::Error) {
        metrics::own_login_failures(shard.as_str()).increment(1);
        let cause = error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned());
        let mut refusals = self.refusals();
        let key = (shard.clone(), node);
        if refusals.get(&key) != Some(&cause) {
            tracing::error!(
                %shard, %node, role = self.name, cause,
                "the proxy's own role cannot log in: put its password into auth.password_file, then RELOAD"
            );
            refusals.insert(key, cause);
        }
    }

    /// Forgets a node that is no longer part of the shard.
    pub(crate) fn forget(&self, shard: &ShardName, node: PeerId) {
        self.refusals().remove(&(shard.clone(), node));
    }

    /// Whether a node refused the last login.
    pub(crate) fn is_refused(&self, shard: &ShardName, node: PeerId) -> bool {
        self.refusals().contains_key(&(shard.clone(), node))
    }

    /// The nodes that refused the last login, and their words.
    pub fn refused_by(&self) -> BTreeMap<(ShardName, PeerId), String> {
        self.refusals().clone()
    }

    fn refusals(&self) -> MutexGuard<'_, BTreeMap<(ShardName, PeerId), String>> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a server does not take the role for who it is, or does not let it log in: class 28, and 42501 where it may
/// not use the database.
pub(crate) fn is_login_refusal(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| code.code().starts_with("28") || *code == SqlState::INSUFFICIENT_PRIVILEGE)
}

/// Whether the database is the reason that a login was refused: it lets nobody in, is gone, or not this role.
pub(crate) fn is_closed(error: &tokio_postgres::Error) -> bool {
    let closed = [
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
        SqlState::INVALID_CATALOG_NAME,
        SqlState::UNDEFINED_DATABASE,
        SqlState::INSUFFICIENT_PRIVILEGE,
    ];
    error.code().is_some_and(|code| closed.contains(code))
}

/// Whether another password may do.
pub(crate) fn is_wrong_password(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::INVALID_PASSWORD)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(role: &OwnRole) -> Vec<String> {
        role.attempts().map(|attempt| attempt.password().to_owned()).collect()
    }

    #[test]
    fn the_password_that_was_accepted_last_is_tried_first() {
        let role = OwnRole::with("own".to_owned(), vec![Secret::new("new"), Secret::new("old")]);
        let (shard, node) = ("demo".parse().expect("name"), "10.0.0.1:5432:1".parse().expect("id"));
        assert_eq!(tried(&role), ["new", "old"]);
        let old = role.attempts().nth(1).expect("two");
        role.note_accepted(&shard, node, &old);
        assert_eq!(tried(&role), ["old", "new"]);
        role.replace(vec![Secret::new("new"), Secret::new("old")]);
        assert_eq!(tried(&role), ["old", "new"], "nothing has changed");
        role.replace(vec![Secret::new("newer"), Secret::new("new")]);
        role.note_accepted(&shard, node, &old);
        assert_eq!(tried(&role), ["newer", "new"], "an attempt from before says nothing of these");
    }
}
