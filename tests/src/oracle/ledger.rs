//! Record of what the oracle's sessions saw, and the figures drawn from it. No I/O.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

/// Identity of a written row: writer and sequence number.
pub type Row = (i32, i64);

/// From the question to the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Moment at which the client began.
    pub begin: Instant,
    /// Moment at which it had its answer.
    pub end: Instant,
}

/// Activity of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Inserting, or logging in to do so.
    Write,
    /// Selecting, or logging in to do so.
    Read,
}

/// Failure of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// SQLSTATE, or `connection`, `login …`, `timeout`.
    pub code: String,
    /// Whether the session was lost with it.
    pub dropped: bool,
}

/// Fate of a failed write, as far as the client was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Certainly not committed: the row must not be there.
    Refused,
    /// Perhaps.
    InDoubt,
}

/// Shared among the oracle's sessions.
#[derive(Debug)]
pub struct Ledger {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    acknowledged: HashMap<Row, Span>,
    refused: HashSet<Row>,
    round: Round,
}

#[derive(Debug)]
struct Round {
    writes: Progress,
    reads: Progress,
    errors: BTreeMap<(Kind, String), u64>,
    dropped: u64,
    stale: Vec<String>,
}

#[derive(Debug)]
struct Progress {
    count: u64,
    last: Instant,
    gap: Duration,
    longest: Duration,
}

impl Progress {
    fn new(begin: Instant) -> Self {
        Self { count: 0, last: begin, gap: Duration::ZERO, longest: Duration::ZERO }
    }

    fn success(&mut self, begin: Instant, end: Instant) {
        self.count += 1;
        self.gap = self.gap.max(end.saturating_duration_since(self.last));
        self.last = self.last.max(end);
        self.longest = self.longest.max(end.saturating_duration_since(begin));
    }

    /// Longest time without a success, up to `now`.
    fn gap_until(&self, now: Instant) -> f64 {
        seconds(self.gap.max(now.saturating_duration_since(self.last)))
    }
}

/// Figures of one round.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures {
    /// Writes acknowledged.
    pub writes: u64,
    /// Reads answered.
    pub reads: u64,
    /// Longest time in which nobody's write was acknowledged.
    pub write_gap_s: f64,
    /// Longest time in which nobody's read was answered.
    pub read_gap_s: f64,
    /// Longest single write that succeeded.
    pub longest_write_s: f64,
    /// Longest single read that succeeded.
    pub longest_read_s: f64,
    /// Writes that failed.
    pub write_errors: u64,
    /// Reads that failed.
    pub read_errors: u64,
    /// Sessions lost.
    pub dropped: u64,
    /// Reads that missed the session's own write or went back in time.
    pub stale: u64,
    /// Errors by kind: `write 40001`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub errors: BTreeMap<String, u64>,
    /// The first stale reads, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stale_reads: Vec<String>,
}

impl Figures {
    /// The worst of both: gaps by their maximum, counts by their sum.
    pub fn merge(&mut self, other: &Self) {
        self.writes += other.writes;
        self.reads += other.reads;
        self.write_gap_s = self.write_gap_s.max(other.write_gap_s);
        self.read_gap_s = self.read_gap_s.max(other.read_gap_s);
        self.longest_write_s = self.longest_write_s.max(other.longest_write_s);
        self.longest_read_s = self.longest_read_s.max(other.longest_read_s);
        self.write_errors += other.write_errors;
        self.read_errors += other.read_errors;
        self.dropped += other.dropped;
        self.stale += other.stale;
        for (kind, count) in &other.errors {
            *self.errors.entry(kind.clone()).or_default() += count;
        }
        self.stale_reads.extend(other.stale_reads.iter().cloned());
        self.stale_reads.truncate(MAX_EXAMPLES);
    }
}

/// Stale reads described.
const MAX_EXAMPLES: usize = 5;

impl Ledger {
    /// An empty one; its first round begins `now`.
    pub fn new(now: Instant) -> Self {
        let inner = Inner { acknowledged: HashMap::new(), refused: HashSet::new(), round: Round::new(now) };
        Self { inner: Mutex::new(inner) }
    }

    /// A write was acknowledged.
    pub fn acknowledged(&self, row: Row, begin: Instant, end: Instant) {
        let mut inner = self.lock();
        inner.acknowledged.insert(row, Span { begin, end });
        inner.round.writes.success(begin, end);
    }

    /// A read was answered.
    pub fn read(&self, begin: Instant, end: Instant) {
        self.lock().round.reads.success(begin, end);
    }

    /// A write failed.
    pub fn write_failed(&self, row: Row, failure: &Failure, outcome: Outcome) {
        let mut inner = self.lock();
        if outcome == Outcome::Refused {
            inner.refused.insert(row);
        }
        inner.round.failed(Kind::Write, failure);
    }

    /// A read, or a login, failed.
    pub fn failed(&self, kind: Kind, failure: &Failure) {
        self.lock().round.failed(kind, failure);
    }

    /// A read contradicted what the session knew.
    pub fn stale(&self, what: String) {
        self.lock().round.stale.push(what);
    }

    /// Begins a new round at `now`; the rows are kept.
    pub fn begin_round(&self, now: Instant) {
        self.lock().round = Round::new(now);
    }

    /// Figures of the round up to `now`.
    pub fn figures(&self, now: Instant) -> Figures {
        let inner = self.lock();
        let round = &inner.round;
        let of = |kind| round.errors.iter().filter(|((k, _), _)| *k == kind).map(|(_, count)| count).sum();
        let name = |kind: Kind| if kind == Kind::Write { "write" } else { "read" };
        Figures {
            writes: round.writes.count,
            reads: round.reads.count,
            write_gap_s: round.writes.gap_until(now),
            read_gap_s: round.reads.gap_until(now),
            longest_write_s: seconds(round.writes.longest),
            longest_read_s: seconds(round.reads.longest),
            write_errors: of(Kind::Write),
            read_errors: of(Kind::Read),
            dropped: round.dropped,
            stale: round.stale.len() as u64,
            errors: round.errors.iter().map(|((k, code), count)| (format!("{} {code}", name(*k)), *count)).collect(),
            stale_reads: round.stale.iter().take(MAX_EXAMPLES).cloned().collect(),
        }
    }

    /// All rows acknowledged so far, and all of which it was said that they were not written.
    pub fn rows(&self) -> (HashMap<Row, Span>, HashSet<Row>) {
        let inner = self.lock();
        (inner.acknowledged.clone(), inner.refused.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Round {
    fn new(begin: Instant) -> Self {
        Self {
            writes: Progress::new(begin),
            reads: Progress::new(begin),
            errors: BTreeMap::new(),
            dropped: 0,
            stale: Vec::new(),
        }
    }

    fn failed(&mut self, kind: Kind, failure: &Failure) {
        *self.errors.entry((kind, failure.code.clone())).or_default() += 1;
        self.dropped += u64::from(failure.dropped);
    }
}

/// Seconds to the millisecond, as the figures are printed.
pub fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(begin: Instant, ms: u64) -> Instant {
        begin + Duration::from_millis(ms)
    }

    #[test]
    fn a_gap_counts_from_the_beginning_and_up_to_now() {
        let begin = Instant::now();
        let ledger = Ledger::new(begin);
        ledger.acknowledged((1, 1), at(begin, 300), at(begin, 400));
        ledger.acknowledged((1, 2), at(begin, 410), at(begin, 500));
        assert_eq!(ledger.figures(at(begin, 600)).write_gap_s, 0.4);
        assert_eq!(ledger.figures(at(begin, 1500)).write_gap_s, 1.0);
        assert_eq!(ledger.figures(at(begin, 1500)).read_gap_s, 1.5);
        ledger.begin_round(at(begin, 1500));
        assert_eq!(ledger.figures(at(begin, 1600)).write_gap_s, 0.1);
        assert_eq!(ledger.rows().0.len(), 2);
    }

    #[test]
    fn failures_are_counted_by_kind_and_code() {
        let begin = Instant::now();
        let ledger = Ledger::new(begin);
        let refused = Failure { code: "40001".to_owned(), dropped: false };
        let lost = Failure { code: "connection".to_owned(), dropped: true };
        ledger.write_failed((1, 1), &refused, Outcome::Refused);
        ledger.write_failed((1, 2), &lost, Outcome::InDoubt);
        ledger.failed(Kind::Read, &lost);
        ledger.stale("missed its own write".to_owned());
        let mut figures = ledger.figures(begin);
        assert_eq!((figures.write_errors, figures.read_errors, figures.dropped, figures.stale), (2, 1, 2, 1));
        assert_eq!(figures.errors["write 40001"], 1);
        assert_eq!(ledger.rows().1, HashSet::from([(1, 1)]));
        let again = figures.clone();
        figures.merge(&again);
        assert_eq!((figures.write_errors, figures.errors["write 40001"]), (4, 2));
    }
}
