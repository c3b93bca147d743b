//! Detection (design §3): who is gone, and by whose word. Suspicion may be wrong; that costs a
//! failover, never data (rule 6).

use manatee_shared::ids::PeerId;
use manatee_shared::zk::Session;

use super::local::{Server, StandbyStatus};
use super::view::{PeerHealth, View};
use crate::reason::TakeoverCause;

/// Time (ms) for which the election node of a peer that otherwise looks healthy may be missing before
/// the peer counts as gone: it may have lost its session and be registering again.
pub const NODE_GRACE_MS: u64 = 2_000;

/// Duration (ms) of a takeover on a busy machine. The sync begins one this much before the budget
/// for a restart in place is used up, so that writes return within the budget either way.
const TAKEOVER_MS: u64 = 500;

/// Whether our own PostgreSQL is a primary, or a standby that streams: what our heartbeat says.
pub fn streams(view: &View) -> bool {
    match &view.local.server {
        Server::Primary(_) => true,
        Server::Standby(standby) => standby.streaming,
        _ => false,
    }
}

/// Whether `peer` is silent for too long, or its sitter refuses connections.
pub fn is_suspect(view: &View, peer: PeerId) -> bool {
    let health = view.health.get(&peer);
    health.is_some_and(|health| {
        health.refused || health.silent_ms.is_some_and(|silent| silent >= view.settings.suspicion_timeout_ms)
    })
}

/// Whether the election node of `peer` is known to be missing.
pub fn is_missing(view: &View, peer: PeerId) -> bool {
    view.zk.session == Session::Connected && !view.zk.active.contains_key(&peer)
}

/// Whether another peer, one that we hear ourselves, suspects `peer` too.
fn shared_by_another(view: &View, peer: PeerId) -> bool {
    view.health
        .iter()
        .any(|(&other, health)| other != peer && !is_suspect(view, other) && health.suspects.contains(&peer))
}

/// Time (ms) for which PostgreSQL's stream from or to `peer` may stand still before that says something.
pub(super) fn stream_patience_ms(view: &View, peer: PeerId) -> u64 {
    let explained_ms = view.health.get(&peer).map_or(0, |health| health.explained_ms);
    view.settings.suspicion_timeout_ms + explained_ms
}

/// Whether WAL or keepalives still come from `upstream`: its PostgreSQL lives, whatever became of
/// its sitter.
fn stream_is_fresh(view: &View, upstream: PeerId, standby: &StandbyStatus) -> bool {
    let patience_ms = stream_patience_ms(view, upstream);
    standby.streaming && standby.upstream_silent_ms.is_some_and(|silent| silent < patience_ms)
}

/// Reason why the primary counts as gone for its sync; None if it does not.
pub fn primary_gone(view: &View, primary: PeerId, standby: &StandbyStatus) -> Option<TakeoverCause> {
    let health = view.health.get(&primary).cloned().unwrap_or_default();
    let suspect = is_suspect(view, primary);
    let heard = health.silent_ms.is_some() && !suspect;
    if heard && health.stopping && is_missing(view, primary) {
        return Some(TakeoverCause::Stopping);
    }
    let down_ms = health.postgres_down_ms.unwrap_or(0);
    // With no room here either both would go on handing over to each other.
    let no_better = view.disk_full && standby.streaming;
    if heard && !no_better && down_ms > view.settings.restart_budget_ms.saturating_sub(TAKEOVER_MS) {
        return Some(TakeoverCause::PostgresDown);
    }
    // A host that refuses connections to its sitter is alive: had its PostgreSQL died, the stream
    // would have been closed, so an idle one is as good as a fresh one.
    let streaming = if health.refused { standby.streaming } else { stream_is_fresh(view, primary, standby) };
    if is_missing(view, primary) {
        let missing_ms = view.observed.missing_ms.get(&primary).copied().unwrap_or(0);
        let healthy = heard && health.postgres_down_ms.is_none() && streaming;
        if !healthy || missing_ms >= NODE_GRACE_MS {
            return Some(TakeoverCause::NodeGone);
        }
    }
    if suspect && !streaming && shared_by_another(view, primary) {
        return Some(if health.refused { TakeoverCause::ProcessGone } else { TakeoverCause::Silent });
    }
    None
}

/// Whether `peer` can be relied on as far as its sitter and its election node say: not whether it
/// has any data.
pub fn is_alive(view: &View, peer: PeerId) -> bool {
    let stopping = view.health.get(&peer).is_some_and(|health| health.stopping);
    !is_missing(view, peer) && !is_suspect(view, peer) && !stopping
}

/// Whether `peer`'s sitter is heard of and its PostgreSQL answers, even if it is about to stop.
pub fn answers(view: &View, peer: PeerId) -> bool {
    let health = view.health.get(&peer);
    !is_suspect(view, peer)
        && health.is_some_and(|health| health.silent_ms.is_some() && health.postgres_down_ms.is_none())
}

/// Whether what a takeover needs of `peer` works, as far as its sitter says, and it can follow what this one has of the
/// settings that a standby needs as high.
pub fn is_ready(view: &View, peer: PeerId) -> bool {
    let short = |health: &PeerHealth| {
        let both = health.capacities.zip(view.local.capacities);
        both.is_some_and(|(theirs, ours)| theirs.shortfalls(&ours).next().is_some())
    };
    view.health
        .get(&peer)
        .is_some_and(|health| health.silent_ms.is_some() && health.unready_ms.is_none() && !short(health))
}

/// Whether `peer` is alive and its PostgreSQL answers.
pub fn is_serving(view: &View, peer: PeerId) -> bool {
    let down = view.health.get(&peer).is_some_and(|health| health.postgres_down_ms.is_some());
    is_alive(view, peer) && !down
}
