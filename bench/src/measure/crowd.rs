//! Many clients: what an idle one costs, how fast they log in, and whether ten thousand of them
//! are in the way of those that work.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::task::JoinSet;

use super::{Field, of};
use crate::client::{Connection, Dialer};
use crate::contender::{Contender, Kind};
use crate::cpu;
use crate::pgbench::{Load, Workload};
use crate::report::{Of, Report};
use crate::shard::Shard;

/// Logins under way at a time.
const AT_ONCE: usize = 16;
/// Clients that log in and leave.
const LOGINS: u32 = 1000;
/// Idle ones, to see what one costs; for those without a pool as many as servers allow.
const IDLE: u32 = 2000;
const IDLE_UNPOOLED: u32 = 60;
/// Idle ones beside those that work.
const CROWD: u32 = 10_000;
/// Those that work beside them.
const BUSY: u32 = 64;
/// For memory to be given back and connections to be noticed as closed.
const SETTLE: Duration = Duration::from_millis(500);

/// Logins per second and their CPU, `rounds` times.
pub async fn logins(field: &mut Field, report: &mut Report, rounds: u32) -> Result<()> {
    for round in 1..=rounds {
        eprintln!("round {round}: logins");
        for contender in &field.contenders {
            // What it holds of the password itself makes another salt: its clients have to hash.
            let count = if contender.kind == Kind::Pgpool { LOGINS / 5 } else { LOGINS };
            let cell = Of { workload: "login", clients: count, tls: false, target: contender.kind.name() };
            let before = contender.address.pid.map(cpu::nanoseconds).transpose()?;
            let begin = Instant::now();
            let done = log_in(contender, &field.shard, count, Then::Leave).await;
            of(contender.kind, "logins", done)?;
            report.add(cell, "per_s", f64::from(count) / begin.elapsed().as_secs_f64());
            let after = contender.address.pid.map(cpu::nanoseconds).transpose()?;
            if let Some((before, after)) = before.zip(after) {
                report.add(cell, "cpu_us", after.saturating_sub(before) as f64 / 1000.0 / f64::from(count));
            }
        }
        field.check()?;
    }
    Ok(())
}

/// Memory of an idle client that has run a query, over freshly started proxies (what others did to
/// them before must not hide it), `rounds` times.
pub async fn idle(field: &mut Field, report: &mut Report, rounds: u32) -> Result<()> {
    for round in 1..=rounds {
        eprintln!("round {round}: idle clients");
        for index in 0..field.contenders.len() {
            let kind = field.contenders[index].kind;
            if !kind.is_proxy() {
                continue;
            }
            let count = if kind.pools() { IDLE } else { IDLE_UNPOOLED };
            // The old one goes first: the servers have not connections enough for both.
            drop(field.contenders.remove(index));
            let contender = Contender::start(kind, &field.shard, &field.programs).await?;
            let pid = contender.address.pid.context("a proxy is a process")?;
            // Pools, caches and threads are there before the first count.
            drop(of(kind, "warm-up", log_in(&contender, &field.shard, 32, Then::Query).await)?);
            tokio::time::sleep(SETTLE).await;
            let before = cpu::memory_bytes(pid)?;
            let clients = of(kind, "idle clients", log_in(&contender, &field.shard, count, Then::Query).await)?;
            tokio::time::sleep(SETTLE).await;
            let after = cpu::memory_bytes(pid)?;
            drop(clients);
            let cell = Of { workload: "idle clients", clients: count, tls: false, target: kind.name() };
            report.add(cell, "bytes", after.saturating_sub(before) as f64 / f64::from(count));
            field.contenders.insert(index, contender);
        }
    }
    Ok(())
}

/// pgbench's tps and latency alone and beside [`CROWD`] idle clients, `rounds` times.
pub async fn crowd(field: &mut Field, report: &mut Report, seconds: u32, rounds: u32) -> Result<()> {
    let load = Load { workload: Workload::Simple, clients: BUSY, tls: false };
    for round in 1..=rounds {
        eprintln!("round {round}: {BUSY} clients beside {CROWD} idle ones");
        for contender in field.contenders.iter().filter(|contender| contender.kind.pools()) {
            let pgbench = &field.shard.pgbench;
            let alone = of(contender.kind, "alone", pgbench.run(contender.address, load, seconds).await)?;
            let idle = of(contender.kind, "crowd", log_in(contender, &field.shard, CROWD, Then::Query).await)?;
            let beside = of(contender.kind, "beside", pgbench.run(contender.address, load, seconds).await)?;
            drop(idle);
            tokio::time::sleep(SETTLE).await;
            let cell =
                Of { workload: "beside idle clients", clients: CROWD, tls: false, target: contender.kind.name() };
            report.add(cell, "tps_alone", alone.tps);
            report.add(cell, "tps", beside.tps);
            report.add(cell, "p99_ms", beside.p99_ms);
        }
        field.check()?;
    }
    Ok(())
}

/// Behaviour of a client after its login.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    Leave,
    Query,
}

/// Lets `count` clients log in, [`AT_ONCE`] at a time; those that stay are returned.
pub(crate) async fn log_in(contender: &Contender, shard: &Shard, count: u32, then: Then) -> Result<Vec<Connection>> {
    let secret = match contender.kind {
        Kind::Pgpool => manatee_proxy::auth::Secret::Password(shard.lab.password.clone().into()),
        _ => shard.secret.clone(),
    };
    let dialer = Dialer::new(contender.address.at, secret);
    let (mut running, mut stayed) = (JoinSet::new(), Vec::new());
    for number in 0..count {
        if running.len() >= AT_ONCE
            && let Some(done) = running.join_next().await
        {
            stayed.extend(done??);
        }
        let dialer = dialer.clone();
        running.spawn(async move {
            let mut client = dialer.connect().await.with_context(|| format!("client {number}"))?;
            if then == Then::Leave {
                client.leave().await?;
                return anyhow::Ok(None);
            }
            client.query("select 1").await?;
            Ok(Some(client))
        });
    }
    while let Some(done) = running.join_next().await {
        stayed.extend(done??);
    }
    ensure!(then == Then::Leave || stayed.len() == count as usize, "some clients are missing");
    Ok(stayed)
}
