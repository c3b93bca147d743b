//! Condition of PostgreSQL besides its activity: room on its disk, settings that wait for a
//! restart, and who keeps old row versions. One task keeps it current.
//!
//! A server without room goes on for a while: what needs no new page or segment succeeds, the rest
//! fails, one client after the other, until WAL finds no place and it ends. So a peer with little room
//! says that it cannot commit while it still can.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::capacity;
use super::horizon;
use super::inner::Inner;
use crate::machine::capacity::Override;
use crate::machine::local::{Breach, Horizon};
use crate::machine::readiness::Unready;

/// Between two looks at the disk.
const PERIOD: Duration = Duration::from_millis(500);

/// Looks at the disk between two at the settings: they are many, and change when somebody reloads.
const SETTINGS_EVERY: u32 = 10;

/// Once there was too little, so many times the reserve must be free before it is enough: a peer
/// whose room goes up and down at the limit must not change places each time.
const ENOUGH: u64 = 2;

/// The condition of the local PostgreSQL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// Less room is left on the data's disk than [`super::Settings::disk_reserve_bytes`].
    pub disk_full: bool,
    /// Settings whose new values take effect at the next start only.
    pub pending_restart: Vec<String>,
    /// Settings that the server was started with otherwise than configured, to keep the order of a change.
    pub overridden: Vec<Override>,
    /// Roles and databases whose sessions begin with a `synchronous_commit` under which commits do not wait for the
    /// sync: the statements that made it so.
    pub weak_commits: Vec<String>,
    /// The last time that settings of Manatee's were not in force, and when it ended; of the last hour.
    pub breach: Option<(Breach, Instant)>,
    /// Needs of a takeover that were tried lately without success (rule 11).
    pub unready: Vec<Unready>,
    /// Holder of the oldest row versions.
    pub horizon: Option<Horizon>,
}

/// Time for which an ended [`Breach`] is told: whoever is paged for it looks at it by then.
const BREACH_TOLD: Duration = Duration::from_secs(3600);

/// Keeps `condition` current until aborted.
pub(super) fn watch(inner: Arc<Inner>, condition: watch::Sender<Condition>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut horizons = horizon::Watcher::new();
        for turn in (0..SETTINGS_EVERY).cycle() {
            look_at_disk(&inner, &condition).await;
            look_at_breach(&inner, &condition);
            if turn == 0 {
                look_at_settings(&inner, &condition).await;
                look_at_horizon(&inner, &mut horizons, &condition).await;
            }
            tokio::time::sleep(PERIOD).await;
        }
    })
}

async fn look_at_disk(inner: &Inner, condition: &watch::Sender<Condition>) {
    let data = inner.layout.data();
    // A file system that hangs must not take the runtime's threads with it: one look at a time.
    let Ok(Some(free_bytes)) = tokio::task::spawn_blocking(move || free_bytes(&data)).await else { return };
    let reserve_bytes = inner.settings.disk_reserve_bytes;
    let changed = condition.send_if_modified(|condition| {
        let now = is_full(condition.disk_full, free_bytes, reserve_bytes);
        std::mem::replace(&mut condition.disk_full, now) != now
    });
    if changed {
        let full = condition.borrow().disk_full;
        tracing::warn!(free_bytes, reserve_bytes, full, "room on the data's disk");
    }
}

fn look_at_breach(inner: &Inner, condition: &watch::Sender<Condition>) {
    let breach = inner.known().breach.clone().filter(|(_, ended)| ended.elapsed() < BREACH_TOLD);
    condition.send_if_modified(|condition| {
        let changed = condition.breach != breach;
        condition.breach = breach;
        changed
    });
}

/// Settings of roles and databases that begin sessions with a commit that does not wait for the sync.
const WEAK_COMMITS: &str = "SELECT format('ALTER %s SET %s', \
       CASE WHEN setrole = 0 THEN 'DATABASE ' || quote_ident(datname) \
            WHEN setdatabase = 0 THEN 'ROLE ' || quote_ident(rolname) \
            ELSE format('ROLE %I IN DATABASE %I', rolname, datname) END, setting) \
     FROM pg_db_role_setting LEFT JOIN pg_database d ON d.oid = setdatabase LEFT JOIN pg_roles r ON r.oid = setrole, \
          unnest(setconfig) setting \
     WHERE starts_with(lower(setting), 'synchronous_commit=') \
       AND split_part(lower(setting), '=', 2) NOT IN ('on', 'true', 'yes', '1', 'remote_apply') ORDER BY 1";

async fn look_at_settings(inner: &Inner, condition: &watch::Sender<Condition>) {
    // What is given on the command line waits for more than a restart.
    const PENDING: &str =
        "SELECT name FROM pg_settings WHERE pending_restart AND source <> 'command line' ORDER BY name";
    let Ok(session) = inner.session() else { return };
    // Of no consequence if it fails: the next look is near.
    let Ok(rows) = session.query(PENDING, &[]).await else { return };
    let names: Vec<String> = rows.iter().filter_map(|row| row.try_get(0).ok()).collect();
    let Ok(overridden) = capacity::overridden(&session).await else { return };
    condition.send_if_modified(|condition| {
        let changed = condition.overridden != overridden;
        condition.overridden.clone_from(&overridden);
        changed
    });
    let Ok(rows) = session.query(WEAK_COMMITS, &[]).await else { return };
    let weak: Vec<String> = rows.iter().filter_map(|row| row.try_get(0).ok()).collect();
    let changed_weak = condition.send_if_modified(|condition| {
        let changed = condition.weak_commits != weak;
        condition.weak_commits.clone_from(&weak);
        changed
    });
    if changed_weak && !weak.is_empty() {
        tracing::warn!(
            settings = weak.join("; "),
            "commits of these sessions do not wait for the sync: they are lost with the primary's host"
        );
    }
    let changed = condition.send_if_modified(|condition| {
        let changed = condition.pending_restart != names;
        condition.pending_restart.clone_from(&names);
        changed
    });
    if changed && !names.is_empty() {
        tracing::warn!(settings = names.join(", "), "changed settings take effect when PostgreSQL is restarted");
    }
}

async fn look_at_horizon(inner: &Inner, horizons: &mut horizon::Watcher, condition: &watch::Sender<Condition>) {
    let horizon = match inner.session() {
        Ok(session) => horizons.look(&session).await,
        Err(_) => None,
    };
    condition.send_if_modified(|condition| {
        let changed = condition.horizon != horizon;
        condition.horizon = horizon;
        changed
    });
}

fn is_full(before: bool, free_bytes: u64, reserve_bytes: u64) -> bool {
    let least = if before { reserve_bytes.saturating_mul(ENOUGH) } else { reserve_bytes };
    free_bytes < least
}

/// Space left for an ordinary user. None: there is no such folder yet, or it cannot be told.
fn free_bytes(folder: &Path) -> Option<u64> {
    let facts = rustix::fs::statvfs(folder).ok()?;
    Some(facts.f_bavail.saturating_mul(facts.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_twice_the_reserve_to_be_well_again() {
        for (before, free, full) in
            [(false, 100, false), (false, 99, true), (true, 100, true), (true, 199, true), (true, 200, false)]
        {
            assert_eq!(is_full(before, free, 100), full, "{before} {free}");
        }
        assert!(!is_full(true, 0, 0), "no reserve, no limit");
    }

    #[test]
    fn room_is_told_of_a_folder_that_exists() {
        assert!(free_bytes(Path::new("/")).is_some());
        assert_eq!(free_bytes(Path::new("/nonexistent/folder")), None);
    }
}
