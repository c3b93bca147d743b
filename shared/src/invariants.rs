//! The rules of safety (design §2) that a state, and a change of state, can be checked against.
//!
//! One module for the sitter (before it writes), the simulation (after every step) and
//! `manatee-adm verify`. A violation is a bug or somebody else's hand; it is never written.

use std::collections::HashSet;

use crate::cluster::ClusterState;
use crate::ids::PeerId;

/// A rule that a state or a change of state breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Generations count from 1.
    #[error("the generation is 0")]
    GenerationZero,
    /// Every peer stands in one place only.
    #[error("peer {0} is listed more than once")]
    ListedTwice(PeerId),
    /// A primary without sync would acknowledge alone (rule 2).
    #[error("there is no sync, and the shard is not in one-node-write mode")]
    NoSync,
    /// One-node-write mode means no sync, frozen.
    #[error("one-node-write mode with a sync")]
    OneNodeWriteWithSync,
    /// One-node-write mode must be left by an operator only (rule 5).
    #[error("one-node-write mode without a freeze")]
    OneNodeWriteNotFrozen,
    /// The generation rises by one exactly when primary or sync changes.
    #[error("the generation went from {old} to {new} while the (primary, sync) pair {pair}")]
    GenerationStep {
        /// Before.
        old: u64,
        /// After.
        new: u64,
        /// "changed" or "stayed".
        pair: &'static str,
    },
    /// `init_wal` belongs to the generation.
    #[error("init_wal changed within a generation")]
    InitWalMoved,
    /// A new generation knows where it began (rules 3 and 4).
    #[error("a new generation without the timeline of its init_wal")]
    InitWalWithoutTimeline,
    /// Only the sync may take over (rule 4).
    #[error("peer {0} became primary without having been the sync")]
    TakeoverByOther(PeerId),
    /// A former primary may hold WAL that nobody acknowledged.
    #[error("the former primary {0} is not listed as deposed")]
    FormerPrimaryNotDeposed(PeerId),
    /// Frozen means no change of topology (rule 5).
    #[error("the topology changed while frozen")]
    ChangedWhileFrozen,
    /// One-node-write mode is left when an operator asked for it, for a sync that has everything.
    #[error("one-node-write mode was left though nobody asked for it")]
    OneNodeWriteLeftUnasked,
    /// A state put in place of a lost one waits for an operator to set it free.
    #[error("a restored state that is not frozen")]
    RestoredNotFrozen,
    /// One system identifier per shard (rule 10).
    #[error("the system identifier changed")]
    SystemIdentifierChanged,
    /// The first state begins the count.
    #[error("the first state has generation {0} instead of 1")]
    FirstGeneration(u64),
}

/// Texts of several violations in one line.
pub fn join(violations: &[Violation]) -> String {
    violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Violations of the rules by `state` alone.
pub fn check_state(state: &ClusterState) -> Vec<Violation> {
    let mut violations = Vec::new();
    if state.generation == 0 {
        violations.push(Violation::GenerationZero);
    }
    let mut seen = HashSet::new();
    violations
        .extend(state.everyone().filter(|peer| !seen.insert(peer.id)).map(|peer| Violation::ListedTwice(peer.id)));
    match (state.one_node_write_mode, &state.sync_peer) {
        (false, None) => violations.push(Violation::NoSync),
        (true, Some(_)) => violations.push(Violation::OneNodeWriteWithSync),
        _ => {}
    }
    if state.one_node_write_mode && !state.is_frozen() {
        violations.push(Violation::OneNodeWriteNotFrozen);
    }
    violations
}

/// Violations of the rules by writing `new` over `old` (none: the shard's first state).
///
/// This holds for the sitters and for the operator's tool alike. The tool may besides change the
/// freeze, ask for a promotion, remove a deposed peer, and, with the shard frozen, enter
/// one-node-write mode or begin a new generation in place of a state that was lost
/// ([`ClusterState::is_restored`]).
pub fn check_transition(old: Option<&ClusterState>, new: &ClusterState) -> Vec<Violation> {
    let mut violations = check_state(new);
    if let Some(old) = old
        && old.system_identifier.is_some()
        && old.system_identifier != new.system_identifier
    {
        violations.push(Violation::SystemIdentifierChanged);
    }
    if new.is_restored() && old.is_none_or(|old| old.generation < new.generation) {
        violations.extend((!new.is_frozen()).then_some(Violation::RestoredNotFrozen));
        return violations;
    }
    match old {
        Some(old) => violations.extend(check_change(old, new)),
        None if new.generation != 1 => violations.push(Violation::FirstGeneration(new.generation)),
        None => {}
    }
    violations
}

/// Violations of the rules on the way from `old` to `new`, besides those by `new` alone.
fn check_change(old: &ClusterState, new: &ClusterState) -> Vec<Violation> {
    let mut violations = Vec::new();
    let sync_id = |state: &ClusterState| state.sync_peer.as_ref().map(|peer| peer.id);
    let pair_changed = old.primary.id != new.primary.id || sync_id(old) != sync_id(new);
    if new.generation != old.generation + u64::from(pair_changed) {
        violations.push(Violation::GenerationStep {
            old: old.generation,
            new: new.generation,
            pair: if pair_changed { "changed" } else { "stayed" },
        });
    }
    if pair_changed {
        if new.init_wal_timeline.is_none() {
            violations.push(Violation::InitWalWithoutTimeline);
        }
    } else if (old.init_wal, old.init_wal_timeline) != (new.init_wal, new.init_wal_timeline) {
        violations.push(Violation::InitWalMoved);
    }
    if old.primary.id != new.primary.id {
        if sync_id(old) != Some(new.primary.id) {
            violations.push(Violation::TakeoverByOther(new.primary.id));
        }
        if !new.deposed.iter().any(|peer| peer.id == old.primary.id) {
            violations.push(Violation::FormerPrimaryNotDeposed(old.primary.id));
        }
    }
    if old.one_node_write_mode && !new.one_node_write_mode && !old.leaves_one_node_write_mode() {
        violations.push(Violation::OneNodeWriteLeftUnasked);
    }
    // Whoever switches the mode is an operator, or was asked by one.
    let mode_stays = old.one_node_write_mode == new.one_node_write_mode;
    if old.is_frozen() && new.is_frozen() && mode_stays && topology_changed(old, new) {
        violations.push(Violation::ChangedWhileFrozen);
    }
    violations
}

/// Whether anybody's place changed. That an operator removes a deposed peer for good is no change.
fn topology_changed(old: &ClusterState, new: &ClusterState) -> bool {
    let chain = |state: &ClusterState| state.chain().map(|peer| peer.id).collect::<Vec<_>>();
    let was_deposed = |id| old.deposed.iter().any(|peer| peer.id == id);
    chain(old) != chain(new) || new.deposed.iter().any(|peer| !was_deposed(peer.id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Freeze, Peer};
    use crate::lsn::{Lsn, Timeline};

    fn peer(number: u8) -> Peer {
        let id = format!("10.0.0.{number}:5432:12345").parse().expect("id");
        Peer::new(id, format!("peer{number}"))
    }

    fn state() -> ClusterState {
        ClusterState {
            generation: 4,
            primary: peer(1),
            sync_peer: Some(peer(2)),
            async_peers: vec![peer(3)],
            deposed: vec![],
            init_wal: Lsn(100),
            init_wal_timeline: Some(Timeline(2)),
            freeze: None,
            one_node_write_mode: false,
            promote: None,
            system_identifier: Some("7".to_owned()),
            reason: None,
            extra: Default::default(),
        }
    }

    fn takeover(old: &ClusterState) -> ClusterState {
        ClusterState {
            generation: old.generation + 1,
            primary: peer(2),
            sync_peer: Some(peer(3)),
            async_peers: vec![],
            deposed: vec![peer(1)],
            init_wal: Lsn(200),
            ..old.clone()
        }
    }

    #[test]
    fn lawful_changes_pass() {
        let old = state();
        assert_eq!(check_transition(Some(&old), &takeover(&old)), []);
        let joined = ClusterState { async_peers: vec![peer(3), peer(4)], ..old.clone() };
        assert_eq!(check_transition(Some(&old), &joined), []);
        let first = ClusterState { generation: 1, ..state() };
        assert_eq!(check_transition(None, &first), []);
    }

    type Break = fn(&mut ClusterState, &mut ClusterState);

    #[test]
    fn each_unlawful_takeover_is_named() {
        let table: [(Break, Violation); 9] = [
            (|_, new| new.generation = 4, Violation::GenerationStep { old: 4, new: 4, pair: "changed" }),
            (|_, new| new.deposed.clear(), Violation::FormerPrimaryNotDeposed(peer(1).id)),
            (|_, new| new.init_wal_timeline = None, Violation::InitWalWithoutTimeline),
            (|old, _| old.sync_peer = Some(peer(9)), Violation::TakeoverByOther(peer(2).id)),
            (|_, new| new.sync_peer = None, Violation::NoSync),
            (|_, new| new.async_peers = vec![peer(1)], Violation::ListedTwice(peer(1).id)),
            (|_, new| new.system_identifier = None, Violation::SystemIdentifierChanged),
            (|_, new| new.one_node_write_mode = true, Violation::OneNodeWriteWithSync),
            (
                |old, new| {
                    old.freeze = Some(Freeze::Flag(true));
                    new.freeze = Some(Freeze::Flag(true));
                },
                Violation::ChangedWhileFrozen,
            ),
        ];
        for (break_it, violation) in table {
            let mut old = state();
            let mut new = takeover(&old);
            break_it(&mut old, &mut new);
            let found = check_transition(Some(&old), &new);
            assert!(found.contains(&violation), "{violation}: {found:?}");
        }
    }

    #[test]
    fn init_wal_stays_within_a_generation() {
        let old = state();
        let new = ClusterState { init_wal: Lsn(101), ..old.clone() };
        assert_eq!(check_transition(Some(&old), &new), [Violation::InitWalMoved]);
    }

    fn frozen() -> ClusterState {
        ClusterState { freeze: Some(Freeze::Flag(true)), ..state() }
    }

    fn alone(old: &ClusterState) -> ClusterState {
        ClusterState {
            generation: old.generation + 1,
            sync_peer: None,
            async_peers: vec![],
            freeze: Some(Freeze::Flag(true)),
            one_node_write_mode: true,
            ..old.clone()
        }
    }

    #[test]
    fn an_operator_may_do_this_while_frozen() {
        let old = ClusterState { deposed: vec![peer(4)], ..frozen() };
        let reaped = ClusterState { deposed: vec![], ..old.clone() };
        assert_eq!(check_transition(Some(&old), &reaped), []);
        assert_eq!(check_transition(Some(&old), &alone(&old)), []);
        let unfrozen = ClusterState { freeze: None, ..old.clone() };
        assert_eq!(check_transition(Some(&old), &unfrozen), []);
        let deposed = ClusterState { deposed: vec![peer(4), peer(5)], ..old.clone() };
        assert_eq!(check_transition(Some(&old), &deposed), [Violation::ChangedWhileFrozen]);
    }

    #[test]
    fn one_node_write_mode_is_left_when_asked() {
        let mut old = alone(&state());
        let left = |old: &ClusterState| ClusterState {
            generation: old.generation + 1,
            sync_peer: Some(peer(3)),
            freeze: None,
            one_node_write_mode: false,
            ..old.clone()
        };
        assert_eq!(check_transition(Some(&old), &left(&old)), [Violation::OneNodeWriteLeftUnasked]);
        old.set_leaves_one_node_write_mode(true);
        assert_eq!(check_transition(Some(&old), &left(&old)), []);
        let usurped = ClusterState { generation: old.generation + 1, primary: peer(2), ..old.clone() };
        assert!(check_transition(Some(&old), &usurped).contains(&Violation::TakeoverByOther(peer(2).id)));
    }

    #[test]
    fn a_lost_state_is_restored_by_a_new_generation_that_is_frozen() {
        let old = state();
        let mut new = ClusterState { generation: 9, primary: peer(3), sync_peer: Some(peer(2)), ..frozen() };
        new.async_peers.clear();
        assert_ne!(check_transition(Some(&old), &new), []);
        assert_eq!(check_transition(None, &new), [Violation::FirstGeneration(9)]);
        new.mark_restored();
        assert_eq!(check_transition(Some(&old), &new), []);
        assert_eq!(check_transition(None, &new), []);
        new.freeze = None;
        assert_eq!(check_transition(None, &new), [Violation::RestoredNotFrozen]);
        // The mark says nothing of later states of the same or of the next generation.
        let later = ClusterState { primary: peer(5), ..new.clone() };
        assert_ne!(check_transition(Some(&new), &later), []);
        let next = ClusterState { generation: 10, ..later };
        assert!(check_transition(Some(&new), &next).contains(&Violation::TakeoverByOther(peer(5).id)));
        new.system_identifier = Some("8".to_owned());
        assert!(check_transition(Some(&old), &new).contains(&Violation::SystemIdentifierChanged));
    }
}
