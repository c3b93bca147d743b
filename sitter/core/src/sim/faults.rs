//! Faults, and how each breaks the model.

use std::sync::Arc;

use jiff::Timestamp;
use manatee_shared::cluster::{ClusterState, Freeze, Promote, PromoteRole, Role};
use manatee_shared::lsn::Timeline;
use manatee_shared::zk::Over;

use super::host::Straggler;
use super::network::Flapping;
use super::plan::{Direction, Fault, Looser, Operation, Target};
use super::postgres::{Process, number, peer_id};
use super::world::{SESSION_MS, World};
use crate::machine::action::{Action, ShardAction};
use crate::machine::local::{Data, Server, Synchronous};
use crate::machine::situation::{Promotion, TIMELINES_APART, contains_init_wal};

/// Interval of saving disks.
const SAVED_EVERY_MS: u64 = 500;
const SAVED: usize = 8;

impl World {
    fn resolve(&self, target: Target) -> usize {
        let state = match &self.lost_state {
            Some((.., state)) => Some(Arc::clone(state)),
            None => self.zk.state().valid().map(|(_, state)| Arc::clone(state)),
        };
        let Some(state) = state else { return 0 };
        let nth = |index: usize| state.async_peers.get(index).map(|peer| number(peer.id));
        let sync = || state.sync_peer.as_ref().map(|peer| number(peer.id));
        match target {
            Target::Primary => number(state.primary.id),
            Target::Sync => sync().unwrap_or(0),
            Target::Async => nth(0).or_else(sync).unwrap_or(0),
            Target::SecondAsync => nth(1).or_else(|| nth(0)).unwrap_or(0),
            Target::Peer(number) => number % self.hosts.len(),
        }
    }

    /// `fault` happens.
    pub(super) fn apply(&mut self, fault: Fault) {
        let now = self.now;
        self.log(|| format!("!!!! {fault:?}"));
        match fault {
            Fault::KillSitter { who, for_ms } => self.kill_sitter(self.resolve(who), for_ms),
            Fault::KillPostgres { who } => self.kill_postgres(self.resolve(who)),
            Fault::KillBoth { who, for_ms } => {
                let who = self.resolve(who);
                self.kill_postgres(who);
                self.kill_sitter(who, for_ms);
            }
            Fault::PowerOff { who, for_ms } => self.power_off(self.resolve(who), for_ms),
            Fault::Cut { from, to, both_ways, for_ms } => {
                let (from, to) = (self.resolve(from), self.resolve(to));
                self.network.cut(from, to, now + for_ms);
                if both_ways {
                    self.network.cut(to, from, now + for_ms);
                }
            }
            Fault::Isolate { who, direction, zk, for_ms } => self.isolate(self.resolve(who), direction, zk, for_ms),
            Fault::Split { first, zk_with_first, for_ms } => {
                for one in 0..self.hosts.len() {
                    for other in (0..self.hosts.len()).filter(|other| (*other < first) != (one < first)) {
                        self.network.cut(one, other, now + for_ms);
                    }
                    if (one < first) != zk_with_first {
                        self.network.cut_zk(one, now + for_ms);
                    }
                }
            }
            Fault::Flap { who, zk, up_ms, down_ms, for_ms } => {
                let who = self.resolve(who);
                let until = now + for_ms;
                self.network.flapping = Some(Flapping { who, zk, up_ms, down_ms, until, next: now, down: false });
            }
            Fault::BadNetwork { delay_ms, loss_percent, for_ms } => {
                let network = &mut self.network;
                (network.delay_ms, network.loss_percent, network.bad_until) = (delay_ms, loss_percent, now + for_ms);
            }
            Fault::CutZooKeeper { who, for_ms } => self.network.cut_zk(self.resolve(who), now + for_ms),
            Fault::ZooKeeperDown { for_ms } => self.network.zk_down_until = now + for_ms,
            Fault::WipeZooKeeper { for_ms } => self.lose_state(now + for_ms, false),
            Fault::CorruptState { for_ms } => self.lose_state(now + for_ms, true),
            Fault::RestoreOldState { generations, for_ms } => self.put_old_state(generations, now + for_ms),
            Fault::ExpireSession { who } => {
                if let Some(sitter) = &self.hosts[self.resolve(who)].sitter {
                    sitter.session.expire();
                }
            }
            Fault::JumpClock { who, by_ms } => {
                let who = self.resolve(who);
                self.hosts[who].clock_jump_ms += by_ms;
            }
            Fault::Doom { .. } | Fault::CrashAt { .. } | Fault::LoseAnswer { .. } => self.armed.push(fault),
            Fault::Operate { operation } => self.operate(operation),
            fault => self.apply_to_host(fault),
        }
    }

    /// Those that concern one process or one disk.
    fn apply_to_host(&mut self, fault: Fault) {
        let now = self.now;
        match fault {
            Fault::LateViews { who, for_ms } => {
                let who = self.resolve(who);
                if let Some(sitter) = self.hosts[who].sitter.as_mut() {
                    sitter.blind_until = now + for_ms;
                }
            }
            Fault::PauseSitter { who, for_ms } => self.pause_sitter(self.resolve(who), for_ms),
            Fault::PausePostgres { who, for_ms } => self.hang(self.resolve(who), for_ms),
            Fault::PauseBoth { who, for_ms } => {
                let who = self.resolve(who);
                self.pause_sitter(who, for_ms);
                self.hang(who, Some(for_ms));
            }
            Fault::SlowDisk { who, for_ms } => {
                let who = self.resolve(who);
                self.hosts[who].postgres.slow_until = now + for_ms;
            }
            Fault::SlowFlushes { who, each_ms, for_ms } => {
                let who = self.resolve(who);
                self.hosts[who].postgres.slow_flushes = (now + for_ms, each_ms);
            }
            Fault::DiskFull { who, for_ms } => {
                let who = self.resolve(who);
                self.hosts[who].postgres.full_until = now + for_ms;
            }
            Fault::DiskLow { who, for_ms } => {
                let who = self.resolve(who);
                self.hosts[who].postgres.low_until = now + for_ms;
            }
            Fault::DiskBack { who, states, records, for_ms } => {
                self.put_disk_back(self.resolve(who), states, records, for_ms);
            }
            Fault::DiskLost { who, for_ms } => self.lose_disk(self.resolve(who), for_ms),
            Fault::StallReplay { who, for_ms } => {
                let who = self.resolve(who);
                self.hosts[who].postgres.replay_stalls_until = now + for_ms;
            }
            Fault::Lag { who, for_ms } => {
                let who = self.resolve(who);
                self.hosts[who].postgres.lags_until = now + for_ms;
            }
            Fault::PromoteByHand { who } => self.promote_by_hand(self.resolve(who)),
            Fault::Loosen { who, what } => self.loosen(self.resolve(who), what),
            Fault::RecycleWal { who } => {
                let who = self.resolve(who);
                let postgres = &mut self.hosts[who].postgres;
                let needed = postgres.senders.iter().flatten().map(|sender| sender.flush).min();
                postgres.kept_from = needed.unwrap_or(postgres.flushed).min(postgres.flushed);
            }
            Fault::StopSitter { who, for_ms } => {
                let who = self.resolve(who);
                if let Some(sitter) = self.hosts[who].sitter.as_mut() {
                    sitter.stopping_since.get_or_insert(now);
                    (sitter.stays_away_ms, sitter.decides) = (for_ms, now);
                }
            }
            _ => {}
        }
    }

    /// Of the state's primary it would only do what its sitter does. Servers promoted by hand that do not
    /// know of each other begin the same timeline; who follows first one and then the other has to rejoin
    /// from both alike. So it is played when nobody else is on that timeline, and as many in a row, each a
    /// follower of the one before, as [`TIMELINES_APART`] leaves room for.
    fn promote_by_hand(&mut self, host: usize) {
        let named = self.zk.state().valid().is_some_and(|(_, state)| number(state.primary.id) == host);
        let named = named || self.late_writes.iter().any(|(write, _)| number(write.state.primary.id) == host);
        let own = self.hosts[host].postgres.wal.timeline();
        let depth = self.by_hand.get(&own).map_or(1, |depth| depth + 1);
        let begun =
            |host: &super::host::Host| host.postgres.promotes.is_some() || host.postgres.wal.timeline() == own + 1;
        let able = self.hosts[host].postgres.is_running() && self.hosts[host].postgres.standby;
        // Of two that nobody can be brought in line with each other an operator has to choose one.
        let named = named || self.older.is_some();
        if named || !able || self.hosts.iter().any(begun) || depth >= TIMELINES_APART {
            return;
        }
        self.by_hand.insert(own + 1, depth);
        let postgres = &mut self.hosts[host].postgres;
        (postgres.promotes, postgres.by_hand) = (Some((self.now, 0)), true);
    }

    /// The reload that follows comes to each walsender when it gets to it.
    fn loosen(&mut self, host: usize, what: Looser) {
        let now = self.now;
        let mut rng = self.rng.fork();
        let postgres = &mut self.hosts[host].postgres;
        if !postgres.is_running() || postgres.config.is_none() {
            return;
        }
        postgres.loosened = Some(what);
        if what == Looser::Names {
            for sender in postgres.senders.iter_mut().flatten() {
                sender.applies = Some((now + rng.u64(0..200), Synchronous::Nobody));
            }
        }
    }

    /// Planned for a moment that has come.
    pub(super) fn due_faults(&mut self) {
        let now = self.now;
        if let Some(place) = self.doomed.iter().position(|(at, ..)| *at <= now) {
            let (_, who, for_ms) = self.doomed.remove(place);
            self.power_off(who, for_ms);
        }
    }

    /// `primary` has just been named.
    pub(super) fn doom(&mut self, primary: usize) {
        if let Some(place) = self.armed.iter().position(|fault| matches!(fault, Fault::Doom { .. }))
            && let Fault::Doom { after_ms, for_ms } = self.armed.remove(place)
        {
            self.doomed.push((self.now + after_ms, primary, for_ms));
        }
    }

    /// Everything that was broken works again.
    pub(super) fn repair(&mut self) {
        let now = self.now;
        self.network.heal();
        self.armed.clear();
        self.doomed.clear();
        if let Some((until, ..)) = &mut self.lost_state {
            *until = now;
        }
        self.restore_state();
        self.operate(Operation::Unfreeze);
        self.operate(Operation::LeaveOneNodeWriteMode);
        for host in &mut self.hosts {
            host.clock_jump_ms = 0;
            if let Some(at) = &mut host.returns {
                *at = now;
            }
            if let Some(sitter) = &mut host.sitter {
                (sitter.paused_until, sitter.blind_until) = (sitter.paused_until.min(now), 0);
                sitter.stays_away_ms = sitter.stays_away_ms.min(1_000);
            }
            let postgres = &mut host.postgres;
            postgres.hangs_until = postgres.hangs_until.map(|until| until.min(now));
            (postgres.slow_until, postgres.full_until, postgres.low_until) = (0, 0, 0);
            (postgres.replay_stalls_until, postgres.lags_until) = (0, 0);
            (postgres.slow_flushes, postgres.flushing) = ((0, 0), None);
        }
    }

    fn isolate(&mut self, who: usize, direction: Direction, zk: bool, for_ms: u64) {
        let until = self.now + for_ms;
        for other in 0..self.hosts.len() {
            if direction != Direction::Outgoing {
                self.network.cut(other, who, until);
            }
            if direction != Direction::Incoming {
                self.network.cut(who, other, until);
            }
        }
        if zk {
            self.network.cut_zk(who, until);
        }
    }

    fn kill_sitter(&mut self, host: usize, for_ms: u64) {
        let expires = self.now + SESSION_MS - self.rng.u64(0..600);
        if let Some(mut sitter) = self.hosts[host].sitter.take() {
            sitter.session.disconnect();
            let unsent = sitter.flight.take().filter(|flight| flight.sent.is_none());
            if let Some(Action::Shard(ShardAction::WriteState { over, state })) = unsent.map(|flight| flight.action) {
                // The kernel sends what a dead process wrote to its socket.
                let arrives = self.now + self.rng.u64(0..1_500);
                let (id, state) = (self.oracle.new_write(self.tampered), Arc::unwrap_or_clone(state));
                sitter.straggler = Some(Straggler { id, by: Some(self.hosts[host].peer.id), arrives, over, state });
            }
            if let Some(straggler) = sitter.straggler.take() {
                self.late_writes.push((straggler, sitter.session.clone()));
            }
            self.orphans.push((expires, sitter.session));
            self.zk_silent_since[host] = None;
            self.hosts[host].returns = Some(self.now + for_ms);
        }
    }

    fn kill_postgres(&mut self, host: usize) {
        if !matches!(self.hosts[host].postgres.process, Process::Down { .. }) {
            self.hosts[host].postgres.end(true);
        }
    }

    fn power_off(&mut self, host: usize, for_ms: u64) {
        self.log(|| format!("!!!! p{host} power off"));
        self.kill_postgres(host);
        self.kill_sitter(host, for_ms);
        self.hosts[host].up = false;
        self.hosts[host].returns = Some(self.now + for_ms);
    }

    fn pause_sitter(&mut self, host: usize, for_ms: u64) {
        if let Some(sitter) = self.hosts[host].sitter.as_mut() {
            sitter.paused_until = self.now + for_ms;
        }
    }

    fn hang(&mut self, host: usize, for_ms: Option<u64>) {
        let now = self.now;
        let postgres = &mut self.hosts[host].postgres;
        if postgres.is_running() {
            postgres.process = Process::Hung { since: now };
            postgres.hangs_until = Some(now + for_ms.unwrap_or(1 << 40));
        }
    }

    /// Messages that it sent and that have not arrived are lost with its disk: they are told from its WAL when they
    /// arrive, and it has none any more.
    fn take_disk(&mut self, host: usize, for_ms: u64) {
        self.power_off(host, for_ms);
        self.hosts[host].postgres.lose_disk();
        self.hosts[host].remembers = None;
        for other in &mut self.hosts {
            if let Some(receiver) = other.postgres.receiver.as_mut().filter(|receiver| receiver.upstream == host) {
                receiver.coming.clear();
            }
        }
    }

    /// Saved contents that a disk can come back to.
    pub(super) fn save_disks(&mut self) {
        if !self.has_old_disks || !self.now.is_multiple_of(SAVED_EVERY_MS) {
            return;
        }
        for host in &mut self.hosts {
            if host.saved.len() == SAVED {
                host.saved.pop_front();
            }
            host.saved.push_back(host.disk());
        }
        let follows = |postgres: &super::postgres::Postgres| {
            postgres.is_primary() || (postgres.is_running() && postgres.receiver.is_some())
        };
        if let Some(host) = self.older
            && follows(&self.hosts[host].postgres)
            && self.oracle.holds_everything("", &self.hosts[host].postgres).is_ok()
        {
            self.log(|| format!("p{host} has everything again"));
            self.older = None;
        }
    }

    /// Of one peer at a time, to a place where every other one has more, and one has everything: what nobody
    /// has any more nobody can miss.
    fn put_disk_back(&mut self, host: usize, states: usize, records: usize, for_ms: u64) {
        let node = self.zk.state();
        let Some((_, state)) = node.valid() else { return };
        let place = self.hosts[host].saved.len().checked_sub(states + 1);
        let Some(disk) = place.and_then(|place| self.hosts[host].saved.get(place)) else { return };
        if self.older.is_some() || self.lost_state.is_some() || state.one_node_write_mode {
            return;
        }
        let postgres = &self.hosts[host].postgres;
        let (Data::Present(_), Data::Present(_)) = (&disk.postgres.data, &postgres.data) else { return };
        let end = disk.postgres.flushed.saturating_sub(records).max(1);
        let next = |postgres: &super::postgres::Postgres| {
            postgres.wal.records.get(..postgres.flushed).and_then(|records| records.get(end)).copied()
        };
        let is_prefix = disk.postgres.wal.records.get(end - 1) == postgres.wal.records.get(end - 1);
        let lost = next(postgres);
        let others =
            || self.hosts.iter().enumerate().filter(|(other, _)| *other != host).map(|(_, host)| &host.postgres);
        let all_have_more = others().all(|other| matches!(other.data, Data::Present(_)) && next(other) == lost);
        let has_all = |other: &super::postgres::Postgres| {
            self.oracle.holds_everything("", other).is_ok() && self.oracle.holds_what_was_shown("", other).is_ok()
        };
        let is_by_hand = |other: &super::postgres::Postgres| self.by_hand.contains_key(&other.wal.timeline());
        // A takeover that is under way: what was received may end in a half record.
        let takes_over = self.hosts[host].sitter.as_ref().is_some_and(|sitter| {
            let writes = sitter
                .flight
                .as_ref()
                .is_some_and(|flight| matches!(flight.action, Action::Shard(ShardAction::WriteState { .. })));
            writes || sitter.uncertain || sitter.doubt.is_some() || sitter.straggler.is_some()
        }) || !self.late_writes.is_empty()
            || (number(state.primary.id) == host
                && Promotion::of(state).is_some_and(|promotion| promotion.at.is_none()));
        // The sync could not take over from this generation yet, or not before it has streamed again.
        let sync = state.sync_peer.as_ref().map(|sync| number(sync.id)).filter(|sync| *sync != host);
        let sync = sync.map(|sync| self.hosts[sync].postgres.observe(self.now));
        let able = matches!(&sync, Some(Server::Standby(standby)) if contains_init_wal(state, standby));
        let behind = number(state.primary.id) == host && !able;
        let alone = takes_over || behind || others().any(|other| is_by_hand(other) || other.promotes.is_some());
        if lost.is_none() || alone || !is_prefix || !all_have_more || !others().any(has_all) {
            return;
        }
        self.power_off(host, for_ms);
        let saved = std::mem::take(&mut self.hosts[host].saved);
        if let Some(disk) = place.and_then(|place| saved.get(place)) {
            self.hosts[host].put_back(disk, records);
        }
        for other in &mut self.hosts {
            // Messages are told from its WAL when they arrive; see `take_disk`.
            if let Some(receiver) = other.postgres.receiver.as_mut().filter(|receiver| receiver.upstream == host) {
                receiver.coming.clear();
            }
        }
        self.older = Some(host);
        self.log(|| format!("!!!! the disk of p{host} comes back with {end} records"));
    }

    /// Only of one that nothing depends on, or of the sync of a primary that has everything: who loses the
    /// disks of both loses data.
    fn lose_disk(&mut self, host: usize, for_ms: u64) {
        let state = match &self.lost_state {
            Some((.., state)) => Some(Arc::clone(state)),
            None => self.zk.state().valid().map(|(_, state)| Arc::clone(state)),
        };
        let Some(state) = state else { return };
        let needed = [Some(number(state.primary.id)), state.sync_peer.as_ref().map(|peer| number(peer.id))];
        // Also what a dead process sent: it may name this one primary yet.
        let in_flight = self.hosts.iter().any(|other| {
            let straggler = other
                .sitter
                .as_ref()
                .is_some_and(|sitter| sitter.straggler.is_some() || sitter.uncertain || sitter.doubt.is_some());
            let flight = other.sitter.as_ref().and_then(|sitter| sitter.flight.as_ref());
            let acts =
                |flight: &super::host::Flight| !matches!(flight.action, Action::Shard(ShardAction::JoinElection));
            straggler || flight.is_some_and(acts)
        }) || !self.late_writes.is_empty();
        // Who is required to acknowledge, or was, holds what was acknowledged.
        let required = |other: &super::host::Host| {
            let configs = [other.postgres.config.as_ref(), other.postgres.record.as_ref().map(|(config, _)| config)];
            configs.into_iter().flatten().any(|config| match config.synchronous {
                Synchronous::Peer(peer) => number(peer) == host,
                Synchronous::Both { new, old } => number(new) == host || number(old) == host,
                Synchronous::Impossible | Synchronous::Nobody => false,
            })
        };
        let about_to_be = in_flight || self.hosts.iter().any(required);
        // See `lose_state`.
        let another = (self.lost_history && self.empty_hosts() >= 1) || self.older.is_some();
        // The primary has everything that its sync acknowledged.
        let primary = &self.hosts[number(state.primary.id)].postgres;
        let only = primary.config.as_ref().map(|config| config.synchronous) == Some(Synchronous::Peer(peer_id(host)));
        let is_sync = needed[1] == Some(host);
        if is_sync
            && !another
            && only
            && primary.is_primary()
            && !in_flight
            && self.oracle.holds_everything("", primary).is_ok()
        {
            self.take_disk(host, for_ms);
            return;
        }
        if needed.contains(&Some(host)) || about_to_be || another {
            return;
        }
        self.take_disk(host, for_ms);
    }

    /// The setting in the sitter's own configuration, which must agree.
    fn set_one_node(&mut self, host: usize, on: bool) {
        self.hosts[host].one_node = on;
        if let Some(sitter) = self.hosts[host].sitter.as_mut() {
            sitter.view.settings.one_node_write_mode = on;
        }
    }

    /// An operator's hand: a change of the state by compare-and-set.
    fn operate(&mut self, operation: Operation) {
        let now = self.now;
        let node = self.zk.state();
        let Some((version, state)) = node.valid() else { return };
        if now < self.network.zk_down_until || self.lost_state.is_some() {
            return;
        }
        let mut state = ClusterState::clone(state);
        let frozen = Freeze::Flag(true);
        match operation {
            Operation::EnterOneNodeWriteMode => {
                // Of a primary whose disk came back older it would give up what only others have.
                if state.one_node_write_mode || self.older.is_some() {
                    return;
                }
                state.generation += 1;
                state.init_wal_timeline = state.init_wal_timeline.or(Some(Timeline(1)));
                (state.sync_peer, state.promote) = (None, None);
                state.async_peers.clear();
                (state.one_node_write_mode, state.freeze) = (true, Some(frozen));
                let primary = number(state.primary.id);
                self.set_one_node(primary, true);
            }
            Operation::LeaveOneNodeWriteMode if state.one_node_write_mode => state.set_leaves_one_node_write_mode(true),
            Operation::LeaveOneNodeWriteMode => return,
            Operation::Unfreeze if state.one_node_write_mode => return,
            Operation::Freeze => state.freeze = Some(frozen),
            Operation::Unfreeze => state.freeze = None,
            Operation::ClearPromote => state.promote = None,
            Operation::Reap(target) => {
                let who = peer_id(self.resolve(target));
                if self.zk.active().contains_key(&who) {
                    return;
                }
                state.deposed.retain(|peer| peer.id != who);
            }
            Operation::Promote(target) => {
                let id = peer_id(self.resolve(target));
                let (role, async_index) = match state.role_of(id) {
                    Role::Sync => (PromoteRole::Sync, None),
                    Role::Async(index) => (PromoteRole::Async, Some(index)),
                    _ => return,
                };
                let expires = i64::try_from(now).unwrap_or(0) + 30_000;
                let expire_time = Timestamp::from_millisecond(expires).unwrap_or_default();
                state.promote = Some(Promote { id, role, async_index, generation: state.generation, expire_time });
            }
        }
        let told = self.write_by_hand(Over::Version(version), state);
        self.log(|| format!("!!!! operator: {operation:?}: {told}"));
    }
}
