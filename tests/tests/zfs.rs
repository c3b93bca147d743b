//! A whole shard on real ZFS: peers copied by streams, snapshots, and a primary that went another way and comes
//! back by a snapshot. Small data: zfs-fuse is slow.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use manatee_shared::cluster::Role;
use manatee_tests::fault::{LOST_WAL, restore};
use manatee_tests::lab::{Lab, Options, Storage};
use manatee_tests::oracle::Oracle;
use manatee_tests::scenario::round;
use manatee_tests::zpool;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_on_zfs_copies_snapshots_and_goes_back() {
    if let Some(reason) = zpool::unavailable() {
        eprintln!("left out: {reason}");
        return;
    }
    let options = Options { storage: Storage::Zfs, ..Options::default() };
    let (mut lab, writable) = match Lab::up(&options).await {
        Ok(up) => up,
        Err(error) => panic!("{error:#}"),
    };
    eprintln!("writable after {writable:?}");
    if let Err(error) = steps(&mut lab).await {
        lab.set_keep(true);
        panic!("{:#}", lab.explain(error));
    }
}

async fn steps(lab: &mut Lab) -> Result<()> {
    let state = lab.whole(Duration::from_secs(120)).await?;
    let sync = lab.index_in(&state, Role::Sync)?;
    let copied = restore(lab, sync).await?;
    ensure!(copied["method"] == "zfs-full" && copied["done"] == true, "the sync was not copied by a stream: {copied}");
    lab.until(Instant::now() + Duration::from_secs(60), "no snapshots", async |lab| {
        for host in &lab.hosts {
            let pool = lab.pool.as_ref().context("a pool")?;
            let dataset = format!("{}/{}/data", pool.name(), host.name());
            let listed = pool.zfs(&["list", "-H", "-r", "-t", "snapshot", "-o", "name", &dataset])?;
            let by_time = listed.lines().filter(|name| name.rsplit('@').next().is_some_and(|name| name.len() == 13));
            ensure!(by_time.count() >= 2, "{}: {listed}", host.name());
        }
        Ok(())
    })
    .await?;
    if !lab.network.has_namespaces() {
        return Ok(());
    }
    let oracle = Oracle::start(lab).await?;
    let shown = round(lab, &oracle, &LOST_WAL, 0).await.context(LOST_WAL.name)?;
    eprintln!("{}: {}", LOST_WAL.name, serde_json::to_string(&shown)?);
    oracle.stop().await;
    ensure!(shown.failures.is_empty(), "{}", shown.failures.join("; "));
    Ok(())
}
