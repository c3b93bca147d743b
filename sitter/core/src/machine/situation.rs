//! A view together with the valid state it shows: what most decisions start from, and the small
//! questions that all of them ask.

use std::collections::BTreeSet;
use std::sync::Arc;

use manatee_shared::cluster::{ClusterState, Peer, PromoteRole, Role};
use manatee_shared::ids::PeerId;
use manatee_shared::lsn::{Timeline, WalPosition};
use manatee_shared::zk::{Over, Session, Version};
use serde::{Deserialize, Serialize};

use super::action::{Action, Decision, ServerAction, ShardAction};
use super::local::{Data, Gate, Recovery, ServerConfig, StandbyStatus, Synchronous};
use super::suspicion;
use super::view::View;
use crate::reason::Reason;

/// Distance between the timelines of takeovers. A standby promoted by hand begins the number after its
/// own, one promoted by hand that follows it the next: these numbers are left to them, so that what
/// streamed from them is on no timeline of the shard, now or later, and has to rejoin. Each number that
/// is left out costs followers the fetch of a small file during a takeover.
pub const TIMELINES_APART: u32 = 4;

/// Key of [`Promotion`] among the state's extra fields.
const PROMOTION: &str = "promotion";

/// The promotion that a takeover's generation began with.
///
/// Its timeline is reserved by the very write that wins the takeover: left to itself PostgreSQL
/// would give the next number it knows of, and two promotions that did not know of each other the
/// same one; the followers of the first would then stream from the second on top of other WAL.
///
/// init_wal is the end of what the new primary had *received*, which may lie inside a record; its
/// own timeline then branches off a little earlier, and no follower of that timeline ever contains
/// init_wal literally. So the primary adds a position of its own timeline as soon as it has one:
/// whoever contains that has everything, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promotion {
    /// The timeline that the primary promotes to.
    pub timeline: Timeline,
    /// A position on it. None while the primary may still be in recovery: nobody can rejoin to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<WalPosition>,
}

impl Promotion {
    /// Promotion according to `state`. None: its generation did not begin with a takeover.
    pub fn of(state: &ClusterState) -> Option<Self> {
        let value = state.extra.get(PROMOTION)?.clone();
        serde_json::from_value(value).ok()
    }

    /// The promotion of a takeover in `state` by a sync that is on `timeline`: a timeline above all
    /// that were ever used, also by hand ([`TIMELINES_APART`]). Those of earlier generations are, or
    /// were, the ancestors of this one's.
    pub fn reserve(state: &ClusterState, timeline: Timeline) -> Self {
        let reserved = Self::of(state).map(|promotion| promotion.timeline);
        let newest = [reserved, state.init_wal_timeline].into_iter().flatten().fold(timeline, Timeline::max);
        Self { timeline: Timeline(newest.0.saturating_add(TIMELINES_APART)), at: None }
    }

    /// Records `promotion` in `state`, or removes it.
    pub fn set(state: &mut ClusterState, promotion: Option<Self>) {
        match promotion.and_then(|promotion| serde_json::to_value(promotion).ok()) {
            Some(value) => state.extra.insert(PROMOTION.to_owned(), value),
            None => state.extra.remove(PROMOTION),
        };
    }
}

/// Whether `standby` has on disk everything that was acknowledged before the generation of `state`, on the path that
/// the generation's primary is on: its sync may take over then (rule 4).
pub fn contains_init_wal(state: &ClusterState, standby: &StandbyStatus) -> bool {
    let Some(received) = standby.received else { return false };
    let contains = |wanted| standby.history.contains(received, wanted);
    let promoted_at = Promotion::of(state).and_then(|promotion| promotion.at);
    promoted_at.is_some_and(contains)
        || match state.init_position() {
            Some(init) => contains(init),
            // A state of Manatee 2 does not know the timeline; its shards have only one.
            None => received.lsn >= state.init_wal,
        }
}

/// A valid state, and everything else that is known.
#[derive(Clone, Copy)]
pub(super) struct Situation<'a> {
    pub(super) view: &'a View,
    pub(super) version: Version,
    pub(super) state: &'a Arc<ClusterState>,
}

impl<'a> Situation<'a> {
    pub(super) fn me(&self) -> PeerId {
        self.view.me.id
    }

    pub(super) fn role(&self) -> Role {
        self.state.role_of(self.me())
    }

    pub(super) fn sync(&self) -> Option<PeerId> {
        self.state.sync_peer.as_ref().map(|peer| peer.id)
    }

    pub(super) fn connected(&self) -> bool {
        self.view.zk.session == Session::Connected
    }

    /// Our election node is there: without it we may not write.
    pub(super) fn registered(&self) -> bool {
        is_registered(self.view)
    }

    /// Whether a write of ours may be tried.
    pub(super) fn may_write(&self) -> bool {
        let outdated = self.newer_generation_elsewhere().is_some();
        self.connected() && self.registered() && !self.view.uncertain_write && !outdated
    }

    /// The configuration PostgreSQL has, or is being given right now. Only the first is confirmed:
    /// compare with [`super::local::Local::config`] before relying on it.
    pub(super) fn config(&self) -> Option<&ServerConfig> {
        let in_flight = self.view.in_flight.as_ref().and_then(|in_flight| match &in_flight.action {
            Action::Server(
                ServerAction::Configure(config) | ServerAction::Start(config) | ServerAction::Promote { config, .. },
            ) => Some(config),
            _ => None,
        });
        self.view.local.config.as_ref().or(in_flight)
    }

    pub(super) fn gate(&self) -> Gate {
        self.config().map_or(Gate::Closed, |config| config.gate)
    }

    /// The next generation of this state, which says why. `init_wal` is the caller's to set.
    pub(super) fn next_generation(&self, init: WalPosition, reason: String) -> ClusterState {
        let mut state = ClusterState::clone(self.state);
        state.generation += 1;
        (state.init_wal, state.init_wal_timeline) = (init.lsn, Some(init.timeline));
        state.end_request();
        state.reason = Some(reason);
        Promotion::set(&mut state, None);
        state
    }

    pub(super) fn write(&self, state: ClusterState, why: Reason) -> Decision {
        act(ShardAction::WriteState { over: Over::Version(self.version), state: Arc::new(state) }, why)
    }

    /// Whether `standby` has on disk everything that was acknowledged before this generation
    /// (rule 4), on the path that the generation's primary is on.
    pub(super) fn is_caught_up(&self, standby: &StandbyStatus) -> bool {
        contains_init_wal(self.state, standby)
    }

    /// A peer of this shard that has seen a later generation than this state's: either the change is about
    /// to be seen here, or the state is an old one that somebody put there. A peer whose disk was lost, or
    /// that was away meanwhile, remembers nothing of it itself, and must not go on from there (rule 8).
    pub(super) fn newer_generation_elsewhere(&self) -> Option<(PeerId, u64)> {
        let health = self.view.health.iter();
        let seen = health.filter_map(|(peer, health)| Some((*peer, health.newest_generation?)));
        seen.filter(|(peer, _)| self.data_fits(*peer) == Some(true))
            .find(|(_, generation)| *generation > self.state.generation)
    }

    /// Whether `peer`'s data may become, or is, a copy of this shard's (rule 10). None: not told.
    pub(super) fn data_fits(&self, peer: PeerId) -> Option<bool> {
        let data = self.view.health.get(&peer)?.data.as_ref()?;
        Some(match data {
            Data::Present(identifier) => self.state.system_identifier.as_ref().is_none_or(|ours| *ours == identifier.0),
            Data::Absent | Data::Incomplete | Data::Fresh(_) => true,
            Data::Unusable(_) => false,
        })
    }

    /// Peers that follow, or may come to follow, this one in `role`: each gets a slot. Standbys
    /// have them for those behind them only, because a slot that nobody uses holds WAL back.
    pub(super) fn slots(&self, role: Role) -> BTreeSet<PeerId> {
        let behind = match role {
            Role::Primary => {
                let active = self.view.zk.active.keys().copied();
                let listed = self.state.everyone().map(|peer| peer.id);
                return active.chain(listed).filter(|id| *id != self.me()).collect();
            }
            Role::Sync => 0,
            Role::Async(index) => index + 1,
            Role::Deposed | Role::Unassigned => usize::MAX,
        };
        self.state.async_peers.iter().skip(behind).map(|peer| peer.id).filter(|id| *id != self.me()).collect()
    }

    /// The operator's request to promote, while it is valid.
    pub(super) fn promote_request(&self) -> Option<(PromoteRole, PeerId)> {
        let promote = self.state.promote.as_ref()?;
        let stands = match (promote.role, self.state.role_of(promote.id)) {
            (PromoteRole::Sync, Role::Sync) => true,
            (PromoteRole::Async, Role::Async(index)) => promote.async_index.is_none_or(|asked| asked == index),
            _ => false,
        };
        let valid = stands
            && promote.generation == self.state.generation
            && promote.expire_time.as_millisecond() > self.view.wall_ms;
        valid.then_some((promote.role, promote.id))
    }

    /// The peer that a new primary can take for its sync: the first async that is heard from, best one whose
    /// PostgreSQL answers and that is ready to take over in its turn. Without one, a peer that is registered and not listed, or not fit again since it was deposed:
    /// a primary that was lost could not take it in any more. That is safe, because it counts only once it follows
    /// the new primary, and nobody takes over later without having the beginning of the generation that names it.
    pub(super) fn next_sync(&self) -> Option<&'a Peer> {
        let heard = |peer: &&'a Peer| {
            let heard = self.view.health.get(&peer.id).is_some_and(|health| health.silent_ms.is_some());
            heard && suspicion::is_alive(self.view, peer.id) && self.data_fits(peer.id) == Some(true)
        };
        let serving = |peer: &&'a Peer| suspicion::is_serving(self.view, peer.id);
        let ready = |peer: &&'a Peer| serving(peer) && suspicion::is_ready(self.view, peer.id);
        let candidates = || self.state.async_peers.iter().filter(heard);
        let order = self.view.zk.in_election_order();
        let others = |role: Role| {
            let mut others = order.iter().map(|active| &active.peer).filter(heard);
            others.find(|peer| peer.id != self.me() && self.state.role_of(peer.id) == role)
        };
        candidates()
            .find(ready)
            .or_else(|| candidates().find(serving))
            .or_else(|| candidates().next())
            .or_else(|| others(Role::Unassigned))
            .or_else(|| others(Role::Deposed))
    }
}

/// Whether a later generation than that of `state` was seen: somebody put an old one there, which nobody
/// obeys or writes over (rule 8).
pub(super) fn is_outdated(view: &View, state: &ClusterState) -> bool {
    view.observed.newest_generation > Some(state.generation)
}

/// Whether our own election node is there.
pub(super) fn is_registered(view: &View) -> bool {
    view.zk.active.contains_key(&view.me.id)
}

/// A decision.
pub(super) fn act(action: impl Into<Action>, why: Reason) -> Decision {
    Decision { action: action.into(), why }
}

/// Nothing to do, and why.
pub(super) fn wait(why: Reason) -> Decision {
    act(Action::Wait { for_ms: None }, why)
}

/// A standby's configuration. It never acknowledges anything, even if promoted by hand.
pub(super) fn follow(upstream: PeerId, gate: Gate, slots: BTreeSet<PeerId>) -> ServerConfig {
    ServerConfig { recovery: Recovery::Follow(upstream), synchronous: Synchronous::Impossible, gate, slots }
}

/// As [`follow`], with nobody to follow.
pub(super) fn detached(slots: BTreeSet<PeerId>) -> ServerConfig {
    let synchronous = Synchronous::Impossible;
    ServerConfig { recovery: Recovery::Detached, synchronous, gate: Gate::Closed, slots }
}
