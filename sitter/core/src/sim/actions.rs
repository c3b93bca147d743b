//! Effects of the sitter's actions on the model: in steps, late, sometimes none, sometimes only half.

use manatee_shared::ids::PeerId;
use manatee_shared::lsn::WalPosition;

use super::host::Flight;
use super::mutation::Mutation;
use super::plan::{Crash, Fault, Target, Writing};
use super::postgres::{Process, number};
use super::world::World;
use super::writes::Asked;
use crate::fence;
use crate::machine::action::{Action, ActionKind, DataAction, Rung, ServerAction, ShardAction, StopMode};
use crate::machine::local::{Data, EndOfWal, Gate, Recovery, ServerConfig, Synchronous};
use crate::machine::preempt::preempts;
use crate::machine::view::InFlight;

/// Time for which a change of configuration waits to see itself in effect, ms.
const CONFIRM_MS: u64 = 5_000;

/// Continuation after a step.
enum Next {
    /// Another one, so many ms later.
    After(u64),
    /// The same once more.
    Again(u64),
    Done,
}

impl World {
    /// Begins `action`, as the driver does.
    pub(super) fn carry_out(&mut self, index: usize, action: Action) {
        let now = self.now;
        let Some(sitter) = self.hosts[index].sitter.as_mut() else { return };
        if let Some(flight) = &sitter.flight {
            let in_flight = InFlight { action: flight.action.clone(), for_ms: now - flight.began };
            if preempts(&in_flight, &action) {
                sitter.flight = None;
                sitter.decides = now;
                self.log(|| format!("p{index} abandons {} for {}", in_flight.action.kind(), action.kind()));
            }
            return;
        }
        match action {
            Action::Wait { .. } => return,
            Action::Exit => {
                sitter.session.close_now();
                let stays_away_ms = sitter.stays_away_ms;
                self.hosts[index].sitter = None;
                self.hosts[index].returns = Some(now + stays_away_ms);
                self.log(|| format!("p{index} sitter ended"));
                return;
            }
            Action::Shard(_) | Action::Server(_) | Action::Data(_) => {}
        }
        // The fake shows news to whoever is not marked disconnected yet, cut off or not.
        let fenced = match self.network.passes_to_zk(now, index) {
            true => fence::check(&action, &sitter.session.view_now(), sitter.view.me.id),
            false => fence::check(&action, &sitter.view.zk, sitter.view.me.id),
        };
        let unfenced = self.mutated(Mutation::Reinitialise) && action == Action::Data(DataAction::Initialise);
        let Some(sitter) = self.hosts[index].sitter.as_mut() else { return };
        if let (Err(fenced), false) = (fenced, unfenced) {
            sitter.tracker.finished(now, &action, Some(fenced.to_string().into()));
            return;
        }
        let next = now + self.rng.u64(0..20);
        sitter.flight = Some(Flight { action, began: now, step: 0, next, sent: None });
    }

    /// Takes the action in flight further.
    pub(super) fn progress(&mut self, index: usize) {
        loop {
            let now = self.now;
            let Some(sitter) = self.hosts[index].sitter.as_mut() else { return };
            let Some(mut flight) = sitter.flight.take_if(|flight| flight.next <= now) else { return };
            let step = flight.step;
            let result = self.step_of(index, &mut flight);
            let problem = match result {
                Ok(Next::Again(ms)) => {
                    flight.next = now + ms;
                    if let Some(sitter) = self.hosts[index].sitter.as_mut() {
                        sitter.flight = Some(flight);
                    }
                    return;
                }
                Ok(Next::After(ms)) => {
                    (flight.step, flight.next) = (step + 1, now + ms);
                    let kind = flight.action.kind();
                    if let Some(sitter) = self.hosts[index].sitter.as_mut() {
                        sitter.flight = Some(flight);
                    }
                    self.crash_at(index, kind, step);
                    continue;
                }
                Ok(Next::Done) => None,
                Err(problem) => Some(problem),
            };
            if let Some(problem) = &problem {
                self.log(|| format!("p{index} {} failed: {problem}", flight.action.kind()));
            }
            self.counts.actions += 1;
            let postgres = &self.hosts[index].postgres;
            let (data, server) = (postgres.data.clone(), postgres.observe(now));
            let (confirmed, end) = (postgres.confirmed().cloned(), postgres.end.clone());
            if let Some(sitter) = self.hosts[index].sitter.as_mut() {
                // What it is left with is seen before anything else is decided.
                (sitter.view.local.data, sitter.view.local.server) = (data, server);
                sitter.view.local.end = end;
                sitter.view.local.config = confirmed;
                sitter.tracker.finished(now, &flight.action, problem.map(Into::into));
                sitter.decides = now;
            }
            self.crash_at(index, flight.action.kind(), step);
            return;
        }
    }

    /// A planned crash at this step.
    fn crash_at(&mut self, index: usize, kind: ActionKind, step: usize) {
        let planned =
            |fault: &Fault| matches!(fault, Fault::CrashAt { action, step: at, .. } if *action == kind && *at == step);
        let Some(place) = self.armed.iter().position(planned) else { return };
        let Fault::CrashAt { crash, for_ms, .. } = self.armed.remove(place) else { return };
        self.counts.torn += 1;
        self.log(|| format!("!!!! p{index} ends after step {step} of {kind:?}"));
        let who = Target::Peer(index);
        self.apply(match crash {
            Crash::Sitter => Fault::KillSitter { who, for_ms },
            Crash::Postgres => Fault::KillPostgres { who },
            Crash::Power => Fault::PowerOff { who, for_ms },
        });
    }

    fn step_of(&mut self, index: usize, flight: &mut Flight) -> Result<Next, String> {
        if flight.step == 0
            && flight.action.kind() != ActionKind::WriteState
            && self.rng.u8(..) < 4
            && !self.is_setting_up()
        {
            return Err("it just failed".to_owned());
        }
        match &flight.action {
            Action::Wait { .. } | Action::Exit => Ok(Next::Done),
            Action::Server(ServerAction::Drain { .. }) if flight.step == 0 => Ok(self.delay(0..300)),
            Action::Server(ServerAction::Drain { .. }) => Ok(Next::Done),
            Action::Shard(ShardAction::WriteState { .. }) => match self.write(index, flight) {
                Asked::Answered(ms) => Ok(Next::After(ms)),
                Asked::Wait if flight.step == 0 => Ok(Next::After(20)),
                Asked::Wait => Ok(Next::Again(20)),
                Asked::Ended(result) => result.map(|()| Next::Done),
            },
            Action::Shard(ShardAction::JoinElection | ShardAction::LeaveElection) => self.election(index, flight),
            Action::Data(DataAction::Survey) => self.survey(index, flight.step),
            Action::Server(ServerAction::Start(config)) => self.start(index, flight.step, config),
            Action::Server(ServerAction::Configure(config)) => {
                let ends = config.recovery == Recovery::Detached && !self.hosts[index].postgres.receiver_stopped();
                if flight.step == 2 && ends && self.now < flight.began + CONFIRM_MS {
                    return Ok(Next::Again(20));
                }
                self.configure(index, flight.step, config)
            }
            Action::Server(ServerAction::Stop(mode)) => Ok(self.stop(index, flight.step, *mode)),
            Action::Server(ServerAction::Promote { config, timeline }) => {
                let timeline = timeline.map_or(0, |timeline| timeline.0);
                self.promote(index, flight.step, config, timeline)
            }
            Action::Data(DataAction::Initialise) => Ok(self.initialise(index, flight.step)),
            Action::Data(DataAction::Bootstrap { source }) => self.bootstrap(index, flight.step, *source),
            Action::Data(DataAction::Rejoin { source, from, init }) => {
                self.rejoin(index, flight.step, *source, *from, *init)
            }
        }
    }

    fn delay(&mut self, range: std::ops::Range<u64>) -> Next {
        let long = self.rng.u64(range);
        Next::After(if self.is_setting_up() { long / 20 } else { long })
    }

    fn survey(&mut self, index: usize, step: usize) -> Result<Next, String> {
        if step == 0 {
            return Ok(self.delay(10..200));
        }
        let postgres = &mut self.hosts[index].postgres;
        if !matches!((&postgres.process, &postgres.data), (Process::Down { .. }, Data::Present(_))) {
            return Err("it runs, or there is no data".to_owned());
        }
        postgres.end = Some(EndOfWal { position: postgres.received(), history: postgres.wal.history() });
        Ok(Next::Done)
    }

    fn start(&mut self, index: usize, step: usize, config: &ServerConfig) -> Result<Next, String> {
        let now = self.now;
        let ready = now + if self.is_setting_up() { 20 } else { self.rng.u64(50..1_500) };
        let host = &mut self.hosts[index];
        match step {
            0 => {
                host.postgres.prepare_start(config)?;
                Ok(self.delay(10..40))
            }
            1 => {
                if now < host.postgres.full_until {
                    return Err("no space left on device".to_owned());
                }
                if !matches!(host.postgres.process, Process::Down { .. }) {
                    return Err("it runs".to_owned());
                }
                host.postgres.spawn(ready);
                Ok(self.delay(100..1_600))
            }
            _ => match host.postgres.process {
                // A long recovery: it comes up by itself, its configuration unconfirmed.
                Process::Starting { .. } => Ok(Next::Done),
                _ => self.confirm(index, config),
            },
        }
    }

    fn configure(&mut self, index: usize, step: usize, config: &ServerConfig) -> Result<Next, String> {
        let postgres = &mut self.hosts[index].postgres;
        match step {
            0 => {
                if !postgres.is_running() {
                    return Err("PostgreSQL does not run".to_owned());
                }
                if (config.recovery == Recovery::Primary) == postgres.standby {
                    return Err("it is in another role".to_owned());
                }
                postgres.record = Some((config.clone(), false));
                Ok(self.delay(0..40))
            }
            1 => {
                self.reload(index, config)?;
                Ok(self.delay(0..60))
            }
            _ => self.confirm(index, config),
        }
    }

    fn reload(&mut self, index: usize, config: &ServerConfig) -> Result<(), String> {
        let now = self.now;
        let mut rng = self.rng.fork();
        let delay = || if rng.u8(..) < 60 { rng.u64(0..1_500) } else { rng.u64(0..100) };
        let postgres = &mut self.hosts[index].postgres;
        if !postgres.is_running() {
            return Err("PostgreSQL does not run".to_owned());
        }
        let opens = postgres.is_primary() && !postgres.serves() && config.gate == Gate::Open;
        postgres.reload(now, config, delay);
        if opens && let Synchronous::Peer(sync) = config.synchronous {
            self.check_opening(index, number(sync));
        }
        Ok(())
    }

    /// The configuration is in effect, as far as the postmaster goes; walsenders may lag behind.
    fn confirm(&mut self, index: usize, config: &ServerConfig) -> Result<Next, String> {
        let postgres = &mut self.hosts[index].postgres;
        let detached = config.recovery != Recovery::Detached || postgres.receiver_stopped();
        let role = (config.recovery == Recovery::Primary) != postgres.standby;
        let loosened = postgres.loosened.is_some();
        if !postgres.is_running() || postgres.config.as_ref() != Some(config) || !detached || !role || loosened {
            return Err("the configuration is not in effect".to_owned());
        }
        postgres.record = Some((config.clone(), true));
        Ok(Next::Done)
    }

    /// Puts right settings that somebody changed, beside the sitter's actions (`postgres/in_force.rs`).
    pub(super) fn put_right(&mut self, index: usize) {
        let now = self.now;
        let at = now + self.rng.u64(20..120);
        let Some(sitter) = self.hosts[index].sitter.as_mut() else { return };
        if sitter.view.local.loosened.is_empty() {
            sitter.puts_right = None;
            return;
        }
        let at = *sitter.puts_right.get_or_insert(at);
        let busy = sitter
            .flight
            .as_ref()
            .is_some_and(|flight| !matches!(flight.action.kind(), ActionKind::WriteState | ActionKind::Drain));
        let record = self.hosts[index].postgres.record.clone().filter(|(_, confirmed)| *confirmed);
        if let (Some((config, _)), true) = (record, at <= now && !busy) {
            // Of a PostgreSQL that went down meanwhile the next start does it.
            drop(self.reload(index, &config));
        }
    }

    fn stop(&mut self, index: usize, step: usize, mode: StopMode) -> Next {
        let hung = matches!(self.hosts[index].postgres.process, Process::Hung { .. });
        match step {
            0 if hung && mode == StopMode::Fast => self.delay(1_000..2_000),
            0 => self.delay(20..250),
            _ => {
                self.hosts[index].postgres.end(false);
                Next::Done
            }
        }
    }

    fn promote(&mut self, index: usize, step: usize, config: &ServerConfig, timeline: u32) -> Result<Next, String> {
        let now = self.now;
        let asked = now + self.rng.u64(0..120);
        let postgres = &mut self.hosts[index].postgres;
        match step {
            0 => {
                if !postgres.is_running() || !postgres.standby {
                    return Err("not a running standby".to_owned());
                }
                let ready = postgres
                    .record
                    .as_ref()
                    .is_some_and(|(record, confirmed)| *confirmed && record.recovery == Recovery::Detached);
                if !ready || !postgres.receiver_stopped() {
                    return Err("it is not detached".to_owned());
                }
                Ok(self.delay(0..20))
            }
            1 => {
                if !postgres.is_running() {
                    return Err("PostgreSQL does not run".to_owned());
                }
                if !postgres.by_hand {
                    postgres.promotes = Some((asked, timeline));
                }
                Ok(self.delay(0..60))
            }
            2 if postgres.is_running() && postgres.promotes.is_some() => Ok(Next::Again(20)),
            2 => {
                if !postgres.is_primary() {
                    return Err("it did not leave recovery".to_owned());
                }
                postgres.record = Some((config.clone(), false));
                self.reload(index, config)?;
                Ok(self.delay(0..60))
            }
            _ => self.confirm(index, config),
        }
    }

    fn initialise(&mut self, index: usize, step: usize) -> Next {
        let id = self.new_id();
        let postgres = &mut self.hosts[index].postgres;
        if step == 0 {
            postgres.data = Data::Incomplete;
            return self.delay(300..2_000);
        }
        postgres.initialise(format!("cluster-{id}"));
        Next::Done
    }

    /// Rule 7: what a restarted primary shows is on its sync, and from now on counts as acknowledged.
    pub(super) fn check_opening(&mut self, index: usize, sync: usize) {
        let postgres = &self.hosts[index].postgres;
        let shown = &postgres.wal.records[..postgres.found];
        if !matches!(self.hosts[sync].postgres.data, Data::Present(_)) || self.older == Some(sync) {
            // It had it, and lost its disk since, or what was on it.
            return;
        }
        if self.hosts[sync].postgres.wal.records.get(..postgres.found) != Some(shown) {
            self.violation =
                Some(format!("p{index} opens its gate, but its sync p{sync} lacks what it shows (rule 7)"));
        }
    }

    fn copy(&mut self, index: usize, source: usize, from_primary: bool) -> Result<Next, String> {
        let linked = self.linked(index, source);
        let Ok([target, source]) = self.hosts.get_disjoint_mut([index, source]) else {
            return Err("unknown source".to_owned());
        };
        if !linked || !source.postgres.is_running() || (from_primary && source.postgres.standby) {
            target.postgres.data = Data::Incomplete;
            return Err("the source went away".to_owned());
        }
        target.postgres.copy_from(&source.postgres);
        self.counts.copies += 1;
        Ok(Next::Done)
    }

    fn bootstrap(&mut self, index: usize, step: usize, source: PeerId) -> Result<Next, String> {
        let source = number(source);
        if !self.linked(index, source) || !self.hosts[source].postgres.is_running() {
            return Err("the source is not there".to_owned());
        }
        if step == 0 {
            self.hosts[index].postgres.end(false);
            self.hosts[index].postgres.data = Data::Incomplete;
            return Ok(self.delay(300..2_500));
        }
        self.copy(index, source, false)
    }

    fn rejoin(
        &mut self,
        index: usize,
        step: usize,
        source: PeerId,
        from: Rung,
        init: Option<WalPosition>,
    ) -> Result<Next, String> {
        let source = number(source);
        if step == 0 {
            self.hosts[index].postgres.end(false);
            return Ok(self.delay(20..150));
        }
        if step == 2 {
            return self.copy(index, source, true);
        }
        let (postgres, upstream) = (&self.hosts[index].postgres, &self.hosts[source].postgres);
        if !self.linked(index, source) || !upstream.is_primary() {
            return Err("the source is not there, or not out of recovery".to_owned());
        }
        if init.is_some_and(|init| !upstream.wal.history().contains(upstream.received(), init)) {
            return Err("the source does not hold the generation's beginning".to_owned());
        }
        let follows = upstream.accepts(postgres.wal.timeline(), postgres.wal.len()).is_ok();
        let as_is = from == Rung::AsIs && follows && matches!(postgres.data, Data::Present(_));
        let postgres = &mut self.hosts[index].postgres;
        if as_is {
            postgres.standby = true;
            return Ok(Next::Done);
        }
        postgres.data = Data::Incomplete;
        if self.rng.u8(..) < 20 {
            return Err("interrupted half-way".to_owned());
        }
        Ok(self.delay(300..2_500))
    }

    fn election(&mut self, index: usize, flight: &Flight) -> Result<Next, String> {
        if flight.step > 0 {
            return Ok(Next::Done);
        }
        let reaches = self.reaches_zk(index);
        let host = &self.hosts[index];
        let Some(sitter) = &host.sitter else { return Ok(Next::Done) };
        if !reaches {
            return Err("ZooKeeper does not answer".to_owned());
        }
        let joins = flight.action == Action::Shard(ShardAction::JoinElection);
        let result = if joins { sitter.session.join_now(host.peer.clone()) } else { sitter.session.leave_now() };
        result.map_err(|error| error.to_string())?;
        if joins {
            self.deny_late_writes(index);
        }
        if self.loss_of(Writing::Registration).is_some() {
            return Err("no answer; it may have been done".to_owned());
        }
        Ok(self.delay(0..40))
    }
}
