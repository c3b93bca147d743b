//! Writes of the primary within its generation.

use super::*;

#[test]
fn active_peers_are_appended_and_departed_ones_dropped() {
    let mut view = view(1);
    view.zk.active.insert(id(4), ActivePeer { sequence: 4, peer: peer(4) });
    let wide = config(Recovery::Primary, Synchronous::Peer(id(2)), Gate::Open, &[2, 3, 4]);
    acts(&view, ServerAction::Configure(wide.clone()));
    view.local.config = Some(wide);
    waits(&view, "fit");
    view.health.insert(id(4), healthy(Data::Absent));
    assert_eq!(ids(&writes(&view).async_peers), [id(3), id(4)]);
    *health(&mut view, 4) = healthy(Data::Present(SystemIdentifier("8".to_owned())));
    waits(&view, "fit");
    missing(&mut view, 3, 1_000);
    assert_eq!(ids(&writes(&view).async_peers), []);
}

#[test]
fn deposed_peers_return_once_they_stream() {
    let mut view = view(1);
    change(&mut view, |state| (state.async_peers, state.deposed) = (vec![], vec![peer(3)]));
    waits(&view, "fit");
    primary(&mut view).downstreams.push(downstream(3, 500, 0));
    let state = writes(&view);
    assert_eq!((ids(&state.async_peers), ids(&state.deposed)), (vec![id(3)], vec![]));
}

#[test]
fn the_new_timeline_is_recorded_once() {
    let mut view = view(1);
    let pending = Promotion { timeline: Timeline(1), at: None };
    change(&mut view, |state| Promotion::set(state, Some(pending)));
    let state = writes(&view);
    assert_eq!(Promotion::of(&state), Some(Promotion { at: Some(at(1, 500)), ..pending }));
    view.zk.state = StateNode::Valid { version: 10, state: Arc::new(state) };
    waits(&view, "fit");
}
