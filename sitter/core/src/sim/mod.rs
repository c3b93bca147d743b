//! The whole shard in virtual time: several cores over the fake ZooKeeper and a model of
//! PostgreSQL, with everything that can break breaking.
//!
//! - [`plan`]: what is going to happen, as data: made from a seed, kept in replay files, shrunk.
//! - [`world`]: time, and what is checked after every step. [`oracle`]: what must never happen.
//! - [`host`]: a machine with a sitter that runs the real tracker, heartbeat table and decision.
//! - [`actions`]: what the sitter's actions do to the model, step by step.
//! - [`postgres`], [`wal`], [`replication`]: timelines and records, streaming, acknowledgement as the
//!   walsenders do it (each with the configuration that *it* has applied), promotion, crashes.
//! - [`network`], [`heartbeats`], [`coordination`]: what gets through, and when. [`writes`]: writes of the state.
//! - [`faults`]: what breaks, and operators. [`mutation`]: bugs planted to see that they are found.
//!
//! `make sim SEEDS=n` runs n fresh seeds; `manatee-sim --replay FILE` repeats a failure with its
//! events. Only in tests and with the feature `sim`: not a part of the sitter.

mod actions;
mod coordination;
mod faults;
mod heartbeats;
mod host;
pub mod mutation;
mod network;
mod oracle;
pub mod plan;
mod postgres;
mod replication;
pub mod run;
#[cfg(test)]
mod scenarios;
#[cfg(test)]
mod tests;
mod wal;
mod world;
mod writes;

pub use world::{Counts, Failure};
