//! The sessions of clients.

use tokio_postgres::Client;

use super::error::Error;
use super::{PROXY_ROLE, REPLICATION_ROLE};

/// Sessions that a closed gate must not leave open: all but replication, the dedicated roles and
/// whoever is on this host as the superuser (the only ones over the Unix socket).
pub(super) const CLIENTS: &str = "backend_type = 'client backend' AND pid <> pg_backend_pid() \
     AND usename NOT IN ('manatee_replication', 'manatee_proxy') AND client_addr IS NOT NULL";

/// Ends them; returns how many.
pub(super) async fn end(session: &Client) -> Result<u64, Error> {
    debug_assert!(CLIENTS.contains(PROXY_ROLE) && CLIENTS.contains(REPLICATION_ROLE));
    let sql = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {CLIENTS}");
    let rows = session.query(sql.as_str(), &[]).await.map_err(Error::query("end client sessions"))?;
    Ok(rows.len() as u64)
}
