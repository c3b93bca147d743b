//! One round of pgbench, and what it said.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::{cpu, quantile};

/// Workloads of pgbench.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Workload {
    /// `pgbench -S`, one Query message.
    Simple,
    /// `pgbench -S`; Parse, Bind, Execute each time.
    Extended,
    /// `pgbench -S`; Parse once, then Bind and Execute.
    Prepared,
    /// `pgbench -N`: an update, a select, an update and an insert in one transaction, simple protocol.
    Writes,
}

impl Workload {
    /// pgbench's options for it.
    pub(crate) fn options(self) -> [&'static str; 3] {
        match self {
            Self::Simple => ["-S", "-M", "simple"],
            Self::Extended => ["-S", "-M", "extended"],
            Self::Prepared => ["-S", "-M", "prepared"],
            Self::Writes => ["-N", "-M", "simple"],
        }
    }

    /// Name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Simple => "simple",
            Self::Extended => "extended",
            Self::Prepared => "prepared",
            Self::Writes => "writes",
        }
    }
}

/// The load of one round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Load {
    /// Workload to run.
    pub workload: Workload,
    /// Concurrent clients.
    pub clients: u32,
    /// Clients use TLS.
    pub tls: bool,
}

/// Command line of pgbench.
#[derive(Clone, Debug)]
pub struct Pgbench {
    /// Folder of PostgreSQL's programs.
    pub programs: PathBuf,
    /// Role and database.
    pub user: String,
    /// Its password.
    pub password: String,
    /// For logs of latencies; removed after each round.
    pub scratch: PathBuf,
}

/// All of a round that does not count, logins above all, may take this many seconds.
const LOGIN_LIMIT_S: u32 = 90;

/// Target of a round.
#[derive(Clone, Copy, Debug)]
pub struct Address {
    /// Address it listens at.
    pub at: SocketAddr,
    /// Process that is charged for it, with its descendants.
    pub pid: Option<u32>,
}

/// Figures of one round.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Round {
    /// Transactions per second.
    pub tps: f64,
    /// CPU of the proxy per transaction, µs.
    pub cpu_us: Option<f64>,
    /// Latency of transactions, median.
    pub p50_ms: f64,
    /// Latency of transactions: 99 of 100 are below.
    pub p99_ms: f64,
}

/// A moment at which pgbench reported its progress.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Progress {
    at_s: f64,
    /// Since the report before.
    tps: f64,
}

impl Pgbench {
    /// One of PostgreSQL's programs, to connect to `at`; output piped.
    pub fn command(&self, program: &str, at: SocketAddr) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command
            .args(["-h", &at.ip().to_string(), "-p", &at.port().to_string(), "-U", &self.user])
            .env("PGPASSWORD", &self.password)
            .env("PGSSLMODE", "disable")
            .env("PGCONNECT_TIMEOUT", "30")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Runs `load`, once all its clients have logged in, for a second or two to warm up and at least `seconds` that
    /// count. Any failed transaction or aborted client is an error.
    pub async fn run(&self, address: Address, load: Load, seconds: u32) -> Result<Round> {
        let prefix = self.scratch.join("latencies");
        let mut command = self.command("pgbench", address.at);
        if load.tls {
            command.env("PGSSLMODE", "require");
        }
        command
            .args(["-n", "-P", "1", "-l"])
            .arg(format!("--log-prefix={}", prefix.display()))
            .args(load.workload.options())
            // It is told to end: its time begins before its clients have logged in, which takes a thousand of them seconds.
            .args(["-c", &load.clients.to_string(), "-T", &(seconds + LOGIN_LIMIT_S).to_string()])
            .arg(&self.user);
        let mut child = command.spawn().context("running pgbench")?;
        let pid = child.id().unwrap_or_default();
        let stderr = child.stderr.take().context("pgbench's output")?;
        let mut lines = BufReader::new(stderr).lines();
        let (mut reports, mut noise) = (Vec::new(), Vec::new());
        while let Some(line) = lines.next_line().await? {
            match progress(&line) {
                Some(progress) => {
                    reports.push((progress, address.pid.map(cpu::nanoseconds).transpose()?));
                    if measured_s(&reports) >= f64::from(seconds) {
                        end(pid)?;
                    }
                }
                None => noise.push(line),
            }
        }
        let output = child.wait_with_output().await?;
        let log = prefix.with_extension(pid.to_string());
        let latencies = std::fs::read_to_string(&log);
        let _ = std::fs::remove_file(&log);
        ensure!(output.status.success(), "pgbench failed: {}", noise.join("; "));
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(!has_failures(&text), "transactions failed: {text}");
        let latencies = latencies.with_context(|| format!("pgbench's log {}", log.display()))?;
        figures(&reports, &latencies).with_context(|| format!("pgbench said too little: {text} {noise:?}"))
    }
}

/// Lets pgbench end as it does when its time is over, which the same signal tells it.
fn end(pid: u32) -> Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("pgbench has no process id")?;
    match kill_process(pid, Signal::ALARM) {
        // It had ended.
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(error).context("ending pgbench"),
    }
}

/// A report, and the proxy's CPU until then.
type Report = (Progress, Option<u64>);

/// The reports between which is measured. While clients log in nothing is done; the first report of something done may
/// tell of a part of a second only, so that the warm-up ends with the next one.
fn after_warm_up(reports: &[Report]) -> &[Report] {
    let begun = reports.iter().position(|(report, _)| report.tps > 0.0);
    begun.and_then(|begun| reports.get(begun + 1..)).unwrap_or_default()
}

/// Seconds measured so far; reports come a little early or late.
fn measured_s(reports: &[Report]) -> f64 {
    const JITTER_S: f64 = 0.1;
    let counted = after_warm_up(reports);
    let (Some((first, _)), Some((last, _))) = (counted.first(), counted.last()) else { return 0.0 };
    last.at_s - first.at_s + JITTER_S
}

/// From the end of the warm-up to the last report.
fn figures(reports: &[Report], latencies: &str) -> Option<Round> {
    let reports = after_warm_up(reports);
    let ((first, first_cpu), (last, last_cpu)) = (reports.first()?, reports.last()?);
    let seconds = last.at_s - first.at_s;
    let done: f64 = reports.windows(2).map(|pair| pair[1].0.tps * (pair[1].0.at_s - pair[0].0.at_s)).sum();
    if seconds <= 0.0 || done < 1.0 {
        return None;
    }
    // client_id transaction_no time script_no time_epoch time_us (manual, pgbench).
    let mut all = Vec::new();
    for line in latencies.lines() {
        let fields: Vec<f64> = line.split(' ').filter_map(|field| field.parse().ok()).collect();
        let &[_, _, latency_us, _, epoch_s, epoch_us, ..] = fields.as_slice() else { continue };
        all.push((epoch_s + epoch_us / 1e6, latency_us));
    }
    let begin = all.iter().map(|(at, _)| *at).reduce(f64::min)? + 1.0;
    let counted = || all.iter().filter(|(at, _)| *at >= begin).map(|(_, latency_us)| latency_us / 1000.0);
    let cpu_us = first_cpu.zip(*last_cpu).map(|(first, last)| last.saturating_sub(first) as f64 / 1000.0 / done);
    Some(Round { tps: done / seconds, cpu_us, p50_ms: quantile(counted(), 0.5)?, p99_ms: quantile(counted(), 0.99)? })
}

/// `progress: 1.0 s, 2345.6 tps, lat 6.8 ms stddev 1.2, 0 failed`
fn progress(line: &str) -> Option<Progress> {
    let (at, rest) = line.strip_prefix("progress: ")?.split_once(" s, ")?;
    let (tps, _) = rest.split_once(" tps")?;
    Some(Progress { at_s: at.parse().ok()?, tps: tps.parse().ok()? })
}

fn has_failures(report: &str) -> bool {
    report
        .lines()
        .filter_map(|line| line.strip_prefix("number of failed transactions: "))
        .any(|rest| !rest.starts_with("0 "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_second_does_not_count() {
        let report = |line: &str, cpu| (progress(line).unwrap(), Some(cpu));
        let reports = [
            report("progress: 1.0 s, 0.0 tps, lat 0.0 ms stddev 0.0, 0 failed", 0),
            report("progress: 1.2 s, 50.0 tps, lat 1.0 ms stddev 0.1, 0 failed", 500_000),
            report("progress: 2.0 s, 100.0 tps, lat 1.0 ms stddev 0.1, 0 failed", 1_000_000),
            report("progress: 3.0 s, 2000.0 tps, lat 1.0 ms stddev 0.1, 0 failed", 11_000_000),
            report("progress: 4.0 s, 1000.0 tps, lat 1.0 ms stddev 0.1, 0 failed", 31_000_000),
        ];
        let log = "0 1 9000 0 1700000000 0\n0 2 1000 0 1700000001 0\n0 3 3000 0 1700000002 500\n";
        let round = figures(&reports, log).unwrap();
        assert_eq!((round.tps, round.cpu_us), (1500.0, Some(10.0)));
        assert_eq!((round.p50_ms, round.p99_ms), (1.0, 1.0));
        assert_eq!(figures(&reports[..3], log), None);
    }

    #[test]
    fn failures_are_not_hidden() {
        assert!(!has_failures("number of failed transactions: 0 (0.000%)\ntps = 1"));
        assert!(has_failures("number of failed transactions: 3 (0.100%)\ntps = 1"));
        assert_eq!(progress("pgbench: error: client 0 aborted"), None);
    }
}
