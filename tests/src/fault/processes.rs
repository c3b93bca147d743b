//! Processes that are killed or stopped, and hosts that lose power.

use std::time::Duration;

use anyhow::{Result, bail};
use manatee_shared::cluster::Role;

use super::{Needs, Row};
use crate::scenario::{CHANGE, Change, Clients, NOTHING, Play, Stage};

/// systemd's default pause before it restarts a service.
const SERVICE_RESTART: Duration = Duration::from_millis(100);

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
