//! Limits on clients at this proxy, and on those of one role or of one database of a shard.
//! Counted are those that have proved themselves: connections that have not keep nobody out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use manatee_shared::ids::ShardName;

use crate::error::{ProxyError, Result};

/// Subject of a count.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Role(ShardName, Arc<str>),
    Database(ShardName, Arc<str>),
}

/// The counts. Shared by all threads; touched at login and at the end only.
#[derive(Debug, Default)]
pub(super) struct ClientLimits {
    taken: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    of: HashMap<Arc<Key>, u32>,
}

/// A client's client_limits; given back when dropped. All clients that are counted alike have the same keys.
#[derive(Debug)]
pub struct ClientSlotGuard {
    client_limits: Arc<ClientLimits>,
    keys: [Arc<Key>; 2],
}

/// Limits for one client; None: any number.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ClientMaxima {
    /// Clients altogether.
    pub(super) of_all: Option<usize>,
    /// Clients of its role.
    pub(super) of_role: Option<u32>,
    /// Clients of its database.
    pub(super) of_database: Option<u32>,
}

impl ClientLimits {
    /// Takes a client's client_limits, if there are any left.
    ///
    /// # Errors
    /// [`ProxyError::TooManyClients`], [`ProxyError::TooManyOf`] as PostgreSQL says it.
    pub(super) fn take(
        self: &Arc<Self>,
        shard: &ShardName,
        role: &Arc<str>,
        database: &Arc<str>,
        most: ClientMaxima,
    ) -> Result<ClientSlotGuard> {
        let keys = [Key::Role(shard.clone(), role.clone()), Key::Database(shard.clone(), database.clone())];
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if most.of_all.is_some_and(|most| taken.all >= most) {
            return Err(ProxyError::TooManyClients);
        }
        for (key, most) in keys.iter().zip([most.of_role, most.of_database]) {
            let full = |most: u32| taken.of.get(key).copied().unwrap_or(0) >= most;
            if most.is_some_and(full) {
                return Err(match key {
                    Key::Role(_, role) => ProxyError::TooManyOf(format!("role \"{role}\"")),
                    Key::Database(_, database) => ProxyError::TooManyOf(format!("database \"{database}\"")),
                });
            }
        }
        let keys = keys.map(|key| {
            let key = taken.of.get_key_value(&key).map_or_else(|| Arc::new(key), |(known, _)| known.clone());
            *taken.of.entry(key.clone()).or_default() += 1;
            key
        });
        taken.all += 1;
        Ok(ClientSlotGuard { client_limits: self.clone(), keys })
    }
}

impl Drop for ClientSlotGuard {
    fn drop(&mut self) {
        let mut taken = self.client_limits.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all = taken.all.saturating_sub(1);
        for key in &self.keys {
            match taken.of.get_mut(key) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(taken.of.remove(key)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_and_given_back() {
        let client_limits = Arc::new(ClientLimits::default());
        let (alice, app): (Arc<str>, Arc<str>) = ("alice".into(), "app".into());
        let demo: ShardName = "demo".parse().expect("name");
        let two = ClientMaxima { of_role: Some(2), of_database: Some(3), of_all: None };
        let first = client_limits.take(&demo, &alice, &app, two).expect("one");
        let _second = client_limits.take(&demo, &alice, &app, two).expect("two");
        let refused = client_limits.take(&demo, &alice, &app, two).expect_err("three");
        assert_eq!(refused.to_string(), "too many connections for role \"alice\"");
        let _bob = client_limits.take(&demo, &"bob".into(), &app, two).expect("another role");
        assert!(client_limits.take(&demo, &"carol".into(), &app, two).is_err(), "the database is full");
        drop(first);
        let _again = client_limits.take(&demo, &alice, &app, ClientMaxima::default()).expect("given back");
        let full = ClientMaxima { of_all: Some(3), ..ClientMaxima::default() };
        assert!(matches!(
            client_limits.take(&demo, &"dave".into(), &"other".into(), full),
            Err(ProxyError::TooManyClients)
        ));
        assert_eq!(client_limits.taken.lock().expect("lock").of.len(), 3);
    }
}
