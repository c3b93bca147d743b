//! Returns with less than was lost: a disk as it was some time ago, an async in place of the primary.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use manatee_shared::cluster::Role;

use super::{Needs, Row};
use crate::console::adm;
use crate::scenario::{Change, Clients, NOTHING, Play, Stage};

/// Time for which clients write to what is lost later.
const SINCE: Duration = Duration::from_secs(3);

/// The rows.
pub(super) const ROWS: &[Row] = &[
    Row {
        number: 58,
        fault: "the primary's disk comes back older",
        needs: Needs::HOSTS,
        write_gap_s: None,
        plays: &[
            Play {
                name: "all are killed, the primary's data comes back as it was seconds before",
                clients: Clients::MayFail,
                script: |stage| Box::pin(older(stage, Role::Primary, false)),
            },
            Play {
                name: "the same in a frozen shard",
                clients: Clients::MayFail,
                script: |stage| Box::pin(older(stage, Role::Primary, true)),
            },
            Play {
                name: "all are killed, the sync's data comes back as it was seconds before, the primary later",
                clients: Clients::MayFail,
                script: |stage| Box::pin(older(stage, Role::Sync, false)),
            },
        ],
    },
    Row {
        number: 63,
        fault: "primary lost while the async was away",
        needs: Needs::HOSTS,
        write_gap_s: None,
        plays: &[Play {
            name: "the async is killed and dropped, the primary is lost, the async comes back",
            clients: Clients::MayFail,
            script: |stage| Box::pin(async_was_away(stage)),
        }],
    },
];

fn copy(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().context("cp")?;
    ensure!(status.success(), "cannot copy {}", from.display());
    Ok(())
}

/// A copy of the data of a host that stands still for as long as that takes: what a snapshot of its machine holds.
/// Nothing may come of its silence.
async fn keep(stage: &mut Stage<'_>, host: usize, to: &Path) -> Result<()> {
    adm(stage.lab, &["freeze", "-r", "a copy of the data"]).await?;
    stage.lab.hosts[host].pause();
    let copied = copy(&stage.lab.hosts[host].data_dir(), to);
    stage.lab.hosts[host].resume();
    copied?;
    stage.served().await?;
    adm(stage.lab, &["unfreeze"]).await?;
    Ok(())
}

/// The peer that has everything goes on; what the older disk lacks is on the others, and stays.
async fn older(stage: &mut Stage<'_>, role: Role, frozen: bool) -> Result<()> {
    let host = stage.host(role)?;
    let kept = stage.lab.dir().join(format!("older-{}-{host}", stage.number));
    keep(stage, host, &kept).await?;
    tokio::time::sleep(SINCE).await;
    if frozen {
        adm(stage.lab, &["freeze", "-r", "maintenance"]).await?;
    }
    stage.begin("all die; it comes back with older data", host);
    // The primary first: what it writes when only the async still follows, readers of the async would see.
    let primary = stage.host(Role::Primary)?;
    stage.lab.hosts[primary].kill();
    for host in &mut stage.lab.hosts {
        host.kill();
    }
    let data = stage.lab.hosts[host].data_dir();
    std::fs::remove_dir_all(&data).with_context(|| format!("cannot remove {}", data.display()))?;
    std::fs::rename(&kept, &data).with_context(|| format!("cannot put back {}", data.display()))?;

    let count = stage.lab.hosts.len();
    // The older one first, then in either direction.
    let order: Vec<usize> =
        (0..count).map(|nth| (host + if stage.number.is_multiple_of(2) { nth } else { count - nth }) % count).collect();
    if role == Role::Primary {
        for host in order {
            stage.lab.heal(host)?;
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
        if frozen {
            stage.nothing_happens(NOTHING * 2).await?;
            adm(stage.lab, &["unfreeze"]).await?;
        }
        stage.expect(Change::Takeover).await?;
    } else {
        for host in order.into_iter().filter(|host| *host != primary) {
            stage.lab.heal(host)?;
        }
        // With what it has now it must not take over from a primary that is away.
        stage.nothing_happens(NOTHING * 2).await?;
        stage.lab.heal(primary)?;
    }
    stage.allow_more_changes(1);
    stage.served().await
}

async fn async_was_away(stage: &mut Stage<'_>) -> Result<()> {
    let (primary, away) = (stage.host(Role::Primary)?, stage.host(Role::Async(0))?);
    stage.lab.hosts[away].kill();
    stage
        .until("the async was not dropped", async |lab| {
            ensure!(lab.current().await?.async_peers.is_empty(), "it is listed");
            Ok(())
        })
        .await?;
    stage.begin("SIGKILL to everything, while the async is away", primary);
    stage.lab.hosts[primary].kill();
    stage.nothing_happens(NOTHING).await?;
    stage.lab.heal(away)?;
    stage.expect(Change::Takeover).await?;
    stage.served().await
}
