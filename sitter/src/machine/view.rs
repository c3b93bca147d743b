//! Everything `decide` may look at.

use std::collections::{BTreeMap, BTreeSet};

use manatee_shared::cluster::Peer;
use manatee_shared::ids::PeerId;
use manatee_shared::zk;

use super::local::Local;

/// How another peer looks from here, by heartbeats.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerHealth {
    /// Milliseconds since its sitter last answered; None if it never did.
    pub silent_ms: Option<u64>,
    /// Its host answers, but its sitter's port is closed: the process is gone, no need to wait.
    pub refused: bool,
    /// Its sitter says that its PostgreSQL can not commit or is down, for this long.
    pub postgres_down_ms: Option<u64>,
    /// Its sitter says that it is stopping.
    pub stopping: bool,
    /// It finds these peers gone itself.
    pub suspects: BTreeSet<PeerId>,
}

/// Settings that decisions depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Silence after which a peer is suspected, ms.
    pub suspicion_timeout_ms: u64,
    /// How long a crashed PostgreSQL may take to restart in place before its peers take over, ms.
    pub restart_budget_ms: u64,
    /// How long a standby may fail to stream before it is rejoined without a clear error, ms.
    pub rejoin_after_ms: u64,
    /// Stop before the first destructive step of a rejoin.
    pub manual_rejoin: bool,
    /// This peer, alone, may run in one-node-write mode.
    pub one_node_write_mode: bool,
}

/// An action being executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// [`super::action::Action::name`].
    pub action: &'static str,
    /// For how long, ms.
    pub for_ms: u64,
}

/// A step that failed, kept until something else is decided: bounds retries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastFailure {
    /// [`super::action::Action::name`].
    pub action: &'static str,
    /// How many times in a row.
    pub times: u32,
    /// Milliseconds since.
    pub ago_ms: u64,
    /// What went wrong, for people.
    pub problem: String,
}

/// The newest knowledge of one peer.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// Ourselves.
    pub me: Peer,
    /// Milliseconds on a monotonic clock of the caller; only differences mean anything.
    pub now_ms: u64,
    /// Wall clock, ms since 1970; only for the expiry of operators' promote requests.
    pub wall_ms: i64,
    /// ZooKeeper, including our session.
    pub zk: zk::View,
    /// How long (ms) the election node of each listed peer has been missing; absent: it is there.
    pub missing_ms: BTreeMap<PeerId, u64>,
    /// The local PostgreSQL.
    pub local: Local,
    /// The other peers.
    pub health: BTreeMap<PeerId, PeerHealth>,
    /// The action being executed, if any.
    pub in_flight: Option<InFlight>,
    /// The last failure.
    pub last_failure: Option<LastFailure>,
    /// This sitter was asked to stop; for how long, ms.
    pub stopping_ms: Option<u64>,
    /// Settings.
    pub settings: Settings,
}
