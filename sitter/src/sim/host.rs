//! A machine: a PostgreSQL, and a sitter process that runs the real core.

use std::collections::BTreeMap;

use manatee_shared::cluster::{ClusterState, Peer};
use manatee_shared::ids::PeerId;
use manatee_shared::zk::Version;
use manatee_shared::zk::fake::FakeSession;

use super::postgres::Postgres;
use crate::machine::action::Action;
use crate::machine::local::{Data, Local, ServerConfig};
use crate::machine::tracker::Tracker;
use crate::machine::view::{InFlight, Observed, PeerHealth, Settings, View};
use crate::machine::{suspicion, view};

/// What a heartbeat says.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub(super) stopping: bool,
    pub(super) down_ms: Option<u64>,
    pub(super) suspects: std::collections::BTreeSet<PeerId>,
    pub(super) data: Data,
    pub(super) streaming: bool,
    pub(super) generation: Option<u64>,
}

/// An action being executed.
#[derive(Clone, Debug)]
pub(super) struct Flight {
    pub(super) action: Action,
    pub(super) began: u64,
    /// When its effect happens, and when the sitter knows.
    pub(super) acts: u64,
    pub(super) ends: u64,
    pub(super) acted: Option<Result<(), String>>,
}

/// A write on its way that nobody waits for any more.
#[derive(Clone, Debug)]
pub(super) struct Straggler {
    pub(super) arrives: u64,
    pub(super) expected: Option<Version>,
    pub(super) state: ClusterState,
}

/// A sitter process.
pub(super) struct Sitter {
    pub(super) session: FakeSession,
    pub(super) tracker: Tracker,
    pub(super) flight: Option<Flight>,
    pub(super) uncertain: bool,
    pub(super) straggler: Option<Straggler>,
    pub(super) stopping_since: Option<u64>,
    pub(super) zk: manatee_shared::zk::View,
    pub(super) local: Local,
    /// The configuration that is known to be in effect.
    pub(super) confirmed: Option<ServerConfig>,
    pub(super) heard: BTreeMap<PeerId, (u64, Report)>,
    pub(super) refused: BTreeMap<PeerId, bool>,
    pub(super) report: Option<Report>,
    pub(super) last_reason: String,
    pub(super) paused_until: u64,
    /// What changes in ZooKeeper is not heard of until then.
    pub(super) blind_until: u64,
    pub(super) resumed: u64,
}

impl Sitter {
    pub(super) fn new(session: FakeSession, postgres: &Postgres, now: u64) -> Self {
        let confirmed = if postgres.is_running() { postgres.config.clone() } else { None };
        Self {
            zk: session.view_now(),
            session,
            tracker: Tracker::new(),
            flight: None,
            uncertain: false,
            straggler: None,
            stopping_since: None,
            local: Local {
                data: postgres.data.clone(),
                server: postgres.observe(now),
                config: confirmed.clone(),
                last_position: None,
            },
            confirmed,
            heard: BTreeMap::new(),
            refused: BTreeMap::new(),
            report: None,
            last_reason: String::new(),
            paused_until: 0,
            blind_until: 0,
            resumed: now,
        }
    }

    /// The completed view; also renews what the heartbeat says.
    pub(super) fn view(&mut self, me: &Peer, now: u64) -> View {
        let mut view = View {
            me: me.clone(),
            now_ms: now,
            wall_ms: i64::try_from(now).unwrap_or(0),
            zk: self.zk.clone(),
            uncertain_write: self.uncertain,
            local: self.local.clone(),
            disk_full: false,
            health: self.health(now),
            in_flight: self
                .flight
                .as_ref()
                .map(|flight| InFlight { action: flight.action.clone(), for_ms: now - flight.began }),
            stopping_ms: self.stopping_since.map(|since| now - since),
            settings: Settings { rejoin_after_ms: 8_000, ..Settings::default() },
            observed: Observed::default(),
        };
        self.tracker.complete(&mut view);
        self.report = Some(Report {
            stopping: self.stopping_since.is_some(),
            down_ms: view.observed.postgres_down_ms,
            suspects: suspicion::suspects(&view),
            data: view.local.data.clone(),
            streaming: suspicion::streams(&view),
            generation: view.zk.state.valid().map(|(_, state)| state.generation),
        });
        view
    }

    fn health(&self, now: u64) -> BTreeMap<PeerId, PeerHealth> {
        let mut health = BTreeMap::new();
        for (&peer, (at, report)) in &self.heard {
            let since = now - at;
            let entry = view::PeerHealth {
                silent_ms: Some(now - (*at).max(self.resumed)),
                refused: self.refused.get(&peer).copied().unwrap_or(false),
                postgres_down_ms: report.down_ms.map(|down| down + since),
                stopping: report.stopping,
                suspects: report.suspects.clone(),
                data: Some(report.data.clone()),
                streaming: Some(report.streaming),
                generation: report.generation,
            };
            health.insert(peer, entry);
        }
        for (&peer, &refused) in &self.refused {
            health.entry(peer).or_insert_with(|| PeerHealth { refused, ..PeerHealth::default() });
        }
        health
    }
}

/// A machine.
pub(super) struct Host {
    pub(super) peer: Peer,
    pub(super) up: bool,
    pub(super) sitter: Option<Sitter>,
    pub(super) postgres: Postgres,
    /// The sitter (and the machine) come back at this time.
    pub(super) returns: Option<u64>,
}

impl Host {
    pub(super) fn id(&self) -> PeerId {
        self.peer.id
    }
}
