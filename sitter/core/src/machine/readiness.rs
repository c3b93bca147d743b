//! Whether a peer is ready for what a takeover would ask of it (rule 11). Plain data: what is tried is the driver's side's.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::capacity::{Capacities, Override};
use super::failure::FailureKind;
use super::local::{Local, Server};
use crate::named::if_known;

/// Need of a takeover that was tried and failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Need {
    /// PostgreSQL's configuration files can be read: one unknown name makes PostgreSQL ignore a whole reload.
    Configuration,
    /// PostgreSQL takes all of the operator's settings. What it refuses is left out, which lets a takeover through.
    Parameters,
    /// Every line of `pg_hba.conf` can be read: a wrong one makes PostgreSQL keep the old rules, and not start.
    AccessRules,
    /// The sitter can open a session of its own over the Unix socket.
    LocalSession,
    /// The replication role can log in over the network.
    ReplicationLogin,
    /// The proxies' role can log in over the network.
    ProxyLogin,
    /// Manatee's roles may do what they must.
    Grants,
    /// A standby streams, or could connect to its upstream.
    Upstream,
    /// ZooKeeper takes the state, its history entry and a new election node from this peer.
    #[serde(rename = "zookeeper")]
    ZooKeeper,
    /// A standby replays what it receives.
    Replay,
    /// A standby is configured with what its primary has of the settings that size shared memory.
    Capacities,
}

impl Need {
    /// Every one, for metrics.
    pub const ALL: [Self; 11] = [
        Self::Configuration,
        Self::Parameters,
        Self::AccessRules,
        Self::LocalSession,
        Self::ReplicationLogin,
        Self::ProxyLogin,
        Self::Grants,
        Self::Upstream,
        Self::ZooKeeper,
        Self::Replay,
        Self::Capacities,
    ];

    /// Its name in metrics and in `/status`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Parameters => "parameters",
            Self::AccessRules => "access_rules",
            Self::LocalSession => "local_session",
            Self::ReplicationLogin => "replication_login",
            Self::ProxyLogin => "proxy_login",
            Self::Grants => "grants",
            Self::Upstream => "upstream",
            Self::ZooKeeper => "zookeeper",
            Self::Replay => "replay",
            Self::Capacities => "capacities",
        }
    }

    /// Whether it is no reason to prefer another peer: it fails on all of a shard alike, because it is in the data that they
    /// share, is seen otherwise (who streams), or keeps no takeover from succeeding.
    pub fn is_no_preference(self) -> bool {
        matches!(self, Self::Parameters | Self::ProxyLogin | Self::Grants | Self::Upstream)
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Configuration => "PostgreSQL's configuration files",
            Self::Parameters => "the operator's settings",
            Self::AccessRules => "pg_hba.conf",
            Self::LocalSession => "the sitter's own session",
            Self::ReplicationLogin => "the login of manatee_replication",
            Self::ProxyLogin => "the login of manatee_proxy",
            Self::Grants => "the rights of Manatee's roles",
            Self::Upstream => "the connection to its upstream",
            Self::ZooKeeper => "its rights in ZooKeeper",
            Self::Replay => "the replay of WAL",
            Self::Capacities => "its settings, which must not be lower than its primary's",
        })
    }
}

/// Needs that a standby does not meet as seen: `overridden` is what it was started with otherwise than configured,
/// `primary` what its primary runs with.
pub fn of_standby(local: &Local, overridden: &[Override], primary: Option<&Capacities>) -> Vec<Unready> {
    let Server::Standby(standby) = &local.server else { return Vec::new() };
    let mut found = Vec::new();
    if standby.replay.paused {
        let by_hand = || "pg_wal_replay_pause() was called".to_owned();
        let detail = standby.replay.short_of.map_or_else(by_hand, |short| short.to_string());
        found.push(Unready { need: Need::Replay, detail, kind: None });
    }
    let raised = overridden.iter().filter(|one| one.is_raised()).map(ToString::to_string);
    let pairs = local.capacities.iter().zip(primary);
    let short = pairs.flat_map(|(ours, theirs)| ours.shortfalls(theirs)).map(|short| short.to_string());
    let told: Vec<String> = raised.chain(short).collect();
    if !told.is_empty() {
        found.push(Unready { need: Need::Capacities, detail: told.join("; "), kind: None });
    }
    found
}

/// A need that is not met.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unready {
    /// Need that failed.
    pub need: Need,
    /// Result of the try, for people.
    pub detail: String,
    /// Kind of that failure, for programs.
    #[serde(default, deserialize_with = "if_known", skip_serializing_if = "Option::is_none")]
    pub kind: Option<FailureKind>,
}
