//! `manatee-lab fault N`: rows of the list of faults, round after round.
//!
//! A [`Row`] names its plays; round n plays the n-th of them, over and over. Rows live by family
//! in the modules below; a new one is a play, a line in its family's `ROWS`, and nothing else.

mod chain;
mod changes;
mod disks;
mod network;
mod older;
mod operators;
mod owned;
mod processes;
mod proxies;
mod steps;
mod storage;
mod upkeep;
mod versions;
mod zookeeper;

use anyhow::{Result, bail, ensure};
use serde::Serialize;

use crate::lab::{Lab, Options};
use crate::oracle::Oracle;
use crate::oracle::ledger::Figures;
use crate::scenario::{Play, round};

pub use changes::PROMOTION;
pub use network::ISOLATE_PRIMARY;
pub use processes::{KILL_PRIMARY, KILL_SITTER, STOP_PRIMARY};
pub use storage::{LOST_WAL, restore};

/// Number of the last row of the list of faults.
const LAST: u32 = 63;

/// The families.
const FAMILIES: &[&[Row]] = &[
    processes::ROWS,
    network::ROWS,
    zookeeper::ROWS,
    chain::ROWS,
    older::ROWS,
    disks::ROWS,
    operators::ROWS,
    owned::ROWS,
    changes::ROWS,
    steps::ROWS,
    storage::ROWS,
    proxies::ROWS,
    versions::ROWS,
    upkeep::ROWS,
];

/// A row of the list of faults.
pub struct Row {
    /// Its number.
    pub number: u32,
    /// Fault of the row.
    pub fault: &'static str,
    /// Needs that the lab must meet for it.
    pub needs: Needs,
    /// Longest time without a write that the list of faults allows, if it names one; judged with
    /// `--strict`.
    pub write_gap_s: Option<f64>,
    /// Its variants.
    pub plays: &'static [Play],
}

/// Needs that a lab must meet.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// Hosts with network namespaces of their own.
    pub namespaces: bool,
    /// At least as many ZooKeeper servers.
    pub zookeepers: u8,
    /// At least as many database hosts.
    pub peers: u8,
    /// At least as many proxies.
    pub proxies: u8,
    /// Hosts with file systems of their own.
    pub disks: bool,
    /// Hosts with clocks of their own.
    pub clocks: bool,
    /// Settings of PostgreSQL.
    pub parameters: &'static [(&'static str, &'static str)],
}

impl Needs {
    /// Three hosts.
    pub const HOSTS: Self =
        Self { namespaces: false, zookeepers: 1, peers: 3, proxies: 1, disks: false, clocks: false, parameters: &[] };
    /// Hosts that can be cut off.
    pub const NETWORK: Self = Self { namespaces: true, ..Self::HOSTS };

    /// The options of a lab that has all this.
    pub fn extend(self, options: &Options) -> Result<Options> {
        let mut options = options.clone();
        if self.namespaces {
            ensure!(
                options.netns.resolve()?,
                "this row cuts hosts off, which needs network namespaces: run it as root"
            );
        }
        options.zookeepers = options.zookeepers.max(self.zookeepers);
        options.peers = options.peers.max(self.peers);
        options.proxies = options.proxies.max(self.proxies);
        options.disks |= self.disks;
        options.clocks |= self.clocks;
        let parameters = self.parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        options.parameters.extend(parameters);
        Ok(options)
    }
}

/// The row with this number.
pub fn row(number: u32) -> Result<&'static Row> {
    if let Some(row) = rows().find(|row| row.number == number) {
        return Ok(row);
    }
    let built: Vec<String> = rows().map(|row| row.number.to_string()).collect();
    let built = built.join(", ");
    match number {
        1..=LAST => bail!("row {number} is not built yet; built are {built}"),
        _ => bail!("the list of faults has rows 1 to {LAST}; built are {built}"),
    }
}

/// All rows that are built, by number.
pub fn rows() -> impl Iterator<Item = &'static Row> {
    let mut rows: Vec<&Row> = FAMILIES.iter().copied().flatten().collect();
    rows.sort_by_key(|row| row.number);
    rows.into_iter()
}

/// Report that is printed in the end.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Row of the list.
    pub row: u32,
    /// Fault of the row.
    pub fault: &'static str,
    /// Rounds run.
    pub rounds: u32,
    /// Acknowledged rows missing.
    pub lost: u64,
    /// Rows present of which the client was told that they were not written.
    pub ghosts: u64,
    /// The clients' figures: gaps are the longest of any round, counts are sums.
    #[serde(flatten)]
    pub figures: Figures,
    /// Plays of each round.
    pub plays: Vec<&'static str>,
    /// Gap of each round.
    pub write_gaps_s: Vec<f64>,
    /// The same of reads.
    pub read_gaps_s: Vec<f64>,
    /// From the fault to the new state, each round.
    pub change_s: Vec<f64>,
    /// From the host's return to a whole shard, each round.
    pub rejoin_s: Vec<f64>,
    /// Expectations that did not hold.
    pub failures: Vec<String>,
}

/// Runs `rounds` rounds of `row`. Stops early when a round cannot be finished. `strict` judges the
/// times as well.
pub async fn run(lab: &mut Lab, row: &Row, rounds: u32, strict: bool) -> Result<Report> {
    let mut report = Report { row: row.number, fault: row.fault, ..Report::default() };
    let oracle = Oracle::start(lab).await?;
    for (number, play) in (0..rounds).zip(row.plays.iter().cycle()) {
        tracing::info!("row {}, round {}: {}", row.number, number + 1, play.name);
        report.plays.push(play.name);
        let shown = match round(lab, &oracle, play, number).await {
            Ok(shown) => shown,
            Err(error) => {
                report.figures.merge(&oracle.figures());
                report.failures.push(format!("round {} ({}): {error:#}", number + 1, play.name));
                break;
            }
        };
        report.rounds += 1;
        report.lost = report.lost.max(shown.lost);
        report.ghosts = report.ghosts.max(shown.ghosts);
        report.write_gaps_s.push(shown.figures.write_gap_s);
        report.read_gaps_s.push(shown.figures.read_gap_s);
        report.change_s.push(shown.change_s);
        report.rejoin_s.push(shown.rejoin_s);
        report.figures.merge(&shown.figures);
        let too_long = row.write_gap_s.filter(|limit| strict && shown.figures.write_gap_s > *limit);
        let too_long =
            too_long.map(|limit| format!("no writes for {} s, more than {limit}", shown.figures.write_gap_s));
        let failures = shown.failures.into_iter().chain(too_long);
        report.failures.extend(failures.map(|failure| format!("round {} ({}): {failure}", number + 1, play.name)));
    }
    oracle.stop().await;
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_are_not_built_say_so() {
        let text = |number| row(number).map(|row| row.number).map_err(|error| error.to_string());
        assert!(text(LAST + 1).is_err_and(|error| error.contains("1 to 63")));
        assert_eq!(text(11), Ok(11));
    }

    #[test]
    fn every_row_is_there_once_and_has_a_play() {
        let numbers: Vec<u32> = rows().map(|row| row.number).collect();
        let mut once = numbers.clone();
        once.dedup();
        assert_eq!(numbers, once);
        assert!(rows().all(|row| !row.plays.is_empty() && (1..=LAST).contains(&row.number)));
    }
}
