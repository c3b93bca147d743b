//! Ends what readers of a standby hold that replay waits for: at a takeover at once, and on a sync before it
//! has fallen so far behind that a takeover would take long.
//!
//! PostgreSQL does so itself after `max_standby_streaming_delay`, 30 s by default or never. That setting is of no
//! help once replay waits: the startup process reads its configuration between two records only, and not in
//! the middle of one (`WaitExceedsMaxStandbyDelay`, standby.c; `HandleStartupProcInterrupts`, startup.c). So the
//! sessions in the way are ended. For a lock they are known: whoever has one on the same table, as the
//! startup process only ever asks for exclusive ones. For the rest it is the oldest snapshot, then the next
//! oldest, until replay goes on: a conflict is always with everything older than some transaction
//! (`GetConflictingVirtualXIDs`, procarray.c).

use std::time::Duration;

use tokio_postgres::Client;

use super::error::Error;
use super::inner::Inner;
use crate::machine::local::Obstacle;

/// Before the first look, and between two, while a takeover waits. Most are over before the first.
const PERIOD: Duration = Duration::from_millis(25);

/// Obstacle behind a wait of the startup process (`wait_event_names.txt`); other waits are for WAL or the disk.
pub(super) fn obstacle(wait: &str) -> Option<Obstacle> {
    match wait {
        "IPC/RecoveryConflictSnapshot" => Some(Obstacle::Snapshot),
        "IPC/RecoveryConflictTablespace" => Some(Obstacle::Tablespace),
        "BufferPin/BufferPin" | "Buffer/BufferCleanup" => Some(Obstacle::Page),
        wait if wait.starts_with("Lock/") => Some(Obstacle::Lock),
        _ => None,
    }
}

/// Ends what replay waits for, again and again, until dropped.
pub(super) async fn keep_clear(inner: &Inner, session: &Client) {
    loop {
        tokio::time::sleep(PERIOD).await;
        if let Err(error) = clear(inner, session).await {
            tracing::debug!(error = &error as &dyn std::error::Error, "what replay waits for is not known");
        }
    }
}

/// Ends what replay waits for at this moment; what it was.
pub(super) async fn clear(inner: &Inner, session: &Client) -> Result<Option<Obstacle>, Error> {
    let failed = Error::query("look for what replay waits for");
    let sql = "SELECT pid, wait_event_type || '/' || wait_event FROM pg_stat_activity WHERE backend_type = 'startup'";
    let Some(row) = session.query_opt(sql, &[]).await.map_err(failed)? else { return Ok(None) };
    let failed = Error::query("look for what replay waits for");
    let (startup, wait): (i32, Option<&str>) =
        row.try_get(0).and_then(|pid| Ok((pid, row.try_get(1)?))).map_err(failed)?;
    let Some(obstacle) = wait.and_then(self::obstacle) else { return Ok(None) };
    let in_the_way = match obstacle {
        Obstacle::Lock => {
            "SELECT held.pid FROM pg_locks wanted JOIN pg_locks held ON held.granted AND held.locktype = wanted.locktype \
             AND held.database = wanted.database AND held.relation = wanted.relation \
             WHERE wanted.pid = $1 AND NOT wanted.granted AND held.pid <> $1"
        }
        Obstacle::Snapshot | Obstacle::Page | Obstacle::Tablespace => {
            "SELECT pid FROM pg_stat_activity WHERE pid <> $1 AND age(backend_xmin) = \
             (SELECT max(age(backend_xmin)) FROM pg_stat_activity \
              WHERE backend_type = 'client backend' AND pid <> pg_backend_pid())"
        }
    };
    let sql = format!(
        "SELECT pid, usename, application_name, pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND pid IN ({in_the_way})"
    );
    let ended = session.query(sql.as_str(), &[&startup]).await.map_err(Error::query("end what replay waits for"))?;
    for row in &ended {
        let text = |column| row.try_get::<_, Option<String>>(column).ok().flatten().unwrap_or_default();
        let (pid, user, application) = (row.try_get::<_, i32>(0).unwrap_or_default(), text(1), text(2));
        tracing::info!(pid, user, application, ?obstacle, "ended a reader that replay waited for");
    }
    if !ended.is_empty()
        && let Some(postmaster) = inner.postmaster()
    {
        // It sleeps for longer and longer, up to a second, before it looks again (standby.c), and longer still by our
        // own clock; any signal ends the sleep, and this one is nothing but an occasion to read the settings.
        postmaster.wake_child(startup);
    }
    Ok(Some(obstacle))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_waits_for_readers_are_obstacles() {
        let table = [
            ("Lock/relation", Some(Obstacle::Lock)),
            ("IPC/RecoveryConflictSnapshot", Some(Obstacle::Snapshot)),
            ("IPC/RecoveryConflictTablespace", Some(Obstacle::Tablespace)),
            ("BufferPin/BufferPin", Some(Obstacle::Page)),
            ("IPC/RecoveryPause", None),
            ("Activity/RecoveryWalStream", None),
            ("IO/DataFileRead", None),
        ];
        for (wait, wanted) in table {
            assert_eq!(obstacle(wait), wanted, "{wait}");
        }
    }
}
