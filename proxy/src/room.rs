//! Idle servers that are in somebody's way: what a session or a login may ask of all session threads.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::auth::Identity;
use crate::error::Full;
use crate::topology::Node;

/// Resource of which a node has none left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scarce {
    node: Node,
    identity: Arc<Identity>,
    full: Full,
}

impl Scarce {
    /// One was asked for at `node`, in the name of `identity`, and refused because this limit was reached.
    pub fn new(node: Node, identity: Arc<Identity>, full: Full) -> Self {
        Self { node, identity, full }
    }

    /// Whether a server of this identity at this node holds what is scarce.
    pub fn is_held_by(&self, identity: &Identity, node: Node) -> bool {
        node == self.node
            && match self.full {
                Full::Node => true,
                Full::Database => identity.database == self.identity.database,
                Full::Role => identity.user == self.identity.user,
            }
    }
}

/// All session threads, as far as the sessions and logins of one shard need them.
pub trait Threads: Send + Sync {
    /// Has all threads close their idle servers of a database.
    fn release(&self, database: Box<str>) -> BoxFuture<'static, ()>;
    /// Has each thread close one idle server that holds what is scarce; how many did.
    fn make_room(&self, scarce: Scarce) -> BoxFuture<'static, usize>;
}
