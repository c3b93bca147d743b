//! Decisions of the proxy, without carrying out any of them: the wire protocol, a client's session, routing, what
//! is known of the topology, login rules. Bytes and facts in, steps and verdicts out.
//!
//! Pure by construction: no runtime and no I/O crate in `Cargo.toml`; `clippy.toml` refuses clocks, files,
//! the environment, randomness and sockets. Moments and random numbers are arguments.
#![forbid(unsafe_code)]

pub mod error;
pub mod route;
pub mod rules;
pub mod session;
pub mod terms;
pub mod topology;
pub mod wire;
