//! News for the driver beside its next step.
//!
//! One kind of news replaces an older one of its kind, or is counted: however rarely it is polled, there is no more of
//! it than this.

use super::{ServedBy, Session};
use crate::error::{Origin, ProxyError, SqlState};

/// Something that has happened, each told once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// A transaction is over that this kind of server has served.
    Used(ServedBy),
    /// The client was sent an error that did not come from its unit: its code and who said it, for the metrics.
    ErrorSent(SqlState, Origin),
    /// A unit runs again.
    Rerun,
    /// The unit at hand needs nobody to be connected to these databases.
    Vacate(Vec<Box<str>>),
}

/// News that were not polled yet.
#[derive(Debug, Default)]
pub(super) struct Untold {
    used: Option<ServedBy>,
    error: Option<(SqlState, Origin)>,
    reruns: u32,
}

impl Untold {
    pub(super) fn used(&mut self, served_by: ServedBy) {
        self.used = Some(served_by);
    }

    pub(super) fn error(&mut self, error: &ProxyError) {
        self.error = Some((error.sqlstate(), error.origin()));
    }

    /// A server's error, in whose words the proxy says why something ends.
    pub(super) fn servers_error(&mut self, code: &[u8]) {
        self.error = Some((SqlState::parse(code), Origin::Server));
    }

    pub(super) fn rerun(&mut self) {
        self.reruns = self.reruns.saturating_add(1);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.used.is_none() && self.error.is_none() && self.reruns == 0
    }
}

impl Session {
    /// The next piece of news. To be called after each [`Session::advance`] until there is none.
    pub fn poll_news(&mut self) -> Option<News> {
        if let Some(served_by) = self.news.used.take() {
            return Some(News::Used(served_by));
        }
        if let Some((code, origin)) = self.news.error.take() {
            return Some(News::ErrorSent(code, origin));
        }
        if let Some(fewer) = self.news.reruns.checked_sub(1) {
            self.news.reruns = fewer;
            return Some(News::Rerun);
        }
        if self.unit.vacates.is_empty() {
            return None;
        }
        Some(News::Vacate(std::mem::take(&mut self.unit.vacates)))
    }
}
