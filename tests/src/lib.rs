//! A whole shard on one machine: `manatee-lab` and the end-to-end tests are built on this.
//!
//! Real PostgreSQL, real ZooKeeper, the real programs; as root each database host in a network
//! namespace of its own, so that it can be cut off, lose power, hang and come back.

pub mod binaries;
pub mod clock;
pub mod conformance;
pub mod console;
pub mod disk;
pub mod equivalence;
pub mod fault;
pub mod foreign;
pub mod health;
pub mod host;
pub mod lab;
pub mod network;
pub mod oracle;
pub mod pgbench;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod reaper;
pub mod relay;
pub mod runfile;
pub mod scenario;
pub mod smoke;
pub mod state;
pub mod suites;
pub mod zookeeper;
pub mod zpool;
