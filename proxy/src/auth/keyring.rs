//! Secret with which a client's server connections are opened, after its role's password was changed too.
//!
//! PostgreSQL lets those who have logged in go on; behind a pool they may need another server connection,
//! and the key they proved opens none any more. So every client of a role uses what was proved last by any
//! of them. A role is known by its number, not by its name: of one that was dropped and made again, the
//! clients of the first are lent nothing by those of the second.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arc_swap::ArcSwap;
use zeroize::Zeroizing;

use super::Identity;
use super::secret::Secret;

/// Newest proof of a role. Shared by its clients.
type Newest = ArcSwap<Secret>;

/// The secrets for one client's server connections.
#[derive(Clone, Debug)]
pub struct Keyring {
    own: Arc<Secret>,
    newest: Arc<Newest>,
}

impl Keyring {
    /// Proof of the client itself.
    pub fn own(&self) -> &Arc<Secret> {
        &self.own
    }

    /// Newest proof of its role.
    pub fn newest(&self) -> Arc<Secret> {
        self.newest.load_full()
    }

    /// A server took the client's own secret and not the newest one, so it is the right one.
    pub fn prefer_own(&self) {
        self.newest.store(self.own.clone());
    }

    /// Whether it leads to the same secrets, now and later.
    fn is_same(&self, other: &Self) -> bool {
        let trusted = matches!((&*self.own, &*other.own), (Secret::None, Secret::None));
        trusted || Arc::ptr_eq(&self.own, &other.own) && Arc::ptr_eq(&self.newest, &other.newest)
    }
}

impl From<Secret> for Keyring {
    /// Shared with nobody.
    fn from(secret: Secret) -> Self {
        let own = Arc::new(secret);
        Self { newest: Arc::new(Newest::new(own.clone())), own }
    }
}

/// A role: its name, and its number if the database was asked.
type Role = (Arc<str>, Option<u32>);

/// A role, and the database it is on.
type RoleOnDatabase = (Role, Arc<str>);

/// Proofs of a shard's roles; forgotten with the last client of each.
#[derive(Default)]
pub struct Keys {
    roles: Mutex<HashMap<Role, Weak<Newest>>>,
    identities: Mutex<HashMap<RoleOnDatabase, Weak<Identity>>>,
}

impl Keys {
    /// A client has logged in; see [`Keys::proved`]. Clients between whom nothing differs have one identity.
    pub fn identity(&self, user: Arc<str>, database: Arc<str>, role: Option<u32>, secret: Secret) -> Arc<Identity> {
        let secrets = self.proved(&user, role, secret);
        let mut identities = self.identities.lock().unwrap_or_else(PoisonError::into_inner);
        let key = ((user.clone(), role), database.clone());
        if let Some(known) = identities.get(&key).and_then(Weak::upgrade)
            && known.secrets.is_same(&secrets)
        {
            return known;
        }
        // As for the roles.
        if identities.len() == identities.capacity() {
            identities.retain(|_, identity| identity.strong_count() > 0);
        }
        let identity = Arc::new(Identity { user, database, role, secrets });
        identities.insert(key, Arc::downgrade(&identity));
        identity
    }

    /// A client has proved `secret`: from now on all of its role use it.
    pub fn proved(&self, user: &Arc<str>, role: Option<u32>, secret: Secret) -> Keyring {
        // Servers trust us with that one; nothing was proved to them.
        if matches!(secret, Secret::None) {
            return secret.into();
        }
        let mut keyring = Keyring::from(secret);
        let mut roles = self.roles.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (user.clone(), role);
        if let Some(newest) = roles.get(&key).and_then(Weak::upgrade) {
            let last = newest.load_full();
            if *last == *keyring.own {
                keyring.own = last;
            } else {
                newest.store(keyring.own.clone());
            }
            keyring.newest = newest;
            return keyring;
        }
        // Amortised: as many are looked at as there are roles with clients.
        if roles.len() == roles.capacity() {
            roles.retain(|_, newest| newest.strong_count() > 0);
        }
        roles.insert(key, Arc::downgrade(&keyring.newest));
        keyring
    }

    /// The users' file was read again: clients of its roles that are logged in use its passwords for their next
    /// server connections. (A role of the file has no number.)
    pub fn replace_passwords(&self, password_of: impl Fn(&str) -> Option<Zeroizing<String>>) {
        let roles = self.roles.lock().unwrap_or_else(PoisonError::into_inner);
        for ((user, _), newest) in roles.iter().filter(|((_, number), _)| number.is_none()) {
            if let (Some(newest), Some(password)) = (newest.upgrade(), password_of(user)) {
                newest.store(Arc::new(Secret::Password(password)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(text: &str) -> Secret {
        Secret::Password(text.to_owned().into())
    }

    fn text(secret: &Secret) -> &str {
        match secret {
            Secret::Password(text) => text,
            _ => "",
        }
    }

    #[test]
    fn what_is_proved_last_counts_for_all_of_a_role_and_for_nobody_else() {
        let (keys, alice, bob) = (Keys::default(), Arc::from("alice"), Arc::from("bob"));
        let old = keys.proved(&alice, Some(1), password("old"));
        let recreated = keys.proved(&alice, Some(2), password("of another alice"));
        let from_file = keys.proved(&alice, None, password("of the file"));
        let other = keys.proved(&bob, Some(3), password("bob's"));
        let trusted = keys.proved(&alice, Some(1), Secret::None);
        let new = keys.proved(&alice, Some(1), password("new"));
        assert_eq!((text(old.own()), text(&old.newest())), ("old", "new"));
        assert_eq!(text(&new.newest()), "new");
        assert_eq!(text(&recreated.newest()), "of another alice");
        assert_eq!(text(&from_file.newest()), "of the file");
        assert_eq!(text(&other.newest()), "bob's");
        assert!(matches!(*trusted.newest(), Secret::None));
        old.prefer_own();
        assert_eq!(text(&new.newest()), "old");
    }

    #[test]
    fn clients_between_whom_nothing_differs_have_one_identity() {
        let keys = Keys::default();
        let identity = |database: &str, role, secret| keys.identity("alice".into(), database.into(), role, secret);
        let one = identity("app", Some(1), password("x"));
        assert!(Arc::ptr_eq(&one, &identity("app", Some(1), password("x"))));
        assert!(!Arc::ptr_eq(&one, &identity("other", Some(1), password("x"))));
        assert!(!Arc::ptr_eq(&one, &identity("app", Some(2), password("x"))));
        let changed = identity("app", Some(1), password("y"));
        assert_eq!((text(changed.secrets.own()), text(one.secrets.own())), ("y", "x"));
        assert!(Arc::ptr_eq(&changed, &identity("app", Some(1), password("y"))));
        assert!(Arc::ptr_eq(&identity("app", None, Secret::None), &identity("app", None, Secret::None)));
    }

    #[test]
    fn a_new_password_of_the_users_file_counts_for_its_clients_only() {
        let (keys, alice) = (Keys::default(), Arc::from("alice"));
        let from_file = keys.proved(&alice, None, password("old"));
        let from_database = keys.proved(&alice, Some(1), password("of the database"));
        keys.replace_passwords(|user| (user == "alice").then(|| "new".to_owned().into()));
        assert_eq!((text(from_file.own()), text(&from_file.newest())), ("old", "new"));
        assert_eq!(text(&from_database.newest()), "of the database");
    }

    #[test]
    fn roles_without_clients_are_forgotten() {
        let keys = Keys::default();
        for number in 0..10_000 {
            keys.proved(&Arc::from(format!("role{number}")), None, password("x"));
        }
        assert!(keys.roles.lock().unwrap().len() < 100);
    }
}
