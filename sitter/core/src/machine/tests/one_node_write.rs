//! One-node-write mode: who stays out, who acknowledges, and the way back to a normal shard.

use super::*;

/// Peer `me` in a shard whose primary, peer 1, is alone by an operator's wish.
fn alone(me: u8) -> View {
    let mut view = view(me);
    change(&mut view, |state| {
        (state.sync_peer, state.one_node_write_mode) = (None, true);
        state.freeze = Some(Freeze::Flag(true));
        state.async_peers.clear();
    });
    view.settings.one_node_write_mode = true;
    view
}

/// The same once an operator asked for its end.
fn leaving(me: u8) -> View {
    let mut view = alone(me);
    change(&mut view, |state| state.set_leaves_one_node_write_mode(true));
    view
}

fn nobody() -> ServerConfig {
    config(Recovery::Primary, Synchronous::Nobody, Gate::Open, &[2, 3])
}

#[test]
fn the_primary_acknowledges_alone_only_if_configured_for_it() {
    let mut view = alone(1);
    acts(&view, ServerAction::Configure(nobody()));
    view.local.config = Some(nobody());
    waits(&view, "one-node-write mode");
    view.settings.one_node_write_mode = false;
    let impossible = ServerConfig { synchronous: Synchronous::Impossible, ..nobody() };
    acts(&view, ServerAction::Configure(impossible));
    // A restart opens at once: nobody else has to have anything.
    let mut restarted = alone(1);
    restarted.local.config = Some(ServerConfig { gate: Gate::Closed, ..nobody() });
    acts(&restarted, ServerAction::Configure(nobody()));
}

#[test]
fn the_others_stay_out() {
    for me in [2, 3] {
        waits(&alone(me), "stay out");
        let mut view = alone(me);
        view.zk.active.remove(&id(me));
        (view.local.data, view.local.server) = (Data::Absent, Server::Down { crashed: false, standby: false });
        waits(&view, "stay out");
        view.local.server = Server::Primary(primary_status());
        acts(&view, ServerAction::Stop(StopMode::Immediate));
    }
}

#[test]
fn nobody_takes_over_or_hands_over() {
    let mut view = alone(2);
    change(&mut view, |state| state.sync_peer = None);
    gone(&mut view, 1, 3);
    waits(&view, "stay out");
    let mut stops = alone(1);
    stops.local.config = Some(nobody());
    stops.zk.active.remove(&id(1));
    stops.stopping_ms = Some(0);
    acts(&stops, ServerAction::Stop(StopMode::Fast));
}

#[test]
fn once_asked_the_others_come_in_unlisted_and_closed() {
    let mut view = leaving(2);
    view.zk.active.remove(&id(2));
    acts(&view, ShardAction::JoinElection);
    let mut empty = leaving(3);
    (empty.local.data, empty.local.server) = (Data::Absent, Server::Down { crashed: false, standby: false });
    acts(&empty, DataAction::Bootstrap { source: id(1) });
    let follow = config(Recovery::Follow(id(1)), Synchronous::Impossible, Gate::Closed, &[]);
    acts(&leaving(3), ServerAction::Configure(follow));
    let mut was_primary = leaving(2);
    was_primary.local.server = Server::Primary(primary_status());
    acts(&was_primary, ServerAction::Stop(StopMode::Immediate));
}

#[test]
fn the_first_that_follows_becomes_sync_by_rule_3() {
    let mut view = leaving(1);
    view.local.config = Some(nobody());
    primary(&mut view).downstreams.clear();
    waits(&view, "to be left for the first peer that follows");
    primary(&mut view).downstreams = vec![Downstream { streaming: false, ..downstream(2, 100, 0) }];
    waits(&view, "to be left");
    primary(&mut view).downstreams = vec![downstream(3, 500, 0)];
    let required = config(Recovery::Primary, Synchronous::Peer(id(3)), Gate::Open, &[2, 3]);
    acts(&view, ServerAction::Configure(required.clone()));
    view.local.config = Some(required);
    waits(&view, "walsender");
    // Another that comes meanwhile, earlier in election order, changes nothing.
    primary(&mut view).downstreams = vec![downstream(2, 500, 0), downstream(3, 500, 1)];
    let state = writes(&view);
    assert_eq!((state.generation, state.sync_peer.as_ref().unwrap().id), (5, id(3)));
    assert_eq!(state.init_position(), Some(at(1, 500)), "read after it was required");
    assert!(!state.one_node_write_mode && !state.is_frozen() && !state.leaves_one_node_write_mode());
    view.zk.state = StateNode::Valid { version: 10, state: Arc::new(state) };
    assert_eq!(ids(&writes(&view).async_peers), [id(2)], "the rest joins as ever");
}

#[test]
fn it_is_undone_while_nothing_was_written() {
    let required = config(Recovery::Primary, Synchronous::Peer(id(3)), Gate::Open, &[2, 3]);
    let mut view = leaving(1);
    view.local.config = Some(required.clone());
    primary(&mut view).downstreams.clear();
    acts(&view, ServerAction::Configure(nobody()));
    view.uncertain_write = true;
    waits(&view, "cannot be written");
    let mut taken_back = alone(1);
    taken_back.local.config = Some(required);
    acts(&taken_back, ServerAction::Configure(nobody()));
}

/// Rule 7: the way out may be written already, and then the coming sync may take over.
#[test]
fn a_restart_while_that_may_be_written_shows_only_what_the_coming_sync_has() {
    let required = |gate| config(Recovery::Primary, Synchronous::Peer(id(3)), gate, &[2, 3]);
    let mut view = leaving(1);
    (view.uncertain_write, view.zk.session) = (true, Session::Disconnected);
    view.local.config = None;
    view.observed.given = Some(required(Gate::Closed));
    view.observed.first_flush = Some(Lsn(490));
    primary(&mut view).downstreams = vec![downstream(3, 480, 1)];
    acts(&view, ServerAction::Configure(required(Gate::Closed)));
    primary(&mut view).downstreams = vec![downstream(3, 490, 1)];
    acts(&view, ServerAction::Configure(required(Gate::Open)));
}

#[test]
fn nobody_with_other_data_ends_it() {
    let mut view = leaving(1);
    view.local.config = Some(nobody());
    primary(&mut view).downstreams = vec![downstream(3, 500, 0)];
    *health(&mut view, 3) = healthy(Data::Present(SystemIdentifier("8".to_owned())));
    waits(&view, "to be left");
}
