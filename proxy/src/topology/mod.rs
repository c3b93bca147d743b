//! Which node is the primary, which standbys may serve reads, and how far each has replayed.
//!
//! Two sources: the cluster state in ZooKeeper names roles, and every node is asked itself
//! ([`monitor`]). A [`Snapshot`] is the result, published as a whole whenever something changes.
//! Invariants: a primary is in a snapshot only when the newest known state names it *and* it
//! said `pg_is_in_recovery() = false` itself under that state; without ZooKeeper the last state
//! stays in use; a primary is never guessed.

pub mod consistency;
pub mod monitor;
pub mod snapshot;

pub use monitor::Topology;
pub use snapshot::{Node, Reign, Sample, Snapshot, Standby};
