//! The budget (design, section 5) against what was measured in this run.

use crate::contender::Kind;
use crate::pgbench::{Load, Workload};
use crate::report::{Goal, Of, Report};

const MANATEE: &str = "manatee";

/// Compares whatever was measured of it; what was not is left out.
pub fn judge(report: &mut Report) {
    let mut goals = Vec::new();
    let reads = [Workload::Simple, Workload::Extended, Workload::Prepared];
    let ratio = |load: Load, metric, of: Kind| {
        let cell = |target| Of { workload: load.workload.name(), clients: load.clients, tls: load.tls, target };
        Some(report.median(cell(MANATEE), metric)? / report.median(cell(of.name()), metric)?)
    };
    for workload in reads {
        for clients in [1, 16, 64, 1000] {
            let load = Load { workload, clients, tls: false };
            let name = format!("{}, {clients} clients", workload.name());
            if clients == 16 {
                for (kind, limit) in [(Kind::Pgbouncer, 1.0), (Kind::Relay, 1.35)] {
                    let measured = ratio(load, "cpu_us", kind);
                    goals.extend(at_most(format!("{name}: CPU per query / {}'s", kind.name()), measured, limit));
                }
            }
            if clients == 16 || clients == 64 {
                let measured = ratio(load, "tps", Kind::Pgbouncer);
                goals.extend(at_least(format!("{name}: tps / pgbouncer's"), measured, 1.1));
            }
            if clients == 64 {
                let measured = ratio(load, "p99_ms", Kind::Pgbouncer);
                goals.extend(at_most(format!("{name}: p99 / pgbouncer's"), measured, 1.0));
            }
        }
    }
    let figures = |workload: &str, target: &str, metric: &str| {
        let found = |figure: &&crate::report::Figure| {
            figure.workload == workload && figure.target == target && figure.metric == metric
        };
        report.figures.iter().find(found).map(|figure| figure.median)
    };
    goals.extend(at_most("bytes of an idle client".to_owned(), figures("idle clients", MANATEE, "bytes"), 1536.0));
    let crowd = |metric| figures("beside idle clients", MANATEE, metric);
    let measured = crowd("tps").zip(crowd("tps_alone")).map(|(beside, alone)| beside / alone);
    goals.extend(at_least("tps of 64 clients beside 10,000 idle ones / alone".to_owned(), measured, 0.95));
    for transfer in ["answers of 1 MB", "COPY out of 100 MB", "COPY in of 100 MB"] {
        let speed = |target: &str| figures(transfer, target, "MB_per_s");
        let measured = speed(MANATEE).zip(speed(Kind::Haproxy.name())).map(|(ours, theirs)| ours / theirs);
        goals.extend(at_least(format!("{transfer}: speed / haproxy's"), measured, 0.9));
    }
    report.goals = goals;
}

fn at_most(what: String, measured: Option<f64>, limit: f64) -> Option<Goal> {
    measured.map(|measured| Goal { what: format!("{what} ≤"), measured, limit, met: measured <= limit })
}

fn at_least(what: String, measured: Option<f64>, limit: f64) -> Option<Goal> {
    measured.map(|measured| Goal { what: format!("{what} ≥"), measured, limit, met: measured >= limit })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_measured_is_judged() {
        let mut report = Report::default();
        for (target, cpu_us) in [("manatee", 12.0), ("pgbouncer", 10.0), ("relay", 10.0)] {
            report.add(Of { workload: "simple", clients: 16, tls: false, target }, "cpu_us", cpu_us);
        }
        judge(&mut report);
        let verdicts: Vec<(f64, bool)> = report.goals.iter().map(|goal| (goal.limit, goal.met)).collect();
        assert_eq!(verdicts, [(1.0, false), (1.35, true)]);
    }
}
