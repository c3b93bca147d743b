//! Knowledge of the shard's nodes, and the choice of those that may serve a session.

pub mod consistency;
pub mod knowledge;
pub mod snapshot;

pub use snapshot::{Node, Primary, Reign, Sample, Snapshot, Standby};
