//! What the sitter's actions do to the model: late, sometimes not, sometimes only half.

use std::sync::Arc;

use manatee_shared::ids::PeerId;
use manatee_shared::zk::{Session, ZkError};

use super::host::{Flight, Straggler};
use super::postgres::{Postgres, Process, Record};
use super::world::World;
use crate::machine::action::{Action, Rung};
use crate::machine::local::{Data, Gate, Recovery, Synchronous};
use crate::machine::preempt::preempts;

impl World {
    /// Begins `action`, as the driver does.
    pub(super) fn carry_out(&mut self, index: usize, action: Action) {
        let now = self.now;
        let Some(sitter) = self.hosts[index].sitter.as_mut() else { return };
        if let Some(flight) = &sitter.flight {
            let in_flight =
                crate::machine::view::InFlight { action: flight.action.clone(), for_ms: now - flight.began };
            if !preempts(&in_flight, &action) {
                return;
            }
            let event = format!("p{index} abandons {} for {}", flight.action.name(), action.name());
            sitter.flight = None;
            self.log(event);
            return;
        }
        match action {
            Action::Wait { .. } => {}
            Action::Exit => {
                sitter.session.close_now();
                self.hosts[index].sitter = None;
                self.hosts[index].returns = Some(now + self.rng.u64(300..4_000));
                self.log(format!("p{index} sitter ended"));
            }
            action => self.begin(index, action),
        }
    }

    fn begin(&mut self, index: usize, action: Action) {
        let now = self.now;
        let (acts, ends) = match &action {
            Action::Initialise | Action::Bootstrap { .. } | Action::Rejoin { .. } => (300..3_000, 20..200),
            Action::Start(_) => (20..60, 100..2_000),
            Action::Stop(_) => (20..200, 0..50),
            Action::Promote { .. } => (20..150, 0..60),
            _ => (0..60, 0..60),
        };
        let acts = now + self.rng.u64(acts);
        let ends = acts + self.rng.u64(ends);
        let host = &mut self.hosts[index];
        let Some(sitter) = host.sitter.as_mut() else { return };
        match &action {
            Action::Bootstrap { .. } | Action::Initialise => host.postgres.data = Data::Incomplete,
            Action::Rejoin { .. } => host.postgres.end(false),
            Action::Configure(_) | Action::Start(_) | Action::Promote { .. } => sitter.confirmed = None,
            _ => {}
        }
        sitter.flight = Some(Flight { action, began: now, acts, ends, acted: None });
    }

    /// Takes the action in flight further.
    pub(super) fn progress(&mut self, index: usize) {
        let now = self.now;
        let Some(sitter) = self.hosts[index].sitter.as_mut() else { return };
        let Some(mut flight) = sitter.flight.take() else { return };
        if flight.acted.is_none() && flight.acts <= now {
            flight.acted = Some(self.effect(index, &flight.action));
        }
        let Some(sitter) = self.hosts[index].sitter.as_mut() else { return };
        if flight.ends > now || flight.acted.is_none() {
            sitter.flight = Some(flight);
            return;
        }
        let result = flight.acted.clone().unwrap_or(Ok(())).and_then(|()| self.finish(index, &flight.action));
        let problem = result.err();
        if let Some(problem) = &problem {
            self.log(format!("p{index} {} failed: {problem}", flight.action.name()));
        }
        if let Some(sitter) = self.hosts[index].sitter.as_mut() {
            sitter.tracker.finished(now, &flight.action, problem);
        }
    }

    fn effect(&mut self, index: usize, action: &Action) -> Result<(), String> {
        let now = self.now;
        let fails = self.rng.u8(..) < 6;
        let id = self.new_id();
        let ready = now + self.rng.u64(50..1_500);
        let mut rng = self.rng.fork();
        let delay = || if rng.u8(..) < 60 { rng.u64(0..1_500) } else { rng.u64(0..100) };
        let host = &mut self.hosts[index];
        match action {
            Action::WriteState { .. } => return self.write(index, action),
            Action::JoinElection | Action::LeaveElection => return self.election(index, action),
            _ if fails => return Err("it just failed".to_owned()),
            Action::Start(config) => host.postgres.start(config, ready)?,
            Action::Configure(config) => {
                if !host.postgres.is_running() {
                    return Err("PostgreSQL does not run".to_owned());
                }
                let opens = host.postgres.is_primary() && !host.postgres.serves() && config.gate == Gate::Open;
                host.postgres.reload(now, config, delay);
                if opens && let Synchronous::Peer(sync) = config.synchronous {
                    self.check_opening(index, sync);
                }
            }
            Action::Promote { config, timeline } => {
                if !host.postgres.is_running() || !host.postgres.standby {
                    return Err("not a running standby".to_owned());
                }
                if host.postgres.receiver.is_some() {
                    return Err("the WAL receiver runs".to_owned());
                }
                let timeline = timeline.map_or(0, |timeline| timeline.0);
                host.postgres.promote(now, config, delay, Record { timeline, id });
            }
            Action::Stop(_) => host.postgres.end(false),
            Action::Initialise => host.postgres.initialise(format!("cluster-{id}")),
            Action::Bootstrap { source } => {
                let source = self.index(*source).ok_or("unknown source")?;
                self.copy(index, source, false)?;
            }
            Action::Rejoin { source, from, .. } => {
                let source = self.index(*source).ok_or("unknown source")?;
                self.rejoin(index, source, *from)?;
            }
            Action::Wait { .. } | Action::Exit | Action::Drain { .. } => {}
        }
        Ok(())
    }

    /// Rule 7: what a restarted primary shows is on its sync.
    fn check_opening(&mut self, index: usize, sync: PeerId) {
        let postgres = &self.hosts[index].postgres;
        let shown = &postgres.wal.records[..postgres.found];
        let Some(sync) = self.index(sync) else { return };
        if self.hosts[sync].postgres.wal.records.get(..postgres.found) != Some(shown) {
            self.violation = Some(format!("p{index} opens its gate, but its sync p{sync} lacks what it shows"));
        }
    }

    fn copy(&mut self, index: usize, source: usize, from_primary: bool) -> Result<(), String> {
        let fit = |postgres: &Postgres| postgres.is_running() && (!from_primary || !postgres.standby);
        if !self.linked(index, source) || !fit(&self.hosts[source].postgres) {
            return Err("the source is not there".to_owned());
        }
        let source = self.hosts[source].postgres.clone();
        self.hosts[index].postgres.copy_from(&source);
        Ok(())
    }

    fn rejoin(&mut self, index: usize, source: usize, from: Rung) -> Result<(), String> {
        let postgres = &self.hosts[index].postgres;
        let upstream = &self.hosts[source].postgres;
        let follows = upstream.accepts(postgres.wal.timeline(), postgres.wal.len()).is_ok();
        if from == Rung::AsIs && follows && self.linked(index, source) && upstream.is_primary() {
            self.hosts[index].postgres.standby = true;
            return Ok(());
        }
        if self.rng.u8(..) < 30 {
            self.hosts[index].postgres.data = Data::Incomplete;
            return Err("interrupted half-way".to_owned());
        }
        self.copy(index, source, true)
    }

    fn election(&mut self, index: usize, action: &Action) -> Result<(), String> {
        let reaches = self.reaches_zk(index);
        let host = &self.hosts[index];
        let Some(sitter) = &host.sitter else { return Ok(()) };
        if !reaches {
            return Err("ZooKeeper does not answer".to_owned());
        }
        let result = match action {
            Action::JoinElection => sitter.session.join_now(host.peer.clone()),
            _ => sitter.session.leave_now(),
        };
        result.map_err(|error| error.to_string())
    }

    fn write(&mut self, index: usize, action: &Action) -> Result<(), String> {
        let Action::WriteState { expected, state } = action else { return Ok(()) };
        let reaches = self.reaches_zk(index);
        let arrives = self.now + self.rng.u64(0..3_000);
        let late = self.rng.u8(..) < 100;
        let unanswered = self.rng.u8(..) < 8;
        let Some(sitter) = self.hosts[index].sitter.as_mut() else { return Ok(()) };
        if !reaches || sitter.session.view_now().session != Session::Connected {
            if late {
                sitter.straggler =
                    Some(Straggler { arrives, expected: *expected, state: Arc::unwrap_or_clone(state.clone()) });
            }
            return self.unknown(index);
        }
        let result = sitter.session.write_now(*expected, state);
        if unanswered {
            return self.unknown(index);
        }
        match result {
            Ok(_) => Ok(()),
            Err(ZkError::Unknown(_)) => self.unknown(index),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The client never learns what became of its write, and shows itself disconnected.
    fn unknown(&mut self, index: usize) -> Result<(), String> {
        if let Some(sitter) = self.hosts[index].sitter.as_mut() {
            sitter.uncertain = true;
            sitter.session.disconnect();
            sitter.zk.session = Session::Disconnected;
        }
        Err("no answer to the state write".to_owned())
    }

    /// The sitter learns that its action is done; a configuration is confirmed if it is in effect.
    fn finish(&mut self, index: usize, action: &Action) -> Result<(), String> {
        let now = self.now;
        let host = &mut self.hosts[index];
        let Some(sitter) = host.sitter.as_mut() else { return Ok(()) };
        match action {
            Action::Start(config) | Action::Configure(config) | Action::Promote { config, .. } => {
                if matches!((action, host.postgres.process), (Action::Start(_), Process::Starting { .. })) {
                    // A long recovery: it comes up by itself, its configuration unconfirmed.
                    return Ok(());
                }
                let detached = config.recovery != Recovery::Detached || host.postgres.receiver.is_none();
                if !host.postgres.is_running() || host.postgres.config.as_ref() != Some(config) || !detached {
                    return Err("the configuration is not in effect".to_owned());
                }
                sitter.confirmed = Some(config.clone());
            }
            Action::Stop(_) if !matches!(host.postgres.process, Process::Down { .. }) => {
                return Err("it still runs".to_owned());
            }
            _ => {}
        }
        sitter.local.data = host.postgres.data.clone();
        sitter.local.server = host.postgres.observe(now);
        Ok(())
    }
}
