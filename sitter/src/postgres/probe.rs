//! The commit probe of a primary: a tiny logical message in a transaction of its own, committed
//! locally. It fails to come back when WAL cannot be written or flushed, which no query would
//! notice, and it lets every standby hear from a primary that is otherwise idle.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::inner::Inner;
use super::session;

/// Between probes: well within the suspicion timeout, which standbys measure the silence by.
const PERIOD: Duration = Duration::from_millis(250);
/// A commit that takes longer counts as stuck. A slow disk's flush takes hundreds of milliseconds.
const STUCK_AFTER: Duration = Duration::from_secs(2);

/// Runs while the server is a primary.
pub(super) struct Probe {
    inner: Arc<Inner>,
    task: Option<JoinHandle<()>>,
    /// Begin of the probe under way; owned by the task, read by the observation.
    under_way: Arc<Mutex<Option<Instant>>>,
}

impl Probe {
    pub(super) fn new(inner: Arc<Inner>) -> Self {
        Self { inner, task: None, under_way: Arc::default() }
    }

    /// Starts probing, if it does not.
    pub(super) fn keep_going(&mut self) {
        if self.task.as_ref().is_none_or(JoinHandle::is_finished) {
            set(&self.under_way, None);
            self.task = Some(tokio::spawn(run(Arc::clone(&self.inner), Arc::clone(&self.under_way))));
        }
    }

    /// Ends probing.
    pub(super) fn stop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            self.under_way = Arc::default();
        }
    }

    /// Since when a commit has not come back, once that is too long.
    pub(super) fn stuck_since(&self) -> Option<Instant> {
        let under_way = *self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.filter(|since| since.elapsed() >= STUCK_AFTER)
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.stop();
    }
}

fn set(cell: &Mutex<Option<Instant>>, value: Option<Instant>) {
    *cell.lock().unwrap_or_else(PoisonError::into_inner) = value;
}

/// Probes until the session ends; the observation starts it anew.
async fn run(inner: Arc<Inner>, under_way: Arc<Mutex<Option<Instant>>>) {
    let Ok(session) = session::local(&inner).await else { return };
    // A stuck flush cannot be cancelled anyway; a timeout would only be an error to explain.
    if session.batch_execute("SET statement_timeout = 0").await.is_err() {
        return;
    }
    loop {
        under_way.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(Instant::now);
        let sent = session.batch_execute("SELECT pg_logical_emit_message(true, 'manatee', '')").await;
        if let Err(error) = sent {
            tracing::debug!(error = &error as &dyn std::error::Error, "the commit probe failed");
            if session.is_closed() {
                set(&under_way, None);
                return;
            }
        } else {
            set(&under_way, None);
        }
        tokio::time::sleep(PERIOD).await;
    }
}
