//! Row 42: programs of two versions in one shard, as in a rolling upgrade.
//!
//! With `--old-bin-dir` the shard begins with an older version's programs. Without it both versions are this
//! one, and what a newer one would add to the state is put there by hand.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use manatee_shared::cluster::Role;

use super::{Needs, Row};
use crate::proxy::DRAIN_S;
use crate::scenario::{CHANGE, Change, Clients, Play, Stage};

/// Time between two steps: longer than a suspicion takes.
const STEP: Duration = Duration::from_secs(3);

/// The rows.
pub(super) const ROWS: &[Row] = &[Row {
    number: 42,
    fault: "mixed versions of sitter and proxy during a rolling upgrade",
    needs: Needs::HOSTS,
    write_gap_s: None,
    plays: &[
        Play {
            name: "every program is replaced by the new version, one by one",
            clients: Clients::NoticeNothing,
            script: |stage| Box::pin(roll(stage, Version::New)),
        },
        Play {
            name: "back to the old version, one by one",
            clients: Clients::NoticeNothing,
            script: |stage| Box::pin(roll(stage, Version::Old)),
        },
        Play {
            name: "the primary's host is lost half way: its sync is new, the others are old",
            clients: Clients::WritesMayFail,
            script: |stage| Box::pin(lose_the_primary(stage, Version::New)),
        },
        Play {
            name: "the primary's host is lost half way: its sync is old, the others are new",
            clients: Clients::WritesMayFail,
            script: |stage| Box::pin(lose_the_primary(stage, Version::Old)),
        },
        Play {
            name: "the state has fields that nobody knows yet",
            clients: Clients::WritesMayFail,
            script: |stage| Box::pin(unknown_fields(stage)),
        },
    ],
}];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    Old,
    New,
}

impl Version {
    /// Its sitter and proxy.
    fn programs(self, stage: &Stage<'_>) -> (PathBuf, PathBuf) {
        let old = stage.lab.old_binaries.as_ref().filter(|_| self == Self::Old);
        let binaries = old.unwrap_or(&stage.lab.binaries);
        (binaries.sitter.clone(), binaries.proxy.clone())
    }

    fn other(self) -> Self {
        match self {
            Self::Old => Self::New,
            Self::New => Self::Old,
        }
    }
}

/// As one should: asyncs first, the primary last, then the proxies. Nobody notices.
async fn roll(stage: &mut Stage<'_>, version: Version) -> Result<()> {
    let (sitter, proxy) = version.programs(stage);
    stage.begin_all("a rolling upgrade");
    for role in [Role::Async(0), Role::Sync, Role::Primary] {
        let host = stage.host(role)?;
        let postmaster = stage.lab.hosts[host].postmaster_pid();
        stage.lab.hosts[host].upgrade_sitter(&sitter).await?;
        stage.nothing_happens(STEP).await?;
        stage.same_postmaster(host, postmaster);
    }
    let proxies = stage.lab.proxies.len();
    for index in 0..proxies {
        stage.lab.proxies[index].upgrade(&proxy).await?;
    }
    stage.nothing_happens(STEP).await?;
    let figures = stage.oracle.figures();
    if figures.write_errors + figures.read_errors + figures.dropped > 0 {
        stage.fail(format!("clients noticed: {:?}", figures.errors));
    }
    if figures.write_gap_s.max(figures.read_gap_s) > 1.0 {
        stage.fail(format!("no writes for {} s, no reads for {} s", figures.write_gap_s, figures.read_gap_s));
    }
    // What comes now is the proxies' drain: those who stay are sent away.
    for index in 0..proxies {
        stage.lab.proxies[index].predecessor_ended(Duration::from_secs(DRAIN_S) + CHANGE).await?;
    }
    stage.served().await?;
    stage.oracle.begin_round();
    Ok(())
}

/// The sync is of one version, primary and async of the other, when the primary goes.
async fn lose_the_primary(stage: &mut Stage<'_>, sync_is: Version) -> Result<()> {
    let (primary, sync, other) = (stage.host(Role::Primary)?, stage.host(Role::Sync)?, stage.host(Role::Async(0))?);
    for (host, version) in [(other, sync_is.other()), (sync, sync_is), (primary, sync_is.other())] {
        let (sitter, _) = version.programs(stage);
        stage.lab.hosts[host].upgrade_sitter(&sitter).await?;
    }
    stage.nothing_happens(STEP).await?;
    stage.begin("SIGKILL to everything", primary);
    stage.lab.hosts[primary].kill();
    stage.expect(Change::Takeover).await?;
    stage.served().await
}

/// Fields that a newer version wrote outlive a change that this one makes.
async fn unknown_fields(stage: &mut Stage<'_>) -> Result<()> {
    const FIELD: &str = "ofALaterVersion";
    let raw = stage.lab.state.raw().await?;
    let mut state: serde_json::Value = serde_json::from_slice(&raw)?;
    let fields = state.as_object_mut().context("the state is no object")?;
    fields.insert(FIELD.to_owned(), serde_json::json!({ "kept": [1, "two"] }));
    let primary = fields.get_mut("primary").and_then(serde_json::Value::as_object_mut).context("no primary")?;
    primary.insert(FIELD.to_owned(), true.into());
    stage.begin_all("fields of a later version");
    stage.lab.state.replace_raw(&serde_json::to_vec(&state)?).await?;
    stage.nothing_happens(STEP).await?;
    let host = stage.host(Role::Primary)?;
    stage.begin("SIGKILL to everything", host);
    stage.lab.hosts[host].kill();
    stage.expect(Change::Takeover).await?;
    stage.served().await?;
    let after: serde_json::Value = serde_json::from_slice(&stage.lab.state.raw().await?)?;
    ensure!(after[FIELD]["kept"][1] == "two", "a field of a later version is gone: {after}");
    Ok(())
}
