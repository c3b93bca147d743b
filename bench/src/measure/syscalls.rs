//! System calls per query, counted by strace: they do not depend on how busy the machine is.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use super::{Field, of};
use crate::cpu;
use crate::pgbench::{Address, Load, Pgbench};
use crate::report::{Of, Report};

/// Transactions of each client while it is counted.
const TRANSACTIONS: u32 = 300;
/// Longest time for strace to begin or to end.
const LIMIT: Duration = Duration::from_secs(20);

/// Counts for each of `loads`, once: counts hardly vary.
pub async fn run(field: &mut Field, report: &mut Report, loads: &[Load]) -> Result<()> {
    for &load in loads {
        eprintln!("system calls: {} with {} clients", load.workload.name(), load.clients);
        for contender in field.contenders.iter().filter(|contender| contender.kind.takes(load)) {
            let address = contender.address_for(load);
            let Some(pid) = address.pid else { continue };
            let calls = count(&field.shard.pgbench, address, pid, load).await;
            let calls = of(contender.kind, "system calls", calls)?;
            let cell = Of {
                workload: load.workload.name(),
                clients: load.clients,
                tls: load.tls,
                target: contender.kind.name(),
            };
            report.add(cell, "syscalls", calls);
        }
        field.check()?;
    }
    Ok(())
}

/// Calls per transaction, logins included: with [`TRANSACTIONS`] of them a login weighs little.
async fn count(pgbench: &Pgbench, address: Address, pid: u32, load: Load) -> Result<f64> {
    let mut strace = Command::new("strace");
    strace.args(["-c", "-f"]).args(cpu::family(pid)?.iter().flat_map(|pid| ["-p".to_owned(), pid.to_string()]));
    strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut strace = strace.spawn().context("running strace")?;
    let mut lines = BufReader::new(strace.stderr.take().context("strace's output")?).lines();
    // "strace: Process 123 attached with 4 threads"
    let attached = tokio::time::timeout(LIMIT, lines.next_line()).await.context("strace does not begin")??;
    let attached = attached.unwrap_or_default();
    anyhow::ensure!(attached.contains("attached"), "{attached}");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut command = pgbench.command("pgbench", address.at);
    command.arg("-n").args(load.workload.options());
    command.args(["-c", &load.clients.to_string(), "-t", &TRANSACTIONS.to_string(), &pgbench.user]);
    let output = command.output().await?;
    anyhow::ensure!(output.status.success(), "pgbench: {}", String::from_utf8_lossy(&output.stderr));
    let pid = strace.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)).context("strace is gone")?;
    kill_process(pid, Signal::INT)?;
    let mut total = None;
    let read = async {
        while let Some(line) = lines.next_line().await? {
            total = total.or(total_calls(&line));
        }
        strace.wait().await
    };
    tokio::time::timeout(LIMIT, read).await.context("strace does not end")??;
    let total = total.context("strace counted nothing")?;
    Ok(total / f64::from(load.clients * TRANSACTIONS))
}

/// `100.00    0.123456           1    123456       789 total`: seconds, µs per call, calls, errors.
fn total_calls(line: &str) -> Option<f64> {
    line.trim_end().strip_suffix("total")?.split_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_total_is_found() {
        assert_eq!(super::total_calls("100.00    0.000000           0        29         1 total"), Some(29.0));
        assert_eq!(super::total_calls("100.00    0.000000           0        29           total"), Some(29.0));
        assert_eq!(super::total_calls("  0.00    0.000000           0         1           rseq"), None);
    }
}
