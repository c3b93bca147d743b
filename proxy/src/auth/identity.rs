//! Identity of a server connection, and the facts that a listen address settles.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use manatee_proxy_core::terms::Access;
use manatee_shared::ids::ShardName;

use super::keyring::Keyring;

/// Role and database of a server connection: the key of a pool. Equality and
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

/// Facts that are settled by the address a client connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerRole {
    /// Access that it asks for.
    pub access: Access,
    /// The shard, if it is one's own.
    pub shard: Option<ShardName>,
}

impl From<Access> for ListenerRole {
    /// Into any shard.
    fn from(access: Access) -> Self {
        Self { access, shard: None }
    }
}
