//! Sessions with PostgreSQL: the sitter's own over the Unix socket, and ordinary ones with a peer.

use std::time::Duration;

use manatee_shared::ids::PeerId;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage, SimpleQueryRow};

use super::error::Error;
use super::settings::Settings;
use super::walsender::AsWalsender;
use super::{APPLICATION_NAME, REPLICATION_ROLE};

/// How long a connection to the local server may take.
const CONNECT: Duration = Duration::from_secs(2);
/// How long one to a peer may take. A login is half a dozen round trips, of which each may be 400 ms on a long line, and
/// a packet more when one is lost (row 14).
const CONNECT_PEER: Duration = Duration::from_secs(8);

/// Options of the sitter's sessions: nothing of the operator's may delay or redirect them, and
/// what they write waits for no standby.
const OPTIONS: &str = "-c statement_timeout=2000 -c lock_timeout=1000 -c synchronous_commit=local \
    -c search_path=pg_catalog -c log_statement=none -c log_min_duration_statement=-1 -c jit=off \
    -c idle_in_transaction_session_timeout=0 -c default_transaction_read_only=off -c log_duration=off";

/// A superuser session with the local server.
pub(super) async fn local(settings: &Settings, me: PeerId) -> Result<Client, Error> {
    let mut config = Config::new();
    config
        .host_path(settings.layout().run())
        .port(me.pg_port)
        .user(&settings.superuser)
        .dbname("postgres")
        .application_name(APPLICATION_NAME)
        .options(OPTIONS);
    connect(config, "connect to the local PostgreSQL").await
}

/// A session of the replication role with another peer. It is a walsender's (see
/// [`super::walsender`]): simple queries only.
pub(crate) async fn remote(settings: &Settings, peer: PeerId) -> Result<Client, Error> {
    let mut config = Config::new();
    config
        .user(REPLICATION_ROLE)
        .password(settings.replication_password.expose())
        .dbname("postgres")
        .application_name(APPLICATION_NAME)
        .ssl_mode(SslMode::Disable)
        .options("-c statement_timeout=10000 -c search_path=pg_catalog");
    let what = "connect to the source";
    let connecting = async {
        let stream = TcpStream::connect((peer.ip, peer.pg_port)).await.map_err(Error::io("reach", peer.to_string()))?;
        let socket = SockRef::from(&stream);
        socket.set_tcp_user_timeout(Some(Duration::from_secs(10))).map_err(Error::io("reach", peer.to_string()))?;
        let stream = settings.replication_tls.secure(stream, &peer.to_string()).await?;
        // TLS, or its absence, is settled: nothing is left to negotiate.
        config.connect_raw(AsWalsender::new(stream), NoTls).await.map_err(Error::query(what))
    };
    let timeout = Error::Timeout { what: format!("to {what}"), timeout: CONNECT_PEER };
    let (client, connection) = tokio::time::timeout(CONNECT_PEER, connecting).await.map_err(|_| timeout)??;
    drive(connection);
    Ok(client)
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
