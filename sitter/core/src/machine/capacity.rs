//! Settings that a standby must have at least as high as its primary had when it wrote the WAL (manual, section 27.4.3).
//! They size the tables in shared memory that replay fills, and are fixed while a server runs.
//!
//! PostgreSQL does not start a standby whose settings are lower than what `pg_control` says of its primary's
//! (`CheckRequiredParameterValues` in xlogrecovery.c). One that comes to such a change while it replays goes on to receive
//! and to acknowledge, but its replay stands still for good, and a promotion ends it (`RecoveryRequiresIntParameter`);
//! before PostgreSQL 14 it ends at once. Only a restart with higher settings helps.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::suspicion;
use super::view::View;

/// One of these settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Capacity {
    /// `max_connections`.
    MaxConnections,
    /// `max_worker_processes`.
    MaxWorkerProcesses,
    /// `max_wal_senders`.
    MaxWalSenders,
    /// `max_prepared_transactions`.
    MaxPreparedTransactions,
    /// `max_locks_per_transaction`.
    MaxLocksPerTransaction,
}

impl Capacity {
    /// All of them, in the order of `CheckRequiredParameterValues`.
    pub const ALL: [Self; 5] = [
        Self::MaxConnections,
        Self::MaxWorkerProcesses,
        Self::MaxWalSenders,
        Self::MaxPreparedTransactions,
        Self::MaxLocksPerTransaction,
    ];

    /// Name of the setting.
    pub fn name(self) -> &'static str {
        match self {
            Self::MaxConnections => "max_connections",
            Self::MaxWorkerProcesses => "max_worker_processes",
            Self::MaxWalSenders => "max_wal_senders",
            Self::MaxPreparedTransactions => "max_prepared_transactions",
            Self::MaxLocksPerTransaction => "max_locks_per_transaction",
        }
    }

    /// The one of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|capacity| capacity.name() == name)
    }
}

/// The values of all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub struct Capacities {
    max_connections: u32,
    max_worker_processes: u32,
    max_wal_senders: u32,
    max_prepared_transactions: u32,
    max_locks_per_transaction: u32,
}

impl Capacities {
    /// The values that `of` gives; None if it lacks one.
    pub fn of(mut of: impl FnMut(Capacity) -> Option<u32>) -> Option<Self> {
        Some(Self {
            max_connections: of(Capacity::MaxConnections)?,
            max_worker_processes: of(Capacity::MaxWorkerProcesses)?,
            max_wal_senders: of(Capacity::MaxWalSenders)?,
            max_prepared_transactions: of(Capacity::MaxPreparedTransactions)?,
            max_locks_per_transaction: of(Capacity::MaxLocksPerTransaction)?,
        })
    }

    /// One value.
    pub fn get(&self, capacity: Capacity) -> u32 {
        match capacity {
            Capacity::MaxConnections => self.max_connections,
            Capacity::MaxWorkerProcesses => self.max_worker_processes,
            Capacity::MaxWalSenders => self.max_wal_senders,
            Capacity::MaxPreparedTransactions => self.max_prepared_transactions,
            Capacity::MaxLocksPerTransaction => self.max_locks_per_transaction,
        }
    }

    /// Settings of it that are lower than `needed`.
    pub fn shortfalls(&self, needed: &Self) -> impl Iterator<Item = Lack> {
        let of = |setting| Lack { setting, has: self.get(setting), needs: needed.get(setting) };
        Capacity::ALL.map(of).into_iter().filter(|shortfall| shortfall.has < shortfall.needs)
    }

    /// The lower of each.
    #[must_use]
    pub fn lower(&self, other: &Self) -> Self {
        let lower = |capacity| Some(self.get(capacity).min(other.get(capacity)));
        Self::of(lower).unwrap_or(*self)
    }
}

/// The lowest of what the standbys of the shard run with that are heard of: more than that a primary must not take, or
/// their replay stands still. One that is not heard of starts with what it needs, when it is back.
pub fn of_standbys(view: &View) -> Option<Capacities> {
    let (_, state) = view.zk.state.valid()?;
    let standbys = state.chain().map(|peer| peer.id).filter(|peer| *peer != view.me.id);
    let heard = standbys.filter(|peer| !suspicion::is_suspect(view, *peer));
    heard.filter_map(|peer| view.health.get(&peer)?.capacities).reduce(|lowest, next| lowest.lower(&next))
}

/// A setting that is lower than it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lack {
    /// Setting.
    pub setting: Capacity,
    /// Condition that was found.
    pub has: u32,
    /// Least value that it must have.
    pub needs: u32,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {} is lower than its primary's {}", self.setting.name(), self.has, self.needs)
    }
}

/// A setting that a server was started with other than its configuration says, to keep the order in which a change
/// goes through a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Override {
    /// Setting.
    pub setting: Capacity,
    /// Value that the server runs with.
    pub runs: u32,
    /// Value in its files.
    pub configured: u32,
}

impl Override {
    /// A standby had to be given more than it is configured with.
    pub fn is_raised(&self) -> bool {
        self.runs > self.configured
    }
}

impl fmt::Display for Override {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {} instead of the configured {}", self.setting.name(), self.runs, self.configured)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    use super::*;

    #[test]
    fn what_is_lower_is_found_and_names_are_postgresqls() {
        let all = |value| Capacities::of(|_| Some(value)).unwrap();
        assert_eq!(all(8).shortfalls(&all(8)).count(), 0);
        let needed = Capacities::of(|capacity| Some(if capacity == Capacity::MaxWalSenders { 9 } else { 1 })).unwrap();
        let found: Vec<String> = all(8).shortfalls(&needed).map(|shortfall| shortfall.to_string()).collect();
        assert_eq!(found, ["max_wal_senders = 8 is lower than its primary's 9"]);
        assert_eq!(all(8).lower(&needed).get(Capacity::MaxWalSenders), 8);
        assert_eq!(all(8).lower(&needed).get(Capacity::MaxConnections), 1);
        for capacity in Capacity::ALL {
            assert_eq!(Capacity::parse(capacity.name()), Some(capacity));
            assert_eq!(serde_json::to_value(capacity).unwrap(), capacity.name());
        }
    }
}
