//! Everyone but the primary: sync, asyncs, deposed and unlisted peers.
//!
//! Data comes from upstream: a bootstrap when there is none, streaming when it can follow, the
//! rejoin ladder when it cannot. The gate opens only for a listed role, once this peer streams
//! and shows at least what was acknowledged before the generation; it then stays open while a
//! stream is interrupted, so that reads go on through a failover.

use manatee_shared::cluster::{PromoteRole, Role};
use manatee_shared::ids::PeerId;

use super::action::{Action, ActionKind, DataAction, Decision, Rung, ServerAction, StopMode};
use super::local::{Data, Gate, Recovery, Server, StandbyStatus};
use super::situation::{Promotion, Situation, act, detached, follow, wait};
use super::suspicion;
use super::takeover::{self, Takeover};
use super::view::View;
use crate::reason::{Reason, RejoinCause};

/// A standby that has not answered for this long (ms) is restarted.
const HUNG_MS: u64 = 10_000;

/// A clear failure to follow must last this long (ms): during a takeover the coming primary may be
/// behind its followers for a moment.
const CANNOT_FOLLOW_MS: u64 = 1_000;

/// PostgreSQL is out of recovery here, but the state gives the primary's role to another peer.
pub(super) fn not_primary(situation: Situation<'_>) -> Decision {
    let primary = situation.state.primary.id;
    act(ServerAction::Stop(StopMode::Immediate), Reason::NotPrimary { primary, role: situation.role() })
}

pub(super) fn decide(situation: Situation<'_>, role: Role) -> Decision {
    let view = situation.view;
    if !matches!(view.local.data, Data::Present(_)) {
        return bootstrap(situation, role);
    }
    if let (Server::Down { standby: true, .. }, Some(problem)) = (&view.local.server, &view.local.unfit) {
        return rejoin(situation, unfollowing_rung(view), RejoinCause::CannotFollow(problem.clone()));
    }
    match &view.local.server {
        Server::Primary(_) => not_primary(situation),
        Server::Starting { .. } => {
            if situation.config().is_some_and(|config| config.recovery == Recovery::Primary) {
                return not_primary(situation);
            }
            wait(Reason::StandbyStarting)
        }
        Server::Hung { for_ms } if *for_ms >= HUNG_MS => {
            act(ServerAction::Stop(StopMode::Immediate), Reason::StandbyHung)
        }
        Server::Hung { .. } => wait(Reason::StandbyHung),
        Server::Down { standby: false, .. } if !view.settings.manual_rejoin => {
            rejoin(situation, Rung::AsIs, RejoinCause::WasPrimary)
        }
        Server::Down { .. } if view.uncertain_write => {
            // What it acknowledged to the old primary after a takeover that it wrote is in no init_wal.
            let config = detached(situation.slots(role));
            act(ServerAction::Start(config), Reason::FollowsNobody(role))
        }
        Server::Down { .. } => {
            let upstream = upstream(situation, role);
            let config = follow(upstream, Gate::Closed, situation.slots(role));
            act(ServerAction::Start(config), Reason::StandbyStarts { role, upstream })
        }
        Server::Standby(standby) => running(situation, role, standby),
    }
}

fn running(situation: Situation<'_>, role: Role, standby: &StandbyStatus) -> Decision {
    if let Some(decision) = restart_with_more(standby) {
        return decision;
    }
    let mut blocked = None;
    if role == Role::Sync {
        match takeover::consider(situation, standby) {
            Takeover::Step(decision) => return decision,
            Takeover::Blocked(why) => blocked = Some(why),
            Takeover::NotNeeded => {}
        }
    }
    let upstream = upstream(situation, role);
    let desired = follow(upstream, gate(situation, role, standby), situation.slots(role));
    if situation.view.local.config.as_ref() != Some(&desired) || situation.view.local.outdated {
        let why = Reason::StandbyConfigured { role, upstream, gate: desired.gate };
        return act(ServerAction::Configure(desired), why);
    }
    if let Some(decision) = needs_rejoin(situation, upstream, standby) {
        return decision;
    }
    if let Some(why) = blocked {
        return wait(why);
    }
    if standby.streaming {
        wait(Reason::Streaming { role, upstream })
    } else {
        wait(Reason::NotStreaming { role, upstream })
    }
}

/// A standby whose settings are lower than its WAL needs shows nothing new and cannot be promoted: its next start gives it
/// what it needs. Before a takeover, so that one which is due comes a restart later.
pub(super) fn restart_with_more(standby: &StandbyStatus) -> Option<Decision> {
    let short = standby.replay.short_of?;
    Some(act(ServerAction::Stop(StopMode::Fast), Reason::ReplayNeedsRestart(short)))
}

/// Whether clients may read here.
fn gate(situation: Situation<'_>, role: Role, standby: &StandbyStatus) -> Gate {
    if !matches!(role, Role::Sync | Role::Async(_)) {
        return Gate::Closed;
    }
    let shows_enough =
        standby.streaming && situation.is_caught_up(standby) && standby.replayed >= situation.state.init_wal;
    if situation.gate() == Gate::Open || shows_enough { Gate::Open } else { Gate::Closed }
}

/// Upstream to follow. The sync follows the primary, because its acknowledgement is what counts; peers
/// outside the chain do, so that the primary sees that they are fit. An async follows the nearest
/// peer before it that streams itself and that neither this peer nor the primary finds gone.
fn upstream(situation: Situation<'_>, role: Role) -> PeerId {
    let Situation { view, state, .. } = situation;
    let primary = state.primary.id;
    let Role::Async(index) = role else { return primary };
    // The first async is to become sync: only the primary can see whether it is fit to.
    if index == 0 && situation.promote_request() == Some((PromoteRole::Async, situation.me())) {
        return primary;
    }
    let before: Vec<_> = state.chain().map(|peer| peer.id).filter(|id| *id != situation.me()).collect();
    // The chain up to our place: primary, sync, async[0..index].
    let before: Vec<_> = before.into_iter().take(index + 1 + usize::from(state.sync_peer.is_some())).collect();
    let lost_to_primary = |peer: &PeerId| {
        !suspicion::is_suspect(view, primary)
            && view.health.get(&primary).is_some_and(|health| health.suspects.contains(peer))
    };
    let fit = |peer: &&PeerId| {
        suspicion::is_serving(view, **peer)
            && view.health.get(peer).is_some_and(|health| health.silent_ms.is_some())
            && !view.observed.avoid.contains(peer)
            && !lost_to_primary(peer)
    };
    let streams = |peer: &&PeerId| view.health.get(peer).is_some_and(|health| health.streaming != Some(false));
    let nearest = || before.iter().rev();
    // One that serves but does not stream may be about to take over: better than nobody.
    nearest().find(|peer| fit(peer) && streams(peer)).or_else(|| nearest().find(fit)).copied().unwrap_or(primary)
}

/// Whether this data must be brought in line before it can follow.
fn needs_rejoin(situation: Situation<'_>, upstream: PeerId, standby: &StandbyStatus) -> Option<Decision> {
    let Situation { view, state, .. } = situation;
    // Followers of others look further up first; the tracker makes them avoid what failed.
    if upstream != state.primary.id || standby.streaming || !situation.connected() {
        return None;
    }
    let rejoins = view.observed.rejoins;
    if let Some(problem) = &standby.cannot_follow
        && standby.not_streaming_ms >= CANNOT_FOLLOW_MS
    {
        return Some(rejoin(situation, unfollowing_rung(view), RejoinCause::CannotFollow(problem.clone())));
    }
    let too_long = standby.not_streaming_ms >= view.settings.rejoin_after_ms && suspicion::is_serving(view, upstream);
    // Without a clear error once, never down to a full copy (H10).
    (too_long && (rejoins == 0 || view.observed.rejoin_failed))
        .then(|| rejoin(situation, Rung::Rewind, RejoinCause::NotStreaming))
}

/// First rung for data that cannot follow: further down each time that it did not help.
fn unfollowing_rung(view: &View) -> Rung {
    match view.observed.rejoins {
        0 => Rung::Rewind,
        1 => Rung::Rollback,
        _ => Rung::Copy,
    }
}

fn rejoin(situation: Situation<'_>, from: Rung, cause: RejoinCause) -> Decision {
    let Situation { view, state, .. } = situation;
    let primary = state.primary.id;
    if view.settings.manual_rejoin {
        return wait(Reason::RejoinManual(cause));
    }
    if !situation.connected() {
        return wait(Reason::RejoinWithoutZooKeeper);
    }
    if matches!(view.local.server, Server::Down { .. }) && view.local.end.is_none() {
        // A primary that was down is not started before the others have said this.
        return act(DataAction::Survey, Reason::RejoinSurveys(cause));
    }
    if !suspicion::is_serving(view, primary) {
        return wait(Reason::RejoinPrimarySilent { cause, primary });
    }
    let init = match Promotion::of(state) {
        Some(Promotion { at: None, .. }) => {
            return wait(Reason::RejoinPrimaryNotPromoted { cause, primary });
        }
        // init_wal may lie inside a record, where no history of the primary's comes by.
        Some(promotion) => promotion.at,
        None => state.init_position(),
    };
    act(DataAction::Rejoin { source: primary, from, init }, Reason::Rejoining { cause, primary })
}

/// Copies from a peer that has data: best from one that has least else to do, the last async; if that failed,
/// from the next.
fn bootstrap(situation: Situation<'_>, role: Role) -> Decision {
    let Situation { view, state, .. } = situation;
    if !situation.connected() {
        return wait(Reason::CopyWithoutZooKeeper);
    }
    if !matches!(view.local.server, Server::Down { .. }) {
        return act(ServerAction::Stop(StopMode::Immediate), Reason::DataIncomplete);
    }
    // The data is incomplete because a rejoin is at work on it.
    if let Some(Action::Data(DataAction::Rejoin { source, from, init })) =
        view.in_flight.as_ref().map(|in_flight| &in_flight.action)
        && *source == state.primary.id
    {
        let rejoin = Action::Data(DataAction::Rejoin { source: *source, from: *from, init: *init });
        return act(rejoin, Reason::RejoinGoesOn(*source));
    }
    let usable = |peer: PeerId| {
        let data = view.health.get(&peer).and_then(|health| health.data.as_ref());
        suspicion::is_serving(view, peer) && matches!(data, Some(Data::Present(_)))
    };
    // A copy that runs goes on while its source lives.
    if let Some(Action::Data(DataAction::Bootstrap { source })) =
        view.in_flight.as_ref().map(|in_flight| &in_flight.action)
        && suspicion::is_alive(view, *source)
    {
        return act(DataAction::Bootstrap { source: *source }, Reason::CopyGoesOn(*source));
    }
    let failed = view.observed.last_failure.as_ref().filter(|failure| failure.action == ActionKind::Bootstrap);
    let tries = failed.map_or(0, |failure| failure.times);
    let primary = state.primary.id;
    // The sync copies from the primary only: a copy of somebody behind could miss what the sync
    // acknowledged in this generation with the data it lost, and still contain init_wal.
    let streams = |peer: PeerId| view.health.get(&peer).is_some_and(|health| health.streaming != Some(false));
    let asyncs = state.async_peers.iter().rev().map(|peer| peer.id);
    let others = asyncs.chain(situation.sync()).filter(|peer| role != Role::Sync && *peer != situation.me());
    let sources: Vec<_> = others.filter(|peer| streams(*peer)).chain([primary]).filter(|peer| usable(*peer)).collect();
    let next = usize::try_from(tries).unwrap_or(0) % sources.len().max(1);
    let Some(&source) = sources.get(next) else {
        return wait(Reason::CopyWithoutSource(primary));
    };
    act(DataAction::Bootstrap { source }, Reason::Copying { role, from: source })
}
