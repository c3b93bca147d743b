//! Periodic snapshots, and the upkeep of what is left of earlier data.
//!
//! [`plan`] decides, purely; [`Snapshotter::run`] looks, asks it and does what it says. Nothing happens
//! while the peer is not healthy: a snapshot of doubtful data helps nobody, and what was set aside may
//! still be needed. A snapshot that a transfer holds, or that data was made from, is never destroyed
//! ([`Destroyed::InUse`]): it is tried again the next time.
//!
//! No right to act on PostgreSQL is taken: a snapshot is at once and whole, whatever happens meanwhile, and a
//! takeover must not wait for a busy disk.

use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::{Counter, Gauge, Unit, counter, describe_counter, describe_gauge, gauge};
use tokio::sync::watch;

use crate::data::LocalData;
use crate::driver::status::{Check, Status};
use crate::host::Error;
use crate::storage::{Destroyed, Snapshot, Storage};

/// Between two looks at the peer's health.
const LOOK: Duration = Duration::from_secs(1);
/// Snapshots are listed at least this often: copies leave some, operators make and destroy some.
const LIST: Duration = Duration::from_secs(60);
/// A peer must have been healthy for this long before anything is forgotten.
const HEALTHY_FOR: Duration = Duration::from_secs(30);
/// After a failure nothing is tried for this long.
const PAUSE: Duration = Duration::from_secs(60);

/// From the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Between two snapshots.
    pub interval: Duration,
    /// Number of snapshots that are kept; 0: none are taken.
    pub kept: usize,
    /// Number of data sets set aside that are kept.
    pub isolated_kept: usize,
}

/// Plan of the next step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Upkeep {
    /// Take a snapshot.
    pub take: bool,
    /// Destroy these, in this order.
    pub destroy: Vec<Snapshot>,
    /// Pause before looking again.
    pub again: Duration,
}

/// Plan for `existing` snapshots, the oldest first, at `now_ms` since 1970, on a healthy peer. One more
/// than is kept may exist for the moment between the two.
pub fn plan(existing: &[Snapshot], now_ms: i64, settings: &Settings) -> Upkeep {
    if settings.kept == 0 {
        // Copies leave some all the same; the newest stays for the next copy to build upon.
        return Upkeep {
            take: false,
            destroy: existing.iter().take(existing.len().saturating_sub(1)).cloned().collect(),
            again: LIST,
        };
    }
    let interval_ms = i64::try_from(settings.interval.as_millis()).unwrap_or(i64::MAX);
    let newest: Option<i64> = existing.iter().filter_map(|snapshot| snapshot.name.parse().ok()).max();
    // One from the future: the clock was set back. It must not stop snapshots for ever.
    let take =
        newest.is_none_or(|newest| now_ms >= newest.saturating_add(interval_ms) || newest > now_ms + interval_ms);
    let surplus = (existing.len() + usize::from(take)).saturating_sub(settings.kept);
    let next_ms = newest.filter(|_| !take).unwrap_or(now_ms).saturating_add(interval_ms);
    let again = Duration::from_millis(u64::try_from(next_ms - now_ms).unwrap_or(0)).clamp(LOOK, LIST);
    Upkeep { take, destroy: existing.iter().take(surplus).cloned().collect(), again }
}

/// The task; owns the upkeep of the storage.
pub struct Snapshotter {
    data: Arc<LocalData>,
    status: watch::Receiver<Arc<Status>>,
    settings: Settings,
    metrics: Metrics,
}

struct Metrics {
    kept: Gauge,
    newest: Gauge,
    taken: Counter,
    destroyed: Counter,
    failed: Counter,
}

impl Metrics {
    fn new() -> Self {
        const KEPT: &str = "manatee_snapshots";
        const NEWEST: &str = "manatee_snapshot_newest_timestamp_seconds";
        const TAKEN: &str = "manatee_snapshots_taken_total";
        const DESTROYED: &str = "manatee_snapshots_destroyed_total";
        const FAILED: &str = "manatee_snapshots_failed_total";
        describe_gauge!(KEPT, "Snapshots of the data");
        describe_gauge!(NEWEST, Unit::Seconds, "When the newest snapshot of the data was taken, since 1970");
        describe_counter!(TAKEN, "Snapshots taken by time");
        describe_counter!(DESTROYED, "Snapshots destroyed because there were more than are kept");
        describe_counter!(FAILED, "Failures to take, list or destroy snapshots");
        let (kept, newest) = (gauge!(KEPT), gauge!(NEWEST));
        Self { kept, newest, taken: counter!(TAKEN), destroyed: counter!(DESTROYED), failed: counter!(FAILED) }
    }

    fn show(&self, snapshots: &[Snapshot]) {
        self.kept.set(f64::from(u32::try_from(snapshots.len()).unwrap_or(u32::MAX)));
        let newest: Option<i64> = snapshots.iter().filter_map(|snapshot| snapshot.name.parse().ok()).max();
        // Milliseconds since 1970 stay far below 2^53.
        #[allow(clippy::cast_precision_loss, reason = "a figure for people and graphs: 53 bits are enough")]
        self.newest.set(newest.unwrap_or(0) as f64 / 1000.0);
    }
}

impl Snapshotter {
    /// For this peer.
    pub fn new(data: Arc<LocalData>, status: watch::Receiver<Arc<Status>>, settings: Settings) -> Self {
        Self { data, status, settings, metrics: Metrics::new() }
    }

    /// Looks again and again; never ends.
    pub async fn run(self) {
        let mut healthy_since: Option<Instant> = None;
        // What was done about data set aside since the peer became healthy.
        let mut pruned = false;
        let mut next = Instant::now();
        loop {
            tokio::time::sleep(LOOK).await;
            if !self.is_healthy() {
                (healthy_since, pruned, next) = (None, false, Instant::now());
                continue;
            }
            let since = *healthy_since.get_or_insert_with(Instant::now);
            let prune = !pruned && since.elapsed() >= HEALTHY_FOR;
            let done = if prune {
                pruned = true;
                self.storage().prune_aside(self.settings.isolated_kept).await.map(|_| Duration::ZERO)
            } else if Instant::now() >= next {
                self.snapshots().await
            } else {
                continue;
            };
            match done {
                Ok(again) => next = Instant::now() + again,
                Err(error) => {
                    self.metrics.failed.increment(1);
                    tracing::warn!(error = &error as &dyn std::error::Error, "the upkeep of snapshots failed");
                    next = Instant::now() + PAUSE;
                }
            }
        }
    }

    fn storage(&self) -> &dyn Storage {
        self.data.storage()
    }

    /// In the chain and serving or streaming, and nothing is being done to the data.
    fn is_healthy(&self) -> bool {
        let status = self.status.borrow();
        let at_work = status.report.changes_data();
        !at_work && !status.report.stopping && status.passes(Check::Readiness, Instant::now())
    }

    /// Takes and removes snapshots. Returns the pause before looking again.
    async fn snapshots(&self) -> Result<Duration, Error> {
        let Some(snapshots) = self.storage().snapshots() else { return Ok(LIST) };
        let existing = snapshots.list().await?;
        let Upkeep { take, destroy, again } = plan(&existing, jiff::Timestamp::now().as_millisecond(), &self.settings);
        self.metrics.show(&existing);
        // Listing took time, in which things may have changed.
        if !take && destroy.is_empty() {
            return Ok(again);
        }
        if !self.is_healthy() {
            return Ok(LOOK);
        }
        if take {
            let taken = snapshots.take().await?;
            self.metrics.taken.increment(1);
            tracing::debug!(name = taken.name, "took a snapshot");
        }
        for snapshot in destroy {
            match snapshots.destroy(&snapshot).await? {
                Destroyed::Gone => self.metrics.destroyed.increment(1),
                Destroyed::InUse => tracing::debug!(name = snapshot.name, "the snapshot is in use: it is kept"),
            }
        }
        Ok(again)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshots(names: &[i64]) -> Vec<Snapshot> {
        names.iter().map(|name| Snapshot { name: format!("{name:013}"), guid: name.unsigned_abs() }).collect()
    }

    #[test]
    fn snapshots_come_by_time_and_go_by_count() {
        let settings = Settings { interval: Duration::from_secs(10), kept: 3, isolated_kept: 1 };
        let now = 1_700_000_100_000;
        for (ages_s, take, destroyed, again_s) in [
            (&[][..], true, 0, 10),
            (&[9], false, 0, 1),
            (&[10], true, 0, 10),
            (&[40, 30, 20, 10], true, 2, 10),
            (&[40, 30, 20, 5], false, 1, 5),
            (&[30, 20, 5], false, 0, 5),
            // A clock that was set back.
            (&[-5], false, 0, 15),
            (&[-3600], true, 0, 10),
        ] {
            let existing = snapshots(&ages_s.iter().map(|age| now - age * 1000).collect::<Vec<_>>());
            let found = plan(&existing, now, &settings);
            let again = Duration::from_secs(again_s);
            assert_eq!((found.take, found.destroy.len(), found.again), (take, destroyed, again), "{ages_s:?}");
            assert_eq!(found.destroy, existing[..destroyed], "the oldest go");
        }
        let (none, existing) = (Settings { kept: 0, ..settings }, snapshots(&[1, 2, 3]));
        assert_eq!(plan(&existing, now, &none), Upkeep { take: false, destroy: existing[..2].to_vec(), again: LIST });
        assert_eq!(plan(&[], now, &none), Upkeep { again: LIST, ..Upkeep::default() });
    }
}
