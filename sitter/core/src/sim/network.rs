//! The network between hosts and to ZooKeeper: what is cut, late or lost.

use super::postgres::MOST_PEERS;

/// TCP's least retransmission timeout, ms.
const RETRANSMISSION_MS: u64 = 200;

#[derive(Clone, Copy, Debug)]
pub(super) struct Flapping {
    pub(super) who: usize,
    pub(super) zk: bool,
    pub(super) up_ms: u64,
    pub(super) down_ms: u64,
    pub(super) until: u64,
    pub(super) next: u64,
    pub(super) down: bool,
}

#[derive(Debug, Default)]
pub(super) struct Network {
    /// Until when each directed link loses everything.
    cuts: [[u64; MOST_PEERS]; MOST_PEERS],
    zk_cuts: [u64; MOST_PEERS],
    pub(super) zk_down_until: u64,
    /// Each packet takes this much longer…
    pub(super) delay_ms: u64,
    /// …and is lost this often, of 100…
    pub(super) loss_percent: u8,
    /// …until then.
    pub(super) bad_until: u64,
    pub(super) flapping: Option<Flapping>,
}

impl Network {
    /// Whether packets get from one host to the other.
    pub(super) fn passes(&self, now: u64, from: usize, to: usize) -> bool {
        self.cuts[from][to] <= now
    }

    pub(super) fn passes_to_zk(&self, now: u64, host: usize) -> bool {
        self.zk_down_until <= now && self.zk_cuts[host] <= now
    }

    pub(super) fn cut(&mut self, from: usize, to: usize, until: u64) {
        if from != to {
            self.cuts[from][to] = self.cuts[from][to].max(until);
        }
    }

    pub(super) fn cut_zk(&mut self, host: usize, until: u64) {
        self.zk_cuts[host] = self.zk_cuts[host].max(until);
    }

    pub(super) fn heal(&mut self) {
        *self = Self::default();
    }

    /// A link that goes down and up.
    pub(super) fn flap(&mut self, now: u64, peers: usize) {
        let Some(mut flapping) = self.flapping.filter(|flapping| flapping.next <= now) else { return };
        if now >= flapping.until {
            self.flapping = None;
            return;
        }
        flapping.down = !flapping.down;
        flapping.next = now + if flapping.down { flapping.down_ms } else { flapping.up_ms };
        if flapping.down {
            for other in 0..peers {
                self.cut(flapping.who, other, flapping.next);
                self.cut(other, flapping.who, flapping.next);
            }
            if flapping.zk {
                self.cut_zk(flapping.who, flapping.next);
            }
        }
        self.flapping = Some(flapping);
    }

    /// Duration of a message of a TCP connection, ms. What follows it shows a first loss after a
    /// round trip (RFC 5681, fast retransmit) if there is a flow; each further try waits twice as long.
    pub(super) fn latency(&self, now: u64, flows: bool, rng: &mut fastrand::Rng) -> u64 {
        if now >= self.bad_until {
            return rng.u64(0..15);
        }
        let mut latency = self.delay_ms + rng.u64(0..10 + self.delay_ms / 10);
        // As Linux does it: the timeout is a round trip and a bit, and never less than 200 ms.
        let mut timeout = (2 * self.delay_ms + RETRANSMISSION_MS).max(RETRANSMISSION_MS);
        if flows && rng.u8(0..100) < self.loss_percent {
            latency += 2 * self.delay_ms;
        } else if flows {
            return latency;
        }
        while rng.u8(0..100) < self.loss_percent && timeout < 60_000 {
            latency += timeout;
            timeout *= 2;
        }
        latency
    }
}
