//! ZooKeeper's servers that die, and sessions that end.

use std::time::Duration;

use anyhow::{Context, Result};
use manatee_shared::cluster::Role;

use super::{Needs, Row};
use crate::scenario::{CHANGE, Change, Clients, NOTHING, Play, Stage};

/// Longer than the lab's sessions, so that all of them end.
const OUTAGE: Duration = Duration::from_secs(20);
/// systemd's default pause before it restarts a service.
const SERVICE_RESTART: Duration = Duration::from_millis(100);

/// Three servers.
const ENSEMBLE: Needs = Needs { zookeepers: 3, ..Needs::HOSTS };

/// The rows.
pub(super) const ROWS: &[Row] = &[
    Row {
        number: 16,
        fault: "ZooKeeper leader killed, repeatedly",
        needs: ENSEMBLE,
        write_gap_s: None,
        plays: &[Play {
            name: "ZooKeeper's leader is killed, four times",
            clients: Clients::NoticeNothing,
            script: |stage| Box::pin(kill_leaders(stage)),
        }],
    },
    Row {
        number: 17,
        fault: "ZooKeeper quorum down for minutes",
        needs: ENSEMBLE,
        write_gap_s: None,
        plays: &[
            Play {
                name: "two of three ZooKeeper servers are down",
                clients: Clients::NoticeNothing,
                script: |stage| Box::pin(outage(stage, 2)),
            },
            Play {
                name: "all ZooKeeper servers are down",
                clients: Clients::NoticeNothing,
                script: |stage| Box::pin(outage(stage, 3)),
            },
        ],
    },
    Row {
        number: 18,
        fault: "ZooKeeper down, then the sync dies",
        needs: ENSEMBLE,
        write_gap_s: None,
        plays: &[
            Play {
                name: "ZooKeeper down, the sync dies, ZooKeeper returns",
                clients: Clients::WritesMayFail,
                script: |stage| Box::pin(outage_without_sync(stage, Returns::ZooKeeper)),
            },
            Play {
                name: "ZooKeeper down, the sync dies, the sync returns",
                clients: Clients::WritesMayFail,
                script: |stage| Box::pin(outage_without_sync(stage, Returns::Sync)),
            },
        ],
    },
    Row {
        number: 19,
        fault: "sitter restarted during a ZooKeeper outage",
        needs: ENSEMBLE,
        write_gap_s: None,
        plays: &[
            RESTART,
            Play {
                name: "the sync's sitter restarts without ZooKeeper",
                script: |stage| Box::pin(restart(stage, Role::Sync)),
                ..RESTART
            },
            Play {
                name: "the async's sitter restarts without ZooKeeper",
                script: |stage| Box::pin(restart(stage, Role::Async(0))),
                ..RESTART
            },
        ],
    },
];

/// Row 19 at the primary.
const RESTART: Play = Play {
    name: "the primary's sitter restarts without ZooKeeper",
    clients: Clients::NoticeNothing,
    script: |stage| Box::pin(restart(stage, Role::Primary)),
};

async fn kill_leaders(stage: &mut Stage<'_>) -> Result<()> {
    stage.begin_all("SIGKILL to ZooKeeper's leader");
    for _ in 0..4 {
        let leader = stage.lab.zookeeper.leader().context("ZooKeeper has no leader")?;
        stage.lab.zookeeper.kill(leader);
        stage
            .until("ZooKeeper chose no new leader", async |lab| {
                lab.zookeeper.leader().map(drop).context("no leader yet")
            })
            .await?;
        stage.nothing_happens(Duration::from_secs(1)).await?;
        stage.lab.zookeeper.restart()?;
        stage.lab.zookeeper.ready(CHANGE).await?;
    }
    stage.nothing_happens(NOTHING).await?;
    writes_went_on(stage);
    Ok(())
}

fn writes_went_on(stage: &mut Stage<'_>) {
    let gap_s = stage.oracle.figures().write_gap_s;
    if gap_s > 1.0 {
        stage.fail(format!("writes stood still for {gap_s} s"));
    }
}

async fn outage(stage: &mut Stage<'_>, servers: usize) -> Result<()> {
    stage.begin_all("ZooKeeper dies");
    (0..servers).for_each(|server| stage.lab.zookeeper.kill(server));
    tokio::time::sleep(OUTAGE).await;
    stage.lab.check()?;
    stage.heal().await?;
    stage.nothing_happens(NOTHING).await?;
    writes_went_on(stage);
    Ok(())
}

/// Server that comes back first.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Returns {
    ZooKeeper,
    Sync,
}

/// Writes wait; they go on by themselves when either is back.
async fn outage_without_sync(stage: &mut Stage<'_>, first: Returns) -> Result<()> {
    let sync = stage.host(Role::Sync)?;
    stage.begin("ZooKeeper dies, then everything on the host", sync);
    stage.lab.zookeeper.kill_all();
    tokio::time::sleep(Duration::from_secs(1)).await;
    stage.lab.hosts[sync].kill();
    // Let the commits that were under way end: what is acknowledged after that needed the sync.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = stage.oracle.figures().writes;
    tokio::time::sleep(NOTHING).await;
    if stage.oracle.figures().writes != before {
        stage.fail("a write was acknowledged without a sync");
    }
    if first == Returns::Sync {
        stage.lab.heal(sync)?;
        stage.served().await.context("after the sync returned")?;
        return Ok(());
    }
    stage.lab.zookeeper.restart()?;
    stage.lab.zookeeper.ready(CHANGE).await?;
    stage.expect(Change::NewSync).await?;
    stage.served().await.context("after ZooKeeper returned")
}

async fn restart(stage: &mut Stage<'_>, role: Role) -> Result<()> {
    let host = stage.host(role)?;
    let postmaster = stage.lab.hosts[host].postmaster_pid();
    stage.begin("ZooKeeper dies; SIGKILL to the sitter", host);
    stage.lab.zookeeper.kill_all();
    tokio::time::sleep(Duration::from_secs(1)).await;
    stage.lab.hosts[host].kill_sitter()?;
    tokio::time::sleep(SERVICE_RESTART).await;
    stage.lab.hosts[host].start_sitter()?;
    tokio::time::sleep(OUTAGE / 2).await;
    stage.lab.check()?;
    stage.same_postmaster(host, postmaster);
    stage.heal().await?;
    stage.nothing_happens(NOTHING).await?;
    stage.same_postmaster(host, postmaster);
    writes_went_on(stage);
    Ok(())
}
