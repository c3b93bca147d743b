//! The sitter's metrics: named `manatee_…`, base units, handles kept so that recording is cheap.
//!
//! One owner, the driver and its executor, record; nothing reads them back.

use std::collections::BTreeMap;
use std::time::Duration;

use manatee_shared::cluster::Role;
use manatee_shared::ids::PeerId;
use manatee_shared::zk;
use metrics::{Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram};
use metrics::{gauge, histogram};

use crate::machine::action::Rung;
use crate::machine::local::{Downstream, HorizonHolder, Local, Server};
use crate::machine::readiness::Need;
use crate::postgres::Condition;

const ROLE: &str = "manatee_role";
const GENERATION: &str = "manatee_generation";
const SESSION: &str = "manatee_zookeeper_session";
const LAG: &str = "manatee_replication_lag_bytes";
const REPLAY_LAG: &str = "manatee_replay_lag_bytes";
const TAKEOVERS: &str = "manatee_takeovers_total";
const PHASE: &str = "manatee_takeover_phase_seconds";
const POSTGRES_UP: &str = "manatee_postgres_up";
const DISK_FULL: &str = "manatee_disk_full";
const PENDING_RESTART: &str = "manatee_postgres_pending_restart_settings";
const OVERRIDDEN: &str = "manatee_postgres_overridden_settings";
const LOOSENED: &str = "manatee_settings_loosened";
/// Counted by the observation of PostgreSQL.
pub const LOOSENED_TOTAL: &str = "manatee_settings_breaches_total";
const READY: &str = "manatee_takeover_ready";
const WEAK_COMMITS: &str = "manatee_weak_commit_settings";
const HORIZON_AGE: &str = "manatee_xmin_horizon_age_transactions";
const HORIZON_HELD: &str = "manatee_xmin_horizon_held_seconds";
const DECISIONS: &str = "manatee_decisions_total";
const ACTIONS: &str = "manatee_actions_total";
const REJOINS: &str = "manatee_rejoins_total";
/// Copies of our data to other peers; recorded by the API.
pub const BACKUPS: &str = "manatee_backups_active";
/// See [`BACKUPS`].
pub const SENT: &str = "manatee_backup_sent_bytes_total";
const SUSPECTED: &str = "manatee_peers_suspected";

/// Every role, so that each has a gauge that is 0 or 1.
const ROLES: [Role; 5] = [Role::Primary, Role::Sync, Role::Async(0), Role::Deposed, Role::Unassigned];

/// A part of a takeover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// From the primary's last sign of life to the decision to take over.
    Detect,
    /// Stopping the WAL receiver.
    StopReceiver,
    /// Writing the new state.
    WriteState,
    /// `pg_promote` until out of recovery.
    Promote,
    /// From out of recovery until the new sync streams.
    SyncAttached,
}

impl Phase {
    const ALL: [Self; 5] = [Self::Detect, Self::StopReceiver, Self::WriteState, Self::Promote, Self::SyncAttached];

    fn name(self) -> &'static str {
        match self {
            Self::Detect => "detect",
            Self::StopReceiver => "stop_receiver",
            Self::WriteState => "write_state",
            Self::Promote => "promote",
            Self::SyncAttached => "sync_attached",
        }
    }
}

/// Handles of everything that is recorded.
pub struct Metrics {
    roles: Vec<(Role, Gauge)>,
    generation: Gauge,
    sessions: Vec<(zk::Session, Gauge)>,
    postgres_up: Gauge,
    replay_lag: Gauge,
    disk_full: Gauge,
    pending_restart: Gauge,
    overridden: Gauge,
    loosened: Gauge,
    weak_commits: Gauge,
    ready: Vec<(Need, Gauge)>,
    /// Age and time held of the oldest horizon, by its holder; 0 for the others.
    horizons: Vec<(HorizonHolder, Gauge, Gauge)>,
    suspected: Gauge,
    decisions: Counter,
    phases: Vec<(Phase, Histogram)>,
    /// A gauge per downstream peer ever seen; those gone are set to 0.
    lag: BTreeMap<PeerId, Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Registers everything with the installed recorder.
    pub fn new() -> Self {
        describe();
        // Its first value is seen by `increase()` only if there was one before.
        counter!(LOOSENED_TOTAL).absolute(0);
        Self {
            roles: ROLES.iter().map(|role| (*role, gauge!(ROLE, "role" => role.to_string()))).collect(),
            generation: gauge!(GENERATION),
            sessions: zk::Session::ALL.iter().map(|one| (*one, gauge!(SESSION, "state" => one.name()))).collect(),
            postgres_up: gauge!(POSTGRES_UP),
            replay_lag: gauge!(REPLAY_LAG),
            disk_full: gauge!(DISK_FULL),
            pending_restart: gauge!(PENDING_RESTART),
            overridden: gauge!(OVERRIDDEN),
            loosened: gauge!(LOOSENED),
            weak_commits: gauge!(WEAK_COMMITS),
            ready: Need::ALL.iter().map(|need| (*need, gauge!(READY, "reason" => need.name()))).collect(),
            horizons: HorizonHolder::ALL
                .iter()
                .map(|one| {
                    let label = one.name();
                    (*one, gauge!(HORIZON_AGE, "holder" => label), gauge!(HORIZON_HELD, "holder" => label))
                })
                .collect(),
            suspected: gauge!(SUSPECTED),
            decisions: counter!(DECISIONS),
            phases: Phase::ALL.iter().map(|phase| (*phase, histogram!(PHASE, "phase" => phase.name()))).collect(),
            lag: BTreeMap::new(),
        }
    }

    /// Room on the disk, settings that wait for a restart, and who keeps old row versions.
    pub fn condition(&self, condition: &Condition) {
        for (holder, age, held) in &self.horizons {
            let oldest = condition.horizon.as_ref().filter(|horizon| horizon.holder == *holder);
            // Transactions and milliseconds stay far below 2^53.
            #[allow(clippy::cast_precision_loss, reason = "a figure for people and graphs: 53 bits are enough")]
            age.set(oldest.map_or(0.0, |horizon| horizon.age_transactions as f64));
            #[allow(clippy::cast_precision_loss, reason = "a figure for people and graphs: 53 bits are enough")]
            held.set(oldest.map_or(0.0, |horizon| horizon.held_ms as f64 / 1000.0));
        }
        self.disk_full.set(f64::from(u8::from(condition.disk_full)));
        self.pending_restart.set(count(condition.pending_restart.len()));
        self.overridden.set(count(condition.overridden.len()));
        self.weak_commits.set(count(condition.weak_commits.len()));
        for (need, gauge) in &self.ready {
            let fails = condition.unready.iter().any(|unready| unready.need == *need);
            gauge.set(f64::from(u8::from(!fails)));
        }
    }

    /// Role and generation of the newest state.
    pub fn role(&self, role: Role, generation: Option<u64>) {
        for (one, gauge) in &self.roles {
            gauge.set(f64::from(u8::from(std::mem::discriminant(one) == std::mem::discriminant(&role))));
        }
        if let Some(generation) = generation {
            // Generations stay far below 2^53.
            #[allow(clippy::cast_precision_loss, reason = "a figure for people and graphs: 53 bits are enough")]
            self.generation.set(generation as f64);
        }
    }

    /// Our ZooKeeper session.
    pub fn session(&self, session: zk::Session) {
        for (one, gauge) in &self.sessions {
            gauge.set(f64::from(u8::from(*one == session)));
        }
    }

    /// The local PostgreSQL.
    pub fn local(&mut self, local: &Local) {
        let (up, end, downstreams): (_, _, &[Downstream]) = match &local.server {
            Server::Primary(primary) => (true, Some(primary.flushed.lsn), &primary.downstreams),
            Server::Standby(standby) => (true, standby.received.map(|received| received.lsn), &standby.downstreams),
            Server::Down { .. } | Server::Starting { .. } | Server::Hung { .. } => (false, None, &[]),
        };
        self.postgres_up.set(f64::from(u8::from(up)));
        self.loosened.set(count(local.loosened.len()));
        let behind = match &local.server {
            Server::Standby(standby) => end.map_or(0, |end| end.bytes_since(standby.replayed)),
            _ => 0,
        };
        // Lags stay far below 2^53 bytes.
        #[allow(clippy::cast_precision_loss, reason = "a figure for people and graphs: 53 bits are enough")]
        self.replay_lag.set(behind as f64);
        for (peer, gauge) in &self.lag {
            if downstreams.iter().all(|downstream| downstream.peer != *peer) {
                gauge.set(0.0);
            }
        }
        for downstream in downstreams {
            let gauge =
                self.lag.entry(downstream.peer).or_insert_with(|| gauge!(LAG, "peer" => downstream.peer.to_string()));
            // Lags stay far below 2^53 bytes.
            #[allow(clippy::cast_precision_loss, reason = "a figure for people and graphs: 53 bits are enough")]
            gauge.set(end.map_or(0, |end| end.bytes_since(downstream.flush)) as f64);
        }
    }

    /// Sets the number of peers that are found gone.
    pub fn suspected(&self, count: usize) {
        self.suspected.set(self::count(count));
    }

    /// A decision other than the last.
    pub fn decided(&self) {
        self.decisions.increment(1);
    }

    /// A step ended.
    pub fn acted(&self, action: &'static str, outcome: &'static str) {
        counter!(ACTIONS, "action" => action, "outcome" => outcome).increment(1);
    }

    /// This peer wrote the state that makes it primary.
    pub fn took_over(&self, reason: &'static str) {
        counter!(TAKEOVERS, "reason" => reason).increment(1);
    }

    /// A part of a takeover took this long.
    pub fn phase(&self, phase: Phase, took: Duration) {
        for (one, histogram) in &self.phases {
            if *one == phase {
                histogram.record(took.as_secs_f64());
            }
        }
    }

    /// Data was brought back in line by this rung of the ladder.
    pub fn rejoined(&self, rung: Rung) {
        let rung = match rung {
            Rung::AsIs => "as_is",
            Rung::Rewind => "rewind",
            Rung::Rollback => "rollback",
            Rung::Incremental => "incremental",
            Rung::Copy => "copy",
        };
        counter!(REJOINS, "rung" => rung).increment(1);
    }
}

fn count(items: usize) -> f64 {
    f64::from(u32::try_from(items).unwrap_or(u32::MAX))
}

fn describe() {
    describe_gauge!(ROLE, "1 for the role this peer has in the newest state, 0 for the others");
    describe_gauge!(GENERATION, "Generation of the newest state");
    describe_gauge!(SESSION, "1 for the state of the ZooKeeper session, 0 for the others");
    describe_gauge!(LAG, Unit::Bytes, "WAL that a downstream peer has not flushed yet");
    describe_gauge!(REPLAY_LAG, Unit::Bytes, "WAL that this standby has received and not replayed yet");
    describe_gauge!(POSTGRES_UP, "Whether the local PostgreSQL answers");
    describe_gauge!(DISK_FULL, "Whether less room is left on the data's disk than its reserve");
    describe_gauge!(PENDING_RESTART, "Settings of PostgreSQL whose new values take effect at its next start");
    describe_gauge!(
        OVERRIDDEN,
        "Settings that PostgreSQL was started with otherwise than configured, so that standbys follow"
    );
    describe_gauge!(LOOSENED, "Settings that Manatee owns and that are not in force: writes may be lost");
    describe_counter!(LOOSENED_TOTAL, "Times that settings of Manatee's were not in force and were put right");
    describe_gauge!(READY, "Whether what a takeover needs of this peer was tried lately with success, by what it is");
    describe_gauge!(WEAK_COMMITS, "Roles and databases whose commits do not wait for the sync");
    describe_gauge!(
        HORIZON_AGE,
        "Transactions begun since the oldest one whose row versions must be kept, by who needs it"
    );
    describe_gauge!(
        HORIZON_HELD,
        Unit::Seconds,
        "How long the oldest transaction whose row versions must be kept has been the same"
    );
    describe_gauge!(SUSPECTED, "Peers found gone from here");
    describe_counter!(TAKEOVERS, "Takeovers by this peer");
    describe_counter!(DECISIONS, "Changes of decision");
    describe_counter!(ACTIONS, "Steps taken, by outcome");
    describe_counter!(REJOINS, "Rejoins and bootstraps of this peer's data, by the rung that did it");
    describe_gauge!(BACKUPS, "Copies of this peer's data under way to others");
    describe_counter!(SENT, Unit::Bytes, "Sent by copies of this peer's data to others");
    describe_histogram!(PHASE, Unit::Seconds, "Parts of takeovers by this peer");
}
