//! Data that went another way, or was left behind, and copies that are interrupted.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use manatee_shared::cluster::Role;
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Needs, Row};
use crate::lab::{APP, Lab};
use crate::process;
use crate::scenario::{Change, Clients, Play, Stage};

/// Longest time for data to be in line again: covers a fresh copy on a slow file system.
const REJOINED: Duration = Duration::from_secs(180);
/// Pause between two looks at something that passes quickly.
const QUICK: Duration = Duration::from_millis(2);
/// Most WAL segments that are filled to have an old one recycled: more than the lab keeps for anybody.
const SEGMENTS: u32 = 40;

/// The rows.
pub(super) const ROWS: &[Row] = &[
    Row {
        number: 30,
        fault: "deposed peer returns with divergent WAL",
        needs: Needs::NETWORK,
        write_gap_s: None,
        plays: &[
            Play {
                name: "the old primary wrote on while it was cut off",
                clients: Clients::MayFail,
                script: |stage| Box::pin(diverge(stage, Harm::None)),
            },
            LOST_WAL,
            Play {
                name: "the old primary wrote on, and nobody but an operator may replace its data (rejoin = \"manual\")",
                clients: Clients::MayFail,
                script: |stage| Box::pin(diverge_by_hand(stage)),
            },
        ],
    },
    Row {
        number: 31,
        fault: "pg_rewind interrupted",
        needs: Needs::NETWORK,
        write_gap_s: None,
        plays: &[Play {
            name: "pg_rewind is killed when it has begun to write",
            clients: Clients::MayFail,
            script: |stage| Box::pin(diverge(stage, Harm::KillRewind)),
        }],
    },
    Row {
        number: 35,
        fault: "source dies during a bootstrap transfer",
        needs: Needs { peers: 4, ..Needs::NETWORK },
        write_gap_s: None,
        plays: &[Play {
            name: "the host that an async is rebuilt from stops",
            clients: Clients::MayFail,
            script: |stage| Box::pin(lose_source(stage)),
        }],
    },
    Row {
        number: 36,
        fault: "WAL needed by a lagging async recycled",
        needs: Needs { parameters: &[("wal_keep_size", "64MB")], ..Needs::HOSTS },
        write_gap_s: None,
        plays: &[Play {
            name: "the async is down until its WAL is gone everywhere",
            clients: Clients::MayFail,
            script: |stage| Box::pin(leave_behind(stage)),
        }],
    },
];

/// Row 30, where a rewind is not possible.
pub const LOST_WAL: Play = Play {
    name: "the old primary wrote on, and its disk lost WAL that a rewind needs",
    clients: Clients::MayFail,
    script: |stage| Box::pin(diverge(stage, Harm::LoseWal)),
};

/// Further harm to a primary that wrote on alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    None,
    LoseWal,
    KillRewind,
}

async fn diverge(stage: &mut Stage<'_>, harm: Harm) -> Result<()> {
    let host = stage.host(Role::Primary)?;
    let before = rungs(stage.lab, host).await?;
    write_alone(stage, host).await?;
    if harm == Harm::LoseWal {
        stage.lab.hosts[host].kill();
        lose_wal(&stage.lab.hosts[host].data_dir().join("pg_wal"))?;
    }
    stage.heal().await?;
    if harm == Harm::KillRewind {
        kill_rewind(stage, host).await?;
    }
    let before = if harm == Harm::LoseWal { BTreeMap::new() } else { before };
    let rung = rejoined(stage.lab, host, &before).await?;
    let below = if stage.lab.pool.is_some() { "rollback" } else { "copy" };
    let wanted = if harm == Harm::None { "rewind" } else { below };
    if rung != wanted {
        stage.fail(format!("{harm:?}: {wanted} was expected to bring the data in line, it was {rung}"));
    }
    Ok(())
}

/// Cuts the primary off, and writes to it once another one serves.
async fn write_alone(stage: &mut Stage<'_>, host: usize) -> Result<()> {
    stage.begin("cut off", host);
    stage.lab.cut(host)?;
    stage.expect(Change::Takeover).await?;
    stage.served().await?;
    let alone = stage.lab.hosts[host].superuser(APP).await?;
    let write = "set synchronous_commit = local; drop table if exists alone; \
                 create table alone as select g, repeat(md5(g::text), 8) from generate_series(1, 30000) g; checkpoint";
    alone.batch_execute(write).await.context("writing to the cut off primary")
}

/// With `rejoin = "manual"` diverged data stays as it is, and the sitter says what to do, until it is done.
async fn diverge_by_hand(stage: &mut Stage<'_>) -> Result<()> {
    let host = stage.host(Role::Primary)?;
    let config = stage.lab.hosts[host].config_path();
    let automatic = std::fs::read_to_string(&config)?;
    reconfigure(stage, host, &format!("rejoin = \"manual\"\n{automatic}")).await?;
    write_alone(stage, host).await?;
    stage.heal().await?;
    let deadline = Instant::now() + REJOINED;
    let what = "the sitter did not say that an operator is needed";
    stage
        .lab
        .until(deadline, what, async |lab| {
            let status: Value = reqwest::get(url(lab, host, "/status")).await?.json().await?;
            let decision = &status["decision"];
            let told = decision["reason"].as_str().is_some_and(|reason| reason.contains("manatee-adm rebuild"));
            ensure!(decision["code"] == "rejoin_manual" && told, "{decision}");
            Ok(())
        })
        .await?;
    let done = rungs(stage.lab, host).await?;
    ensure!(done.is_empty(), "something was done to the data although nobody ordered it: {done:?}");
    rebuild(stage.lab, host).await?;
    let rung = rejoined(stage.lab, host, &BTreeMap::new()).await?;
    if rung != "copy" {
        stage.fail(format!("a full copy was ordered, it was {rung}"));
    }
    stage.lab.whole(REJOINED).await?;
    reconfigure(stage, host, &automatic).await
}

/// Gives a sitter another configuration; its PostgreSQL notices nothing.
async fn reconfigure(stage: &mut Stage<'_>, host: usize, text: &str) -> Result<()> {
    let peer = &mut stage.lab.hosts[host];
    std::fs::write(peer.config_path(), text)?;
    peer.replace_sitter().await?;
    let deadline = Instant::now() + REJOINED;
    stage
        .lab
        .until(deadline, "the sitter did not find its role again", async |lab| {
            let status: Value = reqwest::get(url(lab, host, "/status")).await?.json().await?;
            let role = status["role"].as_str().unwrap_or_default();
            ensure!(["primary", "sync", "async"].iter().any(|known| role.starts_with(known)), "{role}");
            Ok(())
        })
        .await
}

/// All segments go: so does the one where the histories parted.
fn lose_wal(folder: &std::path::Path) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_file() && path.extension().is_none() {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Kills it between its first write and its last.
async fn kill_rewind(stage: &mut Stage<'_>, host: usize) -> Result<()> {
    let marker = stage.lab.hosts[host].dir.join("run/incomplete");
    let deadline = Instant::now() + REJOINED;
    loop {
        ensure!(Instant::now() < deadline, "pg_rewind was not seen at work");
        if marker.exists() {
            let at_work = stage.lab.hosts[host].processes();
            let is_rewind = |pid: &&i32| {
                std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "pg_rewind")
            };
            if let Some(pid) = at_work.iter().find(is_rewind) {
                process::signal_all(&[*pid], Signal::SIGKILL);
                return Ok(());
            }
        }
        tokio::time::sleep(QUICK).await;
    }
}

async fn lose_source(stage: &mut Stage<'_>) -> Result<()> {
    let last = stage.before.async_peers.len().checked_sub(1).context("no async")?;
    let host = stage.host(Role::Async(last))?;
    ballast(stage).await?;
    let before = restore(stage.lab, host).await?["uuid"].clone();
    stage.begin("rebuilt", host);
    rebuild(stage.lab, host).await?;
    let deadline = Instant::now() + REJOINED;
    let source = loop {
        ensure!(Instant::now() < deadline, "no copy began");
        let restore = restore(stage.lab, host).await?;
        if restore["uuid"] != before {
            ensure!(restore["done"] != Value::Bool(true), "the copy was too quick to be interrupted: {restore}");
            break restore["source"].as_str().unwrap_or_default().to_owned();
        }
        tokio::time::sleep(QUICK).await;
    };
    let stopped = stage.lab.hosts.iter().position(|host| host.id.to_string() == source);
    let stopped = stopped.with_context(|| format!("the source {source} is no host"))?;
    tracing::info!("the source is {}", stage.lab.hosts[stopped].name());
    if stage.lab.hosts[stopped].id == stage.before.primary.id {
        stage.fail("the primary was chosen as the source though there are others");
    }
    stage.lab.hosts[stopped].pause();
    let what = "the copy did not go on from another source";
    stage
        .lab
        .until(Instant::now() + REJOINED, what, async |lab| {
            let restore = restore(lab, host).await?;
            let elsewhere = restore["source"].as_str().is_some_and(|now| now != source);
            if elsewhere && restore["done"] == Value::Bool(true) { Ok(()) } else { bail!("{restore}") }
        })
        .await
}

async fn leave_behind(stage: &mut Stage<'_>) -> Result<()> {
    let (host, primary) = (stage.host(Role::Async(0))?, stage.host(Role::Primary)?);
    stage.begin("left behind", host);
    let client = stage.lab.hosts[primary].superuser(APP).await?;
    let needed: String = client.query_one("select pg_walfile_name(pg_current_wal_lsn())", &[]).await?.get(0);
    stage.lab.hosts[host].kill();
    client.batch_execute("create table if not exists filler (n int)").await?;
    for number in 0..SEGMENTS {
        client.batch_execute("insert into filler values (1); select pg_switch_wal()").await?;
        if number % 8 == 7 {
            client.batch_execute("checkpoint").await?;
            if !is_kept(stage, host, &needed).await? {
                break;
            }
        }
    }
    stage
        .lab
        .until(Instant::now() + REJOINED, "the WAL was kept for ever", async |lab| {
            for (index, peer) in lab.hosts.iter().enumerate() {
                if index != host {
                    peer.superuser(APP).await?.batch_execute("checkpoint").await?;
                    ensure!(!peer.data_dir().join("pg_wal").join(&needed).exists(), "{} has {needed}", peer.name());
                }
            }
            Ok(())
        })
        .await?;
    stage.heal().await?;
    let rung = rejoined(stage.lab, host, &BTreeMap::new()).await?;
    // Incremental if the source, which the machine chooses by health, has a snapshot in common.
    if !["incremental", "copy"].contains(&rung.as_str()) {
        stage.fail(format!("a copy was expected to bring the data in line, it was {rung}"));
    }
    Ok(())
}

/// Whether any other host has the segment.
async fn is_kept(stage: &Stage<'_>, but: usize, segment: &str) -> Result<bool> {
    let mut paths = Vec::new();
    for (index, peer) in stage.lab.hosts.iter().enumerate() {
        if index != but {
            peer.superuser(APP).await?.batch_execute("checkpoint").await?;
            paths.push(peer.data_dir().join("pg_wal").join(segment));
        }
    }
    Ok(paths.iter().any(|path: &PathBuf| path.exists()))
}

/// So much data that a copy takes a while.
async fn ballast(stage: &mut Stage<'_>) -> Result<()> {
    let primary = stage.host(Role::Primary)?;
    let client = stage.lab.hosts[primary].superuser(APP).await?;
    client.batch_execute("create table if not exists ballast (g int, x text)").await?;
    let there: i64 = client.query_one("select count(*) from ballast", &[]).await?.get(0);
    // Once, and in pieces: four hosts on one zfs-fuse must not seem hung.
    for _ in there / 5000..20 {
        let write = "insert into ballast select g, repeat(md5(random()::text), 10) from generate_series(1, 5000) g";
        client.batch_execute(write).await.context("writing ballast")?;
    }
    stage.lab.whole(REJOINED).await.map(drop)
}

fn url(lab: &Lab, host: usize, path: &str) -> String {
    let id = lab.hosts[host].id;
    format!("http://{}{path}", std::net::SocketAddr::new(id.ip, id.backup_port))
}

/// Orders a rebuild of a host's data, as `manatee-adm rebuild` does.
async fn rebuild(lab: &Lab, host: usize) -> Result<()> {
    let token = std::fs::read_to_string(lab.dir().join("secrets/api.token"))?;
    let request = reqwest::Client::new().post(url(lab, host, "/rebuild"));
    let answer = request.header("authorization", format!("Bearer {}", token.trim())).send().await?;
    let code = answer.status().as_u16();
    ensure!(code == 202, "the rebuild was refused: {code} {}", answer.text().await?);
    Ok(())
}

/// The copy to a host under way, or its last one.
pub async fn restore(lab: &Lab, host: usize) -> Result<Value> {
    let mut answer: Value = reqwest::get(url(lab, host, "/restore")).await?.json().await?;
    Ok(answer["restore"].take())
}

/// Number of times that each rung of the ladder has held on a host since its sitter began.
async fn rungs(lab: &Lab, host: usize) -> Result<BTreeMap<String, u64>> {
    let text = reqwest::get(url(lab, host, "/metrics")).await?.text().await?;
    let rung = |line: &str| {
        let (rung, count) = line.strip_prefix("manatee_rejoins_total{rung=\"")?.split_once("\"} ")?;
        Some((rung.to_owned(), count.trim().parse().ok()?))
    };
    Ok(text.lines().filter_map(rung).collect())
}

/// Waits until one more rung than `before` has held on a host, other than that nothing was needed; says which.
async fn rejoined(lab: &mut Lab, host: usize, before: &BTreeMap<String, u64>) -> Result<String> {
    lab.until(Instant::now() + REJOINED, "the data was not brought in line", async |lab| {
        let now = rungs(lab, host).await?;
        let more = now.iter().find(|(rung, count)| {
            rung.as_str() != "as_is" && **count > before.get(rung.as_str()).copied().unwrap_or(0)
        });
        more.map(|(rung, _)| rung.clone()).with_context(|| format!("{now:?}"))
    })
    .await
}
