//! Manatee's host service. `bin → driver → execute → core`. The pure part, the state machine and its
//! simulation, is the crate `manatee-sitter-core`.

pub mod api;
pub mod config;
pub mod data;
pub mod driver;
pub mod execute;
pub mod heartbeat;
pub mod host;

pub mod metrics;
pub mod newest_generation;
pub mod postgres;
pub mod replay_limit;
pub mod snapshotter;
pub mod storage;
pub mod supervise;

pub use manatee_sitter_core::{machine, reason, status};
