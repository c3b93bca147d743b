//! The marker beside data that is to be replaced: with it the data is never started.

use crate::host::{Error, files};
use crate::postgres::inner::Inner;

/// Why data is to be replaced; kept in the marker beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// An operator wants a full copy.
    Rebuild,
    /// It is being rewound, or that was interrupted.
    Rewind,
    /// It cannot be brought back in line.
    Diverged,
}

impl Verdict {
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
pub(super) fn condemn(inner: &Inner, verdict: Verdict) -> Result<(), Error> {
    files::replace(&inner.layout.incomplete(), verdict.text(), &inner.user)
}

/// The marker's reason, if there is one that is known.
pub(super) fn verdict(inner: &Inner) -> Option<Verdict> {
    let text = std::fs::read_to_string(inner.layout.incomplete()).ok()?;
    Verdict::ALL.into_iter().find(|verdict| verdict.text() == text)
}
