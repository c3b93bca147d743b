//! Common parts of Manatee's two programs: the cluster state and its rules, ZooKeeper, the topology
//! watcher (also the Rust client library), configuration helpers, telemetry and shutdown.
//!
//! Nothing here decides anything: the sitter's state machine and the proxy's routing do.
#![forbid(unsafe_code)]

pub mod cluster;
pub mod config;
pub mod ids;
pub mod invariants;
pub mod lsn;
pub mod service;
pub mod shutdown;
pub mod telemetry;
pub mod tls;
pub mod topology;
pub mod zk;
