//! The primary replaces its sync by rule 3:
//!
//! ```text
//! Configure(Both { new, old })    every commit needs both
//!   → confirmed: the postmaster has it, and the walsenders of both show their new priorities
//!   → WriteState(generation + 1)  init_wal = our end of WAL, read after that
//!   → Configure(Peer(new))        decided in `primary`: the state names it now
//! ```
//!
//! Nothing is kept in memory: what is required now is read back from the configuration. At every
//! moment the sync that the state names is among those required, so each step can be undone until
//! the write was tried: when the old sync comes back, or the new one is lost as well. While a write
//! may still happen ([`super::view::View::uncertain_write`]) nothing is undone.

use manatee_shared::cluster::{Peer, PromoteRole};
use manatee_shared::ids::PeerId;

use super::action::Decision;
use super::followers::{SYNC_STALLED_MS, downstream, is_fit, is_slow, is_unready, sync_lost};
use super::local::{PrimaryStatus, Synchronous};
use super::situation::{Situation, wait};
use super::suspicion;
use crate::reason::{Blocker, Reason, ReplaceCause, SyncCondition, SyncLoss, SyncPlan, SyncTrouble};

/// Somebody is quicker than a slow sync if it was late for at most one of so many parts of its time.
const QUICKER: u64 = 4;

/// Received and not replayed, bytes: more than that takes a takeover seconds. A replay that is paused, or waits for
/// readers, comes to it on any server that is written to.
const REPLAY_BEHIND_BYTES: u64 = 64 << 20;

/// The peer that must acknowledge besides the sync.
pub(super) fn overlap(plan: &SyncPlan) -> Option<PeerId> {
    match plan {
        SyncPlan::Keep(_) => None,
        SyncPlan::Replace { new, .. } => Some(*new),
    }
}

pub(super) fn plan(situation: Situation<'_>, primary: &PrimaryStatus) -> SyncPlan {
    let Situation { state, .. } = situation;
    let Some(sync) = situation.sync() else {
        let leaves = state.leaves_one_node_write_mode();
        return SyncPlan::Keep(if leaves { SyncCondition::NoneYet } else { SyncCondition::None });
    };
    let asked = asked_for(situation);
    // One that was begun with stays the choice while it is fit.
    let begun = begun(situation, sync);
    let slow = is_slow(situation, sync, if begun.is_some() { SYNC_STALLED_MS / 2 } else { SYNC_STALLED_MS });
    let gone = sync_lost(situation, primary, sync);
    let trouble = match gone {
        None if slow => SyncTrouble::Slow,
        None => return fit_sync(situation, primary, sync, asked),
        Some(trouble) => trouble,
    };
    let loss = SyncLoss { sync, trouble };
    if state.is_frozen() {
        return SyncPlan::Keep(SyncCondition::Lost { loss, blocker: Blocker::Frozen });
    }
    let fit = |peer: &PeerId| is_fit(situation, primary, *peer);
    let slow_ms = |peer: PeerId| situation.view.observed.slow_ms.get(&peer).copied().unwrap_or(0);
    let quick = |peer: &PeerId| slow_ms(*peer) * QUICKER <= slow_ms(sync);
    let asyncs = || state.async_peers.iter().map(|peer| peer.id);
    let begun = begun.filter(|new| asyncs().any(|peer| peer == *new));
    let candidates = || begun.into_iter().chain(asked).chain(asyncs()).filter(fit);
    let ready = |peer: &PeerId| quick(peer) && suspicion::is_ready(situation.view, *peer);
    let close = |peer: &PeerId| replays_closely(primary, *peer);
    let ready_one = || {
        let begun = begun.filter(fit).filter(ready);
        begun.or_else(|| candidates().filter(ready).find(close)).or_else(|| candidates().find(ready))
    };
    // A slow one is no gain for another slow one, only for one that is gone.
    match ready_one().or_else(|| candidates().find(quick)).or_else(|| candidates().next().filter(|_| gone.is_some())) {
        Some(new) => SyncPlan::Replace { new, cause: ReplaceCause::Lost(loss) },
        None => SyncPlan::Keep(SyncCondition::Lost { loss, blocker: Blocker::NoFitAsync }),
    }
}

/// Treatment of a sync that is well.
fn fit_sync(situation: Situation<'_>, primary: &PrimaryStatus, sync: PeerId, asked: Option<PeerId>) -> SyncPlan {
    match asked {
        Some(new) if situation.state.is_frozen() => SyncPlan::Keep(SyncCondition::FitFrozen { sync, new }),
        Some(new) if is_fit(situation, primary, new) => SyncPlan::Replace { new, cause: ReplaceCause::Requested },
        Some(new) => SyncPlan::Keep(SyncCondition::FitAwaitsNew { sync, new }),
        None => match ready_instead(situation, primary, sync) {
            Some(new) => SyncPlan::Replace { new, cause: ReplaceCause::NotReady(sync) },
            None => SyncPlan::Keep(SyncCondition::Fit(sync)),
        },
    }
}

/// An async that is to replace a sync which is well but could not take over: only one that could.
fn ready_instead(situation: Situation<'_>, primary: &PrimaryStatus, sync: PeerId) -> Option<PeerId> {
    if !is_unready(situation, sync) || situation.state.is_frozen() {
        return None;
    }
    let asyncs = situation.state.async_peers.iter().map(|peer| peer.id);
    let begun = begun(situation, sync).filter(|new| asyncs.clone().any(|peer| peer == *new));
    let able = |peer: &PeerId| is_fit(situation, primary, *peer) && suspicion::is_ready(situation.view, *peer);
    begun.into_iter().chain(asyncs).find(able)
}

/// The peer that a replacement of `sync` was begun with.
fn begun(situation: Situation<'_>, sync: PeerId) -> Option<PeerId> {
    match situation.config().map(|config| config.synchronous) {
        Some(Synchronous::Both { new, old }) if old == sync => Some(new),
        _ => None,
    }
}

/// The first async, if an operator wants it for the sync.
fn asked_for(situation: Situation<'_>) -> Option<PeerId> {
    let first = situation.state.async_peers.first()?.id;
    (situation.promote_request() == Some((PromoteRole::Async, first))).then_some(first)
}

/// Whether every walsender shows that exactly `sync` is required. Each has a copy of its own of who
/// is, and its priority by that copy counts with all others (`SyncRepGetCandidateStandbys`): one that
/// still has a former choice of `new` as the first, and one that has the present choice, would make
/// two, and release commits without `sync`. So a new overlap begins only from there.
pub(super) fn is_settled(primary: &PrimaryStatus, sync: PeerId) -> bool {
    primary.downstreams.iter().all(|down| down.sync_priority == u32::from(down.peer == sync))
}

/// Whether `peer` could serve soon after a takeover. One that could not is chosen only for want of another.
fn replays_closely(primary: &PrimaryStatus, peer: PeerId) -> bool {
    downstream(primary, peer).is_some_and(|down| down.flush.bytes_since(down.replay) <= REPLAY_BEHIND_BYTES)
}

/// Every commit needs both as far as the configuration says; names the new sync in the state once
/// the walsenders show it. A walsender that still has the old configuration would release commits
/// by the old sync's word alone.
pub(super) fn write(situation: Situation<'_>, primary: &PrimaryStatus, new: PeerId, cause: ReplaceCause) -> Decision {
    let state = situation.state;
    let Some(old) = state.sync_peer.clone() else { return wait(Reason::WithoutSync) };
    let new_applied = downstream(primary, new).is_some_and(|down| down.streaming && down.sync_priority == 1);
    let old_applied = downstream(primary, old.id).is_none_or(|down| down.sync_priority == 2);
    if !new_applied || !old_applied {
        return wait(Reason::ReplacementApplies(new));
    }
    let Some(peer) = state.async_peers.iter().find(|peer| peer.id == new).cloned() else {
        return wait(Reason::ReplacementLeft(new));
    };
    let mut next = situation.next_generation(primary.flushed, format!("new sync: {cause}"));
    next.sync_peer = Some(peer);
    next.async_peers.retain(|peer| peer.id != new);
    place_former_sync(situation, &mut next.async_peers, old, new);
    situation.write(next, Reason::ReplacementWrites { new, at: primary.flushed, cause })
}

/// A former sync whose election node is there goes behind everyone else, or to the front if it was
/// only swapped by an operator's wish; one that is gone is dropped.
fn place_former_sync(situation: Situation<'_>, asyncs: &mut Vec<Peer>, old: Peer, new: PeerId) {
    if suspicion::is_missing(situation.view, old.id) {
        return;
    }
    if asked_for(situation) == Some(new) {
        asyncs.insert(0, old);
    } else {
        asyncs.push(old);
    }
}
