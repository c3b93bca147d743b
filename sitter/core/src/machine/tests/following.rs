//! Judgement of the primary on who follows it.

use super::super::tracker::Tracker;
use super::*;

/// A primary whose WAL grows all the time, looked at every 50 ms.
struct Watched {
    tracker: Tracker,
    view: View,
}

impl Watched {
    fn new() -> Self {
        Self { tracker: Tracker::new(), view: view(1) }
    }

    /// The sync acknowledges everything up to `flushed` (by the clock: a byte a millisecond).
    fn look(&mut self, now_ms: u64, flushed: Option<u64>) {
        self.view.now_ms = now_ms;
        let downstreams = flushed.map(|flushed| downstream(2, flushed, 1)).into_iter().collect();
        self.view.local.server = Server::Primary(PrimaryStatus { flushed: at(1, now_ms), downstreams });
        self.tracker.complete(&mut self.view);
    }

    fn of(&self, which: fn(&Observed) -> &std::collections::BTreeMap<PeerId, u64>) -> u64 {
        which(&self.view.observed).get(&id(2)).copied().unwrap_or(0)
    }

    fn stalled_ms(&self) -> u64 {
        self.of(|observed| &observed.stalled_ms)
    }

    fn slow_ms(&self) -> u64 {
        self.of(|observed| &observed.slow_ms)
    }
}

/// Row 34: each flush ends, late; that is progress, and of no use to anybody who waits.
#[test]
fn flushes_that_take_seconds_add_up() {
    let mut watched = Watched::new();
    for now in (10_000..40_000).step_by(50) {
        watched.look(now, Some(now / 2_500 * 2_500 - 2_500));
        assert!(watched.stalled_ms() <= 5_100, "{now}: {}", watched.stalled_ms());
    }
    assert!(watched.slow_ms() >= 10_000, "{}", watched.slow_ms());
    for now in (40_000..90_000).step_by(50) {
        watched.look(now, Some(now));
    }
    assert_eq!((watched.stalled_ms(), watched.slow_ms()), (0, 0), "forgiven");
}

/// Row 14: packets that are lost make some acknowledgements late.
#[test]
fn a_late_acknowledgement_now_and_then_is_forgiven() {
    let mut watched = Watched::new();
    for now in (10_000..610_000).step_by(50) {
        let lost = now % 10_000 < 1_800;
        watched.look(now, Some(if lost { now / 10_000 * 10_000 } else { now - 400 }));
        assert!(watched.slow_ms() < 2_500, "{now}: {}", watched.slow_ms());
    }
}

#[test]
fn what_is_owed_has_an_age_also_when_it_is_much() {
    let mut watched = Watched::new();
    for now in (10_000..70_000).step_by(50) {
        watched.look(now, Some(9_000));
        assert_eq!(watched.stalled_ms(), now - 10_000);
    }
    watched.look(70_000, Some(70_000));
    assert_eq!(watched.stalled_ms(), 0);
    for now in (70_050..80_000).step_by(50) {
        watched.look(now, None);
    }
    assert_eq!(watched.stalled_ms(), 9_900, "away");
}

#[test]
fn a_pause_of_our_own_is_nobodys_fault() {
    let mut watched = Watched::new();
    watched.look(10_000, Some(9_950));
    watched.look(40_000, Some(9_950));
    assert_eq!((watched.stalled_ms(), watched.slow_ms()), (0, 0));
    watched.look(40_050, Some(9_950));
    assert_eq!(watched.stalled_ms(), 50);
}
