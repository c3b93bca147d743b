//! The whole shard in virtual time: several cores over the fake ZooKeeper and a model of
//! PostgreSQL, with everything that can break breaking, from one seed.
//!
//! - [`postgres`]: WAL as timelines and records, streaming, synchronous acknowledgement as the
//!   walsenders do it (each with the configuration that *it* has applied), promotion, crashes.
//! - [`host`]: a machine with a sitter that runs the real tracker and the real decision.
//! - [`actions`]: what the sitter's actions do to the model, with delays, failures and halves.
//! - [`faults`]: what breaks when.
//! - [`oracle`]: what must never happen, checked at every acknowledgement and state write.
//! - [`world`]: time, network, clients.
//!
//! A run is a seed: `MANATEE_SIM_SEED=n` repeats one with its events shown, `MANATEE_SIM_SEEDS=n`
//! runs n fresh ones.

mod actions;
mod faults;
mod host;
mod oracle;
mod postgres;
mod tests;
mod world;
