//! Facts that follow from watching a [`View`]'s inputs over time. Pure as well: time comes with the
//! view. One tracker belongs to one sitter process (or simulated one); its driver calls
//! [`Tracker::complete`] on every view before `decide`, and [`Tracker::finished`] after every action.

use std::collections::{BTreeMap, VecDeque};

use manatee_shared::ids::PeerId;
use manatee_shared::lsn::{Lsn, WalPosition};
use manatee_shared::zk::{Over, Session, StateNode, Version};

use super::action::{Action, ActionKind, DataAction, ServerAction, ShardAction};
use super::failure::StepFailure;
use super::local::{PrimaryStatus, Recovery, Server, ServerConfig};
use super::view::{LastFailure, Observed, View};

/// Time (ms) for which a standby tries to stream from an upstream other than the primary before it
/// looks further up.
const GIVE_UP_UPSTREAM_MS: u64 = 3_000;

/// Time (ms) for which an upstream that failed is not tried again.
const AVOID_MS: u64 = 60_000;

/// A failure, with its time.
#[derive(Clone, Debug)]
struct Failure {
    action: ActionKind,
    times: u32,
    at_ms: u64,
    how: StepFailure,
}

/// Between two positions of which is kept when they were reached, ms.
const OWED_EVERY_MS: u64 = 100;

/// Number of those that are kept for a peer: for longer than any patience with it.
const MOST_OWED: usize = 100;

/// A gap (ms) between two looks at a primary in which its followers are not judged: this process, or
/// PostgreSQL, stood still.
const UNWATCHED_MS: u64 = 500;

/// Slowness that is long past counts no more than this (ms).
const MOST_SLOW_MS: u64 = 10_000;

/// Progress of a peer that follows us.
#[derive(Clone, Debug, Default)]
struct Following {
    /// Since when it has not been streaming.
    away: Option<u64>,
    /// Ends of our WAL that it does not have on disk yet, and when each was ours.
    owed: VecDeque<(Lsn, u64)>,
    /// Time (ms) for which it kept commits waiting for too long; four times as much without that
    /// makes up for it.
    slow_ms: u64,
    looked: u64,
}

impl Following {
    /// Takes note of how far it is: None if it does not stream.
    fn look(&mut self, now: u64, end: Lsn, flush: Option<Lsn>, patience_ms: u64) {
        let passed = now.saturating_sub(std::mem::replace(&mut self.looked, now));
        if passed > UNWATCHED_MS {
            self.away = self.away.map(|since| since + passed);
            self.owed.iter_mut().for_each(|(_, at)| *at += passed);
        }
        let passed = passed.min(UNWATCHED_MS);
        let Some(flush) = flush else {
            self.away.get_or_insert(now);
            self.slow_ms = self.slow_ms.saturating_sub(passed / 4);
            return;
        };
        self.away = None;
        while self.owed.front().is_some_and(|(owed, _)| *owed <= flush) {
            self.owed.pop_front();
        }
        let due = self.owed.back().is_none_or(|(owed, at)| *owed < end && now >= at + OWED_EVERY_MS);
        if end > flush && due && self.owed.len() < MOST_OWED {
            self.owed.push_back((end, now));
        }
        let slow = self.stalled_ms(now) > patience_ms;
        self.slow_ms = if slow { self.slow_ms + passed } else { self.slow_ms.saturating_sub(passed / 4) };
        self.slow_ms = self.slow_ms.min(MOST_SLOW_MS);
    }

    /// Age of the oldest position that it has not acknowledged, or the time it is away.
    fn stalled_ms(&self, now: u64) -> u64 {
        let oldest = self.owed.front().map(|(_, at)| *at);
        [self.away, oldest].into_iter().flatten().map(|since| now.saturating_sub(since)).max().unwrap_or(0)
    }
}

/// Memory of one sitter process.
#[derive(Clone, Debug, Default)]
pub struct Tracker {
    missing_since: BTreeMap<PeerId, u64>,
    following: BTreeMap<PeerId, Following>,
    down_since: Option<u64>,
    first_flush: Option<Lsn>,
    avoid_until: BTreeMap<PeerId, u64>,
    had_state: bool,
    rejoins: u32,
    rejoin_failed: bool,
    newest_generation: Option<u64>,
    failure: Option<Failure>,
    given: Option<ServerConfig>,
    /// Moment at which this tracker was first asked.
    began: Option<u64>,
    written: Option<Written>,
    /// The newest version of the state, and when it was first seen.
    version: Option<(Version, u64)>,
    drained: Option<Version>,
    /// See [`Observed`].
    known_end: Option<WalPosition>,
    is_whole: bool,
    wrote_generation: Option<u64>,
    /// This process announced itself, which ends the sessions of earlier ones.
    joined: bool,
}

/// A state write of ours that succeeded but may not be seen yet.
#[derive(Clone, Copy, Debug)]
struct Written {
    /// State that it replaced.
    over: Over,
}

impl Tracker {
    /// Nothing watched yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing watched yet, by a process that remembers having seen this generation.
    pub fn remembering(newest_generation: Option<u64>) -> Self {
        Self { newest_generation, ..Self::default() }
    }

    /// Takes note of `view` and fills in its [`View::observed`].
    pub fn complete(&mut self, view: &mut View) {
        let now = view.now_ms;
        self.watch_election(view);
        self.watch_state(view);
        let generation = view.zk.state.valid().map(|(_, state)| state.generation);
        self.newest_generation = self.newest_generation.max(generation);
        self.watch_server(view);
        self.watch_wal(view);
        self.avoid_until.retain(|_, until| *until > now);
        let began = *self.began.get_or_insert(now);
        let unread = matches!(view.zk.state, StateNode::Unread);
        let ago = |since: &u64| now.saturating_sub(*since);
        let durations = |map: &BTreeMap<PeerId, u64>| map.iter().map(|(&peer, since)| (peer, ago(since))).collect();
        let following = |value: &dyn Fn(&Following) -> u64| {
            self.following.iter().map(|(&peer, of)| (peer, value(of))).filter(|(_, ms)| *ms > 0).collect()
        };
        view.observed = Observed {
            missing_ms: durations(&self.missing_since),
            stalled_ms: following(&|following| following.stalled_ms(now)),
            slow_ms: following(&|following| following.slow_ms),
            state_ms: self.version.map_or(0, |(_, since)| ago(&since)),
            drained: self.drained,
            postgres_down_ms: self.down_since.as_ref().map(ago),
            first_flush: self.first_flush,
            known_end: self.known_end,
            is_whole: self.is_whole,
            wrote_generation: self.wrote_generation,
            avoid: self.avoid_until.keys().copied().collect(),
            joined: self.joined,
            had_state: self.had_state,
            rejoins: self.rejoins,
            rejoin_failed: self.rejoin_failed,
            newest_generation: self.newest_generation,
            last_failure: self.failure.as_ref().map(|failure| LastFailure {
                action: failure.action,
                times: failure.times,
                ago_ms: ago(&failure.at_ms),
                problem: failure.how.problem.clone(),
                kind: failure.how.kind,
            }),
            unread_ms: if unread { ago(&began) } else { 0 },
            given: self.given.clone(),
        };
    }

    /// Takes note of how `action` ended: `failure` None means that it succeeded. Not to be called
    /// for one that was cancelled.
    pub fn finished(&mut self, now_ms: u64, action: &Action, failure: Option<StepFailure>) {
        let kind = action.kind();
        if let (Action::Shard(ShardAction::WriteState { over, state }), None) = (action, &failure) {
            self.written = Some(Written { over: *over });
            self.wrote_generation = Some(state.generation);
        }
        if let (Action::Data(DataAction::Rejoin { .. } | DataAction::Bootstrap { .. }), None) = (action, &failure) {
            // Other data.
            (self.known_end, self.is_whole) = (None, false);
        }
        if let (Action::Server(ServerAction::Drain { version }), None) = (action, &failure) {
            self.drained = Some(*version);
        }
        if let (Action::Server(ServerAction::Start(config) | ServerAction::Configure(config)), None) =
            (action, &failure)
        {
            self.given = Some(config.clone());
        }
        match action {
            Action::Shard(ShardAction::JoinElection) => self.joined |= failure.is_none(),
            Action::Shard(ShardAction::LeaveElection) => self.joined = false,
            _ => {}
        }
        if matches!(action, Action::Data(DataAction::Rejoin { .. })) {
            self.rejoin_failed = failure.is_some();
            self.rejoins = self.rejoins.saturating_add(1);
        }
        match failure {
            _ if matches!(action, Action::Wait { .. }) => {}
            None => self.failure = None,
            Some(how) => {
                let before = self.failure.take().filter(|failure| failure.action == kind);
                let times = before.map_or(0, |failure| failure.times).saturating_add(1);
                self.failure = Some(Failure { action: kind, times, at_ms: now_ms, how });
            }
        }
    }

    /// Our own write is not decided upon before it is seen: an old view would have us undo
    /// what the new state relies on.
    fn watch_state(&mut self, view: &mut View) {
        let version = view.zk.state.valid().map(|(version, _)| version);
        if version != self.version.map(|(version, _)| version) {
            self.version = version.map(|version| (version, view.now_ms));
        }
        self.had_state |= matches!(view.zk.state, StateNode::Valid { .. } | StateNode::Corrupt { .. });
        if !self.joined {
            // The kernel still sends what an earlier process of this peer wrote to its socket, and
            // ZooKeeper takes it while that one's election node is there.
            view.uncertain_write = true;
        }
        let Some(written) = self.written else { return };
        let seen = match &view.zk.state {
            StateNode::Valid { version, .. } | StateNode::Corrupt { version, .. } => {
                written.over.version().is_none_or(|before| *version > before)
            }
            StateNode::Unread => false,
            // Wiped: nothing newer will come of it.
            StateNode::Absent => written.over.version().is_some(),
        };
        if seen {
            self.written = None;
        } else {
            view.uncertain_write = true;
        }
    }

    fn watch_election(&mut self, view: &View) {
        if view.zk.session != Session::Connected {
            // Unknown is not down (rule 9): what is shown is old.
            self.missing_since.clear();
            return;
        }
        let listed = view.zk.state.valid().map(|(_, state)| state.clone());
        let missing = |peer: &PeerId| !view.zk.active.contains_key(peer);
        let peers: Vec<_> = listed.iter().flat_map(|state| state.everyone().map(|peer| peer.id)).collect();
        self.missing_since.retain(|peer, _| missing(peer) && peers.contains(peer));
        for peer in peers.into_iter().filter(missing) {
            self.missing_since.entry(peer).or_insert(view.now_ms);
        }
    }

    fn watch_server(&mut self, view: &View) {
        let now = view.now_ms;
        let serves = matches!(view.local.server, Server::Primary(_) | Server::Standby(_));
        match (serves, view.disk_full) {
            (true, false) => self.down_since = None,
            (true, true) => {
                self.down_since.get_or_insert(now);
            }
            (false, _) => {}
        }
        match &view.local.server {
            Server::Primary(primary) => {
                self.first_flush.get_or_insert(primary.flushed.lsn);
                self.watch_downstreams(view, primary);
                self.rejoins = 0;
            }
            Server::Standby(standby) => {
                self.first_flush = None;
                self.following.clear();
                if standby.streaming {
                    self.rejoins = 0;
                }
                let upstream = view.local.config.as_ref().map(|config| config.recovery);
                if let Some(Recovery::Follow(peer)) = upstream
                    && !standby.streaming
                    && (standby.not_streaming_ms >= GIVE_UP_UPSTREAM_MS || standby.cannot_follow.is_some())
                {
                    self.avoid_until.insert(peer, now + AVOID_MS);
                }
            }
            Server::Down { .. } | Server::Starting { .. } => {
                self.down_since.get_or_insert(now);
                self.first_flush = None;
                self.following.clear();
            }
            Server::Hung { for_ms } => {
                self.down_since.get_or_insert(now.saturating_sub(*for_ms));
            }
        }
    }

    /// Whether the WAL here is what this process knew it to be, and as much as the primary says it has.
    fn watch_wal(&mut self, view: &View) {
        match &view.local.server {
            Server::Primary(primary) => self.known_end = Some(primary.flushed),
            Server::Standby(standby) => {
                let Some(end) = standby.end() else { return };
                self.is_whole &= self.known_end.is_none_or(|known| end.contains(known));
                // Not a half record, which is received again after an interruption.
                self.known_end = Some(WalPosition { lsn: standby.replayed, ..end.position });
                let primary = view.zk.state.valid().map(|(_, state)| state.primary.id);
                let primarys = primary.and_then(|primary| view.health.get(&primary)).filter(|health| {
                    health.streaming == Some(true) && health.postgres_down_ms.is_none() && health.silent_ms.is_some()
                });
                let wal = primarys.and_then(|health| health.wal.as_ref());
                self.is_whole |= standby.streaming && wal.is_some_and(|wal| end.contains(wal.position));
            }
            Server::Down { .. } | Server::Starting { .. } | Server::Hung { .. } => {}
        }
    }

    fn watch_downstreams(&mut self, view: &View, primary: &PrimaryStatus) {
        let now = view.now_ms;
        let end = primary.flushed.lsn;
        let state = view.zk.state.valid().map(|(_, state)| state.clone());
        let chain: Vec<_> = state.iter().flat_map(|state| state.chain().map(|peer| peer.id)).collect();
        self.following.retain(|peer, _| chain.contains(peer));
        for peer in chain.into_iter().filter(|peer| *peer != view.me.id) {
            let flush = primary.downstreams.iter().find(|down| down.peer == peer && down.streaming).map(|d| d.flush);
            let new = || Following { looked: now, ..Following::default() };
            let following = self.following.entry(peer).or_insert_with(new);
            following.look(now, end, flush, view.settings.suspicion_timeout_ms);
        }
    }
}
