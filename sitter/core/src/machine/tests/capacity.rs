//! Settings that a standby needs as high as its primary's, changed on one peer alone (P-4).

use super::*;
use crate::machine::capacity::{Capacities, Capacity, Lack, Override, of_standbys};
use crate::machine::preempt::preempts;
use crate::machine::readiness::{Need, of_standby};

fn short(view: &mut View) {
    let short_of = Some(Lack { setting: Capacity::MaxConnections, has: 100, needs: 200 });
    match &mut view.local.server {
        Server::Standby(standby) => standby.replay = Replay { paused: true, short_of, ..Replay::default() },
        other => panic!("{other:?}"),
    }
}

fn all(value: u32) -> Option<Capacities> {
    Capacities::of(|_| Some(value))
}

/// Also when it is to take over: as it is it could not be promoted.
#[test]
fn a_standby_that_has_less_than_its_wal_needs_is_restarted_before_anything_else() {
    for me in [2, 3] {
        for gone in [false, true] {
            let mut view = view(me);
            short(&mut view);
            if gone {
                super::gone(&mut view, 1, if me == 2 { 3 } else { 2 });
            }
            acts(&view, ServerAction::Stop(StopMode::Fast));
            view.local.server = Server::Down { crashed: false, standby: true };
            let following = |action| matches!(action, Action::Server(ServerAction::Start(config)) if config.recovery != Recovery::Primary);
            assert!(following(decide(&view).action), "the start gives it what it needs");
        }
    }
}

/// The change may lie in what is replayed by the promotion itself.
#[test]
fn a_promotion_that_comes_to_such_wal_is_given_up_and_begun_again_after_a_restart() {
    let mut view = view(2);
    change(&mut view, |state| {
        (state.primary, state.sync_peer, state.async_peers) = (peer(2), Some(peer(3)), vec![]);
        state.deposed = vec![peer(1)];
        Promotion::set(state, Some(Promotion { timeline: Timeline(5), at: None }));
    });
    short(&mut view);
    let under_way = ServerAction::Promote {
        config: config(Recovery::Primary, Synchronous::Peer(id(3)), Gate::Open, &[1, 3]),
        timeline: Some(Timeline(5)),
    };
    view.in_flight = Some(InFlight { action: under_way.into(), for_ms: 500 });
    acts(&view, ServerAction::Stop(StopMode::Fast));
    assert!(preempts(view.in_flight.as_ref().unwrap(), &decide(&view).action));
    view.in_flight = None;
    view.local.server = Server::Down { crashed: true, standby: true };
    let closed = config(Recovery::Detached, Synchronous::Impossible, Gate::Closed, &[1, 3]);
    acts(&view, ServerAction::Start(closed));
}

#[test]
fn a_peer_that_could_not_follow_is_no_sync_while_another_is_fit() {
    let mut view = view(2);
    gone(&mut view, 1, 3);
    change(&mut view, |state| state.async_peers.push(peer(4)));
    view.zk.active.insert(id(4), ActivePeer { sequence: 4, peer: peer(4) });
    view.health.insert(id(4), PeerHealth { capacities: all(200), ..healthy(present()) });
    view.local.config = Some(config(Recovery::Detached, Synchronous::Impossible, Gate::Open, &[1, 3, 4]));
    match &mut view.local.server {
        Server::Standby(standby) => {
            (standby.streaming, standby.receiver_stopped, standby.upstream_silent_ms) = (false, true, None);
        }
        other => panic!("{other:?}"),
    }
    view.local.capacities = all(200);
    let chosen = |view: &View| writes(view).sync_peer.map(|peer| peer.id);
    health(&mut view, 3).capacities = all(199);
    assert_eq!(chosen(&view), Some(id(4)));
    health(&mut view, 4).capacities = all(100);
    assert_eq!(chosen(&view), Some(id(3)), "rather than nobody");
    health(&mut view, 3).capacities = all(300);
    assert_eq!(chosen(&view), Some(id(3)));
}

#[test]
fn a_primary_may_take_what_each_standby_that_is_heard_of_has() {
    let mut view = view(1);
    assert_eq!(of_standbys(&view), None);
    health(&mut view, 2).capacities = all(100);
    assert_eq!(of_standbys(&view), all(100));
    health(&mut view, 3).capacities = all(50);
    assert_eq!(of_standbys(&view), all(50));
    health(&mut view, 3).refused = true;
    assert_eq!(of_standbys(&view), all(100));
    // One that is no standby of the shard has no say.
    change(&mut view, |state| (state.sync_peer, state.async_peers) = (Some(peer(3)), vec![]));
    assert_eq!(of_standbys(&view), None);
}

#[test]
fn what_a_standby_lacks_is_told_and_a_primary_lacks_nothing() {
    let mut view = view(2);
    view.local.capacities = all(100);
    let needs = |view: &View, overridden: &[Override], primary: Option<Capacities>| {
        let told = of_standby(&view.local, overridden, primary.as_ref());
        told.into_iter().map(|unready| unready.need).collect::<Vec<_>>()
    };
    assert_eq!(needs(&view, &[], all(100)), []);
    assert_eq!(needs(&view, &[], None), []);
    assert_eq!(needs(&view, &[], all(101)), [Need::Capacities]);
    let runs = |runs| [Override { setting: Capacity::MaxConnections, runs, configured: 50 }];
    assert_eq!(needs(&view, &runs(100), all(100)), [Need::Capacities]);
    assert_eq!(needs(&view, &runs(40), all(100)), []);
    short(&mut view);
    assert_eq!(needs(&view, &[], all(100)), [Need::Replay]);
    let mut primary = super::view(1);
    primary.local.capacities = all(100);
    assert_eq!(needs(&primary, &runs(100), all(200)), []);
}
