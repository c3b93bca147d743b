//! A machine: a PostgreSQL, and a sitter process that runs the real core.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use manatee_fake_zookeeper::FakeSession;
use manatee_shared::cluster::{ClusterState, Peer};
use manatee_shared::ids::PeerId;
use manatee_shared::zk::Over;

use super::heartbeats::Poll;
use super::postgres::{MOST_PEERS, Postgres};
use crate::heartbeat::Timing;
use crate::heartbeat::table::Table;
use crate::machine::action::Action;
use crate::machine::local::Local;
use crate::machine::tracker::Tracker;
use crate::machine::view::{InFlight, Observed, Settings, View};
use crate::machine::{followers, returning, suspicion};
use crate::reason::Reason;
use crate::status::Heartbeat;

/// As the sitter's defaults.
pub(super) const TIMING: Timing = Timing { interval: Duration::from_millis(100), suspicion: Duration::from_secs(1) };

/// An action being executed, step by step.
#[derive(Clone, Debug)]
pub(super) struct Flight {
    pub(super) action: Action,
    pub(super) began: u64,
    /// The step that is next, and when it is taken.
    pub(super) step: usize,
    pub(super) next: u64,
    /// Fate of a state write that was given to the client.
    pub(super) sent: Option<Sent>,
}

/// A state write that was given to the client.
#[derive(Clone, Debug)]
pub(super) enum Sent {
    /// Answer that its caller hears next.
    Answered(Result<(), String>),
    /// The answer is lost; the client finds out, and its caller waits since then.
    Lost { since: u64 },
}

/// A write of which it is not known whether it happened.
#[derive(Clone, Debug)]
pub(super) struct Doubt {
    pub(super) id: u64,
    pub(super) over: Over,
    pub(super) state: Arc<ClusterState>,
}

/// A write on its way that nobody waits for any more.
#[derive(Clone, Debug)]
pub(super) struct Straggler {
    pub(super) id: u64,
    /// The peer whose process sent it; None: an operator's hand.
    pub(super) by: Option<PeerId>,
    pub(super) arrives: u64,
    pub(super) over: Over,
    pub(super) state: ClusterState,
}

/// A sitter process.
pub(super) struct Sitter {
    pub(super) session: FakeSession,
    /// Changes of ZooKeeper's that it has heard of.
    pub(super) seen_revision: u64,
    pub(super) table: Table,
    pub(super) polls: [Poll; MOST_PEERS],
    pub(super) tracker: Tracker,
    pub(super) flight: Option<Flight>,
    pub(super) uncertain: bool,
    /// Settings that somebody changed are put right then.
    pub(super) puts_right: Option<u64>,
    /// The client finds out what became of this write.
    pub(super) doubt: Option<Doubt>,
    pub(super) straggler: Option<Straggler>,
    pub(super) stopping_since: Option<u64>,
    /// It is started again this long after it was asked to stop and did.
    pub(super) stays_away_ms: u64,
    /// As last completed; `zk` and `local` as last heard of.
    pub(super) view: View,
    /// Answer to heartbeats.
    pub(super) answer: Option<Heartbeat>,
    pub(super) last_reason: Reason,
    pub(super) paused_until: u64,
    /// Moment until which changes in ZooKeeper are not heard of.
    pub(super) blind_until: u64,
    /// Moment of its next decision, and its last try to reach ZooKeeper.
    pub(super) decides: u64,
}

impl Sitter {
    pub(super) fn new(session: FakeSession, me: &Peer, postgres: &Postgres, remembers: Option<u64>, now: u64) -> Self {
        let mut sitter = Self {
            seen_revision: 0,
            table: Table::new(TIMING),
            polls: [const { Poll::new() }; MOST_PEERS],
            tracker: Tracker::remembering(remembers),
            flight: None,
            uncertain: false,
            puts_right: None,
            doubt: None,
            straggler: None,
            stopping_since: None,
            stays_away_ms: 1_000,
            view: View {
                me: me.clone(),
                now_ms: now,
                wall_ms: 0,
                zk: session.view_now(),
                uncertain_write: false,
                local: Local::new(postgres.data.clone(), postgres.observe(now)),
                disk_full: false,
                health: BTreeMap::new(),
                in_flight: None,
                stopping_ms: None,
                settings: Settings { rejoin_after_ms: 8_000, ..Settings::default() },
                observed: Observed::default(),
            },
            session,
            answer: None,
            last_reason: Reason::Starting,
            paused_until: 0,
            blind_until: 0,
            decides: now,
        };
        sitter.observe(postgres, now);
        sitter
    }

    /// A look at PostgreSQL.
    pub(super) fn observe(&mut self, postgres: &Postgres, now: u64) {
        let local = &mut self.view.local;
        if local.data != postgres.data {
            local.data = postgres.data.clone();
        }
        local.server = postgres.observe(now);
        local.end.clone_from(&postgres.end);
        self.view.disk_full = now < postgres.low_until.max(postgres.full_until);
        let local = &mut self.view.local;
        let loosened = postgres.loosened.filter(|_| postgres.is_running());
        local.loosened = loosened.map(|what| format!("{what:?} is loosened")).into_iter().collect();
        let confirmed = postgres.confirmed();
        if local.config.as_ref() != confirmed {
            local.config = confirmed.cloned();
        }
    }

    /// Completes the view; also renews what the heartbeat says.
    pub(super) fn complete(&mut self, base: Instant, now: u64, clock_jump_ms: i64) {
        let view = &mut self.view;
        view.now_ms = now;
        view.wall_ms = i64::try_from(now).unwrap_or(0) + clock_jump_ms;
        view.uncertain_write = self.uncertain;
        let at = base + Duration::from_millis(now);
        self.table.tick(at);
        view.health = self.table.health(at);
        view.in_flight =
            self.flight.as_ref().map(|flight| InFlight { action: flight.action.clone(), for_ms: now - flight.began });
        view.stopping_ms = self.stopping_since.map(|since| now - since);
        self.tracker.complete(view);
        let answer = Heartbeat {
            id: view.me.id,
            stopping: self.stopping_since.is_some(),
            postgres_down_ms: view.observed.postgres_down_ms,
            unready_ms: None,
            suspects: followers::suspects(view),
            data: Some(view.local.data.clone()),
            streaming: Some(suspicion::streams(view)),
            generation: view.zk.state.valid().map(|(_, state)| state.generation),
            older: returning::is_older(view),
            wal: view.local.end_of_wal(),
            newest_generation: view.observed.newest_generation,
            capacities: view.local.capacities,
        };
        self.answer = Some(answer);
    }

    /// The peers whose heartbeats it follows, as the driver chooses them.
    pub(super) fn follows(&self) -> BTreeSet<PeerId> {
        let zk = &self.view.zk;
        let listed = zk.state.valid().into_iter().flat_map(|(_, state)| state.everyone().map(|peer| peer.id));
        listed.chain(zk.active.keys().copied()).filter(|peer| *peer != self.view.me.id).collect()
    }
}

/// A disk as it was once.
pub(super) struct Disk {
    pub(super) postgres: Postgres,
    remembers: Option<u64>,
}

impl Host {
    /// The disk as it is.
    pub(super) fn disk(&self) -> Disk {
        Disk { postgres: self.postgres.clone(), remembers: self.remembers }
    }

    /// The disk is as it was: `disk`, without the last `records` of the WAL. Only while all is down.
    pub(super) fn put_back(&mut self, disk: &Disk, records: usize) {
        self.postgres = Postgres {
            full_until: self.postgres.full_until,
            slow_until: self.postgres.slow_until,
            ..disk.postgres.clone()
        };
        self.postgres.end(true);
        let left = self.postgres.flushed.saturating_sub(records).max(1);
        self.postgres.wal.truncate(left);
        self.postgres.flushed = left;
        self.remembers = disk.remembers;
    }
}

/// A machine.
pub(super) struct Host {
    pub(super) peer: Peer,
    pub(super) up: bool,
    pub(super) sitter: Option<Sitter>,
    pub(super) postgres: Postgres,
    /// The newest generation that its sitters wrote down (`memory.rs`).
    pub(super) remembers: Option<u64>,
    /// The sitter (and the machine) come back at this time.
    pub(super) returns: Option<u64>,
    /// Its configuration allows one-node-write mode.
    pub(super) one_node: bool,
    /// Its disk as it was, the oldest first; kept only if one comes back older.
    pub(super) saved: VecDeque<Disk>,
    /// Error of its wall clock.
    pub(super) clock_jump_ms: i64,
}
