//! Time without writes, and without reads, when a primary goes: Manatee with its own proxy, and
//! Patroni with HAProxy in front of it, on hosts of the same kind, in the same run, with clients that
//! are counted in the same way.

use anyhow::Result;
use manatee_tests::fault::{self, Row};
use manatee_tests::lab::{Lab, Options};
use manatee_tests::oracle::ledger::Figures;

use crate::quantile;
use crate::report::{Of, Report};

mod clients;
mod patroni;

/// Faults of the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// An operator promotes another in its stead.
    Planned,
    /// SIGKILL to its postmaster.
    Postmaster,
    /// SIGKILL to everything on its host.
    Host,
    /// Its host loses power: nobody says good-bye.
    PowerOff,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Planned, Self::Postmaster, Self::Host, Self::PowerOff];

    /// Name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Planned => "failover, planned",
            Self::Postmaster => "failover, postmaster killed",
            Self::Host => "failover, host killed",
            Self::PowerOff => "failover, power off",
        }
    }

    /// The row of the list of faults that it is. Of the planned promotions on it we want the one in which nothing else happens.
    fn row(self) -> Result<&'static Row> {
        const PLANNED: Row = Row {
            number: 0,
            fault: "planned promotion of the sync",
            needs: fault::Needs::HOSTS,
            write_gap_s: None,
            plays: &[fault::PROMOTION],
        };
        match self {
            Self::Planned => Ok(&PLANNED),
            Self::Postmaster => fault::row(1),
            Self::Host => fault::row(3),
            Self::PowerOff => fault::row(7),
        }
    }
}

/// Runs `rounds` of each of `faults` against Manatee, and `patroni_rounds` of each against Patroni.
///
/// # Errors
/// When a shard cannot be brought up, or is not whole again after a fault.
pub async fn run(
    options: &Options,
    report: &mut Report,
    faults: &[Fault],
    rounds: u32,
    patroni_rounds: u32,
) -> Result<()> {
    if rounds > 0 {
        for &fault in faults {
            eprintln!("manatee: {}, {rounds} rounds", fault.name());
            manatee(options, report, fault, rounds).await?;
        }
    }
    if patroni_rounds > 0 {
        let mut shard = patroni::Shard::up(options).await?;
        for &fault in faults {
            for round in 1..=patroni_rounds {
                eprintln!("patroni: {}, round {round}", fault.name());
                let figures = shard.round(fault).await?;
                add(report, fault, "patroni+haproxy", patroni_rounds, &figures);
            }
        }
    }
    summarise(report);
    Ok(())
}

async fn manatee(options: &Options, report: &mut Report, fault: Fault, rounds: u32) -> Result<()> {
    let row = fault.row()?;
    let (mut lab, _) = Lab::up(&row.needs.extend(options)?).await?;
    let shown = fault::run(&mut lab, row, rounds, false).await?;
    let cell = Of { workload: fault.name(), clients: rounds, tls: false, target: "manatee" };
    for (write_gap_s, read_gap_s) in shown.write_gaps_s.iter().zip(&shown.read_gaps_s) {
        report.add(cell, "write_gap_s", *write_gap_s);
        report.add(cell, "read_gap_s", *read_gap_s);
    }
    report.add(cell, "errors", (shown.figures.write_errors + shown.figures.read_errors) as f64);
    report.add(cell, "sessions_lost", shown.figures.dropped as f64);
    report.add(cell, "rows_lost", shown.lost as f64);
    for failure in &shown.failures {
        eprintln!("did not hold: {failure}");
    }
    phases(&lab, report, cell).await
}

/// Mean times of the phases, from the metrics of sitters and proxy.
async fn phases(lab: &Lab, report: &mut Report, cell: Of<'_>) -> Result<()> {
    let mut pages = Vec::new();
    // Without namespaces the ports of the status servers are known to the sitters only.
    for host in lab.hosts.iter().filter(|_| lab.network.has_namespaces()) {
        let url = format!("http://{}:5433/metrics", host.id.ip);
        pages.push(reqwest::get(url).await?.text().await?);
    }
    for proxy in &lab.proxies {
        pages.push(proxy.http("/metrics").await?);
    }
    let names = [
        "manatee_takeover_phase_seconds",
        "manatee_proxy_primary_absence_seconds",
        "manatee_proxy_first_write_seconds",
    ];
    for name in names {
        for (label, mean_s) in means(&pages, name) {
            report.add(cell, &format!("{}{label}_s", name.trim_end_matches("_seconds")), mean_s);
        }
    }
    Ok(())
}

/// Mean of a histogram over all pages, by its labels.
fn means(pages: &[String], name: &str) -> Vec<(String, f64)> {
    let mut sums: Vec<(String, f64, f64)> = Vec::new();
    for line in pages.iter().flat_map(|page| page.lines()) {
        let Some(rest) = line.strip_prefix(name) else { continue };
        let (is_sum, rest) = match (rest.strip_prefix("_sum"), rest.strip_prefix("_count")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => continue,
        };
        let Some((labels, value)) = rest.rsplit_once(' ') else { continue };
        let Ok(value) = value.parse::<f64>() else { continue };
        let place = sums.iter().position(|(known, ..)| known == labels).unwrap_or_else(|| {
            sums.push((labels.to_owned(), 0.0, 0.0));
            sums.len() - 1
        });
        let (_, sum, count) = &mut sums[place];
        *(if is_sum { sum } else { count }) += value;
    }
    sums.into_iter().filter(|(.., count)| *count > 0.0).map(|(label, sum, count)| (label, sum / count)).collect()
}

fn add(report: &mut Report, fault: Fault, target: &str, rounds: u32, figures: &Figures) {
    let cell = Of { workload: fault.name(), clients: rounds, tls: false, target };
    report.add(cell, "write_gap_s", figures.write_gap_s);
    report.add(cell, "read_gap_s", figures.read_gap_s);
    report.add(cell, "errors", (figures.write_errors + figures.read_errors) as f64);
    report.add(cell, "sessions_lost", figures.dropped as f64);
}

/// The 99th of 100 beside each median.
fn summarise(report: &mut Report) {
    for gap in ["write_gap_s", "read_gap_s"] {
        let of_gap = report.figures.iter().filter(|figure| figure.metric == gap);
        let worst: Vec<_> = of_gap
            .filter_map(|figure| Some((figure.clone(), quantile(figure.rounds.iter().copied(), 0.99)?)))
            .collect();
        for (figure, p99) in worst {
            report.add(figure.of(), &gap.replace("gap_s", "gap_p99_s"), p99);
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn means_are_over_all_pages_by_label() {
        let page =
            "# HELP x\nx_sum{phase=\"detect\"} 2\nx_count{phase=\"detect\"} 4\nx_bucket{le=\"1\"} 9\nx_other 1\n";
        let means = super::means(&[page.to_owned(), page.replace(" 2\n", " 6\n")], "x");
        assert_eq!(means, [("{phase=\"detect\"}".to_owned(), 1.0)]);
    }
}
