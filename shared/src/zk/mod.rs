//! ZooKeeper as the shard sees it: one trait and the real client; the crate `manatee-fake-zookeeper` has a
//! deterministic fake.
//!
//! Readers never act on events. They read the newest [`View`], which the implementation keeps
//! current by watches and re-reads after every reconnection. Writers compare-and-set on the
//! version they decided from (rule 1).

pub mod client;
pub mod outcome;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::cluster::{ClusterState, Peer};
use crate::ids::PeerId;

/// Version of the `state` node, as ZooKeeper counts it.
pub type Version = i32;

/// State that another one is written over: the one it was decided from. The write fails over anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// This version of the `state` node.
    Version(Version),
    /// A shard that never had a state: there is no `state` node and no history (rule 8).
    Nothing,
    /// A state that was lost: there is no `state` node, whatever history there is. Only an operator restores it.
    Lost,
}

impl Over {
    /// The version of the node; None: there is no node.
    pub fn version(self) -> Option<Version> {
        match self {
            Self::Version(version) => Some(version),
            Self::Nothing | Self::Lost => None,
        }
    }
}

/// Our own session with ZooKeeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Session {
    /// Never connected, or reconnecting, or a write of ours is in doubt: what is shown may be old.
    /// Unknown is not down (rule 9).
    Disconnected,
    /// Connected; the view is being kept current.
    Connected,
    /// The session is over: our election node is, or soon will be, gone. The implementation
    /// opens a new session by itself.
    Expired,
}

impl Session {
    /// Every one, for metrics.
    pub const ALL: [Self; 3] = [Self::Connected, Self::Disconnected, Self::Expired];

    /// Its name in metrics and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Disconnected => "disconnected",
            Self::Expired => "expired",
        }
    }
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Content of the `state` node when last read.
#[derive(Clone, Debug, PartialEq)]
pub enum StateNode {
    /// Not read yet in this process's life.
    Unread,
    /// The node does not exist.
    Absent,
    /// A valid state.
    Valid {
        /// Version to compare-and-set on.
        version: Version,
        /// The state.
        state: Arc<ClusterState>,
    },
    /// Something unreadable. Nobody acts on it; everyone keeps serving and says so.
    Corrupt {
        /// Version of the unreadable node.
        version: Version,
        /// Problem.
        problem: String,
    },
}

impl StateNode {
    /// The state and its version, if there is a valid one.
    pub fn valid(&self) -> Option<(Version, &Arc<ClusterState>)> {
        match self {
            Self::Valid { version, state } => Some((*version, state)),
            _ => None,
        }
    }
}

/// A peer with a live election node.
#[derive(Clone, Debug, PartialEq)]
pub struct ActivePeer {
    /// The node's sequence number: election order. The highest of one peer counts.
    pub sequence: u64,
    /// The peer.
    pub peer: Peer,
}

/// Newest knowledge of a shard in ZooKeeper.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// Our session.
    pub session: Session,
    /// The `state` node.
    pub state: StateNode,
    /// Peers with an election node, by id. Empty until first read.
    pub active: BTreeMap<PeerId, ActivePeer>,
    /// Whether the shard has any history entry: a shard that has had a state is never set up anew
    /// (rule 8). None until first read.
    pub has_history: Option<bool>,
    /// Refusal by ZooKeeper of our reading or writing when it was tried last, for people: a takeover by us would
    /// fail (rule 11).
    pub refused: Option<String>,
}

impl View {
    /// Nothing known yet.
    pub fn unknown() -> Self {
        Self {
            session: Session::Disconnected,
            state: StateNode::Unread,
            active: BTreeMap::new(),
            has_history: None,
            refused: None,
        }
    }

    /// Active peers in election order.
    pub fn in_election_order(&self) -> Vec<&ActivePeer> {
        let mut peers: Vec<_> = self.active.values().collect();
        peers.sort_by_key(|active| active.sequence);
        peers
    }
}

/// Reason why an operation on ZooKeeper did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ZkError {
    /// The compare-and-set lost: somebody else wrote first. Read the view and decide again.
    #[error("the cluster state changed meanwhile")]
    Conflict,
    /// Our own election node is not there, so we may not write.
    #[error("our election node is gone")]
    NotRegistered,
    /// The outcome is not known (connection loss or timeout): it may have happened. Re-read.
    #[error("ZooKeeper did not answer in time: {0}")]
    Unknown(String),
    /// It did not and will not happen: the connection was lost before it reached ZooKeeper, or was not there.
    #[error("it was not written: {0}")]
    NotWritten(String),
    /// ZooKeeper refused.
    #[error("ZooKeeper refused: {0}")]
    Refused(String),
    /// It refused because we are not who may.
    #[error("ZooKeeper: {0}")]
    Denied(&'static str),
}

/// One history entry: a full copy of a state that was current once.
#[derive(Clone, Debug, PartialEq)]
pub struct HistoryEntry {
    /// Sequence number in the node's name; the order of events.
    pub zk_sequence: u64,
    /// Creation time of the node.
    pub time: Timestamp,
    /// The state written.
    pub state: ClusterState,
}

/// A shard's place in ZooKeeper.
#[async_trait]
pub trait Coordination: Send + Sync + 'static {
    /// The newest view; changes wake the receiver.
    fn view(&self) -> watch::Receiver<View>;

    /// Announces `peer` by an ephemeral node now and after every new session, removing nodes that
    /// earlier processes of the same peer left behind. Refuses nothing: two sitters with one id
    /// are told apart by the caller through [`View::active`]. A node that somebody else removed is
    /// re-created only by another `join`, lest two such sitters fight for ever.
    ///
    /// With [`ZkError::Unknown`] the wish stands, and is carried out as soon as possible.
    async fn join(&self, peer: Peer) -> Result<(), ZkError>;

    /// Removes our election node at once, so that others need not wait for an expiry, and stops
    /// announcing. The session stays. With [`ZkError::Unknown`] the wish stands.
    async fn leave(&self) -> Result<(), ZkError>;

    /// Writes `state` over `over` together with its history entry, in one transaction that also fails
    /// unless our election node exists (when [`Coordination::join`]ed). Returns the new version,
    /// which the view then shows already.
    ///
    /// After [`ZkError::Unknown`] the write may still happen, but only over `over` and as long
    /// as the election node exists. Until it is certain, the view says [`Session::Disconnected`]:
    /// the caller must keep whatever it prepared for the write (rule 3) and decide nothing new.
    /// The other errors mean that it did not and will not happen.
    async fn write_state(&self, over: Over, state: &ClusterState) -> Result<Version, ZkError>;

    /// All readable history entries in order. Entries of Manatee 1 are skipped.
    async fn history(&self) -> Result<Vec<HistoryEntry>, ZkError>;

    /// Closes the session (which removes the election node) and waits for it, bounded to a second.
    async fn close(&self);
}
