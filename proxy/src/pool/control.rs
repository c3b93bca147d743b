//! Commands of an administrator that concern the connections of one thread.

use std::collections::HashSet;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::{Settings, Worker};

/// Sessions that a command is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everybody.
    All,
    /// The clients and servers of one database.
    Database(String),
}

impl Scope {
    /// Whether it includes this database.
    pub fn includes(&self, database: &str) -> bool {
        match self {
            Self::All => true,
            Self::Database(name) => name == database,
        }
    }
}

/// Databases whose transactions are kept waiting.
#[derive(Debug, Default)]
pub(super) struct Paused {
    all: bool,
    databases: HashSet<String>,
}

impl Paused {
    fn is_empty(&self) -> bool {
        !self.all && self.databases.is_empty()
    }
}

impl Worker {
    /// The configuration now.
    pub fn settings(&self) -> Rc<Settings> {
        self.settings.borrow().clone()
    }

    /// Takes over a changed configuration. Sessions keep the mode and routing they began with.
    pub fn reconfigure(&self, settings: Settings) {
        for pool in self.pools.borrow().values() {
            pool.resize(settings.size);
            pool.keep_unbound(settings.unbound_percent);
        }
        self.quotas.resize(settings.limits);
        for pool in self.pools.borrow().values() {
            pool.offer_places();
        }
        *self.settings.borrow_mut() = Rc::new(settings);
    }

    /// Keeps new transactions waiting until [`Worker::resume`]; those under way go on.
    pub fn pause(&self, scope: &Scope) {
        let mut paused = self.paused.borrow_mut();
        match scope {
            Scope::All => paused.all = true,
            Scope::Database(name) => {
                paused.databases.insert(name.clone());
            }
        }
        self.is_any_paused.set(true);
    }

    /// The end of a pause. Whether there was one.
    pub fn resume(&self, scope: &Scope) -> bool {
        let mut paused = self.paused.borrow_mut();
        let was = match scope {
            Scope::All => !paused.is_empty(),
            Scope::Database(name) => paused.databases.remove(name),
        };
        if *scope == Scope::All {
            *paused = Paused::default();
        }
        self.is_any_paused.set(!paused.is_empty());
        self.changed.notify_waiters();
        was
    }

    /// Whether a new transaction of this database has to wait.
    pub(super) fn is_paused(&self, database: &str) -> bool {
        if !self.is_any_paused.get() {
            return false;
        }
        let paused = self.paused.borrow();
        paused.all || paused.databases.contains(database)
    }

    /// Servers that sessions have; those that have none are closed. A pause is complete at 0.
    pub fn close_idle_and_count_used(&self, scope: &Scope) -> usize {
        for ((identity, _), pool) in self.pools.borrow().iter() {
            if scope.includes(&identity.database) {
                pool.close_idle(|_, _, _| true, Instant::now());
            }
        }
        self.count_used(scope, Duration::ZERO)
    }

    /// Servers that sessions have and that are older than this.
    pub fn count_used(&self, scope: &Scope, older_than: Duration) -> usize {
        let in_use = self.in_use.borrow();
        let counted = in_use.iter().filter(|(_, used)| used.is_of(scope) && used.age() >= older_than);
        counted.count()
    }

    /// Servers opened up to now are closed, once they are free.
    pub fn reconnect(&self, scope: &Scope) {
        let now = Instant::now();
        for ((identity, _), pool) in self.pools.borrow().iter() {
            if scope.includes(&identity.database) {
                pool.renew(now);
            }
        }
    }

    /// Ends clients and servers at once.
    pub fn kill(&self, scope: &Scope) {
        for (_, client) in self.present.borrow().iter() {
            if scope.includes(&client.facts.identity.database) {
                client.end.recall();
            }
        }
        self.close_idle_and_count_used(scope);
    }

    /// Ends one client. Whether there was one of this number.
    pub fn kill_client(&self, id: u32) -> bool {
        let present = self.present.borrow();
        let found = present.iter().find(|(_, client)| client.facts.id == id);
        if let Some((_, client)) = found {
            client.end.recall();
        }
        found.is_some()
    }
}
