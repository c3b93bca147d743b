//! The way out of one-node-write mode: an operator asked for it, so other peers come in again (they
//! copy or stream from the primary, unlisted), and the first that is fit becomes the sync, by the
//! reasoning of rule 3 with nobody as the old sync:
//!
//! ```text
//! Configure(Peer(new))            every commit needs it: more than the state asks for
//!   → confirmed, its walsender shows the priority
//!   → WriteState(generation + 1)  sync = new, init_wal = our end of WAL, read after that; not frozen
//! ```
//!
//! Commits acknowledged before lie below init_wal, so the new sync has them before it may take over.
//! Until the write was tried each step can be undone: the state still says that nobody is needed.

use manatee_shared::ids::PeerId;

use super::action::Decision;
use super::followers::{downstream, is_fit};
use super::local::{PrimaryStatus, Synchronous};
use super::situation::{Situation, wait};
use crate::reason::Reason;

/// The peer that ends one-node-write mode: unlisted, following from here, first in election order.
/// None unless an operator asked, or while nobody is fit.
pub(super) fn coming_sync(situation: Situation<'_>, primary: &PrimaryStatus) -> Option<PeerId> {
    if !situation.state.leaves_one_node_write_mode() {
        return None;
    }
    // One that was begun with stays the choice while it is fit.
    let begun = situation.config().and_then(|config| match config.synchronous {
        Synchronous::Peer(peer) => Some(peer),
        _ => None,
    });
    let order = situation.view.zk.in_election_order();
    let active: Vec<PeerId> = order.iter().map(|active| active.peer.id).filter(|id| *id != situation.me()).collect();
    let begun = begun.filter(|peer| active.contains(peer));
    let fit = |peer: &PeerId| is_fit(situation, primary, *peer) && situation.data_fits(*peer) == Some(true);
    begun.into_iter().chain(active.iter().copied()).find(fit)
}

/// Names `new` sync and ends the mode. Every commit needs it already as far as the configuration says.
pub(super) fn leave(situation: Situation<'_>, primary: &PrimaryStatus, new: PeerId) -> Decision {
    if !downstream(primary, new).is_some_and(|down| down.streaming && down.sync_priority == 1) {
        return wait(Reason::LoneApplies(new));
    }
    let Some(active) = situation.view.zk.active.get(&new) else {
        return wait(Reason::LoneLeft(new));
    };
    let mut next = situation.next_generation(primary.flushed, "one-node-write mode left, as asked".to_owned());
    next.sync_peer = Some(active.peer.clone());
    next.deposed.retain(|peer| peer.id != new);
    next.one_node_write_mode = false;
    // The freeze belongs to the mode (the state is not valid without it).
    next.freeze = None;
    next.set_leaves_one_node_write_mode(false);
    situation.write(next, Reason::LoneWrites { new, at: primary.flushed })
}
