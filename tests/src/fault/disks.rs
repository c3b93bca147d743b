//! Disks that are full, broken, hanging or slow.

use std::time::Duration;

use anyhow::{Context, Result};
use manatee_shared::cluster::Role;

use super::{Needs, Row};
use crate::disk::Disk;
use crate::scenario::{Change, Clients, NOTHING, Play, Stage};

/// Hosts with file systems of their own.
const DISKS: Needs = Needs { disks: true, ..Needs::HOSTS };

/// The rows.
pub(super) const ROWS: &[Row] = &[
    Row {
        number: 32,
        fault: "data disk full on primary, on sync",
        needs: DISKS,
        write_gap_s: None,
        plays: &[
            Play {
                name: "the primary's disk is full",
                clients: Clients::MayFail,
                script: |stage| Box::pin(disk(stage, Role::Primary, |disk| disk.fill())),
            },
            Play {
                name: "the sync's disk is full",
                clients: Clients::MayFail,
                script: |stage| Box::pin(disk(stage, Role::Sync, |disk| disk.fill())),
            },
        ],
    },
    Row {
        number: 33,
        fault: "disk errors, read-only remount, hung I/O",
        needs: DISKS,
        write_gap_s: None,
        plays: &[
            Play {
                name: "the primary's disk fails and is read-only",
                clients: Clients::MayFail,
                script: |stage| Box::pin(disk(stage, Role::Primary, Disk::fail)),
            },
            Play {
                name: "the primary's disk hangs",
                clients: Clients::MayFail,
                script: |stage| Box::pin(disk(stage, Role::Primary, |disk| disk.freeze())),
            },
            Play {
                name: "the sync's disk fails and is read-only",
                clients: Clients::MayFail,
                script: |stage| Box::pin(disk(stage, Role::Sync, Disk::fail)),
            },
            Play {
                name: "the sync's disk hangs",
                clients: Clients::MayFail,
                script: |stage| Box::pin(disk(stage, Role::Sync, |disk| disk.freeze())),
            },
        ],
    },
    Row {
        number: 34,
        fault: "slow fsync on the sync",
        needs: DISKS,
        write_gap_s: None,
        plays: &[Play {
            name: "the sync's disk takes seconds for each flush",
            clients: Clients::MayFail,
            script: |stage| Box::pin(slow_flushes(stage)),
        }],
    },
];

/// A peer that cannot write is replaced, once, and does not come back before it can.
async fn disk(stage: &mut Stage<'_>, role: Role, what: fn(&mut Disk) -> Result<()>) -> Result<()> {
    let host = stage.host(role)?;
    stage.begin("its disk", host);
    what(stage.lab.hosts[host].disk()?)?;
    stage.expect(if role == Role::Primary { Change::Takeover } else { Change::NewSync }).await?;
    stage.served().await?;
    stage.nothing_happens(NOTHING).await?;
    stage.served().await
}

/// Frozen for most of the time, and let go for moments: what is asked of it ends late.
async fn slow_flushes(stage: &mut Stage<'_>) -> Result<()> {
    let host = stage.host(Role::Sync)?;
    stage.begin("its disk is slow", host);
    let generation = stage.before.generation;
    for _ in 0..12 {
        stage.lab.hosts[host].disk()?.freeze()?;
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        stage.lab.hosts[host].disk()?.thaw()?;
        tokio::time::sleep(Duration::from_millis(50)).await;
        if stage.lab.current().await?.generation > generation {
            break;
        }
    }
    stage.accept(&[Change::NewSync]).await?;
    stage.served().await.context("with a new sync")
}
