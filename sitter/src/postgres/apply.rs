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

use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use manatee_shared::ids::PeerId;
use rustix::process::Signal;
use tokio_postgres::Client;

use super::conf::Name;
use super::error::Error;
use super::inner::{Inner, Record};
use super::{conf, files, guard, hba, observe, replay, session, slots};
use crate::machine::local::{Gate, Recovery, ServerConfig, Synchronous};

/// Between two looks at something that takes milliseconds: part of every failover.
const POLL: Duration = Duration::from_millis(2);
/// A checkpoint of a busy server takes this long at most, or the change fails and is repeated.
const CHECKPOINT: Duration = Duration::from_secs(300);

/// The rendered files.
pub(super) struct Rendered {
    pub(super) id: String,
    conf: String,
    hba: String,
    ident: String,
}

/// Renders the files for `config`.
///
/// The identity does not depend on the name: it changes under way, and is not the shard's business.
pub(super) fn render(inner: &Inner, config: &ServerConfig, name: Name) -> Rendered {
    let major = inner.version.parse().unwrap_or_default();
    let own = conf::render(&inner.settings, major, inner.me, config, Name::Own);
    let hba = hba::render(&inner.settings, config.gate);
    let ident = hba::render_ident(&inner.settings.superuser, &inner.user.logins());
    let id = conf::identity([own.as_str(), hba.as_str(), ident.as_str()]);
    let conf = conf::render(&inner.settings, major, inner.me, config, name);
    let conf = format!("{conf}{} = '{id}'\n", conf::CONFIG_ID);
    Rendered { id, conf, hba, ident }
}

/// Writes them, and sees to it that PostgreSQL reads them last.
pub(super) fn write(inner: &Inner, rendered: &Rendered) -> Result<(), Error> {
    let (layout, user) = (&inner.layout, &inner.user);
    write_passfile(inner)?;
    files::replace_volatile(&layout.hba(), &rendered.hba, user)?;
    files::replace_volatile(&layout.ident(), &rendered.ident, user)?;
    files::replace_volatile(&layout.manatee_conf(), &rendered.conf, user)?;
    keep_include(inner)?;
    if clean_altered(inner)? {
        files::make_durable(&layout.altered())?;
    }
    Ok(())
}

/// Sees to it that our settings are the last of `postgresql.conf`. Whether they were not.
pub(super) fn keep_include(inner: &Inner) -> Result<bool, Error> {
    let main = inner.layout.main_conf();
    let text = match std::fs::read_to_string(&main) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(Error::io("read", &main)(error)),
    };
    let Some(text) = conf::with_include(&text) else { return Ok(false) };
    files::replace(&main, &text, &inner.user)?;
    Ok(true)
}

/// Removes from `postgresql.auto.conf`, which PostgreSQL reads last, what only Manatee may set. Whether there was any.
pub(super) fn clean_altered(inner: &Inner) -> Result<bool, Error> {
    let path = inner.layout.altered();
    let written = || std::fs::metadata(&path).and_then(|file| Ok((file.ino(), file.len(), file.modified()?))).ok();
    let before = written();
    let cleaned = std::fs::read_to_string(&path).ok().and_then(|text| conf::without_owned(&text));
    let Some((text, removed)) = cleaned else { return Ok(false) };
    if written() != before {
        // Another ALTER SYSTEM has just written it: that is not to be lost. The next look is near.
        return Ok(true);
    }
    files::replace_at_once(&path, &text, &inner.user)?;
    tracing::error!(
        settings = removed.join(", "),
        file = %path.display(),
        "removed settings that only Manatee may change, or that give up acknowledged writes: somebody used ALTER SYSTEM"
    );
    Ok(true)
}

/// Writes them, and tells PostgreSQL to read them.
pub(super) fn reload(inner: &Inner, rendered: &Rendered) -> Result<(), Error> {
    write(inner, rendered)?;
    inner.postmaster().ok_or(Error::NotAnswering)?.signal(Signal::HUP);
    Ok(())
}

/// The replication role's password, for libpq (manual, section 34.16).
pub(super) fn write_passfile(inner: &Inner) -> Result<(), Error> {
    let password = inner.settings.replication_password.expose().replace('\\', "\\\\").replace(':', "\\:");
    let text = format!("*:*:*:{}:{password}\n", super::REPLICATION_ROLE);
    files::replace_volatile(&inner.layout.passfile(), &text, &inner.user)
}

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

/// Repeats `done` every few milliseconds until it says so, for at most `bound`.
pub(super) async fn until<F, R, T>(bound: Duration, what: &str, mut done: F) -> Result<T, Error>
where
    // Not AsyncFnMut: the compiler cannot show yet that the futures it makes are Send.
    F: FnMut() -> R,
    R: Future<Output = Result<Option<T>, Error>>,
{
    let begin = Instant::now();
    let waiting = async {
        loop {
            if let Some(value) = done().await? {
                return Ok(value);
            }
            // Later on, seldom: whatever takes this long is not part of a quick failover.
            tokio::time::sleep(if begin.elapsed() < Duration::from_secs(2) { POLL } else { POLL * 20 }).await;
        }
    };
    tokio::time::timeout(bound, waiting).await.map_err(|_| Error::Timeout { what: what.to_owned(), timeout: bound })?
}

/// First column of the only row, as text.
pub(super) async fn text(session: &Client, sql: &str) -> Result<Option<String>, Error> {
    let row = session.query_one(sql, &[]).await.map_err(Error::query("ask for a setting"))?;
    row.try_get(0).map_err(Error::query("ask for a setting"))
}

pub(super) async fn is_in_recovery(session: &Client) -> Result<bool, Error> {
    let row = session.query_one("SELECT pg_is_in_recovery()", &[]).await.map_err(Error::query("ask for the role"))?;
    row.try_get(0).map_err(Error::query("ask for the role"))
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
    until(inner.settings.confirm_timeout, what, || async {
        Ok((observe::end_clients(session).await? == 0).then_some(()))
    })
    .await
}

async fn checkpointer_knows(inner: &Inner) -> Result<(), Error> {
    let session = session::local(inner).await?;
    checkpoint(&session).await
}

/// An immediate checkpoint.
pub(super) async fn checkpoint(session: &Client) -> Result<(), Error> {
    let run = session.batch_execute("SET statement_timeout = 0; CHECKPOINT");
    let timeout = Error::Timeout { what: "a checkpoint".to_owned(), timeout: CHECKPOINT };
    tokio::time::timeout(CHECKPOINT, run).await.map_err(|_| timeout)?.map_err(Error::query("run a checkpoint"))
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
