//! Snapshot of the shard for sessions: immutable, shared, cheap to read.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use manatee_shared::cluster::Role;
use manatee_shared::ids::PeerId;
use manatee_shared::lsn::{Lsn, Timeline};

/// A PostgreSQL server of the shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// Identity.
    pub id: PeerId,
    /// Address of PostgreSQL.
    pub address: SocketAddr,
}

impl Node {
    /// The node a peer id describes.
    pub fn of(id: PeerId) -> Self {
        Self { id, address: SocketAddr::new(id.ip, id.pg_port) }
    }
}

/// A WAL position somebody reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Moment at which the question was *sent*: `lsn` covers every commit before.
    pub started: Instant,
    /// Insert position of the primary, or replay position of a standby.
    pub lsn: Lsn,
}

/// The unbroken rule of one primary. WAL positions compare within one reign; at a takeover, a new
/// one, the new generation's init_wal covers everything acknowledged before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reign {
    /// Peer that is named primary.
    pub primary: PeerId,
    /// Generation in which we first saw it named, or its timeline change.
    pub since_generation: u64,
}

/// The primary, confirmed by itself.
#[derive(Clone, Debug)]
pub struct Primary {
    /// Its node.
    pub node: Node,
    /// Its timeline when it last answered.
    pub timeline: Option<Timeline>,
}

/// A standby that answers, is in recovery and is listed in the replication chain.
#[derive(Clone, Debug)]
pub struct Standby {
    /// Its node.
    pub node: Node,
    /// Its place in the chain.
    pub role: Role,
    /// Its newest replay position.
    pub replayed: Sample,
    /// Delay behind the primary at that moment, in time.
    pub lag: Duration,
    /// Whether `lag` is within `routing.max_lag`. Reads go to fit standbys only.
    pub fit: bool,
}

/// The shard at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Rises with every published snapshot.
    pub sequence: u64,
    /// Generation of the newest valid state; 0 before one was read.
    pub generation: u64,
    /// Reign according to that state; None before one was read.
    pub reign: Option<Reign>,
    /// init_wal of that state.
    pub init_wal: Lsn,
    /// The primary, if it is confirmed and answering.
    pub primary: Option<Primary>,
    /// Loss of the previous primary, once another has taken over from it before our eyes.
    pub taken_over_from: Option<Instant>,
    /// Recent insert positions of the primary of this reign, oldest first. Bounded.
    pub positions: Arc<[Sample]>,
    /// Commits of the primary beyond this position wait for its sync, or may at any moment because
    /// the sync does not answer. A standby that does not get its WAL through the sync shows them
    /// already, the primary does not.
    pub unacknowledged_from: Option<Lsn>,
    /// Standbys that answer, in chain order.
    pub standbys: Vec<Standby>,
    /// Whether ZooKeeper is connected, so that the state is known to be current.
    pub state_is_current: bool,
}

impl Snapshot {
    /// Before anything is known.
    pub fn unknown() -> Self {
        Self {
            sequence: 0,
            generation: 0,
            reign: None,
            init_wal: Lsn::ZERO,
            primary: None,
            taken_over_from: None,
            positions: Arc::from([]),
            unacknowledged_from: None,
            standbys: Vec::new(),
            state_is_current: false,
        }
    }

    /// Node for writes, if there is one.
    pub fn primary(&self) -> Option<Node> {
        self.primary.as_ref().map(|primary| primary.node)
    }

    /// Standbys that may serve reads.
    pub fn fit_standbys(&self) -> impl Iterator<Item = &Standby> {
        self.standbys.iter().filter(|standby| standby.fit)
    }

    /// A standby by identity, fit or not.
    pub fn standby(&self, id: PeerId) -> Option<&Standby> {
        self.standbys.iter().find(|standby| standby.node.id == id)
    }

    /// Oldest known position of the primary whose sampling began after `moment`.
    pub fn position_after(&self, moment: Instant) -> Option<Lsn> {
        // From the newest on: whoever has just used something asks before there is another.
        let after = self.positions.iter().rev().take_while(|sample| sample.started > moment);
        after.last().map(|sample| sample.lsn)
    }
}
