//! Failed logins are counted after the proof was judged, and answered more slowly once there are many: each
//! address has so many for each role, and ten times as many for all roles together, that are answered at once;
//! one is forgiven every so often. A right proof is never kept waiting: neither by the failures of others who
//! share its address, nor by its own. Bounded: with more addresses than that the one that failed longest ago is
//! forgotten. Pure: the time is an argument.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Addresses and roles remembered at most: about a megabyte.
const MAX_ENTRIES: usize = 16_384;
/// An address has so many times the failures of one role.
const ADDRESS_FACTOR: u32 = 10;
/// Longest time that an answer is held back: a person who mistypes waits no longer, a program that guesses does
/// so for each guess.
pub(crate) const MAX_DELAY: Duration = Duration::from_secs(2);

/// The limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limit {
    /// Failures for one role from one address that are answered at once; 0: all of them.
    pub(super) burst: u32,
    /// One of them is forgiven after this.
    pub(super) forgiven_after: Duration,
}

/// A role: its shard and its name.
type Role<'a> = (&'a str, &'a str);

/// An address, and a hash of the role; 0 for all roles. An IPv6 host has a whole /64.
type Key = (IpAddr, u64);

/// Failed logins of each role and address.
#[derive(Debug, Default)]
pub(super) struct Failures {
    /// The limit this was counted under: another one begins anew.
    limit: Option<Limit>,
    /// Moment at which all failures will have been forgiven.
    until: HashMap<Key, Instant>,
}

fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from(u128::from(address) >> 64 << 64)),
        v4 => v4,
    }
}

fn keys(address: IpAddr, role: Role<'_>) -> [(Key, u32); 2] {
    let mut hasher = std::hash::DefaultHasher::new();
    role.hash(&mut hasher);
    let address = network(address);
    [((address, hasher.finish() | 1), 1), ((address, 0), ADDRESS_FACTOR)]
}

impl Failures {
    /// Notes a failure; the time by which its answer is to be held back.
    pub(super) fn note(&mut self, address: IpAddr, role: Role<'_>, limit: Limit, now: Instant) -> Duration {
        if limit.burst == 0 {
            return Duration::ZERO;
        }
        if self.limit != Some(limit) {
            self.until.clear();
            self.limit = Some(limit);
        }
        let allowed = limit.forgiven_after.saturating_mul(limit.burst);
        let delays = keys(address, role).map(|(key, factor)| {
            if self.until.len() >= MAX_ENTRIES && !self.until.contains_key(&key) {
                self.make_room(now);
            }
            let until = self.until.entry(key).or_insert(now);
            // Each failure adds its own time. More than the longest delay is not remembered: who stops failing is
            // soon answered at once again.
            let left = until.saturating_duration_since(now) + limit.forgiven_after / factor;
            let left = left.min(allowed + MAX_DELAY);
            *until = now + left;
            left.saturating_sub(allowed)
        });
        delays.into_iter().max().unwrap_or_default()
    }

    /// Forgets who is forgiven, or else the quarter that would be next: seldom, and all at once.
    fn make_room(&mut self, now: Instant) {
        self.until.retain(|_, until| *until > now);
        if self.until.len() < MAX_ENTRIES {
            return;
        }
        let mut times: Vec<Instant> = self.until.values().copied().collect();
        let quarter = times.len() / 4;
        let (_, last, _) = times.select_nth_unstable(quarter);
        let last = *last;
        self.until.retain(|_, until| *until > last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Limit = Limit { burst: 5, forgiven_after: Duration::from_secs(10) };

    fn address(text: &str) -> IpAddr {
        text.parse().expect("address")
    }

    /// Fails so often; the delay of the last one.
    fn fail(failures: &mut Failures, from: &str, role: &str, times: usize, now: Instant) -> Duration {
        let mut delay = Duration::ZERO;
        for _ in 0..times {
            delay = failures.note(address(from), ("demo", role), LIMIT, now);
        }
        delay
    }

    #[test]
    fn a_burst_is_answered_at_once_and_time_forgives() {
        let (mut failures, now, here) = (Failures::default(), Instant::now(), "10.0.0.1");
        assert_eq!(fail(&mut failures, here, "alice", 5, now), Duration::ZERO);
        assert_eq!(fail(&mut failures, here, "alice", 1, now), MAX_DELAY);
        assert_eq!(fail(&mut failures, here, "bob", 1, now), Duration::ZERO, "another role");
        assert_eq!(fail(&mut failures, "10.0.0.2", "alice", 1, now), Duration::ZERO, "another address");
        let others = failures.note(address(here), ("other", "alice"), LIMIT, now);
        assert_eq!(others, Duration::ZERO, "a role of that name in another shard");
        let later = now + LIMIT.forgiven_after;
        assert!(fail(&mut failures, here, "alice", 1, later) > Duration::ZERO, "one is forgiven, not all");
        let later = now + LIMIT.forgiven_after * 3 + MAX_DELAY;
        assert_eq!(fail(&mut failures, here, "alice", 1, later), Duration::ZERO);
    }

    #[test]
    fn other_limits_and_none_begin_anew() {
        let (mut failures, now, here) = (Failures::default(), Instant::now(), "10.0.0.1");
        assert_eq!(fail(&mut failures, here, "alice", 9, now), MAX_DELAY);
        let mut note = |limit| failures.note(address(here), ("demo", "alice"), limit, now);
        assert_eq!(note(Limit { burst: 0, ..LIMIT }), Duration::ZERO);
        assert_eq!(note(Limit { burst: 1, ..LIMIT }), Duration::ZERO);
        assert_eq!(note(Limit { burst: 1, ..LIMIT }), MAX_DELAY);
    }

    #[test]
    fn no_delay_is_longer_than_the_longest_and_none_outlasts_the_failures() {
        let (mut failures, now, here) = (Failures::default(), Instant::now(), "10.0.0.1");
        assert_eq!(fail(&mut failures, here, "alice", 10_000, now), MAX_DELAY);
        let later = now + MAX_DELAY + LIMIT.forgiven_after;
        assert_eq!(fail(&mut failures, here, "alice", 1, later), Duration::ZERO);
    }

    #[test]
    fn guessing_names_is_slowed_too() {
        let (mut failures, now, here) = (Failures::default(), Instant::now(), "10.0.0.1");
        for number in 0..50 {
            assert_eq!(fail(&mut failures, here, &format!("user{number}"), 1, now), Duration::ZERO);
        }
        assert!(fail(&mut failures, here, "another", 2, now) > Duration::ZERO);
        assert_eq!(fail(&mut failures, "10.0.0.2", "another", 1, now), Duration::ZERO);
    }

    #[test]
    fn a_network_of_ipv6_is_one_address_and_memory_is_bounded() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        for host in 0..5 {
            fail(&mut failures, &format!("fd00::{host:x}"), "alice", 1, now);
        }
        assert!(fail(&mut failures, "fd00::ffff", "alice", 1, now) > Duration::ZERO);
        for host in 0..MAX_ENTRIES as u32 {
            failures.note(IpAddr::V4((0x0A00_0000 + host).into()), ("demo", "alice"), LIMIT, now);
        }
        assert!(failures.until.len() <= MAX_ENTRIES);
    }
}
