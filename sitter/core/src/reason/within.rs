//! Parts of reasons: causes of a rejoin, the condition of the sync, changes of the list of peers.

use std::fmt;

use manatee_shared::ids::PeerId;
use manatee_shared::lsn::{Lsn, Timeline, WalPosition};

use super::{Blocker, BlockerCode};

/// Reason why this data cannot follow. (Derives `Error` for its text.)
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RejoinCause {
    /// PostgreSQL says so; its text.
    #[error("{0}")]
    CannotFollow(String),
    /// This peer was primary.
    #[error("this peer was primary and is not any more")]
    WasPrimary,
    /// It did not stream for long, without a clear error.
    #[error("it did not stream for long")]
    NotStreaming,
}

/// Reason why a peer has not said how far its WAL goes. (Derives `Error` for its text.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsaid {
    /// It does not answer.
    #[error("it is not heard of")]
    NotHeard,
    /// It has not said whether it has data.
    #[error("it has not said whether it has data")]
    DataUnknown,
    /// It still believes that it streams from here.
    #[error("it has not noticed yet that its upstream ended")]
    UpstreamEnded,
    /// Its PostgreSQL is down.
    #[error("its PostgreSQL is down")]
    PostgresDown,
    /// Its PostgreSQL still reads its WAL.
    #[error("its PostgreSQL has not come to the end of its WAL yet")]
    StillReplays,
}

/// Sign that the data here is less than it was. (Derives `Error` for its text.)
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Shortfall {
    /// The beginning of the generation is missing.
    #[error("its WAL does not reach the beginning of the generation")]
    Beginning,
    /// The end of the WAL lies before the beginning of the generation.
    #[error("its WAL ends at {0}, before the beginning of the generation")]
    EndsBefore(WalPosition),
    /// The promotion that began the generation is missing.
    #[error("its data is from before its promotion")]
    Promotion,
    /// A peer has WAL of the timeline that the promotion began.
    #[error("{peer} has WAL of timeline {timeline}, which its promotion began")]
    PromotedTimeline {
        /// The peer.
        peer: PeerId,
        /// The timeline.
        timeline: Timeline,
    },
    /// A peer has more of the timeline on which the WAL here ends.
    #[error("its WAL ends at {end}, but {peer} has it up to {theirs}")]
    PeerAhead {
        /// The end of the WAL here.
        end: WalPosition,
        /// The peer.
        peer: PeerId,
        /// Position up to which the peer has it.
        theirs: Lsn,
    },
}

/// A sync that does not do its part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyncLoss {
    /// The sync.
    pub sync: PeerId,
    /// Problem.
    pub trouble: SyncTrouble,
}

impl fmt::Display for SyncLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the sync {} {}", self.sync, self.trouble)
    }
}

/// Trouble of a sync. (Derives `Error` for its text.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SyncTrouble {
    /// It kept commits waiting for too long.
    #[error("is slow to acknowledge")]
    Slow,
    /// Its sitter is stopping.
    #[error("says that it is stopping")]
    Stopping,
    /// Its PostgreSQL is down.
    #[error("says that its PostgreSQL is down")]
    PostgresDown,
    /// It has no election node.
    #[error("has no election node")]
    NodeGone,
    /// Neither its sitter nor its PostgreSQL is heard of.
    #[error("is silent, and does not acknowledge")]
    Silent,
    /// It does not stream, or acknowledges nothing.
    #[error("does not follow")]
    NotFollowing,
}

/// Cause of the sync's replacement. (Derives `Error` for its text.)
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplaceCause {
    /// It does not do its part.
    #[error("{0}")]
    Lost(SyncLoss),
    /// A takeover would fail there, and not elsewhere.
    #[error("the sync {0} is not ready to take over")]
    NotReady(PeerId),
    /// An operator asked for it.
    #[error("an operator asked for it")]
    Requested,
}

/// Condition of the sync that stays. (Derives `Error` for its text.)
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SyncCondition {
    /// It does its part.
    #[error("the sync {0} is fit")]
    Fit(PeerId),
    /// It does its part; a promotion was asked for, but the shard is frozen.
    #[error("the sync {sync} is fit; {new} is not promoted while the shard is frozen")]
    FitFrozen {
        /// The sync.
        sync: PeerId,
        /// The peer that was to replace it.
        new: PeerId,
    },
    /// It does its part; the peer that is to replace it does not follow yet.
    #[error("the sync {sync} is fit; {new} is to replace it, and does not follow yet")]
    FitAwaitsNew {
        /// The sync.
        sync: PeerId,
        /// The peer that is to replace it.
        new: PeerId,
    },
    /// It does not do its part, and cannot be replaced.
    #[error("writes may wait: {loss}; {blocker}")]
    Lost {
        /// Problem.
        loss: SyncLoss,
        /// Blocker of its replacement.
        blocker: Blocker,
    },
    /// There is none.
    #[error("one-node-write mode")]
    None,
    /// There is none, but the first peer that follows becomes it.
    #[error("one-node-write mode, to be left for the first peer that follows")]
    NoneYet,
}

/// Fate of the sync.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyncPlan {
    /// It stays.
    Keep(SyncCondition),
    /// It is being replaced.
    Replace {
        /// By this async.
        new: PeerId,
        /// Because of this.
        cause: ReplaceCause,
    },
}

impl SyncPlan {
    /// Blocker of the sync's replacement, if that is due.
    pub fn blocker(&self) -> Option<BlockerCode> {
        match self {
            Self::Keep(SyncCondition::Lost { blocker, .. }) => Some(blocker.code()),
            Self::Keep(SyncCondition::FitFrozen { .. }) => Some(BlockerCode::Frozen),
            Self::Keep(_) | Self::Replace { .. } => None,
        }
    }
}

impl fmt::Display for SyncPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keep(condition) => write!(f, "{condition}"),
            Self::Replace { new, cause } => write!(f, "replacing the sync by {new}: {cause}"),
        }
    }
}

/// A change of the list of peers within a generation. (Derives `Error` for its text.)
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipChange {
    /// The primary has left recovery, on this timeline.
    #[error("promoted, on timeline {0}")]
    Promoted(Timeline),
    /// The system identifier of the shard is recorded.
    #[error("system identifier recorded")]
    IdentifierRecorded,
    /// An async is gone.
    #[error("async {0} left")]
    Left(PeerId),
    /// A deposed peer streams again.
    #[error("{0} is fit again, as async")]
    FitAgain(PeerId),
    /// A peer comes in.
    #[error("{0} joined, as async")]
    Joined(PeerId),
    /// An async moves, as an operator asked.
    #[error("{0} moved one place up, as asked")]
    MovedUp(PeerId),
    /// A request that lapsed is removed.
    #[error("removed a request to promote that does not apply any more")]
    RequestRemoved,
}
