//! A peer as a source of data: what its PostgreSQL says of itself, and the slot there that keeps what we will need.

use std::path::PathBuf;
use std::time::Duration;

use manatee_shared::ids::PeerId;
use manatee_shared::lsn::{Timeline, TimelineHistory, WalPosition};
use tokio_postgres::Client;

use super::error::Error;
use super::inner::Inner;
use super::{ask, control, session, slot_name};
use crate::machine::local::SystemIdentifier;

/// Facts that a source tells of itself.
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
    /// Places of its tablespaces.
    pub(crate) tablespaces: Vec<PathBuf>,
    /// Names in its `pg_wal`, if we may see them.
    pub(crate) wal: Option<Vec<String>>,
}

/// Asks, as the replication role, over an ordinary session.
pub(crate) async fn ask_source(inner: &Inner, source: PeerId) -> Result<SourceFacts, Error> {
    let session = session::remote(inner, source).await?;
    let sql = "SELECT (pg_control_system()).system_identifier::text,
                      current_setting('server_version_num')::int / 10000,
                      pg_is_in_recovery(),
                      CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_walfile_name(pg_current_wal_flush_lsn()) END,
                      CASE WHEN pg_is_in_recovery() THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
                           ELSE pg_current_wal_flush_lsn() END::text,
                      (pg_control_checkpoint()).timeline_id,
                      CASE WHEN pg_is_in_recovery() THEN (SELECT received_tli FROM pg_stat_wal_receiver) END";
    let failed = |problem| Error::query("ask the source")(problem);
    let row = session::row(&session, sql, "ask the source").await?;
    let text = |column: usize| row.try_get(column).map_err(failed);
    let number = |column: usize| -> Result<Option<u32>, Error> { Ok(text(column)?.and_then(|text| text.parse().ok())) };
    let system = SystemIdentifier(text(0)?.unwrap_or_default().to_owned());
    let not_fit = |problem: String| Error::SourceNotFit { source_peer: source, problem };
    let major = text(1)?.unwrap_or_default();
    if major != inner.version {
        return Err(not_fit(format!("it runs PostgreSQL {major}, this host has {}", inner.version)));
    }
    if let Some(expected) = inner.known().expected_system.clone().filter(|expected| *expected != system) {
        return Err(Error::OtherSystem { found: system.0, expected: expected.0 });
    }
    let written = text(3)?.and_then(|name| u32::from_str_radix(name.get(..8)?, 16).ok());
    let certain = written.or(number(6)?);
    let timeline = Timeline(certain.or(number(5)?).unwrap_or(1));
    let lsn =
        text(4)?.and_then(|text| text.parse().ok()).ok_or_else(|| not_fit("its WAL position is unknown".into()))?;
    Ok(SourceFacts {
        system,
        in_recovery: text(2)? == Some("t"),
        position: WalPosition { timeline, lsn },
        is_certain: certain.is_some(),
        history: history(&session, timeline).await?,
        tablespaces: tablespaces(&session).await?,
        wal: wal(&session).await,
    })
}

async fn history(session: &Client, timeline: Timeline) -> Result<TimelineHistory, Error> {
    if timeline.0 <= 1 {
        return Ok(TimelineHistory::default());
    }
    let file = control::history_file(timeline);
    let sql = format!("SELECT convert_from(pg_read_binary_file('pg_wal/{file}'), 'SQL_ASCII')");
    let what = "read the source's timeline history";
    let row = session::row(session, &sql, what).await?;
    let text = row.try_get(0).map_err(Error::query(what))?;
    Ok(control::parse_history(text.unwrap_or_default()))
}

async fn tablespaces(session: &Client) -> Result<Vec<PathBuf>, Error> {
    let sql = "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE pg_tablespace_location(oid) <> ''";
    let rows = session::rows(session, sql, "ask for the source's tablespaces").await?;
    Ok(rows.iter().filter_map(|row| Some(row.try_get(0).ok()??.into())).collect())
}

async fn wal(session: &Client) -> Option<Vec<String>> {
    let rows = session::rows(session, "SELECT name FROM pg_ls_waldir()", "list the source's WAL").await.ok()?;
    rows.iter().map(|row| Some(row.try_get(0).ok()??.to_owned())).collect()
}

/// Waits until the source's control file names the timeline it writes.
pub(crate) async fn wait_for_checkpoint(
    inner: &Inner,
    source: PeerId,
    facts: &SourceFacts,
    bound: Duration,
) -> Result<(), Error> {
    let session = session::remote(inner, source).await?;
    let wanted = facts.position.timeline.0.to_string();
    ask::until(bound, "the source's checkpoint on its timeline", || async {
        let sql = "SELECT (pg_control_checkpoint()).timeline_id";
        let row = session::row(&session, sql, "ask for the source's timeline").await?;
        Ok((row.get(0) == Some(wanted.as_str())).then_some(()))
    })
    .await
}

/// Sees to it that the source keeps what we will need after the copy.
pub(crate) async fn ensure_slot(inner: &Inner, source: PeerId) -> Result<String, Error> {
    let session = session::remote(inner, source).await?;
    let slot = slot_name(inner.me);
    // A slot's name is letters, digits and underscores.
    let drop_lost = format!(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
         WHERE slot_name = '{slot}' AND wal_status = 'lost' AND NOT active"
    );
    session::rows(&session, &drop_lost, "drop our lost slot at the source").await?;
    let make = format!(
        "SELECT pg_create_physical_replication_slot('{slot}', true) \
         WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '{slot}')"
    );
    session::rows(&session, &make, "make our slot at the source").await?;
    Ok(slot)
}
