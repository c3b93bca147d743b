//! The observation: one task that keeps [`Local`] current.
//!
//! Three things are exact, because acknowledged writes depend on them:
//!
//! * **`received` never falls short of what was acknowledged.** The end of WAL on disk is the
//!   greater of `pg_last_wal_receive_lsn()` and `pg_last_wal_replay_lsn()`. The former is the
//!   shared `flushedUpto`: the receiver moves it before it tells its upstream, and once more when
//!   it ends (`XLogWalRcvDie` flushes what was only written). But it is null after a start, and then
//!   the *beginning of a segment* when streaming is first asked for (`RequestXLogStreaming`);
//!   since that is only done after everything found in `pg_wal` was replayed, the replay position
//!   is the end of WAL then. Hence the maximum, and hence not known while it is null.
//! * **`receiver_stopped` is older than the position shown with it.** The functions of one query
//!   are not evaluated at one instant: a position read just before the receiver's last flush, with
//!   its absence seen just after, would fall short. So it is shown as stopped only if the
//!   *previous* query had already found no receiver: this query's position was read after that.
//! * **the timeline is the one received on.** While the receiver lives, `received_tli`; afterwards
//!   the newest of: what was seen, the control file's, and those whose history file and segment
//!   at the end of WAL are in `pg_wal`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use manatee_shared::lsn::{Lsn, Timeline, TimelineHistory, WalPosition};
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use super::capacity;
use super::clients::{self, CLIENTS};
use super::conf::{self, CONFIG_ID};
use super::control;
use super::files;
use super::guard::{self, Guard};
use super::in_force::InForce;
use super::inner::Inner;
use super::logfile;
use super::probe::Probe;
use super::process::{self, Postmaster};
use super::render;
use super::replay;
use super::serverlog::{self, Watcher};
use super::session;
use crate::host::failure;
use crate::machine::capacity::{Capacities, Lack};
use crate::machine::local::{
    Data, Downstream, Gate, Local, Obstacle, PrimaryStatus, Recovery, Replay, Server, ServerConfig, StandbyStatus,
};

/// Between observations of a server that runs.
const PERIOD: Duration = Duration::from_millis(50);
/// Between looks at one that does not, or is coming up.
const PERIOD_STARTING: Duration = Duration::from_millis(20);
/// Between looks at a data directory without a server.
const PERIOD_DOWN: Duration = Duration::from_millis(200);
/// Silence after which a server that answered before is called hung.
const HUNG_AFTER: Duration = Duration::from_millis(500);
/// An observation that takes longer is given up, with its session.
const GIVE_UP: Duration = Duration::from_secs(2);
/// Streaming for this long refutes what the log said before.
const STEADY: Duration = Duration::from_secs(1);
/// Between two looks for why replay is paused, each a program of some milliseconds. The first tells, unless somebody's
/// pause ended and PostgreSQL's began between two observations.
const PAUSE_PERIOD: Duration = Duration::from_secs(5);
/// Number of bytes of the log that are searched for why PostgreSQL ended.
const LAST_WORDS_BYTES: u64 = 8192;
/// Between two looks at the size of the log.
const LOG_PERIOD: Duration = Duration::from_secs(10);

/// Everything at once. Text, because it is parsed here anyway. `client` counts sessions that a
/// closed gate ends.
fn query() -> String {
    let watched = conf::WATCHED.map(|name| format!("current_setting('{name}')")).join(", ");
    format!(
        "WITH activity AS MATERIALIZED (
             SELECT count(*) FILTER (WHERE backend_type = 'walreceiver') AS receivers,
                    count(*) FILTER (WHERE {CLIENTS}) AS clients,
                    array_agg(pid) FILTER (WHERE backend_type IN ({VITAL})) AS vital,
                    max(wait_event_type || '/' || wait_event) FILTER (WHERE backend_type = 'startup') AS startup
             FROM pg_stat_activity)
         SELECT pg_is_in_recovery(),
                current_setting('{CONFIG_ID}', true),
                CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_flush_lsn()::text END,
                CASE WHEN NOT pg_is_in_recovery() THEN pg_walfile_name(pg_current_wal_flush_lsn()) END,
                pg_last_wal_receive_lsn()::text,
                pg_last_wal_replay_lsn()::text,
                r.status = 'streaming',
                r.received_tli,
                r.last_msg_receipt_time::text,
                activity.receivers,
                activity.clients,
                greatest((pg_control_checkpoint()).timeline_id, (pg_control_recovery()).min_recovery_end_timeline),
                pg_size_bytes(current_setting('wal_segment_size')),
                coalesce((SELECT json_agg(json_build_object('name', application_name, 'state', state,
                        'sent', sent_lsn, 'write', write_lsn, 'flush', flush_lsn, 'replay', replay_lsn,
                        'priority', sync_priority)) FROM pg_stat_replication)::text, '[]'),
                activity.vital,
                ARRAY[{watched}],
                activity.startup,
                CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() END
         FROM activity LEFT JOIN pg_stat_wal_receiver r ON true"
    )
}

/// Processes without which a server goes on for a while and then does not: nobody writes back what
/// is dirty, flushes what asynchronous commits left, or replays. If one of them is stopped (SIGSTOP, a
/// debugger that was left), no query shows it before it is too late.
const VITAL: &str = "'checkpointer', 'walwriter', 'startup'";

/// One row of `pg_stat_replication`.
#[derive(Deserialize)]
struct Walsender {
    name: String,
    state: String,
    sent: Option<Lsn>,
    write: Option<Lsn>,
    flush: Option<Lsn>,
    replay: Option<Lsn>,
    priority: Option<u32>,
}

/// Walsenders that serve peers; base backups and others are not followers.
fn downstreams(json: &str) -> Vec<Downstream> {
    let rows: Vec<Walsender> = serde_json::from_str(json).unwrap_or_default();
    let downstream = |row: Walsender| {
        Some(Downstream {
            peer: row.name.parse().ok()?,
            streaming: row.state == "streaming",
            sent: row.sent.unwrap_or_default(),
            write: row.write.unwrap_or_default(),
            flush: row.flush.unwrap_or_default(),
            replay: row.replay.unwrap_or_default(),
            sync_priority: row.priority.unwrap_or_default(),
        })
    };
    rows.into_iter().filter_map(downstream).collect()
}

/// Result of one query.
#[derive(Debug)]
struct Seen {
    in_recovery: bool,
    config_id: Option<String>,
    flushed: Option<Lsn>,
    wal_file: Option<String>,
    received: Option<Lsn>,
    replayed: Option<Lsn>,
    streaming: bool,
    received_timeline: Option<i32>,
    last_message: Option<String>,
    receivers: i64,
    clients: i64,
    control_timeline: i32,
    segment_bytes: i64,
    downstreams: Vec<Downstream>,
    vital: Vec<i32>,
    /// Values of [`conf::WATCHED`].
    watched: Vec<String>,
    obstacle: Option<Obstacle>,
    paused: bool,
}

impl Seen {
    async fn ask(session: &Client, query: &str) -> Result<Self, tokio_postgres::Error> {
        let row = session.query_one(query, &[]).await?;
        let lsn = |column: usize| -> Result<Option<Lsn>, tokio_postgres::Error> {
            Ok(row.try_get::<_, Option<&str>>(column)?.and_then(|text| text.parse().ok()))
        };
        Ok(Self {
            in_recovery: row.try_get(0)?,
            config_id: row.try_get(1)?,
            flushed: lsn(2)?,
            wal_file: row.try_get(3)?,
            received: lsn(4)?,
            replayed: lsn(5)?,
            streaming: row.try_get::<_, Option<bool>>(6)?.unwrap_or(false),
            received_timeline: row.try_get(7)?,
            last_message: row.try_get(8)?,
            receivers: row.try_get(9)?,
            clients: row.try_get(10)?,
            control_timeline: row.try_get::<_, Option<i32>>(11)?.unwrap_or(1),
            segment_bytes: row.try_get(12)?,
            downstreams: downstreams(row.try_get(13)?),
            vital: row.try_get::<_, Option<Vec<i32>>>(14)?.unwrap_or_default(),
            watched: row.try_get(15)?,
            obstacle: row.try_get::<_, Option<&str>>(16)?.and_then(replay::obstacle),
            paused: row.try_get::<_, Option<bool>>(17)?.unwrap_or(false),
        })
    }

    /// Neither a process nor a connection of a WAL receiver.
    fn no_receiver(&self) -> bool {
        self.receivers == 0 && self.last_message.is_none() && self.received_timeline.is_none() && !self.streaming
    }
}

/// Memory between observations of one postmaster.
#[derive(Debug)]
struct Memory {
    epoch: u64,
    last_answer: Option<Instant>,
    /// The previous observation found no WAL receiver.
    had_no_receiver: bool,
    /// Newest timeline received on.
    timeline: Option<Timeline>,
    history: Option<(Timeline, TimelineHistory)>,
    /// Since when every observation found it streaming.
    streaming_since: Option<Instant>,
    /// Since when it is not streaming although told to follow.
    idle_since: Option<Instant>,
    /// Text and first sight of `last_msg_receipt_time`.
    last_message: Option<(String, Instant)>,
    /// Since when every observation found one of the vital processes stopped.
    stopped_since: Option<Instant>,
    /// Whether the files would be rendered otherwise today; about the configuration of this epoch.
    outdated: Option<bool>,
    /// Since when every observation found replay waiting for readers.
    obstructed_since: Option<Instant>,
    /// Values with which this postmaster was started.
    capacities: Option<Capacities>,
    /// Lack that keeps replay paused, if not somebody, and when it was looked for.
    short_of: Option<(Instant, Option<Lack>)>,
}

impl Memory {
    fn new(epoch: u64) -> Self {
        Self {
            epoch,
            last_answer: None,
            had_no_receiver: false,
            timeline: None,
            history: None,
            streaming_since: None,
            idle_since: None,
            last_message: None,
            stopped_since: None,
            outdated: None,
            obstructed_since: None,
            capacities: None,
            short_of: None,
        }
    }
}

/// The task's own state.
pub(super) struct Observer {
    inner: Arc<Inner>,
    looks: mpsc::Receiver<oneshot::Sender<()>>,
    query: String,
    memory: Memory,
    /// The process that `memory` is about.
    observed: Option<i32>,
    log: Watcher,
    /// Configuration that the log is read under.
    log_config: Option<String>,
    probe: Probe,
    guard: Guard,
    in_force: InForce,
    log_checked: Instant,
    /// The last look at its size, and what followed.
    log_cut: Option<JoinHandle<()>>,
}

impl Observer {
    pub(super) fn new(inner: Arc<Inner>, looks: mpsc::Receiver<oneshot::Sender<()>>) -> Self {
        Self {
            log: Watcher::new(inner.layout.log()),
            probe: Probe::new(Arc::clone(&inner)),
            guard: Guard::new(Arc::clone(&inner)),
            in_force: InForce::new(Arc::clone(&inner)),
            inner,
            looks,
            query: query(),
            memory: Memory::new(0),
            observed: None,
            log_config: None,
            log_checked: Instant::now(),
            log_cut: None,
        }
    }

    /// Observes until aborted. Everything in it may be dropped at any point.
    pub(super) async fn run(mut self) {
        let mut waiting: Vec<oneshot::Sender<()>> = Vec::new();
        loop {
            let period = match (&self.observed, self.memory.last_answer) {
                (None, _) => PERIOD_DOWN,
                (Some(_), None) => PERIOD_STARTING,
                (Some(_), Some(_)) => PERIOD,
            };
            let postmaster = self.inner.postmaster();
            let inner = Arc::clone(&self.inner);
            tokio::select! {
                biased;
                () = ended(postmaster.as_deref()) => self.on_end(),
                Some(look) = self.looks.recv() => waiting.push(look),
                () = inner.wake.notified() => {}
                () = tokio::time::sleep(period) => {}
            }
            while let Ok(look) = self.looks.try_recv() {
                waiting.push(look);
            }
            let postmaster = self.inner.postmaster();
            // An observation is dropped when the process ends: its session is dead as well.
            tokio::select! {
                biased;
                () = ended(postmaster.as_deref()) => self.on_end(),
                () = self.observe(postmaster.clone()) => {}
            }
            for look in waiting.drain(..) {
                let _ = look.send(());
            }
        }
    }

    /// The postmaster's process is gone.
    fn on_end(&mut self) {
        {
            let mut known = self.inner.known();
            let Some(postmaster) = known.postmaster.take() else { return };
            known.session = None;
            known.crashed = !known.told_to_stop;
            known.epoch += 1;
            let (pid, crashed) = (postmaster.pid(), known.crashed);
            if crashed && self.inner.layout.data().join("standby.signal").exists() {
                known.unfit = serverlog::unfit(&files::tail(&self.inner.layout.log(), LAST_WORDS_BYTES));
            }
            tracing::info!(pid, crashed, unfit = known.unfit, "PostgreSQL ended");
        }
        self.forget();
        self.publish_down();
    }

    /// Nothing of the former process is true of the next one.
    fn forget(&mut self) {
        self.observed = None;
        self.memory = Memory::new(0);
        self.probe.stop();
        self.in_force.forget();
        self.inner.known().loosened.clear();
    }

    async fn observe(&mut self, postmaster: Option<Arc<Postmaster>>) {
        let Some(postmaster) = postmaster else {
            self.forget();
            return self.publish_down();
        };
        if self.observed != Some(postmaster.pid()) {
            self.forget();
            self.observed = Some(postmaster.pid());
            self.log.forget();
            self.publish(Server::Starting { for_ms: 0 }, None);
        }
        self.bound_log();
        // One that is stopped lets nobody in, whatever its sessions answer.
        if postmaster.is_stopped() {
            return self.publish_silence(&postmaster);
        }
        let Some(session) = self.session(&postmaster).await else { return };
        // An observation that a change of configuration overtook says nothing: ask again. Actions
        // are few; the bound is only against a bug.
        for _ in 0..10 {
            let epoch = self.inner.known().epoch;
            match self.ask(&session, &postmaster).await {
                Some(seen) if self.inner.known().epoch == epoch => return self.accept(seen, epoch, &session).await,
                Some(_) => {}
                None => return,
            }
        }
    }

    /// The session in use, or a new one.
    async fn session(&mut self, postmaster: &Postmaster) -> Option<Arc<Client>> {
        let open = self.inner.known().session.clone().filter(|session| !session.is_closed());
        if open.is_some() {
            return open;
        }
        match session::local(&self.inner).await {
            Ok(client) => {
                let client = Arc::new(client);
                self.inner.known().session = Some(Arc::clone(&client));
                Some(client)
            }
            Err(error) => {
                tracing::trace!(error = &error as &dyn std::error::Error, "no session yet");
                self.publish_silence(postmaster);
                None
            }
        }
    }

    /// Runs the query; while it takes long, says so.
    async fn ask(&mut self, session: &Arc<Client>, postmaster: &Postmaster) -> Option<Seen> {
        let query = self.query.clone();
        let asked = Instant::now();
        let mut answer = std::pin::pin!(Seen::ask(session, &query));
        loop {
            match tokio::time::timeout(HUNG_AFTER / 5, &mut answer).await {
                Ok(Ok(seen)) => {
                    self.memory.last_answer = Some(Instant::now());
                    return Some(seen);
                }
                Ok(Err(error)) => {
                    // A function that is refused because recovery ended meanwhile, or the end of
                    // the session: the next look, at once after a promotion, tells.
                    tracing::debug!(error = &error as &dyn std::error::Error, "an observation failed");
                    if session.is_closed() || asked.elapsed() > HUNG_AFTER {
                        self.inner.known().session = None;
                        self.publish_silence(postmaster);
                    }
                    return None;
                }
                Err(_) if asked.elapsed() > GIVE_UP => {
                    self.inner.known().session = None;
                    self.publish_silence(postmaster);
                    return None;
                }
                Err(_) => self.publish_silence(postmaster),
            }
        }
    }

    /// Publishes what was seen.
    async fn accept(&mut self, seen: Seen, epoch: u64, session: &Arc<Client>) {
        if self.memory.epoch != epoch {
            // A receiver's absence that was seen under another configuration proves nothing.
            self.memory.epoch = epoch;
            self.memory.had_no_receiver = false;
            self.memory.outdated = None;
        }
        let record = self.inner.known().record.clone();
        if seen.clients > 0 && record.as_ref().is_some_and(|record| record.config.gate == Gate::Closed) {
            // Somebody was logging in while the gate closed.
            match clients::end(session).await {
                Ok(ended) => tracing::info!(ended, "ended client sessions behind the closed gate"),
                Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "the gate is not tight"),
            }
        }
        if let (None, Some(record)) = (self.memory.outdated, record.as_ref().filter(|record| record.confirmed)) {
            let rendered = render::render(&self.inner, &record.config, guard::name(record.trusted));
            self.memory.outdated = Some(rendered.id != record.id);
        }
        let (loosened, decided) = self.in_force.look(record.as_ref(), &seen.watched);
        self.inner.known().loosened = loosened;
        let config = record
            .filter(|record| record.confirmed && !decided && seen.config_id.as_deref() == Some(&record.id))
            .map(|record| record.config);
        if self.memory.capacities.is_none() {
            // Of no consequence if it fails: the next look is near.
            self.memory.capacities = capacity::of_server(session).await.ok();
        }
        self.look_at_pause(seen.paused).await;
        let stopped_ms = self.vital_stopped(&seen.vital);
        let server = if seen.in_recovery { self.standby(seen, config.as_ref()) } else { self.primary(seen) };
        if let Server::Primary(_) = server {
            if let Some(since) = self.probe.stuck_since() {
                let for_ms = millis(since.elapsed());
                return self.publish(Server::Hung { for_ms }, config);
            }
        } else {
            self.probe.stop();
        }
        if let Some(for_ms) = stopped_ms {
            return self.publish(Server::Hung { for_ms }, config);
        }
        self.publish(server, config);
    }

    /// Time for which one of the vital processes has been stopped, once that is too long.
    fn vital_stopped(&mut self, vital: &[i32]) -> Option<u64> {
        if !vital.iter().any(|pid| process::is_stopped(*pid)) {
            self.memory.stopped_since = None;
            return None;
        }
        let stopped = self.memory.stopped_since.get_or_insert_with(Instant::now).elapsed();
        (stopped >= HUNG_AFTER).then(|| millis(stopped))
    }

    fn primary(&mut self, seen: Seen) -> Server {
        self.probe.keep_going();
        self.memory.had_no_receiver = false;
        // The first 8 digits of a segment's name are the timeline being written.
        let timeline = seen.wal_file.as_deref().and_then(|name| u32::from_str_radix(name.get(..8)?, 16).ok());
        let flushed =
            WalPosition { timeline: Timeline(timeline.unwrap_or_default()), lsn: seen.flushed.unwrap_or_default() };
        self.inner.known().last_position = Some(flushed);
        Server::Primary(PrimaryStatus { flushed, downstreams: seen.downstreams })
    }

    fn standby(&mut self, seen: Seen, config: Option<&ServerConfig>) -> Server {
        let now = Instant::now();
        let no_receiver = seen.no_receiver();
        let receiver_stopped = no_receiver && self.memory.had_no_receiver;
        self.memory.had_no_receiver = no_receiver;
        let replayed = seen.replayed.unwrap_or_default();
        let received = seen.received.map(|received| self.position(&seen, received.max(replayed)));
        if let Some(received) = received {
            self.inner.known().last_position = Some(received);
        }
        let history = received.map(|received| self.history(received.timeline)).unwrap_or_default();
        let following = config.filter(|config| matches!(config.recovery, Recovery::Follow(_)));
        self.inner.known().segment_bytes = u64::try_from(seen.segment_bytes).ok();
        let upstream = following.map(|config| config.recovery);
        let foreign = self.inner.known().foreign.filter(|foreign| upstream == Some(Recovery::Follow(*foreign)));
        let cannot_follow = self
            .cannot_follow(&seen, following.is_some(), now)
            .or_else(|| foreign.map(|foreign| format!("{foreign} has another history under the same WAL positions")));
        // A standby that has gone past the fork streams the rest of the old timeline, for moments,
        // over and over: that is no streaming.
        let streaming = seen.streaming && cannot_follow.is_none();
        if streaming || following.is_none() {
            self.memory.idle_since = None;
        }
        let not_streaming_ms = match following {
            Some(_) if !streaming => millis(now.duration_since(*self.memory.idle_since.get_or_insert(now))),
            _ => 0,
        };
        let upstream_silent_ms = self.upstream_silent(&seen, now);
        let receiver_error = self.log.receiver_error().filter(|_| following.is_some() && !streaming).map(str::to_owned);
        let replay = self.replay(&seen, now);
        if following.is_some() {
            self.guard.observe(streaming.then_some(received).flatten(), not_streaming_ms);
        }
        Server::Standby(StandbyStatus {
            received,
            replayed,
            history,
            streaming,
            upstream_silent_ms,
            receiver_stopped,
            not_streaming_ms,
            cannot_follow,
            receiver_failure: receiver_error.as_deref().and_then(failure::in_text),
            receiver_error,
            replay,
            downstreams: seen.downstreams,
        })
    }

    fn replay(&mut self, seen: &Seen, now: Instant) -> Replay {
        let since = seen.obstacle.map(|_| self.memory.obstructed_since.unwrap_or(now));
        self.memory.obstructed_since = since;
        let waits_ms = since.map_or(0, |since| millis(now.duration_since(since)));
        let short_of = self.memory.short_of.and_then(|(_, short_of)| short_of);
        Replay { paused: seen.paused, short_of, waits_for: seen.obstacle, waits_ms }
    }

    /// Finds out whether replay is paused because a setting is too low: what the WAL needs is in `pg_control` by then.
    async fn look_at_pause(&mut self, paused: bool) {
        let Some(has) = self.memory.capacities.filter(|_| paused) else {
            self.memory.short_of = None;
            return;
        };
        if self.memory.short_of.is_some_and(|(looked, _)| looked.elapsed() < PAUSE_PERIOD) {
            return;
        }
        match capacity::of_data(&self.inner).await {
            Ok(needs) => self.memory.short_of = Some((Instant::now(), has.shortfalls(&needs).next())),
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "why replay is paused is not known yet");
            }
        }
    }

    /// The end of WAL with its timeline (see the module's head).
    fn position(&mut self, seen: &Seen, end: Lsn) -> WalPosition {
        if let Some(received) = seen.received_timeline.and_then(|timeline| u32::try_from(timeline).ok()) {
            let received = Timeline(received);
            self.memory.timeline = Some(received);
            return WalPosition { timeline: received, lsn: end };
        }
        let control = u32::try_from(seen.control_timeline).unwrap_or(1);
        let known = Timeline(self.memory.timeline.map_or(0, |timeline| timeline.0).max(control));
        let segment_bytes = u64::try_from(seen.segment_bytes).unwrap_or(16 << 20);
        let timeline = control::newest_timeline(&self.inner.layout.data(), known, end, segment_bytes);
        self.memory.timeline = Some(timeline);
        WalPosition { timeline, lsn: end }
    }

    fn history(&mut self, timeline: Timeline) -> TimelineHistory {
        match &self.memory.history {
            Some((of, history)) if *of == timeline => history.clone(),
            _ => {
                let history = control::read_history(&self.inner.layout.data(), timeline);
                // Only a history that is there is remembered: the file may still be coming.
                if timeline.0 <= 1 || !history.0.is_empty() {
                    self.memory.history = Some((timeline, history.clone()));
                }
                history
            }
        }
    }

    fn cannot_follow(&mut self, seen: &Seen, following: bool, now: Instant) -> Option<String> {
        let since = self.memory.streaming_since.filter(|_| seen.streaming);
        let since = since.or_else(|| seen.streaming.then_some(now));
        self.memory.streaming_since = since;
        let steady = since.is_some_and(|since| now.duration_since(since) >= STEADY);
        if steady || !following || self.log_config != seen.config_id {
            self.log_config.clone_from(&seen.config_id);
            self.log.forget();
            return None;
        }
        self.log.look(now).map(str::to_owned)
    }

    fn upstream_silent(&mut self, seen: &Seen, now: Instant) -> Option<u64> {
        let Some(text) = &seen.last_message else {
            self.memory.last_message = None;
            return None;
        };
        match &self.memory.last_message {
            Some((last, since)) if last == text => Some(millis(now.duration_since(*since))),
            _ => {
                self.memory.last_message = Some((text.clone(), now));
                Some(0)
            }
        }
    }

    /// No answer: hung if there were some before.
    fn publish_silence(&mut self, postmaster: &Postmaster) {
        self.memory.had_no_receiver = false;
        let record = self.inner.known().record.clone();
        let config = record.filter(|record| record.confirmed).map(|record| record.config);
        match self.memory.last_answer {
            Some(last) if last.elapsed() >= HUNG_AFTER || postmaster.is_stopped() => {
                self.publish(Server::Hung { for_ms: millis(last.elapsed()) }, config);
            }
            // Too early to tell: what was seen last stands.
            Some(_) => {}
            None => self.publish(Server::Starting { for_ms: millis(postmaster.since.elapsed()) }, None),
        }
    }

    fn publish_down(&self) {
        let crashed = self.inner.known().crashed;
        let layout = &self.inner.layout;
        let data = control::classify(layout, &self.inner.version);
        let standby = layout.data().join("standby.signal").exists();
        let config = self.inner.known().record.clone().filter(|record| record.confirmed).map(|record| record.config);
        self.publish_all(data, Server::Down { crashed, standby }, config);
    }

    fn publish(&self, server: Server, config: Option<ServerConfig>) {
        let data = match &self.inner.local.borrow().data {
            Data::Present(system) => Data::Present(system.clone()),
            _ => control::classify(&self.inner.layout, &self.inner.version),
        };
        self.publish_all(data, server, config);
    }

    fn publish_all(&self, data: Data, server: Server, config: Option<ServerConfig>) {
        let last_position = self.inner.known().last_position.filter(|_| !matches!(data, Data::Absent));
        let (unfit, loosened) = {
            let known = self.inner.known();
            (known.unfit.clone(), known.loosened.clone())
        };
        let outdated = config.is_some() && self.memory.outdated == Some(true);
        let end = self.inner.known().end.clone().filter(|_| matches!(data, Data::Present(_)));
        let capacities = self.memory.capacities;
        let new = Local { data, server, config, unfit, capacities, loosened, outdated, last_position, end };
        self.inner.local.send_if_modified(|local| {
            let changed = *local != new;
            *local = new;
            changed
        });
    }

    /// A log that grows without end while the server runs is put away.
    fn bound_log(&mut self) {
        if self.log_checked.elapsed() < LOG_PERIOD || self.log_cut.as_ref().is_some_and(|cut| !cut.is_finished()) {
            return;
        }
        self.log_checked = Instant::now();
        let inner = Arc::clone(&self.inner);
        // Copying may take as long as the disk does: never in the way of an observation.
        self.log_cut = Some(tokio::task::spawn_blocking(move || {
            let log = inner.layout.log();
            match logfile::cut(&log, inner.settings.log_bytes, inner.settings.log_kept, &inner.user) {
                Ok(false) => {}
                Ok(true) => tracing::info!(path = %log.display(), "PostgreSQL's log was full and was put away"),
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "PostgreSQL's log is not bounded");
                }
            }
        }));
    }
}

/// The end of the process; never, without one.
async fn ended(postmaster: Option<&Postmaster>) {
    match postmaster {
        Some(postmaster) => postmaster.ended().await,
        None => std::future::pending().await,
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Looks once at what is there before anything was observed (for [`super::Postgres::adopt`]).
pub(super) fn note_left_over(inner: &Inner) {
    let data = inner.layout.data();
    inner.known().crashed = process::left_pid_file(&data);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_peers_are_followers() {
        let json = r#"[{"name":"10.0.0.2:5432:12345","state":"streaming","sent":"0/5","write":"0/4","flush":"0/3",
            "replay":null,"priority":1},{"name":"pg_basebackup","state":"backup","sent":null,"write":null,
            "flush":null,"replay":null,"priority":0}]"#;
        let found = downstreams(json);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].flush, found[0].replay, found[0].sync_priority), (Lsn(3), Lsn(0), 1));
        assert!(downstreams("garbage").is_empty());
    }
}
