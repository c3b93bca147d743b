//! Who a client is, and with which secret servers are persuaded of it.

use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;

pub(crate) mod failures;
pub(crate) mod greeting;
mod keyring;
mod login;
mod places;
mod policy;
mod rules;
mod secret;
pub mod users;
pub mod verifier;

pub use manatee_proxy_core::rules::{hba, usermap};
pub use manatee_proxy_core::terms::Access;

pub use greeting::{Greetings, check_name};
pub use keyring::{Keyring, Keys};
pub use login::{Admission, Entered, Gatekeeper, Progress, login};
pub use places::Taken;
pub use policy::{Policy, PolicyError};
pub use rules::RulesError;
pub use secret::{Md5Hash, Secret, nonce, random};

use manatee_shared::ids::ShardName;

use crate::cancel::Registration;
use crate::upstream::Upstream;

/// In whose name and to which database a server connection is: the key of a pool. Equality and
/// hash leave the secrets out: the pool's connections outlive a change of password.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Role.
    pub user: Arc<str>,
    /// Database.
    pub database: Arc<str>,
    /// The role's number (`pg_authid.oid`), if the database was asked: one that is made again under the
    /// same name is another.
    pub role: Option<u32>,
    /// For new connections.
    pub secrets: Keyring,
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.user == other.user && self.database == other.database && self.role == other.role
    }
}

impl Eq for Identity {}

impl Hash for Identity {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.user.hash(state);
        self.database.hash(state);
        self.role.hash(state);
    }
}

/// What is settled by where a client connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entrance {
    /// What it asks for.
    pub access: Access,
    /// The shard, if it is one's own.
    pub shard: Option<ShardName>,
}

impl From<Access> for Entrance {
    /// Into any shard.
    fn from(access: Access) -> Self {
        Self { access, shard: None }
    }
}

/// A client that has logged in: AuthenticationOk, ParameterStatus, BackendKeyData and the first
/// ReadyForQuery are sent.
#[derive(Debug)]
pub struct Client {
    /// Where it connects from.
    pub address: SocketAddr,
    /// Where to.
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
    /// What the login opened on the way.
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
