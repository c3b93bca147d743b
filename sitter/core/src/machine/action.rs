//! Actions that `decide` may ask for. One at a time; each is safe to repeat and to lose halfway.

use std::fmt;
use std::sync::Arc;

use manatee_shared::cluster::ClusterState;
use manatee_shared::ids::PeerId;
use manatee_shared::lsn::{Timeline, WalPosition};
use manatee_shared::zk::{Over, Version};
use serde::{Deserialize, Serialize};
use strum_macros::IntoStaticStr;

use super::local::ServerConfig;
use crate::reason::Reason;

/// Way of bringing PostgreSQL down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// SIGINT, and SIGQUIT when that takes too long.
    Fast,
    /// SIGQUIT, and SIGKILL when that takes too long: for a primary that must not acknowledge
    /// anything more.
    Immediate,
}

/// Treatment of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rung {
    /// Nothing: it lies on the source's history and can stream as it is.
    AsIs,
    /// `pg_rewind`.
    Rewind,
    /// Back to a snapshot from before the divergence; the data is set aside.
    Rollback,
    /// Received what changed since a snapshot that the source has too; the data is set aside.
    Incremental,
    /// Set aside and copied in full.
    Copy,
}

/// Kind of an [`Action`]: its name for logs, metrics and `/status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, IntoStaticStr)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum ActionKind {
    /// Nothing to do.
    Wait,
    /// Creates a data directory.
    Initialise,
    /// Writes the state.
    WriteState,
    /// Reads how far the WAL of a stopped server goes.
    Survey,
    /// Starts PostgreSQL.
    Start,
    /// Configures the running PostgreSQL.
    Configure,
    /// Stops PostgreSQL.
    Stop,
    /// Leaves recovery.
    Promote,
    /// Copies all data.
    Bootstrap,
    /// Brings data back in line.
    Rejoin,
    /// Waits for the clients.
    Drain,
    /// Removes the election node.
    LeaveElection,
    /// Makes the election node.
    JoinElection,
    /// Ends the process.
    Exit,
}

impl ActionKind {
    /// Its name.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// Whether this overwrites or makes data.
    pub fn changes_data(self) -> bool {
        matches!(self, Self::Initialise | Self::Bootstrap | Self::Rejoin)
    }
}

impl fmt::Display for ActionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Nothing to do until the view changes or, if given, this many milliseconds have passed.
    Wait {
        /// Bound on the wait.
        for_ms: Option<u64>,
    },
    /// A step on the shard's nodes in ZooKeeper.
    Shard(ShardAction),
    /// A step on the PostgreSQL server.
    Server(ServerAction),
    /// A step on the data directory of a stopped server.
    Data(DataAction),
    /// Everything is stopped as asked: the process may exit.
    Exit,
}

/// A step on the shard's nodes in ZooKeeper.
#[derive(Clone, Debug, PartialEq)]
pub enum ShardAction {
    /// Write the state, with its history entry.
    WriteState {
        /// State that it was decided from.
        over: Over,
        /// The state, complete; `init_wal` was read beforehand.
        state: Arc<ClusterState>,
    },
    /// Remove our election node at once (a stop was asked for, or our PostgreSQL cannot commit).
    LeaveElection,
    /// Announce ourselves again.
    JoinElection,
}

/// A step on the PostgreSQL server.
#[derive(Clone, Debug, PartialEq)]
pub enum ServerAction {
    /// Start PostgreSQL with this configuration, and return once it answers queries (or fails). With
    /// [`super::local::Recovery::Primary`] on a standby's directory it fails and changes nothing;
    /// with the others the directory becomes a standby's.
    Start(ServerConfig),
    /// Give the running PostgreSQL this configuration by reload and confirm that it is applied.
    Configure(ServerConfig),
    /// Stop PostgreSQL.
    Stop(StopMode),
    /// Leave recovery, in the role the state now gives (`pg_promote`). The configuration was set before.
    Promote {
        /// Configuration afterwards.
        config: ServerConfig,
        /// The timeline to begin, reserved in the state so that no other promotion of the shard
        /// ever has the same. None: the next one that PostgreSQL knows of.
        timeline: Option<Timeline>,
    },
    /// Wait, not for long, until no client is at work on this primary: the sync is about to be
    /// promoted as planned, and the proxies admit nothing new. Changes nothing.
    Drain {
        /// Version of the state with the request.
        version: Version,
    },
}

/// A step on the data directory of a stopped server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DataAction {
    /// Create a new data directory (`initdb` and the dedicated roles), left stopped as
    /// [`super::local::Data::Fresh`]. Only for a shard that never had a state, only on an absent or
    /// incomplete directory, only on the peer first in election order.
    Initialise,
    /// Read from the disk how far the WAL goes ([`super::local::Local::end`]). Changes nothing.
    Survey,
    /// Copy everything from `source` into an absent, incomplete or fresh directory; ends with a
    /// standby's complete directory, stopped.
    Bootstrap {
        /// Peer to copy from.
        source: PeerId,
    },
    /// Bring data that cannot follow back in line. Stops PostgreSQL itself; leaves a standby's
    /// directory, stopped, ready for [`ServerAction::Start`].
    Rejoin {
        /// Primary to rejoin to.
        source: PeerId,
        /// First rung of the ladder to try; the execution goes down from there by itself. Later
        /// ones follow when a rejoin succeeded but streaming still fails.
        from: Rung,
        /// Begin of the shard's present generation: the source must hold it.
        init: Option<WalPosition>,
    },
}

impl From<ShardAction> for Action {
    fn from(action: ShardAction) -> Self {
        Self::Shard(action)
    }
}

impl From<ServerAction> for Action {
    fn from(action: ServerAction) -> Self {
        Self::Server(action)
    }
}

impl From<DataAction> for Action {
    fn from(action: DataAction) -> Self {
        Self::Data(action)
    }
}

impl Action {
    /// Kind of this step.
    pub fn kind(&self) -> ActionKind {
        match self {
            Self::Wait { .. } => ActionKind::Wait,
            Self::Shard(ShardAction::WriteState { .. }) => ActionKind::WriteState,
            Self::Shard(ShardAction::LeaveElection) => ActionKind::LeaveElection,
            Self::Shard(ShardAction::JoinElection) => ActionKind::JoinElection,
            Self::Server(ServerAction::Start(_)) => ActionKind::Start,
            Self::Server(ServerAction::Configure(_)) => ActionKind::Configure,
            Self::Server(ServerAction::Stop(_)) => ActionKind::Stop,
            Self::Server(ServerAction::Promote { .. }) => ActionKind::Promote,
            Self::Server(ServerAction::Drain { .. }) => ActionKind::Drain,
            Self::Data(DataAction::Initialise) => ActionKind::Initialise,
            Self::Data(DataAction::Survey) => ActionKind::Survey,
            Self::Data(DataAction::Bootstrap { .. }) => ActionKind::Bootstrap,
            Self::Data(DataAction::Rejoin { .. }) => ActionKind::Rejoin,
            Self::Exit => ActionKind::Exit,
        }
    }
}

/// Action, and the reason for it: logged once per change of decision, and shown to operators.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The step.
    pub action: Action,
    /// Its reason.
    pub why: Reason,
}
