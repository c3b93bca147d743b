//! A model of PostgreSQL, as far as replication and its safety go.
//!
//! Model of PostgreSQL's replication, after its sources: which start positions a walsender accepts (walsender.c
//! `StartReplication`), by whose word commits are released (syncrep.c: each walsender uses the
//! configuration it has applied itself), that a promotion drops a half record and begins the next
//! timeline, that a standby knows what it received only once it streams, that a WAL receiver ends
//! only after it has flushed what it wrote (walreceiver.c `WalRcvDie`).

use std::collections::VecDeque;

use manatee_shared::ids::PeerId;
use manatee_shared::lsn::{Lsn, Timeline, WalPosition};

use super::plan::Looser;
use super::wal::{Record, Wal, lsn};
use crate::machine::local::{
    Data, Downstream, EndOfWal, Gate, PrimaryStatus, Recovery, Replay, Server, ServerConfig, StandbyStatus,
    Synchronous, SystemIdentifier,
};

/// Most peers of a simulated shard.
pub(super) const MOST_PEERS: usize = 5;

/// Id of the simulated peer `number`.
pub(super) fn peer_id(number: usize) -> PeerId {
    let last = u8::try_from(number).unwrap_or(u8::MAX);
    PeerId { ip: std::net::Ipv4Addr::new(10, 0, 1, last).into(), pg_port: 5432, backup_port: 12345 }
}

/// Number of the simulated peer `id`.
pub(super) fn number(id: PeerId) -> usize {
    match id.ip {
        std::net::IpAddr::V4(ip) => usize::from(ip.octets()[3]),
        std::net::IpAddr::V6(_) => usize::MAX,
    }
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
    /// Arrival of the last reply.
    pub(super) heard: u64,
    /// Replies on their way: when they come, and what they say.
    pub(super) replies: VecDeque<(u64, usize)>,
}

/// A WAL receiver.
#[derive(Clone, Debug)]
pub(super) struct Receiver {
    pub(super) upstream: usize,
    pub(super) heard: u64,
    /// WAL on its way: when it comes, and up to where.
    pub(super) coming: VecDeque<(u64, usize)>,
    /// Up to where it was sent.
    pub(super) sent: usize,
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
    /// Configuration in the files, and whether it was seen to be in effect: kept on disk by the sitter.
    pub(super) record: Option<(ServerConfig, bool)>,
    /// Configuration in effect, but for what somebody loosened.
    pub(super) config: Option<ServerConfig>,
    /// Until the sitter gives it its configuration again, which cleans the files.
    pub(super) loosened: Option<Looser>,
    pub(super) receiver: Option<Receiver>,
    pub(super) retry_at: u64,
    pub(super) has_streamed: bool,
    pub(super) not_streaming_since: u64,
    pub(super) cannot_follow: Option<&'static str>,
    pub(super) senders: [Option<Sender>; MOST_PEERS],
    /// Commits that wait: index of the record.
    pub(super) waiting: VecDeque<usize>,
    /// The promotion that was asked for: when, and the timeline to begin.
    pub(super) promotes: Option<(u64, u32)>,
    /// That was by an operator's hand: what it shows is a standby's as before.
    pub(super) by_hand: bool,
    /// Moment of the commit probe's next write.
    pub(super) probes: u64,
    /// Records before this one are not kept any more.
    pub(super) kept_from: usize,
    /// See [`crate::machine::local::Local::end`].
    pub(super) end: Option<EndOfWal>,
    pub(super) slow_until: u64,
    /// Until then each flush takes so many ms; and the one under way: when it ends, and what it covers.
    pub(super) slow_flushes: (u64, u64),
    pub(super) flushing: Option<(u64, usize)>,
    pub(super) full_until: u64,
    /// Less free space than the reserve.
    pub(super) low_until: u64,
    /// Records that were there when it was started as a primary: not shown before the sync has them.
    pub(super) found: usize,
    /// Up to where clients of this primary have seen, and what of that the oracle was told.
    pub(super) shown: usize,
    pub(super) told: usize,
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
            record: None,
            config: None,
            loosened: None,
            receiver: None,
            retry_at: 0,
            has_streamed: false,
            not_streaming_since: 0,
            cannot_follow: None,
            senders: [const { None }; MOST_PEERS],
            waiting: VecDeque::new(),
            promotes: None,
            by_hand: false,
            probes: 0,
            kept_from: 0,
            end: None,
            slow_until: 0,
            slow_flushes: (0, 0),
            flushing: None,
            full_until: 0,
            low_until: 0,
            found: 0,
            shown: 0,
            told: 0,
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

    /// No WAL receiver is left. One that lost its upstream, or was told to end, first flushes what it
    /// wrote (walreceiver.c `WalRcvDie`) and is there until it has, however long that takes.
    pub(super) fn receiver_stopped(&self) -> bool {
        self.receiver.is_none() && self.flushed == self.wal.len()
    }

    /// The process ends; what was not flushed is gone.
    pub(super) fn end(&mut self, crashed: bool) {
        (self.process, self.hangs_until, self.flushing) = (Process::Down { crashed }, None, None);
        self.wal.truncate(self.flushed);
        (self.partial, self.receiver, self.has_streamed) = (0, None, false);
        (self.cannot_follow, self.promotes, self.by_hand) = (None, None, false);
        self.senders = [const { None }; MOST_PEERS];
        self.waiting.clear();
        (self.shown, self.told) = (0, 0);
    }

    /// Flushes what was written to the disk, if it is `able`, at once or slowly.
    pub(super) fn flush(&mut self, now: u64, able: bool) {
        let (until, takes_ms) = self.slow_flushes;
        match self.flushing {
            Some((ends, _)) if ends > now => {}
            Some((_, end)) => {
                self.flushed = self.flushed.max(end.min(self.wal.len()));
                self.flushing = None;
            }
            None if !able || self.flushed == self.wal.len() => {}
            None if now < until => self.flushing = Some((now + takes_ms, self.wal.len())),
            None => self.flushed = self.wal.len(),
        }
    }

    /// Changes to the directory by `start`, before a postmaster runs.
    pub(super) fn prepare_start(&mut self, config: &ServerConfig) -> Result<(), String> {
        if !matches!(self.process, Process::Down { .. }) {
            return Err("it runs".to_owned());
        }
        let (Data::Present(identifier) | Data::Fresh(identifier)) = &self.data else {
            return Err("no data".to_owned());
        };
        if config.recovery == Recovery::Primary && self.standby {
            return Err("the directory is a standby's".to_owned());
        }
        self.standby = config.recovery != Recovery::Primary;
        self.data = Data::Present(identifier.clone());
        self.record = Some((config.clone(), false));
        Ok(())
    }

    pub(super) fn spawn(&mut self, until: u64) {
        self.process = Process::Starting { until };
        (self.end, self.loosened) = (None, None);
        self.config = self.record.as_ref().map(|(config, _)| config.clone());
        (self.replayed, self.found) = (0, self.wal.len());
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
        self.loosened = None;
        self.by_hand &= config.recovery != Recovery::Primary;
        if self.is_primary() && self.serves() && !self.by_hand {
            self.shown = self.shown.max(self.found);
        }
        for sender in self.senders.iter_mut().flatten() {
            sender.applies = Some((now + delay(), config.synchronous));
        }
    }

    /// The configuration that the sitter finds in force.
    pub(super) fn confirmed(&self) -> Option<&ServerConfig> {
        let record = self.record.as_ref().filter(|(_, confirmed)| *confirmed);
        let loosened = self.is_running() && self.loosened == Some(Looser::Names);
        record.map(|(config, _)| config).filter(|_| !loosened)
    }

    /// Commits are acknowledged without anybody else's word.
    pub(super) fn waits_for_nobody(&self) -> bool {
        self.is_primary() && self.loosened.is_some()
    }

    /// Leaves recovery: a record of its own timeline, after whatever is complete.
    pub(super) fn leave_recovery(&mut self, record: Record) {
        (self.partial, self.receiver, self.standby) = (0, None, false);
        self.wal.truncate(self.flushed);
        self.wal.push(record);
        // The record of the promotion itself shows nothing.
        (self.flushed, self.replayed, self.found) = (self.wal.len(), self.wal.len(), self.wal.len() - 1);
        if self.serves() && !self.by_hand {
            self.shown = self.found;
        }
    }

    /// Answer to a peer that starts from (timeline, records): Err(Some) when it can never
    /// follow from there.
    pub(super) fn accepts(&self, timeline: u32, records: usize) -> Result<(), Option<&'static str>> {
        const DIVERGED: &str = "the requested starting point is not in this server's history";
        let own = self.wal.timeline();
        let on_path = if timeline == own {
            if records <= self.flushed { Ok(()) } else { Err(None) }
        } else {
            match self.wal.left_at(timeline) {
                Some(end) if records <= end => Ok(()),
                Some(_) => Err(Some(DIVERGED)),
                None => Err((timeline < own).then_some(DIVERGED)),
            }
        };
        on_path?;
        if records < self.kept_from {
            return Err(Some("the requested WAL segment has already been removed"));
        }
        Ok(())
    }

    /// Up to where commits may be acknowledged after a reply of `peer`'s walsender, by what that
    /// walsender believes (`SyncRepReleaseWaiters`); 0 if it has no say.
    pub(super) fn released_by(&self, peer: usize) -> usize {
        let place = |number: usize, sender: &Sender| match sender.applied {
            Synchronous::Peer(name) => (self::number(name) == number).then_some(0),
            Synchronous::Both { new, .. } if self::number(new) == number => Some(0),
            Synchronous::Both { old, .. } if self::number(old) == number => Some(1),
            _ => None,
        };
        let Some(own) = &self.senders[peer] else { return 0 };
        let needed = match own.applied {
            Synchronous::Peer(_) => 1,
            Synchronous::Both { .. } => 2,
            Synchronous::Impossible | Synchronous::Nobody => return 0,
        };
        // The `needed` of the highest priority, each by what its own walsender applied.
        let (mut flush, mut found, mut own_among) = (self.flushed, 0, false);
        for priority in 0..2 {
            for (number, sender) in self.senders.iter().enumerate() {
                let Some(sender) = sender.as_ref().filter(|sender| place(number, sender) == Some(priority)) else {
                    continue;
                };
                if found < needed {
                    found += 1;
                    flush = flush.min(sender.flush);
                    own_among |= number == peer;
                }
            }
        }
        if found == needed && own_among { flush } else { 0 }
    }

    /// Observation by the sitter.
    pub(super) fn observe(&self, now: u64) -> Server {
        match self.process {
            Process::Down { crashed } => Server::Down { crashed, standby: self.standby },
            Process::Starting { .. } => Server::Starting { for_ms: 0 },
            Process::Hung { since } => Server::Hung { for_ms: now - since },
            Process::Running if self.standby => Server::Standby(StandbyStatus {
                received: self.has_streamed.then(|| self.received()),
                replayed: lsn(self.replayed),
                history: self.wal.history(),
                streaming: self.receiver.is_some(),
                upstream_silent_ms: self.receiver.as_ref().map(|receiver| now - receiver.heard),
                receiver_stopped: self.receiver_stopped(),
                not_streaming_ms: if self.receiver.is_some() { 0 } else { now - self.not_streaming_since },
                cannot_follow: self.cannot_follow.map(str::to_owned),
                receiver_error: None,
                receiver_failure: None,
                replay: Replay::default(),
                downstreams: self.downstreams(),
            }),
            Process::Running => Server::Primary(PrimaryStatus {
                flushed: WalPosition { timeline: Timeline(self.wal.timeline()), lsn: lsn(self.flushed) },
                downstreams: self.downstreams(),
            }),
        }
    }

    /// Position on disk, a half record included.
    pub(super) fn received(&self) -> WalPosition {
        let partial = if self.flushed == self.wal.len() { self.partial } else { 0 };
        let timeline = Timeline(self.wal.timeline_at(self.flushed));
        WalPosition { timeline, lsn: Lsn(lsn(self.flushed).0 + partial) }
    }

    fn downstreams(&self) -> Vec<Downstream> {
        let downstream = |(number, sender): (usize, &Option<Sender>)| {
            let sender = sender.as_ref()?;
            let (peer, at) = (peer_id(number), lsn(sender.flush));
            let sync_priority = match sender.applied {
                Synchronous::Peer(name) => u32::from(name == peer),
                Synchronous::Both { new, .. } if new == peer => 1,
                Synchronous::Both { old, .. } if old == peer => 2,
                _ => 0,
            };
            Some(Downstream { peer, streaming: true, sent: at, write: at, flush: at, replay: at, sync_priority })
        };
        self.senders.iter().enumerate().filter_map(downstream).collect()
    }

    /// A complete copy of what `source` has on disk, as a standby's directory.
    pub(super) fn copy_from(&mut self, source: &Self) {
        self.end(false);
        self.data = source.data.clone();
        self.wal = source.wal.clone();
        self.wal.truncate(source.flushed);
        (self.flushed, self.replayed, self.kept_from) = (self.wal.len(), 0, source.kept_from);
        self.standby = true;
        self.config = None;
        self.record = None;
        self.end = None;
    }

    pub(super) fn initialise(&mut self, name: String) {
        self.lose_disk();
        (0..3).for_each(|id| self.wal.push(Record { timeline: 1, id }));
        self.flushed = self.wal.len();
        self.data = Data::Fresh(SystemIdentifier(name));
    }

    /// Another disk, empty.
    pub(super) fn lose_disk(&mut self) {
        self.end(false);
        *self = Self { full_until: self.full_until, slow_until: self.slow_until, ..Self::new() };
    }
}
