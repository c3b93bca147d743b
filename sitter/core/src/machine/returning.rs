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
//! What is taken for granted: not two disks come back older at once, and none between the write of a takeover and its
//! promotion to before the takeover: what was received may then end in a half record, which is as little there after any
//! restart.

use manatee_shared::cluster::Role;
use manatee_shared::ids::PeerId;

use super::action::{Action, Decision};
use super::local::{Data, EndOfWal, Server, StandbyStatus};
use super::situation::{Promotion, Situation, act, is_outdated, wait};
use super::suspicion::{self, NODE_GRACE_MS};
use super::view::View;

/// A peer whose PostgreSQL has been down for this long (ms) does not say how far its WAL goes: it is not waited for.
const SAYS_NOTHING_MS: u64 = 30_000;

/// What another peer says of its WAL.
enum Word {
    /// It has said it, or has no data.
    Told,
    /// It can be expected to say it.
    Coming(&'static str),
    /// It is not there.
    Absent,
}

/// Why this peer, the primary by the state, has less than it had. None: nothing shows that. Its heartbeats say so.
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
        return Some(act(Action::Survey, "primary: PostgreSQL is down, reading how far its WAL goes"));
    };
    if let Some(lost) = lost(situation, end) {
        return Some(give_way(situation, &lost));
    }
    let known = view.observed.known_end.is_some_and(|known| end.contains(known));
    let sync = situation.sync().filter(|_| !known)?;
    match word(situation, sync, true) {
        Word::Told => None,
        Word::Coming(why) => Some(wait(format!(
            "primary: PostgreSQL is not started before the sync {sync} has said how far its WAL goes: {why}"
        ))),
        Word::Absent => {
            let others = || others(situation).filter(|peer| *peer != sync);
            let told = others().any(|peer| matches!(word(situation, peer, false), Word::Told));
            let coming = others().any(|peer| matches!(word(situation, peer, false), Word::Coming(_)));
            (!told || coming).then(|| {
                wait(format!(
                    "primary: PostgreSQL is not started before another peer has said how far its WAL goes; the sync {sync} \
                     is not there"
                ))
            })
        }
    }
}

/// As primary by the state, on a standby's directory: what must come before it is promoted.
pub(super) fn before_promotion(situation: Situation<'_>, standby: &StandbyStatus) -> Option<Decision> {
    let Situation { view, state, .. } = situation;
    if let Some(lost) = lost_promotion(situation, standby) {
        return Some(give_way(situation, &lost));
    }
    Promotion::of(state)?;
    let sync = situation.sync().filter(|_| view.observed.wrote_generation != Some(state.generation))?;
    match word(situation, sync, false) {
        Word::Told | Word::Absent => None,
        Word::Coming(why) => Some(wait(format!(
            "primary by the state: not promoted before the sync {sync} has said how far its WAL goes: {why}"
        ))),
    }
}

/// What shows that this standby's data is from before a promotion that was carried out. It began the very timeline
/// that another one would begin again.
fn lost_promotion(situation: Situation<'_>, standby: &StandbyStatus) -> Option<String> {
    let Situation { view, state, .. } = situation;
    let Some(promotion) = Promotion::of(state) else {
        let lacks = standby.received.is_some() && !situation.is_caught_up(standby);
        return lacks.then(|| "its WAL does not reach the beginning of the generation".to_owned());
    };
    if promotion.at.is_some() {
        return Some("its data is from before its promotion".to_owned());
    }
    let began = |peer: &PeerId| {
        let wal = view.health.get(peer).and_then(|health| health.wal.as_ref());
        wal.is_some_and(|wal| wal.on(promotion.timeline).is_some())
    };
    let timeline = promotion.timeline;
    let peer = others(situation).find(began)?;
    Some(format!("{peer} has WAL of timeline {timeline}, which its promotion began"))
}

/// As sync: why it must not take over, although it has the beginning of the generation.
pub(super) fn objection(situation: Situation<'_>, standby: &StandbyStatus) -> Option<String> {
    let Situation { view, state, .. } = situation;
    let end = standby.end().filter(|_| !view.observed.is_whole)?;
    let wal = |peer: PeerId| view.health.get(&peer).and_then(|health| health.wal.as_ref());
    let primary = state.primary.id;
    let primarys = view.health.get(&primary).filter(|_| is_heard(situation, primary));
    if primarys.is_some_and(|primarys| primarys.older) {
        // Then this disk did not.
        return None;
    }
    for peer in others(situation).filter(|peer| *peer != primary) {
        if let Word::Coming(why) = word(situation, peer, false) {
            return Some(format!("whether {peer} has more WAL is not known yet: {why}"));
        }
        if let Some(more) = wal(peer).filter(|wal| wal.is_beyond(&end)) {
            return Some(format!(
                "{peer} has WAL up to {}, ours ends at {}, and since this sitter was started it has not been as far as \
                 the primary: this disk may have come back older than it was",
                more.position, end.position
            ));
        }
    }
    let more = primarys.and_then(|primarys| primarys.wal.as_ref()).filter(|more| more.is_beyond(&end))?;
    Some(format!(
        "the primary has WAL up to {}, ours ends at {}, and it has not been complete since this sitter was started",
        more.position, end.position
    ))
}

/// What shows that the WAL that ends at `end` is not all that this primary had.
fn lost(situation: Situation<'_>, end: &EndOfWal) -> Option<String> {
    let state = situation.state;
    if state.one_node_write_mode && situation.view.settings.one_node_write_mode {
        // An operator has decided that it goes on from where it is, alone.
        return None;
    }
    let has_beginning = match Promotion::of(state) {
        Some(Promotion { at: Some(at), .. }) => end.contains(at),
        // init_wal may lie inside a record, where no history of ours comes by.
        Some(promotion) if end.position.timeline == promotion.timeline => true,
        // Also of one that somebody promoted by hand before it was promoted.
        _ => state.init_position().map_or(end.position.lsn >= state.init_wal, |init| end.contains(init)),
    };
    if !has_beginning {
        return Some(format!("its WAL ends at {}, before the beginning of the generation", end.position));
    }
    beyond(situation, end)
}

/// Who has more of the timeline on which our WAL ends.
fn beyond(situation: Situation<'_>, end: &EndOfWal) -> Option<String> {
    let view = situation.view;
    others(situation).find_map(|peer| {
        let more = view.health.get(&peer)?.wal.as_ref().filter(|wal| wal.is_beyond(end))?;
        let how_far = more.on(end.position.timeline)?;
        Some(format!("its WAL ends at {}, but {peer} has it up to {how_far}", end.position))
    })
}

/// Nothing is started or promoted here any more: the sync is to take over.
fn give_way(situation: Situation<'_>, lost: &str) -> Decision {
    let reason = format!(
        "primary: {lost}: this disk came back older than it was, and writes nothing; the sync is to take over (to go on \
         from here all the same, and lose what only others have: `manatee-adm set-onwm -m on`)"
    );
    let leaves = situation.connected() && situation.registered();
    if leaves { act(Action::LeaveElection, reason) } else { wait(reason) }
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

/// What `peer` says. `finally`: of one that streamed from here, only what it says now that it does not count.
fn word(situation: Situation<'_>, peer: PeerId, finally: bool) -> Word {
    let view = situation.view;
    let missing_ms = view.observed.missing_ms.get(&peer).copied().unwrap_or(0);
    let gone = suspicion::is_missing(view, peer) && missing_ms >= NODE_GRACE_MS;
    let health = view.health.get(&peer).filter(|_| is_heard(situation, peer));
    let Some(health) = health else {
        return if gone { Word::Absent } else { Word::Coming("it is not heard of") };
    };
    match (&health.data, situation.data_fits(peer)) {
        (None, _) => return Word::Coming("it has not said whether it has data"),
        (Some(Data::Present(_)), Some(true)) => {}
        (Some(Data::Present(_) | Data::Unusable(_)), _) => return Word::Absent,
        (Some(Data::Absent | Data::Incomplete | Data::Fresh(_)), _) => return Word::Told,
    }
    if finally && health.streaming == Some(true) {
        return Word::Coming("it has not noticed yet that its upstream ended");
    }
    match (&health.wal, health.postgres_down_ms) {
        (Some(_), _) => Word::Told,
        (None, Some(down_ms)) if down_ms >= SAYS_NOTHING_MS => Word::Absent,
        (None, Some(_)) => Word::Coming("its PostgreSQL is down"),
        (None, None) if health.streaming == Some(true) => Word::Told,
        (None, None) => Word::Coming("its PostgreSQL has not come to the end of its WAL yet"),
    }
}
