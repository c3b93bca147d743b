//! pgbench through the proxy.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use manatee_shared::cluster::Role;
use tokio::process::Command;

use crate::binaries;
use crate::lab::{APP, Lab};

/// Clients at a time.
const CLIENTS: &str = "16";
/// Longest run.
const LIMIT: Duration = Duration::from_secs(90);
/// Share of the reads that each standby must have served at least.
const SHARE: f64 = 0.1;

/// Initialises, reads in each of the three protocols, writes. Returns transactions per second by
/// run. An error if any run had one, or the reads did not spread over the standbys.
pub async fn check(lab: &Lab, seconds: u32) -> Result<BTreeMap<String, f64>> {
    pgbench(lab, &["-i", "-q", "-s", "1"]).await?;
    let mut tps = BTreeMap::new();
    let seconds = seconds.to_string();
    let before = transactions(lab).await?;
    let mut reads = 0.0;
    for mode in ["simple", "extended", "prepared"] {
        let output = pgbench(lab, &["-n", "-S", "-M", mode, "-c", CLIENTS, "-j", "2", "-T", &seconds]).await?;
        reads += number(&output, "number of transactions actually processed:")?;
        tps.insert(format!("select_{mode}_tps"), number(&output, "tps =")?);
    }
    spread(lab, &before, reads).await?;
    let output = pgbench(lab, &["-n", "-N", "-c", CLIENTS, "-j", "2", "-T", &seconds]).await?;
    tps.insert("write_simple_tps".to_owned(), number(&output, "tps =")?);
    Ok(tps)
}

async fn pgbench(lab: &Lab, args: &[&str]) -> Result<String> {
    let run = Command::new(binaries::postgres_folder()?.join("pgbench"))
        .args(args)
        .args(["-h", "127.0.0.1", "-p", &lab.proxies[0].port.to_string(), "-U", APP, APP])
        .env("PGPASSWORD", &lab.password)
        .env("PGCONNECT_TIMEOUT", "10")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let what = || format!("pgbench {}", args.join(" "));
    let output = tokio::time::timeout(LIMIT, run).await.with_context(what)?.with_context(what)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}: {}", what(), output.status, errors.trim());
    if let Ok(failed) = number(&text, "number of failed transactions:") {
        ensure!(failed == 0.0, "{}: {failed} failed transactions", what());
    }
    Ok(text)
}

/// The number that follows `label` in pgbench's output.
fn number(output: &str, label: &str) -> Result<f64> {
    let rest = output.split_once(label).with_context(|| format!("pgbench did not print `{label}`"))?.1.trim_start();
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    rest[..end].parse().with_context(|| format!("pgbench printed `{label} {rest}`"))
}

/// Committed transactions in the demo database, by host.
async fn transactions(lab: &Lab) -> Result<Vec<i64>> {
    let mut counts = Vec::new();
    for host in &lab.hosts {
        let client = host.superuser("postgres").await?;
        let sql = "select xact_commit from pg_stat_database where datname = $1";
        counts.push(client.query_one(sql, &[&APP]).await?.get(0));
    }
    Ok(counts)
}

/// Waits until the statistics, which come in with a delay, show that each standby had its share.
async fn spread(lab: &Lab, before: &[i64], reads: f64) -> Result<()> {
    let state = lab.current().await?;
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let now = transactions(lab).await?;
        let served: Vec<i64> = now.iter().zip(before).map(|(now, before)| now - before).collect();
        let standbys = lab.hosts.iter().zip(&served).filter(|(host, _)| state.role_of(host.id) != Role::Primary);
        #[expect(clippy::cast_precision_loss, reason = "counts of a few seconds")]
        let fair = standbys.into_iter().all(|(_, &count)| count as f64 >= SHARE * reads);
        if fair {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{reads} reads were not spread over the standbys: {served:?} by host");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers_are_found_in_the_output() {
        let output = "number of transactions actually processed: 1234\nnumber of failed transactions: 0 (0.000%)\ntps = 411.5 (x)";
        assert_eq!(super::number(output, "tps =").ok(), Some(411.5));
        assert_eq!(super::number(output, "actually processed:").ok(), Some(1234.0));
        assert!(super::number(output, "latency").is_err());
    }
}
