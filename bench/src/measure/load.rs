//! pgbench through everybody: throughput, CPU of the proxy, latencies.

use anyhow::Result;

use super::{Field, of};
use crate::contender::Kind;
use crate::pgbench::Load;
use crate::report::{Of, Report};

/// Runs each of `loads` for `seconds` through everybody it `is_for`, `rounds` times.
pub async fn run(
    field: &mut Field,
    report: &mut Report,
    loads: &[Load],
    is_for: impl Fn(Kind, Load) -> bool,
    seconds: u32,
    rounds: u32,
) -> Result<()> {
    for round in 1..=rounds {
        for &load in loads {
            eprintln!("round {round}: {} with {} clients{}", load.workload.name(), load.clients, tls(load));
            for contender in field.contenders.iter().filter(|contender| is_for(contender.kind, load)) {
                let figures = field.shard.pgbench.run(contender.address_for(load), load, seconds).await;
                let figures = of(contender.kind, load.workload.name(), figures)?;
                let cell = Of {
                    workload: load.workload.name(),
                    clients: load.clients,
                    tls: load.tls,
                    target: contender.kind.name(),
                };
                report.add(cell, "tps", figures.tps);
                if let Some(cpu_us) = figures.cpu_us {
                    report.add(cell, "cpu_us", cpu_us);
                }
                report.add(cell, "p50_ms", figures.p50_ms);
                report.add(cell, "p99_ms", figures.p99_ms);
            }
            field.check()?;
        }
    }
    Ok(())
}

fn tls(load: Load) -> &'static str {
    if load.tls { ", TLS" } else { "" }
}
