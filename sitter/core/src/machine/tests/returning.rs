//! History never goes back: disks that come back older than they were.

use super::*;

fn ends(timeline: u32, lsn: u64, left: &[(u32, u64)]) -> EndOfWal {
    let history = TimelineHistory(left.iter().map(|(timeline, lsn)| at(*timeline, *lsn)).collect());
    EndOfWal { position: at(timeline, lsn), history }
}

/// The primary, down, in a new process of its sitter, with its WAL up to `lsn`; the others have it up to 500.
fn returned(lsn: u64) -> View {
    let mut view = view(1);
    view.local.server = Server::Down { crashed: true, standby: false };
    view.local.end = Some(ends(1, lsn, &[]));
    view.observed.known_end = None;
    for number in [2, 3] {
        let health = health(&mut view, number);
        (health.streaming, health.wal) = (Some(false), Some(ends(1, 500, &[])));
    }
    view
}

#[track_caller]
fn starts(view: &View) {
    let decision = decide(view);
    assert!(matches!(decision.action, Action::Server(ServerAction::Start(_))), "{decision:?}");
}

#[track_caller]
fn gives_way(view: &View, about: &str) {
    assert!(super::super::returning::is_older(view), "others are told");
    let decision = decide(view);
    assert_eq!(decision.action, Action::Shard(ShardAction::LeaveElection), "{}", decision.why);
    assert!(decision.why.to_string().contains(about), "{}", decision.why);
}

#[test]
fn a_primary_is_started_only_when_its_wal_was_compared() {
    let mut view = returned(500);
    view.local.end = None;
    acts(&view, DataAction::Survey);
    starts(&returned(500));
    starts(&returned(501));
    gives_way(&returned(499), "10.0.0.2:5432:12345 has it up to 0/000001F4");
    let mut only_the_async = returned(499);
    health(&mut only_the_async, 2).wal = Some(ends(1, 400, &[]));
    gives_way(&only_the_async, "10.0.0.3:5432:12345 has it");
    // Also where it branched off, by somebody's hand.
    let mut branched = returned(499);
    health(&mut branched, 3).wal = None;
    health(&mut branched, 2).wal = Some(ends(2, 700, &[(1, 500)]));
    gives_way(&branched, "has it up to");
    health(&mut branched, 2).wal = Some(ends(2, 700, &[(1, 480)]));
    starts(&branched);
    // The beginning of the generation is known without anybody.
    let mut ancient = returned(99);
    ancient.health.clear();
    gives_way(&ancient, "before the beginning of the generation");
    // Nothing is done twice, and nothing by somebody who has left.
    ancient.zk.active.remove(&id(1));
    waits(&ancient, "came back older");
    change(&mut ancient, |state| state.freeze = Some(Freeze::Flag(true)));
    waits(&ancient, "came back older");
}

#[test]
fn a_primary_waits_for_the_word_of_its_sync() {
    let mut silent = returned(500);
    *health(&mut silent, 2) = PeerHealth::default();
    waits(&silent, "not heard of");
    let mut streams = returned(500);
    health(&mut streams, 2).streaming = Some(true);
    waits(&streams, "has not noticed yet");
    let mut starting = returned(500);
    (health(&mut starting, 2).wal, health(&mut starting, 2).postgres_down_ms) = (None, Some(500));
    waits(&starting, "its PostgreSQL is down");
    // One without data has nothing to lose.
    let mut empty = returned(500);
    (health(&mut empty, 2).wal, health(&mut empty, 2).data) = (None, Some(Data::Incomplete));
    starts(&empty);
    // What this process saw itself is as good.
    silent.observed.known_end = Some(at(1, 500));
    starts(&silent);
    silent.observed.known_end = Some(at(1, 501));
    waits(&silent, "not heard of");
}

#[test]
fn without_its_sync_a_primary_asks_the_others() {
    let mut view = returned(500);
    missing(&mut view, 2, 2_500);
    *health(&mut view, 2) = PeerHealth { silent_ms: Some(5_000), ..healthy(present()) };
    starts(&view);
    health(&mut view, 3).wal = Some(ends(1, 501, &[]));
    gives_way(&view, "10.0.0.3:5432:12345 has it");
    health(&mut view, 3).wal = None;
    health(&mut view, 3).postgres_down_ms = Some(10);
    waits(&view, "before another peer has said");
    missing(&mut view, 3, 2_500);
    *health(&mut view, 3) = PeerHealth { silent_ms: Some(5_000), ..healthy(present()) };
    waits(&view, "before another peer has said");
    // An operator who says that it is to go on alone has decided.
    view.settings.one_node_write_mode = true;
    change(&mut view, |state| {
        (state.sync_peer, state.one_node_write_mode, state.freeze) = (None, true, Some(Freeze::Flag(true)));
        state.async_peers.clear();
    });
    starts(&view);
}

/// Generation 5, which peer 1 began by a takeover on timeline 5.
fn took_over(promoted: Option<u64>) -> View {
    let mut view = view(1);
    let promotion = Promotion { timeline: Timeline(5), at: promoted.map(|lsn| at(5, lsn)) };
    change(&mut view, |state| {
        (state.generation, state.init_wal) = (5, Lsn(500));
        Promotion::set(state, Some(promotion));
    });
    let standby = StandbyStatus { streaming: false, receiver_stopped: true, ..standby_status() };
    view.local.server = Server::Standby(standby);
    view.local.config = Some(config(Recovery::Detached, Synchronous::Impossible, Gate::Open, &[2, 3]));
    view.observed.wrote_generation = Some(5);
    view
}

#[test]
fn nobody_is_promoted_twice_to_one_timeline() {
    let promotes = |view: &View| matches!(decide(view).action, Action::Server(ServerAction::Promote { .. }));
    assert!(promotes(&took_over(None)));
    gives_way(&took_over(Some(520)), "from before its promotion");
    let mut followed = took_over(None);
    health(&mut followed, 2).wal = Some(ends(5, 510, &[(1, 500)]));
    gives_way(&followed, "has WAL of timeline 5");
    // Another process than the one that wrote the takeover waits for the word of the sync.
    let mut again = took_over(None);
    again.observed.wrote_generation = None;
    *health(&mut again, 2) = PeerHealth::default();
    waits(&again, "not heard of");
    health(&mut again, 2).silent_ms = Some(10);
    health(&mut again, 2).data = Some(present());
    health(&mut again, 2).wal = Some(ends(1, 500, &[]));
    assert!(promotes(&again));
    standby(&mut again).received = Some(at(1, 499));
    assert!(promotes(&again), "init_wal may lie inside a record");
    // A primary of before the takeover is no primary of after it.
    let mut older = took_over(None);
    older.local.server = Server::Down { crashed: true, standby: false };
    older.local.end = Some(ends(1, 499, &[]));
    gives_way(&older, "before the beginning of the generation");
    // Somebody promoted it by hand in the middle of the takeover.
    older.local.end = Some(ends(2, 600, &[(1, 500)]));
    older.observed.known_end = Some(at(2, 600));
    starts(&older);
}

#[test]
fn a_sync_does_not_take_over_on_the_strength_of_what_it_once_had() {
    let mut view = view(2);
    gone(&mut view, 1, 3);
    health(&mut view, 3).wal = Some(ends(1, 501, &[]));
    let steps = |view: &View| matches!(decide(view).action, Action::Server(ServerAction::Configure(_)));
    assert!(steps(&view), "it was seen to have everything");
    view.observed.is_whole = false;
    waits(&view, "10.0.0.3:5432:12345 has WAL up to 0/000001F5");
    health(&mut view, 3).wal = Some(ends(1, 500, &[]));
    assert!(steps(&view));
    (health(&mut view, 3).wal, health(&mut view, 3).postgres_down_ms) = (None, Some(10));
    waits(&view, "is not known yet");
    // The primary says that it was its disk.
    (health(&mut view, 3).wal, health(&mut view, 3).postgres_down_ms) = (Some(ends(1, 501, &[])), None);
    *health(&mut view, 1) = PeerHealth { older: true, postgres_down_ms: Some(5_000), ..healthy(present()) };
    assert!(steps(&view));
    health(&mut view, 1).older = false;
    // It has more than we have, and says so.
    health(&mut view, 3).wal = Some(ends(1, 500, &[]));
    health(&mut view, 1).wal = Some(ends(1, 510, &[]));
    waits(&view, "the primary has WAL up to");
    // It starts now, and does not say it any more; after long enough nobody waits for its word.
    health(&mut view, 1).wal = None;
    waits(&view, "is not known yet");
    health(&mut view, 1).postgres_down_ms = Some(30_000);
    assert!(steps(&view));
}

#[test]
fn a_sync_at_the_beginning_of_the_generation_does_not_take_over_from_who_went_on() {
    let mut view = view(2);
    change(&mut view, |state| {
        (state.init_wal, state.init_wal_timeline) = (Lsn(500), Some(Timeline(1)));
        Promotion::set(state, Some(Promotion { timeline: Timeline(5), at: Some(at(5, 510)) }));
    });
    view.observed.is_whole = false;
    health(&mut view, 3).wal = Some(ends(1, 500, &[]));
    *health(&mut view, 1) = PeerHealth { postgres_down_ms: Some(5_000), ..healthy(present()) };
    health(&mut view, 1).wal = Some(ends(5, 560, &[(1, 500)]));
    waits(&view, "the primary has WAL up to");
    health(&mut view, 1).wal = Some(ends(1, 500, &[]));
    assert!(matches!(decide(&view).action, Action::Server(ServerAction::Configure(_))), "nobody has more");
    health(&mut view, 3).wal = Some(ends(5, 560, &[(1, 500)]));
    waits(&view, "10.0.0.3:5432:12345 has WAL up to");
}

#[test]
fn a_peer_that_waits_to_be_rejoined_says_how_far_it_is() {
    let mut view = view(3);
    view.local.server = Server::Down { crashed: true, standby: false };
    view.local.end = None;
    health(&mut view, 1).postgres_down_ms = Some(500);
    acts(&view, DataAction::Survey);
    view.local.end = Some(ends(1, 500, &[]));
    waits(&view, "does not answer");
}

#[test]
fn whole_is_a_standby_that_had_what_the_primary_said() {
    use super::super::tracker::Tracker;
    let mut view = view(2);
    health(&mut view, 1).wal = Some(ends(1, 480, &[]));
    let mut tracker = Tracker::new();
    let looks = |tracker: &mut Tracker, view: &mut View| {
        tracker.complete(view);
        view.observed.is_whole
    };
    standby(&mut view).received = Some(at(1, 479));
    assert!(!looks(&mut tracker, &mut view));
    standby(&mut view).received = Some(at(1, 480));
    assert!(looks(&mut tracker, &mut view));
    // And while the primary is ahead again, or gone.
    health(&mut view, 1).wal = Some(ends(1, 900, &[]));
    (standby(&mut view).streaming, standby(&mut view).received) = (false, Some(at(1, 480)));
    assert!(looks(&mut tracker, &mut view));
    // Its disk was replaced under it.
    standby(&mut view).received = Some(at(1, 400));
    assert!(!looks(&mut tracker, &mut view));
    assert_eq!(view.observed.known_end, Some(at(1, 450)));
}
