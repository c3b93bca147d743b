//! An orderly stop: the primary hands over first, if somebody can take over.

use manatee_shared::zk::Session;

use super::action::{Action, Decision, ServerAction, ShardAction, StopMode};
use super::hand_over;
use super::local::Server;
use super::situation::{Situation, act, is_outdated, is_registered};
use super::view::View;
use crate::reason::Reason;

/// Time (ms) for which a stopping primary waits to be deposed.
const HAND_OVER_MS: u64 = 3_000;

pub(super) fn decide(view: &View) -> Decision {
    let waited_ms = view.stopping_ms.unwrap_or(HAND_OVER_MS);
    if waited_ms < HAND_OVER_MS
        && is_registered(view)
        && let Some((version, state)) = view.zk.state.valid()
        && !is_outdated(view, state)
        && let situation = (Situation { view, version, state })
        && hand_over::is_possible(situation)
    {
        let left = Action::Wait { for_ms: Some(HAND_OVER_MS - waited_ms) };
        let waits = || act(left, Reason::StoppingHandsOver);
        return hand_over::of_stopping(situation).unwrap_or_else(waits);
    }
    let down = matches!(view.local.server, Server::Down { .. });
    if view.zk.session == Session::Connected && is_registered(view) {
        return act(ShardAction::LeaveElection, Reason::StoppingLeaves);
    }
    if down {
        return act(Action::Exit, Reason::Stopped);
    }
    act(ServerAction::Stop(StopMode::Fast), Reason::Stopping)
}
