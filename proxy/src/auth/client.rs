//! A client that has logged in, and what its login opened.

use std::net::SocketAddr;
use std::sync::Arc;

use manatee_proxy_core::terms::Access;

use super::identity::Identity;
use crate::cancel::Registration;
use crate::upstream::Upstream;

/// A client that has logged in: AuthenticationOk, ParameterStatus, BackendKeyData and the first
/// ReadyForQuery are sent.
#[derive(Debug)]
pub struct Client {
    /// Address of the client.
    pub address: SocketAddr,
    /// Address of the listener.
    pub local: Option<SocketAddr>,
    /// Version of TLS, if any.
    pub tls: Option<&'static str>,
    /// By its listen address.
    pub access: Access,
    /// Pool key and secret.
    pub identity: Arc<Identity>,
    /// Startup parameters other than user, database, replication and `_pq_.*`: the session's
    /// initial settings, with the switches of `options` already taken apart.
    pub startup: Vec<(String, String)>,
    /// The ParameterStatus values the client was told.
    pub reported: Vec<(String, String)>,
    /// Its entry in the cancel registry.
    pub cancel: Registration,
    /// Connections that the login opened on the way.
    pub opened: Opened,
}

/// A server connection that was opened by a login.
#[derive(Debug, Default)]
pub enum Opened {
    /// None.
    #[default]
    Nothing,
    /// To see that the database may be used: for the pool. It was opened with no startup parameters beyond
    /// user and database.
    ForAll(Upstream),
    /// For this client alone, which replicates: everything is passed on as it is.
    Relay(Upstream),
}
