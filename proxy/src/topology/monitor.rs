//! Being written.

use std::sync::Arc;

use tokio::sync::watch;

use super::snapshot::Snapshot;

/// Handle to the newest [`Snapshot`]; cheap to clone.
#[derive(Clone, Debug)]
pub struct Topology {
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

impl Topology {
    /// The newest snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshots.borrow().clone()
    }

    /// For waiting until something changes.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }

    /// A topology fed by somebody else, for tests.
    pub fn from_receiver(snapshots: watch::Receiver<Arc<Snapshot>>) -> Self {
        Self { snapshots }
    }
}
