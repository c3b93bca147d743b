//! Processes that are killed or stopped, and hosts that lose power.

use std::time::Duration;

use anyhow::{Result, bail};
use manatee_shared::cluster::Role;
use nix::sys::signal::Signal;

use super::{Needs, Row};
use crate::scenario::{CHANGE, Change, Clients, NOTHING, Play, Stage};

/// systemd's default pause before it restarts a service.
const SERVICE_RESTART: Duration = Duration::from_millis(100);

/// Less than the lab's ZooKeeper session timeout, in which the session of a stopped sitter lives.
const SESSION_LIVES: Duration = Duration::from_millis(2_500);

/// The rows.
pub(super) const ROWS: &[Row] = &[
    Row {
        number: 1,
        fault: "SIGKILL postmaster of the primary",
        needs: Needs::HOSTS,
        write_gap_s: Some(1.0),
        plays: &[Play {
            name: "the primary's postmaster is killed",
            clients: Clients::MayFail,
            script: |stage| Box::pin(kill_postmaster(stage)),
        }],
    },
    Row {
        number: 2,
        fault: "SIGKILL sitter",
        needs: Needs::HOSTS,
        write_gap_s: None,
        plays: &[
            KILL_SITTER,
            Play {
                name: "the sync's sitter is killed",
                script: |stage| Box::pin(kill_sitter(stage, Role::Sync)),
                ..KILL_SITTER
            },
            Play {
                name: "the async's sitter is killed",
                script: |stage| Box::pin(kill_sitter(stage, Role::Async(0))),
                ..KILL_SITTER
            },
            Play {
                name: "the primary's sitter is replaced by another, as in an upgrade",
                script: |stage| Box::pin(replace_sitter(stage)),
                ..KILL_SITTER
            },
        ],
    },
    Row {
        number: 3,
        fault: "SIGKILL sitter and PostgreSQL of the primary",
        needs: Needs::HOSTS,
        write_gap_s: Some(1.5),
        plays: &[KILL_PRIMARY],
    },
    Row {
        number: 4,
        fault: "SIGSTOP postmaster or its checkpointer/walwriter on the primary",
        needs: Needs::HOSTS,
        write_gap_s: None,
        plays: &[
            Play {
                name: "the primary's postmaster is stopped",
                clients: Clients::MayFail,
                script: |stage| Box::pin(pause_process(stage, None)),
            },
            Play {
                name: "the primary's checkpointer is stopped",
                clients: Clients::MayFail,
                script: |stage| Box::pin(pause_process(stage, Some("checkpointer"))),
            },
            Play {
                name: "the primary's walwriter is stopped",
                clients: Clients::MayFail,
                script: |stage| Box::pin(pause_process(stage, Some("walwriter"))),
            },
        ],
    },
    Row {
        number: 5,
        fault: "SIGSTOP sitter of the primary",
        needs: Needs::HOSTS,
        write_gap_s: None,
        plays: &[Play {
            name: "the primary's sitter is stopped",
            clients: Clients::MayFail,
            script: |stage| Box::pin(pause_sitter(stage)),
        }],
    },
    Row {
        number: 6,
        fault: "SIGSTOP sitter and PostgreSQL past expiry, then SIGCONT",
        needs: Needs::HOSTS,
        write_gap_s: None,
        plays: &[Play {
            name: "everything on the primary's host is stopped, and goes on later",
            clients: Clients::MayFail,
            script: |stage| Box::pin(pause_host(stage)),
        }],
    },
    Row {
        number: 7,
        fault: "primary's host loses power",
        needs: Needs::NETWORK,
        write_gap_s: Some(2.0),
        plays: &[Play {
            name: "the primary's host loses power",
            clients: Clients::MayFail,
            script: |stage| Box::pin(power_off(stage)),
        }],
    },
];

/// Row 2 at the primary.
pub const KILL_SITTER: Play = Play {
    name: "the primary's sitter is killed",
    clients: Clients::NoticeNothing,
    script: |stage| Box::pin(kill_sitter(stage, Role::Primary)),
};

/// Row 3.
pub const KILL_PRIMARY: Play = Play {
    name: "everything on the primary's host is killed",
    clients: Clients::WritesMayFail,
    script: |stage| Box::pin(kill_primary(stage)),
};

/// Not on the list: a planned stop.
pub const STOP_PRIMARY: Play = Play {
    name: "the primary's sitter is told to stop",
    clients: Clients::WritesMayFail,
    script: |stage| Box::pin(stop_primary(stage)),
};

async fn kill_postmaster(stage: &mut Stage<'_>) -> Result<()> {
    let host = stage.host(Role::Primary)?;
    let generation = stage.before.generation;
    stage.begin("SIGKILL to the postmaster", host);
    let killed = stage.lab.hosts[host].kill_postmaster()?;
    stage
        .until("nothing was done about it", async |lab| {
            let pid = lab.hosts[host].postmaster_pid();
            let restarted = pid.is_some_and(|pid| pid != killed);
            if restarted || lab.current().await?.generation > generation {
                return Ok(());
            }
            bail!("no new postmaster, no new generation");
        })
        .await?;
    stage.accept(&[Change::None, Change::Takeover]).await?;
    if stage.state().generation == generation {
        // A restart in place that takes too long becomes a takeover after all.
        stage.allow_more_changes(1);
    }
    stage.served().await
}

async fn kill_sitter(stage: &mut Stage<'_>, role: Role) -> Result<()> {
    let host = stage.host(role)?;
    let postmaster = stage.lab.hosts[host].postmaster_pid();
    stage.begin("SIGKILL to the sitter", host);
    stage.lab.hosts[host].kill_sitter()?;
    tokio::time::sleep(SERVICE_RESTART).await;
    stage.lab.hosts[host].start_sitter()?;
    stage.nothing_happens(NOTHING).await?;
    stage.same_postmaster(host, postmaster);
    Ok(())
}

async fn replace_sitter(stage: &mut Stage<'_>) -> Result<()> {
    let host = stage.host(Role::Primary)?;
    let postmaster = stage.lab.hosts[host].postmaster_pid();
    stage.begin("SIGUSR2 to the sitter, and a new one", host);
    stage.lab.hosts[host].replace_sitter().await?;
    stage.nothing_happens(NOTHING).await?;
    stage.same_postmaster(host, postmaster);
    Ok(())
}

async fn kill_primary(stage: &mut Stage<'_>) -> Result<()> {
    let host = stage.host(Role::Primary)?;
    stage.begin("SIGKILL to everything", host);
    stage.lab.hosts[host].kill();
    stage.expect(Change::Takeover).await?;
    stage.served().await
}

async fn stop_primary(stage: &mut Stage<'_>) -> Result<()> {
    let host = stage.host(Role::Primary)?;
    stage.begin("SIGTERM to the sitter", host);
    stage.lab.hosts[host].stop_sitter()?;
    stage.expect(Change::Takeover).await?;
    stage.served().await?;
    stage.lab.hosts[host].sitter_ended(CHANGE).await
}

async fn power_off(stage: &mut Stage<'_>) -> Result<()> {
    let host = stage.host(Role::Primary)?;
    stage.begin("power off", host);
    stage.lab.power_off(host)?;
    stage.expect(Change::Takeover).await?;
    stage.served().await
}

/// The postmaster itself, or one of its children.
async fn pause_process(stage: &mut Stage<'_>, child: Option<&str>) -> Result<()> {
    let host = stage.host(Role::Primary)?;
    stage.begin("SIGSTOP", host);
    match child {
        None => stage.lab.hosts[host].pause_postmaster()?,
        Some(title) => stage.lab.hosts[host].signal_child(title, Signal::SIGSTOP)?,
    }
    stage.expect(Change::Takeover).await?;
    stage.served().await
}

/// While PostgreSQL commits and its session lives, nothing is to be done; afterwards the old primary
/// must not serve when the new one does, though its sitter cannot see to that.
async fn pause_sitter(stage: &mut Stage<'_>) -> Result<()> {
    let host = stage.host(Role::Primary)?;
    stage.begin("SIGSTOP to the sitter", host);
    stage.lab.hosts[host].pause_sitter()?;
    stage.nothing_happens(SESSION_LIVES).await?;
    let figures = stage.oracle.figures();
    if figures.write_gap_s > 1.0 || figures.write_errors > 0 {
        stage.fail(format!("writes did not go on while the session lived: {figures:?}"));
    }
    stage.expect(Change::Takeover).await?;
    stage.served().await?;
    // What the former primary still lets in directly must not be acknowledged.
    if let Ok(client) = stage.lab.hosts[host].superuser(crate::lab::APP).await {
        let sql = format!("create table written_to_a_former_primary_{} ()", stage.number);
        let write = client.batch_execute(&sql);
        if let Ok(Ok(())) = tokio::time::timeout(Duration::from_secs(2), write).await {
            stage.fail("the former primary acknowledged a write");
        }
    }
    Ok(())
}

async fn pause_host(stage: &mut Stage<'_>) -> Result<()> {
    let host = stage.host(Role::Primary)?;
    stage.begin("SIGSTOP to everything", host);
    stage.lab.hosts[host].pause();
    stage.expect(Change::Takeover).await?;
    stage.served().await?;
    stage.nothing_happens(NOTHING).await?;
    stage.lab.hosts[host].resume();
    stage.served().await
}
