//! What the driver tells the outside: the newest view and decision, as plain data for the API.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use manatee_shared::cluster::{ClusterState, Peer, Role};
use manatee_shared::ids::{PeerId, ShardName};
use manatee_shared::zk;
use serde::Serialize;

use crate::machine::action::ActionKind;
use crate::machine::local::{Breach, Data, Gate, Horizon, Local, Server};
use crate::machine::readiness::Unready;
use crate::machine::view::{LastFailure, PeerHealth, Settings};
use crate::reason::{BlockerCode, Reason, ReasonCode};

/// The driver decides many times a second. One that has not for this long is stuck; its sitter
/// must then not pass for healthy.
const STUCK: Duration = Duration::from_secs(2);

/// A snapshot of the sitter. Serialises to the answer of `GET /status`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// This peer.
    pub id: PeerId,
    /// Its name for people.
    pub zone_id: String,
    /// Its shard.
    pub shard: ShardName,
    /// Version of this program.
    pub version: &'static str,
    /// Place in the newest state read.
    #[serde(serialize_with = "as_text")]
    pub role: Role,
    /// Generation of the newest state read.
    pub generation: Option<u64>,
    /// What is being done and why.
    pub decision: DecisionStatus,
    /// The action being executed.
    pub in_flight: Option<ActionKind>,
    /// PostgreSQL.
    pub local: Local,
    /// ZooKeeper.
    pub zk: ZkStatus,
    /// The last step that failed, until another one is taken.
    pub last_failure: Option<FailureStatus>,
    /// What of the configuration an operator's next step depends on.
    pub settings: SettingsStatus,
    /// The highest generation seen by this sitter, or by its predecessors over the same data.
    pub newest_generation: Option<u64>,
    /// The other peers as heartbeats show them.
    pub peers: BTreeMap<PeerId, PeerStatus>,
    /// Settings of PostgreSQL whose new values take effect at the next start only.
    pub pending_restart: Vec<String>,
    /// Roles and databases whose commits do not wait for the sync: the statements that made it so.
    pub weak_commits: Vec<String>,
    /// The last time that settings of Manatee's were not in force, while it is worth telling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub breach: Option<BreachStatus>,
    /// What a takeover would need of this peer and what failed when it was tried lately.
    pub unready: Vec<Unready>,
    /// This peer is the primary, and finds that its disk came back older than it was.
    pub older: bool,
    /// What of the data lies outside of the ZFS dataset, so that no peer can be copied from here.
    pub outside_of_dataset: Option<String>,
    /// Who keeps the oldest row versions from being removed by VACUUM.
    pub horizon: Option<Horizon>,
    /// A stop was asked for.
    pub stopping: bool,
    /// How long PostgreSQL had not answered at [`Self::at`], ms.
    #[serde(skip)]
    pub postgres_down_ms: Option<u64>,
    /// How long something of [`Self::unready`] that another peer may have in order had failed at [`Self::at`], ms.
    #[serde(skip)]
    pub unready_ms: Option<u64>,
    /// PostgreSQL is a primary, or a standby that streams.
    #[serde(skip)]
    pub streaming: bool,
    /// The newest state read.
    #[serde(skip)]
    pub state: Option<Arc<ClusterState>>,
    /// Peers with an election node, in election order.
    #[serde(skip)]
    pub active: Vec<Peer>,
    /// Peers found gone from here.
    #[serde(skip)]
    pub suspects: BTreeSet<PeerId>,
    /// When this was current.
    #[serde(skip)]
    pub at: Instant,
}

/// The decision in force.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DecisionStatus {
    /// The action.
    pub action: ActionKind,
    /// Why, for programs.
    pub code: ReasonCode,
    /// What keeps a change of roles from being made that is due, for programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocker: Option<BlockerCode>,
    /// Why, for people.
    pub reason: String,
    /// For how long, ms.
    pub since_ms: u64,
}

/// The ZooKeeper side of a [`Status`].
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ZkStatus {
    /// `connected`, `disconnected` or `expired`.
    pub session: &'static str,
    /// Version of the state node; absent without one.
    pub state_version: Option<zk::Version>,
    /// What is wrong with the state node, if it is unreadable.
    pub problem: Option<String>,
    /// Peers with an election node, in election order.
    pub active: Vec<PeerId>,
}

impl ZkStatus {
    /// From the newest view.
    pub fn new(view: &zk::View) -> Self {
        let (state_version, problem) = match &view.state {
            zk::StateNode::Valid { version, .. } => (Some(*version), None),
            zk::StateNode::Corrupt { version, problem } => (Some(*version), Some(problem.clone())),
            zk::StateNode::Unread | zk::StateNode::Absent => (None, None),
        };
        let active = view.in_election_order().iter().map(|active| active.peer.id).collect();
        Self { session: session_name(view.session), state_version, problem, active }
    }
}

/// Name of a session's state for people and metrics.
pub fn session_name(session: zk::Session) -> &'static str {
    match session {
        zk::Session::Connected => "connected",
        zk::Session::Disconnected => "disconnected",
        zk::Session::Expired => "expired",
    }
}

/// A failed step.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FailureStatus {
    /// The action.
    pub action: ActionKind,
    /// How many times in a row.
    pub times: u32,
    /// How long ago, ms.
    pub ago_ms: u64,
    /// What went wrong.
    pub problem: String,
}

impl From<&LastFailure> for FailureStatus {
    fn from(failure: &LastFailure) -> Self {
        let LastFailure { action, times, ago_ms, problem } = failure;
        Self { action: *action, times: *times, ago_ms: *ago_ms, problem: problem.clone() }
    }
}

/// Settings of Manatee's were not in force.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BreachStatus {
    /// What they were, and for how long.
    #[serde(flatten)]
    pub breach: Breach,
    /// How long ago that ended, ms.
    pub ago_ms: u64,
}

/// Settings of this sitter.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SettingsStatus {
    /// It may be a lone primary.
    pub one_node_write_mode: bool,
    /// `rejoin = "manual"`.
    pub manual_rejoin: bool,
}

impl From<&Settings> for SettingsStatus {
    fn from(settings: &Settings) -> Self {
        Self { one_node_write_mode: settings.one_node_write_mode, manual_rejoin: settings.manual_rejoin }
    }
}

/// Another peer.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerStatus {
    /// Since its sitter last answered, ms; null if it never did.
    pub silent_ms: Option<u64>,
    /// Its host answers, its sitter does not exist.
    pub refused: bool,
    /// Its PostgreSQL cannot commit, for this long, ms.
    pub postgres_down_ms: Option<u64>,
    /// Something that a takeover would need fails there, for this long, ms.
    pub unready_ms: Option<u64>,
    /// It is stopping.
    pub stopping: bool,
    /// The peers it finds gone.
    pub suspects: BTreeSet<PeerId>,
}

impl From<&PeerHealth> for PeerStatus {
    fn from(health: &PeerHealth) -> Self {
        Self {
            silent_ms: health.silent_ms,
            refused: health.refused,
            postgres_down_ms: health.postgres_down_ms,
            unready_ms: health.unready_ms,
            stopping: health.stopping,
            suspects: health.suspects.clone(),
        }
    }
}

fn as_text<S: serde::Serializer>(role: &Role, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(role)
}

/// What a load balancer may ask for; the names are Patroni's.
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
        let local = Local {
            data: Data::Absent,
            server: Server::Down { crashed: false, standby: false },
            config: None,
            unfit: None,
            loosened: Vec::new(),
            outdated: false,
            last_position: None,
            end: None,
        };
        Self {
            id: me.id,
            zone_id: me.zone_id,
            shard,
            version: env!("CARGO_PKG_VERSION"),
            role: Role::Unassigned,
            generation: None,
            decision: DecisionStatus {
                action: ActionKind::Wait,
                code: ReasonCode::Starting,
                blocker: None,
                reason: Reason::Starting.to_string(),
                since_ms: 0,
            },
            in_flight: None,
            local,
            zk: ZkStatus::new(&zk::View::unknown()),
            last_failure: None,
            settings: SettingsStatus::default(),
            newest_generation: None,
            peers: BTreeMap::new(),
            pending_restart: Vec::new(),
            weak_commits: Vec::new(),
            breach: None,
            unready: Vec::new(),
            outside_of_dataset: None,
            horizon: None,
            stopping: false,
            postgres_down_ms: None,
            unready_ms: None,
            older: false,
            streaming: false,
            state: None,
            active: Vec::new(),
            suspects: BTreeSet::new(),
            at: now,
        }
    }

    /// Whether the driver still goes round.
    pub fn is_live(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) < STUCK
    }

    /// Whether `check` holds.
    pub fn passes(&self, check: Check, now: Instant) -> bool {
        let open = self.local.config.as_ref().is_some_and(|config| config.gate == Gate::Open);
        let primary = open && self.role == Role::Primary && matches!(self.local.server, Server::Primary(_));
        let standby = match &self.local.server {
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
                Check::Health => matches!(self.local.server, Server::Primary(_) | Server::Standby(_)),
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
        (status.role, status.local.server, status.local.config) = (role, server, Some(config));
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
            assert_eq!(found, passed, "{} {:?}", status.role, status.local.server);
            assert!(ALL.into_iter().all(|check| !status.passes(check, now + STUCK)), "a stuck sitter passes nothing");
        }
    }

    #[test]
    fn the_answer_has_the_documented_shape() {
        let json = serde_json::to_value(status(Role::Async(1), standby(true), Gate::Open)).unwrap();
        for key in [
            "id",
            "zoneId",
            "shard",
            "version",
            "generation",
            "local",
            "lastFailure",
            "settings",
            "newestGeneration",
            "peers",
            "pendingRestart",
            "weakCommits",
            "unready",
            "horizon",
        ] {
            assert!(json.get(key).is_some(), "{key}: {json}");
        }
        assert_eq!(
            (&json["role"], &json["decision"]["sinceMs"], &json["zk"]["session"]),
            (&"async".into(), &0.into(), &"disconnected".into())
        );
    }
}
