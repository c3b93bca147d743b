//! The local PostgreSQL as last observed, and the configuration the sitter may give it. Plain data.

use std::collections::BTreeSet;
use std::fmt;

use manatee_shared::ids::PeerId;
use manatee_shared::lsn::{Lsn, Timeline, TimelineHistory, WalPosition};
use serde::{Deserialize, Serialize};

use super::capacity::{Capacities, Lack};
use super::failure::FailureKind;
use crate::named::if_known;

/// PostgreSQL's system identifier: the same in every copy of one cluster (rule 10).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SystemIdentifier(pub String);

/// Whether PostgreSQL lets clients in (rule 7). Replication, the sitter and the proxy's own
/// dedicated role always get in; a closed gate is a restrictive HBA file plus the end of the
/// client sessions already open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Gate {
    /// Clients are served.
    Open,
    /// Clients are refused.
    Closed,
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Closed => "closed",
        })
    }
}

/// Direction of WAL: PostgreSQL produces it or follows somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "recovery", content = "upstream")]
pub enum Recovery {
    /// Not in recovery; produces WAL.
    Primary,
    /// Standby, streaming from this peer.
    Follow(PeerId),
    /// Standby with its WAL receiver stopped (`primary_conninfo = ''`).
    Detached,
}

/// Standbys that must have a commit on disk before it is acknowledged (`synchronous_standby_names`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Synchronous {
    /// A name that no peer has: no commit is ever acknowledged. What every standby is set to, so
    /// that one promoted by hand acknowledges nothing, and what an unconfirmed primary is set to.
    Impossible,
    /// This peer: `FIRST 1 ("id")`.
    Peer(PeerId),
    /// Both, while the sync is being replaced (rule 3): `FIRST 2 ("new","old")`; `new` first, so
    /// that the change of `old`'s priority from 1 to 2 shows that its walsender has applied it.
    Both {
        /// The coming sync.
        new: PeerId,
        /// The sync that the state still names.
        old: PeerId,
    },
    /// Nobody. Only in one-node-write mode.
    Nobody,
}

/// Everything about PostgreSQL's configuration that the shard decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerConfig {
    /// Producer or follower.
    pub recovery: Recovery,
    /// Standbys that acknowledge: [`Synchronous::Impossible`] for whatever is in recovery, a promotion names the sync.
    pub synchronous: Synchronous,
    /// Whether clients get in.
    pub gate: Gate,
    /// Peers that get a physical replication slot here (all other peers of the shard); slots for
    /// peers not named are dropped.
    pub slots: BTreeSet<PeerId>,
}

/// The data directory. Peers tell each other theirs in the heartbeat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Data {
    /// Missing or empty.
    Absent,
    /// Made by our own [`super::action::DataAction::Initialise`] and never started since: it holds
    /// nothing of anybody's and may be used for the first setup or thrown away like
    /// [`Data::Incomplete`]. Known by a marker that `initialise` leaves beside the finished
    /// directory and that every start removes, durably, *before* PostgreSQL runs: otherwise a
    /// shard whose state was lost could be set up anew over real data (rule 8).
    Fresh(SystemIdentifier),
    /// A complete PostgreSQL data directory that has been in use.
    Present(SystemIdentifier),
    /// A copy (or `initdb`) that was not finished: never started, only replaced.
    Incomplete,
    /// Something that must not be touched: not PostgreSQL's, another version, unreadable…
    Unusable(String),
}

/// End of WAL on somebody's disk, and the timelines that lead there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndOfWal {
    /// Its end. A half record at the end may count or not.
    pub position: WalPosition,
    /// Ancestry of that timeline. Of a running primary it is left out.
    #[serde(default)]
    pub history: TimelineHistory,
}

impl EndOfWal {
    /// Whether `wanted` lies on the way to this end.
    pub fn contains(&self, wanted: WalPosition) -> bool {
        self.history.contains(self.position, wanted)
    }

    /// Up to where it is on `timeline`; None: not on it at all, as far as is known.
    pub fn on(&self, timeline: Timeline) -> Option<Lsn> {
        if self.position.timeline == timeline {
            return Some(self.position.lsn);
        }
        self.history.0.iter().find(|left| left.timeline == timeline).map(|left| left.lsn)
    }

    /// Whether this has WAL of the other's newest timeline that the other does not have. It came from whoever
    /// wrote that timeline, so that one has lost it, or it is another history.
    pub fn is_beyond(&self, other: &Self) -> bool {
        self.on(other.position.timeline).is_some_and(|lsn| lsn > other.position.lsn)
    }
}

/// A peer replicating from here, from `pg_stat_replication`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Downstream {
    /// Peer (its `application_name`).
    pub peer: PeerId,
    /// `state = 'streaming'`: caught up once since it attached.
    pub streaming: bool,
    /// Sent to it.
    pub sent: Lsn,
    /// Written by it.
    pub write: Lsn,
    /// On its disk.
    pub flush: Lsn,
    /// Visible to its readers.
    pub replay: Lsn,
    /// `sync_priority`: 0 not synchronous, else the place in `synchronous_standby_names` that its
    /// walsender has applied.
    pub sync_priority: u32,
}

/// A running, answering PostgreSQL out of recovery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrimaryStatus {
    /// End of WAL on disk here, and its timeline.
    pub flushed: WalPosition,
    /// Those who follow.
    pub downstreams: Vec<Downstream>,
}

/// A running, answering PostgreSQL in recovery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandbyStatus {
    /// End of WAL on disk here (received *and flushed*, replayed or not). None while it is not
    /// known: PostgreSQL has not yet come to the end of what it found in `pg_wal` at start
    /// (`pg_last_wal_receive_lsn()` is null until it first turns to streaming).
    pub received: Option<WalPosition>,
    /// Visible to readers.
    pub replayed: Lsn,
    /// Ancestry of the timeline of `received`.
    pub history: TimelineHistory,
    /// The WAL receiver is connected and streaming.
    pub streaming: bool,
    /// Time (ms, on a monotonic clock) for which nothing came from upstream: neither WAL nor a keepalive
    /// (`pg_stat_wal_receiver.last_msg_receipt_time` did not change). None without a receiver.
    /// Tells a stopped sitter from a dead host (a live stream vetoes suspicion by silence), so
    /// upstream must say something more often than the suspicion timeout.
    pub upstream_silent_ms: Option<u64>,
    /// No WAL receiver process exists.
    pub receiver_stopped: bool,
    /// Time (ms) for which it has been unable to stream although configured to; 0 while it streams.
    pub not_streaming_ms: u64,
    /// The WAL receiver's last failure says that this data cannot follow its upstream
    /// (diverged timeline, or WAL already removed): rejoin. Text from PostgreSQL's log.
    pub cannot_follow: Option<String>,
    /// Last end of its WAL receiver, while it does not stream. Text from PostgreSQL's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receiver_error: Option<String>,
    /// Kind of that failure.
    #[serde(default, deserialize_with = "if_known", skip_serializing_if = "Option::is_none")]
    pub receiver_failure: Option<FailureKind>,
    /// Obstacles to replaying what it received.
    #[serde(default)]
    pub replay: Replay,
    /// Those who follow.
    pub downstreams: Vec<Downstream>,
}

/// Obstacles to replaying what a standby received: a takeover replays all of it before it serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Replay {
    /// It is paused: by somebody (`pg_wal_replay_pause()`), which a promotion ends, or by PostgreSQL.
    pub paused: bool,
    /// PostgreSQL paused it because this setting is lower than the WAL here needs. It goes on after a restart with a
    /// higher one only, and a promotion would end the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub short_of: Option<Lack>,
    /// Obstacle that it waits for.
    pub waits_for: Option<Obstacle>,
    /// Duration so far, ms.
    pub waits_ms: u64,
}

/// Obstacle to replay that readers of a standby have to give up (manual, section 27.4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Obstacle {
    /// A lock on a table that the primary has locked exclusively, by DDL or at the end of a VACUUM.
    Lock,
    /// A snapshot that sees rows which the primary has removed.
    Snapshot,
    /// A page that is being looked at.
    Page,
    /// A file in a tablespace that is dropped.
    Tablespace,
}

/// The server process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Server {
    /// No postmaster.
    Down {
        /// It ended without having been told to.
        crashed: bool,
        /// The directory is a standby's (`standby.signal`): it can only be started in recovery.
        /// Starting it with [`Recovery::Primary`] would continue the old timeline and hide a
        /// divergence (H5), so it is started detached and promoted. False without data.
        standby: bool,
    },
    /// A postmaster that does not answer queries yet.
    Starting {
        /// Duration so far, ms.
        for_ms: u64,
    },
    /// Out of recovery.
    Primary(PrimaryStatus),
    /// In recovery.
    Standby(StandbyStatus),
    /// It answered before and no longer does, though the process lives.
    Hung {
        /// Duration so far, ms.
        for_ms: u64,
    },
}

/// Settings that Manatee owns were not in force for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Breach {
    /// Their values meanwhile, as in [`Local::loosened`].
    pub settings: Vec<String>,
    /// Duration so far, ms.
    pub lasted_ms: u64,
}

/// All that is known of the local PostgreSQL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Local {
    /// The data directory.
    pub data: Data,
    /// The process. Observed *after* `config` was confirmed: an observation begun before a change
    /// of configuration is thrown away, or has `config` None. Rule 3 depends on it: the flush
    /// position that becomes init_wal must be younger than the confirmation.
    pub server: Server,
    /// The configuration last applied and confirmed (also read back on adoption). None: unknown,
    /// not confirmed, or being changed just now. Kept for a server that is down.
    pub config: Option<ServerConfig>,
    /// PostgreSQL ended by itself as a standby because its WAL lies on a timeline that it cannot come
    /// to: each further start would end so, only a rejoin helps. What it said, from its log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfit: Option<String>,
    /// Values with which the running server was started, of the settings that standbys need as high as their primary's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacities: Option<Capacities>,
    /// Settings of PostgreSQL that Manatee owns and that are not in force, though they were confirmed: somebody changed
    /// them by ALTER SYSTEM or in a file. Each names a setting and what it is. While who acknowledges or who is
    /// followed is among them, `config` is None.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loosened: Vec<String>,
    /// The sitter's own settings have changed since `config` was given: giving it again is due.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub outdated: bool,
    /// Last WAL position known of a data directory whose server is down (`pg_controldata` or the
    /// last observation); for display.
    pub last_position: Option<WalPosition>,
    /// End of the WAL that is on the disk of a server that is down, read since it ended
    /// ([`super::action::DataAction::Survey`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<EndOfWal>,
}

impl Local {
    /// Data and process, and nothing known besides.
    pub fn new(data: Data, server: Server) -> Self {
        Self {
            data,
            server,
            config: None,
            unfit: None,
            capacities: None,
            loosened: Vec::new(),
            outdated: false,
            last_position: None,
            end: None,
        }
    }

    /// End of our WAL on disk, as far as is known now.
    pub fn end_of_wal(&self) -> Option<EndOfWal> {
        match &self.server {
            Server::Primary(primary) => {
                Some(EndOfWal { position: primary.flushed, history: TimelineHistory::default() })
            }
            Server::Standby(standby) => standby.end(),
            Server::Down { .. } => self.end.clone(),
            Server::Starting { .. } | Server::Hung { .. } => None,
        }
    }
}

impl StandbyStatus {
    /// End of its WAL on disk, once that is known.
    pub fn end(&self) -> Option<EndOfWal> {
        Some(EndOfWal { position: self.received?, history: self.history.clone() })
    }
}

impl Local {
    /// Whether this setting is among those that are not in force.
    pub fn loosens(&self, setting: &str) -> bool {
        self.loosened.iter().any(|loosened| loosened.split(' ').next() == Some(setting))
    }
}

/// Holder of the oldest row versions that VACUUM cannot remove, of all holders.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Horizon {
    /// Kind of holder.
    pub holder: HorizonHolder,
    /// Its name, for people.
    pub name: String,
    /// Number of transactions that began since.
    pub age_transactions: u64,
    /// Time for which it has been the same, ms.
    pub held_ms: u64,
}

/// Kinds of holders of old row versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HorizonHolder {
    /// A replication slot, for the readers of a standby or for logical decoding.
    Slot,
    /// A prepared transaction, which survives its session and restarts.
    PreparedTransaction,
    /// A transaction of a session here.
    Transaction,
    /// A standby that streams without a slot, for its readers.
    StandbyFeedback,
}

impl HorizonHolder {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Slot, Self::PreparedTransaction, Self::Transaction, Self::StandbyFeedback];

    /// Name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Slot => "slot",
            Self::PreparedTransaction => "prepared",
            Self::Transaction => "transaction",
            Self::StandbyFeedback => "standby",
        }
    }

    /// The one of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|holder| holder.name() == name)
    }
}

impl Horizon {
    /// A horizon that many transactions began since is not yet old: reports and dumps take their time.
    const OLD_MS: u64 = 10 * 60 * 1000;
    /// One that few began since costs nothing, however long it is held.
    const OLD_TRANSACTIONS: u64 = 100_000;

    /// Whether somebody should look: tables grow because of it.
    pub fn is_old(&self) -> bool {
        self.held_ms >= Self::OLD_MS && self.age_transactions >= Self::OLD_TRANSACTIONS
    }
}
