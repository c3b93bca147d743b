//! Requests of operators: who acts on which, when they lapse, and that a freeze keeps them waiting.

use super::*;

/// A request that is valid until just after now.
fn request(number: u8, role: PromoteRole, async_index: Option<usize>) -> Promote {
    let expire_time = jiff::Timestamp::from_millisecond(1_000_001).unwrap();
    Promote { id: id(number), role, async_index, generation: 4, expire_time }
}

/// A chain of four, and a request.
fn asked(me: u8, promote: Promote) -> View {
    let mut view = view(me);
    change(&mut view, |state| {
        state.async_peers.push(peer(4));
        state.promote = Some(promote);
    });
    view.zk.active.insert(id(4), ActivePeer { sequence: 4, peer: peer(4) });
    if me != 4 {
        view.health.insert(id(4), healthy(present()));
    }
    let slots: &[u8] = match me {
        1 => &[2, 3, 4],
        2 => &[3, 4],
        3 => &[4],
        _ => &[],
    };
    let config = view.local.config.as_mut().unwrap();
    config.slots = slots.iter().map(|number| id(*number)).collect();
    if me == 4 {
        config.recovery = Recovery::Follow(id(3));
    }
    view
}

fn freeze(view: &mut View) {
    change(view, |state| state.freeze = Some(Freeze::Flag(true)));
}

#[test]
fn the_primary_brings_its_clients_to_rest_before_its_sync_takes_over() {
    let mut view = asked(1, request(2, PromoteRole::Sync, None));
    acts(&view, ServerAction::Drain { version: 9 });
    view.observed.drained = Some(8);
    acts(&view, ServerAction::Drain { version: 9 });
    view.observed.drained = Some(9);
    let drained = writes(&view);
    assert!(drained.is_drained());
    change(&mut view, |state| *state = drained);
    waits(&view, "is fit");
    freeze(&mut view);
    waits(&view, "");
    // A later request needs it anew.
    let later = jiff::Timestamp::from_millisecond(1_000_002).unwrap();
    change(&mut view, |state| {
        state.freeze = None;
        state.promote.as_mut().unwrap().expire_time = later;
    });
    assert!(!view.zk.state.valid().unwrap().1.is_drained());
    assert!(matches!(
        decide(&view).action,
        Action::Shard(ShardAction::WriteState { .. }) | Action::Server(ServerAction::Drain { .. })
    ));
}

#[test]
fn the_sync_does_not_wait_for_ever_for_the_primarys_clients() {
    let mut view = asked(2, request(2, PromoteRole::Sync, None));
    waits(&view, "waits for its clients");
    view.observed.state_ms = 1_999;
    waits(&view, "waits for its clients");
    view.observed.state_ms = 2_000;
    assert!(matches!(decide(&view).action, Action::Server(ServerAction::Configure(_))));
    view.observed.state_ms = 0;
    health(&mut view, 1).postgres_down_ms = Some(1);
    assert!(
        matches!(decide(&view).action, Action::Server(ServerAction::Configure(_))),
        "nobody is at work on one that is down"
    );
}

#[test]
fn the_sync_acts_on_a_request_for_it() {
    let request = request(2, PromoteRole::Sync, None);
    let mut view = asked(2, request.clone());
    change(&mut view, ClusterState::mark_drained);
    let detached = config(Recovery::Detached, Synchronous::Impossible, Gate::Open, &[1, 3, 4]);
    acts(&view, ServerAction::Configure(detached.clone()));
    view.local.config = Some(detached);
    let standby = standby(&mut view);
    (standby.streaming, standby.receiver_stopped, standby.upstream_silent_ms) = (false, true, None);
    let state = writes(&view);
    assert_eq!((state.primary.id, state.sync_peer.as_ref().unwrap().id), (id(2), id(3)));
    assert_eq!((ids(&state.async_peers), ids(&state.deposed)), (vec![id(4)], vec![id(1)]));
    assert_eq!(state.promote, None, "once");
    for other in [3, 4] {
        waits(&asked(other, request.clone()), "");
    }
}

#[test]
fn the_first_async_follows_the_primary_first_and_then_swaps_with_the_sync() {
    let request = request(3, PromoteRole::Async, Some(0));
    let follow = config(Recovery::Follow(id(1)), Synchronous::Impossible, Gate::Open, &[4]);
    acts(&asked(3, request.clone()), ServerAction::Configure(follow));
    waits(&asked(2, request.clone()), "sync, streaming");
    waits(&asked(4, request.clone()), "streaming from 10.0.0.3");

    let mut view = asked(1, request);
    waits(&view, "does not follow yet");
    // Another that happens to follow the primary is not what was asked for.
    primary(&mut view).downstreams.push(downstream(4, 500, 0));
    waits(&view, "does not follow yet");
    primary(&mut view).downstreams.push(downstream(3, 490, 0));
    let both = config(Recovery::Primary, Synchronous::Both { new: id(3), old: id(2) }, Gate::Open, &[2, 3, 4]);
    acts(&view, ServerAction::Configure(both.clone()));
    view.local.config = Some(both);
    primary(&mut view).downstreams = vec![downstream(2, 500, 2), downstream(3, 490, 1)];
    let state = writes(&view);
    assert_eq!((state.generation, state.sync_peer.as_ref().unwrap().id), (5, id(3)));
    assert_eq!((ids(&state.async_peers), state.promote), (vec![id(2), id(4)], None));
}

#[test]
fn a_lost_sync_does_not_profit_from_a_request_for_another() {
    let mut view = asked(1, request(4, PromoteRole::Async, Some(1)));
    gone(&mut view, 2, 3);
    view.zk.active.insert(id(2), ActivePeer { sequence: 9, peer: peer(2) });
    view.observed.stalled_ms.insert(id(2), 2_000);
    view.local.config =
        Some(config(Recovery::Primary, Synchronous::Both { new: id(3), old: id(2) }, Gate::Open, &[2, 3, 4]));
    primary(&mut view).downstreams = vec![downstream(3, 490, 1)];
    assert_eq!(ids(&writes(&view).async_peers), [id(4), id(2)], "at the end, not at the front");
}

#[test]
fn a_later_async_moves_one_place_up_in_the_same_generation() {
    let request = request(4, PromoteRole::Async, Some(1));
    let state = writes(&asked(1, request.clone()));
    assert_eq!((state.generation, ids(&state.async_peers), state.promote), (4, vec![id(4), id(3)], None));
    waits(&asked(4, request), "streaming from 10.0.0.3");
}

#[test]
fn what_does_not_apply_is_ignored_and_removed_by_the_primary() {
    let valid = request(2, PromoteRole::Sync, None);
    let expired = jiff::Timestamp::from_millisecond(1_000_000).unwrap();
    let table = [
        ("expired", Promote { expire_time: expired, ..valid.clone() }),
        ("another generation", Promote { generation: 3, ..valid.clone() }),
        ("not the sync any more", Promote { id: id(3), ..valid.clone() }),
        ("a stranger", Promote { id: id(9), ..valid }),
        ("another place", request(4, PromoteRole::Async, Some(0))),
        ("not an async", request(2, PromoteRole::Async, Some(0))),
    ];
    for (about, request) in table {
        waits(&asked(2, request.clone()), "sync, streaming");
        waits(&asked(3, request.clone()), "streaming from 10.0.0.2");
        for frozen in [false, true] {
            let mut view = asked(1, request.clone());
            if frozen {
                freeze(&mut view);
            }
            let before = view.zk.state.valid().unwrap().1.clone();
            let after = writes(&view);
            assert_eq!(after.promote, None, "{about}");
            assert_eq!(ClusterState { promote: before.promote.clone(), reason: None, ..after }, *before, "{about}");
        }
    }
}

#[test]
fn frozen_means_later_and_then_once() {
    let requests = [
        (2, request(2, PromoteRole::Sync, None)),
        (1, request(3, PromoteRole::Async, Some(0))),
        (1, request(4, PromoteRole::Async, Some(1))),
    ];
    for (actor, request) in requests {
        let mut view = asked(actor, request);
        change(&mut view, ClusterState::mark_drained);
        if actor == 1 {
            primary(&mut view).downstreams.push(downstream(3, 490, 0));
        }
        assert!(!matches!(decide(&view).action, Action::Wait { .. }), "not frozen");
        freeze(&mut view);
        waits(&view, "");
    }
}

#[test]
fn no_promotion_of_a_sync_that_must_not_take_over() {
    let request = || request(2, PromoteRole::Sync, None);
    let mut behind = asked(2, request());
    change(&mut behind, |state| state.init_wal = Lsn(501));
    waits(&behind, "began at");
    let mut alone = asked(2, request());
    change(&mut alone, |state| state.async_peers.clear());
    alone.zk.active.retain(|peer, _| [id(1), id(2)].contains(peer));
    alone.local.config.as_mut().unwrap().slots.clear();
    waits(&alone, "no async");
}
