//! The state that all consoles share.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicUsize;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use tokio::sync::watch;

use super::command::Ending;
use super::show::Totals;
use crate::session_threads::SessionThreads;

/// State that all consoles share.
pub struct Console {
    threads: OnceLock<SessionThreads>,
    /// Databases whose transactions wait; None is all of them.
    pub(super) paused: Mutex<BTreeSet<Option<String>>>,
    /// Databases that nobody new is let into.
    pub(super) disabled: Mutex<BTreeSet<String>>,
    pub(super) samples: Mutex<Samples>,
    pub(super) ending: watch::Sender<Option<Ending>>,
    pub(super) open: AtomicUsize,
}

/// The last two looks at the totals, for averages.
#[derive(Default)]
pub(super) struct Samples {
    pub(super) last: Option<(Instant, Totals)>,
    pub(super) averages: Totals,
}

impl Default for Console {
    fn default() -> Self {
        Self {
            threads: OnceLock::new(),
            paused: Mutex::default(),
            disabled: Mutex::default(),
            samples: Mutex::default(),
            ending: watch::channel(None).0,
            open: AtomicUsize::new(0),
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds these locks can panic half-way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Console {
    /// Says who the session threads are. Once.
    pub fn set_threads(&self, threads: SessionThreads) {
        let _ = self.threads.set(threads);
    }

    /// The session threads; none before they are started.
    pub fn threads(&self) -> SessionThreads {
        self.threads.get().cloned().unwrap_or_default()
    }

    /// Whether clients of this database are refused.
    pub fn is_disabled(&self, database: &str) -> bool {
        lock(&self.disabled).contains(database)
    }

    /// Tells how an administrator wants the proxy to end.
    pub fn ending(&self) -> watch::Receiver<Option<Ending>> {
        self.ending.subscribe()
    }
}
