//! Is the shard whole? Asked of ZooKeeper and of each PostgreSQL, not of the sitters.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use manatee_shared::cluster::{ClusterState, Role};

use crate::host::Host;

/// Longest wait for one PostgreSQL to answer.
const LIMIT: Duration = Duration::from_secs(2);

/// Ok if `state` lists all of `hosts` in the chain, none deposed, and each PostgreSQL has its
/// role and streams the primary's timeline. The error says the first thing that is not so.
pub async fn check(hosts: &[Host], state: &ClusterState) -> Result<()> {
    ensure!(state.deposed.is_empty(), "deposed: {}", names(hosts, &state.deposed));
    let listed = state.chain().count();
    ensure!(listed == hosts.len(), "{listed} of {} peers are in the chain", hosts.len());
    let mut timelines = Vec::new();
    for host in hosts {
        let role = state.role_of(host.id);
        let what = || format!("{} ({role})", host.name());
        let timeline = tokio::time::timeout(LIMIT, check_server(host, role)).await.with_context(what)?;
        timelines.push((host, timeline.with_context(what)?));
    }
    let of_primary = timelines.iter().find(|(host, _)| state.role_of(host.id) == Role::Primary).map(|(_, of)| *of);
    // Whoever followed a peer that was promoted by hand streams as well.
    match timelines.iter().find(|(_, timeline)| Some(*timeline) != of_primary) {
        Some((host, timeline)) => bail!("{} is on timeline {timeline}, the primary on {of_primary:?}", host.name()),
        None => Ok(()),
    }
}

/// Returns the timeline that it writes or receives.
async fn check_server(host: &Host, role: Role) -> Result<i32> {
    let client = host.superuser("postgres").await?;
    let row = client
        .query_one(
            "select pg_is_in_recovery(), \
             (select received_tli from pg_stat_wal_receiver where status = 'streaming'), \
             exists (select from pg_stat_replication where sync_state in ('sync', 'quorum') and state = 'streaming'), \
             case when not pg_is_in_recovery() then ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int end",
            &[],
        )
        .await?;
    let (in_recovery, received): (bool, Option<i32>) = (row.get(0), row.get(1));
    let (sync_attached, written): (bool, Option<i32>) = (row.get(2), row.get(3));
    match role {
        Role::Primary if in_recovery => bail!("still in recovery"),
        Role::Primary if !sync_attached => bail!("its sync does not stream"),
        Role::Primary => written.context("has no timeline"),
        _ if !in_recovery => bail!("not in recovery"),
        _ => received.context("does not stream"),
    }
}

/// Names of peers as the lab calls them.
pub fn names(hosts: &[Host], peers: &[manatee_shared::cluster::Peer]) -> String {
    let name = |peer: &manatee_shared::cluster::Peer| {
        hosts.iter().find(|host| host.id == peer.id).map_or_else(|| peer.id.to_string(), Host::name)
    };
    peers.iter().map(name).collect::<Vec<_>>().join(", ")
}
