//! Failed logins are limited: each address has so many for each role, and ten times as many for all
//! roles together; one is forgiven every so often. Whoever has used theirs up is refused before being
//! asked anything. Bounded: with more addresses than that the one that failed longest ago is forgotten.
//! Pure: the time is an argument.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Addresses and roles remembered at most: about a megabyte.
const MAX_ENTRIES: usize = 16_384;
/// An address has so many times the failures of one role.
const ADDRESS_FACTOR: u32 = 10;

/// The limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limit {
    /// Failures for one role from one address at once; 0: no limit.
    pub(super) burst: u32,
    /// One is forgiven after this.
    pub(super) forgiven_after: Duration,
}

/// A role: its shard and its name.
type Role<'a> = (&'a str, &'a str);

/// An address, and a hash of the role; 0 for all roles. An IPv6 host has a whole /64.
type Key = (IpAddr, u64);

/// Who has failed how often.
#[derive(Debug, Default)]
pub(super) struct Failures {
    /// The limit this was counted under: another one begins anew.
    limit: Option<Limit>,
    /// When all failures will have been forgiven.
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
    /// Notes a failure.
    pub(super) fn note(&mut self, address: IpAddr, role: Role<'_>, limit: Limit, now: Instant) {
        if self.limit != Some(limit) {
            self.until.clear();
            self.limit = Some(limit);
        }
        for (key, factor) in keys(address, role) {
            if self.until.len() >= MAX_ENTRIES && !self.until.contains_key(&key) {
                self.make_room(now);
            }
            let until = self.until.entry(key).or_insert(now);
            *until = (*until).max(now) + limit.forgiven_after / factor;
        }
    }

    /// Forgets a role's failures from there: it has proved itself.
    pub(super) fn forgive(&mut self, address: IpAddr, role: Role<'_>) {
        let [(key, _), _] = keys(address, role);
        self.until.remove(&key);
    }

    /// How long they have to wait before they may try again, if they have.
    pub(super) fn wait(&self, address: IpAddr, role: Role<'_>, limit: Limit, now: Instant) -> Option<Duration> {
        if limit.burst == 0 || self.limit != Some(limit) {
            return None;
        }
        // Each failure adds its own time: more than the burst's time left is more than the burst.
        let allowed = limit.forgiven_after * limit.burst;
        let waits = keys(address, role).map(|(key, factor)| {
            let left = self.until.get(&key)?.saturating_duration_since(now);
            // Half of one failure's time: so that the last one allowed is.
            let most = allowed.saturating_sub(limit.forgiven_after / factor / 2);
            left.checked_sub(most).filter(|wait| !wait.is_zero())
        });
        waits.into_iter().flatten().max()
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

    #[test]
    fn a_burst_is_allowed_and_time_forgives() {
        let (mut failures, now, here) = (Failures::default(), Instant::now(), address("10.0.0.1"));
        for _ in 0..5 {
            assert_eq!(failures.wait(here, ("demo", "alice"), LIMIT, now), None);
            failures.note(here, ("demo", "alice"), LIMIT, now);
        }
        assert!(failures.wait(here, ("demo", "alice"), LIMIT, now).is_some());
        assert_eq!(failures.wait(here, ("demo", "bob"), LIMIT, now), None, "another role");
        assert_eq!(failures.wait(here, ("other", "alice"), LIMIT, now), None, "another shard's");
        assert_eq!(failures.wait(address("10.0.0.2"), ("demo", "alice"), LIMIT, now), None, "another address");
        assert_eq!(failures.wait(here, ("demo", "alice"), LIMIT, now + Duration::from_secs(10)), None);
        failures.note(here, ("demo", "alice"), LIMIT, now + Duration::from_secs(10));
        assert!(failures.wait(here, ("demo", "alice"), LIMIT, now + Duration::from_secs(10)).is_some());
        failures.forgive(here, ("demo", "alice"));
        assert_eq!(failures.wait(here, ("demo", "alice"), LIMIT, now), None);
        for _ in 0..6 {
            failures.note(here, ("demo", "alice"), LIMIT, now);
        }
        assert!(failures.wait(here, ("demo", "alice"), LIMIT, now).is_some());
        assert_eq!(failures.wait(here, ("demo", "alice"), Limit { burst: 0, ..LIMIT }, now), None, "no limit");
        assert_eq!(failures.wait(here, ("demo", "alice"), Limit { burst: 4, ..LIMIT }, now), None, "another limit");
    }

    #[test]
    fn guessing_names_is_limited_too() {
        let (mut failures, now, here) = (Failures::default(), Instant::now(), address("10.0.0.1"));
        for number in 0..49 {
            failures.note(here, ("demo", &format!("user{number}")), LIMIT, now);
        }
        assert_eq!(failures.wait(here, ("demo", "another"), LIMIT, now), None);
        for number in 49..60 {
            failures.note(here, ("demo", &format!("user{number}")), LIMIT, now);
        }
        assert!(failures.wait(here, ("demo", "another"), LIMIT, now).is_some());
        assert_eq!(failures.wait(address("10.0.0.2"), ("demo", "another"), LIMIT, now), None);
    }

    #[test]
    fn a_network_of_ipv6_is_one_address_and_memory_is_bounded() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        for host in 0..6 {
            failures.note(address(&format!("fd00::{host:x}")), ("demo", "alice"), LIMIT, now);
        }
        assert!(failures.wait(address("fd00::ffff"), ("demo", "alice"), LIMIT, now).is_some());
        for host in 0..MAX_ENTRIES as u32 {
            failures.note(IpAddr::V4((0x0A00_0000 + host).into()), ("demo", "alice"), LIMIT, now);
        }
        assert!(failures.until.len() <= MAX_ENTRIES);
    }
}
