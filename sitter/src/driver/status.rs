//! Status of the driver for the rest of the sitter: the newest view and decision, as plain data.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use manatee_shared::cluster::{ClusterState, Peer, Role};
use manatee_shared::ids::{PeerId, ShardName};
use manatee_shared::zk;

use crate::machine::action::{Action, Decision};
use crate::machine::local::{Data, Gate, Local, Server};
use crate::reason::Reason;
use crate::status::{DecisionStatus, Heartbeat, RoleName, SettingsStatus, SitterStatus, ZkStatus};

/// The driver decides many times a second. One that has not for this long is stuck; its sitter
/// must then not pass for healthy.
const STUCK: Duration = Duration::from_secs(2);

/// The sitter as of the driver's last decision.
#[derive(Clone, Debug)]
pub struct Status {
    /// Report for everybody: `GET /status`.
    pub report: SitterStatus,
    /// Place in the newest state read.
    pub role: Role,
    /// Time for which PostgreSQL had not answered at [`Self::at`], ms.
    pub postgres_down_ms: Option<u64>,
    /// Time for which a need of a takeover that another peer may have in order had failed at [`Self::at`], ms.
    pub unready_ms: Option<u64>,
    /// PostgreSQL is a primary, or a standby that streams.
    pub streaming: bool,
    /// The newest state read.
    pub state: Option<Arc<ClusterState>>,
    /// Peers with an election node, in election order.
    pub active: Vec<Peer>,
    /// Peers found gone from here.
    pub suspects: BTreeSet<PeerId>,
    /// Moment at which this was current.
    pub at: Instant,
}

/// Checks for load balancers; the names are Patroni's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Takes writes.
    Primary,
    /// The sync, serving reads.
    Sync,
    /// An async, serving reads.
    Async,
    /// Any standby serving reads.
    Replica,
    /// Serves reads in whatever role.
    ReadOnly,
    /// PostgreSQL answers.
    Health,
    /// The sitter works.
    Liveness,
    /// Fit to be counted on: takes writes, or streams.
    Readiness,
}

impl Status {
    /// The status of a sitter that has seen nothing yet.
    pub(crate) fn nothing(me: Peer, shard: ShardName, now: Instant) -> Self {
        let local = Local::new(Data::Absent, Server::Down { crashed: false, standby: false });
        let decision = Decision { action: Action::Wait { for_ms: None }, why: Reason::Starting };
        let report = SitterStatus {
            id: me.id,
            zone_id: me.zone_id,
            shard,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            role: RoleName::Unassigned.into(),
            generation: None,
            decision: DecisionStatus::new(&decision, 0),
            in_flight: None,
            local,
            zk: ZkStatus::new(&zk::View::unknown()),
            last_failure: None,
            settings: SettingsStatus::default(),
            newest_generation: None,
            peers: BTreeMap::new(),
            pending_restart: Vec::new(),
            overridden: Vec::new(),
            weak_commits: Vec::new(),
            breach: None,
            unready: Vec::new(),
            older: false,
            outside_of_dataset: None,
            horizon: None,
            stopping: false,
        };
        Self {
            report,
            role: Role::Unassigned,
            postgres_down_ms: None,
            unready_ms: None,
            streaming: false,
            state: None,
            active: Vec::new(),
            suspects: BTreeSet::new(),
            at: now,
        }
    }

    /// Answer to its peers: `GET /heartbeat`.
    pub fn heartbeat(&self) -> Heartbeat {
        let SitterStatus { id, stopping, generation, older, newest_generation, ref local, .. } = self.report;
        Heartbeat {
            id,
            stopping,
            postgres_down_ms: self.postgres_down_ms,
            unready_ms: self.unready_ms,
            suspects: self.suspects.clone(),
            data: Some(local.data.clone()),
            streaming: Some(self.streaming),
            generation,
            older,
            wal: local.end_of_wal(),
            newest_generation,
            capacities: local.capacities,
        }
    }

    /// Whether the driver still goes round.
    pub fn is_live(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) < STUCK
    }

    /// Whether `check` holds.
    pub fn passes(&self, check: Check, now: Instant) -> bool {
        let open = self.report.local.config.as_ref().is_some_and(|config| config.gate == Gate::Open);
        let primary = open && self.role == Role::Primary && matches!(self.report.local.server, Server::Primary(_));
        let standby = match &self.report.local.server {
            Server::Standby(standby) if open => Some(standby),
            _ => None,
        };
        let sync = standby.is_some() && self.role == Role::Sync;
        let r#async = standby.is_some() && matches!(self.role, Role::Async(_));
        self.is_live(now)
            && match check {
                Check::Primary => primary,
                Check::Sync => sync,
                Check::Async => r#async,
                Check::Replica => sync || r#async,
                Check::ReadOnly => primary || sync || r#async,
                Check::Health => matches!(self.report.local.server, Server::Primary(_) | Server::Standby(_)),
                Check::Liveness => true,
                Check::Readiness => primary || ((sync || r#async) && standby.is_some_and(|standby| standby.streaming)),
            }
    }
}

/// Servers for tests of what is decided by a [`Status`].
#[cfg(test)]
pub(crate) mod samples {
    use manatee_shared::lsn::{Lsn, Timeline, TimelineHistory, WalPosition};

    use crate::machine::local::{PrimaryStatus, Replay, Server, StandbyStatus};

    pub(crate) fn primary() -> Server {
        let flushed = WalPosition { timeline: Timeline(1), lsn: Lsn(1) };
        Server::Primary(PrimaryStatus { flushed, downstreams: vec![] })
    }

    pub(crate) fn standby(streaming: bool) -> Server {
        Server::Standby(StandbyStatus {
            received: None,
            replayed: Lsn(1),
            history: TimelineHistory::default(),
            streaming,
            upstream_silent_ms: None,
            receiver_stopped: false,
            not_streaming_ms: 0,
            cannot_follow: None,
            receiver_error: None,
            receiver_failure: None,
            replay: Replay::default(),
            downstreams: vec![],
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    use super::samples::{primary, standby};
    use super::*;
    use crate::machine::local::{Recovery, ServerConfig, Synchronous};

    const ALL: [Check; 8] = [
        Check::Primary,
        Check::Sync,
        Check::Async,
        Check::Replica,
        Check::ReadOnly,
        Check::Health,
        Check::Liveness,
        Check::Readiness,
    ];

    fn status(role: Role, server: Server, gate: Gate) -> Status {
        let me = Peer::new("10.0.0.1:5432:12345".parse().unwrap(), "a");
        let mut status = Status::nothing(me, "demo".parse().unwrap(), Instant::now());
        let synchronous = Synchronous::Impossible;
        let config = ServerConfig { recovery: Recovery::Detached, synchronous, gate, slots: BTreeSet::new() };
        status.role = role;
        (status.report.local.server, status.report.local.config) = (server, Some(config));
        status
    }

    #[test]
    fn checks_say_what_a_load_balancer_may_rely_on() {
        use Check::{Async, Health, Liveness, Primary, ReadOnly, Readiness, Replica, Sync};
        let down = Server::Down { crashed: true, standby: false };
        let table: [(Status, &[Check]); 8] = [
            (status(Role::Primary, primary(), Gate::Open), &[Primary, ReadOnly, Health, Liveness, Readiness]),
            (status(Role::Primary, primary(), Gate::Closed), &[Health, Liveness]),
            (status(Role::Sync, primary(), Gate::Open), &[Health, Liveness]),
            (status(Role::Sync, standby(true), Gate::Open), &[Sync, Replica, ReadOnly, Health, Liveness, Readiness]),
            (status(Role::Async(0), standby(false), Gate::Open), &[Async, Replica, ReadOnly, Health, Liveness]),
            (status(Role::Deposed, standby(true), Gate::Open), &[Health, Liveness]),
            (status(Role::Primary, down, Gate::Open), &[Liveness]),
            (status(Role::Primary, standby(true), Gate::Open), &[Health, Liveness]),
        ];
        for (status, passed) in table {
            let now = status.at;
            let found: Vec<Check> = ALL.into_iter().filter(|check| status.passes(*check, now)).collect();
            assert_eq!(found, passed, "{} {:?}", status.role, status.report.local.server);
            assert!(ALL.into_iter().all(|check| !status.passes(check, now + STUCK)), "a stuck sitter passes nothing");
        }
    }
}
