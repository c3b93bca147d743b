//! What the sessions of one thread share: server connections by node and identity, the classifiers,
//! the newest topology. Everything here belongs to one thread: `Rc` and `RefCell`, no locks.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;

use crate::route::Catalog;
use crate::topology::Topology;
use crate::topology::consistency::Consistency;

/// When a server connection goes back to the pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// After each transaction.
    #[default]
    Transaction,
    /// When the client leaves.
    Session,
}

/// The part of the configuration that sessions need, for one thread.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `pool.mode`
    pub mode: Mode,
    /// Server connections per identity and node on this thread: `pool.size` divided by the threads, at least 1.
    pub size: usize,
    /// `pool.query_wait_timeout`
    pub query_wait_timeout: Duration,
    /// `pool.server_idle_timeout`
    pub server_idle_timeout: Duration,
    /// `pool.server_lifetime`
    pub server_lifetime: Duration,
    /// How long opening one server connection may take.
    pub connect_timeout: Duration,
    /// `routing.split`: send reads to standbys.
    pub split: bool,
    /// `routing.consistency`
    pub consistency: Consistency,
    /// `hold.timeout`
    pub hold_timeout: Duration,
    /// `hold.max_clients`, on this thread.
    pub hold_max_clients: usize,
    /// `hold.max_bytes`, on this thread.
    pub hold_max_bytes: usize,
}

/// Where the knowledge about a database's functions comes from. Shared by all threads.
pub trait Catalogs: Send + Sync {
    /// The place where the catalog of this database is, or will be once it has been read.
    fn of(&self, database: &str) -> Arc<ArcSwapOption<Catalog>>;
}

/// What the sessions of one thread share.
pub struct Worker {
    /// Configuration.
    pub settings: Settings,
}

impl Worker {
    /// For one thread. `seed` is random; it keys hashes and spreads reads.
    pub fn new(settings: Settings, topology: Topology, catalogs: Arc<dyn Catalogs>, seed: u64) -> Rc<Self> {
        let _ = (topology, catalogs, seed);
        Rc::new(Self { settings })
    }

    /// Follows the topology, closes what is idle too long or obsolete. To be spawned once per
    /// worker on its `LocalSet`; never ends by itself and may be dropped at any time.
    pub async fn maintain(self: Rc<Self>) {
        std::future::pending().await
    }
}
