//! State that takes the place of a lost one. Pure.
//!
//! 1. Each state is written together with a copy in the history. If only the `state` node is lost
//!    or damaged, its last copy is what it was, unless a peer has seen a later generation (then
//!    the history is an old one, from a backup).
//! 2. Otherwise it is made from the registered peers. The primary must have every acknowledged
//!    write: that is the PostgreSQL which acknowledges now, else the one that is furthest on the
//!    newest timeline (each takeover begins a timeline, with all that was acknowledged before).
//!    Among equals election order decides, as in Manatee 2.

use std::cmp::Reverse;

use jiff::Timestamp;
use manatee_shared::cluster::{ClusterState, Freeze, Peer};
use manatee_shared::ids::PeerId;
use manatee_shared::lsn::{Lsn, Timeline, WalPosition};
use manatee_shared::zk::{Over, StateNode};

use crate::evidence::Evidence;
use crate::machine::local::{Data, Recovery, Server, Synchronous};
use crate::machine::situation::Promotion;
use crate::report::SitterStatus;

/// A state to write.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Over what was found.
    pub over: Over,
    /// The state, frozen.
    pub state: ClusterState,
    /// Notes for an operator.
    pub notes: Vec<String>,
}

/// A registered peer with data of the shard.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// The peer.
    pub peer: Peer,
    /// Its place in the election order.
    pub order: usize,
    /// PostgreSQL's system identifier there.
    pub system: String,
    /// Its PostgreSQL is out of recovery and acknowledges commits, with this peer's word (none: alone).
    pub acknowledges: Option<Option<PeerId>>,
    /// Its PostgreSQL was a standby, or is one.
    pub standby: bool,
    /// End of its WAL. None: its sitter does not know.
    pub position: Option<WalPosition>,
}

impl Candidate {
    fn rank(&self) -> (bool, Option<(Timeline, Lsn)>, Reverse<usize>) {
        let position = self.position.map(|at| (at.timeline, at.lsn));
        (self.acknowledges.is_some(), position, Reverse(self.order))
    }

    /// Its position, for people.
    pub fn told(&self) -> String {
        let position = self
            .position
            .map_or("an unknown position".to_owned(), |at| format!("{} on timeline {}", at.lsn, at.timeline));
        let doing = if self.acknowledges.is_some() { ", and acknowledges writes" } else { "" };
        format!("{} is at {position}{doing}", self.peer.zone_id)
    }
}

/// Works out the state, with `chosen` as primary if given; or says why it cannot be.
pub fn plan(evidence: &Evidence, chosen: Option<PeerId>, now: Timestamp) -> Result<Plan, String> {
    let newest = evidence.answers.values().flatten().filter_map(|status| status.newest_generation).max();
    let over = match &evidence.view.state {
        // An old one that somebody put there is as good as none.
        StateNode::Valid { version, state } if newest > Some(state.generation) => Over::Version(*version),
        StateNode::Valid { .. } => return Err("the shard has a valid state; nothing is to be restored".to_owned()),
        StateNode::Unread => return Err("the state was not read yet; try again".to_owned()),
        StateNode::Absent => Over::Lost,
        StateNode::Corrupt { version, .. } => Over::Version(*version),
    };
    let freeze = Freeze::because(now, "restored by manatee-adm state-backfill: look at it, then unfreeze");
    if let (Some(last), None) = (&evidence.last, chosen) {
        let last = &last.state;
        if newest.is_none_or(|newest| newest <= last.generation) {
            let mut state = ClusterState { freeze: Some(freeze), ..last.clone() };
            state.end_request();
            state.reason = Some("restored by an operator from the history".to_owned());
            let notes =
                vec!["this is the newest entry of the history: what the state was before it was lost".to_owned()];
            return Ok(Plan { over, state, notes });
        }
    }
    let generation = newest.max(evidence.last.as_ref().map(|last| last.state.generation)).unwrap_or(0) + 1;
    let (mut state, notes) = from_peers(evidence, chosen, generation)?;
    state.freeze = Some(freeze);
    state.mark_restored();
    Ok(Plan { over, state, notes })
}

/// The registered peers with data, best first. Fails if one of them does not say what it has.
pub fn candidates(evidence: &Evidence) -> Result<Vec<Candidate>, String> {
    let mut found = Vec::new();
    for (order, active) in evidence.view.in_election_order().into_iter().enumerate() {
        let peer = active.peer.clone();
        match evidence.answers.get(&peer.id) {
            Some(Ok(status)) => found.extend(candidate(peer, order, status)),
            Some(Err(problem)) => {
                return Err(format!(
                    "the sitter of {} is registered but does not answer ({problem}), and it may have the newest data; \
                     repair it, or stop it",
                    peer.zone_id
                ));
            }
            None => return Err(format!("the sitter of {} was not asked", peer.zone_id)),
        }
    }
    found.sort_by_key(|candidate| Reverse(candidate.rank()));
    Ok(found)
}

fn candidate(peer: Peer, order: usize, status: &SitterStatus) -> Option<Candidate> {
    let Data::Present(system) = &status.local.data else { return None };
    let local = &status.local;
    let synchronous = local.config.as_ref().map(|config| config.synchronous);
    let acknowledges = match (&local.server, synchronous) {
        (Server::Primary(_), Some(Synchronous::Peer(sync) | Synchronous::Both { old: sync, .. })) => Some(Some(sync)),
        (Server::Primary(_), Some(Synchronous::Nobody)) => Some(None),
        _ => None,
    };
    let (standby, position) = match &local.server {
        Server::Primary(primary) => (false, Some(primary.flushed)),
        // One that has not streamed since it started knows at least what it shows.
        Server::Standby(standby) => (true, standby.received),
        Server::Down { standby, .. } => (*standby, local.last_position),
        Server::Starting { .. } | Server::Hung { .. } => {
            let recovery = local.config.as_ref().map(|config| config.recovery);
            (matches!(recovery, Some(Recovery::Follow(_) | Recovery::Detached)), None)
        }
    };
    Some(Candidate { peer, order, system: system.0.clone(), acknowledges, standby, position })
}

fn from_peers(
    evidence: &Evidence,
    chosen: Option<PeerId>,
    generation: u64,
) -> Result<(ClusterState, Vec<String>), String> {
    let mut candidates = candidates(evidence)?;
    let place = match chosen {
        Some(id) => candidates
            .iter()
            .position(|candidate| candidate.peer.id == id)
            .ok_or_else(|| format!("{} has no data to be a primary with", evidence.name(id)))?,
        None => best(&candidates)?,
    };
    let primary = candidates.remove(place);
    let mut notes = vec![primary.told()];
    let Some(position) = primary.position else {
        let name = &primary.peer.zone_id;
        return Err(format!(
            "how far {name} is, is not known, and its sync must not have less: see the log of its sitter"
        ));
    };
    let foreign: Vec<PeerId> =
        candidates.iter().filter(|other| other.system != primary.system).map(|other| other.peer.id).collect();
    candidates.retain(|other| other.system == primary.system);
    notes.extend(candidates.iter().map(Candidate::told));
    notes
        .extend(foreign.iter().map(|id| format!("{} has data of another cluster and is left out", evidence.name(*id))));
    let (standbys, deposed): (Vec<_>, Vec<_>) = candidates.into_iter().partition(|other| other.standby);
    let mut followers = order_of_followers(&primary, standbys);
    // Those without data come last: they copy.
    let listed = |id: PeerId| {
        id == primary.peer.id
            || foreign.contains(&id)
            || followers.iter().chain(deposed_peers(&deposed)).any(|peer| peer.id == id)
    };
    let empty: Vec<Peer> = evidence
        .view
        .in_election_order()
        .into_iter()
        .map(|active| active.peer.clone())
        .filter(|peer| !listed(peer.id))
        .collect();
    notes.extend(empty.iter().map(|peer| format!("{} has no data and will copy it", peer.zone_id)));
    followers.extend(empty);
    if followers.is_empty() {
        return Err(format!(
            "besides {} no peer is registered that can be its sync; start another sitter",
            primary.peer.zone_id
        ));
    }
    let sync_peer = Some(followers.remove(0));
    let mut state = ClusterState {
        generation,
        primary: primary.peer,
        sync_peer,
        async_peers: followers,
        deposed: deposed.into_iter().map(|candidate| candidate.peer).collect(),
        init_wal: position.lsn,
        init_wal_timeline: Some(position.timeline),
        freeze: None,
        one_node_write_mode: false,
        promote: None,
        system_identifier: Some(primary.system),
        reason: Some("restored by an operator from what the peers have".to_owned()),
        extra: serde_json::Map::new(),
    };
    if primary.standby {
        let promotion = Promotion::reserve(&state, newest_timeline(evidence).unwrap_or(position.timeline));
        Promotion::set(&mut state, Some(promotion));
    }
    Ok((state, notes))
}

fn deposed_peers(deposed: &[Candidate]) -> impl Iterator<Item = &Peer> {
    deposed.iter().map(|candidate| &candidate.peer)
}

/// The one that certainly has every acknowledged write that any of them has.
fn best(candidates: &[Candidate]) -> Result<usize, String> {
    let Some(first) = candidates.first() else {
        return Err("no registered peer has data; start the sitters of those that have".to_owned());
    };
    let list = || candidates.iter().map(Candidate::told).collect::<Vec<_>>().join("; ");
    if candidates.iter().any(|other| other.system != first.system) {
        return Err(format!(
            "the registered peers have data of different clusters; name the primary with --name ({})",
            list()
        ));
    }
    // One that acknowledges has everything. Else all positions must be known to be compared.
    if first.acknowledges.is_none() && candidates.len() > 1 && candidates.iter().any(|other| other.position.is_none()) {
        return Err(format!(
            "which peer has the newest data cannot be told ({}); wait until their sitters know, \
             or name the primary with --name",
            list()
        ));
    }
    Ok(0)
}

/// The sync that the primary waits for now comes first, then whoever has most.
fn order_of_followers(primary: &Candidate, mut standbys: Vec<Candidate>) -> Vec<Peer> {
    let sync = primary.acknowledges.flatten();
    standbys.sort_by_key(|other| Reverse((sync == Some(other.peer.id), other.rank())));
    standbys.into_iter().map(|candidate| candidate.peer).collect()
}

/// The newest timeline that any registered peer is on.
fn newest_timeline(evidence: &Evidence) -> Option<Timeline> {
    let statuses = evidence.answers.values().flatten();
    statuses.filter_map(candidate_position).map(|position| position.timeline).max()
}

fn candidate_position(status: &SitterStatus) -> Option<WalPosition> {
    match &status.local.server {
        Server::Primary(primary) => Some(primary.flushed),
        Server::Standby(standby) => standby.received,
        _ => status.local.last_position,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    use std::collections::BTreeSet;

    use manatee_shared::invariants::check_transition;
    use manatee_shared::zk::HistoryEntry;

    use super::*;
    use crate::cluster::samples::*;
    use crate::machine::local::{Gate, PrimaryStatus, ServerConfig, SystemIdentifier};

    fn at(timeline: u32, lsn: u64) -> WalPosition {
        WalPosition { timeline: Timeline(timeline), lsn: Lsn(lsn) }
    }

    /// The healthy shard whose state is gone.
    fn wiped() -> Evidence {
        let cluster = healthy();
        let mut view = cluster.view;
        (view.state, view.has_history) = (StateNode::Absent, Some(false));
        let mut evidence =
            Evidence { zookeeper: cluster.zookeeper, shard: cluster.shard, view, last: None, answers: cluster.answers };
        let config = ServerConfig {
            recovery: Recovery::Primary,
            synchronous: Synchronous::Peer(peer(2).id),
            gate: Gate::Open,
            slots: BTreeSet::new(),
        };
        status(&mut evidence, 1).local.config = Some(config);
        evidence
    }

    /// The same after all hosts were off: nobody's PostgreSQL runs.
    fn cold(positions: [Option<WalPosition>; 3]) -> Evidence {
        let mut evidence = wiped();
        for (number, position) in (1..).zip(positions) {
            let local = &mut status(&mut evidence, number).local;
            (local.config, local.last_position) = (None, position);
            local.server = Server::Down { crashed: false, standby: number != 1 };
        }
        evidence
    }

    fn status(evidence: &mut Evidence, number: u8) -> &mut SitterStatus {
        evidence.answers.get_mut(&peer(number).id).unwrap().as_mut().unwrap()
    }

    fn made(evidence: &Evidence) -> ClusterState {
        let Plan { over, state, .. } = plan(evidence, None, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(over, Over::Lost);
        assert!(state.is_frozen());
        assert_eq!(check_transition(evidence.last.as_ref().map(|last| &last.state), &state), []);
        state
    }

    fn refused(evidence: &Evidence) -> String {
        plan(evidence, None, Timestamp::UNIX_EPOCH).unwrap_err()
    }

    fn roles(state: &ClusterState) -> (PeerId, Option<PeerId>, Vec<PeerId>, Vec<PeerId>) {
        let ids = |peers: &[Peer]| peers.iter().map(|peer| peer.id).collect();
        (state.primary.id, state.sync_peer.as_ref().map(|peer| peer.id), ids(&state.async_peers), ids(&state.deposed))
    }

    #[test]
    fn a_shard_that_still_runs_keeps_its_roles() {
        let state = made(&wiped());
        assert_eq!(roles(&state), (peer(1).id, Some(peer(2).id), vec![peer(3).id], vec![]));
        assert_eq!(state.generation, 4, "above all that was seen");
        assert_eq!(
            state.init_position(),
            Some(WalPosition { timeline: Timeline(1), lsn: "0/671FEDF8".parse().unwrap() })
        );
        assert_eq!(state.system_identifier.as_deref(), Some("7"));
        assert_eq!(Promotion::of(&state), None);
    }

    #[test]
    fn the_primary_that_acknowledges_wins_over_one_that_is_only_further() {
        let mut evidence = wiped();
        // Promoted by hand: another timeline, but nobody ever waited for it.
        status(&mut evidence, 3).local.server =
            Server::Primary(PrimaryStatus { flushed: at(9, 1 << 40), downstreams: vec![] });
        let state = made(&evidence);
        assert_eq!(roles(&state), (peer(1).id, Some(peer(2).id), vec![], vec![peer(3).id]), "it must be rejoined");
    }

    #[test]
    fn after_a_cold_start_the_newest_timeline_then_the_end_of_wal_decide() {
        let state = made(&cold([Some(at(1, 900)), Some(at(2, 500)), Some(at(2, 400))]));
        assert_eq!(roles(&state), (peer(2).id, Some(peer(3).id), vec![], vec![peer(1).id]));
        assert_eq!(state.init_position(), Some(at(2, 500)));
        assert_eq!(Promotion::of(&state), Some(Promotion { timeline: Timeline(6), at: None }), "it was a standby");
        let state = made(&cold([Some(at(2, 500)), Some(at(2, 500)), Some(at(2, 500))]));
        assert_eq!(state.primary.id, peer(1).id, "election order among equals");
    }

    #[test]
    fn what_can_not_be_told_is_left_to_the_operator() {
        let evidence = cold([None, Some(at(1, 500)), Some(at(1, 400))]);
        assert!(
            refused(&evidence).contains("which peer has the newest data cannot be told (a376df2b"),
            "{}",
            refused(&evidence)
        );
        let plan = plan(&evidence, Some(peer(2).id), Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(roles(&plan.state), (peer(2).id, Some(peer(3).id), vec![], vec![peer(1).id]));
        let mut silent = wiped();
        silent.answers.insert(peer(3).id, Err("connection refused".to_owned()));
        assert!(refused(&silent).contains("does not answer (connection refused), and it may have the newest data"));
        let mut foreign = cold([Some(at(1, 500)), Some(at(1, 400)), None]);
        status(&mut foreign, 3).local.data = Data::Present(SystemIdentifier("8".to_owned()));
        assert!(refused(&foreign).contains("data of different clusters"));
        let mut empty = wiped();
        for number in 1..=3 {
            status(&mut empty, number).local.data = Data::Absent;
        }
        assert!(refused(&empty).contains("no registered peer has data"));
        let mut alone = wiped();
        alone.view.active.retain(|id, _| *id == peer(1).id);
        assert!(refused(&alone).contains("no peer is registered that can be its sync"));
    }

    #[test]
    fn peers_without_data_copy_and_strangers_stay_out() {
        let mut evidence = wiped();
        status(&mut evidence, 3).local.data = Data::Absent;
        assert_eq!(roles(&made(&evidence)), (peer(1).id, Some(peer(2).id), vec![peer(3).id], vec![]));
        status(&mut evidence, 3).local.data = Data::Present(SystemIdentifier("8".to_owned()));
        let plan = plan(&evidence, Some(peer(1).id), Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(roles(&plan.state), (peer(1).id, Some(peer(2).id), vec![], vec![]));
        assert!(plan.notes.iter().any(|note| note.contains("of another cluster and is left out")), "{:?}", plan.notes);
    }

    #[test]
    fn the_history_is_what_the_state_was() {
        let mut evidence = wiped();
        let state = ClusterState { promote: None, ..(*healthy().state).clone() };
        evidence.last = Some(HistoryEntry { zk_sequence: 9, time: Timestamp::UNIX_EPOCH, state: state.clone() });
        let restored = made(&evidence);
        assert_eq!(ClusterState { freeze: None, reason: None, ..restored }, state);
        evidence.view.state = StateNode::Corrupt { version: 12, problem: "garbage".to_owned() };
        let found = plan(&evidence, None, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!((found.over, found.state.generation), (Over::Version(12), 3));
        // A history from a backup: the peers have seen more.
        status(&mut evidence, 2).newest_generation = Some(7);
        let newer = plan(&evidence, None, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!((newer.state.generation, newer.state.is_restored()), (8, true));
        evidence.view.state = healthy().view.state;
        assert_eq!(plan(&evidence, None, Timestamp::UNIX_EPOCH).unwrap().over, Over::Version(4), "an old state");
        status(&mut evidence, 2).newest_generation = Some(3);
        assert!(refused(&evidence).contains("has a valid state"));
    }
}
