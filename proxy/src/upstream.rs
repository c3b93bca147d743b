//! Opening a connection to a server, up to its first ReadyForQuery.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::net::TcpStream;

use crate::auth::Identity;
use crate::cancel::CancelTarget;
use crate::error::{ProxyError, Result};
use crate::topology::Node;

/// A server connection, ready for queries.
#[derive(Debug)]
pub struct Upstream {
    /// The socket (TCP_NODELAY and keepalive set).
    pub stream: TcpStream,
    /// Whom it leads to.
    pub node: Node,
    /// For cancel requests.
    pub cancel: Arc<CancelTarget>,
    /// ParameterStatus values as last reported, in the order of their first report.
    pub parameters: Vec<(String, String)>,
    /// Bytes that arrived after ReadyForQuery, normally none.
    pub unread: BytesMut,
}

impl Upstream {
    /// The value of a reported parameter.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// What the server said of itself when the connection began (PostgreSQL 14 and newer).
    pub fn in_hot_standby(&self) -> Option<bool> {
        self.parameter("in_hot_standby").map(|value| value == "on")
    }
}

/// Connects to `node` as `identity` with startup `parameters` (beyond user and database), within
/// `limit` altogether.
///
/// # Errors
/// [`ProxyError::Connect`], [`ProxyError::ConnectTimeout`], [`ProxyError::Server`] with the
/// server's own words, [`ProxyError::ServerProtocol`]. Ask [`ProxyError::is_server_unready`]
/// whether another try may help.
pub async fn connect(
    node: Node,
    identity: &Identity,
    parameters: &[(String, String)],
    limit: Duration,
) -> Result<Upstream> {
    let _ = (node, identity, parameters, limit);
    Err(ProxyError::Internal("not built yet".to_owned()))
}
