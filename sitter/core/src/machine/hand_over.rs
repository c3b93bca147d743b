//! A planned promotion of the sync, without an error for any client:
//!
//! ```text
//! a request to promote the sync is in the state   → the proxies admit nothing new to the primary
//!   → Drain                                        the primary waits until its clients are at rest
//!   → WriteState(drained)                          it says so
//!   → takeover by the sync                         decided in `takeover`; the proxies go on with it
//! ```
//!
//! Each wait is bounded: a transaction that goes on for longer is cut off as in any takeover. An
//! operator makes the request, or a primary whose sitter is stopping does so itself.

use std::sync::Arc;

use manatee_shared::cluster::{ClusterState, Promote, PromoteRole, Role};
use manatee_shared::zk::Over;

use super::action::{Action, Decision, ServerAction, ShardAction};
use super::local::Server;
use super::situation::{Situation, act};
use super::suspicion;
use crate::reason::Reason;

/// Time (ms) for which the sync leaves it to the primary to bring its clients to rest. Longer than
/// [`ServerAction::Drain`] takes at most.
const DRAIN_MS: u64 = 2_000;

/// Time (ms) for which a request of a stopping primary stands.
const REQUEST_MS: i64 = 10_000;

/// As primary: the next step of a planned promotion, if one was asked for and is ours to take.
pub(super) fn prepare(situation: Situation<'_>) -> Option<Decision> {
    let Situation { view, version, state } = situation;
    let asked = matches!(situation.promote_request(), Some((PromoteRole::Sync, _)));
    if !asked || !is_possible(situation) || state.is_drained() {
        return None;
    }
    if view.observed.drained != Some(version) {
        return Some(act(ServerAction::Drain { version }, Reason::PromotionDrains));
    }
    let mut next = ClusterState::clone(state);
    next.mark_drained();
    next.reason = Some("the primary's clients are at rest".to_owned());
    Some(situation.write(next, Reason::PromotionDrained))
}

/// As stopping primary: asks the sync to take over, and prepares it.
pub(super) fn of_stopping(situation: Situation<'_>) -> Option<Decision> {
    let Situation { view, state, .. } = situation;
    let sync = situation.sync()?;
    if !situation.may_write() || !is_possible(situation) {
        return None;
    }
    if matches!(situation.promote_request(), Some((PromoteRole::Sync, _))) {
        return prepare(situation);
    }
    let expire_time = jiff::Timestamp::from_millisecond(view.wall_ms.saturating_add(REQUEST_MS)).ok()?;
    let mut next = ClusterState::clone(state);
    next.end_request();
    next.promote = Some(Promote {
        id: sync,
        role: PromoteRole::Sync,
        async_index: None,
        generation: state.generation,
        expire_time,
    });
    next.reason = Some("the primary's sitter is stopping".to_owned());
    let next = Action::Shard(ShardAction::WriteState { over: Over::Version(situation.version), state: Arc::new(next) });
    Some(act(next, Reason::StoppingAsksSync))
}

/// Whether a takeover of the sync could come of it.
pub(super) fn is_possible(situation: Situation<'_>) -> bool {
    let Situation { view, state, .. } = situation;
    let primary = situation.role() == Role::Primary && matches!(view.local.server, Server::Primary(_));
    let sync = situation.sync().is_some_and(|sync| suspicion::is_serving(view, sync));
    primary
        && sync
        && situation.connected()
        && !state.is_frozen()
        && !state.one_node_write_mode
        && situation.next_sync().is_some()
}

/// As sync: whether a request for our promotion may be carried out now. It waits for the primary's
/// clients, unless the primary does not bring them to rest: it is gone, or of an older version.
pub(super) fn is_due(situation: Situation<'_>) -> bool {
    let Situation { view, state, .. } = situation;
    state.is_drained() || view.observed.state_ms >= DRAIN_MS || !suspicion::answers(view, state.primary.id)
}
