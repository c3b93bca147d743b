//! Time, and one run: who moves when, and what is checked after every step.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use manatee_fake_zookeeper::{FakeSession, FakeZooKeeper};
use manatee_shared::cluster::{ClusterState, Peer};
use manatee_shared::zk::{Session, Version};

use super::host::{Host, Sitter, Straggler};
use super::mutation::Mutation;
use super::network::Network;
use super::oracle::Oracle;
use super::plan::{Fault, Plan};
use super::postgres::{Postgres, number, peer_id};
use crate::machine::decide::decide;
use crate::machine::local::{Data, Synchronous};

/// Resolution of time, ms.
pub(super) const TICK: u64 = 20;
/// Within this much after the last fault everything must be well again, ms.
const HEALING_MS: u64 = 90_000;
/// It counts as well once it has been for this long, ms.
const WELL_MS: u64 = 1_500;
/// ZooKeeper's session timeout, ms.
pub(super) const SESSION_MS: u64 = 4_000;
/// A sitter decides at least this often, ms.
const DECIDES_MS: u64 = 50;
/// Events kept for a failure's report.
const EVENTS: usize = 400;
/// A quick first setup is over by then, ms.
const SET_UP_MS: u64 = 1_000;

/// Results of runs: whether they exercised what they are meant to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Counts {
    pub runs: u64,
    pub acknowledged: u64,
    pub generations: u64,
    pub takeovers: u64,
    pub faults: u64,
    pub actions: u64,
    pub torn: u64,
    pub copies: u64,
    /// Commits acknowledged under settings that somebody had loosened.
    pub loosened: u64,
    /// Virtual time, ms.
    pub virtual_ms: u64,
}

impl Counts {
    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        self.runs += other.runs;
        self.acknowledged += other.acknowledged;
        self.generations += other.generations;
        self.takeovers += other.takeovers;
        self.faults += other.faults;
        self.actions += other.actions;
        self.torn += other.torn;
        self.copies += other.copies;
        self.loosened += other.loosened;
        self.virtual_ms += other.virtual_ms;
    }
}

/// A run that broke a rule.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Problem, and its moment.
    pub problem: String,
    /// The last events before it; empty unless asked for.
    pub events: Vec<String>,
}

pub(super) struct World {
    pub(super) rng: fastrand::Rng,
    /// The beginning of time, for those who count in [`Instant`]s.
    pub(super) base: Instant,
    pub(super) now: u64,
    pub(super) zk: FakeZooKeeper,
    pub(super) hosts: Vec<Host>,
    pub(super) network: Network,
    pub(super) zk_silent_since: Vec<Option<u64>>,
    /// Sessions of processes that died, and when the server notices.
    pub(super) orphans: Vec<(u64, FakeSession)>,
    /// Writes of processes that died, on their way, and their sessions.
    pub(super) late_writes: Vec<(Straggler, FakeSession)>,
    /// Number of changes of ZooKeeper by somebody, past all rules.
    pub(super) tampered: u64,
    /// A state that was lost, its version, and when an operator restores it.
    pub(super) lost_state: Option<(u64, Version, std::sync::Arc<ClusterState>)>,
    /// No trace of the shard is left in ZooKeeper.
    pub(super) lost_history: bool,
    pub(super) next_id: u64,
    pub(super) oracle: Oracle,
    /// Timelines begun by promotions by hand, and how many such in a row each is the last of.
    pub(super) by_hand: BTreeMap<u32, u32>,
    /// Faults that wait for their moment.
    pub(super) armed: Vec<Fault>,
    /// New primaries that are to lose their power soon: when, who, for how long.
    pub(super) doomed: Vec<(u64, usize, u64)>,
    /// The host whose disk came back older, until it has again what was acknowledged.
    pub(super) older: Option<usize>,
    /// Found by an action; ends the run.
    pub(super) violation: Option<String>,
    pub(super) counts: Counts,
    /// (time, generation, its primary) of each generation.
    pub(super) generations: Vec<(u64, u64, usize)>,
    pub(super) has_old_disks: bool,
    plan: Plan,
    next_fault: usize,
    pub(super) healing: bool,
    seen_revision: u64,
    events: VecDeque<String>,
    record: bool,
}

impl World {
    pub(super) fn new(plan: &Plan, record: bool) -> Self {
        let zk = FakeZooKeeper::new();
        let host = |number: usize| Host {
            peer: Peer::new(peer_id(number), format!("p{number}")),
            up: true,
            sitter: None,
            postgres: Postgres::new(),
            remembers: None,
            returns: Some(0),
            one_node: false,
            saved: VecDeque::new(),
            clock_jump_ms: 0,
        };
        Self {
            rng: fastrand::Rng::with_seed(plan.seed),
            #[expect(clippy::disallowed_methods, reason = "a moment to count from; only differences matter")]
            base: Instant::now(),
            now: 0,
            zk,
            hosts: (0..plan.peers).map(host).collect(),
            network: Network::default(),
            zk_silent_since: vec![None; plan.peers],
            orphans: Vec::new(),
            late_writes: Vec::new(),
            tampered: 0,
            lost_state: None,
            lost_history: false,
            next_id: 100,
            oracle: Oracle::default(),
            by_hand: BTreeMap::new(),
            armed: Vec::new(),
            doomed: Vec::new(),
            older: None,
            violation: None,
            counts: Counts { runs: 1, ..Counts::default() },
            generations: Vec::new(),
            has_old_disks: plan.has_old_disks(),
            plan: plan.clone(),
            next_fault: 0,
            healing: false,
            seen_revision: u64::MAX,
            events: VecDeque::new(),
            record,
        }
    }

    /// The whole run.
    pub(super) fn run(&mut self) -> Result<Counts, Failure> {
        let result = self.faults_then_healing();
        self.counts.acknowledged = self.oracle.count() as u64;
        self.counts.virtual_ms = self.now;
        match result {
            Ok(()) => Ok(self.counts),
            Err(problem) => Err(Failure {
                problem: format!("at {} ms: {problem}", self.now),
                events: self.events.iter().cloned().collect(),
            }),
        }
    }

    /// The last events.
    pub(super) fn take_events(&mut self) -> Vec<String> {
        self.events.drain(..).collect()
    }

    fn faults_then_healing(&mut self) -> Result<(), String> {
        self.go_on_until(self.plan.faults_ms)?;
        self.heal()
    }

    /// Time passes, with whatever was planned for it.
    pub(super) fn go_on_until(&mut self, end: u64) -> Result<(), String> {
        while self.now < end {
            self.step()?;
        }
        Ok(())
    }

    /// Everything works again, and all must become well.
    fn heal(&mut self) -> Result<(), String> {
        self.log(|| "---- healing".to_owned());
        self.healing = true;
        self.repair();
        let end = self.now + HEALING_MS;
        let mut well_since = None;
        loop {
            self.step()?;
            match self.is_well() {
                Ok(()) => {
                    let since = *well_since.get_or_insert(self.now);
                    if self.now - since >= WELL_MS {
                        return Ok(());
                    }
                }
                Err(problem) if self.now >= end => return Err(format!("not well again: {problem}")),
                Err(_) => well_since = None,
            }
        }
    }

    pub(super) fn mutated(&self, mutation: Mutation) -> bool {
        self.plan.mutation == Some(mutation)
    }

    pub(super) fn is_setting_up(&self) -> bool {
        self.plan.quick_setup && self.now < SET_UP_MS
    }

    pub(super) fn log(&mut self, event: impl FnOnce() -> String) {
        if self.record {
            if self.events.len() == EVENTS {
                self.events.pop_front();
            }
            self.events.push_back(format!("{:>6} {}", self.now, event()));
        }
    }

    pub(super) fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Whether packets get from one host to the other.
    pub(super) fn reaches(&self, from: usize, to: usize) -> bool {
        self.hosts[from].up && self.hosts[to].up && self.network.passes(self.now, from, to)
    }

    /// Whether a connection between them works.
    pub(super) fn linked(&self, one: usize, other: usize) -> bool {
        self.reaches(one, other) && self.reaches(other, one)
    }

    pub(super) fn reaches_zk(&self, host: usize) -> bool {
        self.network.passes_to_zk(self.now, host)
    }

    fn step(&mut self) -> Result<(), String> {
        self.now += TICK;
        let now = self.now;
        self.network.flap(now, self.hosts.len());
        while let Some(timed) =
            self.plan.faults.get(self.next_fault).filter(|timed| timed.at_ms <= now && !self.healing)
        {
            self.next_fault += 1;
            self.counts.faults += 1;
            self.apply(timed.fault);
        }
        self.due_faults();
        self.save_disks();
        self.restart_hosts();
        self.restore_state();
        self.expire_sessions();
        let first = self.rng.usize(0..self.hosts.len());
        let count = self.hosts.len();
        for host in (first..count).chain(0..first) {
            self.run_postgres(host)?;
            self.clients(host);
        }
        self.heartbeats();
        for host in (first..count).chain(0..first) {
            self.run_sitter(host);
            self.check(host)?;
        }
        self.violation.take().map_or(Ok(()), Err)
    }

    /// After everything that a sitter did.
    fn check(&mut self, host: usize) -> Result<(), String> {
        let revision = self.zk.revision();
        if revision != self.seen_revision {
            self.seen_revision = revision;
            self.check_history()?;
        }
        let stale = self.is_stale(host);
        self.oracle.watch_stale(self.now, host, stale)?;
        let loosened = self.is_loosened(host);
        self.oracle.watch_loosened(self.now, host, loosened)
    }

    /// It lets readers in as a primary, the state names another, and its sitter could know.
    fn is_stale(&self, host: usize) -> bool {
        let host_state = &self.hosts[host];
        let able = host_state.up && host_state.sitter.as_ref().is_some_and(|sitter| sitter.paused_until <= self.now);
        let Some((_, _, primary)) = self.generations.last() else { return false };
        // Without a state nobody knows better; and a new process that has read none lets everything
        // stay as it is (rule 9).
        let has_read = host_state.sitter.as_ref().is_some_and(|sitter| sitter.view.zk.state.valid().is_some());
        let able = able && self.lost_state.is_none() && has_read;
        able && *primary != host && host_state.postgres.is_primary() && host_state.postgres.serves()
    }

    /// Settings that Manatee owns are not in force, and its sitter could know. What was not confirmed yet is given again.
    fn is_loosened(&self, host: usize) -> bool {
        let host = &self.hosts[host];
        let able = host.up && host.sitter.as_ref().is_some_and(|sitter| sitter.paused_until <= self.now);
        let confirmed = host.postgres.record.as_ref().is_some_and(|(_, confirmed)| *confirmed);
        able && confirmed && host.postgres.is_running() && host.postgres.loosened.is_some()
    }

    /// Checks the history that was written since the last time.
    pub(super) fn check_history(&mut self) -> Result<(), String> {
        let fresh = self.zk.history_after(self.oracle.seen_history);
        if fresh.is_empty() {
            return Ok(());
        }
        for state in self.oracle.check_history(&fresh)? {
            let primary = number(state.primary.id);
            self.log(|| {
                let name = |peer: &Peer| peer.zone_id.clone();
                let asyncs: Vec<_> = state.async_peers.iter().map(name).collect();
                let deposed: Vec<_> = state.deposed.iter().map(name).collect();
                format!(
                    "==== generation {}: {} {} {asyncs:?} deposed {deposed:?} init {}: {}",
                    state.generation,
                    state.primary.zone_id,
                    state.sync_peer.as_ref().map(name).unwrap_or_default(),
                    state.init_wal,
                    state.reason.clone().unwrap_or_default(),
                )
            });
            let before = self.generations.last().map(|(.., primary)| *primary);
            self.generations.push((self.now, state.generation, primary));
            self.counts.generations += 1;
            if before.is_some_and(|before| before != primary) {
                self.counts.takeovers += 1;
                self.doom(primary);
            }
            // A primary may have sent this and lost its power, and then what it had: it must not go on from there.
            let lost_since = self.older == Some(primary) && before == Some(primary);
            if state.generation > 1 && !lost_since {
                let postgres = &self.hosts[primary].postgres;
                self.oracle.holds_everything("the new generation's primary", postgres)?;
                self.oracle.holds_what_was_shown("the new generation's primary", postgres)?;
            }
        }
        Ok(())
    }

    fn restart_hosts(&mut self) {
        for index in 0..self.hosts.len() {
            let now = self.now;
            if self.hosts[index].returns.is_some_and(|at| at <= now) {
                let session = self.zk.session();
                let host = &mut self.hosts[index];
                (host.returns, host.up) = (None, true);
                // Known to the process that looked.
                host.postgres.end = None;
                let mut sitter = Sitter::new(session, &host.peer, &host.postgres, host.remembers, now);
                sitter.view.settings.one_node_write_mode = host.one_node;
                host.sitter = Some(sitter);
                self.log(|| format!("p{index} sitter started"));
            }
        }
    }

    fn run_sitter(&mut self, index: usize) {
        let now = self.now;
        self.deliver_straggler(index);
        let Some(sitter) = self.hosts[index].sitter.as_mut() else { return };
        if sitter.paused_until > now {
            return;
        }
        self.keep_session(index);
        self.progress(index);
        let mutation = self.plan.mutation;
        let host = &mut self.hosts[index];
        let Some(sitter) = host.sitter.as_mut() else { return };
        if sitter.decides > now {
            return;
        }
        sitter.decides = now + self.rng.u64(DECIDES_MS / 2..DECIDES_MS);
        if self.rng.u8(..) < 200 {
            sitter.observe(&host.postgres, now);
            if mutation == Some(Mutation::LoosenedUnnoticed) {
                let record = host.postgres.record.as_ref().filter(|(_, confirmed)| *confirmed);
                sitter.view.local.config = record.map(|(config, _)| config.clone());
                sitter.view.local.loosened.clear();
            }
        }
        sitter.complete(self.base, now, host.clock_jump_ms);
        if matches!(sitter.view.local.data, Data::Present(_)) {
            host.remembers = sitter.view.observed.newest_generation;
        }
        let decision = match mutation {
            None => decide(&sitter.view),
            Some(mutation) => mutation.decide(&sitter.view, sitter.uncertain),
        };
        if self.record && self.hosts[index].sitter.as_ref().is_some_and(|sitter| sitter.last_reason != decision.why) {
            self.log(|| format!("p{index} {}: {}", decision.action.kind(), decision.why));
            if let Some(sitter) = self.hosts[index].sitter.as_mut() {
                sitter.last_reason = decision.why;
            }
        }
        self.carry_out(index, decision.action);
        self.put_right(index);
    }

    /// Checks that the shard is as it should be long after the last fault. Errors: why it is not.
    pub(super) fn is_well(&self) -> Result<(), String> {
        if self.now - self.oracle.last_acknowledged_at > 1_000 {
            return Err("writes are not acknowledged".to_owned());
        }
        let state = self.zk.state();
        let (_, state) = state.valid().ok_or("there is no state")?;
        let primary = number(state.primary.id);
        let postgres = &self.hosts[primary].postgres;
        if state.chain().count() != self.hosts.len() {
            return Err(format!("the chain is not complete: {} deposed", state.deposed.len()));
        }
        for host in &self.hosts {
            let streams =
                host.postgres.is_primary() || (host.postgres.is_running() && host.postgres.receiver.is_some());
            if !streams || !host.postgres.serves() {
                return Err(format!("{} does not stream, or is not open", host.peer.zone_id));
            }
            let session = host.sitter.as_ref().map(|sitter| sitter.session.link());
            if session != Some(Session::Connected) {
                return Err(format!("{} has no session", host.peer.zone_id));
            }
        }
        self.oracle.holds_everything("the primary", postgres)?;
        match postgres.config.as_ref().map(|config| config.synchronous) {
            Some(Synchronous::Peer(peer)) if state.sync_peer.as_ref().is_some_and(|sync| sync.id == peer) => Ok(()),
            other => Err(format!("the primary requires {other:?}")),
        }
    }
}
