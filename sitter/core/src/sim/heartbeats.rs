//! Heartbeats over the simulated network: the real table, and the polling as its driver does it.

use std::time::Duration;

use super::host::TIMING;
use super::postgres::{number, peer_id};
use super::world::World;
use crate::heartbeat::table::Refusal;
use crate::status::Heartbeat;

/// Pause before a refused connection is tried once more, ms.
const RETRY_AFTER_REFUSAL_MS: u64 = 20;

/// Result of a question.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    Answered,
    Refused,
    /// Nothing in time.
    Failed,
}

/// The questions to one peer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Poll {
    asks: u64,
    /// Moment at which the last question is settled, and its result.
    pending: Option<(u64, Outcome)>,
    /// Moment at which that was asked.
    asked: u64,
    connected: bool,
}

impl Poll {
    pub(super) const fn new() -> Self {
        Self { asks: 0, pending: None, asked: 0, connected: false }
    }
}

impl World {
    /// Delivers to every sitter the answers of every other.
    pub(super) fn heartbeats(&mut self) {
        for from in 0..self.hosts.len() {
            for to in 0..self.hosts.len() {
                if from != to {
                    self.poll(from, to);
                }
            }
        }
    }

    fn poll(&mut self, from: usize, to: usize) {
        let now = self.now;
        let Some(sitter) = self.hosts[from].sitter.as_mut().filter(|sitter| sitter.paused_until <= now) else { return };
        let poll = &mut sitter.polls[to];
        match poll.pending {
            Some((at, outcome)) if at <= now => {
                poll.pending = None;
                self.settle(from, to, outcome);
            }
            None if poll.asks <= now => {
                let connected = poll.connected;
                let (at, outcome, asked) = self.ask(from, to, connected);
                if let Some(sitter) = self.hosts[from].sitter.as_mut() {
                    sitter.polls[to].pending = Some((at, outcome));
                    sitter.polls[to].asked = asked;
                }
            }
            _ => {}
        }
    }

    /// End of a question asked now, and the moment it gets to be asked: after the connection's set-up.
    fn ask(&mut self, from: usize, to: usize, connected: bool) -> (u64, Outcome, u64) {
        let now = self.now;
        let asker = self.hosts[from].sitter.as_ref();
        let longest = millis(asker.map_or(TIMING.suspicion, |sitter| sitter.table.patience(peer_id(to))));
        let timeout = now + longest;
        let silent = (timeout, Outcome::Failed, now);
        if !self.linked(from, to) {
            return silent;
        }
        let mut round_trip =
            || self.network.latency(now, false, &mut self.rng) + self.network.latency(now, false, &mut self.rng);
        let Some(other) = &self.hosts[to].sitter else { return (now + round_trip(), Outcome::Refused, now) };
        if other.paused_until > now || other.answer.is_none() {
            return silent;
        }
        // The connection's set-up has a timeout of its own.
        let connect_ms = if connected { 0 } else { round_trip() };
        let answer_ms = round_trip();
        if connect_ms > longest {
            return silent;
        }
        if answer_ms > longest {
            return (now + connect_ms + longest, Outcome::Failed, now);
        }
        (now + connect_ms + answer_ms, Outcome::Answered, now + connect_ms)
    }

    fn settle(&mut self, from: usize, to: usize, outcome: Outcome) {
        let now = self.now;
        let at = self.base + Duration::from_millis(now);
        let linked = self.linked(from, to);
        let answer: Option<Option<Heartbeat>> = self.hosts[to].sitter.as_ref().map(|sitter| sitter.answer.clone());
        let late = self.rng.u64(0..30);
        let Some(sitter) = self.hosts[from].sitter.as_mut() else { return };
        let peer = peer_id(to);
        let poll = &mut sitter.polls[to];
        let mut news = false;
        match (outcome, answer) {
            (Outcome::Answered, Some(Some(answer))) if linked => {
                poll.connected = true;
                let asked = self.base + Duration::from_millis(poll.asked);
                news = sitter.table.answered(peer, answer, asked, at);
                poll.asks = now + millis(sitter.table.pause(at));
            }
            // Its process ended meanwhile: the connection is reset.
            (Outcome::Answered | Outcome::Refused, None) if linked => {
                poll.connected = false;
                poll.asks = now
                    + match sitter.table.refused(peer, at) {
                        Refusal::AskAgain => RETRY_AFTER_REFUSAL_MS,
                        Refusal::Gone => {
                            news = true;
                            millis(TIMING.interval)
                        }
                        Refusal::StillGone => millis(TIMING.interval),
                    };
            }
            _ => {
                poll.connected = false;
                sitter.table.failed(peer);
                poll.asks = now + millis(TIMING.interval);
            }
        }
        if news {
            sitter.decides = sitter.decides.min(now + late);
            // What this one thinks of it now is asked at once.
            sitter
                .polls
                .iter_mut()
                .filter(|poll| poll.asks != u64::MAX)
                .for_each(|poll| poll.asks = poll.asks.min(now));
        }
    }

    /// Forgets those that the sitter does not follow any more.
    pub(super) fn follow(&mut self, index: usize) {
        let Some(sitter) = self.hosts[index].sitter.as_mut() else { return };
        let peers = sitter.follows();
        for (other, poll) in sitter.polls.iter_mut().enumerate() {
            if other != index {
                let followed = peers.contains(&peer_id(other));
                poll.asks = match (followed, poll.asks) {
                    (false, _) => u64::MAX,
                    (true, u64::MAX) => self.now,
                    (true, asks) => asks,
                };
                if !followed {
                    poll.pending = None;
                }
            }
        }
        sitter.table.retain(&peers);
        debug_assert!(peers.iter().all(|peer| number(*peer) < sitter.polls.len()));
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
