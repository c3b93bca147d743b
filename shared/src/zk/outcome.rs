//! Outcome of a write whose answer was lost, by what is there once nothing of it can come any more. Pure: the
//! client and the simulation judge alike.

use super::{Over, Version};

/// Verdict of one look at the `state` node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was written, and is still there.
    Written(Version),
    /// It was not: what it was decided from is still there.
    NotWritten,
    /// Others wrote since. The history has an entry for each write: the one so many from its end (1: the last) is of
    /// whoever wrote over what this one was decided from.
    History(usize),
    /// It was not written.
    Conflict,
}

impl Verdict {
    /// Of a write over `over`. `found`: the version of the node, and whether it says what was to be written; None: no node.
    pub fn of(over: Over, found: Option<(Version, bool)>) -> Self {
        let before = over.version();
        match found {
            Some((version, true)) if Some(version) != before => Self::Written(version),
            found if found.map(|(version, _)| version) == before => Self::NotWritten,
            Some((version, _)) => {
                let since = i64::from(version) - i64::from(before.unwrap_or(-1));
                usize::try_from(since).map_or(Self::Conflict, Self::History)
            }
            None => Self::Conflict,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_tells_what_became_of_a_write() {
        let table = [
            (Over::Version(4), Some((5, true)), Verdict::Written(5)),
            (Over::Version(4), Some((4, false)), Verdict::NotWritten),
            // The same as before, written once more.
            (Over::Version(4), Some((4, true)), Verdict::NotWritten),
            (Over::Version(4), Some((5, false)), Verdict::History(1)),
            (Over::Version(4), Some((7, false)), Verdict::History(3)),
            (Over::Version(4), None, Verdict::Conflict),
            (Over::Version(4), Some((0, false)), Verdict::Conflict),
            (Over::Nothing, None, Verdict::NotWritten),
            (Over::Nothing, Some((0, true)), Verdict::Written(0)),
            (Over::Nothing, Some((0, false)), Verdict::History(1)),
            (Over::Lost, Some((2, false)), Verdict::History(3)),
        ];
        for (over, found, verdict) in table {
            assert_eq!(Verdict::of(over, found), verdict, "{over:?} {found:?}");
        }
    }
}
