//! The decision: which of the small deciders has the word.
//!
//! ```text
//! stopping ──────────────────────────────► stopping
//! no state ──────────────────────────────► first_setup     (rule 8)
//! corrupt, unread or outdated state ─────► keep everything as it is
//! valid state, by our role in it:
//!   primary ─────────────────────────────► primary  ─ replace (rule 3), membership
//!   sync, async, deposed, unlisted ──────► standby  ─ takeover (rules 4, 5)
//! ```
//!
//! Every outcome goes through one back-off: a step that failed is not repeated at once.

use std::sync::Arc;

use manatee_shared::cluster::{ClusterState, Role};
use manatee_shared::zk::{Session, StateNode, Version};

use super::action::{Action, ActionKind, Decision, ServerAction, ShardAction, StopMode};
use super::local::{Data, Gate, Recovery, Server};
use super::situation::{Situation, act, follow, is_outdated, is_registered, wait};
use super::view::View;
use super::{first_setup, membership, primary, standby, stopping};
use crate::reason::Reason;

/// Next step, from the newest view only. Called again whenever the view changes, also while
/// an action is in flight: see [`super::preempt::preempts`].
pub fn decide(view: &View) -> Decision {
    let decision = if view.stopping_ms.is_some() { stopping::decide(view) } else { by_state(view) };
    back_off(view, decision)
}

fn by_state(view: &View) -> Decision {
    if let Data::Unusable(problem) = &view.local.data {
        return stay_out(view, Reason::DataUnusable(problem.clone()));
    }
    match &view.zk.state {
        StateNode::Unread => unread(view),
        StateNode::Corrupt { problem, .. } => wait(Reason::StateCorrupt(problem.clone())),
        StateNode::Absent => first_setup::decide(view),
        StateNode::Valid { state, .. } if is_outdated(view, state) => wait(Reason::StateOutdated(state.generation)),
        StateNode::Valid { version, state } => by_role(view, *version, state),
    }
}

/// Time (ms) for which a stopped standby waits for the state before it is started without it.
const UNREAD_MS: u64 = 3_000;

/// Rule 9 for a sitter that was started while ZooKeeper is away. A standby goes on to follow whom it
/// followed, so that a primary that waits for it can go on: what it acknowledges it has, it counts
/// only for a primary that still names it, and only it could have taken over from that primary in
/// between. Nobody is let in, and a stopped primary stays stopped: whether it is one is not known.
fn unread(view: &View) -> Decision {
    let stopped_standby = matches!(view.local.server, Server::Down { standby: true, .. });
    if let (Data::Present(_), Some(config)) = (&view.local.data, &view.local.config)
        && let Recovery::Follow(upstream) = config.recovery
        && stopped_standby
        && view.observed.unread_ms >= UNREAD_MS
    {
        let config = follow(upstream, Gate::Closed, config.slots.clone());
        return act(ServerAction::Start(config), Reason::StateUnreadStart(upstream));
    }
    // It took long to start, and what it was given was not confirmed.
    if let (Server::Standby(_), None, Some(config)) = (&view.local.server, &view.local.config, &view.observed.given) {
        return act(ServerAction::Configure(config.clone()), Reason::StateUnreadConfirm);
    }
    wait(Reason::StateUnread)
}

fn by_role(view: &View, version: Version, state: &Arc<ClusterState>) -> Decision {
    let situation = Situation { view, version, state };
    if let (Data::Present(ours), Some(shards)) = (&view.local.data, &state.system_identifier)
        && ours.0 != *shards
    {
        return stay_out(view, Reason::ForeignData { found: ours.0.clone(), expected: shards.clone() });
    }
    let role = situation.role();
    if role == Role::Primary {
        return primary::decide(situation);
    }
    if state.one_node_write_mode && !state.leaves_one_node_write_mode() {
        // A copy of what it was is not touched; a second acknowledger must not exist.
        return match view.local.server {
            Server::Primary(_) => act(ServerAction::Stop(StopMode::Immediate), Reason::StopForLonePrimary),
            _ => wait(Reason::OutsideOneNodeWriteMode),
        };
    }
    // Even before the own PostgreSQL is in order: the shard learns early that this peer exists.
    if matches!(view.local.server, Server::Primary(_)) {
        return standby::not_primary(situation);
    }
    membership::join(view).unwrap_or_else(|| standby::decide(situation, role))
}

/// Takes no part in the shard: no PostgreSQL, no election node.
fn stay_out(view: &View, why: Reason) -> Decision {
    if view.zk.session == Session::Connected && is_registered(view) {
        return act(ShardAction::LeaveElection, why);
    }
    match view.local.server {
        Server::Down { .. } => wait(why),
        _ => act(ServerAction::Stop(StopMode::Fast), why),
    }
}

/// Longest pause (ms) between two tries of one step. Steps of a takeover and of coordination are
/// cheap and urgent, copies and starts are neither.
fn longest_pause_ms(action: ActionKind) -> Option<u64> {
    match action {
        ActionKind::Wait | ActionKind::Exit => None,
        // What it waits for is bounded by itself.
        ActionKind::Drain => Some(50),
        ActionKind::WriteState | ActionKind::Configure | ActionKind::Promote | ActionKind::Stop => Some(500),
        ActionKind::LeaveElection | ActionKind::JoinElection => Some(1_000),
        ActionKind::Survey | ActionKind::Start => Some(5_000),
        ActionKind::Initialise | ActionKind::Bootstrap | ActionKind::Rejoin => Some(30_000),
    }
}

/// Pause (ms) after the first failure; doubles with each further one.
const FIRST_PAUSE_MS: u64 = 50;

/// Number of attempts at a copy that follow each other as quickly as those of other steps.
const QUICK_COPIES: u32 = 3;

/// Pause (ms) after the first failure beyond them; doubles with each further one.
const COPY_PAUSE_MS: u64 = 2_000;

fn back_off(view: &View, decision: Decision) -> Decision {
    let Some(failure) = &view.observed.last_failure else { return decision };
    let Some(longest_ms) = longest_pause_ms(decision.action.kind()) else { return decision };
    let kind = decision.action.kind();
    let running = view.in_flight.as_ref().is_some_and(|in_flight| in_flight.action.kind() == kind);
    if failure.action != kind || running {
        return decision;
    }
    // The first tries of a copy go to one source after the other. From then on each costs its source a checkpoint.
    let (first_ms, before) = match kind {
        ActionKind::Bootstrap if failure.times > QUICK_COPIES => (COPY_PAUSE_MS, QUICK_COPIES + 1),
        _ => (FIRST_PAUSE_MS, 1),
    };
    let doublings = failure.times.saturating_sub(before).min(16);
    let pause_ms = (first_ms << doublings).min(longest_ms);
    if failure.ago_ms >= pause_ms {
        return decision;
    }
    let why =
        Reason::BackingOff { why: Box::new(decision.why), times: failure.times, problem: failure.problem.clone() };
    act(Action::Wait { for_ms: Some(pause_ms - failure.ago_ms) }, why)
}
