//! An orderly stop: the primary hands over first, if somebody can take over.

use manatee_shared::cluster::Role;
use manatee_shared::zk::Session;

use super::action::{Action, Decision, StopMode};
use super::local::Server;
use super::situation::{Situation, act, is_registered};
use super::suspicion;
use super::view::View;

/// How long (ms) a stopping primary waits to be deposed.
const HAND_OVER_MS: u64 = 3_000;

pub(super) fn decide(view: &View) -> Decision {
    let down = matches!(view.local.server, Server::Down { .. });
    if view.zk.session == Session::Connected && is_registered(view) {
        return act(Action::LeaveElection, "stopping, as asked: others need not wait for the session to expire");
    }
    if down {
        return act(Action::Exit, "stopped, as asked");
    }
    let waited_ms = view.stopping_ms.unwrap_or(HAND_OVER_MS);
    if waited_ms < HAND_OVER_MS && can_hand_over(view) {
        return act(
            Action::Wait { for_ms: Some(HAND_OVER_MS - waited_ms) },
            "stopping, as asked: the sync is taking over",
        );
    }
    act(Action::Stop(StopMode::Fast), "stopping, as asked")
}

fn can_hand_over(view: &View) -> bool {
    let Some((version, state)) = view.zk.state.valid() else { return false };
    let situation = Situation { view, version, state };
    let primary = situation.role() == Role::Primary && matches!(view.local.server, Server::Primary(_));
    let sync = situation.sync().is_some_and(|sync| suspicion::is_serving(view, sync));
    primary
        && sync
        && situation.connected()
        && !state.is_frozen()
        && !state.one_node_write_mode
        && situation.next_sync().is_some()
}
