//! Progress of a copy of data to this peer: kept in one place for the log, the metrics,
//! `GET /restore` and, through that, `manatee-adm rebuild`.
//!
//! One copy at a time. [`Progress`] is shared; whoever copies holds a [`CopyGuard`], and dropping that
//! without [`CopyGuard::done`] records a failure, so that an abandoned copy never looks alive.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use manatee_shared::ids::PeerId;
use metrics::{Counter, Gauge, Unit, counter, describe_counter, describe_gauge, gauge};

use crate::status::{CopyMethod, CopyState, Restore};

/// Progress is logged this often.
const LOG_EVERY: Duration = Duration::from_secs(5);
/// The rate is that of this last stretch…
const RATE_OVER: Duration = Duration::from_secs(10);
/// …looked at in steps of this.
const RATE_STEP: Duration = Duration::from_millis(500);

const COMPLETED: &str = "manatee_restore_completed_bytes";
const SIZE: &str = "manatee_restore_size_bytes";
const ACTIVE: &str = "manatee_restore_active";
const RECEIVED: &str = "manatee_restore_received_bytes_total";

/// Facts about a copy at its beginning.
#[derive(Clone, Debug)]
pub struct Begin {
    /// The source.
    pub source: PeerId,
    /// Port that the data comes from.
    pub port: u16,
    /// Source of the copy.
    pub dataset: String,
    /// Method.
    pub method: CopyMethod,
    /// Bytes expected.
    pub size: Option<u64>,
}

#[derive(Debug)]
struct Current {
    restore: Restore,
    began: Instant,
    /// Amounts that had come at moments at most [`RATE_OVER`] ago.
    samples: VecDeque<(Instant, u64)>,
    logged: Instant,
}

impl Current {
    fn count(&mut self, completed: u64, now: Instant) {
        self.restore.completed = completed;
        // What was expected was an estimate.
        self.restore.size = self.restore.size.map(|size| size.max(completed));
        if self.samples.back().is_some_and(|(at, _)| now.saturating_duration_since(*at) < RATE_STEP) {
            return;
        }
        self.samples.push_back((now, completed));
        while self.samples.len() > 2
            && self.samples.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > RATE_OVER)
        {
            self.samples.pop_front();
        }
        if let Some((at, then)) = self.samples.front() {
            self.restore.rate = rate(completed.saturating_sub(*then), now.saturating_duration_since(*at));
        }
        if now.saturating_duration_since(self.logged) >= LOG_EVERY {
            self.logged = now;
            let Restore { source, method, completed, size, rate, .. } = &self.restore;
            tracing::info!(%source, ?method, completed, size, rate, "copying");
        }
    }
}

fn rate(bytes: u64, time: Duration) -> u64 {
    let millis = time.as_millis().max(1);
    u64::try_from(u128::from(bytes) * 1000 / millis).unwrap_or(u64::MAX)
}

#[derive(Debug, Default)]
struct Inner {
    current: Option<Current>,
    attempts: u64,
}

/// See the module. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Progress {
    /// Held for a few assignments only, never across an await.
    inner: Arc<Mutex<Inner>>,
    active: Gauge,
    completed: Gauge,
    size: Gauge,
    received: Counter,
}

impl std::fmt::Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Progress").field(&self.restore()).finish()
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress {
    /// Nothing was copied yet. Registers its metrics with the installed recorder.
    pub fn new() -> Self {
        describe_gauge!(ACTIVE, "1 while data is copied to this peer");
        describe_gauge!(COMPLETED, Unit::Bytes, "Received by the copy under way, or by the last one");
        describe_gauge!(SIZE, Unit::Bytes, "Expected of the copy under way, or of the last one; 0 if not known");
        describe_counter!(RECEIVED, Unit::Bytes, "Received by copies of data to this peer");
        Self {
            inner: Arc::default(),
            active: gauge!(ACTIVE),
            completed: gauge!(COMPLETED),
            size: gauge!(SIZE),
            received: counter!(RECEIVED),
        }
    }

    /// The copy under way, else the last one, else None.
    pub fn restore(&self) -> Option<Restore> {
        self.lock().current.as_ref().map(|current| current.restore.clone())
    }

    /// Whether one is under way.
    pub fn is_copying(&self) -> bool {
        self.lock().current.as_ref().is_some_and(|current| current.restore.done == CopyState::Running)
    }

    /// A copy begins; what was told of the last one is forgotten.
    pub(crate) fn begin(&self, begin: Begin) -> CopyGuard {
        let now = Instant::now();
        let mut inner = self.lock();
        inner.attempts += 1;
        let started = Timestamp::now();
        let restore = Restore {
            uuid: format!("{}-{}-{}", std::process::id(), started.as_millisecond(), inner.attempts),
            host: begin.source.ip.to_string(),
            port: begin.port,
            dataset: begin.dataset,
            done: CopyState::Running,
            size: begin.size,
            completed: 0,
            source: begin.source,
            method: begin.method.into(),
            rate: 0,
            started,
            ended: None,
            error: None,
        };
        let Restore { source, method, size, .. } = &restore;
        tracing::info!(%source, ?method, size, "copying begins");
        self.size.set(as_f64(begin.size.unwrap_or(0)));
        self.completed.set(0.0);
        self.active.set(1.0);
        inner.current = Some(Current { restore, began: now, samples: VecDeque::from([(now, 0)]), logged: now });
        drop(inner);
        CopyGuard { progress: self.clone(), ended: false }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// Sizes stay far below 2^53 bytes.
#[allow(clippy::cast_precision_loss, reason = "a figure for people and graphs: 53 bits are enough")]
fn as_f64(bytes: u64) -> f64 {
    bytes as f64
}

/// A copy under way.
#[derive(Debug)]
pub(crate) struct CopyGuard {
    progress: Progress,
    ended: bool,
}

impl CopyGuard {
    /// So many bytes have come in all.
    pub(crate) fn completed(&self, bytes: u64) {
        let mut inner = self.progress.lock();
        let Some(current) = inner.current.as_mut() else { return };
        self.progress.received.increment(bytes.saturating_sub(current.restore.completed));
        current.count(bytes, Instant::now());
        self.progress.completed.set(as_f64(bytes));
    }

    /// The size is known better now.
    pub(crate) fn size(&self, bytes: u64) {
        if let Some(current) = self.progress.lock().current.as_mut() {
            current.restore.size = Some(bytes);
        }
        self.progress.size.set(as_f64(bytes));
    }

    /// It is complete.
    pub(crate) fn done(mut self) {
        self.end(CopyState::Done, None);
    }

    /// It failed.
    pub(crate) fn failed(mut self, error: &dyn std::error::Error) {
        self.end(CopyState::Failed, Some(error.to_string()));
    }

    fn end(&mut self, outcome: CopyState, error: Option<String>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.progress.active.set(0.0);
        let mut inner = self.progress.lock();
        let Some(current) = inner.current.as_mut() else { return };
        let took = current.began.elapsed();
        let restore = &mut current.restore;
        (restore.done, restore.error, restore.ended) = (outcome, error, Some(Timestamp::now()));
        restore.rate = rate(restore.completed, took);
        let Restore { source, method, completed, rate, error, .. } = restore;
        let seconds = took.as_secs_f64();
        match outcome {
            CopyState::Done => tracing::info!(%source, ?method, completed, rate, seconds, "copied"),
            _ => tracing::warn!(%source, ?method, completed, seconds, error, "the copy ended early"),
        }
    }
}

impl Drop for CopyGuard {
    fn drop(&mut self) {
        self.end(CopyState::Failed, Some("abandoned".to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin() -> Begin {
        let source = "10.0.0.2:5432:12345".parse().unwrap();
        Begin { source, port: 12345, dataset: "tank/a".to_owned(), method: CopyMethod::ZfsFull, size: Some(2000) }
    }

    #[test]
    fn the_answer_is_manatee_2s_and_more() {
        let progress = Progress::new();
        assert!(progress.restore().is_none() && !progress.is_copying());
        let copying = progress.begin(begin());
        copying.completed(1000);
        let json = serde_json::to_value(progress.restore()).unwrap();
        assert_eq!((&json["done"], &json["size"], &json["completed"]), (&false.into(), &2000.into(), &1000.into()));
        assert_eq!((&json["host"], &json["port"]), (&"10.0.0.2".into(), &12345.into()));
        assert_eq!((&json["dataset"], &json["method"]), (&"tank/a".into(), &"zfs-full".into()));
        copying.done();
        assert_eq!(serde_json::to_value(progress.restore()).unwrap()["done"], true);
    }

    #[test]
    fn a_dropped_copy_has_failed() {
        let progress = Progress::new();
        drop(progress.begin(begin()));
        let json = serde_json::to_value(progress.restore()).unwrap();
        assert_eq!((&json["done"], &json["error"]), (&"failed".into(), &"abandoned".into()));
        assert!(!progress.is_copying());
        let again = progress.begin(begin());
        assert!(progress.is_copying() && progress.restore().unwrap().error.is_none());
        again.failed(&std::io::Error::other("gone"));
        assert_eq!(progress.restore().unwrap().error.as_deref(), Some("gone"));
    }

    #[test]
    fn the_rate_is_of_late() {
        let began = Instant::now();
        let progress = Progress::new();
        let _copying = progress.begin(begin());
        let mut inner = progress.lock();
        let current = inner.current.as_mut().unwrap();
        // 100 bytes a second for a minute, then nothing.
        for second in 1..=60 {
            current.count(second * 100, began + Duration::from_secs(second));
        }
        assert!((95..=105).contains(&current.restore.rate), "{}", current.restore.rate);
        for second in 61..=80 {
            current.count(6000, began + Duration::from_secs(second));
        }
        assert_eq!(current.restore.rate, 0);
    }
}
