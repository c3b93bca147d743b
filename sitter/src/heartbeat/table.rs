//! What the heartbeats taught, and what follows from it at a given time. Pure: time is an argument.
//!
//! Silence is counted from a peer's last answer, or from the end of the last pause of our own
//! process if that was later: whoever did not run could not have heard anything either.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use manatee_shared::ids::PeerId;

use super::{Answer, Timing};
use crate::machine::view::PeerHealth;

/// Refusals in a row after which a peer's sitter is held to be gone. One may be a restart's
/// accident (a listener that is just being replaced).
const REFUSALS: u32 = 2;

/// A gap between two ticks of more than this many intervals is a pause of this process…
const PAUSE_INTERVALS: u32 = 4;

/// …but never less than this: a busy machine delays tasks by that much.
const LEAST_PAUSE: Duration = Duration::from_millis(400);

/// How much more often peers are asked while the fate of one is being settled: whether another peer
/// shares a suspicion decides, and is to be known soon.
const HURRY: u32 = 5;

/// What a refused connection means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing yet.
    AskAgain,
    /// The peer's sitter is held to be gone from now on.
    Gone,
    /// It was already.
    StillGone,
}

/// What is known of one peer.
#[derive(Debug, Default)]
struct Entry {
    /// The last answer and when it came.
    answer: Option<(Instant, Answer)>,
    /// Refused connections in a row.
    refusals: u32,
    /// When it was found gone by refusals.
    gone: Option<Instant>,
}

/// What is known of all peers.
#[derive(Debug)]
pub struct Table {
    timing: Timing,
    peers: BTreeMap<PeerId, Entry>,
    /// Last tick.
    ticked: Option<Instant>,
    /// End of the last pause of our own.
    resumed: Option<Instant>,
}

impl Table {
    /// Knows nobody.
    pub fn new(timing: Timing) -> Self {
        Self { timing, peers: BTreeMap::new(), ticked: None, resumed: None }
    }

    /// To be called at least once per interval: notices that this process was paused (stopped,
    /// swapped out, its virtual machine migrated). Returns whether it was.
    pub fn tick(&mut self, now: Instant) -> bool {
        let limit = LEAST_PAUSE.max(self.timing.interval * PAUSE_INTERVALS);
        let paused = self.ticked.is_some_and(|last| now.saturating_duration_since(last) > limit);
        if paused {
            self.resumed = Some(now);
        }
        self.ticked = Some(self.ticked.map_or(now, |last| last.max(now)));
        paused
    }

    /// Forgets all but `peers`.
    pub fn retain(&mut self, peers: &BTreeSet<PeerId>) {
        self.peers.retain(|peer, _| peers.contains(peer));
    }

    /// `peer` answered. Returns whether that says something that the driver should look at.
    pub fn answered(&mut self, peer: PeerId, answer: Answer, now: Instant) -> bool {
        self.tick(now);
        let suspicion = self.timing.suspicion;
        let entry = self.peers.entry(peer).or_default();
        let back = entry.refusals >= REFUSALS
            || entry.answer.as_ref().is_none_or(|(at, _)| now.saturating_duration_since(*at) >= suspicion);
        let word = |answer: &Answer| Answer { postgres_down_ms: answer.postgres_down_ms.map(|_| 0), ..answer.clone() };
        let news = back || entry.answer.as_ref().is_none_or(|(_, old)| word(old) != word(&answer));
        *entry = Entry { answer: Some((now, answer)), refusals: 0, gone: None };
        news
    }

    /// The host of `peer` answers, but nobody listens at the sitter's port.
    pub fn refused(&mut self, peer: PeerId, now: Instant) -> Refusal {
        let entry = self.peers.entry(peer).or_default();
        entry.refusals = entry.refusals.saturating_add(1);
        match entry.refusals {
            ..REFUSALS => Refusal::AskAgain,
            REFUSALS => {
                entry.gone = Some(now);
                Refusal::Gone
            }
            _ => Refusal::StillGone,
        }
    }

    /// `peer` did not answer in time, or not sensibly: time will tell.
    pub fn failed(&mut self, peer: PeerId) {
        self.peers.entry(peer).or_default().refusals = 0;
    }

    /// How long to wait before a peer is asked again.
    pub fn pause(&self, now: Instant) -> Duration {
        let (half, twice) = (millis(self.timing.suspicion / 2), millis(self.timing.suspicion * 2));
        let unsettled = |entry: &Entry| {
            let gone = entry.gone.is_some_and(|at| now.saturating_duration_since(at) < self.timing.suspicion);
            gone || entry.answer.as_ref().is_some_and(|(at, _)| (half..twice).contains(&self.silence(*at, now)))
        };
        if self.peers.values().any(unsettled) { self.timing.interval / HURRY } else { self.timing.interval }
    }

    /// How each peer looks at `now`.
    pub fn health(&self, now: Instant) -> BTreeMap<PeerId, PeerHealth> {
        self.peers.iter().map(|(peer, entry)| (*peer, self.health_of(entry, now))).collect()
    }

    fn health_of(&self, entry: &Entry, now: Instant) -> PeerHealth {
        let mut health = PeerHealth { refused: entry.refusals >= REFUSALS, ..PeerHealth::default() };
        if let Some((at, answer)) = &entry.answer {
            let since_answer = millis(now.saturating_duration_since(*at));
            health.silent_ms = Some(self.silence(*at, now));
            health.postgres_down_ms = answer.postgres_down_ms.map(|down| down + since_answer);
            health.stopping = answer.stopping;
            health.suspects = answer.suspects.clone();
            health.data = answer.data.clone();
            health.streaming = answer.streaming;
            health.generation = answer.generation;
        }
        health
    }

    fn silence(&self, answered: Instant, now: Instant) -> u64 {
        let from = self.resumed.map_or(answered, |resumed| resumed.max(answered));
        millis(now.saturating_duration_since(from))
    }
}

/// Whole milliseconds, saturating.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    const TIMING: Timing = Timing { interval: Duration::from_millis(100), suspicion: Duration::from_secs(1) };

    fn peer() -> PeerId {
        "10.0.0.1:5432:12345".parse().unwrap()
    }

    fn answer() -> Answer {
        Answer {
            id: peer(),
            stopping: false,
            postgres_down_ms: None,
            suspects: BTreeSet::new(),
            data: None,
            streaming: None,
            generation: None,
        }
    }

    /// A table, and a clock that ticks it on every tenth of a second that passes.
    struct Fixture {
        table: Table,
        now: Instant,
    }

    impl Fixture {
        fn new() -> Self {
            let mut fixture = Self { table: Table::new(TIMING), now: Instant::now() };
            fixture.table.tick(fixture.now);
            fixture
        }

        fn pass(&mut self, ms: u64) {
            let end = self.now + Duration::from_millis(ms);
            while self.now < end {
                self.now = end.min(self.now + TIMING.interval);
                self.table.tick(self.now);
            }
        }

        fn pause(&mut self, ms: u64) {
            self.now += Duration::from_millis(ms);
            self.table.tick(self.now);
        }

        fn suspected(&self) -> bool {
            let health = self.table.health(self.now).remove(&peer()).unwrap_or_default();
            health.refused || health.silent_ms.is_some_and(|silent| silent >= millis(TIMING.suspicion))
        }

        fn silent_ms(&self) -> Option<u64> {
            self.table.health(self.now).get(&peer()).and_then(|health| health.silent_ms)
        }
    }

    #[test]
    fn silence_is_suspected_after_the_timeout_and_an_answer_ends_it() {
        let mut f = Fixture::new();
        assert!(f.table.answered(peer(), answer(), f.now), "first word");
        f.pass(999);
        assert_eq!((f.suspected(), f.silent_ms()), (false, Some(999)));
        f.pass(1);
        assert!(f.suspected());
        assert!(f.table.answered(peer(), answer(), f.now), "back is news");
        assert!(!f.table.answered(peer(), answer(), f.now), "the same again is not");
        assert_eq!((f.suspected(), f.silent_ms()), (false, Some(0)));
    }

    #[test]
    fn only_repeated_refusals_count() {
        let mut f = Fixture::new();
        assert_eq!(f.table.refused(peer(), f.now), Refusal::AskAgain);
        f.table.failed(peer());
        assert_eq!(f.table.refused(peer(), f.now), Refusal::AskAgain, "not in a row");
        assert!(!f.suspected());
        assert_eq!(f.table.refused(peer(), f.now), Refusal::Gone);
        assert_eq!(f.table.refused(peer(), f.now), Refusal::StillGone, "told once");
        assert!(f.suspected() && f.table.health(f.now)[&peer()].refused);
        f.table.answered(peer(), answer(), f.now);
        assert!(!f.suspected() && !f.table.health(f.now)[&peer()].refused);
    }

    #[test]
    fn a_pause_of_our_own_is_not_the_peers_silence() {
        let mut f = Fixture::new();
        f.table.answered(peer(), answer(), f.now);
        f.pause(5_000);
        assert_eq!((f.suspected(), f.silent_ms()), (false, Some(0)));
        f.pass(1_000);
        assert!(f.suspected(), "but silence after it is");
    }

    #[test]
    fn a_peer_never_heard_of_is_not_suspected() {
        let mut f = Fixture::new();
        f.table.failed(peer());
        f.pass(60_000);
        assert_eq!((f.suspected(), f.silent_ms()), (false, None));
    }

    #[test]
    fn what_the_peer_says_of_itself_is_kept_as_of_now() {
        let mut f = Fixture::new();
        f.table.answered(peer(), answer(), f.now);
        let down = Answer { postgres_down_ms: Some(20), stopping: true, ..answer() };
        assert!(f.table.answered(peer(), down, f.now));
        f.pass(100);
        let health = f.table.health(f.now).remove(&peer()).unwrap();
        assert_eq!((health.postgres_down_ms, health.stopping), (Some(120), true));
    }

    #[test]
    fn peers_are_asked_more_often_while_one_is_doubtful() {
        let mut f = Fixture::new();
        let hurried = TIMING.interval / HURRY;
        f.table.answered(peer(), answer(), f.now);
        for (ms, pause) in [(499, TIMING.interval), (1, hurried), (1_499, hurried), (1, TIMING.interval)] {
            f.pass(ms);
            assert_eq!(f.table.pause(f.now), pause);
        }
        f.table.answered(peer(), answer(), f.now);
        f.table.refused(peer(), f.now);
        f.table.refused(peer(), f.now);
        assert_eq!(f.table.pause(f.now), hurried);
    }

    #[test]
    fn forgotten_peers_are_gone() {
        let mut f = Fixture::new();
        f.table.answered(peer(), answer(), f.now);
        f.table.retain(&BTreeSet::new());
        assert!(f.table.health(f.now).is_empty());
    }
}
