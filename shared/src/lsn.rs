//! Positions in PostgreSQL's write-ahead log.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Byte position in the WAL stream, written `X/YYYYYYYY` (manual, section 8.20 `pg_lsn`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Lsn(pub u64);

impl Lsn {
    /// The position before any WAL: what a shard's first generation starts from.
    pub const ZERO: Self = Self(0);

    /// Bytes from `earlier` to `self`; zero if `earlier` is ahead.
    pub fn bytes_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    /// Low half padded to eight digits, as Manatee 2's `initWal`; PostgreSQL itself prints it
    /// unpadded and reads both.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:08X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// Reason why a text is not an [`Lsn`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a WAL position: expected two hexadecimal numbers as X/YYYYYYYY")]
pub struct LsnError(String);

impl FromStr for Lsn {
    type Err = LsnError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let half = |half: &str| {
            let digits = (1..=8).contains(&half.len()) && half.bytes().all(|b| b.is_ascii_hexdigit());
            digits.then(|| u64::from_str_radix(half, 16).ok()).flatten()
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Self(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| LsnError(text.to_owned()))
    }
}

impl TryFrom<String> for Lsn {
    type Error = LsnError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Lsn> for String {
    fn from(lsn: Lsn) -> Self {
        lsn.to_string()
    }
}

/// PostgreSQL timeline; each promotion begins a new one. 1 is the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timeline(pub u32);

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A WAL position together with the timeline it lies on. Not ordered: positions on different
/// timelines compare only through a [`TimelineHistory`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WalPosition {
    /// Timeline on which `lsn` was written.
    pub timeline: Timeline,
    /// Position on it.
    pub lsn: Lsn,
}

impl fmt::Display for WalPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on timeline {}", self.lsn, self.timeline)
    }
}

/// Ancestry of the newest timeline a peer has: each older timeline with the position where it was
/// left, oldest first, as in PostgreSQL's `.history` files (`timeline.c`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineHistory(pub Vec<WalPosition>);

impl TimelineHistory {
    /// Whether WAL that ends at `end` (on the timeline this history belongs to) holds everything up
    /// to `wanted`, that is: `wanted` lies on the path that leads to `end`.
    pub fn contains(&self, end: WalPosition, wanted: WalPosition) -> bool {
        if end.timeline == wanted.timeline {
            return end.lsn >= wanted.lsn;
        }
        self.0.iter().any(|left| left.timeline == wanted.timeline && left.lsn >= wanted.lsn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsn_text_round_trips_and_garbage_is_refused() {
        assert_eq!("0/671FEDF8".parse(), Ok(Lsn(0x671F_EDF8)));
        assert_eq!("A/1".parse::<Lsn>().map(|lsn| lsn.to_string()), Ok("A/00000001".to_owned()));
        for text in ["", "0", "/", "0/", "0/123456789", "0/-1", "g/0", "0/0/0"] {
            assert!(text.parse::<Lsn>().is_err(), "{text}");
        }
    }

    #[test]
    fn history_contains_only_its_own_path() {
        let at = |timeline, lsn| WalPosition { timeline: Timeline(timeline), lsn: Lsn(lsn) };
        let history = TimelineHistory(vec![at(1, 100), at(2, 200)]);
        assert!(history.contains(at(3, 250), at(3, 250)));
        assert!(history.contains(at(3, 250), at(1, 100)));
        assert!(!history.contains(at(3, 250), at(1, 101)), "written on 1 after it was left");
        assert!(!history.contains(at(3, 250), at(4, 10)), "a timeline it never was on");
    }
}
