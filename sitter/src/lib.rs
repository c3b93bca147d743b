//! Manatee's host service. `bin → driver → execute → machine`; the machine is pure.

pub mod adm;
pub mod api;
pub mod backup;
pub mod config;
pub mod driver;
pub mod execute;
pub mod heartbeat;
pub mod machine;
pub mod memory;
pub mod metrics;
pub mod postgres;
pub mod rejoin;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod snapshotter;
pub mod storage;
