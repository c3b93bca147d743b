//! Requests of operators, and what they have to put right: a frozen shard, planned promotions,
//! a lost cluster state.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use manatee_shared::cluster::Role;

use super::{Needs, Row};
use crate::console;
use crate::scenario::{CHANGE, Change, Clients, NOTHING, Play, Stage};

/// The rows.
pub(super) const ROWS: &[Row] = &[
    Row {
        number: 20,
        fault: "ZooKeeper's data wiped",
        needs: Needs::HOSTS,
        write_gap_s: None,
        plays: &[
            Play {
                name: "ZooKeeper's data is wiped while the shard serves",
                clients: Clients::NoticeNothing,
                script: |stage| Box::pin(wiped(stage)),
            },
            Play {
                name: "all hosts lose power, and ZooKeeper its data",
                clients: Clients::MayFail,
                script: |stage| Box::pin(wiped_and_off(stage)),
            },
        ],
    },
    Row {
        number: 24,
        fault: "planned promotion under load, a crash injected at every step",
        needs: Needs::HOSTS,
        write_gap_s: None,
        plays: &[
            PROMOTION,
            Play {
                name: "the primary's host dies during a promotion",
                clients: Clients::MayFail,
                script: |stage| Box::pin(crash_during_promotion(stage, Role::Primary, Crash::Host)),
            },
            Play {
                name: "the sync's host dies during its promotion",
                clients: Clients::MayFail,
                script: |stage| Box::pin(crash_during_promotion(stage, Role::Sync, Crash::Host)),
            },
            Play {
                name: "the primary's sitter dies during a promotion",
                clients: Clients::MayFail,
                script: |stage| Box::pin(crash_during_promotion(stage, Role::Primary, Crash::Sitter)),
            },
            Play {
                name: "the sync's sitter dies during its promotion",
                clients: Clients::MayFail,
                script: |stage| Box::pin(crash_during_promotion(stage, Role::Sync, Crash::Sitter)),
            },
            Play {
                name: "the sync's PostgreSQL dies during its promotion",
                clients: Clients::MayFail,
                script: |stage| Box::pin(crash_during_promotion(stage, Role::Sync, Crash::Postgres)),
            },
            Play {
                name: "the coming sync's host dies during a promotion",
                clients: Clients::MayFail,
                script: |stage| Box::pin(crash_during_promotion(stage, Role::Async(0), Crash::Host)),
            },
        ],
    },
    Row {
        number: 44,
        fault: "frozen shard loses a node; unfreeze",
        needs: Needs::HOSTS,
        write_gap_s: None,
        plays: &[
            Play {
                name: "a frozen shard loses its primary",
                clients: Clients::WritesMayFail,
                script: |stage| Box::pin(frozen(stage, Role::Primary, Change::Takeover)),
            },
            Play {
                name: "a frozen shard loses its sync",
                clients: Clients::WritesMayFail,
                script: |stage| Box::pin(frozen(stage, Role::Sync, Change::NewSync)),
            },
            Play {
                name: "a frozen shard loses its async",
                clients: Clients::WritesMayFail,
                script: |stage| Box::pin(frozen(stage, Role::Async(0), Change::None)),
            },
        ],
    },
];

/// A promotion without a crash.
pub const PROMOTION: Play =
    Play { name: "the sync is promoted", clients: Clients::NoticeNothing, script: |stage| Box::pin(promotion(stage)) };

async fn frozen(stage: &mut Stage<'_>, role: Role, change: Change) -> Result<()> {
    let victim = stage.host(role)?;
    console::adm(stage.lab, &["freeze", "-r", "row 44"]).await?;
    stage.begin("SIGKILL to everything, frozen", victim);
    stage.lab.hosts[victim].kill();
    stage.nothing_happens(NOTHING).await?;
    let told = explain(stage).await?;
    ensure!(told.contains("the shard is frozen"), "`explain` does not name the freeze:\n{told}");
    console::adm(stage.lab, &["unfreeze"]).await?;
    if change == Change::None {
        stage.nothing_happens(Duration::from_secs(2)).await?;
    } else {
        stage.expect(change).await?;
    }
    stage.served().await.context("after the end of the freeze")
}

/// Output of `manatee-adm explain` about a shard that is not healthy.
async fn explain(stage: &Stage<'_>) -> Result<String> {
    match console::adm(stage.lab, &["explain"]).await {
        Ok(told) => anyhow::bail!("`explain` finds nothing:\n{told}"),
        Err(told) => Ok(format!("{told:#}")),
    }
}

async fn ask_for_promotion(stage: &mut Stage<'_>) -> Result<()> {
    let sync = stage.host(Role::Sync)?;
    let name = stage.lab.hosts[sync].name();
    stage.begin("promotion", sync);
    console::adm(stage.lab, &["promote", "-n", &name, "-r", "sync", "-y", "--no-wait"]).await?;
    Ok(())
}

async fn promotion(stage: &mut Stage<'_>) -> Result<()> {
    ask_for_promotion(stage).await?;
    stage.expect(Change::Takeover).await?;
    stage.served().await
}

/// Process that dies.
#[derive(Clone, Copy, Debug)]
enum Crash {
    Host,
    Sitter,
    Postgres,
}

/// The crash comes a little later in each round, so that in the end each step was hit.
async fn crash_during_promotion(stage: &mut Stage<'_>, role: Role, crash: Crash) -> Result<()> {
    let victim = stage.host(role)?;
    let delay = Duration::from_millis(u64::from(stage.number * 17 % 200));
    ask_for_promotion(stage).await?;
    tokio::time::sleep(delay).await;
    tracing::info!("{crash:?} of {} after {delay:?}", stage.lab.hosts[victim].name());
    match crash {
        Crash::Host => stage.lab.hosts[victim].kill(),
        Crash::Sitter => stage.lab.hosts[victim].kill_sitter()?,
        Crash::Postgres => {
            // It may be between two postmasters.
            let _ = stage.lab.hosts[victim].kill_postmaster();
        }
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    // The promotion itself, and what the crash brings with it.
    stage.allow_more_changes(3);
    stage.heal().await
}

async fn wiped(stage: &mut Stage<'_>) -> Result<()> {
    let primary = stage.host(Role::Primary)?;
    let postmaster = stage.lab.hosts[primary].postmaster_pid();
    stage.begin_all("ZooKeeper loses its data");
    stage.lab.zookeeper.wipe()?;
    stage.lab.zookeeper.ready(CHANGE).await?;
    told_lost(stage).await?;
    // A sitter that knows nothing of before must not begin anew either.
    let sync = stage.host(Role::Sync)?;
    stage.lab.hosts[sync].kill_sitter()?;
    stage.lab.hosts[sync].start_sitter()?;
    stage.nothing_happens(NOTHING).await?;
    stage.same_postmaster(primary, postmaster);
    stage.served().await.context("without a state")?;
    told_lost(stage).await?;
    restore(stage).await?;
    stage.nothing_happens(Duration::from_secs(2)).await?;
    stage.same_postmaster(primary, postmaster);
    stage.served().await.context("with the state restored")
}

async fn wiped_and_off(stage: &mut Stage<'_>) -> Result<()> {
    stage.begin_all("everything loses power, ZooKeeper its data");
    (0..stage.lab.hosts.len()).for_each(|host| stage.lab.hosts[host].kill());
    stage.lab.zookeeper.wipe()?;
    stage.lab.zookeeper.ready(CHANGE).await?;
    stage.heal().await?;
    told_lost(stage).await?;
    restore(stage).await?;
    stage.served().await.context("with the state restored")
}

/// Waits until all peers are registered again and `explain` can say which to make primary.
async fn told_lost(stage: &mut Stage<'_>) -> Result<()> {
    let deadline = Instant::now() + CHANGE;
    loop {
        let told = explain(stage).await?;
        let settled = told.contains("state and history are gone") && told.contains("it makes peer");
        // The shard has not even a folder before the first of them is back.
        let active = console::adm(stage.lab, &["zk-active"]).await.unwrap_or_default();
        if settled && active.matches("\"id\"").count() == stage.lab.hosts.len() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "`explain` does not lead the way:\n{told}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// As `explain` says.
async fn restore(stage: &mut Stage<'_>) -> Result<()> {
    let told = console::adm(stage.lab, &["state-backfill", "-y"]).await?;
    tracing::info!("{told}");
    stage.expect(Change::Restored).await?;
    console::adm(stage.lab, &["unfreeze"]).await?;
    Ok(())
}
