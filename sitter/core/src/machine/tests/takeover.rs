//! Rules 4 and 5: the sync takes over.

use super::*;

fn detached(view: &mut View) {
    view.local.config = Some(config(Recovery::Detached, Synchronous::Impossible, Gate::Open, &[1, 3]));
    let standby = standby(view);
    (standby.streaming, standby.receiver_stopped, standby.upstream_silent_ms) = (false, true, None);
}

fn primary_gone() -> View {
    let mut view = view(2);
    gone(&mut view, 1, 3);
    view
}

#[test]
fn first_the_receiver_is_stopped_and_nobody_named() {
    let detached = config(Recovery::Detached, Synchronous::Impossible, Gate::Open, &[1, 3]);
    acts(&primary_gone(), ServerAction::Configure(detached));
}

#[test]
fn then_the_state_is_written_with_what_was_received_not_replayed() {
    let mut view = primary_gone();
    detached(&mut view);
    let state = writes(&view);
    assert_eq!((state.primary.id, state.sync_peer.as_ref().unwrap().id), (id(2), id(3)));
    assert_eq!((ids(&state.deposed), ids(&state.async_peers)), (vec![id(1)], vec![]));
    assert_eq!(state.init_position(), Some(at(1, 500)), "H1");
    assert_eq!(Promotion::of(&state), Some(Promotion { timeline: Timeline(5), at: None }), "H5");
}

#[test]
fn then_it_promotes_also_after_a_crash() {
    let mut view = primary_gone();
    change(&mut view, |state| {
        (state.primary, state.sync_peer, state.async_peers) = (peer(2), Some(peer(3)), vec![]);
        state.deposed = vec![peer(1)];
        Promotion::set(state, Some(Promotion { timeline: Timeline(5), at: None }));
    });
    detached(&mut view);
    let open = config(Recovery::Primary, Synchronous::Peer(id(3)), Gate::Open, &[1, 3]);
    acts(&view, ServerAction::Promote { config: open, timeline: Some(Timeline(5)) });
    // Restarted meanwhile: never started out of recovery (H5), and closed (rule 7).
    view.local.server = Server::Down { crashed: true, standby: true };
    let closed = config(Recovery::Detached, Synchronous::Impossible, Gate::Closed, &[1, 3]);
    acts(&view, ServerAction::Start(closed));
}

#[test]
fn not_while_the_receiver_runs() {
    let mut view = primary_gone();
    detached(&mut view);
    standby(&mut view).receiver_stopped = false;
    waits(&view, "WAL receiver");
}

#[test]
fn never_when_it_must_not_be() {
    type Change = fn(&mut View);
    let table: [(&str, Change); 7] = [
        ("frozen", |view| change(view, |state| state.freeze = Some(Freeze::Flag(true)))),
        ("ZooKeeper", |view| view.zk.session = Session::Disconnected),
        ("no async", |view| health(view, 3).refused = true),
        ("no async", |view| {
            change(view, |state| state.async_peers.clear());
            view.zk.active.remove(&id(3));
        }),
        ("began at", |view| change(view, |state| state.init_wal = Lsn(501))),
        ("not streamed", |view| standby(view).received = None),
        ("has seen generation", |view| health(view, 3).newest_generation = Some(9)),
    ];
    for (about, change) in table {
        let mut view = primary_gone();
        health(&mut view, 1).refused = true;
        health(&mut view, 3).suspects.insert(id(1));
        standby(&mut view).streaming = false;
        change(&mut view);
        let decision = decide(&view);
        let harmless = matches!(&decision.action, Action::Wait { .. })
            || matches!(&decision.action, Action::Server(ServerAction::Configure(config)) if config.recovery == Recovery::Follow(id(1)));
        assert!(harmless, "{about}: {decision:?}");
        assert!(
            decision.why.to_string().contains(about) || !matches!(decision.action, Action::Wait { .. }),
            "{decision:?}"
        );
    }
}

/// The primary was lost before it could take it in.
#[test]
fn a_registered_peer_is_as_good_as_an_async_where_there_is_none() {
    let mut view = primary_gone();
    detached(&mut view);
    change(&mut view, |state| state.async_peers.clear());
    if let Some(config) = &mut view.local.config {
        config.slots = [id(1), id(3)].into();
    }
    let state = writes(&view);
    assert_eq!((state.primary.id, state.sync_peer.map(|peer| peer.id)), (id(2), Some(id(3))));
    assert_eq!((ids(&state.async_peers), ids(&state.deposed)), (vec![], vec![id(1)]));
    // One that was deposed as well, the last of all: it has to rejoin first, whoever is primary.
    let mut deposed = view.clone();
    change(&mut deposed, |state| state.deposed = vec![peer(3)]);
    let state = writes(&deposed);
    assert_eq!((state.sync_peer.map(|peer| peer.id), ids(&state.deposed)), (Some(id(3)), vec![id(1)]));
    // Not one of another cluster, nor one that is not heard of.
    let takes_over = |view: &View| matches!(decide(view).action, Action::Shard(ShardAction::WriteState { .. }));
    health(&mut view, 3).data = Some(Data::Present(SystemIdentifier("8".to_owned())));
    assert!(!takes_over(&view));
    *health(&mut view, 3) = PeerHealth::default();
    assert!(!takes_over(&view));
}

#[test]
fn position_on_another_path_is_not_caught_up() {
    let mut view = primary_gone();
    change(&mut view, |state| (state.init_wal, state.init_wal_timeline) = (Lsn(400), Some(Timeline(2))));
    waits(&view, "began at");
    // Half a record was received at the takeover: the new timeline branches off before it.
    change(&mut view, |state| {
        (state.init_wal, state.init_wal_timeline) = (Lsn(400), Some(Timeline(1)));
        Promotion::set(state, Some(Promotion { timeline: Timeline(2), at: Some(at(2, 410)) }));
    });
    let standby = standby(&mut view);
    (standby.received, standby.history) = (Some(at(2, 500)), TimelineHistory(vec![at(1, 390)]));
    assert!(matches!(decide(&view).action, Action::Server(ServerAction::Configure(_))));
}

#[test]
fn one_suspicion_alone_or_a_live_stream_is_not_enough() {
    let mut view = view(2);
    health(&mut view, 1).silent_ms = Some(5_000);
    standby(&mut view).upstream_silent_ms = Some(5_000);
    waits(&view, "sync");
    health(&mut view, 3).suspects.insert(id(1));
    assert!(matches!(decide(&view).action, Action::Server(ServerAction::Configure(_))), "shared");
    standby(&mut view).upstream_silent_ms = Some(100);
    waits(&view, "sync, streaming");
    // On a line that loses packets the stream stands still for longer, too.
    standby(&mut view).upstream_silent_ms = Some(2_500);
    assert!(matches!(decide(&view).action, Action::Server(ServerAction::Configure(_))));
    health(&mut view, 1).explained_ms = 2_000;
    waits(&view, "sync, streaming");
}

#[test]
fn a_killed_sitter_is_no_dead_postgresql() {
    let mut view = view(2);
    health(&mut view, 1).refused = true;
    health(&mut view, 3).suspects.insert(id(1));
    standby(&mut view).upstream_silent_ms = Some(2_400);
    waits(&view, "sync, streaming");
    standby(&mut view).streaming = false;
    assert!(matches!(decide(&view).action, Action::Server(ServerAction::Configure(_))));
}

#[test]
fn the_primarys_own_word_is() {
    let mut stops = view(2);
    health(&mut stops, 1).stopping = true;
    waits(&stops, "sync, streaming");
    // It asks for its succession first, and leaves the election only when that does not come about.
    missing(&mut stops, 1, 0);
    assert!(matches!(decide(&stops).action, Action::Server(ServerAction::Configure(_))));
    let mut down = view(2);
    health(&mut down, 1).postgres_down_ms = Some(500);
    waits(&down, "sync");
    health(&mut down, 1).postgres_down_ms = Some(501);
    assert!(matches!(decide(&down).action, Action::Server(ServerAction::Configure(_))));
}

#[test]
fn a_healthy_primary_may_register_again() {
    let mut view = view(2);
    missing(&mut view, 1, 500);
    waits(&view, "sync");
    missing(&mut view, 1, 2_000);
    assert!(matches!(decide(&view).action, Action::Server(ServerAction::Configure(_))));
}

#[test]
fn while_the_write_may_still_happen_it_does_not_follow_again() {
    let mut view = view(2);
    detached(&mut view);
    view.uncertain_write = true;
    waits(&view, "outcome unknown");
    view.uncertain_write = false;
    let follow = config(Recovery::Follow(id(1)), Synchronous::Impossible, Gate::Open, &[3]);
    acts(&view, ServerAction::Configure(follow));
}

#[test]
fn nor_after_a_restart_of_postgresql() {
    let mut view = view(2);
    view.uncertain_write = true;
    view.local.server = Server::Down { crashed: true, standby: true };
    assert!(
        matches!(decide(&view).action, Action::Server(ServerAction::Start(config)) if config.recovery == Recovery::Detached)
    );
}

#[test]
fn nor_when_it_took_long_to_start() {
    let mut view = view(2);
    (view.uncertain_write, view.local.config) = (true, None);
    acts(&view, ServerAction::Configure(config(Recovery::Detached, Synchronous::Impossible, Gate::Closed, &[3])));
}

#[test]
fn an_async_never_takes_over() {
    let mut view = view(3);
    gone(&mut view, 1, 2);
    gone(&mut view, 2, 1);
    let decision = decide(&view);
    assert!(
        !matches!(
            decision.action,
            Action::Shard(ShardAction::WriteState { .. }) | Action::Server(ServerAction::Promote { .. })
        ),
        "{decision:?}"
    );
}
