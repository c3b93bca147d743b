//! Membership: each peer announces itself; the primary writes, within its generation, asyncs that come and go,
//! deposed peers that are fit again, where its timeline began, and requests of operators that lapsed.

use manatee_shared::cluster::{ClusterState, Peer, PromoteRole, Role};
use manatee_shared::ids::PeerId;
use manatee_shared::zk::Session;

use super::action::{Decision, ShardAction};
use super::local::{Data, PrimaryStatus};
use super::situation::{Promotion, Situation, act, is_registered};
use super::suspicion;
use super::view::View;
use crate::reason::{self, MembershipChange, Reason};

/// The state as it should be, and what changes; None if nothing does.
pub(super) fn changes(situation: Situation<'_>, primary: &PrimaryStatus) -> Option<(ClusterState, Reason)> {
    let mut state = ClusterState::clone(situation.state);
    let mut changes = Vec::new();
    record_own(situation, primary, &mut state, &mut changes);
    if !state.is_frozen() {
        drop_departed(situation, &mut state, &mut changes);
        append(situation, primary, &mut state, &mut changes);
        move_up(situation, &mut state, &mut changes);
    }
    drop_request(situation, &mut state, &mut changes);
    if changes.is_empty() {
        return None;
    }
    state.reason = Some(reason::join(&changes));
    Some((state, Reason::Membership(changes)))
}

/// Facts that only the primary itself knows.
fn record_own(
    situation: Situation<'_>,
    primary: &PrimaryStatus,
    state: &mut ClusterState,
    changes: &mut Vec<MembershipChange>,
) {
    if let Some(promotion) = Promotion::of(state).filter(|promotion| promotion.at.is_none()) {
        Promotion::set(state, Some(Promotion { at: Some(primary.flushed), ..promotion }));
        changes.push(MembershipChange::Promoted(primary.flushed.timeline));
    }
    if let (None, Data::Present(identifier)) = (&state.system_identifier, &situation.view.local.data) {
        state.system_identifier = Some(identifier.0.clone());
        changes.push(MembershipChange::IdentifierRecorded);
    }
}

fn drop_departed(situation: Situation<'_>, state: &mut ClusterState, changes: &mut Vec<MembershipChange>) {
    let view = situation.view;
    // A sitter that restarts registers anew within this time.
    let grace_ms = view.settings.suspicion_timeout_ms;
    let departed = |peer: &Peer| view.observed.missing_ms.get(&peer.id).is_some_and(|missing| *missing >= grace_ms);
    state.async_peers.retain(|peer| {
        let gone = departed(peer);
        if gone {
            changes.push(MembershipChange::Left(peer.id));
        }
        !gone
    });
}

/// Active peers that are not in the chain go to its end, in election order: deposed ones once they
/// stream from here, which shows that their data is in line; others at once, they bootstrap
/// themselves.
fn append(
    situation: Situation<'_>,
    primary: &PrimaryStatus,
    state: &mut ClusterState,
    changes: &mut Vec<MembershipChange>,
) {
    let view = situation.view;
    let streams = |peer: PeerId| primary.downstreams.iter().any(|down| down.peer == peer && down.streaming);
    for active in view.zk.in_election_order() {
        let peer = &active.peer;
        if !suspicion::is_alive(view, peer.id) || situation.data_fits(peer.id) != Some(true) {
            continue;
        }
        match state.role_of(peer.id) {
            Role::Deposed if streams(peer.id) => {
                state.deposed.retain(|deposed| deposed.id != peer.id);
                changes.push(MembershipChange::FitAgain(peer.id));
            }
            Role::Unassigned => changes.push(MembershipChange::Joined(peer.id)),
            _ => continue,
        }
        state.async_peers.push(peer.clone());
    }
}

/// Moves an async one place up as asked. The first one is moved by [`super::replace`], and a request
/// for the sync is the sync's to carry out.
fn move_up(situation: Situation<'_>, state: &mut ClusterState, changes: &mut Vec<MembershipChange>) {
    let Some((PromoteRole::Async, peer)) = situation.promote_request() else { return };
    let place = state.async_peers.iter().position(|listed| listed.id == peer);
    if let Some(place) = place.filter(|place| *place > 0) {
        state.async_peers.swap(place - 1, place);
        state.end_request();
        changes.push(MembershipChange::MovedUp(peer));
    }
}

/// Removes a request that is not valid any more: also while frozen, for that moves nobody.
fn drop_request(situation: Situation<'_>, state: &mut ClusterState, changes: &mut Vec<MembershipChange>) {
    if state.promote.is_some() && situation.promote_request().is_none() {
        state.end_request();
        changes.push(MembershipChange::RequestRemoved);
    }
}

/// Announces ourselves, if we are not and can be.
pub(super) fn join(view: &View) -> Option<Decision> {
    let connected = view.zk.session == Session::Connected;
    if connected && !is_registered(view) {
        return Some(act(ShardAction::JoinElection, Reason::NotRegistered));
    }
    (connected && !view.observed.joined).then(|| act(ShardAction::JoinElection, Reason::RegisteredByEarlierProcess))
}
