//! What is known of the shard's nodes, and which of them may serve a session.

pub mod consistency;
pub mod knowledge;
pub mod snapshot;

pub use snapshot::{Node, Primary, Reign, Sample, Snapshot, Standby};
