//! Growth of manatee-proxy's CPU per query and memory with what there is more of: nothing may grow
//! faster than it does.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::{BufMut, BytesMut};
use manatee_proxy::wire::{frontend, put_message};

use crate::client::Dialer;
use crate::contender::{Contender, Kind, Programs};
use crate::cpu;
use crate::measure::crowd::{Then, log_in};
use crate::pgbench::{Load, Workload};
use crate::report::{Of, Report};
use crate::shard::Shard;

const CLIENTS: [u32; 5] = [0, 10, 100, 1000, 10_000];
const POOL_SIZES: [u32; 4] = [1, 4, 16, 60];
const STATEMENTS: [u32; 5] = [1, 10, 100, 1000, 10_000];
/// Shards, all but one of which are copies of the state of that one: the same servers under other names.
const SHARDS: [u32; 4] = [1, 10, 30, 100];
/// Nodes of each.
const NODES: usize = 3;
/// Those that work while the others are idle.
const BUSY: Load = Load { workload: Workload::Simple, clients: 16, tls: false };
/// Executions that are measured.
const EXECUTIONS: u32 = 20_000;

/// Runs everything.
///
/// # Errors
/// When a proxy or a client fails.
pub async fn run(shard: &Shard, programs: &Programs, report: &mut Report, seconds: u32) -> Result<()> {
    for count in CLIENTS {
        eprintln!("{count} idle clients");
        let (contender, pid) = start(shard, programs).await?;
        let cell = Of { workload: "growth: idle clients", clients: count, tls: false, target: Kind::Manatee.name() };
        drop(log_in(&contender, shard, 32, Then::Query).await?);
        let idle = log_in(&contender, shard, count, Then::Query).await?;
        report.add(cell, "memory_kB", cpu::memory_bytes(pid)? as f64 / 1024.0);
        let round = shard.pgbench.run(contender.address, BUSY, seconds).await?;
        drop(idle);
        report.add(cell, "cpu_us", round.cpu_us.unwrap_or_default());
        report.add(cell, "tps", round.tps);
    }
    for size in POOL_SIZES {
        eprintln!("a pool of {size}");
        let programs = Programs { pool_size: size, ..programs.clone() };
        let (contender, pid) = start(shard, &programs).await?;
        let cell = Of { workload: "growth: pool size", clients: size, tls: false, target: Kind::Manatee.name() };
        let round = shard.pgbench.run(contender.address, BUSY, seconds).await?;
        report.add(cell, "memory_kB", cpu::memory_bytes(pid)? as f64 / 1024.0);
        report.add(cell, "cpu_us", round.cpu_us.unwrap_or_default());
        report.add(cell, "tps", round.tps);
    }
    for count in STATEMENTS {
        eprintln!("{count} prepared statements");
        let (contender, pid) = start(shard, programs).await?;
        let cell = Of { workload: "growth: statements", clients: count, tls: false, target: Kind::Manatee.name() };
        let (cpu_us, memory) = statements(shard, &contender, pid, count).await?;
        report.add(cell, "memory_kB", memory as f64 / 1024.0);
        report.add(cell, "cpu_us", cpu_us);
    }
    shards(shard, programs, report, seconds).await
}

/// Cost of a proxy that follows many shards, one of which is used.
async fn shards(shard: &Shard, programs: &Programs, report: &mut Report, seconds: u32) -> Result<()> {
    let programs = Programs { all_shards: true, ..programs.clone() };
    let mut there_are = 1;
    for count in SHARDS {
        eprintln!("{count} shards");
        for number in there_are..count {
            shard.lab.state.copy_to(&format!("growth{number}")).await?;
        }
        there_are = count;
        let (contender, pid) = start(shard, &programs).await?;
        let cell = Of { workload: "growth: shards", clients: count, tls: false, target: Kind::Manatee.name() };
        // It keeps a connection to each node of each shard.
        let wanted = NODES * count as usize;
        let deadline = Instant::now() + Duration::from_secs(60);
        while cpu::connections(pid, &shard.nodes)? < wanted {
            ensure!(Instant::now() < deadline, "the proxy does not follow {count} shards");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let before = cpu::nanoseconds(pid)?;
        let began = Instant::now();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let used_us = cpu::nanoseconds(pid)?.saturating_sub(before) as f64 / 1000.0;
        report.add(cell, "idle_cpu_us_per_s", used_us / began.elapsed().as_secs_f64());
        report.add(cell, "memory_kB", cpu::memory_bytes(pid)? as f64 / 1024.0);
        let round = shard.pgbench.run(contender.address, BUSY, seconds).await?;
        report.add(cell, "cpu_us", round.cpu_us.unwrap_or_default());
        report.add(cell, "tps", round.tps);
    }
    Ok(())
}

async fn start(shard: &Shard, programs: &Programs) -> Result<(Contender, u32)> {
    let contender = Contender::start(Kind::Manatee, shard, programs).await?;
    let pid = contender.address.pid.context("a proxy is a process")?;
    Ok((contender, pid))
}

/// CPU of the proxy, µs, per execution of one of `count` prepared statements in turn, and its memory
/// afterwards.
async fn statements(shard: &Shard, contender: &Contender, pid: u32, count: u32) -> Result<(f64, u64)> {
    let mut client = Dialer::new(contender.address.at, shard.secret.clone()).connect().await?;
    let mut out = BytesMut::new();
    for number in 0..count {
        out.clear();
        let text = format!("select {number} + $1::int");
        frontend::put_parse(&mut out, name(number).as_bytes(), text.as_bytes(), &[0, 0]);
        frontend::put_empty(&mut out, frontend::SYNC);
        client.talk(&out).await?;
    }
    // Servers prepare what they have not had; from then on it is the steady path, as far as they keep it.
    for number in 0..count {
        client.talk(&execution(&mut out, number)).await?;
    }
    let before = cpu::nanoseconds(pid)?;
    for number in 0..EXECUTIONS {
        client.talk(&execution(&mut out, number % count)).await?;
    }
    let used = cpu::nanoseconds(pid)?.saturating_sub(before);
    Ok((used as f64 / 1000.0 / f64::from(EXECUTIONS), cpu::memory_bytes(pid)?))
}

fn name(number: u32) -> String {
    format!("growth_{number}")
}

fn execution(out: &mut BytesMut, number: u32) -> BytesMut {
    out.clear();
    frontend::put_bind(out, b"", name(number).as_bytes(), &[0, 0, 0, 1, 0, 0, 0, 1, b'1', 0, 0]);
    put_message(out, frontend::EXECUTE, |out| out.put_slice(&[0; 5]));
    frontend::put_empty(out, frontend::SYNC);
    out.split()
}
