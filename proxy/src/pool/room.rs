//! Room where PostgreSQL itself has none: idle servers are closed that keep others from being opened.
//!
//! A node's own limits are not known here (`max_connections`, and what others use of it; limits of a role and of a
//! database): it says so when it refuses, and then what lies idle in other pools makes room, as it does under the
//! limits of the configuration.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Worker;
use crate::auth::Identity;
use crate::error::ProxyError;
use crate::room::Scarce;
use crate::topology::Node;

/// The other threads are asked no more often than this.
const ASK_EVERY: Duration = Duration::from_millis(20);

impl Worker {
    /// Closes the server that has been idle for longest among those that hold what is scarce. Whether there was one.
    pub fn close_idlest(&self, scarce: &Scarce) -> bool {
        let pools = self.pools.borrow();
        let candidates = pools.iter().filter(|((identity, node), _)| scarce.is_held_by(identity, *node));
        let idlest =
            candidates.filter_map(|(_, pool)| Some((pool.idle_longest()?, pool))).min_by_key(|(since, _)| *since);
        let pool = idlest.map(|(_, pool)| pool.clone());
        drop(pools);
        pool.is_some_and(|pool| pool.close_idlest())
    }

    /// A node refused a connection because it is full: makes room, here or on another thread. False if nothing lies
    /// idle that could.
    pub(super) async fn make_room_at(&self, node: Node, identity: &Arc<Identity>, error: &ProxyError) -> bool {
        let Some(full) = error.server_full() else { return false };
        let scarce = Scarce::new(node, identity.clone(), full);
        if self.close_idlest(&scarce) {
            return true;
        }
        let now = Instant::now();
        let Some(threads) = self.threads.get() else { return false };
        if self.asked_for_room.get().is_some_and(|asked| now < asked + ASK_EVERY) {
            return true;
        }
        self.asked_for_room.set(Some(now));
        threads.make_room(scarce).await > 0
    }

    /// A statement of a client needs databases that nobody else is connected to (DROP DATABASE and the like): what
    /// lies idle there is closed, on all threads. Not waited for: PostgreSQL waits up to five seconds for others to
    /// leave (`CountOtherDBBackends`).
    pub(crate) fn vacate(&self, databases: Vec<Box<str>>) {
        for database in databases {
            match self.threads.get() {
                // Bounded by the threads' own limit.
                Some(threads) => drop(tokio::task::spawn_local(threads.release(database))),
                None => drop(self.close_idle_and_count_used(&super::control::Scope::Database(database.into()))),
            }
        }
    }
}
