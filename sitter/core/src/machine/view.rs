//! Everything `decide` may look at.

use std::collections::{BTreeMap, BTreeSet};

use manatee_shared::cluster::Peer;
use manatee_shared::ids::PeerId;
use manatee_shared::lsn::{Lsn, WalPosition};
use manatee_shared::zk::{self, Version};

use super::action::{Action, ActionKind};
use super::capacity::Capacities;
use super::failure::FailureKind;
use super::local::{Data, EndOfWal, Local, ServerConfig};

/// Health of another peer as seen from here, by heartbeats. Its word about itself is as of its last
/// answer, with durations brought up to now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerHealth {
    /// Milliseconds since its sitter last answered; None if it never did.
    pub silent_ms: Option<u64>,
    /// Silence (ms) that the way to it explains: a long line, packets that had to be sent again. Not
    /// counted in `silent_ms`, and not to be held against its PostgreSQL either, which uses the same way.
    pub explained_ms: u64,
    /// Its host answers, but its sitter's port is closed: the process is gone, no need to wait.
    pub refused: bool,
    /// Its sitter says that its PostgreSQL cannot commit or is down, for this long
    /// ([`Observed::postgres_down_ms`] there).
    pub postgres_down_ms: Option<u64>,
    /// Its sitter says that something that a takeover would need failed when it was tried, for this long: not what all
    /// peers share.
    pub unready_ms: Option<u64>,
    /// Its sitter says that it is stopping.
    pub stopping: bool,
    /// It finds these peers gone itself ([`super::followers::suspects`] there).
    pub suspects: BTreeSet<PeerId>,
    /// Its data directory, as it says. Needed for the first setup and before it is listed: without
    /// it neither happens.
    pub data: Option<Data>,
    /// Its PostgreSQL is a primary, or a standby that streams ([`super::suspicion::streams`] there).
    pub streaming: Option<bool>,
    /// The generation of the state it last read.
    pub generation: Option<u64>,
    /// It is the primary, and finds that its disk came back older than it was ([`super::returning::is_older`] there).
    pub older: bool,
    /// End of its WAL on disk, as it says ([`super::local::Local::end_of_wal`] there).
    pub wal: Option<EndOfWal>,
    /// The highest generation that it ever saw with the data it has ([`Observed::newest_generation`] there).
    pub newest_generation: Option<u64>,
    /// Values with which its PostgreSQL was started, of the settings that a standby needs as high as its primary's.
    pub capacities: Option<Capacities>,
}

/// Settings that decisions depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Silence after which a peer is suspected, ms.
    pub suspicion_timeout_ms: u64,
    /// Time that a crashed PostgreSQL may take to restart in place before its peers take over, ms.
    pub restart_budget_ms: u64,
    /// Time for which a standby may fail to stream from a healthy primary before it is rejoined without
    /// a clear error, ms. Long (30 s): a slow start is no divergence (H10).
    pub rejoin_after_ms: u64,
    /// Stop before the first destructive step of a rejoin.
    pub manual_rejoin: bool,
    /// This peer, alone, may run in one-node-write mode.
    pub one_node_write_mode: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            suspicion_timeout_ms: 1_000,
            restart_budget_ms: 1_000,
            rejoin_after_ms: 30_000,
            manual_rejoin: false,
            one_node_write_mode: false,
        }
    }
}

/// An action being executed.
#[derive(Clone, Debug, PartialEq)]
pub struct InFlight {
    /// The action.
    pub action: Action,
    /// Duration so far, ms.
    pub for_ms: u64,
}

/// A step that failed, kept until the same step succeeds or a different step (other than
/// [`Action::Wait`]) is tried: bounds retries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastFailure {
    /// Action.
    pub action: ActionKind,
    /// Number of times in a row.
    pub times: u32,
    /// Milliseconds since.
    pub ago_ms: u64,
    /// Problem, for people.
    pub problem: String,
    /// Kind of the failure.
    pub kind: Option<FailureKind>,
}

/// Facts that follow from watching the other inputs over time; filled in by
/// [`super::tracker::Tracker::complete`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Time (ms) for which the election node of each listed peer has been missing while we were
    /// connected; absent: it is there, or not known.
    pub missing_ms: BTreeMap<PeerId, u64>,
    /// As primary: how long (ms) each peer of the chain has not followed us: for how long it has not
    /// been streaming, or how old the oldest WAL is that it has not acknowledged. Absent: it follows.
    pub stalled_ms: BTreeMap<PeerId, u64>,
    /// As primary: how long (ms) lately each peer of the chain streamed, but more than the suspicion
    /// timeout behind. Absent: never.
    pub slow_ms: BTreeMap<PeerId, u64>,
    /// Time (ms) for which the newest version of the state has been known.
    pub state_ms: u64,
    /// The version of the state in which our clients were found at rest ([`super::action::ServerAction::Drain`]).
    pub drained: Option<Version>,
    /// Time (ms) for which our PostgreSQL has not answered, or has no room; None: it can commit.
    pub postgres_down_ms: Option<u64>,
    /// End of WAL when PostgreSQL was first seen out of recovery in its present run: what the sync
    /// must have before the gate opens (rule 7).
    pub first_flush: Option<Lsn>,
    /// End of our WAL when this process last saw PostgreSQL run over this data.
    pub known_end: Option<WalPosition>,
    /// As standby: this process has seen everything here that the primary said it had, and nothing got lost since.
    pub is_whole: bool,
    /// The generation that this process wrote itself, if that was the last state write that it saw through.
    pub wrote_generation: Option<u64>,
    /// Upstreams from which streaming failed lately.
    pub avoid: BTreeSet<PeerId>,
    /// This process has announced itself: its own election node is there, or will be again.
    pub joined: bool,
    /// The shard had a state in this process's life: it is never set up anew (rule 8).
    pub had_state: bool,
    /// Rejoins tried since PostgreSQL last streamed.
    pub rejoins: u32,
    /// The last of them did not succeed: it changed nothing.
    pub rejoin_failed: bool,
    /// The highest generation seen by this sitter, or by its predecessors over the same data. A state of a lower one is an old one that
    /// somebody put there.
    pub newest_generation: Option<u64>,
    /// The last failure.
    pub last_failure: Option<LastFailure>,
    /// Time (ms) for which this sitter has not known the state, since it was started; 0 once it does.
    pub unread_ms: u64,
    /// The configuration that PostgreSQL was last given, whether or not it was confirmed.
    pub given: Option<ServerConfig>,
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
    /// A state write of ours ended without an answer (`ZkError::Unknown`, or it was dropped) and
    /// may still happen. The driver clears it once a read that was sent *after* that write, on a
    /// connected session, has answered and the view shows its result (ZooKeeper keeps the order of
    /// one client's requests). Until then nothing is undone that the write relies on. The tracker
    /// sets it as well: for a write of ours that is not seen yet, and for what an earlier process
    /// of this peer may have left under way.
    pub uncertain_write: bool,
    /// The local PostgreSQL.
    pub local: Local,
    /// Too little room is left on the data's disk: PostgreSQL will fail soon, if it has not.
    pub disk_full: bool,
    /// The other peers.
    pub health: BTreeMap<PeerId, PeerHealth>,
    /// The action being executed, if any.
    pub in_flight: Option<InFlight>,
    /// This sitter was asked to stop; for how long, ms.
    pub stopping_ms: Option<u64>,
    /// Settings.
    pub settings: Settings,
    /// Conclusions of the tracker.
    pub observed: Observed,
}
