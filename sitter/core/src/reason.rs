//! Reasons for what a peer does, as data: a stable code for programs, one line of text for people.
//!
//! The text may be reworded at any time, so no program reads it. A code keeps its meaning once it was released; a peer of
//! another version may have codes that are not known here. `GET /status` shows both.
//!
//! A reason never contains what changes all the time (durations, positions that move): each change of it is logged.

mod takeover;
mod within;

use manatee_shared::cluster::Role;
use manatee_shared::ids::PeerId;
use manatee_shared::lsn::WalPosition;
use serde::{Deserialize, Serialize};
use strum_macros::{EnumDiscriminants, IntoStaticStr};

pub use self::takeover::{Blocker, BlockerCode, TakeoverCause};
pub use self::within::{
    MembershipChange, RejoinCause, ReplaceCause, Shortfall, SyncCondition, SyncLoss, SyncPlan, SyncTrouble, Unsaid,
};
use crate::machine::capacity::Lack;
use crate::machine::local::Gate;

/// Reason for an action. (Derives `Error` for its text.)
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, EnumDiscriminants)]
#[strum_discriminants(
    name(ReasonCode),
    derive(Hash, Serialize, Deserialize, IntoStaticStr),
    serde(rename_all = "snake_case"),
    strum(serialize_all = "snake_case")
)]
pub enum Reason {
    /// Nothing was decided yet.
    #[error("starting")]
    Starting,
    /// A step failed lately, and is tried again after a pause.
    #[error("{why}; it failed {times} times, last with: {problem}; next try soon")]
    BackingOff {
        /// Reason for the step.
        why: Box<Reason>,
        /// Failures in a row.
        times: u32,
        /// The last failure.
        problem: String,
    },

    // ── This peer's part in the shard.
    /// The data directory is not PostgreSQL's, of another version, unreadable.
    #[error("the data directory cannot be used: {0}")]
    DataUnusable(String),
    /// The data belongs to another cluster (rule 10).
    #[error("the data here is of another cluster: {found}, the shard's is {expected} (rule 10)")]
    ForeignData {
        /// The system identifier of the data.
        found: String,
        /// The shard's.
        expected: String,
    },
    /// The state node cannot be parsed or breaks a rule.
    #[error("the cluster state is corrupt, PostgreSQL stays as it is; an operator must repair it: {0}")]
    StateCorrupt(String),
    /// The state is of this generation, which is older than one seen before (rule 8).
    #[error(
        "the cluster state went back to generation {0}: an old one was put there, PostgreSQL stays as it is; an \
         operator must restore the state (rule 8)"
    )]
    StateOutdated(u64),
    /// The state was not read yet, and PostgreSQL stays as it is (rule 9).
    #[error("the cluster state was not read yet; PostgreSQL stays as it is (rule 9)")]
    StateUnread,
    /// The state was not read yet; the standby is started to follow this peer as before (rule 9).
    #[error("the cluster state was not read yet; following {0} as before (rule 9)")]
    StateUnreadStart(PeerId),
    /// The state was not read yet; the standby is up, and its configuration is confirmed (rule 9).
    #[error("the cluster state was not read yet; PostgreSQL is up, following as before (rule 9)")]
    StateUnreadConfirm,
    /// This primary stops: another peer runs in one-node-write mode.
    #[error("another peer runs in one-node-write mode")]
    StopForLonePrimary,
    /// Peers other than the lone primary stay out.
    #[error("the shard is in one-node-write mode: other peers stay out")]
    OutsideOneNodeWriteMode,
    /// This peer has no election node.
    #[error("this peer has no election node")]
    NotRegistered,
    /// The election node of this peer is of an earlier process.
    #[error("the election node of this peer is of an earlier process")]
    RegisteredByEarlierProcess,

    // ── An orderly stop, a planned promotion.
    /// The stopping primary asks the sync to take over.
    #[error("stopping, as asked: the sync is to take over")]
    StoppingAsksSync,
    /// The stopping primary waits for the sync to take over.
    #[error("stopping, as asked: the sync is taking over")]
    StoppingHandsOver,
    /// The stopping peer leaves the election.
    #[error("stopping, as asked: others need not wait for the session to expire")]
    StoppingLeaves,
    /// PostgreSQL is stopped because the sitter stops.
    #[error("stopping, as asked")]
    Stopping,
    /// PostgreSQL is stopped, the sitter ends.
    #[error("stopped, as asked")]
    Stopped,
    /// The primary's clients are to come to rest before the sync takes over.
    #[error("a promotion of the sync was asked for: waiting for our clients")]
    PromotionDrains,
    /// The primary's clients are at rest.
    #[error("our clients are at rest: the sync may take over")]
    PromotionDrained,

    // ── The first setup of a shard.
    /// Whether the shard has a state cannot be asked.
    #[error("the shard has no state as far as is known, and ZooKeeper does not answer")]
    SetupWithoutZooKeeper,
    /// The shard's state is gone and its history is not (rule 8).
    #[error("the shard's state is gone but its history is not: an operator must restore it (rule 8)")]
    SetupHasHistory,
    /// The history was not looked for yet.
    #[error("whether the shard has a history is not known yet")]
    SetupHistoryUnknown,
    /// The state was there in this process's life and is gone (rule 8).
    #[error("the shard's state was there and is gone: an operator must restore it (rule 8)")]
    SetupStateLost,
    /// A peer has data (rule 8).
    #[error(
        "the shard has no state, but peer {peer} has data (system identifier {identifier}): an operator must restore \
         the state (rule 8)"
    )]
    SetupPeerHasData {
        /// The peer.
        peer: PeerId,
        /// The system identifier of its data.
        identifier: String,
    },
    /// A peer has a data directory that cannot be used.
    #[error("the shard has no state, and peer {peer} has a data directory that cannot be used: {problem}")]
    SetupPeerUnusable {
        /// The peer.
        peer: PeerId,
        /// Problem.
        problem: String,
    },
    /// A peer has not said yet whether it has data.
    #[error("first setup: peer {0} has not said yet whether it has data")]
    SetupPeerSilent(PeerId),
    /// A shard needs two peers.
    #[error("a shard is set up by two peers or more; waiting for another")]
    SetupNeedsPeers,
    /// No peer is registered.
    #[error("nobody is active")]
    SetupNobodyActive,
    /// Another peer sets up the shard.
    #[error("peer {0} sets up the shard")]
    SetupByOther(PeerId),
    /// This peer, first in election order, creates the data.
    #[error("first setup: nobody has data, and this peer is first in election order")]
    SetupInitialises,
    /// This peer has created the data and writes the first state.
    #[error("first setup: the data is initialised")]
    SetupWritesState,

    // ── A standby.
    /// PostgreSQL is out of recovery here, but the state names another primary.
    #[error("the state names {primary} primary, this peer {role}: it must not serve as one")]
    NotPrimary {
        /// The state's primary.
        primary: PeerId,
        /// This peer's role.
        role: Role,
    },
    /// A standby's PostgreSQL is starting.
    #[error("PostgreSQL is starting")]
    StandbyStarting,
    /// A standby's PostgreSQL does not answer.
    #[error("PostgreSQL does not answer")]
    StandbyHung,
    /// The replay of a standby stands still for a setting that is too low: the next start gives it more.
    #[error("its replay stands still until a restart with more: {0}")]
    ReplayNeedsRestart(Lack),
    /// A state write of this peer may still happen, so its standby follows nobody.
    #[error("{0}; a state write of ours may still happen: following nobody")]
    FollowsNobody(Role),
    /// The standby is started.
    #[error("{role}, following {upstream}")]
    StandbyStarts {
        /// This peer's role.
        role: Role,
        /// The peer that it follows.
        upstream: PeerId,
    },
    /// The standby is given another configuration.
    #[error("{role}, following {upstream}, gate {gate}")]
    StandbyConfigured {
        /// This peer's role.
        role: Role,
        /// The peer that it follows.
        upstream: PeerId,
        /// Its gate.
        gate: Gate,
    },
    /// The standby streams.
    #[error("{role}, streaming from {upstream}")]
    Streaming {
        /// This peer's role.
        role: Role,
        /// The peer that it follows.
        upstream: PeerId,
    },
    /// The standby does not stream; PostgreSQL tries.
    #[error("{role}, not streaming from {upstream}")]
    NotStreaming {
        /// This peer's role.
        role: Role,
        /// The peer that it is to follow.
        upstream: PeerId,
    },
    /// A rejoin is needed, and left to an operator.
    #[error(
        "this data cannot follow: {0}; rejoin = \"manual\" leaves it to an operator: run `manatee-adm rebuild` here"
    )]
    RejoinManual(RejoinCause),
    /// A rejoin is needed, but ZooKeeper does not answer.
    #[error("a rejoin is needed, but ZooKeeper does not answer")]
    RejoinWithoutZooKeeper,
    /// A rejoin is needed; the end of the WAL here is read first.
    #[error("a rejoin is needed ({0}); reading how far the WAL here goes")]
    RejoinSurveys(RejoinCause),
    /// A rejoin is needed, but the primary does not answer.
    #[error("a rejoin is needed ({cause}), but the primary {primary} does not answer")]
    RejoinPrimarySilent {
        /// Cause.
        cause: RejoinCause,
        /// The primary.
        primary: PeerId,
    },
    /// A rejoin is needed, but the primary is not promoted yet.
    #[error("a rejoin is needed ({cause}), but the primary {primary} is not promoted yet")]
    RejoinPrimaryNotPromoted {
        /// Cause.
        cause: RejoinCause,
        /// The primary.
        primary: PeerId,
    },
    /// The data is brought back in line with the primary's.
    #[error("rejoining {primary}: {cause}")]
    Rejoining {
        /// Cause.
        cause: RejoinCause,
        /// The primary.
        primary: PeerId,
    },
    /// The rejoin that runs goes on.
    #[error("rejoining {0}")]
    RejoinGoesOn(PeerId),
    /// There is no data here, and ZooKeeper does not answer.
    #[error("there is no data here, and ZooKeeper does not answer")]
    CopyWithoutZooKeeper,
    /// PostgreSQL runs on a data directory that is not complete.
    #[error("the data directory is not complete")]
    DataIncomplete,
    /// The copy that runs goes on.
    #[error("copying the data from {0}")]
    CopyGoesOn(PeerId),
    /// There is no data here, and no peer to copy it from but this primary, which is not ready.
    #[error("there is no data here; waiting for {0} to be ready to copy from")]
    CopyWithoutSource(PeerId),
    /// The data is copied.
    #[error("{role} without data: copying from {from}")]
    Copying {
        /// This peer's role.
        role: Role,
        /// The peer that it is copied from.
        from: PeerId,
    },

    // ── A takeover by the sync.
    /// There is a cause for a takeover, which must not be.
    #[error("{cause}; no takeover: {blocker}")]
    TakeoverBlocked {
        /// The cause.
        cause: TakeoverCause,
        /// Blocker that forbids it.
        blocker: Blocker,
    },
    /// An operator asked for a takeover, which must not be.
    #[error("asked to take over, but no: {0}")]
    PromotionBlocked(Blocker),
    /// An operator asked for a takeover, which waits until the primary's clients are at rest.
    #[error("asked to take over; the primary waits for its clients")]
    PromotionAwaitsClients,
    /// The outcome of a state write is not known yet.
    #[error("the outcome of a state write is not known yet")]
    WriteUncertain,
    /// The outcome of the write of a takeover is not known yet.
    #[error("takeover write outcome unknown, waiting for ZooKeeper")]
    TakeoverUncertain,
    /// The takeover begins: the WAL receiver is stopped.
    #[error("takeover, stopping the WAL receiver: {0}")]
    TakeoverStopsReceiver(TakeoverCause),
    /// The takeover waits for the end of the WAL receiver.
    #[error("takeover, waiting for the WAL receiver to end: {0}")]
    TakeoverAwaitsReceiver(TakeoverCause),
    /// The takeover is written.
    #[error("takeover with {sync} as sync at {received}: {cause}")]
    TakeoverWrites {
        /// The coming sync.
        sync: PeerId,
        /// The end of the WAL received.
        received: WalPosition,
        /// The cause.
        cause: TakeoverCause,
    },

    // ── The primary.
    /// The state names this peer primary, but its data is gone.
    #[error("the state names this peer primary, but its data is gone: only another peer or an operator can help")]
    PrimaryDataGone,
    /// The primary's PostgreSQL is down; the end of its WAL is read before it is started.
    #[error("primary: PostgreSQL is down, reading how far its WAL goes")]
    PrimarySurveys,
    /// The primary's PostgreSQL is down, and started with the gate closed (rule 7).
    #[error("primary: PostgreSQL is down, starting it with the gate closed (rule 7)")]
    PrimaryStarts,
    /// The primary's PostgreSQL is starting.
    #[error("primary: PostgreSQL is starting")]
    PrimaryStarting,
    /// The primary is not started before the sync has said how far its WAL goes.
    #[error("primary: PostgreSQL is not started before the sync {sync} has said how far its WAL goes: {unsaid}")]
    PrimaryAwaitsSync {
        /// The sync.
        sync: PeerId,
        /// Reason why it has not said so.
        unsaid: Unsaid,
    },
    /// The primary is not started before a peer has said how far its WAL goes; this sync is not there.
    #[error(
        "primary: PostgreSQL is not started before another peer has said how far its WAL goes; the sync {0} is not there"
    )]
    PrimaryAwaitsPeers(PeerId),
    /// This primary's disk came back older than it was.
    #[error(
        "primary: {0}: this disk came back older than it was, and writes nothing; the sync is to take over (to go on \
         from here all the same, and lose what only others have: `manatee-adm set-onwm -m on`)"
    )]
    DiskOlder(Shortfall),
    /// The primary's PostgreSQL does not answer.
    #[error("primary: PostgreSQL does not answer")]
    PrimaryHung,
    /// The primary's PostgreSQL does not answer; it is stopped, for this peer has left the election.
    #[error("primary: PostgreSQL does not answer; another peer may take over")]
    PrimaryHungStopped,
    /// The primary's PostgreSQL does not answer; this peer leaves the election.
    #[error("primary: PostgreSQL does not answer; handing over")]
    PrimaryHungHandsOver,
    /// The primary's PostgreSQL does not answer; nobody can take over, so it is restarted.
    #[error("primary: PostgreSQL does not answer; nobody can take over, so it is restarted")]
    PrimaryHungRestarted,
    /// The primary's PostgreSQL does not answer, and nobody can take over.
    #[error("primary: PostgreSQL does not answer; nobody can take over")]
    PrimaryHungAlone,
    /// Before the promotion the WAL receiver is stopped.
    #[error("primary by the state: stopping the WAL receiver before the promotion")]
    PromotingStopsReceiver,
    /// Before the promotion the WAL receiver is to end.
    #[error("primary by the state: waiting for the WAL receiver to end")]
    PromotingAwaitsReceiver,
    /// Before the promotion the sync is to say how far its WAL goes.
    #[error("primary by the state: not promoted before the sync {sync} has said how far its WAL goes: {unsaid}")]
    PromotingAwaitsSync {
        /// The sync.
        sync: PeerId,
        /// Reason why it has not said so.
        unsaid: Unsaid,
    },
    /// There is no promotion while ZooKeeper does not answer.
    #[error("primary by the state as last read, but ZooKeeper does not answer: not promoting")]
    PromotingWithoutZooKeeper,
    /// PostgreSQL leaves recovery.
    #[error("primary by the state: leaving recovery")]
    Promoting,
    /// The primary is given another configuration.
    #[error("primary: {plan}, gate {gate}")]
    PrimaryConfigured {
        /// Fate of the sync.
        plan: SyncPlan,
        /// The primary's gate.
        gate: Gate,
    },
    /// The primary cannot write the state now.
    #[error("primary: {0}; the state cannot be written now")]
    PrimaryCannotWrite(SyncPlan),
    /// The replacement of the sync waits until the walsenders have applied the former requirement.
    #[error("primary: {0}; waiting for walsenders to apply the previous synchronous_standby_names")]
    ReplacementSettles(SyncPlan),
    /// The replacement of the sync waits until the walsenders have applied that this peer is required, too.
    #[error("replacing the sync by {0}: waiting for the walsenders to apply it")]
    ReplacementApplies(PeerId),
    /// The coming sync is not an async any more.
    #[error("{0} is not an async any more")]
    ReplacementLeft(PeerId),
    /// The new sync is written.
    #[error("{new} becomes sync at {at}: {cause}")]
    ReplacementWrites {
        /// The new sync.
        new: PeerId,
        /// The end of this primary's WAL.
        at: WalPosition,
        /// Cause of the sync's replacement.
        cause: ReplaceCause,
    },
    /// There is no sync to replace.
    #[error("one-node-write mode")]
    WithoutSync,
    /// The end of one-node-write mode waits until the walsender of the coming sync has applied that it is required.
    #[error("leaving one-node-write mode: waiting for the walsender of {0} to apply it")]
    LoneApplies(PeerId),
    /// The coming sync is not registered any more.
    #[error("leaving one-node-write mode: {0} is not registered any more")]
    LoneLeft(PeerId),
    /// One-node-write mode ends: the sync is written.
    #[error("leaving one-node-write mode: {new} becomes sync at {at}")]
    LoneWrites {
        /// The new sync.
        new: PeerId,
        /// The end of this primary's WAL.
        at: WalPosition,
    },
    /// The list of peers is written.
    #[error("primary: {}", join(.0))]
    Membership(Vec<MembershipChange>),
    /// The primary serves: nothing to do.
    #[error("primary: {0}")]
    PrimaryServes(SyncPlan),
    /// The primary's gate is closed (rule 7).
    #[error("primary: {0}; the gate is closed until the sync has everything")]
    PrimaryGateClosed(SyncPlan),
}

impl Reason {
    /// Its code.
    pub fn code(&self) -> ReasonCode {
        self.into()
    }

    /// Blocker of a change of roles that is due; None: none is due, or nothing keeps it.
    pub fn blocker(&self) -> Option<BlockerCode> {
        match self {
            Self::BackingOff { why, .. } => why.blocker(),
            Self::TakeoverBlocked { blocker, .. } | Self::PromotionBlocked(blocker) => Some(blocker.code()),
            Self::PrimaryConfigured { plan, .. }
            | Self::PrimaryCannotWrite(plan)
            | Self::PrimaryServes(plan)
            | Self::PrimaryGateClosed(plan) => plan.blocker(),
            _ => None,
        }
    }
}

impl ReasonCode {
    /// As in `/status` and in the log.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// Changes as one text.
pub(crate) fn join(changes: &[MembershipChange]) -> String {
    changes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    use super::*;

    fn peer(number: u8) -> PeerId {
        format!("10.0.0.{number}:5432:12345").parse().unwrap()
    }

    /// Programs of other versions, alerts and scripts know these.
    #[test]
    fn codes_are_the_released_ones() {
        let lost = SyncLoss { sync: peer(2), trouble: SyncTrouble::NodeGone };
        let blocker = Blocker::NoFitAsync;
        let plan = SyncPlan::Keep(SyncCondition::Lost { loss: lost, blocker });
        let blocked = Reason::TakeoverBlocked { cause: TakeoverCause::NodeGone, blocker: Blocker::Frozen };
        let again =
            |why: &Reason| Reason::BackingOff { why: Box::new(why.clone()), times: 2, problem: "no".to_owned() };
        for (reason, code, blocker) in [
            (Reason::PrimaryServes(plan), "primary_serves", Some("no_fit_async")),
            (again(&blocked), "backing_off", Some("frozen")),
            (blocked, "takeover_blocked", Some("frozen")),
            (Reason::PromotionBlocked(Blocker::NoAsync), "promotion_blocked", Some("no_async")),
            (Reason::RejoinManual(RejoinCause::WasPrimary), "rejoin_manual", None),
        ] {
            assert_eq!((reason.code().name(), serde_json::to_value(reason.code()).unwrap()), (code, code.into()));
            assert_eq!(reason.blocker().map(|blocker| serde_json::to_value(blocker).unwrap()), blocker.map(Into::into));
        }
    }

    #[test]
    fn the_text_tells_causes_and_remedies() {
        let loss = SyncLoss { sync: peer(2), trouble: SyncTrouble::Slow };
        let plan = SyncPlan::Replace { new: peer(3), cause: ReplaceCause::Lost(loss) };
        assert_eq!(
            Reason::PrimaryConfigured { plan, gate: Gate::Open }.to_string(),
            "primary: replacing the sync by 10.0.0.3:5432:12345: the sync 10.0.0.2:5432:12345 is slow to acknowledge, gate open"
        );
        let changes = vec![MembershipChange::Left(peer(2)), MembershipChange::RequestRemoved];
        assert_eq!(
            Reason::Membership(changes).to_string(),
            "primary: async 10.0.0.2:5432:12345 left; removed a request to promote that does not apply any more"
        );
    }
}
