//! `manatee-lab fault N`: a row of the list of faults, round after round.

use anyhow::{Result, bail};
use manatee_shared::cluster::Role;
use serde::Serialize;

use crate::lab::Lab;
use crate::oracle::Oracle;
use crate::oracle::ledger::Figures;
use crate::scenario::{Fault, round};

/// What is printed in the end.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Row of the list.
    pub row: u32,
    /// Rounds run.
    pub rounds: u32,
    /// Acknowledged rows missing.
    pub lost: u64,
    /// Rows present of which the client was told that they were not written.
    pub ghosts: u64,
    /// The clients' figures: gaps are the longest of any round, counts are sums.
    #[serde(flatten)]
    pub figures: Figures,
    /// Gap of each round.
    pub write_gaps_s: Vec<f64>,
    /// The same of reads.
    pub read_gaps_s: Vec<f64>,
    /// From the fault to the new state, each round.
    pub change_s: Vec<f64>,
    /// From the host's return to a whole shard, each round.
    pub rejoin_s: Vec<f64>,
    /// What did not hold.
    pub failures: Vec<String>,
}

/// The fault of `row` in round `number` (from 0).
pub fn fault(row: u32, number: u32) -> Result<Fault> {
    Ok(match row {
        1 => Fault::KillPostmaster,
        2 => Fault::KillSitter([Role::Primary, Role::Sync, Role::Async(0)][number as usize % 3]),
        3 => Fault::KillPrimary,
        7 => Fault::PowerOffPrimary,
        10 => Fault::IsolatePrimary,
        11 => Fault::IsolateSync,
        row if (1..=50).contains(&row) => bail!("row {row} is not built yet; built are 1, 2, 3, 7, 10, 11"),
        _ => bail!("the list of faults has rows 1 to 50; built are 1, 2, 3, 7, 10, 11"),
    })
}

/// Runs `rounds` rounds of `row`. Stops early when a round cannot be finished.
pub async fn run(lab: &mut Lab, row: u32, rounds: u32) -> Result<Report> {
    fault(row, 0)?;
    let mut report = Report { row, ..Report::default() };
    let oracle = Oracle::start(lab).await?;
    for number in 0..rounds {
        let shown = match round(lab, &oracle, fault(row, number)?).await {
            Ok(shown) => shown,
            Err(error) => {
                report.figures.merge(&oracle.figures());
                report.failures.push(format!("round {}: {error:#}", number + 1));
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
        report.failures.extend(shown.failures.iter().map(|failure| format!("round {}: {failure}", number + 1)));
    }
    oracle.stop().await;
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_are_not_built_say_so() {
        let text = |row| fault(row, 0).map(drop).map_err(|error| error.to_string());
        assert!(text(4).is_err_and(|error| error.contains("not built yet")));
        assert!(text(51).is_err_and(|error| error.contains("1 to 50")));
        assert_eq!(text(11), Ok(()));
    }
}
