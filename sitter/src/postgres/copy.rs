//! A peer as a source of data: what it is, and a full copy of it.

use std::time::Duration;

use manatee_shared::ids::PeerId;
use manatee_shared::lsn::{Timeline, TimelineHistory, WalPosition};
use tokio_postgres::Client;

use super::error::Error;
use super::inner::Inner;
use super::{apply, control, files, session, slot_name};
use crate::machine::local::{Data, SystemIdentifier};
use crate::storage::{Source, Storage};

/// What a source says of itself.
#[derive(Debug)]
pub(crate) struct SourceFacts {
    pub(crate) system: SystemIdentifier,
    pub(crate) in_recovery: bool,
    /// End of its WAL.
    pub(crate) position: WalPosition,
    /// The timeline of `position` is what it writes or receives on, not only that of its last
    /// checkpoint.
    pub(crate) is_certain: bool,
    /// Ancestry of that timeline.
    pub(crate) history: TimelineHistory,
    /// Names in its `pg_wal`, if we may see them.
    pub(crate) wal: Option<Vec<String>>,
}

/// Asks, as the replication role, over an ordinary session.
pub(crate) async fn ask_source(inner: &Inner, source: PeerId) -> Result<SourceFacts, Error> {
    let session = session::remote(&inner.settings, source).await?;
    let sql = "SELECT (pg_control_system()).system_identifier::text,
                      current_setting('server_version_num')::int / 10000,
                      pg_is_in_recovery(),
                      CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_walfile_name(pg_current_wal_flush_lsn()) END,
                      CASE WHEN pg_is_in_recovery() THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
                           ELSE pg_current_wal_flush_lsn() END::text,
                      (pg_control_checkpoint()).timeline_id,
                      CASE WHEN pg_is_in_recovery() THEN (SELECT received_tli FROM pg_stat_wal_receiver) END";
    let failed = |problem| Error::query("ask the source")(problem);
    let row = session.query_one(sql, &[]).await.map_err(failed)?;
    let system = SystemIdentifier(row.try_get(0).map_err(failed)?);
    let not_fit = |problem: String| Error::SourceNotFit { source_peer: source, problem };
    let major: i32 = row.try_get(1).map_err(failed)?;
    if major.to_string() != inner.version {
        return Err(not_fit(format!("it runs PostgreSQL {major}, this host has {}", inner.version)));
    }
    if let Some(expected) = inner.known().expected_system.clone().filter(|expected| *expected != system) {
        return Err(Error::OtherSystem { found: system.0, expected: expected.0 });
    }
    let file: Option<String> = row.try_get(3).map_err(failed)?;
    let written = file.and_then(|name| u32::from_str_radix(name.get(..8)?, 16).ok());
    let checkpoint: i32 = row.try_get(5).map_err(failed)?;
    let received: Option<i32> = row.try_get(6).map_err(failed)?;
    let received = received.and_then(|timeline| u32::try_from(timeline).ok());
    let certain = written.or(received);
    let timeline = Timeline(certain.unwrap_or(u32::try_from(checkpoint).unwrap_or(1)));
    let lsn: Option<String> = row.try_get(4).map_err(failed)?;
    let lsn = lsn.and_then(|text| text.parse().ok()).ok_or_else(|| not_fit("its WAL position is unknown".into()))?;
    Ok(SourceFacts {
        system,
        in_recovery: row.try_get(2).map_err(failed)?,
        position: WalPosition { timeline, lsn },
        is_certain: certain.is_some(),
        history: history(&session, timeline).await?,
        wal: wal(&session).await,
    })
}

async fn history(session: &Client, timeline: Timeline) -> Result<TimelineHistory, Error> {
    if timeline.0 <= 1 {
        return Ok(TimelineHistory::default());
    }
    let path = format!("pg_wal/{}", control::history_file(timeline));
    let read = session.query_one("SELECT convert_from(pg_read_binary_file($1), 'SQL_ASCII')", &[&path]).await;
    let row = read.map_err(Error::query("read the source's timeline history"))?;
    let text: String = row.try_get(0).map_err(Error::query("read the source's timeline history"))?;
    Ok(control::parse_history(&text))
}

async fn wal(session: &Client) -> Option<Vec<String>> {
    let rows = session.query("SELECT name::text FROM pg_ls_waldir()", &[]).await.ok()?;
    rows.iter().map(|row| row.try_get(0).ok()).collect()
}

/// Waits until the source's control file names the timeline it writes.
pub(crate) async fn wait_for_checkpoint(
    inner: &Inner,
    source: PeerId,
    facts: &SourceFacts,
    bound: Duration,
) -> Result<(), Error> {
    let session = session::remote(&inner.settings, source).await?;
    let wanted = facts.position.timeline.0.to_string();
    apply::until(bound, "the source's checkpoint on its timeline", || async {
        let found = apply::text(&session, "SELECT (pg_control_checkpoint()).timeline_id::text").await?;
        Ok((found.as_deref() == Some(wanted.as_str())).then_some(()))
    })
    .await
}

/// Sees to it that the source keeps what we will need after the copy.
async fn ensure_slot(inner: &Inner, source: PeerId) -> Result<String, Error> {
    let session = session::remote(&inner.settings, source).await?;
    let slot = slot_name(inner.me);
    let drop_lost = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
                     WHERE slot_name = $1::text AND wal_status = 'lost' AND NOT active";
    session.execute(drop_lost, &[&slot]).await.map_err(Error::query("drop our lost slot at the source"))?;
    let make = "SELECT pg_create_physical_replication_slot($1::text::name, true) \
                WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1::text)";
    session.execute(make, &[&slot]).await.map_err(Error::query("make our slot at the source"))?;
    Ok(slot)
}

/// Why data is to be replaced; kept in the marker beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// An operator wants a full copy.
    Rebuild,
    /// It is being rewound, or that was interrupted.
    Rewind,
}

impl Verdict {
    fn text(self) -> &'static str {
        match self {
            Self::Rebuild => "rebuild\n",
            Self::Rewind => "pg_rewind\n",
        }
    }
}

/// Marks the data as to be replaced: it must not be started any more. Durable.
pub(crate) fn condemn(inner: &Inner, verdict: Verdict) -> Result<(), Error> {
    files::replace(&inner.layout.incomplete(), verdict.text(), &inner.user)
}

/// Copies everything from `source`. What was here is set aside when the copy is complete.
pub(crate) async fn copy(inner: &Inner, storage: &dyn Storage, source: PeerId, why: &'static str) -> Result<(), Error> {
    if inner.postmaster().is_some() {
        return Err(Error::Running);
    }
    if let Data::Unusable(problem) = control::classify(&inner.layout, &inner.version) {
        return Err(Error::DataNotFit(problem));
    }
    inner.make_folders()?;
    apply::write_passfile(inner)?;
    let facts = ask_source(inner, source).await?;
    let slot = ensure_slot(inner, source).await?;
    let staging = storage.stage().await?;
    tracing::info!(%source, "copying the data");
    storage.copy_from(&Source { peer: source, slot }).await?;
    let found = control::read_control(&staging)?.system;
    if found != facts.system {
        return Err(Error::OtherSystem { found: found.0, expected: facts.system.0 });
    }
    // Nobody must ever start this copy as a primary.
    files::replace(&staging.join("standby.signal"), "", &inner.user)?;
    storage.set_aside(why).await?;
    files::remove(&inner.layout.incomplete())?;
    files::remove(&inner.layout.fresh())?;
    storage.publish().await?;
    inner.known().crashed = false;
    inner.known().last_position = None;
    tracing::info!(%source, "the copy is complete");
    inner.refresh().await;
    Ok(())
}
