//! Time, network, clients: one run.

use std::collections::{BTreeMap, VecDeque};

use manatee_shared::cluster::Peer;
use manatee_shared::ids::PeerId;
use manatee_shared::zk::fake::{FakeSession, FakeZooKeeper};
use manatee_shared::zk::{Session, View};

use super::faults::Faults;
use super::host::{Host, Sitter};
use super::oracle::Oracle;
use super::postgres::{Postgres, Process, Receiver, Record, Sender};
use crate::machine::decide::decide;
use crate::machine::local::{Recovery, Synchronous};

/// Resolution of time, ms.
pub(super) const TICK: u64 = 20;
/// Faults happen for this long, ms…
const FAULTS_MS: u64 = 40_000;
/// …and within this much more everything must be well again.
const HEALING_MS: u64 = 60_000;
/// ZooKeeper's session timeout, ms.
pub(super) const SESSION_MS: u64 = 4_000;
/// `wal_sender_timeout` and `wal_receiver_timeout`, ms.
const WAL_TIMEOUT_MS: u64 = 5_000;
/// Events kept for a failure's report.
const EVENTS: usize = 250;

/// What a run came to.
#[derive(Debug)]
pub(super) struct Summary {
    pub(super) acknowledged: usize,
    pub(super) generations: u64,
}

pub(super) struct World {
    pub(super) rng: fastrand::Rng,
    pub(super) now: u64,
    pub(super) zk: FakeZooKeeper,
    pub(super) hosts: Vec<Host>,
    /// Directed links that lose everything, and until when.
    pub(super) cuts: BTreeMap<(usize, usize), u64>,
    pub(super) zk_cuts: BTreeMap<usize, u64>,
    pub(super) zk_down_until: u64,
    zk_silent_since: Vec<Option<u64>>,
    /// Sessions of processes that died, and when the server notices.
    pub(super) orphans: Vec<(u64, FakeSession)>,
    pub(super) next_id: u64,
    pub(super) oracle: Oracle,
    /// A new primary that is to lose its power soon.
    pub(super) doomed: Option<(u64, PeerId)>,
    /// Found by an action; ends the run.
    pub(super) violation: Option<String>,
    seen_version: Option<i32>,
    events: VecDeque<String>,
    show: bool,
}

impl World {
    pub(super) fn new(seed: u64, show: bool) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let zk = FakeZooKeeper::new();
        let count = rng.usize(3..=5);
        let host = |number: usize| {
            let id: PeerId = format!("10.0.1.{number}:5432:12345").parse().expect("id");
            let postgres = Postgres::new();
            Host { peer: Peer::new(id, format!("p{number}")), up: true, sitter: None, postgres, returns: Some(0) }
        };
        let hosts = (0..count).map(host).collect();
        Self {
            rng,
            now: 0,
            zk,
            hosts,
            cuts: BTreeMap::new(),
            zk_cuts: BTreeMap::new(),
            zk_down_until: 0,
            zk_silent_since: vec![None; count],
            orphans: Vec::new(),
            next_id: 100,
            oracle: Oracle::default(),
            doomed: None,
            violation: None,
            seen_version: None,
            events: VecDeque::new(),
            show,
        }
    }

    /// The whole run; an error is what went wrong and the last events.
    pub(super) fn run(mut self) -> Result<Summary, String> {
        let result = self.go();
        result.map_err(|problem| {
            let events: Vec<_> = self.events.iter().cloned().collect();
            format!("{}\nat {} ms: {problem}", events.join("\n"), self.now)
        })
    }

    fn go(&mut self) -> Result<Summary, String> {
        let mut faults = Faults::new();
        while self.now < FAULTS_MS {
            faults.step(self);
            self.step()?;
        }
        self.log("---- healing".to_owned());
        faults.heal(self);
        let mut well_since = None;
        while self.now < FAULTS_MS + HEALING_MS {
            self.step()?;
            match (self.is_well(), well_since) {
                (Ok(()), None) => well_since = Some(self.now),
                (Ok(()), Some(since)) if self.now - since > 3_000 => break,
                (Ok(()), Some(_)) => {}
                (Err(_), _) => well_since = None,
            }
        }
        self.is_well()?;
        let state = self.zk.state();
        let generations = state.valid().map_or(0, |(_, state)| state.generation);
        Ok(Summary { acknowledged: self.oracle.count(), generations })
    }

    pub(super) fn log(&mut self, event: String) {
        let event = format!("{:>6} {event}", self.now);
        if self.show {
            eprintln!("{event}");
        }
        if self.events.len() == EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    pub(super) fn index(&self, id: PeerId) -> Option<usize> {
        self.hosts.iter().position(|host| host.id() == id)
    }

    pub(super) fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Whether packets get from one host to the other.
    pub(super) fn reaches(&self, from: usize, to: usize) -> bool {
        self.hosts[from].up && self.hosts[to].up && !self.cuts.contains_key(&(from, to))
    }

    /// Whether a connection between them works.
    pub(super) fn linked(&self, one: usize, other: usize) -> bool {
        self.reaches(one, other) && self.reaches(other, one)
    }

    pub(super) fn reaches_zk(&self, host: usize) -> bool {
        self.now >= self.zk_down_until && !self.zk_cuts.contains_key(&host)
    }

    fn step(&mut self) -> Result<(), String> {
        self.now += TICK;
        let now = self.now;
        self.cuts.retain(|_, until| *until > now);
        self.zk_cuts.retain(|_, until| *until > now);
        self.restart_hosts();
        self.expire_sessions();
        let mut order: Vec<_> = (0..self.hosts.len()).collect();
        self.rng.shuffle(&mut order);
        for &host in &order {
            self.run_postgres(host)?;
            self.clients(host);
        }
        self.heartbeats();
        for &host in &order {
            self.run_sitter(host);
            self.check_history()?;
        }
        self.violation.take().map_or(Ok(()), Err)
    }

    fn check_history(&mut self) -> Result<(), String> {
        let version = self.zk.state().valid().map(|(version, _)| version);
        if version == self.seen_version {
            return Ok(());
        }
        self.seen_version = version;
        let history = self.zk.history_now();
        for state in self.oracle.check_history(&history)? {
            let reason = state.reason.clone().unwrap_or_default();
            let name = |peer: &Peer| peer.zone_id.clone();
            if self.now < FAULTS_MS && self.rng.u8(..) < 80 {
                self.doomed = Some((self.now + self.rng.u64(0..1_000), state.primary.id));
            }
            let asyncs: Vec<_> = state.async_peers.iter().map(name).collect();
            let deposed: Vec<_> = state.deposed.iter().map(name).collect();
            self.log(format!(
                "==== generation {}: {} {} {asyncs:?} deposed {deposed:?} init {}: {reason}",
                state.generation,
                state.primary.zone_id,
                state.sync_peer.as_ref().map(name).unwrap_or_default(),
                state.init_wal,
            ));
            if let Some(primary) = self.index(state.primary.id)
                && state.generation > 1
            {
                self.oracle.holds_everything("the new generation's primary", &self.hosts[primary].postgres)?;
            }
        }
        Ok(())
    }

    fn restart_hosts(&mut self) {
        for index in 0..self.hosts.len() {
            if self.hosts[index].returns.is_some_and(|at| at <= self.now) {
                let now = self.now;
                let session = self.zk.session();
                let host = &mut self.hosts[index];
                (host.returns, host.up) = (None, true);
                host.sitter = Some(Sitter::new(session, &host.postgres, now));
                self.log(format!("p{index} sitter started"));
            }
        }
    }

    fn expire_sessions(&mut self) {
        let now = self.now;
        if now < self.zk_down_until {
            return;
        }
        let (due, rest) = std::mem::take(&mut self.orphans).into_iter().partition(|(at, _)| *at <= now);
        self.orphans = rest;
        let due: Vec<(u64, FakeSession)> = due;
        due.iter().for_each(|(_, session)| session.expire());
        for index in 0..self.hosts.len() {
            let reaches = self.reaches_zk(index);
            let Some(sitter) = &self.hosts[index].sitter else { continue };
            if reaches && sitter.paused_until <= now {
                self.zk_silent_since[index] = None;
            } else {
                let since = *self.zk_silent_since[index].get_or_insert(now);
                if now - since >= SESSION_MS && (now - since - SESSION_MS) < TICK {
                    sitter.session.expire();
                    self.log(format!("p{index} session expires"));
                }
            }
        }
    }

    /// Clients write to whoever lets them, also to one that only they can reach.
    fn clients(&mut self, index: usize) {
        let id = self.new_id();
        let postgres = &mut self.hosts[index].postgres;
        if postgres.is_primary() && postgres.serves() && self.rng.u8(..) < 100 {
            let timeline = postgres.wal.timeline();
            postgres.wal.push(Record { timeline, id });
            postgres.waiting.push(postgres.wal.len() - 1);
        }
    }

    fn run_postgres(&mut self, index: usize) -> Result<(), String> {
        let now = self.now;
        let id = self.new_id();
        let postgres = &mut self.hosts[index].postgres;
        match postgres.process {
            Process::Starting { until } if until <= now => {
                postgres.process = Process::Running;
                (postgres.not_streaming_since, postgres.retry_at) = (now, now);
            }
            Process::Hung { .. } if postgres.hangs_until.is_some_and(|until| until <= now) => {
                postgres.process = Process::Running;
            }
            _ => {}
        }
        if !postgres.is_running() {
            return Ok(());
        }
        for sender in postgres.senders.values_mut() {
            if let Some((_, synchronous)) = sender.applies.filter(|(at, _)| *at <= now) {
                (sender.applied, sender.applies) = (synchronous, None);
            }
        }
        if postgres.standby {
            let behind = postgres.wal.len() - postgres.replayed;
            let stalls = now < postgres.replay_stalls_until || self.rng.u8(..) < 40;
            postgres.replayed += if stalls { 0 } else { behind.min(self.rng.usize(0..12)) };
            self.stream(index)?;
        } else {
            postgres.replayed = postgres.wal.len();
            if self.rng.u8(..) < 25 {
                let timeline = postgres.wal.timeline();
                postgres.wal.push(Record { timeline, id });
            }
            if now >= postgres.slow_until {
                postgres.flushed = postgres.wal.len();
            }
        }
        self.take_replies(index)
    }

    fn take_replies(&mut self, index: usize) -> Result<(), String> {
        let now = self.now;
        let peers: Vec<_> = self.hosts[index].postgres.senders.keys().copied().collect();
        for peer in peers {
            let Some(follower) = self.index(peer) else { continue };
            let (reaches, linked) = (self.reaches(follower, index), self.linked(follower, index));
            let receiver = self.hosts[follower].postgres.receiver;
            let here = self.hosts[index].id();
            let still_follows = receiver.is_some_and(|receiver| receiver.upstream == here);
            let postgres = &mut self.hosts[index].postgres;
            let Some(sender) = postgres.senders.get_mut(&peer) else { continue };
            let mut came = false;
            if reaches {
                let (due, rest): (Vec<_>, Vec<_>) = sender.replies.iter().partition(|(at, _)| *at <= now);
                came = !due.is_empty();
                sender.flush = due.iter().map(|(_, flush)| *flush).fold(sender.flush, usize::max);
                sender.replies = rest;
            }
            if came {
                sender.heard = now;
            }
            let gone = (linked && !still_follows && sender.replies.is_empty()) || now - sender.heard > WAL_TIMEOUT_MS;
            if came {
                let released = postgres.released_by(peer);
                let at = |host: usize, index: usize| self.hosts[host].postgres.wal.records.get(index).copied();
                for record in released {
                    let Some(content) = at(index, record) else { continue };
                    self.oracle.acknowledge(now, index, record, content, &|owner| at(owner, record))?;
                }
            }
            if gone {
                self.hosts[index].postgres.senders.remove(&peer);
            }
        }
        Ok(())
    }

    /// The WAL receiver of a standby.
    fn stream(&mut self, index: usize) -> Result<(), String> {
        let now = self.now;
        let me = self.hosts[index].id();
        let Some(config) = &self.hosts[index].postgres.config else { return Ok(()) };
        let Recovery::Follow(upstream) = config.recovery else { return Ok(()) };
        let Some(source) = self.index(upstream) else { return Ok(()) };
        let linked = self.linked(index, source);
        let (delay, amount) = (self.rng.u64(0..60), self.rng.usize(0..12));
        let (lost, half) = (self.rng.u8(..) < 30, self.rng.u8(..) < 60);
        let retry_at = now + self.rng.u64(100..300);
        let mut source_postgres = std::mem::replace(&mut self.hosts[source].postgres, Postgres::new());
        let follower = &mut self.hosts[index].postgres;
        let result = match follower.receiver {
            Some(receiver) => {
                let alive = source_postgres.is_running() && source_postgres.senders.contains_key(&me);
                let hung = matches!(source_postgres.process, Process::Hung { .. });
                let closed = linked && !alive && !hung;
                if closed || now - receiver.heard > WAL_TIMEOUT_MS {
                    (follower.receiver, follower.not_streaming_since, follower.retry_at) = (None, now, retry_at);
                    follower.partial = 0;
                } else if linked && alive && !lost && now >= follower.slow_until {
                    follower.receiver = Some(Receiver { heard: now, ..receiver });
                    let amount = if now < follower.lags_until { amount / 10 } else { amount };
                    let result = transfer(follower, &source_postgres, amount, half);
                    let reply = (now + delay, follower.wal.len());
                    if let Some(sender) = source_postgres.senders.get_mut(&me) {
                        sender.replies.push(reply);
                    }
                    result?;
                }
                Ok(())
            }
            None if now >= follower.retry_at => {
                follower.retry_at = retry_at;
                if linked && source_postgres.is_running() {
                    attach(follower, &mut source_postgres, me, upstream, now);
                }
                Ok(())
            }
            None => Ok(()),
        };
        self.hosts[source].postgres = source_postgres;
        result
    }

    fn heartbeats(&mut self) {
        let now = self.now;
        for from in 0..self.hosts.len() {
            for to in 0..self.hosts.len() {
                if from == to || self.rng.u8(..) < 60 || !self.linked(from, to) {
                    continue;
                }
                let peer = self.hosts[from].id();
                let said =
                    self.hosts[from].sitter.as_ref().map(|sitter| (sitter.paused_until > now, sitter.report.clone()));
                let Some(listener) = self.hosts[to].sitter.as_mut().filter(|sitter| sitter.paused_until <= now) else {
                    continue;
                };
                match said {
                    None => drop(listener.refused.insert(peer, true)),
                    Some((true, _)) | Some((_, None)) => drop(listener.refused.insert(peer, false)),
                    Some((false, Some(report))) => {
                        listener.refused.insert(peer, false);
                        listener.heard.insert(peer, (now, report));
                    }
                }
            }
        }
    }

    fn run_sitter(&mut self, index: usize) {
        let now = self.now;
        self.deliver_straggler(index);
        let reaches = self.reaches_zk(index);
        let host = &mut self.hosts[index];
        let Some(sitter) = host.sitter.as_mut() else { return };
        if sitter.paused_until > now {
            return;
        }
        if sitter.paused_until != 0 {
            (sitter.resumed, sitter.paused_until) = (now, 0);
        }
        keep_session(sitter, reaches, now, &mut self.rng);
        self.progress(index);
        let host = &mut self.hosts[index];
        let Some(sitter) = host.sitter.as_mut() else { return };
        if self.rng.u8(..) < 150 {
            sitter.local.data = host.postgres.data.clone();
            sitter.local.server = host.postgres.observe(now);
        }
        sitter.local.config = sitter.confirmed.clone();
        let view = sitter.view(&host.peer, now);
        let decision = decide(&view);
        if sitter.last_reason != decision.reason {
            let event = format!("p{index} {}: {}", decision.action.name(), decision.reason);
            sitter.last_reason = decision.reason;
            self.log(event);
        }
        self.carry_out(index, decision.action);
    }

    fn deliver_straggler(&mut self, index: usize) {
        let id = self.hosts[index].id();
        let Some(sitter) = self.hosts[index].sitter.as_mut() else { return };
        if sitter.straggler.as_ref().is_none_or(|straggler| straggler.arrives > self.now)
            || self.now < self.zk_down_until
        {
            return;
        }
        let Some(straggler) = sitter.straggler.take() else { return };
        if self.zk.active().contains_key(&id) {
            let hand = self.zk.session();
            hand.connect();
            let result = hand.write_now(straggler.expected, &straggler.state);
            hand.close_now();
            self.log(format!("p{index} late write arrives: {result:?}"));
        }
    }

    /// Why the shard is not as it should be long after the last fault.
    fn is_well(&self) -> Result<(), String> {
        let state = self.zk.state();
        let (_, state) = state.valid().ok_or("there is no state")?;
        let primary = self.index(state.primary.id).ok_or("an unknown primary")?;
        let postgres = &self.hosts[primary].postgres;
        self.oracle.holds_everything("the primary", postgres)?;
        if self.now - self.oracle.last_acknowledged_at > 1_000 {
            return Err("writes are not acknowledged".to_owned());
        }
        if state.chain().count() != self.hosts.len() {
            return Err(format!("the chain is not complete: {} deposed", state.deposed.len()));
        }
        for host in &self.hosts {
            let streams =
                host.postgres.is_primary() || (host.postgres.is_running() && host.postgres.receiver.is_some());
            if !streams || !host.postgres.serves() {
                return Err(format!("{} does not stream, or is not open", host.peer.zone_id));
            }
        }
        match postgres.config.as_ref().map(|config| config.synchronous) {
            Some(Synchronous::Peer(peer)) if state.sync_peer.as_ref().is_some_and(|sync| sync.id == peer) => Ok(()),
            other => Err(format!("the primary requires {other:?}")),
        }
    }
}

/// Connection to ZooKeeper, and what is seen through it: late, but in order.
fn keep_session(sitter: &mut Sitter, reaches: bool, now: u64, rng: &mut fastrand::Rng) {
    let link = sitter.session.view_now().session;
    if reaches && link != Session::Connected && rng.u8(..) < 60 {
        sitter.straggler = None;
        sitter.session.connect();
    } else if !reaches && link == Session::Connected && rng.u8(..) < 15 {
        sitter.session.disconnect();
    }
    if rng.u8(..) < 2 {
        sitter.blind_until = now + rng.u64(0..800);
    }
    let seen = sitter.session.view_now();
    if now < sitter.blind_until {
        return;
    }
    if seen.session != Session::Connected {
        sitter.zk = View { session: seen.session, ..sitter.zk.clone() };
    } else if reaches && (rng.u8(..) < 150 || sitter.zk.session != Session::Connected) {
        sitter.zk = seen;
        sitter.uncertain = false;
    }
}

/// Some records get from one to the other, perhaps with a part of the next.
fn transfer(follower: &mut Postgres, source: &Postgres, amount: usize, half: bool) -> Result<(), String> {
    let have = follower.wal.len();
    if have > 0 && source.wal.records.get(have - 1) != follower.wal.records.get(have - 1) {
        return Err(format!("a standby streams on top of other WAL at {have}"));
    }
    let end = source.flushed.min(have + amount);
    for record in source.wal.records.get(have..end).unwrap_or_default() {
        follower.wal.push(*record);
    }
    follower.flushed = follower.wal.len();
    let more = source.flushed > end && source.wal.records[end].timeline == follower.wal.timeline();
    follower.partial = if half && more { 7 } else { 0 };
    Ok(())
}

fn attach(follower: &mut Postgres, source: &mut Postgres, me: PeerId, upstream: PeerId, now: u64) {
    match source.accepts(follower.wal.timeline(), follower.wal.len()) {
        Ok(()) => {
            follower.receiver = Some(Receiver { upstream, heard: now });
            (follower.has_streamed, follower.cannot_follow) = (true, None);
            let applied = source.config.as_ref().map_or(Synchronous::Impossible, |config| config.synchronous);
            let replies = vec![(now, follower.flushed)];
            source.senders.insert(me, Sender { applied, applies: None, flush: 0, heard: now, replies });
        }
        Err(true) => follower.cannot_follow = Some("the requested position is not in this server's history".to_owned()),
        Err(false) => {}
    }
}
