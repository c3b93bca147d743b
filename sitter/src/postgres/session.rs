//! Sessions with PostgreSQL: the sitter's own over the Unix socket, and ordinary ones with a peer.
//!
//! They depend on nothing that an operator may change in SQL: what a cluster, a database or a role can be set to
//! (`ALTER SYSTEM`, `ALTER DATABASE … SET`, `ALTER ROLE … SET`) is given in the startup message, which wins
//! (`process_startup_options` before `process_settings` in postinit.c; `GucSource` in guc.h). And where the database
//! `postgres` lets them in no more, another one does.

use std::net::SocketAddr;
use std::time::Duration;

use manatee_shared::ids::PeerId;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage, SimpleQueryRow};

use super::error::Error;
use super::inner::Inner;
use super::walsender::AsWalsender;
use super::{APPLICATION_NAME, DATABASES, PROXY_ROLE, REPLICATION_ROLE};

/// Longest time for a connection to the local server.
const CONNECT: Duration = Duration::from_secs(2);
/// Longest time for one to a peer. A login is half a dozen round trips, of which each may be 400 ms on a long line, and
/// a packet more when one is lost (row 14).
const CONNECT_PEER: Duration = Duration::from_secs(8);

/// Settings that any role may set for its sessions: no setting of a role, a database or the cluster may delay them,
/// redirect them, or make them fail.
const PLAIN: &[(&str, &str)] = &[
    ("search_path", "pg_catalog"),
    ("default_transaction_isolation", "read\\ committed"),
    ("default_transaction_read_only", "off"),
    ("default_transaction_deferrable", "off"),
    ("idle_in_transaction_session_timeout", "0"),
    ("lock_timeout", "1000"),
    ("row_security", "on"),
    ("role", "none"),
    ("jit", "off"),
    ("client_min_messages", "warning"),
    ("bytea_output", "hex"),
    ("local_preload_libraries", ""),
];

/// Settings that only a superuser may set: what the sitter does is in no log that it does not belong in, and what it
/// writes waits for no standby.
const SUPERUSER: &[(&str, &str)] = &[
    ("statement_timeout", "2000"),
    ("synchronous_commit", "local"),
    ("session_preload_libraries", ""),
    ("log_statement", "none"),
    ("log_duration", "off"),
    ("log_min_duration_statement", "-1"),
    ("log_min_duration_sample", "-1"),
    ("log_transaction_sample_rate", "0"),
    ("log_min_messages", "warning"),
    ("log_min_error_statement", "panic"),
    ("log_parser_stats", "off"),
    ("log_planner_stats", "off"),
    ("log_executor_stats", "off"),
    ("log_statement_stats", "off"),
];

/// Names that a major version has and the one before it has not.
const SINCE: &[(u32, bool, &str, &str)] = &[
    (14, false, "idle_session_timeout", "0"),
    (17, false, "transaction_timeout", "0"),
    // Of logins, in that database.
    (17, true, "event_triggers", "off"),
];

/// Options of a session for the startup message (manual, section 55.2.1): a backslash keeps a space together.
fn options(version: &str, superuser: bool, more: &[(&str, &str)]) -> String {
    let major: u32 = version.parse().unwrap_or_default();
    let privileged = SUPERUSER.iter().filter(|_| superuser);
    let since = SINCE.iter().filter(|(since, needs, ..)| major >= *since && (superuser || !needs));
    let since: Vec<_> = since.map(|(.., name, value)| (*name, *value)).collect();
    let all = PLAIN.iter().chain(privileged).chain(&since).chain(more);
    all.map(|(name, value)| format!("-c {name}={value}")).collect::<Vec<_>>().join(" ")
}

/// A superuser session with the local server.
pub(super) async fn local(inner: &Inner) -> Result<Client, Error> {
    let mut refused = None;
    for database in DATABASES {
        match local_in(inner, database).await {
            Err(error) if is_closed(&error) => refused = Some(error),
            Ok(client) if database != DATABASES[0] => return Ok(away_from_template(inner, client).await),
            other => return other,
        }
    }
    Err(refused.unwrap_or(Error::NotAnswering))
}

/// The same in this database, or not at all.
pub(super) async fn local_in(inner: &Inner, database: &str) -> Result<Client, Error> {
    let mut config = Config::new();
    config
        .host_path(inner.layout.run())
        .port(inner.me.pg_port)
        .user(&inner.settings.superuser)
        .dbname(database)
        .application_name(APPLICATION_NAME)
        .options(options(&inner.version, true, &[]));
    connect(config, "connect to the local PostgreSQL").await
}

/// Whether the database is the reason that a session was refused: it lets nobody in, is gone, or not this role.
pub(super) fn is_closed(error: &Error) -> bool {
    let closed = [
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
        SqlState::INVALID_CATALOG_NAME,
        SqlState::UNDEFINED_DATABASE,
        SqlState::INSUFFICIENT_PRIVILEGE,
    ];
    error.code().is_some_and(|code| closed.contains(code))
}

/// A session in a template would keep databases from being made of it: one in any other database instead, if there is.
async fn away_from_template(inner: &Inner, client: Client) -> Client {
    const OTHER: &str =
        "SELECT datname::text FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY oid LIMIT 1";
    let Ok(Some(row)) = client.query_opt(OTHER, &[]).await else { return client };
    let Ok(database) = row.try_get::<_, String>(0) else { return client };
    local_in(inner, &database).await.unwrap_or(client)
}

/// A session of the replication role with another peer. It is a walsender's (see
/// [`super::walsender`]): simple queries only.
pub(crate) async fn remote(inner: &Inner, peer: PeerId) -> Result<Client, Error> {
    remote_in_some_database(inner, peer).await.map(|(client, _)| client)
}

/// The database of `peer` that lets the replication role in, for programs that connect themselves.
pub(crate) async fn database_of(inner: &Inner, peer: PeerId) -> Result<&'static str, Error> {
    remote_in_some_database(inner, peer).await.map(|(_, database)| database)
}

async fn remote_in_some_database(inner: &Inner, peer: PeerId) -> Result<(Client, &'static str), Error> {
    let mut refused = None;
    for database in DATABASES {
        match remote_in(inner, peer, database).await {
            Ok(client) => return Ok((client, database)),
            Err(error) if is_closed(&error) => refused = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(refused.unwrap_or(Error::NotAnswering))
}

async fn remote_in(inner: &Inner, peer: PeerId, database: &str) -> Result<Client, Error> {
    let settings = &inner.settings;
    let mut config = Config::new();
    config
        .user(REPLICATION_ROLE)
        .password(settings.replication_password.expose())
        .dbname(database)
        .application_name(APPLICATION_NAME)
        .ssl_mode(SslMode::Disable)
        .options(options(&inner.version, false, &[("statement_timeout", "10000")]));
    let what = "connect to the source";
    let connecting = async {
        let stream = TcpStream::connect((peer.ip, peer.pg_port)).await.map_err(Error::io("reach", peer.to_string()))?;
        let socket = SockRef::from(&stream);
        socket.set_tcp_user_timeout(Some(Duration::from_secs(10))).map_err(Error::io("reach", peer.to_string()))?;
        let stream = settings.replication_tls.secure(stream, &peer.to_string()).await?;
        // TLS, or its absence, is settled: nothing is left to negotiate.
        config.connect_raw(AsWalsender::new(stream), NoTls).await.map_err(Error::query(what))
    };
    let timeout = Error::ConnectTimeout { peer, timeout: CONNECT_PEER };
    let (client, connection) = tokio::time::timeout(CONNECT_PEER, connecting).await.map_err(|_| timeout)??;
    drive(connection);
    Ok(client)
}

/// A session as the proxies open theirs: over the network, with the password of the sitter's configuration.
pub(super) async fn as_proxy(inner: &Inner) -> Result<Client, Error> {
    let mut refused = None;
    for database in DATABASES {
        match as_proxy_in(inner, database).await {
            Err(error) if is_closed(&error) => refused = Some(error),
            other => return other,
        }
    }
    Err(refused.unwrap_or(Error::NotAnswering))
}

async fn as_proxy_in(inner: &Inner, database: &str) -> Result<Client, Error> {
    let address = SocketAddr::new(inner.me.ip, inner.me.pg_port);
    let mut config = Config::new();
    config
        .host(address.ip().to_string())
        .port(address.port())
        .user(PROXY_ROLE)
        .password(inner.settings.proxy_password.expose())
        .dbname(database)
        .application_name(APPLICATION_NAME)
        .ssl_mode(SslMode::Disable)
        .options(options(&inner.version, false, &[("statement_timeout", "2000")]));
    connect(config, "log in as the proxies do").await
}

/// The only row of a simple query.
pub(crate) async fn row(session: &Client, sql: &str, what: &'static str) -> Result<SimpleQueryRow, Error> {
    let rows = rows(session, sql, what).await?;
    rows.into_iter().next().ok_or_else(|| Error::NotApplied(format!("no answer when asked to {what}")))
}

/// The rows of a simple query.
pub(crate) async fn rows(session: &Client, sql: &str, what: &'static str) -> Result<Vec<SimpleQueryRow>, Error> {
    let messages = session.simple_query(sql).await.map_err(Error::query(what))?;
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    };
    Ok(messages.into_iter().filter_map(row).collect())
}

async fn connect(config: Config, what: &'static str) -> Result<Client, Error> {
    let connecting = tokio::time::timeout(CONNECT, config.connect(NoTls));
    let timeout = Error::Timeout { what: format!("to {what}"), timeout: CONNECT };
    let (client, connection) = connecting.await.map_err(|_| timeout)?.map_err(Error::query(what))?;
    drive(connection);
    Ok(client)
}

/// Carries a session on until its client is gone.
fn drive(connection: impl Future<Output = Result<(), tokio_postgres::Error>> + Send + 'static) {
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(error = &error as &dyn std::error::Error, "a session with PostgreSQL ended");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_those_that_the_version_and_the_role_have() {
        let old = options("13", true, &[]);
        assert!(old.contains("-c synchronous_commit=local") && !old.contains("idle_session_timeout"), "{old}");
        let new = options("17", true, &[]);
        assert!(new.contains("-c transaction_timeout=0") && new.contains("-c event_triggers=off"), "{new}");
        let plain = options("17", false, &[("statement_timeout", "1")]);
        assert!(plain.ends_with("-c statement_timeout=1") && plain.contains("transaction_timeout"), "{plain}");
        assert!(!plain.contains("log_") && !plain.contains("event_triggers"), "a plain role may not: {plain}");
    }
}
