//! Bugs planted on purpose, to see that the simulation finds them. Each is what somebody might
//! write, or what Manatee 2 did (H1–H11 of the list of its holes).
//!
//! Those of the core are played around it: by a view that hides what must be looked at, or by a
//! changed decision. So nothing of them is in the sitter itself. The others change the model.

use std::sync::Arc;

use manatee_shared::cluster::{ClusterState, Role};
use manatee_shared::lsn::Lsn;
use manatee_shared::zk::{Over, Session, StateNode};
use serde::{Deserialize, Serialize};

use super::plan::{Fault, Looser, Loss, Operation, Plan, Target, Writing};
use crate::machine::action::{Action, ActionKind, DataAction, Decision, ServerAction, ShardAction};
use crate::machine::decide::decide;
use crate::machine::local::{Data, Gate, Recovery, Server, ServerConfig, Synchronous};
use crate::machine::situation::{Promotion, TIMELINES_APART};
use crate::machine::view::View;

/// A planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mutation {
    /// H1: init_wal is what the new primary had replayed.
    InitWalReplayed,
    /// H2: the state names the new sync before it is required to acknowledge.
    SyncNamedFirst,
    /// The new sync is required instead of the old one, before the state names it (rule 3).
    OldSyncDroppedFirst,
    /// Nobody waits for the walsenders to apply the new priorities (rule 3).
    PrioritiesNotAwaited,
    /// H3, rule 7: a restarted primary lets clients in at once.
    GateOpenAtStart,
    /// H4: the sync acknowledges what it has not flushed.
    RemoteWrite,
    /// H5: a promotion goes on on the old timeline.
    NoNewTimeline,
    /// The timeline of a promotion is not reserved in the state.
    TimelineNotReserved,
    /// H7: a primary that is cut off goes on to serve readers.
    StalePrimaryServes,
    /// H8: a primary that was started while ZooKeeper was away is never told its sync.
    SyncForgottenAfterOutage,
    /// H11: a peer without data sets up a shard anew whose state was lost.
    Reinitialise,
    /// A takeover by a sync that is behind init_wal (rule 4).
    TakeoverBehind,
    /// A takeover while the shard is frozen (rule 5).
    TakeoverFrozen,
    /// The new state is written while the WAL receiver still runs (rule 4).
    ReceiverNotStopped,
    /// The own write is forgotten before it is seen.
    OwnWriteNotAwaited,
    /// A write whose outcome is not known counts as one that failed.
    UncertainWriteForgotten,
    /// The state is written over whatever is there (rule 1).
    WriteAnyVersion,
    /// A former primary is left running.
    DeposedGoesOn,
    /// A sync that detaches names its own sync before the state is written.
    NextSyncNamedEarly,
    /// Takeovers use the timelines that promotions by hand begin.
    NoTimelinesLeftOut,
    /// A state of an earlier generation is obeyed (rule 8).
    OldStateObeyed,
    /// A rejoin wants init_wal itself of its source, also where that lies inside a record.
    RejoinWantsHalfRecord,
    /// A primary whose disk came back older starts without comparing.
    OldDiskGoesOn,
    /// A sync whose disk came back older takes over on the strength of what it once had.
    OldSyncTakesOver,
    /// The first state is written whatever history there is (rule 8).
    FirstStateAnyway,
    /// Silence and errors of the client library count as ZooKeeper's refusal.
    LossTakenForRefusal,
    /// A write is judged while it may still come.
    JudgedTooEarly,
    /// A write that was carried out and then replaced by another's counts as refused.
    ReplacedTakenForRefused,
    /// A late write of a dead process does not depend on its election node.
    LateWriteUnfenced,
    /// Nobody looks whether settings that Manatee owns stay in force (rule 2).
    LoosenedUnnoticed,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 30] = [
        Self::InitWalReplayed,
        Self::SyncNamedFirst,
        Self::OldSyncDroppedFirst,
        Self::PrioritiesNotAwaited,
        Self::GateOpenAtStart,
        Self::RemoteWrite,
        Self::NoNewTimeline,
        Self::TimelineNotReserved,
        Self::StalePrimaryServes,
        Self::SyncForgottenAfterOutage,
        Self::Reinitialise,
        Self::TakeoverBehind,
        Self::TakeoverFrozen,
        Self::ReceiverNotStopped,
        Self::OwnWriteNotAwaited,
        Self::UncertainWriteForgotten,
        Self::WriteAnyVersion,
        Self::DeposedGoesOn,
        Self::NextSyncNamedEarly,
        Self::NoTimelinesLeftOut,
        Self::OldStateObeyed,
        Self::RejoinWantsHalfRecord,
        Self::OldDiskGoesOn,
        Self::OldSyncTakesOver,
        Self::FirstStateAnyway,
        Self::LossTakenForRefusal,
        Self::JudgedTooEarly,
        Self::ReplacedTakenForRefused,
        Self::LateWriteUnfenced,
        Self::LoosenedUnnoticed,
    ];

    /// Its name, as `manatee-sim --mutation` takes it.
    pub fn name(self) -> String {
        serde_json::to_value(self).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
    }

    /// Decision of a core with this bug. `uncertain`: as the driver knows it, without the tracker.
    pub(super) fn decide(self, view: &View, uncertain: bool) -> Decision {
        let mut seen = view.clone();
        self.blind(&mut seen, uncertain);
        let decision = decide(&seen);
        self.twist(view, &seen, decision)
    }

    /// Hides from the core what it should have looked at.
    fn blind(self, view: &mut View, uncertain: bool) {
        let role = view.zk.state.valid().map(|(_, state)| state.role_of(view.me.id));
        match self {
            Self::OwnWriteNotAwaited => view.uncertain_write = uncertain,
            Self::UncertainWriteForgotten => view.uncertain_write = false,
            Self::TakeoverBehind if role == Some(Role::Sync) => {
                change(view, |state| (state.init_wal, state.init_wal_timeline) = (Lsn::ZERO, None));
            }
            Self::TakeoverFrozen if role == Some(Role::Sync) => change(view, |state| state.freeze = None),
            Self::Reinitialise
                if view.zk.state == StateNode::Absent && !matches!(view.local.data, Data::Present(_)) =>
            {
                view.zk.has_history = Some(false);
                if let Some(own) = view.zk.active.get_mut(&view.me.id) {
                    own.sequence = 0;
                }
                view.health.values_mut().for_each(|health| health.data = Some(Data::Absent));
            }
            Self::PrioritiesNotAwaited => {
                if let (
                    Server::Primary(primary),
                    Some(ServerConfig { synchronous: Synchronous::Both { new, old }, .. }),
                ) = (&mut view.local.server, &view.local.config)
                {
                    for down in &mut primary.downstreams {
                        down.sync_priority = u32::from(down.peer == *new) + 2 * u32::from(down.peer == *old);
                    }
                }
            }
            Self::DeposedGoesOn if role == Some(Role::Deposed) => {
                if let Server::Primary(_) = view.local.server {
                    view.zk.state = StateNode::Unread;
                }
            }
            Self::NextSyncNamedEarly => {
                if let Some(config) = view.local.config.as_mut().filter(|config| config.recovery == Recovery::Detached)
                {
                    config.synchronous = Synchronous::Impossible;
                }
            }
            Self::OldDiskGoesOn => {
                view.observed.known_end = view.local.end.as_ref().map(|end| end.position);
                view.health.values_mut().for_each(|health| health.wal = None);
            }
            Self::OldSyncTakesOver => view.observed.is_whole = true,
            Self::OldStateObeyed => {
                view.observed.newest_generation = None;
                view.health.values_mut().for_each(|health| health.newest_generation = None);
            }
            _ => {}
        }
    }

    /// Changes what the core decided.
    fn twist(self, view: &View, seen: &View, decision: Decision) -> Decision {
        let Decision { action, why } = decision;
        let me = view.me.id;
        let action = match (self, action) {
            (Self::InitWalReplayed, Action::Shard(ShardAction::WriteState { over, mut state })) => {
                if let (Server::Standby(standby), true) = (&view.local.server, state.primary.id == me) {
                    Arc::make_mut(&mut state).init_wal = standby.replayed;
                }
                Action::Shard(ShardAction::WriteState { over, state })
            }
            (Self::TakeoverFrozen, Action::Shard(ShardAction::WriteState { over, mut state })) => {
                let freeze = view.zk.state.valid().and_then(|(_, state)| state.freeze.clone());
                Arc::make_mut(&mut state).freeze = freeze;
                Action::Shard(ShardAction::WriteState { over, state })
            }
            (Self::FirstStateAnyway, Action::Shard(ShardAction::WriteState { over: Over::Nothing, state })) => {
                Action::Shard(ShardAction::WriteState { over: Over::Lost, state })
            }
            (Self::SyncNamedFirst, Action::Server(ServerAction::Configure(config))) if is_overlap(&config) => {
                pretend(seen, &config)
                    .map_or(Action::Server(ServerAction::Configure(config)), |decision| decision.action)
            }
            (Self::OldSyncDroppedFirst, Action::Server(ServerAction::Configure(config))) => {
                Action::Server(ServerAction::Configure(drop_old(config)))
            }
            (Self::OldSyncDroppedFirst, wait) => match &view.local.config {
                Some(config) => not_overlapping_yet(seen, config).unwrap_or(wait),
                None => wait,
            },
            (Self::ReceiverNotStopped, Action::Server(ServerAction::Configure(config)))
                if config.recovery == Recovery::Detached =>
            {
                pretend(seen, &config)
                    .map_or(Action::Server(ServerAction::Configure(config)), |decision| decision.action)
            }
            (Self::GateOpenAtStart, Action::Server(ServerAction::Start(config))) => {
                Action::Server(ServerAction::Start(opened(config)))
            }
            (Self::GateOpenAtStart, Action::Server(ServerAction::Configure(config))) => {
                Action::Server(ServerAction::Configure(opened(config)))
            }
            (Self::GateOpenAtStart, Action::Server(ServerAction::Promote { config, timeline })) => {
                Action::Server(ServerAction::Promote { config: opened(config), timeline })
            }
            (Self::TimelineNotReserved, Action::Server(ServerAction::Promote { config, .. })) => {
                Action::Server(ServerAction::Promote { config, timeline: None })
            }
            (Self::NextSyncNamedEarly, Action::Server(ServerAction::Configure(mut config)))
                if config.recovery == Recovery::Detached =>
            {
                let next = view.zk.state.valid().and_then(|(_, state)| Some(state.async_peers.first()?.id));
                config.synchronous = next.map_or(Synchronous::Impossible, Synchronous::Peer);
                Action::Server(ServerAction::Configure(config))
            }
            (Self::NoTimelinesLeftOut, Action::Shard(ShardAction::WriteState { over, mut state })) => {
                if state.primary.id == me
                    && let Some(mut promotion) = Promotion::of(&state).filter(|promotion| promotion.at.is_none())
                {
                    promotion.timeline.0 -= TIMELINES_APART - 1;
                    Promotion::set(Arc::make_mut(&mut state), Some(promotion));
                }
                Action::Shard(ShardAction::WriteState { over, state })
            }
            (Self::RejoinWantsHalfRecord, Action::Data(DataAction::Rejoin { source, from, .. })) => {
                let init = view.zk.state.valid().and_then(|(_, state)| state.init_position());
                Action::Data(DataAction::Rejoin { source, from, init })
            }
            (Self::StalePrimaryServes, Action::Server(ServerAction::Configure(config)))
                if config.recovery == Recovery::Primary
                    && config.gate == Gate::Closed
                    && view.local.config.as_ref().is_some_and(|now| now.gate == Gate::Open) =>
            {
                Action::Wait { for_ms: None }
            }
            (Self::SyncForgottenAfterOutage, Action::Server(ServerAction::Start(mut config)))
                if view.zk.session != Session::Connected =>
            {
                config.synchronous = Synchronous::Impossible;
                Action::Server(ServerAction::Start(config))
            }
            (Self::SyncForgottenAfterOutage, Action::Server(ServerAction::Configure(config)))
                if config.recovery == Recovery::Primary
                    && view.local.config.as_ref().is_some_and(|now| now.synchronous == Synchronous::Impossible) =>
            {
                Action::Wait { for_ms: None }
            }
            (_, action) => action,
        };
        Decision { action, why }
    }

    /// A run that brings about what this bug does harm to, differently for each seed.
    #[allow(clippy::too_many_lines, reason = "a table: a few lines for each bug")]
    pub fn plan(self, seed: u64) -> Plan {
        let mut plan = Plan::quiet(seed, 3, 4_000);
        let mut rng = fastrand::Rng::with_seed(seed ^ 0x5EED);
        let mut add = |at_ms: u64, fault: Fault| plan.faults.push(super::plan::Timed { at_ms, fault });
        let at = 4_000 + rng.u64(0..500);
        let long = 3_000 + rng.u64(0..2_000);
        let die = |who| Fault::PowerOff { who, for_ms: long };
        let cut = Fault::Cut { from: Target::Primary, to: Target::Sync, both_ways: true, for_ms: long };
        let ask = |who| Fault::Operate { operation: Operation::Promote(who) };
        match self {
            Self::RemoteWrite => add(at, Fault::SlowDisk { who: Target::Sync, for_ms: 1_000 }),
            Self::InitWalReplayed | Self::ReceiverNotStopped | Self::TimelineNotReserved => {
                plan.peers = 5;
                add(at, Fault::StallReplay { who: Target::Sync, for_ms: 4_000 });
                add(at, Fault::Lag { who: Target::Async, for_ms: 4_000 });
                add(at + 600, if self == Self::ReceiverNotStopped { ask(Target::Sync) } else { die(Target::Primary) });
                add(at + 500, Fault::Doom { after_ms: rng.u64(0..200), for_ms: long });
            }
            Self::OldSyncDroppedFirst => {
                add(at, ask(Target::Async));
                add(at + 150, Fault::CutZooKeeper { who: Target::Primary, for_ms: 3_000 });
                add(at + 150, Fault::Lag { who: Target::Sync, for_ms: 3_000 });
                add(at + rng.u64(800..1_500), die(Target::Primary));
            }
            Self::SyncNamedFirst | Self::PrioritiesNotAwaited => {
                add(at, ask(Target::Async));
                add(at + 120, Fault::LateViews { who: Target::Primary, for_ms: 2_000 });
                add(at + rng.u64(120..400), Fault::Lag { who: Target::Async, for_ms: 3_000 });
                add(at + rng.u64(300..1_300), die(Target::Primary));
            }
            Self::GateOpenAtStart => {
                add(at, Fault::Lag { who: Target::Sync, for_ms: 2_000 });
                add(at + 600, cut);
                add(at + 650, Fault::KillPostgres { who: Target::Primary });
            }
            Self::TakeoverFrozen => {
                add(at, Fault::Operate { operation: Operation::Freeze });
                add(at + 200, die(Target::Primary));
            }
            Self::StalePrimaryServes => {
                add(
                    at,
                    Fault::Isolate {
                        who: Target::Primary,
                        direction: super::plan::Direction::Both,
                        zk: true,
                        for_ms: 14_000,
                    },
                );
                plan.faults_ms = plan.faults_ms.max(at + 14_000);
            }
            Self::SyncForgottenAfterOutage => {
                add(at, Fault::ZooKeeperDown { for_ms: long });
                add(at + 500, Fault::KillPostgres { who: Target::Primary });
            }
            Self::Reinitialise => {
                add(at, Fault::WipeZooKeeper { for_ms: long });
                add(at + 100, Fault::DiskLost { who: Target::Async, for_ms: 300 });
            }
            Self::TakeoverBehind => {
                plan.peers = 4;
                add(at, Fault::Lag { who: Target::Async, for_ms: 3_000 });
                add(at + 300, die(Target::Primary));
                add(at + 200, Fault::Doom { after_ms: rng.u64(200..700), for_ms: long });
            }
            // The old sync comes back just when the state names another: it must not be relied on again.
            Self::OwnWriteNotAwaited | Self::UncertainWriteForgotten => {
                let for_ms = rng.u64(1_100..1_700);
                add(at, Fault::Cut { from: Target::Primary, to: Target::Sync, both_ways: true, for_ms });
                add(at + 900, Fault::LateViews { who: Target::Primary, for_ms: 4_000 });
                add(at + 900, Fault::LateViews { who: Target::Sync, for_ms: 4_000 });
                add(at + for_ms, Fault::Lag { who: Target::Sync, for_ms: 4_000 });
                add(at + for_ms, Fault::Lag { who: Target::Async, for_ms: 100 });
                add(at + for_ms + rng.u64(600..1_500), die(Target::Primary));
            }
            Self::WriteAnyVersion => {
                add(at, Fault::LateViews { who: Target::Primary, for_ms: 2_500 });
                add(
                    at + 10,
                    Fault::CrashAt {
                        action: ActionKind::Configure,
                        step: 0,
                        crash: super::plan::Crash::Sitter,
                        for_ms: 300,
                    },
                );
                add(at + 20, ask(Target::Sync));
                add(at + 20, cut);
            }
            Self::NextSyncNamedEarly => {
                let crash = super::plan::Crash::Sitter;
                add(at, Fault::PauseSitter { who: Target::Async, for_ms: 4_000 });
                add(at, Fault::CrashAt { action: ActionKind::Configure, step: 2, crash, for_ms: long });
                add(at + 10, ask(Target::Sync));
                (1..30).for_each(|nth| add(at + 10 + nth * 100, Fault::PromoteByHand { who: Target::Sync }));
            }
            Self::NoTimelinesLeftOut => {
                plan.peers = 4;
                let who = Target::Async;
                add(at, Fault::PauseSitter { who, for_ms: 600 });
                add(at + 20, Fault::PromoteByHand { who });
                add(at + rng.u64(40..600), die(Target::Primary));
            }
            Self::RejoinWantsHalfRecord => {
                add(at, Fault::Lag { who: Target::Sync, for_ms: 2_000 });
                add(at + rng.u64(200..800), die(Target::Primary));
            }
            Self::OldDiskGoesOn => {
                let records = rng.usize(3..15);
                add(at, Fault::Operate { operation: Operation::Freeze });
                add(at + 200, Fault::DiskBack { who: Target::Primary, states: 0, records, for_ms: 800 });
                add(at + 6_000, Fault::Operate { operation: Operation::Unfreeze });
            }
            Self::OldSyncTakesOver => {
                let records = rng.usize(20..40);
                add(at, Fault::DiskBack { who: Target::Sync, states: 0, records, for_ms: rng.u64(1_000..2_000) });
                add(at + 300, die(Target::Primary));
            }
            Self::OldStateObeyed => {
                add(at, Fault::PowerOff { who: Target::Primary, for_ms: 1_500 });
                add(at + 5_000, Fault::RestoreOldState { generations: 1, for_ms: long });
                plan.faults_ms = at + 5_000 + long;
            }
            // Who initialised first stands still while another sets the shard up and is lost with the state.
            Self::FirstStateAnyway => {
                let (first, near) = (Target::Peer(0), |at: u64, rng: &mut fastrand::Rng| at + rng.u64(0..400));
                add(near(300, &mut rng), Fault::PowerOff { who: first, for_ms: near(3_300, &mut rng) });
                add(near(4_800, &mut rng), Fault::PauseSitter { who: first, for_ms: near(3_100, &mut rng) });
                add(near(6_400, &mut rng), Fault::PowerOff { who: Target::Peer(1), for_ms: 4_800 });
                add(near(7_400, &mut rng), Fault::WipeZooKeeper { for_ms: 5_500 });
                plan.faults_ms = 9_000;
                plan.faults.sort_by_key(|timed| timed.at_ms);
                return Plan { quick_setup: false, mutation: Some(self), ..plan };
            }
            Self::LossTakenForRefusal => {
                let loss = if rng.bool() { Loss::Silence } else { Loss::Error };
                add(at, Fault::LoseAnswer { write: Writing::Replacement, loss });
                add(at, ask(Target::Async));
            }
            Self::JudgedTooEarly => {
                add(at, Fault::LoseAnswer { write: Writing::Replacement, loss: Loss::Late });
                add(at, ask(Target::Async));
            }
            Self::ReplacedTakenForRefused => {
                add(at, Fault::LoseAnswer { write: Writing::Replacement, loss: Loss::Silence });
                add(at, ask(Target::Async));
                for nth in 0..4 {
                    let operation = if nth % 2 == 0 { Operation::Freeze } else { Operation::Unfreeze };
                    add(at + 400 + nth * 300, Fault::Operate { operation });
                }
            }
            Self::LateWriteUnfenced => {
                add(at, Fault::LoseAnswer { write: Writing::Replacement, loss: Loss::Late });
                add(at, ask(Target::Async));
                let crash = super::plan::Crash::Sitter;
                add(at, Fault::CrashAt { action: ActionKind::WriteState, step: 0, crash, for_ms: 20 });
            }
            Self::LoosenedUnnoticed => {
                let what = if rng.bool() { Looser::Names } else { Looser::Commit };
                add(at, Fault::Loosen { who: Target::Primary, what });
            }
            Self::NoNewTimeline | Self::DeposedGoesOn => {
                let direction = super::plan::Direction::Both;
                add(at, Fault::Isolate { who: Target::Primary, direction, zk: true, for_ms: long });
            }
        }
        plan.faults_ms = plan.faults_ms.max(at + 8_000);
        plan.faults.sort_by_key(|timed| timed.at_ms);
        Plan { quick_setup: true, mutation: Some(self), ..plan }
    }
}

fn change(view: &mut View, change: impl FnOnce(&mut ClusterState)) {
    if let StateNode::Valid { state, .. } = &mut view.zk.state {
        change(Arc::make_mut(state));
    }
}

fn is_overlap(config: &ServerConfig) -> bool {
    matches!(config.synchronous, Synchronous::Both { .. })
}

/// Decision as if `config` were in effect already, everywhere.
fn pretend(view: &View, config: &ServerConfig) -> Option<Decision> {
    let mut view = view.clone();
    view.local.config = Some(config.clone());
    match &mut view.local.server {
        Server::Primary(primary) => {
            for down in &mut primary.downstreams {
                down.sync_priority = match config.synchronous {
                    Synchronous::Both { new, .. } if new == down.peer => 1,
                    _ => 2,
                };
            }
        }
        Server::Standby(standby) => standby.receiver_stopped = true,
        _ => {}
    }
    let decision = decide(&view);
    matches!(decision.action, Action::Shard(ShardAction::WriteState { .. })).then_some(decision)
}

fn drop_old(config: ServerConfig) -> ServerConfig {
    match config.synchronous {
        Synchronous::Both { new, .. } => ServerConfig { synchronous: Synchronous::Peer(new), ..config },
        _ => config,
    }
}

/// With only the new sync required, goes on as if both were.
fn not_overlapping_yet(view: &View, config: &ServerConfig) -> Option<Action> {
    let (_, state) = view.zk.state.valid()?;
    let old = state.sync_peer.as_ref()?.id;
    let Synchronous::Peer(new) = config.synchronous else { return None };
    if new == old || state.primary.id != view.me.id {
        return None;
    }
    let overlap = ServerConfig { synchronous: Synchronous::Both { new, old }, ..config.clone() };
    pretend(view, &overlap).map(|decision| decision.action)
}

fn opened(config: ServerConfig) -> ServerConfig {
    if config.recovery == Recovery::Primary { ServerConfig { gate: Gate::Open, ..config } } else { config }
}
