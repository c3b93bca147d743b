//! Sessions with PostgreSQL: the sitter's own over the Unix socket, and ordinary ones with a peer.

use std::time::Duration;

use manatee_shared::ids::PeerId;
use tokio_postgres::{Client, Config, NoTls};

use super::error::Error;
use super::settings::Settings;
use super::{APPLICATION_NAME, REPLICATION_ROLE};

/// How long a connection attempt may take.
const CONNECT: Duration = Duration::from_secs(2);

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

/// A session of the replication role with another peer.
pub(crate) async fn remote(settings: &Settings, peer: PeerId) -> Result<Client, Error> {
    let mut config = Config::new();
    config
        .host(peer.ip.to_string())
        .port(peer.pg_port)
        .user(REPLICATION_ROLE)
        .password(settings.replication_password.expose())
        .dbname("postgres")
        .application_name(APPLICATION_NAME)
        .tcp_user_timeout(Duration::from_secs(10))
        .options("-c statement_timeout=10000 -c search_path=pg_catalog");
    connect(config, "connect to the source").await
}

async fn connect(config: Config, what: &'static str) -> Result<Client, Error> {
    let connecting = tokio::time::timeout(CONNECT, config.connect(NoTls));
    let timeout = Error::Timeout { what: format!("to {what}"), timeout: CONNECT };
    let (client, connection) = connecting.await.map_err(|_| timeout)?.map_err(Error::query(what))?;
    // Ends with the client.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(error = &error as &dyn std::error::Error, "a session with PostgreSQL ended");
        }
    });
    Ok(client)
}
