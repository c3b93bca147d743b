//! History never goes back: what a peer must know before its WAL is gone on from.
//!
//! A disk may come back older than it was: a snapshot of the virtual machine was put back, a cache lied, the wrong
//! volume is mounted. Nothing on it says so. What was acknowledged since is on the other peers, and would be
//! overwritten by a primary that goes on from where it is; worse, it would write other WAL under the same
//! numbers, which PostgreSQL does not tell apart. So whoever starts as a primary first reads how far its WAL
//! goes, and compares that with what the others have, before PostgreSQL writes anything:
//!
//! ```text
//! primary down → Survey → is the beginning of the generation there? does anybody have more?
//!   → no, or yes: it leaves the election, and the sync takes over
//!   → this process knew no more, or the sync has said how far it is → Start
//! ```
//!
//! A standby's disk may have come back older as well. It streams again from where it is, and counts by what it
//! reports; but it must not take over on the strength of what it once acknowledged. So a sync that this
//! process has not seen reach what the primary had asks the others as well.
//!
//! Two things are taken for granted: not two disks come back older at once, and none between the write of a takeover
//! and its promotion to before the takeover: what was received may then end in a half record, which is as little there
//! after any restart.

use manatee_shared::cluster::Role;
use manatee_shared::ids::PeerId;

use super::action::{DataAction, Decision, ShardAction};
use super::local::{Data, EndOfWal, Server, StandbyStatus};
use super::situation::{Promotion, Situation, act, is_outdated, wait};
use super::suspicion::{self, NODE_GRACE_MS};
use super::view::View;
use crate::reason::{Blocker, Reason, Shortfall, Unsaid};

/// A peer whose PostgreSQL has been down for this long (ms) does not say how far its WAL goes: it is not waited for.
const SAYS_NOTHING_MS: u64 = 30_000;

/// Word of another peer about its WAL.
enum Word {
    /// It has said it, or has no data.
    Told,
    /// It can be expected to say it.
    Coming(Unsaid),
    /// It is not there.
    Absent,
}

/// Whether this peer, the primary by the state, has less than it had. Its heartbeats say so.
pub fn is_older(view: &View) -> bool {
    let Some((version, state)) = view.zk.state.valid() else { return false };
    let situation = Situation { view, version, state };
    if situation.role() != Role::Primary || is_outdated(view, state) {
        return false;
    }
    match (&view.local.server, &view.local.end) {
        (Server::Down { standby: false, .. }, Some(end)) => lost(situation, end).is_some(),
        (Server::Standby(standby), _) => lost_promotion(situation, standby).is_some(),
        _ => false,
    }
}

/// As primary whose PostgreSQL is down: what must come before it is started. None: nothing.
pub(super) fn before_start(situation: Situation<'_>) -> Option<Decision> {
    let view = situation.view;
    let Some(end) = &view.local.end else {
        return Some(act(DataAction::Survey, Reason::PrimarySurveys));
    };
    if let Some(shortfall) = lost(situation, end) {
        return Some(give_way(situation, shortfall));
    }
    let known = view.observed.known_end.is_some_and(|known| end.contains(known));
    let sync = situation.sync().filter(|_| !known)?;
    match word(situation, sync, true) {
        Word::Told => None,
        Word::Coming(unsaid) => Some(wait(Reason::PrimaryAwaitsSync { sync, unsaid })),
        Word::Absent => {
            let others = || others(situation).filter(|peer| *peer != sync);
            let told = others().any(|peer| matches!(word(situation, peer, false), Word::Told));
            let coming = others().any(|peer| matches!(word(situation, peer, false), Word::Coming(_)));
            (!told || coming).then(|| wait(Reason::PrimaryAwaitsPeers(sync)))
        }
    }
}

/// As primary by the state, on a standby's directory: what must come before it is promoted.
pub(super) fn before_promotion(situation: Situation<'_>, standby: &StandbyStatus) -> Option<Decision> {
    let Situation { view, state, .. } = situation;
    if let Some(shortfall) = lost_promotion(situation, standby) {
        return Some(give_way(situation, shortfall));
    }
    Promotion::of(state)?;
    let sync = situation.sync().filter(|_| view.observed.wrote_generation != Some(state.generation))?;
    match word(situation, sync, false) {
        Word::Told | Word::Absent => None,
        Word::Coming(unsaid) => Some(wait(Reason::PromotingAwaitsSync { sync, unsaid })),
    }
}

/// Sign that this standby's data is from before a promotion that was carried out. It began the very timeline
/// that another one would begin again.
fn lost_promotion(situation: Situation<'_>, standby: &StandbyStatus) -> Option<Shortfall> {
    let Situation { view, state, .. } = situation;
    let Some(promotion) = Promotion::of(state) else {
        let lacks = standby.received.is_some() && !situation.is_caught_up(standby);
        return lacks.then_some(Shortfall::Beginning);
    };
    if promotion.at.is_some() {
        return Some(Shortfall::Promotion);
    }
    let began = |peer: &PeerId| {
        let wal = view.health.get(peer).and_then(|health| health.wal.as_ref());
        wal.is_some_and(|wal| wal.on(promotion.timeline).is_some())
    };
    let timeline = promotion.timeline;
    let peer = others(situation).find(began)?;
    Some(Shortfall::PromotedTimeline { peer, timeline })
}

/// As sync: why it must not take over, although it has the beginning of the generation.
pub(super) fn objection(situation: Situation<'_>, standby: &StandbyStatus) -> Option<Blocker> {
    let Situation { view, state, .. } = situation;
    let end = standby.end().filter(|_| !view.observed.is_whole)?;
    let wal = |peer: PeerId| view.health.get(&peer).and_then(|health| health.wal.as_ref());
    // Of the generation's own timeline ours may end before the first record: its beginning is there then, and whoever
    // has anything of it has more.
    let promoted = Promotion::of(state).map(|promotion| promotion.timeline).filter(|own| end.on(*own).is_none());
    let is_ahead = |wal: &&EndOfWal| wal.is_beyond(&end) || promoted.is_some_and(|timeline| wal.on(timeline).is_some());
    let primary = state.primary.id;
    let primarys = view.health.get(&primary).filter(|_| is_heard(situation, primary));
    if primarys.is_some_and(|primarys| primarys.older) {
        // Then this disk did not.
        return None;
    }
    for peer in others(situation).filter(|peer| *peer != primary) {
        if let Word::Coming(unsaid) = word(situation, peer, false) {
            return Some(Blocker::PeerUnheard { peer, unsaid });
        }
        if let Some(more) = wal(peer).filter(is_ahead) {
            return Some(Blocker::PeerAhead { peer, theirs: more.position, ours: end.position });
        }
    }
    // What it said while it was down it does not say while it starts.
    if let Word::Coming(unsaid) = word(situation, primary, false)
        && primarys.is_some()
    {
        return Some(Blocker::PeerUnheard { peer: primary, unsaid });
    }
    let more = primarys.and_then(|primarys| primarys.wal.as_ref()).filter(is_ahead)?;
    Some(Blocker::PrimaryAhead { theirs: more.position, ours: end.position })
}

/// Sign that the WAL that ends at `end` is not all that this primary had.
fn lost(situation: Situation<'_>, end: &EndOfWal) -> Option<Shortfall> {
    let state = situation.state;
    if state.one_node_write_mode && situation.view.settings.one_node_write_mode {
        // An operator has decided that it goes on from where it is, alone.
        return None;
    }
    let contains_init_wal = match Promotion::of(state) {
        Some(Promotion { at: Some(at), .. }) => end.contains(at),
        // init_wal may lie inside a record, where no history of ours comes by.
        Some(promotion) if end.position.timeline == promotion.timeline => true,
        // Also of one that somebody promoted by hand before it was promoted.
        _ => state.init_position().map_or(end.position.lsn >= state.init_wal, |init| end.contains(init)),
    };
    if !contains_init_wal {
        return Some(Shortfall::EndsBefore(end.position));
    }
    beyond(situation, end)
}

/// Peer that has more of the timeline on which our WAL ends.
fn beyond(situation: Situation<'_>, end: &EndOfWal) -> Option<Shortfall> {
    let view = situation.view;
    others(situation).find_map(|peer| {
        let more = view.health.get(&peer)?.wal.as_ref().filter(|wal| wal.is_beyond(end))?;
        let theirs = more.on(end.position.timeline)?;
        Some(Shortfall::PeerAhead { end: end.position, peer, theirs })
    })
}

/// Nothing is started or promoted here any more: the sync is to take over.
fn give_way(situation: Situation<'_>, shortfall: Shortfall) -> Decision {
    let why = Reason::DiskOlder(shortfall);
    let leaves = situation.connected() && situation.registered();
    if leaves { act(ShardAction::LeaveElection, why) } else { wait(why) }
}

/// Peers of this shard with data, heard of lately.
fn others(situation: Situation<'_>) -> impl Iterator<Item = PeerId> {
    let peers = situation.view.health.keys().copied();
    peers.filter(move |peer| is_heard(situation, *peer) && situation.data_fits(*peer) == Some(true))
}

fn is_heard(situation: Situation<'_>, peer: PeerId) -> bool {
    let view = situation.view;
    view.health.get(&peer).is_some_and(|health| health.silent_ms.is_some()) && !suspicion::is_suspect(view, peer)
}

/// Word of `peer`. `finally`: of one that streamed from here, only what it says now that it does not count.
fn word(situation: Situation<'_>, peer: PeerId, finally: bool) -> Word {
    let view = situation.view;
    let missing_ms = view.observed.missing_ms.get(&peer).copied().unwrap_or(0);
    let gone = suspicion::is_missing(view, peer) && missing_ms >= NODE_GRACE_MS;
    let health = view.health.get(&peer).filter(|_| is_heard(situation, peer));
    let Some(health) = health else {
        return if gone { Word::Absent } else { Word::Coming(Unsaid::NotHeard) };
    };
    match (&health.data, situation.data_fits(peer)) {
        (None, _) => return Word::Coming(Unsaid::DataUnknown),
        (Some(Data::Present(_)), Some(true)) => {}
        (Some(Data::Present(_) | Data::Unusable(_)), _) => return Word::Absent,
        (Some(Data::Absent | Data::Incomplete | Data::Fresh(_)), _) => return Word::Told,
    }
    if finally && health.streaming == Some(true) {
        return Word::Coming(Unsaid::UpstreamEnded);
    }
    match (&health.wal, health.postgres_down_ms) {
        (Some(_), _) => Word::Told,
        (None, Some(down_ms)) if down_ms >= SAYS_NOTHING_MS => Word::Absent,
        (None, Some(_)) => Word::Coming(Unsaid::PostgresDown),
        (None, None) if health.streaming == Some(true) => Word::Told,
        (None, None) => Word::Coming(Unsaid::StillReplays),
    }
}
