//! Heartbeats without their I/O: what a peer says of itself, and the table of what was heard from all.

pub mod table;

use std::time::Duration;

/// Intervals and patience of asking peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between two questions to one peer.
    pub interval: Duration,
    /// Silence after which a peer is suspected. Also bounds each connect and each request, so
    /// that a host that died holds up nothing for longer.
    pub suspicion: Duration,
}
