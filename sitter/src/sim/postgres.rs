//! A model of PostgreSQL, as far as replication and its safety go.
//!
//! What follows PostgreSQL itself: which start positions a walsender accepts (walsender.c
//! `StartReplication`), by whose word commits are released (syncrep.c: each walsender uses the
//! configuration it has applied itself), that a promotion drops a half record and begins the next
//! timeline, that a standby knows what it received only once it streams.

use std::collections::BTreeMap;

use manatee_shared::ids::PeerId;
use manatee_shared::lsn::{Lsn, Timeline, TimelineHistory, WalPosition};

use crate::machine::local::{
    Data, Downstream, Gate, PrimaryStatus, Recovery, Server, ServerConfig, StandbyStatus, Synchronous, SystemIdentifier,
};

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
        self.records.truncate(length);
        self.segments.retain(|(_, start)| *start < length);
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    pub(super) fn timeline(&self) -> u32 {
        self.segments.last().map_or(1, |(timeline, _)| *timeline)
    }

    /// Where each older timeline was left: (timeline, records).
    fn switches(&self) -> Vec<(u32, usize)> {
        self.segments.windows(2).map(|pair| (pair[0].0, pair[1].1)).collect()
    }

    fn history(&self) -> TimelineHistory {
        let left = |(timeline, end)| WalPosition { timeline: Timeline(timeline), lsn: lsn(end) };
        TimelineHistory(self.switches().into_iter().map(left).collect())
    }
}

pub(super) fn lsn(records: usize) -> Lsn {
    Lsn(records as u64 * RECORD)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Process {
    Down { crashed: bool },
    Starting { until: u64 },
    Running,
    Hung { since: u64 },
}

/// A walsender: a peer that follows.
#[derive(Clone, Debug)]
pub(super) struct Sender {
    /// Configuration it has applied, and the one it will.
    pub(super) applied: Synchronous,
    pub(super) applies: Option<(u64, Synchronous)>,
    pub(super) flush: usize,
    /// When a reply last came.
    pub(super) heard: u64,
    /// Replies on their way.
    pub(super) replies: Vec<(u64, usize)>,
}

/// A WAL receiver.
#[derive(Clone, Copy, Debug)]
pub(super) struct Receiver {
    pub(super) upstream: PeerId,
    pub(super) heard: u64,
}

/// One data directory and its server.
#[derive(Clone, Debug)]
pub(super) struct Postgres {
    pub(super) data: Data,
    pub(super) process: Process,
    /// `standby.signal`.
    pub(super) standby: bool,
    pub(super) wal: Wal,
    pub(super) flushed: usize,
    /// Bytes of a record that is not complete yet.
    pub(super) partial: u64,
    pub(super) replayed: usize,
    pub(super) config: Option<ServerConfig>,
    pub(super) receiver: Option<Receiver>,
    pub(super) retry_at: u64,
    pub(super) has_streamed: bool,
    pub(super) not_streaming_since: u64,
    pub(super) cannot_follow: Option<String>,
    pub(super) senders: BTreeMap<PeerId, Sender>,
    /// Commits that wait: index of the record.
    pub(super) waiting: Vec<usize>,
    pub(super) slow_until: u64,
    /// Records that were there when it was started as a primary: not shown before the sync has them.
    pub(super) found: usize,
    /// Replay stands still (a conflict with a reader), WAL comes in slowly.
    pub(super) replay_stalls_until: u64,
    pub(super) lags_until: u64,
    /// A hung server goes on at this time.
    pub(super) hangs_until: Option<u64>,
}

impl Postgres {
    pub(super) fn new() -> Self {
        Self {
            data: Data::Absent,
            process: Process::Down { crashed: false },
            standby: false,
            wal: Wal::default(),
            flushed: 0,
            partial: 0,
            replayed: 0,
            config: None,
            receiver: None,
            retry_at: 0,
            has_streamed: false,
            not_streaming_since: 0,
            cannot_follow: None,
            senders: BTreeMap::new(),
            waiting: Vec::new(),
            slow_until: 0,
            found: 0,
            replay_stalls_until: 0,
            lags_until: 0,
            hangs_until: None,
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.process == Process::Running
    }

    pub(super) fn is_primary(&self) -> bool {
        self.is_running() && !self.standby
    }

    pub(super) fn serves(&self) -> bool {
        self.is_running() && self.config.as_ref().is_some_and(|config| config.gate == Gate::Open)
    }

    /// The process ends; what was not flushed is gone.
    pub(super) fn end(&mut self, crashed: bool) {
        (self.process, self.hangs_until) = (Process::Down { crashed }, None);
        self.wal.truncate(self.flushed);
        (self.partial, self.receiver, self.has_streamed) = (0, None, false);
        self.cannot_follow = None;
        self.senders.clear();
        self.waiting.clear();
    }

    pub(super) fn start(&mut self, config: &ServerConfig, until: u64) -> Result<(), String> {
        if !matches!(self.process, Process::Down { .. }) {
            return Err("it runs".to_owned());
        }
        let (Data::Present(identifier) | Data::Fresh(identifier)) = self.data.clone() else {
            return Err("no data".to_owned());
        };
        if config.recovery == Recovery::Primary && self.standby {
            return Err("the directory is a standby's".to_owned());
        }
        self.standby = config.recovery != Recovery::Primary;
        self.data = Data::Present(identifier);
        self.process = Process::Starting { until };
        self.config = Some(config.clone());
        (self.replayed, self.found) = (0, self.wal.len());
        Ok(())
    }

    /// A reload: the postmaster has it at once, each walsender when it gets to it.
    pub(super) fn reload(&mut self, now: u64, config: &ServerConfig, mut delay: impl FnMut() -> u64) {
        let follows = |config: &ServerConfig| match config.recovery {
            Recovery::Follow(upstream) => Some(upstream),
            _ => None,
        };
        if self.config.as_ref().and_then(follows) != follows(config) {
            self.receiver = None;
            self.retry_at = now + 20;
            self.not_streaming_since = now;
            self.cannot_follow = None;
        }
        self.config = Some(config.clone());
        for sender in self.senders.values_mut() {
            sender.applies = Some((now + delay(), config.synchronous));
        }
    }

    pub(super) fn promote(&mut self, now: u64, config: &ServerConfig, delay: impl FnMut() -> u64, record: Record) {
        self.reload(now, config, delay);
        self.partial = 0;
        self.standby = false;
        self.receiver = None;
        let timeline = record.timeline.max(self.wal.timeline() + 1);
        self.wal.push(Record { timeline, ..record });
        (self.flushed, self.replayed) = (self.wal.len(), self.wal.len());
    }

    /// What a peer that starts from (timeline, records) gets to hear: Err(true) when it can never
    /// follow from there.
    pub(super) fn accepts(&self, timeline: u32, records: usize) -> Result<(), bool> {
        if timeline == self.wal.timeline() {
            return if records <= self.flushed { Ok(()) } else { Err(false) };
        }
        match self.wal.switches().into_iter().find(|(old, _)| *old == timeline) {
            Some((_, end)) if records <= end => Ok(()),
            Some(_) => Err(true),
            None => Err(timeline < self.wal.timeline()),
        }
    }

    /// The commits that a reply of `peer`'s walsender releases.
    pub(super) fn released_by(&mut self, peer: PeerId) -> Vec<usize> {
        let names = |synchronous: Synchronous| match synchronous {
            Synchronous::Peer(peer) => vec![peer],
            Synchronous::Both { new, old } => vec![new, old],
            Synchronous::Impossible | Synchronous::Nobody => Vec::new(),
        };
        let Some(own) = self.senders.get(&peer) else { return Vec::new() };
        let needed = names(own.applied).len();
        let priority = |id: &PeerId, sender: &Sender| names(sender.applied).iter().position(|name| name == id);
        let mut candidates: Vec<_> =
            self.senders.iter().filter_map(|(id, sender)| Some((priority(id, sender)?, *id, sender.flush))).collect();
        candidates.sort();
        candidates.truncate(needed);
        if needed == 0 || candidates.len() < needed || !candidates.iter().any(|(_, id, _)| *id == peer) {
            return Vec::new();
        }
        let end = candidates.iter().map(|(.., flush)| *flush).min().unwrap_or(0).min(self.flushed);
        let (released, waiting) = self.waiting.iter().partition(|index| **index < end);
        self.waiting = waiting;
        released
    }

    /// What the sitter observes.
    pub(super) fn observe(&self, now: u64) -> Server {
        match self.process {
            Process::Down { crashed } => Server::Down { crashed, standby: self.standby },
            Process::Starting { .. } => Server::Starting { for_ms: 0 },
            Process::Hung { since } => Server::Hung { for_ms: now - since },
            Process::Running if self.standby => Server::Standby(StandbyStatus {
                received: self.has_streamed.then(|| WalPosition {
                    timeline: Timeline(self.wal.timeline()),
                    lsn: Lsn(lsn(self.wal.len()).0 + self.partial),
                }),
                replayed: lsn(self.replayed),
                history: self.wal.history(),
                streaming: self.receiver.is_some(),
                upstream_silent_ms: self.receiver.map(|receiver| now - receiver.heard),
                receiver_stopped: self.receiver.is_none(),
                not_streaming_ms: if self.receiver.is_some() { 0 } else { now - self.not_streaming_since },
                cannot_follow: self.cannot_follow.clone(),
                downstreams: self.downstreams(),
            }),
            Process::Running => Server::Primary(PrimaryStatus {
                flushed: WalPosition { timeline: Timeline(self.wal.timeline()), lsn: lsn(self.flushed) },
                downstreams: self.downstreams(),
            }),
        }
    }

    fn downstreams(&self) -> Vec<Downstream> {
        let senders = self.senders.iter();
        senders
            .map(|(&peer, sender)| {
                let at = lsn(sender.flush);
                let place = match sender.applied {
                    Synchronous::Peer(name) => u32::from(name == peer),
                    Synchronous::Both { new, .. } if new == peer => 1,
                    Synchronous::Both { old, .. } if old == peer => 2,
                    _ => 0,
                };
                Downstream { peer, streaming: true, sent: at, write: at, flush: at, replay: at, sync_priority: place }
            })
            .collect()
    }

    /// A complete copy of what `source` has on disk, as a standby's directory.
    pub(super) fn copy_from(&mut self, source: &Self) {
        self.end(false);
        self.data = source.data.clone();
        self.wal = source.wal.clone();
        self.wal.truncate(source.flushed);
        (self.flushed, self.replayed) = (self.wal.len(), 0);
        self.standby = true;
        self.config = None;
    }

    pub(super) fn initialise(&mut self, name: String) {
        self.end(false);
        self.wal = Wal::default();
        (0..3).for_each(|id| self.wal.push(Record { timeline: 1, id }));
        self.flushed = self.wal.len();
        self.standby = false;
        self.data = Data::Fresh(SystemIdentifier(name));
        self.config = None;
    }
}
