//! Names of the proxy's metrics and handles to them. Handles are made once: by name each record
//! would cost ten times as much.

use metrics::{Counter, Gauge, Histogram, Unit, counter, gauge, histogram};

use crate::error::ProxyError;
use crate::topology::Snapshot;

const CLIENTS: &str = "manatee_proxy_clients";
const CONNECTIONS: &str = "manatee_proxy_client_connections_total";
const SERVER_OPENS: &str = "manatee_proxy_server_opens_total";
const HELD: &str = "manatee_proxy_held_clients";
const HOLD_SECONDS: &str = "manatee_proxy_hold_seconds";
const ERRORS: &str = "manatee_proxy_errors_total";
const UNITS: &str = "manatee_proxy_transactions_total";
const REPLAYS: &str = "manatee_proxy_replays_total";
const GENERATION: &str = "manatee_proxy_generation";
const PRIMARY: &str = "manatee_proxy_primary_available";
const PRIMARY_ABSENCE: &str = "manatee_proxy_primary_absence_seconds";
const FIRST_WRITE: &str = "manatee_proxy_first_write_seconds";
const STATE_CURRENT: &str = "manatee_proxy_state_current";
const OWN_LOGIN_FAILURES: &str = "manatee_proxy_own_login_failures_total";

/// Says what each metric means. Once, after the recorder is installed.
pub fn describe() {
    metrics::describe_gauge!(CLIENTS, "Clients connected");
    metrics::describe_counter!(CONNECTIONS, "Client connections by what became of the login");
    metrics::describe_counter!(SERVER_OPENS, "Attempts to open a server connection, by result");
    metrics::describe_gauge!(HELD, "Clients waiting for a primary");
    metrics::describe_histogram!(HOLD_SECONDS, Unit::Seconds, "How long clients waited for a primary");
    metrics::describe_counter!(ERRORS, "Errors shown to clients, by SQLSTATE and origin");
    metrics::describe_counter!(UNITS, "Transactions and single statements, by where they ran");
    metrics::describe_counter!(REPLAYS, "Statements run again on another server");
    metrics::describe_gauge!(GENERATION, "Generation of the cluster state in use");
    metrics::describe_gauge!(PRIMARY, "1 if a confirmed primary is known");
    metrics::describe_histogram!(PRIMARY_ABSENCE, Unit::Seconds, "How long there was no confirmed primary");
    metrics::describe_histogram!(
        FIRST_WRITE,
        Unit::Seconds,
        "From the loss of a primary to the first write on the next"
    );
    metrics::describe_gauge!(STATE_CURRENT, "1 if ZooKeeper is connected and the state readable");
    metrics::describe_counter!(OWN_LOGIN_FAILURES, "Logins of the proxy's own role that a server refused");
    // From the start, or `increase()` would not see the first event: those that alerts watch.
    for (sqlstate, origin) in [("08007", "server"), ("28P01", "client"), ("53300", "proxy"), ("57P03", "topology")] {
        counter!(ERRORS, "sqlstate" => sqlstate, "origin" => origin).increment(0);
    }
    for result in ["session", "replication", "console", "done", "refused", "evicted"] {
        counter!(CONNECTIONS, "result" => result).increment(0);
    }
}

/// One thread's handles for what sessions do often.
#[derive(Clone)]
pub struct SessionMetrics {
    /// Transactions and single statements that ran on the primary.
    pub on_primary: Counter,
    /// The same on a standby.
    pub on_standby: Counter,
    /// Clients waiting for a primary.
    pub held: Gauge,
    /// Their waits, in seconds.
    pub hold_seconds: Histogram,
    /// Statements run again elsewhere.
    pub replays: Counter,
    /// From the loss of a primary to the first write on the next, in seconds.
    pub first_write_seconds: Histogram,
    /// Server connections opened.
    pub opens_ok: Counter,
    /// Attempts that failed.
    pub opens_failed: Counter,
}

impl SessionMetrics {
    /// Makes the handles for a shard's sessions.
    pub fn new(shard: &str) -> Self {
        let shard = || shard.to_owned();
        Self {
            on_primary: counter!(UNITS, "shard" => shard(), "route" => "primary"),
            on_standby: counter!(UNITS, "shard" => shard(), "route" => "standby"),
            held: gauge!(HELD, "shard" => shard()),
            hold_seconds: histogram!(HOLD_SECONDS, "shard" => shard()),
            replays: counter!(REPLAYS, "shard" => shard()),
            first_write_seconds: histogram!(FIRST_WRITE, "shard" => shard()),
            opens_ok: counter!(SERVER_OPENS, "shard" => shard(), "result" => "ok"),
            opens_failed: counter!(SERVER_OPENS, "shard" => shard(), "result" => "failed"),
        }
    }
}

/// Counts an error that a client is shown. Rare, so by name.
pub fn count_error(error: &ProxyError) {
    count_sqlstate(error.sqlstate().as_str(), error.origin().as_str());
}

/// The same for an error a server sent in the course of a session and that the proxy looked into.
pub fn count_sqlstate(sqlstate: &str, origin: &'static str) {
    counter!(ERRORS, "sqlstate" => sqlstate.to_owned(), "origin" => origin).increment(1);
}

/// Counts what became of a connection: `session`, `replication`, `done`, `refused` ….
pub fn count_connection(result: &'static str) {
    counter!(CONNECTIONS, "result" => result).increment(1);
}

/// Logins of the proxy's own role that a shard's servers refused.
pub fn own_login_failures(shard: &str) -> Counter {
    counter!(OWN_LOGIN_FAILURES, "shard" => shard.to_owned())
}

/// The number of clients.
pub fn clients() -> Gauge {
    gauge!(CLIENTS)
}

/// Publishes what a shard looks like.
pub fn show_topology(shard: &str, after: &Snapshot) {
    let shard = || shard.to_owned();
    gauge!(GENERATION, "shard" => shard()).set(after.generation as f64);
    gauge!(PRIMARY, "shard" => shard()).set(if after.primary.is_some() { 1.0 } else { 0.0 });
    gauge!(STATE_CURRENT, "shard" => shard()).set(if after.state_is_current { 1.0 } else { 0.0 });
}

/// Records how long there was no primary.
pub fn record_absence(shard: &str, absence: std::time::Duration) {
    histogram!(PRIMARY_ABSENCE, "shard" => shard.to_owned()).record(absence.as_secs_f64());
}
