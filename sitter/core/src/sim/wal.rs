//! A model of the write-ahead log: records on timelines.

use manatee_shared::lsn::{Lsn, Timeline, TimelineHistory, WalPosition};

/// Bytes of each record.
pub(super) const RECORD: u64 = 16;

/// One WAL record: the timeline it was written on, and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) timeline: u32,
    pub(super) id: u64,
}

/// WAL on disk or in buffers, from the beginning of time.
#[derive(Clone, Debug, Default)]
pub(super) struct Wal {
    pub(super) records: Vec<Record>,
    /// (timeline, index of its first record).
    segments: Vec<(u32, usize)>,
}

impl Wal {
    pub(super) fn push(&mut self, record: Record) {
        if self.segments.last().is_none_or(|(timeline, _)| *timeline != record.timeline) {
            self.segments.push((record.timeline, self.records.len()));
        }
        self.records.push(record);
    }

    pub(super) fn truncate(&mut self, length: usize) {
        if length < self.records.len() {
            self.records.truncate(length);
            self.segments.retain(|(_, start)| *start < length);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    pub(super) fn timeline(&self) -> u32 {
        self.segments.last().map_or(1, |(timeline, _)| *timeline)
    }

    /// Timeline of the record before `length`.
    pub(super) fn timeline_at(&self, length: usize) -> u32 {
        let before = self.segments.iter().rev().find(|(_, start)| *start < length);
        before.map_or(1, |(timeline, _)| *timeline)
    }

    /// Position at which `timeline` was left, in records; None if it is the newest, or was never on the path.
    pub(super) fn left_at(&self, timeline: u32) -> Option<usize> {
        self.segments.windows(2).find(|pair| pair[0].0 == timeline).map(|pair| pair[1].1)
    }

    pub(super) fn history(&self) -> TimelineHistory {
        let left = |pair: &[(u32, usize)]| WalPosition { timeline: Timeline(pair[0].0), lsn: lsn(pair[1].1) };
        TimelineHistory(self.segments.windows(2).map(left).collect())
    }
}

pub(super) fn lsn(records: usize) -> Lsn {
    Lsn(records as u64 * RECORD)
}
