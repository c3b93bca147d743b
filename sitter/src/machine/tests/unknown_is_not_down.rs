//! Rule 9.

use super::*;

#[test]
fn without_zookeeper_or_with_a_corrupt_state_everything_stays() {
    let corrupt = StateNode::Corrupt { version: 1, problem: "garbage".to_owned() };
    for me in 1..=3 {
        for node in [StateNode::Unread, corrupt.clone()] {
            let mut view = view(me);
            view.zk.state = node;
            waits(&view, "stays as it is");
        }
        let mut view = view(me);
        (view.zk.session, view.zk.active) = (Session::Disconnected, BTreeMap::new());
        waits(&view, "");
    }
}

#[test]
fn a_new_session_registers_again() {
    for me in 1..=3 {
        let mut view = view(me);
        view.zk.active.remove(&id(me));
        acts(&view, Action::JoinElection);
    }
}
