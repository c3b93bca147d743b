//! Table of what the heartbeats taught, and of what follows from it at a given time. Pure: time is an argument.
//!
//! Silence is counted from a peer's last answer, or from the end of the last pause of our own
//! process if that was later: whoever did not run could not have heard anything either. What the way
//! to a peer has been seen to take (a long line, packets that had to be sent again) does not count as
//! silence: see [`Line`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use manatee_shared::ids::PeerId;

use super::Timing;
use crate::machine::view::PeerHealth;
use crate::status::Heartbeat;

/// Refusals in a row after which a peer's sitter is held to be gone. One may be a restart's
/// accident (a listener that is just being replaced).
const REFUSALS: u32 = 2;

/// A gap between two ticks of more than this many intervals is a pause of this process…
const PAUSE_INTERVALS: u32 = 4;

/// …but never less than this: a busy machine delays tasks by that much.
const LEAST_PAUSE: Duration = Duration::from_millis(400);

/// Number of answers whose times are remembered: as many seconds, about, as a bad line is remembered.
const ANSWERS: usize = 600;

/// A line that has turned bad is known by so many of the last answers: they come the more slowly the worse it is, and
/// would be few among all that are remembered for minutes.
const RECENT: usize = 50;

/// So many in a row that all took long are a long line.
const IN_A_ROW: usize = 10;

/// A lost packet is sent again after the usual round trip and as much again and more (RFC 6298): a
/// line that long explains this many round trips of silence.
const ROUND_TRIPS: u32 = 3;

/// The time that slow answers took explains a silence of this many times that: what was lost once may
/// be lost twice, and TCP waits twice as long each time.
const WORST_TWICE: u32 = 2;

/// So many of a hundred answers, the slowest, say nothing of the line: a busy machine answers late now
/// and then, and must not make the next real failure be found late. A line that loses packets shows
/// more of them.
const HICCUPS_PERCENT: usize = 2;

/// However bad a line is, its peer is suspected after this many times the suspicion timeout.
const MOST_PATIENCE: u32 = 5;

/// Factor by which peers are asked more often while the fate of one is being settled: whether another peer
/// shares a suspicion decides, and is to be known soon.
const HURRY: u32 = 5;

/// Meaning of a refused connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing yet.
    AskAgain,
    /// The peer's sitter is held to be gone from now on.
    Gone,
    /// It was already.
    StillGone,
}

/// Knowledge of one peer.
#[derive(Debug, Default)]
struct Entry {
    /// The last answer and when it came.
    answer: Option<(Instant, Heartbeat)>,
    /// Refused connections in a row.
    refusals: u32,
    /// Moment at which it was found gone by refusals.
    gone: Option<Instant>,
    /// The way to it.
    line: Line,
}

/// Durations of answers lately.
#[derive(Debug, Default)]
struct Line {
    took: VecDeque<Duration>,
    /// The same in order.
    sorted: Vec<Duration>,
}

impl Line {
    fn answered(&mut self, took: Duration) {
        if self.took.len() == ANSWERS
            && let Some(oldest) = self.took.pop_front()
            && let Ok(place) = self.sorted.binary_search(&oldest)
        {
            self.sorted.remove(place);
        }
        self.took.push_back(took);
        let place = self.sorted.partition_point(|other| *other < took);
        self.sorted.insert(place, took);
    }

    /// The greatest of `sorted` that is no hiccup.
    fn slow(sorted: &[Duration]) -> Option<Duration> {
        let hiccups = sorted.len() * HICCUPS_PERCENT / 100;
        sorted.len().checked_sub(hiccups + 1).and_then(|place| sorted.get(place)).copied()
    }

    /// The last `count`, or none if there were fewer.
    fn last(&self, count: usize) -> impl Iterator<Item = Duration> {
        let skipped = self.took.len().checked_sub(count).unwrap_or(self.took.len());
        self.took.iter().skip(skipped).copied()
    }

    /// Silence after which the peer is to be suspected.
    fn patience(&self, timing: Timing) -> Duration {
        let mut recent: Vec<_> = self.last(RECENT).collect();
        recent.sort_unstable();
        let Some(slow) = Self::slow(&self.sorted).max(Self::slow(&recent)) else { return timing.suspicion };
        let least = self.sorted.first().copied().max(self.last(IN_A_ROW).min()).unwrap_or_default();
        let long = timing.suspicion + least * ROUND_TRIPS;
        let unsteady = timing.interval + slow * WORST_TWICE;
        long.max(unsteady).min(timing.suspicion * MOST_PATIENCE)
    }
}

/// Knowledge of all peers.
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

    /// `peer` answered what it was asked at `asked`. Returns whether that says something that the
    /// driver should look at.
    pub fn answered(&mut self, peer: PeerId, answer: Heartbeat, asked: Instant, now: Instant) -> bool {
        self.tick(now);
        let timing = self.timing;
        let entry = self.peers.entry(peer).or_default();
        let patience = entry.line.patience(timing);
        let back = entry.refusals >= REFUSALS
            || entry.answer.as_ref().is_none_or(|(at, _)| now.saturating_duration_since(*at) >= patience);
        if self.resumed.is_none_or(|resumed| resumed < asked) {
            entry.line.answered(now.saturating_duration_since(asked));
        }
        // What moves all the time is no news.
        let word = |answer: &Heartbeat| Heartbeat {
            postgres_down_ms: answer.postgres_down_ms.map(|_| 0),
            unready_ms: answer.unready_ms.map(|_| 0),
            wal: None,
            ..answer.clone()
        };
        let news = back || entry.answer.as_ref().is_none_or(|(_, old)| word(old) != word(&answer));
        (entry.answer, entry.refusals, entry.gone) = (Some((now, answer)), 0, None);
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

    /// Pause before a peer is asked again.
    pub fn pause(&self, now: Instant) -> Duration {
        let (half, twice) = (millis(self.timing.suspicion / 2), millis(self.timing.suspicion * 2));
        let unsettled = |entry: &Entry| {
            let gone = entry.gone.is_some_and(|at| now.saturating_duration_since(at) < self.timing.suspicion);
            let silence = |at| self.silence(at, now).saturating_sub(self.explained_ms(entry));
            gone || entry.answer.as_ref().is_some_and(|(at, _)| (half..twice).contains(&silence(*at)))
        };
        if self.peers.values().any(unsettled) { self.timing.interval / HURRY } else { self.timing.interval }
    }

    /// Health of each peer at `now`.
    pub fn health(&self, now: Instant) -> BTreeMap<PeerId, PeerHealth> {
        self.peers.iter().map(|(peer, entry)| (*peer, self.health_of(entry, now))).collect()
    }

    fn health_of(&self, entry: &Entry, now: Instant) -> PeerHealth {
        let mut health = PeerHealth { refused: entry.refusals >= REFUSALS, ..PeerHealth::default() };
        if let Some((at, answer)) = &entry.answer {
            let since_answer = millis(now.saturating_duration_since(*at));
            health.explained_ms = self.explained_ms(entry);
            health.silent_ms = Some(self.silence(*at, now).saturating_sub(health.explained_ms));
            health.postgres_down_ms = answer.postgres_down_ms.map(|down| down + since_answer);
            health.unready_ms = answer.unready_ms.map(|unready| unready + since_answer);
            health.stopping = answer.stopping;
            health.suspects = answer.suspects.clone();
            health.data = answer.data.clone();
            health.streaming = answer.streaming;
            health.generation = answer.generation;
            health.older = answer.older;
            health.wal = answer.wal.clone();
            health.newest_generation = answer.newest_generation;
            health.capacities = answer.capacities;
        }
        health
    }

    /// Silence (ms) that the way to the peer explains.
    fn explained_ms(&self, entry: &Entry) -> u64 {
        millis(entry.line.patience(self.timing).saturating_sub(self.timing.suspicion))
    }

    /// Longest wait for an answer of `peer` that is worth it: one that comes later changes nothing.
    pub fn patience(&self, peer: PeerId) -> Duration {
        self.peers.get(&peer).map_or(self.timing.suspicion, |entry| entry.line.patience(self.timing))
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
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    #![allow(clippy::disallowed_methods, reason = "tests need a moment to count from")]
    use super::*;

    const TIMING: Timing = Timing { interval: Duration::from_millis(100), suspicion: Duration::from_secs(1) };

    fn peer() -> PeerId {
        "10.0.0.1:5432:12345".parse().unwrap()
    }

    fn answer() -> Heartbeat {
        Heartbeat {
            id: peer(),
            stopping: false,
            postgres_down_ms: None,
            unready_ms: None,
            suspects: BTreeSet::new(),
            data: None,
            streaming: None,
            generation: None,
            older: false,
            wal: None,
            newest_generation: None,
            capacities: None,
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
        assert!(f.table.answered(peer(), answer(), f.now, f.now), "first word");
        f.pass(999);
        assert_eq!((f.suspected(), f.silent_ms()), (false, Some(999)));
        f.pass(1);
        assert!(f.suspected());
        assert!(f.table.answered(peer(), answer(), f.now, f.now), "back is news");
        assert!(!f.table.answered(peer(), answer(), f.now, f.now), "the same again is not");
        assert_eq!((f.suspected(), f.silent_ms()), (false, Some(0)));
    }

    #[test]
    fn a_long_or_lossy_line_earns_patience_and_loses_it_again() {
        let mut f = Fixture::new();
        let suspected_after = |f: &mut Fixture| {
            let begin = f.now;
            while !f.suspected() {
                f.pass(10);
            }
            millis(f.now - begin)
        };
        let answer_after = |f: &mut Fixture, ms: u64| {
            let asked = f.now;
            f.pass(ms);
            f.table.answered(peer(), answer(), asked, f.now);
        };
        answer_after(&mut f, 1);
        assert_eq!(suspected_after(&mut f), 1_010, "a millisecond's line");
        answer_after(&mut f, 700);
        assert_eq!(suspected_after(&mut f), 1_500, "a packet was lost and sent again");
        answer_after(&mut f, 20_000);
        assert_eq!(suspected_after(&mut f), 5_000, "bounded");
        for _ in 0..ANSWERS {
            answer_after(&mut f, 400);
        }
        assert_eq!(suspected_after(&mut f), 2_200, "a long line; what was before is forgotten");
        for number in 0..ANSWERS {
            // Two of a hundred are late.
            answer_after(&mut f, if number % 50 == 0 { 900 } else { 1 });
        }
        assert_eq!(suspected_after(&mut f), 1_010, "hiccups");
        for _ in 0..IN_A_ROW {
            answer_after(&mut f, 400);
        }
        assert_eq!(suspected_after(&mut f), 2_200, "long from one moment to the next");
        for number in 0..RECENT {
            answer_after(&mut f, if number % 10 == 0 { 1_200 } else { 400 });
        }
        assert_eq!(suspected_after(&mut f), 2_500, "and lossy");
        for number in 0..ANSWERS {
            answer_after(&mut f, if number % 20 == 0 { 900 } else { 1 });
        }
        assert_eq!(suspected_after(&mut f), 1_900, "a line that loses packets");
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
        f.table.answered(peer(), answer(), f.now, f.now);
        assert!(!f.suspected() && !f.table.health(f.now)[&peer()].refused);
    }

    #[test]
    fn a_pause_of_our_own_is_not_the_peers_silence() {
        let mut f = Fixture::new();
        f.table.answered(peer(), answer(), f.now, f.now);
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
        f.table.answered(peer(), answer(), f.now, f.now);
        let down = Heartbeat { postgres_down_ms: Some(20), stopping: true, ..answer() };
        assert!(f.table.answered(peer(), down, f.now, f.now));
        f.pass(100);
        let health = f.table.health(f.now).remove(&peer()).unwrap();
        assert_eq!((health.postgres_down_ms, health.stopping), (Some(120), true));
    }

    #[test]
    fn peers_are_asked_more_often_while_one_is_doubtful() {
        let mut f = Fixture::new();
        let hurried = TIMING.interval / HURRY;
        f.table.answered(peer(), answer(), f.now, f.now);
        for (ms, pause) in [(499, TIMING.interval), (1, hurried), (1_499, hurried), (1, TIMING.interval)] {
            f.pass(ms);
            assert_eq!(f.table.pause(f.now), pause);
        }
        f.table.answered(peer(), answer(), f.now, f.now);
        f.table.refused(peer(), f.now);
        f.table.refused(peer(), f.now);
        assert_eq!(f.table.pause(f.now), hurried);
    }

    #[test]
    fn forgotten_peers_are_gone() {
        let mut f = Fixture::new();
        f.table.answered(peer(), answer(), f.now, f.now);
        f.table.retain(&BTreeSet::new());
        assert!(f.table.health(f.now).is_empty());
    }
}
