//! Giving a running server its configuration by reload, and confirming that it is in effect in
//! every process that matters, not only in the files:
//!
//! 1. the sitter's own session shows the new identity: the postmaster has read it and signalled
//!    its children;
//! 2. the gate: a session accepted *after* that proves that the postmaster has finished its reload,
//!    `pg_hba.conf` included (it is the last thing read); then the sessions already let in are
//!    ended, and the observation ends those that were just logging in;
//! 3. who acknowledges: walsenders release commits by *their own* copy of the setting
//!    (`SyncRepReleaseWaiters`), and show the priority it gives them, so each must show the new one;
//! 4. whether a commit waits at all is decided by a flag that the checkpointer sets
//!    (`SyncRepUpdateSyncStandbysDefined`): leaving "nobody", a checkpoint asked for after the
//!    reload ends only after the checkpointer has read it;
//! 5. detached: no WAL receiver, twice in a row.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use manatee_shared::ids::PeerId;
use tokio_postgres::Client;

use super::ask::{checkpoint, is_in_recovery, text, until};
use super::conf::{self, Name};
use super::error::Error;
use super::inner::{Inner, Record};
use super::render::{reload, render};
use super::{clients, guard, replay, session, slots};
use crate::machine::local::{Gate, Recovery, ServerConfig, Synchronous};

/// Gives the running server `config` and confirms it. Repeating it is cheap.
pub(super) async fn apply(inner: &Inner, config: &ServerConfig) -> Result<(), Error> {
    let session = inner.session()?;
    let in_recovery = is_in_recovery(&session).await?;
    match (&config.recovery, in_recovery) {
        (Recovery::Primary, true) => return Err(Error::NotApplied("it is in recovery".to_owned())),
        (Recovery::Follow(_) | Recovery::Detached, false) => {
            return Err(Error::NotApplied("it is out of recovery and must be stopped first".to_owned()));
        }
        _ => {}
    }
    let before = inner.known().record.clone();
    // Trust is in an upstream; another one has to earn it.
    let trusted = before.as_ref().is_some_and(|b| b.trusted && b.config.recovery == config.recovery);
    let before = before.filter(|record| record.confirmed);
    let name = guard::name(trusted);
    let rendered = render(inner, config, name);
    let record = |confirmed| Record { id: rendered.id.clone(), config: config.clone(), confirmed, trusted };
    let live = text(&session, "SELECT current_setting('manatee.config_id', true)").await?;
    let unchanged = live.as_deref() == Some(&rendered.id)
        && before.as_ref().is_some_and(|b| b.id == rendered.id)
        && set_elsewhere(inner, &session, config, name).await?.is_none();
    let names = text(&session, "SELECT current_setting('synchronous_standby_names')").await?.unwrap_or_default();
    if before.as_ref().is_none_or(|before| *before != record(true)) {
        inner.set_record(record(false))?;
    }
    if !unchanged {
        reload(inner, &rendered)?;
    }
    // While the other processes take it over.
    slots::keep(&session, &config.slots).await?;
    if !unchanged {
        confirm_settings(inner, &session, &rendered.id, config, name).await?;
    }
    let was_closed = before.as_ref().is_some_and(|before| before.config.gate == Gate::Closed);
    if config.gate == Gate::Closed && !was_closed {
        close_gate(inner, &session).await?;
    }
    if !in_recovery {
        if names.is_empty() && config.synchronous != Synchronous::Nobody {
            checkpointer_knows(inner).await?;
        }
        confirm_walsenders(inner, &session, &config.synchronous).await?;
    }
    if config.recovery == Recovery::Detached {
        confirm_detached(inner, &session).await?;
    }
    if before.is_none_or(|before| before != record(true)) {
        inner.set_record(record(true))?;
    }
    inner.refresh().await;
    if config.recovery == Recovery::Detached {
        // "No receiver" is published when seen a second time (see the observation).
        inner.refresh().await;
    }
    Ok(())
}

/// Has PostgreSQL read the files of `config` while something else is waited for; [`apply`] confirms them.
pub(super) fn announce(inner: &Inner, config: &ServerConfig) -> Result<(), Error> {
    let rendered = render(inner, config, guard::name(false));
    let record = Record { id: rendered.id.clone(), config: config.clone(), confirmed: false, trusted: false };
    inner.set_record(record)?;
    reload(inner, &rendered)
}

async fn confirm_settings(
    inner: &Inner,
    session: &Client,
    id: &str,
    config: &ServerConfig,
    name: Name,
) -> Result<(), Error> {
    let bound = inner.settings.confirm_timeout;
    let what = "the reload of PostgreSQL's configuration";
    let live = || text(session, "SELECT current_setting('manatee.config_id', true)");
    until(bound, what, || async { Ok((live().await?.as_deref() == Some(id)).then_some(())) }).await?;
    if let Some(name) = set_elsewhere(inner, session, config, name).await? {
        // Not the value: it might hold what an operator put there.
        let source =
            "SELECT concat_ws(', line ', coalesce(sourcefile, source), sourceline) FROM pg_settings WHERE name = ";
        let source = text(session, &format!("{source}'{name}'")).await?.unwrap_or_default();
        return Err(Error::NotApplied(format!("{name} is set elsewhere: {source}")));
    }
    let wrong = "SELECT string_agg('line ' || line_number || ': ' || error, '; ') FROM pg_hba_file_rules \
                 WHERE error IS NOT NULL";
    match text(session, wrong).await? {
        None => Ok(()),
        Some(problem) => Err(Error::Setting { key: "postgres.hba".to_owned(), problem }),
    }
}

/// The first of the settings that the configuration decides that is not as it should be.
async fn set_elsewhere(
    inner: &Inner,
    session: &Client,
    config: &ServerConfig,
    name: Name,
) -> Result<Option<&'static str>, Error> {
    for (setting, wanted) in conf::expected(&inner.settings, inner.me, config, name) {
        let found = text(session, &format!("SELECT current_setting('{setting}')")).await?;
        if found.as_deref() != Some(&wanted) {
            return Ok(Some(setting));
        }
    }
    Ok(None)
}

async fn close_gate(inner: &Inner, session: &Client) -> Result<(), Error> {
    // Accepted by the postmaster after it has read the new pg_hba.conf.
    drop(session::local(inner).await?);
    let what = "the end of client sessions";
    until(inner.settings.confirm_timeout, what, || async { Ok((clients::end(session).await? == 0).then_some(())) })
        .await
}

async fn checkpointer_knows(inner: &Inner) -> Result<(), Error> {
    let session = session::local(inner).await?;
    checkpoint(&session).await
}

async fn confirm_walsenders(inner: &Inner, session: &Client, synchronous: &Synchronous) -> Result<(), Error> {
    // One that has not begun to stream has yet to read the setting.
    let sql = "SELECT application_name, sync_priority FROM pg_stat_replication \
               WHERE state IN ('catchup', 'streaming')";
    let what = "the change of synchronous_standby_names in every walsender";
    until(inner.settings.confirm_timeout, what, || async {
        let rows = session.query(sql, &[]).await.map_err(Error::query("look at the walsenders"))?;
        let shows = |row: &tokio_postgres::Row| {
            let peer = row.try_get::<_, &str>(0).ok()?.parse::<PeerId>().ok()?;
            Some(row.try_get::<_, Option<i32>>(1).ok()? == i32::try_from(conf::sync_priority(synchronous, peer)).ok())
        };
        Ok(rows.iter().all(|row| shows(row).unwrap_or(true)).then_some(()))
    })
    .await
}

async fn confirm_detached(inner: &Inner, session: &Client) -> Result<(), Error> {
    let sql = "SELECT (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walreceiver') \
               + (SELECT count(*) FROM pg_stat_wal_receiver)";
    let absent = AtomicU32::new(0);
    let absent = &absent;
    // It is the startup process that ends the receiver, between two records.
    let clearing = replay::keep_clear(inner, session);
    let ending = until(inner.settings.confirm_timeout, "the end of the WAL receiver", || async {
        let row = session.query_one(sql, &[]).await.map_err(Error::query("look for the WAL receiver"))?;
        let found: i64 = row.try_get(0).map_err(Error::query("look for the WAL receiver"))?;
        let times = if found == 0 { absent.load(Relaxed) + 1 } else { 0 };
        absent.store(times, Relaxed);
        Ok((times >= 2).then_some(()))
    });
    // Either may be dropped: each look is whole by itself.
    tokio::select! {
        ended = ending => ended,
        () = clearing => Ok(()),
    }
}
