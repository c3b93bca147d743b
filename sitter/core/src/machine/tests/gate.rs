//! Rule 7: who lets clients in, and when.

use super::*;

#[test]
fn a_restarted_primary_stays_closed_until_the_sync_has_everything() {
    let mut view = view(1);
    let closed = config(Recovery::Primary, Synchronous::Peer(id(2)), Gate::Closed, &[2, 3]);
    view.local.server = Server::Down { crashed: true, standby: false };
    acts(&view, ServerAction::Start(closed.clone()));
    view.local.config = Some(closed.clone());
    view.local.server = Server::Primary(PrimaryStatus { flushed: at(1, 310), downstreams: vec![] });
    waits(&view, "the gate is closed");
    primary(&mut view).downstreams = vec![downstream(2, 299, 1)];
    waits(&view, "the gate is closed");
    primary(&mut view).downstreams = vec![downstream(2, 300, 1)];
    acts(&view, ServerAction::Configure(ServerConfig { gate: Gate::Open, ..closed }));
}

#[test]
fn a_standby_opens_when_it_streams_and_shows_what_the_generation_began_with() {
    let mut view = view(3);
    let closed = config(Recovery::Follow(id(2)), Synchronous::Impossible, Gate::Closed, &[]);
    view.local.config = Some(closed.clone());
    acts(&view, ServerAction::Configure(ServerConfig { gate: Gate::Open, ..closed }));
    standby(&mut view).replayed = Lsn(99);
    waits(&view, "async");
    standby(&mut view).replayed = Lsn(100);
    standby(&mut view).streaming = false;
    waits(&view, "not streaming");
    change(&mut view, |state| (state.async_peers, state.deposed) = (vec![], vec![peer(3)]));
    standby(&mut view).streaming = true;
    let deposed = config(Recovery::Follow(id(1)), Synchronous::Impossible, Gate::Closed, &[]);
    acts(&view, ServerAction::Configure(deposed));
}

#[test]
fn a_primary_that_may_be_replaced_unheard_is_closed() {
    let closed = config(Recovery::Primary, Synchronous::Peer(id(2)), Gate::Closed, &[2, 3]);
    let mut view = view(1);
    view.zk.session = Session::Disconnected;
    health(&mut view, 2).silent_ms = Some(2_000);
    view.observed.stalled_ms.insert(id(2), 2_000);
    waits(&view, "primary");
    health(&mut view, 3).silent_ms = Some(2_000);
    acts(&view, ServerAction::Configure(closed.clone()));
    // The sync acknowledges: it has not taken over.
    let mut acknowledging = view.clone();
    acknowledging.observed.stalled_ms.clear();
    waits(&acknowledging, "primary");
    // Somebody knows more.
    health(&mut view, 3).silent_ms = Some(10);
    health(&mut view, 3).generation = Some(5);
    acts(&view, ServerAction::Configure(closed));
    // With ZooKeeper the state decides.
    view.zk.session = Session::Connected;
    health(&mut view, 2).silent_ms = Some(10);
    waits(&view, "primary");
}

/// A change of the sitter's own settings for PostgreSQL gives it the same configuration anew.
#[test]
fn an_outdated_configuration_is_given_again_with_the_gate_as_it_is() {
    for me in [1, 2, 3] {
        let mut view = view(me);
        // Also while the sync is away: whoever was let in stays.
        if me == 1 {
            primary(&mut view).downstreams.clear();
        }
        let given = view.local.config.clone().unwrap();
        view.local.outdated = true;
        acts(&view, ServerAction::Configure(given));
    }
}
