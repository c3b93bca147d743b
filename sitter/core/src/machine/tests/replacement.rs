//! Rule 3: the primary replaces its sync.

use super::*;

/// The primary's view with a lost sync; the async follows the primary.
fn sync_gone() -> View {
    let mut view = view(1);
    gone(&mut view, 2, 3);
    view.observed.stalled_ms.insert(id(2), 2_000);
    primary(&mut view).downstreams = vec![downstream(3, 480, 0)];
    view
}

fn both() -> ServerConfig {
    config(Recovery::Primary, Synchronous::Both { new: id(3), old: id(2) }, Gate::Open, &[2, 3])
}

#[test]
fn both_are_required_before_the_state_names_the_new_one() {
    let mut view = sync_gone();
    acts(&view, ServerAction::Configure(both()));
    view.local.config = Some(both());
    waits(&view, "walsenders");
    primary(&mut view).downstreams = vec![downstream(3, 480, 1)];
    let state = writes(&view);
    assert_eq!((state.sync_peer.as_ref().unwrap().id, state.init_position()), (id(3), Some(at(1, 500))), "H2");
    assert_eq!(ids(&state.async_peers), [], "the lost one is dropped");
}

/// This primary was away meanwhile, or lost its disk, and the state that names it is an old one.
#[test]
fn not_by_a_state_that_another_peer_knows_to_be_old() {
    let mut view = sync_gone();
    view.local.config = Some(both());
    primary(&mut view).downstreams = vec![downstream(3, 480, 1)];
    health(&mut view, 3).newest_generation = Some(5);
    waits(&view, "cannot be written now");
    health(&mut view, 3).newest_generation = Some(4);
    writes(&view);
}

#[test]
fn a_walsender_with_the_old_configuration_blocks_it() {
    let mut view = sync_gone();
    view.local.config = Some(both());
    primary(&mut view).downstreams = vec![downstream(3, 480, 1), downstream(2, 400, 1)];
    waits(&view, "walsenders");
    primary(&mut view).downstreams = vec![downstream(3, 480, 1), downstream(2, 400, 2)];
    writes(&view);
}

#[test]
fn one_overlap_is_left_everywhere_before_another_begins() {
    let mut view = sync_gone();
    change(&mut view, |state| state.async_peers.push(peer(4)));
    view.zk.active.insert(id(4), ActivePeer { sequence: 4, peer: peer(4) });
    view.health.insert(id(4), healthy(present()));
    health(&mut view, 3).refused = true;
    let slots = &[2, 3, 4];
    let config = |synchronous| config(Recovery::Primary, synchronous, Gate::Open, slots);
    view.local.config = Some(config(Synchronous::Both { new: id(3), old: id(2) }));
    primary(&mut view).downstreams = vec![downstream(3, 480, 1), downstream(4, 480, 0)];
    acts(&view, ServerAction::Configure(config(Synchronous::Peer(id(2)))));
    view.local.config = Some(config(Synchronous::Peer(id(2))));
    waits(&view, "walsenders");
    primary(&mut view).downstreams = vec![downstream(3, 480, 0), downstream(4, 480, 0)];
    acts(&view, ServerAction::Configure(config(Synchronous::Both { new: id(4), old: id(2) })));
}

/// WAL that has to be replayed first keeps everybody from writing in a takeover.
#[test]
fn one_that_replays_what_it_receives_is_preferred() {
    let mut view = sync_gone();
    change(&mut view, |state| state.async_peers.push(peer(4)));
    view.zk.active.insert(id(4), ActivePeer { sequence: 4, peer: peer(4) });
    view.health.insert(id(4), healthy(present()));
    let flush = 1 << 30;
    let paused = |number| Downstream { replay: Lsn(100), ..downstream(number, flush, 0) };
    let config =
        |new| config(Recovery::Primary, Synchronous::Both { new: id(new), old: id(2) }, Gate::Open, &[2, 3, 4]);
    primary(&mut view).downstreams = vec![paused(3), downstream(4, flush, 0)];
    acts(&view, ServerAction::Configure(config(4)));
    primary(&mut view).downstreams = vec![downstream(3, flush, 0), downstream(4, flush, 0)];
    acts(&view, ServerAction::Configure(config(3)));
    primary(&mut view).downstreams = vec![paused(3), paused(4)];
    acts(&view, ServerAction::Configure(config(3)));
}

#[test]
fn then_only_the_new_one_is_required() {
    let mut view = view(1);
    change(&mut view, |state| (state.sync_peer, state.async_peers) = (Some(peer(3)), vec![peer(2)]));
    view.local.config = Some(both());
    let only = config(Recovery::Primary, Synchronous::Peer(id(3)), Gate::Open, &[2, 3]);
    acts(&view, ServerAction::Configure(only));
}

#[test]
fn it_is_undone_when_the_old_one_is_back_or_the_new_one_goes() {
    let only_old = config(Recovery::Primary, Synchronous::Peer(id(2)), Gate::Open, &[2, 3]);
    let mut back = view(1);
    back.local.config = Some(both());
    acts(&back, ServerAction::Configure(only_old.clone()));
    let mut both_gone = sync_gone();
    both_gone.local.config = Some(both());
    health(&mut both_gone, 3).refused = true;
    acts(&both_gone, ServerAction::Configure(only_old));
    both_gone.uncertain_write = true;
    waits(&both_gone, "cannot be written");
}

#[test]
fn nor_by_a_restart_while_the_write_may_still_happen() {
    let mut view = sync_gone();
    view.local.config = Some(both());
    view.local.server = Server::Down { crashed: true, standby: false };
    let required = |view: &View| match decide(view).action {
        Action::Server(ServerAction::Start(config)) => config.synchronous,
        other => panic!("{other:?}"),
    };
    assert_eq!(required(&view), Synchronous::Peer(id(2)));
    view.uncertain_write = true;
    assert_eq!(required(&view), both().synchronous);
    view.local.config = None;
    assert_eq!(required(&view), Synchronous::Impossible, "not known");
    // It took long to start: the configuration is not confirmed, and the new one lacks what it found.
    view.observed.given = Some(ServerConfig { gate: Gate::Closed, ..both() });
    view.observed.first_flush = Some(Lsn(490));
    view.zk.session = Session::Disconnected;
    view.local.server = sync_gone().local.server;
    primary(&mut view).downstreams = vec![downstream(2, 500, 2), downstream(3, 480, 1)];
    acts(&view, ServerAction::Configure(ServerConfig { gate: Gate::Closed, ..both() }));
    primary(&mut view).downstreams = vec![downstream(2, 500, 2), downstream(3, 490, 1)];
    acts(&view, ServerAction::Configure(both()));
}

#[test]
fn a_slow_one_is_replaced_if_somebody_is_quicker() {
    let mut view = view(1);
    primary(&mut view).downstreams = vec![downstream(2, 480, 1), downstream(3, 490, 0)];
    view.observed.slow_ms.insert(id(2), 4_900);
    waits(&view, "is fit");
    view.observed.slow_ms.insert(id(2), 5_000);
    acts(&view, ServerAction::Configure(both()));
    // Nothing is gained by another slow one.
    let mut slow = view.clone();
    slow.observed.slow_ms.insert(id(3), 1_300);
    waits(&slow, "no async is fit");
    gone(&mut slow, 2, 3);
    acts(&slow, ServerAction::Configure(both()));
    // Not undone by a moment in which it is quick.
    view.local.config = Some(both());
    view.observed.slow_ms.insert(id(2), 4_500);
    primary(&mut view).downstreams = vec![downstream(2, 480, 2), downstream(3, 490, 1)];
    let state = writes(&view);
    assert_eq!(state.sync_peer.as_ref().unwrap().id, id(3));
    assert_eq!(ids(&state.async_peers), [id(2)], "it stays in the chain");
}

#[test]
fn without_an_async_writes_wait() {
    let mut view = sync_gone();
    change(&mut view, |state| state.async_peers.clear());
    view.zk.active.remove(&id(3));
    view.local.config = Some(config(Recovery::Primary, Synchronous::Peer(id(2)), Gate::Open, &[2]));
    waits(&view, "no async is fit");
    let mut frozen = sync_gone();
    change(&mut frozen, |state| state.freeze = Some(Freeze::Flag(true)));
    waits(&frozen, "frozen");
}

#[test]
fn a_stopped_sitter_is_no_reason_while_its_postgresql_acknowledges() {
    let mut view = view(1);
    health(&mut view, 2).silent_ms = Some(3_000);
    waits(&view, "is fit");
    view.observed.stalled_ms.insert(id(2), 1_000);
    primary(&mut view).downstreams.push(downstream(3, 490, 0));
    acts(&view, ServerAction::Configure(both()));
}

/// Row 32: its PostgreSQL streams, but its disk is full; its own word counts.
#[test]
fn a_sync_that_says_it_can_not_commit_is_replaced_though_it_follows() {
    let mut view = view(1);
    primary(&mut view).downstreams.push(downstream(3, 500, 0));
    health(&mut view, 2).postgres_down_ms = Some(2_000);
    waits(&view, "is fit");
    health(&mut view, 2).postgres_down_ms = Some(2_001);
    acts(&view, ServerAction::Configure(both()));
    health(&mut view, 3).postgres_down_ms = Some(500);
    waits(&view, "no async is fit");
}

/// A sync that acknowledges, but could not take over (rule 11), is worth no more than one that is gone.
#[test]
fn a_sync_that_is_not_ready_is_replaced_by_one_that_is() {
    let mut view = view(1);
    health(&mut view, 2).unready_ms = Some(9_000);
    waits(&view, "the sync");
    health(&mut view, 2).unready_ms = Some(10_000);
    // The asyncs hear of it, and come to follow the primary: only so are they seen to be fit.
    assert!(crate::machine::followers::suspects(&view).contains(&id(2)));
    waits(&view, "is fit");
    primary(&mut view).downstreams = vec![downstream(2, 500, 1), downstream(3, 480, 0)];
    acts(&view, ServerAction::Configure(both()));
    health(&mut view, 3).unready_ms = Some(0);
    waits(&view, "is fit");
    health(&mut view, 3).unready_ms = None;
    change(&mut view, |state| state.freeze = Some(manatee_shared::cluster::Freeze::Flag(true)));
    waits(&view, "is fit");
}
