//! Decisions of the sitter, without carrying out any of them: the state machine of a peer, the fence before each step,
//! the table of heartbeats; and the simulation that runs them by the thousand.
//!
//! Pure by construction: no runtime and no I/O crate in `Cargo.toml`; `clippy.toml` refuses clocks, files,
//! the environment, randomness and sockets. Moments and random numbers are arguments.
#![forbid(unsafe_code)]

pub mod fence;
pub mod heartbeat;
pub mod machine;
pub mod named;
pub mod reason;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod status;
