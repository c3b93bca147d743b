//! Causes of a takeover by the sync, and its blockers.

use manatee_shared::ids::PeerId;
use manatee_shared::lsn::{Lsn, WalPosition};
use serde::{Deserialize, Serialize};
use strum_macros::EnumDiscriminants;

use super::Unsaid;

/// Cause of a takeover by the sync. (Derives `Error` for its text.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TakeoverCause {
    /// The primary's sitter is stopping.
    #[error("the primary says that it is stopping")]
    Stopping,
    /// The primary's PostgreSQL is down.
    #[error("the primary says that its PostgreSQL is down")]
    PostgresDown,
    /// The primary's election node is gone.
    #[error("the primary's election node is gone")]
    NodeGone,
    /// The primary's sitter refuses connections, as several peers find.
    #[error("the primary is suspected by several peers: its sitter's process is gone")]
    ProcessGone,
    /// The primary is silent, as several peers find.
    #[error("the primary is suspected by several peers: it is silent")]
    Silent,
    /// An operator, or the stopping primary, asked for it.
    #[error("it was asked for")]
    Requested,
}

/// Blocker of a change of roles that is due. (Derives `Error` for its text.)
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, EnumDiscriminants)]
#[strum_discriminants(name(BlockerCode), derive(Hash, Serialize, Deserialize), serde(rename_all = "snake_case"))]
pub enum Blocker {
    /// There is no session with ZooKeeper, or no election node of this peer.
    #[error("ZooKeeper does not answer, or this peer is not registered")]
    NotRegistered,
    /// The shard is frozen.
    #[error("the shard is frozen")]
    Frozen,
    /// The shard is in one-node-write mode.
    #[error("the shard is in one-node-write mode")]
    OneNodeWriteMode,
    /// The end of the WAL here is not known.
    #[error("PostgreSQL has not streamed since it started, so what it received is not known")]
    ReceivedUnknown,
    /// A peer has seen a later generation.
    #[error("{peer} has seen generation {generation}: the state is an old one, or about to change")]
    NewerGeneration {
        /// The peer.
        peer: PeerId,
        /// Generation that it has seen.
        generation: u64,
    },
    /// The beginning of the generation is not here (rule 4).
    #[error("received {received}, but the generation began at {init}")]
    Behind {
        /// The end of the WAL here.
        received: WalPosition,
        /// The beginning of the generation.
        init: Lsn,
    },
    /// This disk may have come back older, and a peer has not said how far its own WAL goes.
    #[error("whether {peer} has more WAL is not known yet: {unsaid}")]
    PeerUnheard {
        /// The peer.
        peer: PeerId,
        /// Reason why it has not said so.
        unsaid: Unsaid,
    },
    /// This disk may have come back older: a peer has more WAL.
    #[error(
        "{peer} has WAL up to {theirs}, ours ends at {ours}, and since this sitter was started it has not been as far as \
         the primary: this disk may have come back older than it was"
    )]
    PeerAhead {
        /// The peer.
        peer: PeerId,
        /// The end of its WAL.
        theirs: WalPosition,
        /// The end of the WAL here.
        ours: WalPosition,
    },
    /// This disk may have come back older: the primary has more WAL.
    #[error(
        "the primary has WAL up to {theirs}, ours ends at {ours}, and it has not been complete since this sitter was started"
    )]
    PrimaryAhead {
        /// The end of the primary's WAL.
        theirs: WalPosition,
        /// The end of the WAL here.
        ours: WalPosition,
    },
    /// No peer could become the next sync (rule 5).
    #[error("no async is alive to become the sync, nor is any other peer")]
    NoAsync,
    /// No async is fit to replace the sync.
    #[error("no async is fit to replace it")]
    NoFitAsync,
}

impl Blocker {
    /// Its code.
    pub fn code(&self) -> BlockerCode {
        self.into()
    }
}
