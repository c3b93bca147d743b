//! The driver: one task that owns the peer's view. It gathers the newest knowledge, asks the
//! machine what to do, has it done, and asks again; every change of decision is logged once here,
//! with its reason.
//!
//! - Exactly one action runs at a time, in a task of its own. It is abandoned (dropped) only when
//!   the machine says that what it wants now may not wait for it.
//! - The machine is asked again on any news, and at least every [`TICK`].
//! - Nothing is decided from an event: events only wake the loop.

mod running;
pub mod status;
mod takeover;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use manatee_shared::cluster::{Peer, Role};
use manatee_shared::ids::{PeerId, ShardName};
use manatee_shared::service::Watchdog;
use manatee_shared::zk::{self, Coordination, Session, ZkError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::running::{Ended, Running};
use self::status::Status;
use self::takeover::TakeoverClock;
use crate::execute::{Execute, StepOutcome, StepProblem};
use crate::heartbeat::Heartbeats;
use crate::machine::action::{Action, ActionKind, Decision, ShardAction};
use crate::machine::capacity::{self, Capacities};
use crate::machine::decide::decide;
use crate::machine::failure::StepFailure;
use crate::machine::local::Local;
use crate::machine::preempt::preempts;
use crate::machine::readiness::{self, Need, Unready};
use crate::machine::tracker::Tracker;
use crate::machine::view::{InFlight, Observed, Settings, View};
use crate::machine::{followers, returning, suspicion};
use crate::metrics::Metrics;
use crate::postgres::Condition;
use crate::reason::Reason;
use crate::status::{
    BreachStatus, DecisionStatus, FailureStatus, PeerStatus, RoleName, SettingsStatus, SitterStatus, ZkStatus,
};

/// Longest time between two decisions: what only time changes is noticed this late.
const TICK: Duration = Duration::from_millis(50);

/// The same step is not begun again sooner than this after its end, whatever the machine says: a
/// step that ends at once without effect must not become a busy loop.
const REPEAT: Duration = Duration::from_millis(20);

/// Reason why the driver gave up. The process must end; PostgreSQL is left as it is.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// A task that the driver listens to has ended.
    #[error("the task that watches {0} has died")]
    TaskDied(&'static str),
    /// The code of an action panicked.
    #[error("the action `{0}` has panicked")]
    ActionPanicked(ActionKind),
}

/// Parts that the driver works with.
pub struct Parts {
    /// This peer.
    pub me: Peer,
    /// Its shard.
    pub shard: ShardName,
    /// Settings that decisions depend on.
    pub settings: Settings,
    /// ZooKeeper.
    pub zk: Arc<dyn Coordination>,
    /// The local PostgreSQL.
    pub local: watch::Receiver<Local>,
    /// Its condition besides.
    pub condition: watch::Receiver<Condition>,
    /// Part of its data outside of the ZFS dataset.
    pub outside: watch::Receiver<Option<String>>,
    /// The other peers.
    pub heartbeats: Heartbeats,
    /// Does the steps.
    pub execute: Arc<dyn Execute>,
    /// The newest generation that was seen before this process.
    pub newest_generation: Option<u64>,
    /// Hears what the standbys have of the settings that they need as high as their primary's.
    pub standbys: watch::Sender<Option<Capacities>>,
    /// Cancelled when the sitter is to stop in an orderly way.
    pub stop: CancellationToken,
    /// Hears from every turn of the loop.
    pub watchdog: Watchdog,
}

/// See the module.
pub struct Driver {
    parts: Parts,
    zk: watch::Receiver<zk::View>,
    news: watch::Receiver<u64>,
    tracker: Tracker,
    began: Instant,
    stopping: Option<Instant>,
    /// A state write ended without an answer; the client shows itself disconnected until it knows.
    uncertain_write: bool,
    running: Option<Running>,
    /// The decision in force and since when.
    decided: (Decision, Instant),
    /// Since when something that a takeover needs, and that peers do not share, has failed.
    unready: Option<Instant>,
    /// The last action that ended, and when.
    last_end: Option<(ActionKind, Instant)>,
    status: watch::Sender<Arc<Status>>,
    metrics: Metrics,
    takeover: TakeoverClock,
}

/// Whether to go on.
enum Flow {
    /// Wait at most this long for news.
    On(Duration),
    /// The machine is done.
    Exit,
}

impl Driver {
    /// A driver that has not decided anything yet. Needs a tokio runtime.
    pub fn new(parts: Parts) -> Self {
        let now = Instant::now();
        let decision = Decision { action: Action::Wait { for_ms: None }, why: Reason::Starting };
        let mut driver = Self {
            zk: parts.zk.view(),
            news: parts.heartbeats.news(),
            tracker: Tracker::remembering(parts.newest_generation),
            began: now,
            stopping: None,
            uncertain_write: false,
            running: None,
            decided: (decision, now),
            unready: None,
            last_end: None,
            // Replaced below, by what the first observation shows.
            status: watch::Sender::new(Arc::new(Status::nothing(parts.me.clone(), parts.shard.clone(), now))),
            metrics: Metrics::new(),
            takeover: TakeoverClock::default(),
            parts,
        };
        let view = driver.observe(now);
        driver.publish(&view, now);
        driver
    }

    /// Status for the API, current as of the last decision.
    pub fn status(&self) -> watch::Receiver<Arc<Status>> {
        self.status.subscribe()
    }

    /// Goes round until the machine says [`Action::Exit`].
    pub async fn run(mut self) -> Result<(), Fatal> {
        loop {
            let now = Instant::now();
            self.parts.watchdog.alive(now);
            let view = self.observe(now);
            let decision = decide(&view);
            self.note(&view, &decision, now);
            let flow = self.act(&view, decision.action, now).await?;
            self.publish(&view, now);
            match flow {
                Flow::Exit => return Ok(()),
                Flow::On(at_most) => self.wait(at_most).await?,
            }
        }
    }

    /// The newest knowledge.
    fn observe(&mut self, now: Instant) -> View {
        let zk = self.zk.borrow_and_update().clone();
        let local = self.parts.local.borrow_and_update().clone();
        self.news.mark_unchanged();
        if zk.session == Session::Connected {
            self.uncertain_write = false;
        }
        let me = self.parts.me.id;
        let listed = zk.state.valid().into_iter().flat_map(|(_, state)| state.everyone().map(|peer| peer.id));
        let peers: BTreeSet<PeerId> = listed.chain(zk.active.keys().copied()).filter(|peer| *peer != me).collect();
        self.parts.heartbeats.follow(&peers);
        let mut view = View {
            me: self.parts.me.clone(),
            now_ms: millis(now.saturating_duration_since(self.began)),
            wall_ms: Timestamp::now().as_millisecond(),
            zk,
            uncertain_write: self.uncertain_write,
            local,
            disk_full: self.parts.condition.borrow().disk_full,
            health: self.parts.heartbeats.health(now),
            in_flight: self.running.as_ref().map(|running| InFlight {
                action: running.action.clone(),
                for_ms: millis(now.saturating_duration_since(running.began)),
            }),
            stopping_ms: self.stopping.map(|since| millis(now.saturating_duration_since(since))),
            settings: self.parts.settings.clone(),
            observed: Observed::default(),
        };
        self.tracker.complete(&mut view);
        self.parts.standbys.send_replace(capacity::of_standbys(&view));
        view
    }

    /// Logs and counts a decision that differs from the last: the one place where that happens.
    fn note(&mut self, view: &View, decision: &Decision, now: Instant) {
        let (last, _) = &self.decided;
        let same = last.action.kind() == decision.action.kind() && last.why == decision.why;
        if !same {
            let role = role(view);
            let generation = view.zk.state.valid().map(|(_, state)| state.generation);
            let (action, code) = (decision.action.kind().name(), decision.why.code().name());
            info!(action, code, role = %role, generation, "{}", decision.why);
            self.metrics.decided();
            self.decided = (decision.clone(), now);
        }
    }

    /// Begins `action`, unless one is running that it does not preempt.
    async fn act(&mut self, view: &View, action: Action, now: Instant) -> Result<Flow, Fatal> {
        let pause = match action {
            Action::Wait { for_ms: Some(ms) } => TICK.min(Duration::from_millis(ms.max(1))),
            _ => TICK,
        };
        if let (Some(in_flight), Some(running)) = (&view.in_flight, self.running.take()) {
            if !preempts(in_flight, &action) {
                self.running = Some(running);
                return Ok(Flow::On(pause));
            }
            let (abandoned, preferred) = (in_flight.action.kind().name(), action.kind().name());
            info!(abandoned, preferred, "abandoning the action in flight");
            if let Some(ended) = running.abandon().await? {
                self.end(ended);
            }
            // What it left behind is to be seen before anything else is decided.
            return Ok(Flow::On(Duration::ZERO));
        }
        match action {
            Action::Wait { .. } => Ok(Flow::On(pause)),
            Action::Exit => Ok(Flow::Exit),
            action => {
                if let Some((last, end)) = self.last_end
                    && last == action.kind()
                    && let Some(rest) = REPEAT.checked_sub(now.saturating_duration_since(end))
                {
                    return Ok(Flow::On(rest));
                }
                self.takeover.begins(view, &action, now, &self.metrics);
                self.running = Some(Running::begin(action, Arc::clone(&self.parts.execute)));
                Ok(Flow::On(TICK))
            }
        }
    }

    /// Waits for news, at most `at_most`. All branches are cancel-safe: they only wake.
    async fn wait(&mut self, at_most: Duration) -> Result<(), Fatal> {
        let running = async {
            match &mut self.running {
                Some(running) => running.ended().await,
                None => std::future::pending().await,
            }
        };
        let ended = tokio::select! {
            ended = running => Some(ended?),
            changed = self.zk.changed() => changed.map(|()| None).map_err(|_| Fatal::TaskDied("ZooKeeper"))?,
            changed = self.parts.local.changed() => {
                changed.map(|()| None).map_err(|_| Fatal::TaskDied("PostgreSQL"))?
            }
            changed = self.news.changed() => changed.map(|()| None).map_err(|_| Fatal::TaskDied("the peers"))?,
            () = self.parts.stop.cancelled(), if self.stopping.is_none() => {
                self.stopping = Some(Instant::now());
                None
            }
            () = tokio::time::sleep(at_most) => None,
        };
        if let Some(ended) = ended {
            self.running = None;
            self.end(ended);
        }
        Ok(())
    }

    /// Takes note of how an action ended; logs it.
    fn end(&mut self, ended: Ended) {
        let now = Instant::now();
        let kind = ended.action.kind();
        let action = kind.name();
        let took_ms = millis(ended.took);
        self.last_end = Some((kind, now));
        let failure = match &ended.result {
            Ok(outcome) => {
                info!(action, took_ms, "done");
                self.metrics.acted(action, "done");
                if let StepOutcome::Rejoined(rung) = outcome {
                    self.metrics.rejoined(*rung);
                }
                self.takeover.ended(self.parts.me.id, &ended, &self.metrics);
                None
            }
            Err(problem) => {
                if let (Action::Shard(ShardAction::WriteState { .. }), StepProblem::Zk(ZkError::Unknown(_))) =
                    (&ended.action, problem)
                {
                    self.uncertain_write = true;
                }
                self.metrics.acted(action, "failed");
                Some(StepFailure { problem: problem.to_string(), kind: problem.kind() })
            }
        };
        if let Some(StepFailure { problem, .. }) = &failure {
            // Retries of the same failure are only interesting to whoever looks closely.
            let known = self.status.borrow().report.last_failure.as_ref().is_some_and(|last| last.problem == *problem);
            if known {
                debug!(action, took_ms, problem, "failed again");
            } else {
                warn!(action, took_ms, problem, "failed");
            }
        }
        self.tracker.finished(millis(now.saturating_duration_since(self.began)), &ended.action, failure);
    }

    /// Shows the outside what was seen and decided.
    fn publish(&mut self, view: &View, now: Instant) {
        let (decision, since) = &self.decided;
        let generation = view.zk.state.valid().map(|(_, state)| state.generation);
        let suspects = followers::suspects(view);
        let mut condition = self.parts.condition.borrow().clone();
        let refused = view.zk.refused.clone().map(|detail| Unready { need: Need::ZooKeeper, detail, kind: None });
        condition.unready.extend(refused);
        let primary = view.zk.state.valid().and_then(|(_, state)| view.health.get(&state.primary.id)?.capacities);
        condition.unready.extend(readiness::of_standby(&view.local, &condition.overridden, primary.as_ref()));
        let is_unready = condition.unready.iter().any(|unready| !unready.need.is_no_preference());
        self.unready = is_unready.then(|| self.unready.unwrap_or(now));
        let role = role(view);
        let report = SitterStatus {
            id: view.me.id,
            zone_id: view.me.zone_id.clone(),
            shard: self.parts.shard.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            role: RoleName::from(role).into(),
            generation,
            decision: DecisionStatus::new(decision, millis(now.saturating_duration_since(*since))),
            in_flight: self.running.as_ref().map(|running| running.action.kind().into()),
            local: view.local.clone(),
            zk: ZkStatus::new(&view.zk),
            last_failure: view.observed.last_failure.as_ref().map(FailureStatus::from),
            settings: SettingsStatus::from(&view.settings),
            newest_generation: view.observed.newest_generation,
            peers: view.health.iter().map(|(peer, health)| (*peer, PeerStatus::from(health))).collect(),
            pending_restart: condition.pending_restart.clone(),
            overridden: condition.overridden.clone(),
            weak_commits: condition.weak_commits.clone(),
            breach: condition
                .breach
                .clone()
                .map(|(breach, ended)| BreachStatus { breach, ago_ms: millis(now.saturating_duration_since(ended)) }),
            unready: condition.unready.clone(),
            outside_of_dataset: self.parts.outside.borrow().clone(),
            horizon: condition.horizon.clone(),
            stopping: self.stopping.is_some(),
            older: returning::is_older(view),
        };
        let status = Status {
            report,
            role,
            streaming: suspicion::streams(view),
            postgres_down_ms: view.observed.postgres_down_ms,
            unready_ms: self.unready.map(|since| millis(now.saturating_duration_since(since))),
            state: view.zk.state.valid().map(|(_, state)| Arc::clone(state)),
            active: view.zk.in_election_order().into_iter().map(|active| active.peer.clone()).collect(),
            suspects,
            at: now,
        };
        self.metrics.role(status.role, generation);
        self.metrics.session(view.zk.session);
        self.metrics.local(&view.local);
        self.metrics.condition(&condition);
        self.metrics.suspected(status.suspects.len());
        self.takeover.watch(view, now, &self.metrics);
        self.status.send_replace(Arc::new(status));
    }
}

/// Our place in the newest state.
fn role(view: &View) -> Role {
    view.zk.state.valid().map_or(Role::Unassigned, |(_, state)| state.role_of(view.me.id))
}

/// Whole milliseconds, saturating.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
