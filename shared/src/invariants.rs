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

/// What is wrong with `state` by itself.
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

/// What is wrong with writing `new` over `old` (none: the shard's first state).
///
/// This checks the sitters' own changes. An operator's tool may also change the freeze and, with
/// the shard frozen, enter or leave one-node-write mode.
pub fn check_transition(old: Option<&ClusterState>, new: &ClusterState) -> Vec<Violation> {
    let mut violations = check_state(new);
    let Some(old) = old else {
        if new.generation != 1 {
            violations.push(Violation::FirstGeneration(new.generation));
        }
        return violations;
    };

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
    let placed = |state: &ClusterState| state.everyone().map(|peer| peer.id).collect::<Vec<_>>();
    if old.is_frozen() && new.is_frozen() && placed(old) != placed(new) {
        violations.push(Violation::ChangedWhileFrozen);
    }
    if old.system_identifier.is_some() && old.system_identifier != new.system_identifier {
        violations.push(Violation::SystemIdentifierChanged);
    }
    violations
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
}
