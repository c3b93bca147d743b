//! The sync makes itself primary (rules 4 and 5):
//!
//! ```text
//! primary gone, an async alive, caught up
//!   → Configure(Detached)            the old primary can acknowledge nothing more
//!   → WriteState(generation + 1)     init_wal = what was received, timeline and LSN
//!   → Promote, naming the next sync  decided in `primary`: the state names us now
//! ```
//!
//! The next sync is named only then: until the state is written this peer acknowledges nothing, even
//! if its sitter ends here and somebody promotes its PostgreSQL by hand.
//!
//! The end of what was received is only known once PostgreSQL has turned to streaming in its present run
//! (`pg_last_wal_receive_lsn()`): a sync restarted while the primary is away keeps trying to
//! stream, and does not take over until it knows. If the write loses, the new state decides; if
//! the primary comes back before it, the sync follows again, unless the write may still happen.

use manatee_shared::cluster::{Peer, PromoteRole, Role};
use manatee_shared::zk::Session;

use super::action::{Decision, ServerAction};
use super::local::{Recovery, ServerConfig, StandbyStatus, Synchronous};
use super::situation::{Promotion, Situation, act, detached, wait};
use super::{hand_over, returning, suspicion};
use crate::reason::{Blocker, Reason, TakeoverCause};

/// Result of looking for a reason to take over.
pub(super) enum Takeover {
    /// The primary is fine.
    NotNeeded,
    /// There is reason to, but it must not be.
    Blocked(Reason),
    /// The next step.
    Step(Decision),
}

pub(super) fn consider(situation: Situation<'_>, standby: &StandbyStatus) -> Takeover {
    let Situation { view, state, .. } = situation;
    let is_detached = situation.config().is_some_and(|config| config.recovery == Recovery::Detached);
    if view.uncertain_write {
        return match situation.config().map(|config| config.recovery) {
            Some(Recovery::Follow(_)) => Takeover::Blocked(Reason::WriteUncertain),
            Some(_) => Takeover::Step(wait(Reason::TakeoverUncertain)),
            // It took long to start. What it would acknowledge to the old primary now is in no init_wal.
            None => Takeover::Step(act(
                ServerAction::Configure(detached(situation.slots(Role::Sync))),
                Reason::FollowsNobody(Role::Sync),
            )),
        };
    }
    let asked = matches!(situation.promote_request(), Some((PromoteRole::Sync, peer)) if peer == situation.me());
    let gone = suspicion::primary_gone(view, state.primary.id, standby);
    let cause = match gone {
        Some(gone) => gone,
        // One that was begun is not left half done because the primary changed its mind.
        None if asked && (is_detached || hand_over::is_due(situation)) => TakeoverCause::Requested,
        None if asked => {
            return match next_or_blocker(situation, standby) {
                Ok(_) => Takeover::Blocked(Reason::PromotionAwaitsClients),
                Err(blocker) => Takeover::Blocked(Reason::PromotionBlocked(blocker)),
            };
        }
        None => return Takeover::NotNeeded,
    };
    match next_or_blocker(situation, standby) {
        Ok(next) => Takeover::Step(step(situation, standby, next, cause)),
        Err(blocker) => Takeover::Blocked(Reason::TakeoverBlocked { cause, blocker }),
    }
}

/// The coming sync, or why there must be no takeover (rule 5).
fn next_or_blocker<'a>(situation: Situation<'a>, standby: &StandbyStatus) -> Result<&'a Peer, Blocker> {
    let Situation { view, state, .. } = situation;
    if view.zk.session != Session::Connected || !situation.registered() {
        return Err(Blocker::NotRegistered);
    }
    if state.is_frozen() {
        return Err(Blocker::Frozen);
    }
    if state.one_node_write_mode {
        return Err(Blocker::OneNodeWriteMode);
    }
    let Some(received) = standby.received else {
        return Err(Blocker::ReceivedUnknown);
    };
    if let Some((peer, generation)) = situation.newer_generation_elsewhere() {
        return Err(Blocker::NewerGeneration { peer, generation });
    }
    if !situation.is_caught_up(standby) {
        return Err(Blocker::Behind { received, init: state.init_wal });
    }
    if let Some(objection) = returning::objection(situation, standby) {
        return Err(objection);
    }
    situation.next_sync().ok_or(Blocker::NoAsync)
}

fn step(situation: Situation<'_>, standby: &StandbyStatus, next: &Peer, cause: TakeoverCause) -> Decision {
    let target = ServerConfig {
        recovery: Recovery::Detached,
        synchronous: Synchronous::Impossible,
        gate: situation.gate(),
        slots: situation.slots(Role::Primary),
    };
    if situation.view.local.config.as_ref() != Some(&target) {
        return act(ServerAction::Configure(target), Reason::TakeoverStopsReceiver(cause));
    }
    let Some(received) = standby.received.filter(|_| standby.receiver_stopped) else {
        return wait(Reason::TakeoverAwaitsReceiver(cause));
    };
    let mut state = situation.next_generation(received, format!("takeover by the sync: {cause}"));
    let old = std::mem::replace(&mut state.primary, situation.view.me.clone());
    state.sync_peer = Some(next.clone());
    // A missing async goes now instead of with a write of its own; those that are only silent stay.
    let stays = |peer: &Peer| peer.id != next.id && !suspicion::is_missing(situation.view, peer.id);
    state.async_peers.retain(stays);
    state.deposed.retain(|peer| peer.id != next.id);
    state.deposed.push(old);
    Promotion::set(&mut state, Some(Promotion::reserve(situation.state, received.timeline)));
    situation.write(state, Reason::TakeoverWrites { sync: next.id, received, cause })
}
