//! `manatee-lab smoke`: the main job, unattended.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::fault::{KILL_PRIMARY, STOP_PRIMARY};
use crate::lab::Lab;
use crate::oracle::Oracle;
use crate::oracle::ledger::{Figures, seconds};
use crate::pgbench;
use crate::scenario::{Play, Round, round};

/// Report that is printed in the end.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Everything held.
    pub ok: bool,
    /// From nothing to a write through the proxy.
    pub writable_s: f64,
    /// Longest time without a write when everything on the primary's host was killed.
    pub write_gap_s: f64,
    /// Longest time without a write when the primary's sitter was stopped.
    pub planned_gap_s: f64,
    /// From the start of the killed host's sitter until it was an async and streamed.
    pub rejoin_s: f64,
    /// The same after the planned stop.
    pub planned_rejoin_s: f64,
    /// Acknowledged rows missing.
    pub lost: u64,
    /// Rows present of which the client was told that they were not written.
    pub ghosts: u64,
    /// The clients' figures: gaps are the longest of any round, counts are sums.
    pub clients: Figures,
    /// pgbench's transactions per second.
    pub pgbench: BTreeMap<String, f64>,
    /// Expectations that did not hold.
    pub failures: Vec<String>,
}

/// Runs everything on a shard that took `writable` to come up.
pub async fn run(lab: &mut Lab, writable: Duration) -> Report {
    let mut report = Report { writable_s: seconds(writable), ..Report::default() };
    if let Err(error) = steps(lab, &mut report).await {
        report.failures.push(format!("{error:#}"));
    }
    report.ok = report.failures.is_empty();
    report
}

async fn steps(lab: &mut Lab, report: &mut Report) -> Result<()> {
    lab.whole(Duration::from_secs(60)).await?;
    match pgbench::check(lab, 3).await {
        Ok(tps) => report.pgbench = tps,
        Err(error) => report.failures.push(format!("{error:#}")),
    }
    let oracle = Oracle::start(lab).await?;
    let killed = observed(lab, &oracle, &KILL_PRIMARY, report).await?;
    (report.write_gap_s, report.rejoin_s) = (killed.figures.write_gap_s, killed.rejoin_s);
    let stopped = observed(lab, &oracle, &STOP_PRIMARY, report).await?;
    (report.planned_gap_s, report.planned_rejoin_s) = (stopped.figures.write_gap_s, stopped.rejoin_s);
    oracle.stop().await;
    Ok(())
}

async fn observed(lab: &mut Lab, oracle: &Oracle, play: &Play, report: &mut Report) -> Result<Round> {
    let shown = round(lab, oracle, play, 0).await;
    if shown.is_err() {
        report.clients.merge(&oracle.figures());
    }
    let shown = shown?;
    report.clients.merge(&shown.figures);
    report.lost = report.lost.max(shown.lost);
    report.ghosts = report.ghosts.max(shown.ghosts);
    report.failures.extend(shown.failures.iter().map(|failure| format!("{}: {failure}", play.name)));
    Ok(shown)
}
