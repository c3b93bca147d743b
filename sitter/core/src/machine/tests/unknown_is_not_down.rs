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

/// Row 18: a primary waits for its sync, and ZooKeeper is away.
#[test]
fn a_stopped_standby_follows_again_without_the_state_and_a_stopped_primary_waits() {
    for (me, standby) in [(1, false), (2, true), (3, true)] {
        let mut view = view(me);
        (view.zk.state, view.zk.session) = (StateNode::Unread, Session::Disconnected);
        view.local.server = Server::Down { crashed: true, standby };
        view.observed.unread_ms = 2_999;
        waits(&view, "not read yet");
        view.observed.unread_ms = 3_000;
        let upstream = match me {
            1 => {
                waits(&view, "not read yet");
                continue;
            }
            me => id(me - 1),
        };
        let slots: &[u8] = if me == 2 { &[3] } else { &[] };
        let follow = config(Recovery::Follow(upstream), Synchronous::Impossible, Gate::Closed, slots);
        acts(&view, ServerAction::Start(follow.clone()));
        let mut late = view.clone();
        (late.local.server, late.local.config) = (Server::Standby(standby_status()), None);
        late.observed.given = Some(follow.clone());
        acts(&late, ServerAction::Configure(follow));
        view.local.data = Data::Incomplete;
        waits(&view, "not read yet");
    }
}

#[test]
fn a_new_session_registers_again() {
    for me in 1..=3 {
        let mut view = view(me);
        view.zk.active.remove(&id(me));
        acts(&view, ShardAction::JoinElection);
    }
}

/// ZooKeeper's data was put back from a backup: whoever it names primary may have been deposed since.
#[test]
fn an_older_generation_than_was_seen_changes_nothing() {
    for me in 1..=3 {
        let mut view = view(me);
        change(&mut view, |state| (state.primary, state.sync_peer) = (peer(3), Some(peer(1))));
        view.observed.newest_generation = Some(5);
        waits(&view, "went back to generation 4");
        view.observed.newest_generation = Some(4);
        assert!(!matches!(decide(&view).action, Action::Wait { .. }));
    }
}

#[test]
fn a_new_process_takes_the_place_of_the_old_one_first() {
    for me in 1..=3 {
        let mut view = view(me);
        view.observed.joined = false;
        acts(&view, ShardAction::JoinElection);
    }
}
