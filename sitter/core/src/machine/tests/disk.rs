//! Row 32: a full disk is the peer's own word that it cannot commit.

use super::super::tracker::Tracker;
use super::*;

#[test]
fn a_full_disk_counts_as_down_until_there_is_room_again() {
    let mut tracker = Tracker::new();
    let mut down_ms = |view: &mut View, now_ms: u64, disk_full: bool| {
        (view.now_ms, view.disk_full) = (now_ms, disk_full);
        tracker.complete(view);
        view.observed.postgres_down_ms
    };
    for me in [1, 2] {
        let mut view = view(me);
        assert_eq!(down_ms(&mut view, 1_000, false), None);
        assert_eq!(down_ms(&mut view, 2_000, true), Some(0));
        assert_eq!(down_ms(&mut view, 3_000, true), Some(1_000));
        let running = std::mem::replace(&mut view.local.server, Server::Down { crashed: true, standby: false });
        assert_eq!(down_ms(&mut view, 4_000, true), Some(2_000), "it failed meanwhile: one outage");
        view.local.server = running;
        assert_eq!(down_ms(&mut view, 5_000, true), Some(3_000));
        assert_eq!(down_ms(&mut view, 6_000, false), None);
    }
}

#[test]
fn the_sync_takes_over_from_a_primary_whose_disk_is_full() {
    let mut view = view(2);
    health(&mut view, 1).postgres_down_ms = Some(600);
    let next = config(Recovery::Detached, Synchronous::Impossible, Gate::Open, &[1, 3]);
    acts(&view, ServerAction::Configure(next));
}

#[test]
fn but_not_one_without_room_itself() {
    let mut view = view(2);
    health(&mut view, 1).postgres_down_ms = Some(600);
    view.disk_full = true;
    waits(&view, "sync, streaming");
}
