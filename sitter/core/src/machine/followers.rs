//! Followers of a primary as it sees them: facts for the choice of a sync, and for its heartbeat.

use std::collections::BTreeSet;

use manatee_shared::ids::PeerId;

use super::local::{Downstream, PrimaryStatus, Server};
use super::situation::Situation;
use super::suspicion::{self, NODE_GRACE_MS};
use super::view::View;
use crate::reason::SyncTrouble;

/// A sync that its heartbeats show alive, but that does not follow, is replaced after this long (ms);
/// and so is one that kept commits waiting for this long in all, if somebody is quicker.
pub(super) const SYNC_STALLED_MS: u64 = 5_000;

/// A sync that says for this long (ms) that it could not take over is replaced, if somebody could.
const UNREADY_MS: u64 = 10_000;

/// The peers that this one finds gone itself, by silence or refusal, and as primary also a sync
/// that does not follow: what its heartbeat says.
pub fn suspects(view: &View) -> BTreeSet<PeerId> {
    let mut suspects: BTreeSet<_> =
        view.health.keys().copied().filter(|&peer| suspicion::is_suspect(view, peer)).collect();
    if let (Some((version, state)), Server::Primary(primary)) = (view.zk.state.valid(), &view.local.server)
        && state.primary.id == view.me.id
    {
        suspects.extend(finds_sync_lost(Situation { view, version, state }, primary));
    }
    suspects
}

/// View of `peer`.
pub(super) fn downstream(primary: &PrimaryStatus, peer: PeerId) -> Option<&Downstream> {
    primary.downstreams.iter().find(|down| down.peer == peer)
}

/// Whether `sync` says that a takeover would fail there.
pub(super) fn is_unready(situation: Situation<'_>, sync: PeerId) -> bool {
    let unready_ms = situation.view.health.get(&sync).and_then(|health| health.unready_ms);
    unready_ms.is_some_and(|unready_ms| unready_ms >= UNREADY_MS)
}

/// Whether `peer` kept commits waiting for this long (ms) lately. What it acknowledges it has, only
/// late; a disk that takes seconds for each flush makes progress all the time.
pub(super) fn is_slow(situation: Situation<'_>, peer: PeerId, for_ms: u64) -> bool {
    situation.view.observed.slow_ms.get(&peer).is_some_and(|slow_ms| *slow_ms >= for_ms)
}

/// Reason why the sync counts as lost for its primary. The primary needs nobody's agreement: a needless
/// replacement is safe.
pub(super) fn sync_lost(situation: Situation<'_>, primary: &PrimaryStatus, sync: PeerId) -> Option<SyncTrouble> {
    let view = situation.view;
    let health = view.health.get(&sync).cloned().unwrap_or_default();
    let suspect = suspicion::is_suspect(view, sync);
    let heard = health.silent_ms.is_some() && !suspect;
    let attached = downstream(primary, sync).is_some_and(|down| down.streaming);
    let stalled_ms = view.observed.stalled_ms.get(&sync).copied().unwrap_or(0);
    if heard && health.stopping {
        return Some(SyncTrouble::Stopping);
    }
    let down_ms = health.postgres_down_ms.unwrap_or(0);
    // One that still follows says so when it hangs or has no room: it will not follow for long.
    let patience_ms = view.settings.restart_budget_ms * if attached { 2 } else { 1 };
    if heard && down_ms > patience_ms {
        return Some(SyncTrouble::PostgresDown);
    }
    if suspicion::is_missing(view, sync) {
        let missing_ms = view.observed.missing_ms.get(&sync).copied().unwrap_or(0);
        if !(heard && attached) || missing_ms >= NODE_GRACE_MS {
            return Some(SyncTrouble::NodeGone);
        }
    }
    if suspect && (!attached || stalled_ms >= suspicion::stream_patience_ms(view, sync)) {
        return Some(SyncTrouble::Silent);
    }
    (stalled_ms >= SYNC_STALLED_MS).then_some(SyncTrouble::NotFollowing)
}

/// Whether the primary should tell the others that it finds its sync lost: asyncs behind it then
/// come to follow the primary, which is what makes them fit to replace it.
fn finds_sync_lost(situation: Situation<'_>, primary: &PrimaryStatus) -> Option<PeerId> {
    let sync = situation.sync()?;
    let slow = is_slow(situation, sync, SYNC_STALLED_MS / 2);
    let unready = is_unready(situation, sync);
    (slow || unready || sync_lost(situation, primary, sync).is_some()).then_some(sync)
}

/// Whether `peer` follows from here closely enough to be waited for.
pub(super) fn is_fit(situation: Situation<'_>, primary: &PrimaryStatus, peer: PeerId) -> bool {
    let view = situation.view;
    let stalled_ms = view.observed.stalled_ms.get(&peer).copied().unwrap_or(0);
    downstream(primary, peer).is_some_and(|down| down.streaming)
        && stalled_ms < view.settings.suspicion_timeout_ms
        && suspicion::is_serving(view, peer)
}
