//! One round of pgbench, and what it said.

use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::cpu;
use crate::target::Target;

/// Query mode, pgbench's `-M`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// One Query message.
    Simple,
    /// Parse, Bind, Execute each time.
    Extended,
    /// Parse once, then Bind and Execute.
    Prepared,
}

impl Mode {
    /// pgbench's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Simple => "simple",
            Self::Extended => "extended",
            Self::Prepared => "prepared",
        }
    }
}

/// The load.
#[derive(Clone, Debug)]
pub struct Load {
    /// Query mode.
    pub mode: Mode,
    /// Concurrent clients.
    pub clients: u32,
    /// Length of a round.
    pub seconds: u32,
    /// pgbench's script option: `-S` or `-N`.
    pub script: &'static str,
    /// Database.
    pub database: String,
    /// Role; its password comes from `PGPASSWORD` or `~/.pgpass`, as for any libpq program.
    pub user: String,
}

/// Figures of one round.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Round {
    /// Transactions per second.
    pub tps: f64,
    /// CPU of the target's process per transaction, µs.
    pub cpu_us: Option<f64>,
    /// Transactions done.
    pub transactions: u64,
}

/// Runs `load` once against `target`. Any failed transaction or aborted client is an error.
pub fn run(pgbench: &str, target: &Target, load: &Load) -> Result<Round> {
    let before = target.pid.map(cpu::seconds_used).transpose()?;
    let output = Command::new(pgbench)
        .args(["-n", load.script, "-M", load.mode.name()])
        .args(["-c", &load.clients.to_string(), "-j", "1", "-T", &load.seconds.to_string()])
        .args(["-h", &target.host, "-p", &target.port.to_string(), "-U", &load.user, &load.database])
        .output()
        .with_context(|| format!("running {pgbench}: name it with --pgbench"))?;
    let after = target.pid.map(cpu::seconds_used).transpose()?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("pgbench against {} failed: {}", target.name, String::from_utf8_lossy(&output.stderr).trim());
    }
    let figures = parse(&text).with_context(|| format!("pgbench against {} said: {text}", target.name))?;
    let cpu_us = before.zip(after).map(|(before, after)| (after - before) * 1e6 / figures.1.max(1) as f64);
    Ok(Round { tps: figures.0, cpu_us, transactions: figures.1 })
}

/// `(tps, transactions)` from pgbench's report; None when it is not there or transactions failed.
fn parse(text: &str) -> Option<(f64, u64)> {
    let after = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
    let first_number = |text: &str| text.split([' ', '/']).find(|word| !word.is_empty()).map(str::to_owned);
    if let Some(failed) = after("number of failed transactions: ").and_then(first_number)
        && failed != "0"
    {
        return None;
    }
    let tps = after("tps = ").and_then(first_number)?.parse().ok()?;
    let transactions = after("number of transactions actually processed: ").and_then(first_number)?.parse().ok()?;
    Some((tps, transactions))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "transaction type: <builtin: select only>\nnumber of transactions actually processed: 5021\n\
        number of failed transactions: 0 (0.000%)\nlatency average = 0.398 ms\ntps = 2511.5 (without initial connection time)\n";

    #[test]
    fn reports_are_read_and_failures_are_not_hidden() {
        assert_eq!(parse(REPORT), Some((2511.5, 5021)));
        assert_eq!(parse(&REPORT.replace("failed transactions: 0", "failed transactions: 3")), None);
        assert_eq!(parse("pgbench: error"), None);
    }
}
