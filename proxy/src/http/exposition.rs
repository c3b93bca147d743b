//! The part of `/metrics` that is counted by the session threads themselves, in plain cells, and
//! added up only when somebody looks: nothing on the hot path pays for it. Pure: text out.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::SystemTime;

use manatee_shared::ids::ShardName;

use crate::pool::census::{BUCKETS_US, Counts, Histogram, Report};
use crate::session::bound::CAUSES;
use crate::topology::{Snapshot, Standby};

const MICROS: f64 = 1e-6;

/// One shard's sums over all threads.
#[derive(Default)]
struct Sums {
    counted: Counts,
    active: usize,
    waiting: usize,
    longest_wait_s: f64,
    bound_by: [usize; CAUSES.len()],
    nodes: BTreeMap<String, [usize; 3]>,
    on_primary: Histogram,
    on_standby: Histogram,
}

fn sums(reports: &[(ShardName, Report)]) -> BTreeMap<String, Sums> {
    let mut shards: BTreeMap<String, Sums> = BTreeMap::new();
    for (shard, report) in reports {
        let sums = shards.entry(shard.to_string()).or_default();
        sums.on_primary.add(&report.on_primary);
        sums.on_standby.add(&report.on_standby);
        // They were counted before: a counter never goes back.
        sums.counted += report.departed;
        for pool in &report.pools {
            sums.counted += pool.counted;
            sums.active += pool.clients_active;
            sums.waiting += pool.clients_waiting;
            sums.bound_by.iter_mut().zip(pool.bound_by).for_each(|(sum, one)| *sum += one);
            sums.longest_wait_s = sums.longest_wait_s.max(pool.longest_wait.as_secs_f64());
            for node in &pool.nodes {
                let counts = sums.nodes.entry(node.node.id.to_string()).or_default();
                counts.iter_mut().zip([node.in_use, node.idle, node.opening]).for_each(|(sum, one)| *sum += one);
            }
        }
    }
    shards
}

/// Writes one metric: its head, then a line for each sample.
struct Metric<'a> {
    out: &'a mut String,
    name: &'static str,
}

impl<'a> Metric<'a> {
    fn new(out: &'a mut String, name: &'static str, kind: &str, help: &str) -> Self {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Self { out, name }
    }

    fn sample(&mut self, suffix: &str, labels: &[(&str, &str)], value: f64) {
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        let braces = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.out, "{}{suffix}{braces} {value}", self.name);
    }
}

/// A label's value (exposition format, "Comments, help text, and type information").
fn escaped(value: &str) -> Cow<'_, str> {
    if !value.contains(['\\', '"', '\n']) {
        return Cow::Borrowed(value);
    }
    Cow::Owned(value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

/// Metrics of each shard's standbys. Only those that there are: one that was promoted or removed has no value.
pub(super) fn standbys(shards: &[(ShardName, Arc<Snapshot>)]) -> String {
    let mut out = String::new();
    let each = || {
        shards.iter().flat_map(|(shard, snapshot)| {
            snapshot.standbys.iter().map(move |standby| (shard.as_str(), snapshot, standby))
        })
    };
    let mut gauge = |name, help, value: &dyn Fn(&Snapshot, &Standby) -> Option<f64>| {
        let mut metric = Metric::new(&mut out, name, "gauge", help);
        for (shard, snapshot, standby) in each() {
            if let Some(value) = value(snapshot, standby) {
                metric.sample("", &[("shard", shard), ("node", &standby.node.id.to_string())], value);
            }
        }
    };
    gauge("manatee_proxy_standby_fit", "1 if a standby may serve reads, by node", &|_, standby| {
        Some(f64::from(u8::from(standby.fit)))
    });
    gauge("manatee_proxy_standby_lag_seconds", "How far a standby's replay is behind, by node", &|_, standby| {
        Some(standby.lag.as_secs_f64())
    });
    gauge("manatee_proxy_standby_lag_bytes", "How far a standby's replay is behind, by node", &|snapshot, standby| {
        let position = snapshot.positions.last()?;
        Some(position.lsn.0.saturating_sub(standby.replayed.lsn.0) as f64)
    });
    out
}

/// The metrics of the session threads.
pub(super) fn sessions(reports: &[(ShardName, Report)]) -> String {
    let shards = sums(reports);
    let mut out = String::new();
    type Count = fn(&Counts) -> u64;
    let counters: [(&'static str, Count, f64, &str); 8] = [
        (
            "manatee_proxy_server_assignments_total",
            |counts| counts.assignments,
            1.0,
            "Times a client was given a server connection",
        ),
        (
            "manatee_proxy_queries_total",
            |counts| counts.queries,
            1.0,
            "Requests answered: each Query, and each series up to Sync",
        ),
        ("manatee_proxy_received_bytes_total", |counts| counts.received, 1.0, "Bytes received from clients"),
        ("manatee_proxy_sent_bytes_total", |counts| counts.sent, 1.0, "Bytes received from servers, for clients"),
        (
            "manatee_proxy_transaction_seconds_total",
            |counts| counts.transaction_us,
            MICROS,
            "Time that clients had server connections",
        ),
        (
            "manatee_proxy_query_busy_seconds_total",
            |counts| counts.query_us,
            MICROS,
            "Time that requests were under way at servers",
        ),
        (
            "manatee_proxy_client_wait_seconds_total",
            |counts| counts.wait_us,
            MICROS,
            "Time that clients waited for a server connection",
        ),
        ("manatee_proxy_client_logins_total", |counts| counts.logins, 1.0, "Logins of clients"),
    ];
    for (name, count, factor, help) in counters {
        let mut metric = Metric::new(&mut out, name, "counter", help);
        for (shard, sums) in &shards {
            metric.sample("", &[("shard", shard)], count(&sums.counted) as f64 * factor);
        }
    }
    let mut metric = Metric::new(
        &mut out,
        "manatee_proxy_sessions",
        "gauge",
        "Clients logged in, by whether they wait for a server",
    );
    for (shard, sums) in &shards {
        metric.sample("", &[("shard", shard), ("state", "active")], sums.active as f64);
        metric.sample("", &[("shard", shard), ("state", "waiting")], sums.waiting as f64);
    }
    let help = "How long the client that waits longest has waited for a server connection";
    let mut metric = Metric::new(&mut out, "manatee_proxy_client_longest_wait_seconds", "gauge", help);
    for (shard, sums) in &shards {
        metric.sample("", &[("shard", shard)], sums.longest_wait_s);
    }
    let help = "Clients bound to a server connection beyond their transactions, by cause; some have several";
    let mut metric = Metric::new(&mut out, "manatee_proxy_bound_sessions", "gauge", help);
    for (shard, sums) in &shards {
        for ((_, cause), count) in CAUSES.iter().zip(sums.bound_by) {
            metric.sample("", &[("shard", shard), ("cause", cause)], count as f64);
        }
    }
    let help = "Server connections, by node and state";
    let mut metric = Metric::new(&mut out, "manatee_proxy_server_connections", "gauge", help);
    for (shard, sums) in &shards {
        for (node, counts) in &sums.nodes {
            for (state, count) in ["active", "idle", "opening"].into_iter().zip(counts) {
                metric.sample("", &[("shard", shard), ("node", node), ("state", state)], *count as f64);
            }
        }
    }
    let help = "How long requests took at servers, by kind of server";
    let mut metric = Metric::new(&mut out, "manatee_proxy_query_seconds", "histogram", help);
    for (shard, sums) in &shards {
        for (route, histogram) in [("primary", &sums.on_primary), ("standby", &sums.on_standby)] {
            put_histogram(&mut metric, shard, route, histogram);
        }
    }
    out
}

fn put_histogram(metric: &mut Metric<'_>, shard: &str, route: &str, histogram: &Histogram) {
    let mut total = 0;
    for (index, count) in histogram.counts.iter().enumerate() {
        total += count;
        let bound = BUCKETS_US.get(index).map_or_else(|| "+Inf".to_owned(), |us| (*us as f64 / 1e6).to_string());
        metric.sample("_bucket", &[("shard", shard), ("route", route), ("le", &bound)], total as f64);
    }
    metric.sample("_sum", &[("shard", shard), ("route", route)], histogram.sum_us as f64 * MICROS);
    metric.sample("_count", &[("shard", shard), ("route", route)], total as f64);
}

/// Metrics of the process itself, by the names that Prometheus' own libraries use.
pub(super) fn process(certificate_expires: Option<SystemTime>) -> String {
    let mut out = String::new();
    let read = |file: &str| std::fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
    let resident = read("status")
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<f64>().ok());
    let mut gauge = |name, help, value: Option<f64>| {
        if let Some(value) = value {
            Metric::new(&mut out, name, "gauge", help).sample("", &[], value);
        }
    };
    gauge("process_resident_memory_bytes", "Resident memory", resident.map(|kilobytes| kilobytes * 1024.0));
    let open = std::fs::read_dir("/proc/self/fd").ok().map(|files| files.count() as f64);
    gauge("process_open_fds", "Open file descriptors", open);
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
    gauge("process_max_fds", "File descriptors at most", limit.ok().map(|(soft, _)| soft as f64));
    let expires = certificate_expires.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    let help = "When the certificate for clients expires";
    gauge("manatee_proxy_certificate_expiry_timestamp_seconds", help, expires.map(|since| since.as_secs_f64()));
    let help = "Version of the program";
    Metric::new(&mut out, "manatee_proxy_build_info", "gauge", help).sample(
        "",
        &[("version", env!("CARGO_PKG_VERSION"))],
        1.0,
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::Mode;
    use crate::pool::census::{NodeReport, PoolReport};
    use crate::topology::Node;
    use std::time::Duration;

    #[test]
    fn labels_are_escaped() {
        let mut out = String::new();
        Metric::new(&mut out, "x", "gauge", "x").sample("", &[("a", "say \"\\\"\n")], 1.0);
        assert!(out.ends_with("x{a=\"say \\\"\\\\\\\"\\n\"} 1\n"), "{out}");
    }

    #[test]
    fn threads_are_added_up_and_buckets_accumulate() {
        let mut on_primary = Histogram::default();
        on_primary.counts[0] = 2;
        on_primary.counts[BUCKETS_US.len()] = 1;
        on_primary.sum_us = 9_000_100;
        let node = Node::of("10.0.0.1:5432:1".parse().expect("id"));
        let pool = PoolReport {
            user: "alice".into(),
            database: "app".into(),
            clients_active: 2,
            clients_waiting: 1,
            longest_wait: Duration::from_millis(250),
            clients_bound: 1,
            bound_by: std::array::from_fn(|cause| usize::from(cause == 2)),
            canceled_in_use: 0,
            canceled_idle: 0,
            counted: Counts { queries: 3, transaction_us: 6_000_000, ..Counts::default() },
            nodes: vec![NodeReport { node, size: 10, in_use: 1, idle: 2, opening: 0 }],
        };
        let report = Report {
            mode: Mode::Transaction,
            pools: vec![pool],
            departed: Counts { queries: 1, ..Counts::default() },
            clients: Vec::new(),
            servers: Vec::new(),
            held: 0,
            on_primary,
            on_standby: Histogram::default(),
        };
        let shard: ShardName = "demo".parse().expect("name");
        let text = sessions(&[(shard.clone(), report.clone()), (shard, report)]);
        for line in [
            "manatee_proxy_queries_total{shard=\"demo\"} 8",
            "manatee_proxy_transaction_seconds_total{shard=\"demo\"} 12",
            "manatee_proxy_sessions{shard=\"demo\",state=\"waiting\"} 2",
            "manatee_proxy_bound_sessions{shard=\"demo\",cause=\"listen\"} 2",
            "manatee_proxy_client_longest_wait_seconds{shard=\"demo\"} 0.25",
            "manatee_proxy_server_connections{shard=\"demo\",node=\"10.0.0.1:5432:1\",state=\"idle\"} 4",
            "manatee_proxy_query_seconds_bucket{shard=\"demo\",route=\"primary\",le=\"0.0001\"} 4",
            "manatee_proxy_query_seconds_bucket{shard=\"demo\",route=\"primary\",le=\"5\"} 4",
            "manatee_proxy_query_seconds_bucket{shard=\"demo\",route=\"primary\",le=\"+Inf\"} 6",
            "manatee_proxy_query_seconds_count{shard=\"demo\",route=\"primary\"} 6",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\nis not in\n{text}");
        }
        assert!(process(Some(SystemTime::UNIX_EPOCH)).contains("expiry_timestamp_seconds 0\n"));
    }
}
