//! The contract of the sitter's reports, `GET /status`, `/heartbeat` and `/restore`: one declaration for those who write
//! them and those who read them.
//!
//! Peers and `manatee-adm` of different versions read each other. So a field keeps its name and its meaning, and is never
//! taken away; one that was added after 0.1.0 may be missing; a value that a later version added to an enumeration is read
//! as [`Named::Other`], or as None where only programs look at it.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use manatee_shared::cluster::Role;
use manatee_shared::ids::{PeerId, ShardName};
use manatee_shared::zk;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::machine::action::{ActionKind, Decision};
use crate::machine::capacity::{Capacities, Override};
use crate::machine::failure::FailureKind;
use crate::machine::local::{Breach, Data, EndOfWal, Horizon, Local};
use crate::machine::readiness::Unready;
use crate::machine::view::{LastFailure, PeerHealth, Settings};
pub use crate::named::Named;
use crate::named::if_known;
use crate::reason::{BlockerCode, ReasonCode};

/// `GET /status`: what a sitter sees and does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SitterStatus {
    /// This peer.
    pub id: PeerId,
    /// Its name for people.
    pub zone_id: String,
    /// Its shard.
    pub shard: ShardName,
    /// Version of the sitter.
    pub version: String,
    /// Place in the newest state read.
    pub role: Named<RoleName>,
    /// Generation of the newest state read.
    #[serde(default)]
    pub generation: Option<u64>,
    /// Decision under way, with its reason.
    pub decision: DecisionStatus,
    /// The action being executed.
    #[serde(default)]
    pub in_flight: Option<Named<ActionKind>>,
    /// PostgreSQL.
    pub local: Local,
    /// ZooKeeper.
    pub zk: ZkStatus,
    /// The last step that failed, until another one is taken.
    #[serde(default)]
    pub last_failure: Option<FailureStatus>,
    /// Settings that an operator's next step depends on.
    #[serde(default)]
    pub settings: SettingsStatus,
    /// The highest generation seen by this sitter, or by its predecessors over the same data.
    #[serde(default)]
    pub newest_generation: Option<u64>,
    /// The other peers as heartbeats show them.
    #[serde(default)]
    pub peers: BTreeMap<PeerId, PeerStatus>,
    /// Settings of PostgreSQL whose new values take effect at the next start only.
    #[serde(default)]
    pub pending_restart: Vec<String>,
    /// Settings that PostgreSQL was started with otherwise than configured, to keep the order of a change.
    #[serde(default)]
    pub overridden: Vec<Override>,
    /// Roles and databases whose commits do not wait for the sync: the statements that made it so.
    #[serde(default)]
    pub weak_commits: Vec<String>,
    /// The last time that settings of Manatee's were not in force, while it is worth telling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breach: Option<BreachStatus>,
    /// Needs of a takeover that failed when they were tried lately.
    #[serde(default)]
    pub unready: Vec<Unready>,
    /// This peer is the primary, and finds that its disk came back older than it was.
    #[serde(default)]
    pub older: bool,
    /// Data outside of the ZFS dataset, so that no peer can be copied from here.
    #[serde(default)]
    pub outside_of_dataset: Option<String>,
    /// The holder of the oldest row versions that VACUUM may not remove.
    #[serde(default)]
    pub horizon: Option<Horizon>,
    /// A stop was asked for.
    #[serde(default)]
    pub stopping: bool,
}

impl SitterStatus {
    /// The action being executed, if it is one that is known here.
    pub fn in_flight(&self) -> Option<ActionKind> {
        self.in_flight.as_ref()?.known().copied()
    }

    /// Whether data is being made or overwritten.
    pub fn changes_data(&self) -> bool {
        self.in_flight().is_some_and(ActionKind::changes_data)
    }
}

/// A [`Role`] by its name alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RoleName {
    /// Acknowledges writes.
    Primary,
    /// Must have each write before it is acknowledged.
    Sync,
    /// Follows.
    Async,
    /// Former primary, to be rejoined.
    Deposed,
    /// Not listed.
    Unassigned,
}

impl From<Role> for RoleName {
    fn from(role: Role) -> Self {
        match role {
            Role::Primary => Self::Primary,
            Role::Sync => Self::Sync,
            Role::Async(_) => Self::Async,
            Role::Deposed => Self::Deposed,
            Role::Unassigned => Self::Unassigned,
        }
    }
}

/// The decision in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DecisionStatus {
    /// The action.
    pub action: Named<ActionKind>,
    /// Reason, for programs. None: a sitter of 0.1.0, or a reason that is not known here.
    #[serde(default, deserialize_with = "if_known")]
    pub code: Option<ReasonCode>,
    /// Blocker of a change of roles that is due, for programs.
    #[serde(default, deserialize_with = "if_known", skip_serializing_if = "Option::is_none")]
    pub blocker: Option<BlockerCode>,
    /// Reason, for people.
    pub reason: String,
    /// Time for which it has been so, ms.
    #[serde(default)]
    pub since_ms: u64,
}

impl DecisionStatus {
    /// Of a decision that has been in force for so long.
    pub fn new(decision: &Decision, since_ms: u64) -> Self {
        Self {
            action: decision.action.kind().into(),
            code: Some(decision.why.code()),
            blocker: decision.why.blocker(),
            reason: decision.why.to_string(),
            since_ms,
        }
    }
}

/// The sitter's side of ZooKeeper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ZkStatus {
    /// Its session.
    pub session: Named<zk::Session>,
    /// Version of the state node; None without one.
    #[serde(default)]
    pub state_version: Option<zk::Version>,
    /// Problem of the state node, if it is unreadable.
    #[serde(default)]
    pub problem: Option<String>,
    /// Peers with an election node, in election order.
    #[serde(default)]
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
        Self { session: view.session.into(), state_version, problem, active }
    }
}

/// A failed step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FailureStatus {
    /// The action.
    pub action: Named<ActionKind>,
    /// Number of times in a row.
    pub times: u32,
    /// Time since then, ms.
    #[serde(default)]
    pub ago_ms: u64,
    /// Problem, for people.
    pub problem: String,
    /// Kind of the failure, for programs. None: none of these, or a sitter of 0.1.0.
    #[serde(default, deserialize_with = "if_known", skip_serializing_if = "Option::is_none")]
    pub kind: Option<FailureKind>,
}

impl From<&LastFailure> for FailureStatus {
    fn from(failure: &LastFailure) -> Self {
        let LastFailure { action, times, ago_ms, problem, kind } = failure;
        Self { action: (*action).into(), times: *times, ago_ms: *ago_ms, problem: problem.clone(), kind: *kind }
    }
}

/// Settings of Manatee's that were not in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BreachStatus {
    /// Values and duration of the breach.
    #[serde(flatten)]
    pub breach: Breach,
    /// Time since that ended, ms.
    pub ago_ms: u64,
}

/// Settings of the sitter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
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

/// Another peer as heartbeats show it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerStatus {
    /// Since its sitter last answered, ms; null if it never did.
    pub silent_ms: Option<u64>,
    /// Its host answers, its sitter does not exist.
    pub refused: bool,
    /// Its PostgreSQL cannot commit, for this long, ms.
    pub postgres_down_ms: Option<u64>,
    /// A need of a takeover fails there, for this long, ms.
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

/// `GET /heartbeat`: a peer's own word about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Heartbeat {
    /// The peer that answers: an address may have been given to another one.
    pub id: PeerId,
    /// It was asked to stop.
    #[serde(default)]
    pub stopping: bool,
    /// Its PostgreSQL cannot commit, or is down, for this many milliseconds.
    #[serde(default)]
    pub postgres_down_ms: Option<u64>,
    /// A need of a takeover has failed when it was tried, for this many milliseconds. Only what another
    /// peer may have in order.
    #[serde(default)]
    pub unready_ms: Option<u64>,
    /// The peers it finds gone itself.
    #[serde(default)]
    pub suspects: BTreeSet<PeerId>,
    /// Its data directory: a shard is set up anew only by peers without data (rule 8).
    #[serde(default)]
    pub data: Option<Data>,
    /// Its PostgreSQL is a primary, or a standby that streams.
    #[serde(default)]
    pub streaming: Option<bool>,
    /// The generation of the state it last read.
    #[serde(default)]
    pub generation: Option<u64>,
    /// It is the primary, and its disk came back older than it was.
    #[serde(default)]
    pub older: bool,
    /// End of its WAL on disk: a peer whose disk came back older learns from it that others have more.
    #[serde(default)]
    pub wal: Option<EndOfWal>,
    /// The highest generation that it, or its predecessors over the same data, ever saw.
    #[serde(default)]
    pub newest_generation: Option<u64>,
    /// Settings of its PostgreSQL that a standby needs as high as its primary's.
    #[serde(default)]
    pub capacities: Option<Capacities>,
}

/// `GET /restore`: the copy of data to this peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreAnswer {
    /// The copy under way, or the last one; None: there was none since the sitter started.
    pub restore: Option<Restore>,
}

/// A copy of data to this peer. The first seven fields are Manatee 2's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Restore {
    /// Identity of this attempt: process start, and its number.
    pub uuid: String,
    /// Address of the source.
    pub host: String,
    /// Port of the source that the data comes from.
    pub port: u16,
    /// Source of the copy: a ZFS dataset, or its PostgreSQL as a whole.
    pub dataset: String,
    /// State of the copy.
    pub done: CopyState,
    /// Bytes expected; an estimate, null where nobody knows.
    pub size: Option<u64>,
    /// Bytes received.
    pub completed: u64,
    /// The source.
    pub source: PeerId,
    /// Method of copying.
    pub method: Named<CopyMethod>,
    /// Bytes per second, lately while it runs, over all once it has ended.
    #[serde(default)]
    pub rate: u64,
    /// Begin of this attempt.
    pub started: Timestamp,
    /// End of this attempt.
    #[serde(default)]
    pub ended: Option<Timestamp>,
    /// Reason for its failure.
    #[serde(default)]
    pub error: Option<String>,
}

/// State of a copy. As JSON: `false`, `true` and `"failed"`, as in Manatee 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyState {
    /// Under way.
    Running,
    /// Complete.
    Done,
    /// Ended early; another attempt may follow.
    Failed,
}

impl Serialize for CopyState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Running => serializer.serialize_bool(false),
            Self::Done => serializer.serialize_bool(true),
            Self::Failed => serializer.serialize_str("failed"),
        }
    }
}

impl<'de> Deserialize<'de> for CopyState {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Flag(bool),
            Word(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Flag(false) => Ok(Self::Running),
            Written::Flag(true) => Ok(Self::Done),
            Written::Word(word) if word == "failed" => Ok(Self::Failed),
            Written::Word(word) => Err(serde::de::Error::custom(format!("`{word}` is no state of a copy"))),
        }
    }
}

/// Method of copying.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CopyMethod {
    /// `pg_basebackup`.
    BaseBackup,
    /// A full ZFS stream.
    ZfsFull,
    /// A ZFS stream of what changed since a snapshot that both peers have.
    ZfsIncremental,
    /// The rest of a ZFS stream that was interrupted.
    ZfsResumed,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    use serde_json::{Value, json};

    use super::*;
    use crate::machine::action::Action;
    use crate::machine::capacity::Capacity;
    use crate::machine::local::{Server, SystemIdentifier};
    use crate::reason::{Blocker, Reason, TakeoverCause};

    fn peer(number: u8) -> PeerId {
        format!("10.0.0.{number}:5432:12345").parse().unwrap()
    }

    fn local() -> Local {
        Local::new(Data::Present(SystemIdentifier("7".to_owned())), Server::Down { crashed: true, standby: false })
    }

    fn status() -> SitterStatus {
        let why = Reason::TakeoverBlocked { cause: TakeoverCause::NodeGone, blocker: Blocker::Frozen };
        let failure = LastFailure {
            action: ActionKind::Start,
            times: 2,
            ago_ms: 3,
            problem: "no".to_owned(),
            kind: Some(FailureKind::DiskFull),
        };
        let breach = Breach { settings: vec!["fsync is 'off'".to_owned()], lasted_ms: 80 };
        SitterStatus {
            id: peer(1),
            zone_id: "a".to_owned(),
            shard: "demo".parse().unwrap(),
            version: "0.1.0".to_owned(),
            role: RoleName::Sync.into(),
            generation: Some(3),
            decision: DecisionStatus::new(&Decision { action: Action::Wait { for_ms: None }, why }, 7),
            in_flight: Some(ActionKind::LeaveElection.into()),
            local: local(),
            zk: ZkStatus::new(&zk::View::unknown()),
            last_failure: Some(FailureStatus::from(&failure)),
            settings: SettingsStatus { one_node_write_mode: false, manual_rejoin: true },
            newest_generation: Some(4),
            peers: BTreeMap::from([(peer(2), PeerStatus { silent_ms: Some(5), ..PeerStatus::default() })]),
            pending_restart: vec!["shared_buffers".to_owned()],
            overridden: vec![Override { setting: Capacity::MaxConnections, runs: 200, configured: 100 }],
            weak_commits: vec![],
            breach: Some(BreachStatus { breach, ago_ms: 9 }),
            unready: vec![],
            older: false,
            outside_of_dataset: None,
            horizon: None,
            stopping: true,
        }
    }

    #[test]
    fn what_is_written_is_read_as_it_was() {
        let status = status();
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(serde_json::from_value::<SitterStatus>(json).unwrap(), status);
        for done in [CopyState::Running, CopyState::Done, CopyState::Failed] {
            let json = serde_json::to_value(done).unwrap();
            assert_eq!(serde_json::from_value::<CopyState>(json).unwrap(), done);
        }
    }

    /// Scripts and dashboards know these names.
    #[test]
    fn the_fields_keep_their_names() {
        let json = serde_json::to_value(status()).unwrap();
        for (path, value) in [
            ("/id", json!("10.0.0.1:5432:12345")),
            ("/zoneId", json!("a")),
            ("/role", json!("sync")),
            ("/decision/action", json!("wait")),
            ("/decision/code", json!("takeover_blocked")),
            ("/decision/blocker", json!("frozen")),
            ("/decision/reason", json!("the primary's election node is gone; no takeover: the shard is frozen")),
            ("/decision/sinceMs", json!(7)),
            ("/inFlight", json!("leave-election")),
            ("/local/server/down/crashed", json!(true)),
            ("/zk/session", json!("disconnected")),
            ("/zk/stateVersion", Value::Null),
            ("/lastFailure/action", json!("start")),
            ("/lastFailure/kind", json!("disk_full")),
            ("/lastFailure/agoMs", json!(3)),
            ("/settings/manualRejoin", json!(true)),
            ("/newestGeneration", json!(4)),
            ("/peers/10.0.0.2:5432:12345/silentMs", json!(5)),
            ("/pendingRestart", json!(["shared_buffers"])),
            ("/weakCommits", json!([])),
            ("/breach/lastedMs", json!(80)),
            ("/breach/agoMs", json!(9)),
            ("/outsideOfDataset", Value::Null),
            ("/stopping", json!(true)),
        ] {
            assert_eq!(json.pointer(path), Some(&value), "{path}: {json}");
        }
    }

    /// As a sitter of 0.1.0 wrote it, with what later ones may add.
    #[test]
    fn other_versions_are_read() {
        let old = json!({
            "id": "10.0.0.1:5432:12345", "zoneId": "a", "shard": "demo", "version": "0.1.0", "role": "async",
            "generation": 3, "decision": {"action": "wait", "reason": "async, streaming", "sinceMs": 0},
            "inFlight": null, "local": local(),
            "zk": {"session": "connected", "stateVersion": 4, "problem": null, "active": ["10.0.0.1:5432:12345"]},
            "lastFailure": {"action": "start", "times": 1, "agoMs": 0, "problem": "no"},
        });
        let read: SitterStatus = serde_json::from_value(old.clone()).unwrap();
        assert_eq!((read.decision.code, read.decision.blocker), (None, None));
        assert_eq!((&read.role, read.zk.session == zk::Session::Connected), (&RoleName::Async.into(), true));
        let mut new = old;
        new["decision"] = json!({"action": "dance", "code": "felt_like_it", "blocker": "rain", "reason": "it is May"});
        new["role"] = json!("witness");
        new["more"] = json!({"of": "it"});
        let read: SitterStatus = serde_json::from_value(new).unwrap();
        assert_eq!((read.decision.action.to_string(), read.decision.code), ("dance".to_owned(), None));
        assert_eq!((read.decision.blocker, read.role.known()), (None, None));
    }

    /// Manatee 2's fields are first, and a sitter's own follow.
    #[test]
    fn a_copy_is_read_by_its_fields() {
        let json = json!({"restore": {"uuid": "a-1", "host": "10.0.0.2", "port": 5432, "dataset": "x", "done": "failed",
            "size": null, "completed": 5, "source": "10.0.0.2:5432:12345", "method": "carrier-pigeon",
            "started": "2026-01-01T00:00:00Z"}});
        let restore = serde_json::from_value::<RestoreAnswer>(json).unwrap().restore.unwrap();
        assert_eq!((restore.done, restore.method.known(), restore.rate), (CopyState::Failed, None, 0));
        assert_eq!(serde_json::from_value::<RestoreAnswer>(json!({"restore": null})).unwrap().restore, None);
    }

    #[test]
    fn a_heartbeat_of_an_older_sitter_is_read() {
        let heartbeat: Heartbeat = serde_json::from_value(json!({"id": "10.0.0.1:5432:12345"})).unwrap();
        assert_eq!((heartbeat.id, heartbeat.streaming, heartbeat.stopping), (peer(1), None, false));
    }
}
