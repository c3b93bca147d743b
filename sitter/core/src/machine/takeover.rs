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
//! What was received is only known once PostgreSQL has turned to streaming in its present run
//! (`pg_last_wal_receive_lsn()`): a sync restarted while the primary is away keeps trying to
//! stream, and does not take over until it knows. If the write loses, the new state decides; if
//! the primary comes back before it, the sync follows again, unless the write may still happen.

use manatee_shared::cluster::{Peer, PromoteRole, Role};
use manatee_shared::zk::Session;

use super::action::{Action, Decision};
use super::local::{Recovery, ServerConfig, StandbyStatus, Synchronous};
use super::situation::{Promotion, Situation, act, detached, wait};
use super::{hand_over, returning, suspicion};

/// What comes of looking for a reason to take over.
pub(super) enum Takeover {
    /// The primary is fine.
    NotNeeded,
    /// There is reason to, but it must not be.
    Blocked(String),
    /// The next step.
    Step(Decision),
}

pub(super) fn consider(situation: Situation<'_>, standby: &StandbyStatus) -> Takeover {
    let Situation { view, state, .. } = situation;
    let is_detached = situation.config().is_some_and(|config| config.recovery == Recovery::Detached);
    if view.uncertain_write {
        return match situation.config().map(|config| config.recovery) {
            Some(Recovery::Follow(_)) => Takeover::Blocked("the outcome of a state write is not known yet".to_owned()),
            Some(_) => Takeover::Step(wait("takeover write outcome unknown, waiting for ZooKeeper")),
            // It took long to start. What it would acknowledge to the old primary now is in no init_wal.
            None => Takeover::Step(act(
                Action::Configure(detached(situation.slots(Role::Sync))),
                "a state write of ours may still happen: following nobody",
            )),
        };
    }
    let asked = matches!(situation.promote_request(), Some((PromoteRole::Sync, peer)) if peer == situation.me());
    let gone = suspicion::primary_gone(view, state.primary.id, standby);
    let reason = match gone {
        Some(gone) => gone,
        // One that was begun is not left half done because the primary changed its mind.
        None if asked && (is_detached || hand_over::is_due(situation)) => "it was asked for".to_owned(),
        None if asked => {
            return match next_or_blocker(situation, standby) {
                Ok(_) => Takeover::Blocked("asked to take over; the primary waits for its clients".to_owned()),
                Err(blocker) => Takeover::Blocked(format!("asked to take over, but no: {blocker}")),
            };
        }
        None => return Takeover::NotNeeded,
    };
    match next_or_blocker(situation, standby) {
        Ok(next) => Takeover::Step(step(situation, standby, next, &reason)),
        Err(blocker) => Takeover::Blocked(format!("{reason}; no takeover: {blocker}")),
    }
}

/// The coming sync, or why there must be no takeover (rule 5).
fn next_or_blocker<'a>(situation: Situation<'a>, standby: &StandbyStatus) -> Result<&'a Peer, String> {
    let Situation { view, state, .. } = situation;
    if view.zk.session != Session::Connected || !situation.registered() {
        return Err("ZooKeeper does not answer, or this peer is not registered".to_owned());
    }
    if state.is_frozen() {
        return Err("the shard is frozen".to_owned());
    }
    if state.one_node_write_mode {
        return Err("the shard is in one-node-write mode".to_owned());
    }
    let Some(received) = standby.received else {
        return Err("PostgreSQL has not streamed since it started, so what it received is not known".to_owned());
    };
    if let Some((peer, generation)) = situation.newer_generation_elsewhere() {
        return Err(format!("{peer} has seen generation {generation}: the state is an old one, or about to change"));
    }
    if !situation.is_caught_up(standby) {
        return Err(format!("received {received}, but the generation began at {}", state.init_wal));
    }
    if let Some(objection) = returning::objection(situation, standby) {
        return Err(objection);
    }
    situation.next_sync().ok_or_else(|| "no async is alive to become the sync, nor is any other peer".to_owned())
}

fn step(situation: Situation<'_>, standby: &StandbyStatus, next: &Peer, reason: &str) -> Decision {
    let target = ServerConfig {
        recovery: Recovery::Detached,
        synchronous: Synchronous::Impossible,
        gate: situation.gate(),
        slots: situation.slots(Role::Primary),
    };
    if situation.view.local.config.as_ref() != Some(&target) {
        return act(Action::Configure(target), format!("takeover, stopping the WAL receiver: {reason}"));
    }
    let Some(received) = standby.received.filter(|_| standby.receiver_stopped) else {
        return wait(format!("takeover, waiting for the WAL receiver to end: {reason}"));
    };
    let mut state = situation.next_generation(received, &format!("takeover by the sync: {reason}"));
    let old = std::mem::replace(&mut state.primary, situation.view.me.clone());
    state.sync_peer = Some(next.clone());
    // A missing async goes now instead of with a write of its own; those that are only silent stay.
    let stays = |peer: &Peer| peer.id != next.id && !suspicion::is_missing(situation.view, peer.id);
    state.async_peers.retain(stays);
    state.deposed.retain(|peer| peer.id != next.id);
    state.deposed.push(old);
    Promotion::set(&mut state, Some(Promotion::reserve(situation.state, received.timeline)));
    situation.write(state, format!("takeover with {next_id} as sync at {received}: {reason}", next_id = next.id))
}
