//! Crashes at every step of what sitters do. A sitter logs each decision and each end of an action,
//! so that "after its n-th line" is a place between two steps; each round has the next place.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use manatee_shared::cluster::Role;

use super::{Needs, Row};
use crate::scenario::{Clients, Play, Stage};

/// Longest that a sitter may have nothing to say while something is to be done.
const LINES: Duration = Duration::from_secs(5);
/// Lines of the longest of the actions looked at.
const MOST_LINES: usize = 12;
/// systemd's default pause before it restarts a service.
const SERVICE_RESTART: Duration = Duration::from_millis(100);

/// The rows.
pub(super) const ROWS: &[Row] = &[Row {
    number: 46,
    fault: "crash injected at every step of every action",
    needs: Needs::HOSTS,
    write_gap_s: None,
    plays: &[
        CRASH,
        Play {
            name: "takeover; everything on the coming primary's host is killed between two steps",
            script: |stage| Box::pin(takeover(stage, Crash::Host)),
            ..CRASH
        },
        Play {
            name: "new sync; the primary's sitter is killed between two steps",
            script: |stage| Box::pin(new_sync(stage, Crash::Sitter)),
            ..CRASH
        },
        Play {
            name: "new sync; everything on the primary's host is killed between two steps",
            script: |stage| Box::pin(new_sync(stage, Crash::Host)),
            ..CRASH
        },
        Play {
            name: "rejoin; the former primary's sitter is killed between two steps",
            script: |stage| Box::pin(rejoin(stage, Crash::Sitter)),
            ..CRASH
        },
        Play {
            name: "rejoin; everything on the former primary's host is killed between two steps",
            script: |stage| Box::pin(rejoin(stage, Crash::Host)),
            ..CRASH
        },
        Play {
            name: "planned stop; the sitter is killed between two steps",
            script: |stage| Box::pin(stop(stage)),
            ..CRASH
        },
    ],
}];

/// The first of them.
const CRASH: Play = Play {
    name: "takeover; the coming primary's sitter is killed between two steps",
    clients: Clients::MayFail,
    script: |stage| Box::pin(takeover(stage, Crash::Sitter)),
};

/// Process that dies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Crash {
    Sitter,
    Host,
}

async fn takeover(stage: &mut Stage<'_>, crash: Crash) -> Result<()> {
    let (primary, sync) = (stage.host(Role::Primary)?, stage.host(Role::Sync)?);
    stage.begin("SIGKILL to everything", primary);
    let from = length(stage, sync)?;
    stage.lab.hosts[primary].kill();
    crash_at(stage, sync, from, crash).await
}

async fn new_sync(stage: &mut Stage<'_>, crash: Crash) -> Result<()> {
    let (primary, sync) = (stage.host(Role::Primary)?, stage.host(Role::Sync)?);
    stage.begin("SIGKILL to everything", sync);
    let from = length(stage, primary)?;
    stage.lab.hosts[sync].kill();
    crash_at(stage, primary, from, crash).await
}

async fn rejoin(stage: &mut Stage<'_>, crash: Crash) -> Result<()> {
    let primary = stage.host(Role::Primary)?;
    stage.begin("SIGKILL to everything", primary);
    stage.lab.hosts[primary].kill();
    stage.served().await?;
    let from = length(stage, primary)?;
    stage.lab.heal(primary)?;
    crash_at(stage, primary, from, crash).await
}

async fn stop(stage: &mut Stage<'_>) -> Result<()> {
    let primary = stage.host(Role::Primary)?;
    stage.begin("SIGTERM to the sitter", primary);
    let from = length(stage, primary)?;
    stage.lab.hosts[primary].stop_sitter()?;
    crash_at(stage, primary, from, Crash::Sitter).await
}

/// Lets `host` crash after this round's number of lines, and starts it again. What had begun may
/// have got through or not, so roles may change once more than usual, and once for each that was lost.
async fn crash_at(stage: &mut Stage<'_>, host: usize, from: u64, crash: Crash) -> Result<()> {
    let lines = 1 + stage.number as usize / ROWS[0].plays.len() % MOST_LINES;
    let log = stage.lab.hosts[host].log().to_owned();
    if !has_lines(&log, from, lines).await? {
        tracing::info!("fewer than {lines} lines: the crash comes after all is done");
    }
    match crash {
        // One that was told to stop may have ended.
        Crash::Sitter => drop(stage.lab.hosts[host].kill_sitter()),
        Crash::Host => stage.lab.hosts[host].kill(),
    }
    tokio::time::sleep(SERVICE_RESTART).await;
    stage.lab.hosts[host].start_sitter()?;
    stage.allow_more_changes(3);
    Ok(())
}

fn length(stage: &Stage<'_>, host: usize) -> Result<u64> {
    Ok(std::fs::metadata(stage.lab.hosts[host].log())?.len())
}

/// Waits for so many lines after `from`; whether they came.
async fn has_lines(log: &Path, from: u64, lines: usize) -> Result<bool> {
    let deadline = Instant::now() + LINES;
    loop {
        let mut text = Vec::new();
        let mut file = File::open(log)?;
        file.seek(SeekFrom::Start(from))?;
        file.read_to_end(&mut text)?;
        if text.iter().filter(|byte| **byte == b'\n').count() >= lines {
            return Ok(true);
        }
        if Instant::now() > deadline {
            return Ok(false);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
