//! Topology of a shard: its primary, the standbys that may serve reads, and how far each has replayed.
//!
//! Two sources: the cluster state in ZooKeeper names roles, and every node is asked itself
//! ([`monitor`]). A [`Snapshot`] is the result, published as a whole whenever something changes.
//! Invariants: a primary is in a snapshot only when the newest known state names it *and* it
//! said `pg_is_in_recovery() = false` itself under that state; without ZooKeeper the last state
//! stays in use; a primary is never guessed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use arc_swap::cache::Cache;
use manatee_shared::ids::PeerId;
use tokio::sync::{mpsc, watch};

pub mod monitor;

pub use manatee_proxy_core::topology::{Node, Primary, Reign, Sample, Snapshot, Standby};
pub use manatee_proxy_core::topology::{consistency, knowledge, snapshot};

/// Handle to the newest [`Snapshot`]; cheap to clone.
#[derive(Clone, Debug)]
pub struct Topology {
    current: Arc<ArcSwap<Snapshot>>,
    changes: watch::Receiver<u64>,
    suspicions: mpsc::Sender<PeerId>,
    /// Newest reign whose first use was noted, by generation.
    used: Arc<AtomicU64>,
}

/// The writing end of a [`Topology`]; owned by the monitor.
#[derive(Debug)]
pub struct Publisher {
    current: Arc<ArcSwap<Snapshot>>,
    changes: watch::Sender<u64>,
}

/// Suspicions that may wait to be looked into; more say nothing new.
const MAX_SUSPICIONS: usize = 16;

/// A topology in which nothing is known yet, its writing end, and the suspicions of its users.
pub fn channel() -> (Publisher, Topology, mpsc::Receiver<PeerId>) {
    let current = Arc::new(ArcSwap::from_pointee(Snapshot::unknown()));
    let (changes, changed) = watch::channel(0);
    let (suspicions, suspected) = mpsc::channel(MAX_SUSPICIONS);
    let publisher = Publisher { current: current.clone(), changes };
    let used = Arc::default();
    (publisher, Topology { current, changes: changed, suspicions, used }, suspected)
}

impl Publisher {
    /// Makes `snapshot` the newest.
    pub fn publish(&self, snapshot: Snapshot) {
        let sequence = snapshot.sequence;
        self.current.store(Arc::new(snapshot));
        self.changes.send_replace(sequence);
    }
}

impl Topology {
    /// The newest snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// A reader for one thread: looking at the newest snapshot then costs one atomic load.
    pub fn reader(&self) -> Reader {
        Reader(Cache::new(self.current.clone()))
    }

    /// Wakes with every snapshot (several times per poll interval): for waiting until a standby
    /// has caught up. The value is the snapshot's sequence.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// Whether nobody has said before that the primary of `reign` was used.
    pub fn is_first_use(&self, reign: Reign) -> bool {
        self.used.fetch_max(reign.since_generation, Ordering::Relaxed) < reign.since_generation
    }

    /// Says that a connection to `node` just failed: it is asked at once instead of at the next poll.
    pub fn suspect(&self, node: PeerId) {
        // A full queue means that somebody is being asked already.
        let _ = self.suspicions.try_send(node);
    }
}

/// One thread's reader; see [`Topology::reader`].
#[derive(Debug, Clone)]
pub struct Reader(Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>);

impl Reader {
    /// The newest snapshot.
    pub fn load(&mut self) -> &Arc<Snapshot> {
        self.0.load()
    }
}
