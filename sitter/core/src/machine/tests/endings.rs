//! Stops, hangs and failures.

use super::*;

#[test]
fn a_stopping_primary_hands_over_first() {
    let mut view = view(1);
    view.stopping_ms = Some(0);
    let asked = writes(&view);
    let request = asked.hand_over().expect("a request to promote the sync");
    assert_eq!((request.id, request.role), (id(2), PromoteRole::Sync));
    change(&mut view, |state| *state = asked);
    acts(&view, ServerAction::Drain { version: 9 });
    view.observed.drained = Some(9);
    let drained = writes(&view);
    assert!(drained.is_drained());
    change(&mut view, |state| *state = drained);
    waits(&view, "taking over");
    // In vain: the others need not wait for the session to expire.
    view.stopping_ms = Some(3_000);
    acts(&view, ShardAction::LeaveElection);
    view.zk.active.remove(&id(1));
    acts(&view, ServerAction::Stop(StopMode::Fast));
    view.local.server = Server::Down { crashed: false, standby: false };
    acts(&view, Action::Exit);
    let mut frozen = super::view(1);
    change(&mut frozen, |state| state.freeze = Some(Freeze::Flag(true)));
    frozen.zk.active.remove(&id(1));
    frozen.stopping_ms = Some(0);
    acts(&frozen, ServerAction::Stop(StopMode::Fast));
}

#[test]
fn a_stopping_primary_asks_nothing_of_an_old_state() {
    let mut view = view(1);
    (view.stopping_ms, view.observed.newest_generation) = (Some(0), Some(5));
    acts(&view, ShardAction::LeaveElection);
}

#[test]
fn a_hung_primary_yields_if_somebody_can_take_over() {
    let mut view = view(1);
    view.local.server = Server::Hung { for_ms: 900 };
    waits(&view, "does not answer");
    view.local.server = Server::Hung { for_ms: 1_100 };
    acts(&view, ShardAction::LeaveElection);
    view.zk.active.remove(&id(1));
    acts(&view, ServerAction::Stop(StopMode::Immediate));
}

#[test]
fn failures_are_repeated_later_and_later() {
    let mut view = view(2);
    view.local.server = Server::Down { crashed: true, standby: true };
    assert!(matches!(decide(&view).action, Action::Server(ServerAction::Start(_))));
    let failure = |times, ago_ms| {
        Some(LastFailure {
            action: ActionKind::Start,
            times,
            ago_ms,
            problem: "no shared memory".to_owned(),
            kind: None,
        })
    };
    view.observed.last_failure = failure(3, 150);
    acts(&view, Action::Wait { for_ms: Some(50) });
    view.observed.last_failure = failure(3, 200);
    assert!(matches!(decide(&view).action, Action::Server(ServerAction::Start(_))));
    view.observed.last_failure = failure(60, 4_999);
    acts(&view, Action::Wait { for_ms: Some(1) });
}

/// Each try costs a source a checkpoint, once the first ones have gone from source to source.
#[test]
fn copies_that_fail_again_and_again_are_tried_less_and_less_often() {
    let mut view = view(3);
    (view.local.data, view.local.server) = (Data::Absent, Server::Down { crashed: false, standby: false });
    for (times, pause_ms) in [(1, 50), (3, 200), (4, 2_000), (5, 4_000), (7, 16_000), (8, 30_000), (500, 30_000)] {
        let failed = |ago_ms| {
            let problem = "a folder is not empty".to_owned();
            Some(LastFailure { action: ActionKind::Bootstrap, times, ago_ms, problem, kind: None })
        };
        view.observed.last_failure = failed(pause_ms - 1);
        acts(&view, Action::Wait { for_ms: Some(1) });
        view.observed.last_failure = failed(pause_ms);
        assert!(matches!(decide(&view).action, Action::Data(DataAction::Bootstrap { .. })), "{times}");
    }
}
