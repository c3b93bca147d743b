//! The marker beside data that is to be replaced: with it the data is never started.

use crate::host::{Error, files};
use crate::postgres::inner::Inner;

/// Reason why data is to be replaced; kept in the marker beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MarkerReason {
    /// An operator wants a full copy.
    Rebuild,
    /// It is being rewound, or that was interrupted.
    Rewind,
    /// It cannot be brought back in line.
    Diverged,
}

impl MarkerReason {
    const ALL: [Self; 3] = [Self::Rebuild, Self::Rewind, Self::Diverged];

    fn text(self) -> &'static str {
        match self {
            Self::Rebuild => "rebuild\n",
            Self::Rewind => "pg_rewind\n",
            Self::Diverged => "diverged\n",
        }
    }
}

/// Marks the data as to be replaced: it must not be started any more. Durable.
pub(super) fn mark_for_replacement(inner: &Inner, verdict: MarkerReason) -> Result<(), Error> {
    files::replace(&inner.layout.incomplete(), verdict.text(), &inner.user)
}

/// The marker's reason, if there is one that is known.
pub(super) fn verdict(inner: &Inner) -> Option<MarkerReason> {
    let text = std::fs::read_to_string(inner.layout.incomplete()).ok()?;
    MarkerReason::ALL.into_iter().find(|verdict| verdict.text() == text)
}
