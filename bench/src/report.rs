//! Results: figures with their rounds, as tables for people and as JSON.

use std::fmt::Write;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::median;

/// The circumstances and everything measured.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Command line.
    pub command: String,
    /// Begin of the run, UTC.
    pub date: String,
    /// Processors and kernel.
    pub machine: String,
    /// Versions of what was measured.
    pub versions: Vec<(String, String)>,
    /// The figures, in the order in which they were first taken.
    pub figures: Vec<Figure>,
    /// Goals, with what was measured.
    pub goals: Vec<Goal>,
}

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// Workload: `simple`, `login`, `failover power-off`.
    pub workload: String,
    /// Number of clients; or the other quantity that the workload was varied by.
    pub clients: u32,
    /// Clients used TLS.
    pub tls: bool,
    /// Contender that was measured.
    pub target: String,
    /// Quantity that was measured, with its unit: `cpu_us`.
    pub metric: String,
    /// Of the rounds.
    pub median: f64,
    /// As measured.
    pub rounds: Vec<f64>,
}

/// A goal of the project and how near it is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Goal {
    /// In words.
    pub what: String,
    /// Measured.
    pub measured: f64,
    /// To be reached.
    pub limit: f64,
    /// Whether it is.
    pub met: bool,
}

/// Subject of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Of<'a> {
    /// Workload.
    pub workload: &'a str,
    /// Number of clients.
    pub clients: u32,
    /// Clients used TLS.
    pub tls: bool,
    /// Contender that was measured.
    pub target: &'a str,
}

impl Report {
    /// Of this machine, now.
    pub fn begin() -> Self {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            command: std::env::args().collect::<Vec<_>>().join(" "),
            date: jiff::Timestamp::now().to_string(),
            machine: format!("{cores} processors, Linux {}", kernel.trim()),
            ..Self::default()
        }
    }

    /// Adds one round's value.
    pub fn add(&mut self, of: Of<'_>, metric: &str, value: f64) {
        let known = self.figures.iter_mut().find(|figure| figure.of() == of && figure.metric == metric);
        if let Some(figure) = known {
            figure.rounds.push(value);
            figure.median = median(figure.rounds.iter().copied()).unwrap_or(value);
            return;
        }
        self.figures.push(Figure {
            workload: of.workload.to_owned(),
            clients: of.clients,
            tls: of.tls,
            target: of.target.to_owned(),
            metric: metric.to_owned(),
            median: value,
            rounds: vec![value],
        });
    }

    /// A median, if it was measured.
    pub fn median(&self, of: Of<'_>, metric: &str) -> Option<f64> {
        self.figures.iter().find(|figure| figure.of() == of && figure.metric == metric).map(|figure| figure.median)
    }

    /// Everything as tables.
    pub fn tables(&self) -> String {
        let mut text = format!("{}\n{}\n{}\n", self.command, self.date, self.machine);
        for (name, version) in &self.versions {
            // Writing to a String cannot fail.
            let _ = write!(text, "{name} {version}  ");
        }
        text.push('\n');
        let mut cells: Vec<(&str, u32, bool)> = Vec::new();
        for figure in &self.figures {
            let cell = (figure.workload.as_str(), figure.clients, figure.tls);
            if !cells.contains(&cell) {
                cells.push(cell);
            }
        }
        for (workload, clients, tls) in cells {
            let title = format!("{workload}, {clients}{}", if tls { ", TLS" } else { "" });
            let figures: Vec<&Figure> = self
                .figures
                .iter()
                .filter(|figure| (figure.workload.as_str(), figure.clients, figure.tls) == (workload, clients, tls))
                .collect();
            let _ = write!(text, "\n{}\n", table(&title, &figures));
        }
        if !self.goals.is_empty() {
            let mut goals = plain(&["goal", "measured", "limit", ""]);
            for goal in &self.goals {
                let verdict = if goal.met { "met" } else { "MISSED" };
                goals.add_row([goal.what.clone(), number(goal.measured), number(goal.limit), verdict.to_owned()]);
            }
            let _ = write!(text, "\n{goals}\n");
        }
        text
    }
}

impl Figure {
    /// Its subject.
    pub fn of(&self) -> Of<'_> {
        Of { workload: &self.workload, clients: self.clients, tls: self.tls, target: &self.target }
    }
}

fn plain(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_header(header.iter().copied());
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// A row for each target, a column for each metric.
fn table(title: &str, figures: &[&Figure]) -> Table {
    let mut metrics: Vec<&str> = Vec::new();
    let mut targets: Vec<&str> = Vec::new();
    for figure in figures {
        if !metrics.contains(&figure.metric.as_str()) {
            metrics.push(&figure.metric);
        }
        if !targets.contains(&figure.target.as_str()) {
            targets.push(&figure.target);
        }
    }
    let header: Vec<&str> = std::iter::once(title).chain(metrics.iter().copied()).collect();
    let mut table = plain(&header);
    for target in targets {
        let value = |metric: &&str| {
            let found = figures.iter().find(|figure| figure.target == target && figure.metric == **metric);
            found.map_or("-".to_owned(), |figure| number(figure.median))
        };
        table.add_row(std::iter::once(target.to_owned()).chain(metrics.iter().map(value)));
    }
    table
}

/// Three digits that say something.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_gather_under_one_figure_and_show_their_median() {
        let mut report = Report::default();
        let of = Of { workload: "simple", clients: 16, tls: false, target: "relay" };
        for value in [3.0, 1.0, 2.0] {
            report.add(of, "cpu_us", value);
        }
        report.add(Of { target: "manatee", ..of }, "tps", 1234.5);
        assert_eq!(report.median(of, "cpu_us"), Some(2.0));
        assert_eq!(report.median(of, "tps"), None);
        let text = report.tables();
        assert!(text.contains("| simple, 16 | cpu_us |  tps |"), "{text}");
        assert!(text.contains("| manatee    |      - | 1234 |"), "{text}");
    }
}
