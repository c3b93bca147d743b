//! Rule 8: the first state.

use super::*;

fn nothing(me: u8) -> View {
    let mut view = view(me);
    (view.zk.state, view.zk.has_history) = (StateNode::Absent, Some(false));
    view.local = Local::new(Data::Absent, Server::Down { crashed: false, standby: false });
    view.health.values_mut().for_each(|health| health.data = Some(Data::Absent));
    view
}

#[test]
fn the_first_in_election_order_initialises_and_writes() {
    let mut view = nothing(1);
    acts(&view, DataAction::Initialise);
    waits(&nothing(2), "sets up the shard");
    view.local.data = Data::Fresh(SystemIdentifier("7".to_owned()));
    let state = writes(&view);
    assert_eq!((state.generation, state.primary.id, state.sync_peer.as_ref().unwrap().id), (1, id(1), id(2)));
    assert_eq!((ids(&state.async_peers), state.init_position()), (vec![id(3)], Some(at(1, 0))));
    view.zk.state = StateNode::Valid { version: 0, state: Arc::new(state) };
    assert!(matches!(decide(&view).action, Action::Server(ServerAction::Start(config)) if config.gate == Gate::Closed));
}

#[test]
fn whoever_initialised_goes_on_after_a_crash() {
    let mut view = nothing(2);
    view.local.data = Data::Fresh(SystemIdentifier("7".to_owned()));
    assert_eq!(writes(&view).primary.id, id(2));
    let mut first = nothing(1);
    health(&mut first, 2).data = Some(Data::Fresh(SystemIdentifier("7".to_owned())));
    waits(&first, "10.0.0.2");
}

#[test]
fn never_over_anything_that_was() {
    type Change = fn(&mut View);
    let table: [(&str, Change); 7] = [
        ("rule 8", |view| view.observed.had_state = true),
        ("rule 8", |view| view.zk.has_history = Some(true)),
        ("not known", |view| view.zk.has_history = None),
        ("rule 8", |view| view.local.data = present()),
        ("rule 8", |view| health(view, 3).data = Some(present())),
        ("has not said", |view| health(view, 3).data = None),
        ("two peers", |view| view.zk.active.retain(|peer, _| *peer == id(1))),
    ];
    for (about, change) in table {
        let mut view = nothing(1);
        change(&mut view);
        waits(&view, about);
    }
}
