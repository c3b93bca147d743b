//! The rehearsal: what a takeover will need is tried all the time, without side effects, so that what fails is known before
//! the day (rule 11). A server that answers the observation's old session may let nobody else in: the session was opened
//! before a right, a password or a file was changed.
//!
//! The primary puts right what is the shard's (roles, passwords, rights), from its sitter's configuration; anything else is
//! told: in `/status`, by `manatee-adm explain` and by a metric, and it counts when a sync is chosen.
//!
//! Cost: two questions every [`PERIOD`], and four logins every [`LOGINS_EVERY`] times: some 20 ms of work in fifteen seconds.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::condition::Condition;
use super::error::Error;
use super::inner::{Inner, Record};
use super::roles::OwnRole;
use super::{files, roles, serverlog, session};
use crate::host::failure;
use crate::machine::failure::FailureKind;
use crate::machine::local::{Gate, Recovery, Server};
use crate::machine::readiness::{Need, Unready};

/// Between two rehearsals.
const PERIOD: Duration = Duration::from_secs(5);
/// Logins are tried once in so many rehearsals: each is a process of PostgreSQL's.
const LOGINS_EVERY: u32 = 3;
/// After one that failed: a server that is busy may be too slow once, so that only the second failure in a row counts.
const AGAIN: Duration = Duration::from_secs(2);
/// Number of bytes of the log that are searched for what the WAL receiver says.
const LOG_BYTES: u64 = 16 << 10;

/// Rehearses until aborted.
pub(super) fn watch(inner: Arc<Inner>, condition: watch::Sender<Condition>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut before: Vec<Unready> = Vec::new();
        for turn in (0..LOGINS_EVERY).cycle() {
            let logins = turn == 0 || is_in_doubt(&before);
            let found = rehearse(&inner, logins).await.unwrap_or_default();
            let needs: BTreeSet<Need> = before.iter().map(|unready| unready.need).collect();
            let twice: Vec<Unready> = found.iter().filter(|unready| needs.contains(&unready.need)).cloned().collect();
            publish(&condition, twice);
            let pause = if is_in_doubt(&found) { AGAIN } else { PERIOD };
            before = found;
            tokio::time::sleep(pause).await;
        }
    })
}

/// Whether another look may tell more soon. What is left out is so until the sitter's file is corrected.
fn is_in_doubt(found: &[Unready]) -> bool {
    found.iter().any(|unready| unready.need != Need::Parameters)
}

fn publish(condition: &watch::Sender<Condition>, unready: Vec<Unready>) {
    let before = condition.borrow().unready.clone();
    for new in unready.iter().filter(|new| before.iter().all(|old| old.need != new.need)) {
        tracing::error!(need = new.need.name(), detail = new.detail, "not ready for a takeover: {}", new.need);
    }
    for old in before.iter().filter(|old| unready.iter().all(|new| new.need != old.need)) {
        tracing::info!(need = old.need.name(), "ready again: {}", old.need);
    }
    condition.send_if_modified(|condition| {
        let changed = condition.unready != unready;
        condition.unready = unready;
        changed
    });
}

/// Needs that fail. None: there is no server that could be judged.
async fn rehearse(inner: &Inner, logins: bool) -> Option<Vec<Unready>> {
    let record = inner.known().record.clone().filter(|record| record.confirmed)?;
    let server = inner.local.borrow().server.clone();
    if !matches!(server, Server::Primary(_) | Server::Standby(_)) {
        return None;
    }
    let session = inner.session().ok()?;
    let mut found = Vec::new();
    if !inner.left_out.is_empty() {
        let told: Vec<_> =
            inner.left_out.iter().map(|refused| format!("{}: {}", refused.key, refused.problem)).collect();
        found.push(Unready { need: Need::Parameters, detail: told.join("; "), kind: Some(FailureKind::Setting) });
    }
    // Questions that fail for another reason are the observation's to notice.
    found.extend(files_in_error(&session).await.ok().flatten());
    found.extend(rules_in_error(&session).await.ok().flatten());
    if !logins {
        return Some(found);
    }
    let (mut failed, mut allowed) = try_logins(inner).await;
    let is_primary = record.config.recovery == Recovery::Primary && matches!(server, Server::Primary(_));
    // Elsewhere only where clients may write, too: but without the roles the gate would never open.
    if is_primary && (record.config.gate == Gate::Open || roles::is_one_missing(&session).await.unwrap_or(false)) {
        let locked_out: Vec<OwnRole> =
            failed.iter().filter(|(_, error)| is_lockout(error)).filter_map(|(need, _)| role_of(*need)).collect();
        if !allowed || !locked_out.is_empty() {
            if let Err(error) = put_right(inner, &locked_out).await {
                tracing::warn!(error = &error as &dyn std::error::Error, "Manatee's roles could not be put right");
            }
            (failed, allowed) = try_logins(inner).await;
        }
    }
    found.extend(failed.into_iter().map(|(need, error)| Unready {
        need,
        detail: error.to_string(),
        kind: error.kind(),
    }));
    if !allowed {
        let detail = "a role is gone, or lacks a right that the first setup gave it".to_owned();
        found.push(Unready { need: Need::Grants, detail, kind: None });
    }
    if let (Server::Standby(standby), Recovery::Follow(_)) = (&server, record.config.recovery)
        && !standby.streaming
    {
        found.push(upstream_problem(inner, &record).await);
    }
    Some(found)
}

/// Opens sessions of the sitter's own, and asks in each whether the roles may do what they must in its database. What the
/// sitter's failed with, if none could be opened; and whether they may, as far as could be asked.
async fn try_own_sessions(inner: &Inner) -> (Option<Error>, bool) {
    let (mut refused, mut opened, mut for_proxies) = (None, false, true);
    for database in super::DATABASES {
        match session::local_in(inner, database).await {
            Ok(session) => match roles::are_allowed(&session, for_proxies).await {
                Ok(true) => (opened, for_proxies) = (true, false),
                Ok(false) => return (None, false),
                // A question that fails says nothing of the roles.
                Err(_) => opened = true,
            },
            Err(error) if session::is_closed(&error) => refused = Some(error),
            Err(error) => return (Some(error), true),
        }
    }
    (refused.filter(|_| !opened), true)
}

/// In sessions of their own, which are quiet about what they are told.
async fn put_right(inner: &Inner, locked_out: &[OwnRole]) -> Result<(), Error> {
    let (mut locked_out, mut for_proxies) = (locked_out, true);
    for database in super::DATABASES {
        match session::local_in(inner, database).await {
            Ok(session) => {
                roles::put_right(&session, &inner.settings, locked_out, for_proxies).await?;
                (locked_out, for_proxies) = (&[], false);
            }
            Err(error) if session::is_closed(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn role_of(need: Need) -> Option<OwnRole> {
    match need {
        Need::ReplicationLogin => Some(OwnRole::Replication),
        Need::ProxyLogin => Some(OwnRole::Proxy),
        _ => None,
    }
}

/// Whether a login was refused for what the role is: its password, LOGIN, VALID UNTIL, CONNECTION LIMIT.
fn is_lockout(error: &Error) -> bool {
    let lockouts =
        [SqlState::INVALID_PASSWORD, SqlState::INVALID_AUTHORIZATION_SPECIFICATION, SqlState::INSUFFICIENT_PRIVILEGE];
    error.code().is_some_and(|code| lockouts.contains(code))
        // "too many connections for role": one of all connections says another thing.
        || (error.code() == Some(&SqlState::TOO_MANY_CONNECTIONS) && error.to_string().contains("for role"))
}

/// Logins that failed, and whether the roles may do what they must.
async fn try_logins(inner: &Inner) -> (Vec<(Need, Error)>, bool) {
    let (local, allowed) = try_own_sessions(inner).await;
    let local = local.map_or(Ok(()), Err);
    let replication = session::remote(inner, inner.me).await.map(drop);
    let proxy = session::as_proxy(inner).await.map(drop);
    let tried =
        [(Need::LocalSession, local), (Need::ReplicationLogin, replication), (Need::ProxyLogin, proxy)].into_iter();
    (tried.filter_map(|(need, outcome)| Some((need, outcome.err()?))).collect(), allowed)
}

/// Errors that PostgreSQL finds in its files as they are now. What needs a restart is no error.
async fn files_in_error(session: &Client) -> Result<Option<Unready>, Error> {
    const SQL: &str = "SELECT string_agg(concat_ws(': ', regexp_replace(sourcefile, '.*/', '') || ' line ' || sourceline, \
             name, f.error), '; ') \
         FROM pg_file_settings f WHERE f.error IS NOT NULL AND NOT EXISTS (SELECT FROM pg_settings s \
           WHERE s.name = lower(f.name) AND s.context = 'postmaster' AND f.error = 'setting could not be applied')";
    unready(session, SQL, Need::Configuration).await
}

async fn rules_in_error(session: &Client) -> Result<Option<Unready>, Error> {
    const SQL: &str = "SELECT string_agg('line ' || line_number || ': ' || error, '; ') FROM pg_hba_file_rules WHERE error IS NOT NULL";
    unready(session, SQL, Need::AccessRules).await
}

async fn unready(session: &Client, sql: &str, need: Need) -> Result<Option<Unready>, Error> {
    let what = "look at PostgreSQL's configuration files";
    let row = session.query_one(sql, &[]).await.map_err(Error::query(what))?;
    let detail: Option<String> = row.try_get(0).map_err(Error::query(what))?;
    Ok(detail.map(|detail| Unready { need, detail, kind: Some(FailureKind::Setting) }))
}

/// Reason why a standby does not stream: what comes of a session with its upstream, else what its WAL receiver says.
async fn upstream_problem(inner: &Inner, record: &Record) -> Unready {
    let need = Need::Upstream;
    if let Recovery::Follow(upstream) = record.config.recovery
        && let Err(error) = session::remote(inner, upstream).await
    {
        let kind = error.kind();
        let detail = match std::error::Error::source(&error) {
            Some(source) if error.code().is_none() => format!("{error}: {source}"),
            _ => error.to_string(),
        };
        return Unready { need, detail, kind };
    }
    let detail = serverlog::last_of_receiver(&files::tail(&inner.layout.log(), LOG_BYTES))
        .unwrap_or_else(|| "its upstream answers; PostgreSQL's log does not say why it does not stream".to_owned());
    let kind = failure::in_text(&detail);
    Unready { need, detail, kind }
}
