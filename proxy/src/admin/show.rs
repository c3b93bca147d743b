//! Tables of the console, made of the reports of session threads. Column names are PgBouncer's where
//! it has them, so that its tools work; what it has not comes after, or in tables of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use manatee_shared::ids::{PeerId, ShardName};

use super::table::{Column, Field, Table, int4, int8, row, text};
use crate::config;
use crate::pool::Mode;
use crate::pool::census::{Counts, PoolReport, Report};
use crate::topology::Snapshot;

/// Reports of all threads, with the shard each is about.
pub type Reports = [(ShardName, Report)];

/// Facts that the tables need beside the reports.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Connections that are logging in.
    pub logging_in: usize,
    /// Databases for which new clients are refused.
    pub disabled: BTreeSet<String>,
    /// Databases whose transactions wait; all of them if it contains None.
    pub paused: BTreeSet<Option<String>>,
    /// `[pool]`
    pub limits: config::Pool,
    /// `fleet.peers`, by number.
    pub peers: BTreeMap<u32, SocketAddr>,
    /// Threads.
    pub threads: usize,
    /// The shard whose databases go by their own name.
    pub default_shard: ShardName,
    /// Names that clients use for databases, by shard and name there.
    pub aliases: BTreeMap<(ShardName, String), String>,
    /// Nodes that refuse the proxy's own role.
    pub own_login_refused: BTreeMap<(ShardName, PeerId), String>,
    /// Snapshot of each shard.
    pub shards: Vec<(ShardName, std::sync::Arc<Snapshot>)>,
}

impl Facts {
    /// The name under which a database is shown.
    pub fn database(&self, shard: &ShardName, database: &str) -> String {
        match self.aliases.get(&(shard.clone(), database.to_owned())) {
            Some(alias) => alias.clone(),
            None if *shard == self.default_shard => database.to_owned(),
            None => format!("{shard}/{database}"),
        }
    }

    fn is_paused(&self, database: &str) -> bool {
        self.paused.contains(&None) || self.paused.contains(&Some(database.to_owned()))
    }
}

/// All threads' pools of one role and database, added up.
#[derive(Clone, Debug, Default)]
struct Pool {
    active: usize,
    waiting: usize,
    longest_wait: Duration,
    in_use: usize,
    idle: usize,
    opening: usize,
    size: usize,
    bound: usize,
    canceled_in_use: usize,
    canceled_idle: usize,
    counted: Counts,
}

impl Pool {
    fn add(&mut self, report: &PoolReport) {
        self.active += report.clients_active;
        self.waiting += report.clients_waiting;
        self.bound += report.clients_bound;
        self.longest_wait = self.longest_wait.max(report.longest_wait);
        for node in &report.nodes {
            self.in_use += node.in_use;
            self.idle += node.idle;
            self.opening += node.opening;
            self.size += node.size;
        }
        self.canceled_in_use += report.canceled_in_use;
        self.canceled_idle += report.canceled_idle;
        self.counted += report.counted;
    }
}

fn pools_by(
    reports: &Reports,
    key: impl Fn(&ShardName, &PoolReport) -> (String, String),
) -> BTreeMap<(String, String), Pool> {
    let mut pools: BTreeMap<(String, String), Pool> = BTreeMap::new();
    for (shard, report) in reports {
        for pool in &report.pools {
            pools.entry(key(shard, pool)).or_default().add(pool);
        }
    }
    pools
}

fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Transaction => "transaction",
        Mode::Session => "session",
    }
}

fn mode_of(reports: &Reports) -> &'static str {
    reports.first().map_or("", |(_, report)| mode_name(report.mode))
}

/// Seconds and the rest in microseconds.
fn seconds(wait: Duration) -> (u64, u32) {
    (wait.as_secs(), wait.subsec_micros())
}

fn at(time: SystemTime) -> String {
    Timestamp::try_from(time).map(|time| time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()).unwrap_or_default()
}

const POOLS: &[Column] = &[
    text("database"),
    text("user"),
    int8("cl_active"),
    int8("cl_waiting"),
    int8("cl_active_cancel_req"),
    int8("cl_waiting_cancel_req"),
    int8("sv_active"),
    int8("sv_active_cancel"),
    int8("sv_being_canceled"),
    int8("sv_idle"),
    int8("sv_used"),
    int8("sv_tested"),
    int8("sv_login"),
    int8("maxwait"),
    int8("maxwait_us"),
    text("pool_mode"),
    text("load_balance_hosts"),
    int8("cl_bound"),
];

/// `SHOW POOLS`: one row for each role and database, over all nodes and threads.
pub fn pools(reports: &Reports, facts: &Facts) -> Table {
    let mode = mode_of(reports);
    let pools = pools_by(reports, |shard, pool| (facts.database(shard, &pool.database), pool.user.to_string()));
    let rows = pools.into_iter().map(|((database, user), pool)| {
        let (wait, wait_us) = seconds(pool.longest_wait);
        row![
            database,
            user,
            pool.active,
            pool.waiting,
            0_u8,
            0_u8,
            pool.in_use.saturating_sub(pool.canceled_in_use),
            0_u8,
            pool.canceled_in_use + pool.canceled_idle,
            pool.idle.saturating_sub(pool.canceled_idle),
            0_u8,
            0_u8,
            pool.opening,
            wait,
            wait_us,
            mode,
            None::<String>,
            pool.bound,
        ]
    });
    Table { columns: POOLS, rows: rows.collect() }
}

const NODES: &[Column] = &[
    text("shard"),
    text("node"),
    text("role"),
    text("database"),
    text("user"),
    int8("pool_size"),
    int8("sv_active"),
    int8("sv_idle"),
    int8("sv_login"),
];

/// `SHOW NODES`: server connections by node.
pub fn nodes(reports: &Reports, facts: &Facts) -> Table {
    let mut sums: BTreeMap<[String; 4], [usize; 4]> = BTreeMap::new();
    for (shard, report) in reports {
        for pool in &report.pools {
            for node in &pool.nodes {
                let key =
                    [shard.to_string(), node.node.id.to_string(), pool.database.to_string(), pool.user.to_string()];
                let sum = sums.entry(key).or_default();
                for (sum, more) in sum.iter_mut().zip([node.size, node.in_use, node.idle, node.opening]) {
                    *sum += more;
                }
            }
        }
    }
    let role = |shard: &str, node: &str| {
        let (_, snapshot) = facts.shards.iter().find(|(name, _)| name.to_string() == shard)?;
        let is_primary = snapshot.primary().is_some_and(|primary| primary.id.to_string() == node);
        let is_standby = snapshot.standbys.iter().any(|standby| standby.node.id.to_string() == node);
        Some(if is_primary {
            "primary"
        } else if is_standby {
            "standby"
        } else {
            "gone"
        })
    };
    let rows = sums.into_iter().map(|([shard, node, database, user], [size, in_use, idle, opening])| {
        let role = role(&shard, &node);
        row![shard, node, role, database, user, size, in_use, idle, opening]
    });
    Table { columns: NODES, rows: rows.collect() }
}

const STATS: &[Column] = &[
    text("database"),
    int8("total_server_assignment_count"),
    int8("total_xact_count"),
    int8("total_query_count"),
    int8("total_received"),
    int8("total_sent"),
    int8("total_xact_time"),
    int8("total_query_time"),
    int8("total_wait_time"),
    int8("total_client_login_count"),
    int8("avg_server_assignment_count"),
    int8("avg_xact_count"),
    int8("avg_query_count"),
    int8("avg_recv"),
    int8("avg_sent"),
    int8("avg_xact_time"),
    int8("avg_query_time"),
    int8("avg_wait_time"),
    int8("avg_client_login_count"),
];

const STATS_TOTALS: &[Column] = &[
    text("database"),
    int8("server_assignment_count"),
    int8("xact_count"),
    int8("query_count"),
    int8("bytes_received"),
    int8("bytes_sent"),
    int8("xact_time"),
    int8("query_time"),
    int8("wait_time"),
    int8("client_login_count"),
];

/// Totals of each database.
pub type Totals = BTreeMap<String, Counts>;

/// Numbers in the order of the columns of `SHOW STATS_TOTALS`.
fn numbers(counts: Counts) -> [u64; 9] {
    [
        counts.assignments,
        counts.transactions,
        counts.queries,
        counts.received,
        counts.sent,
        counts.transaction_us,
        counts.query_us,
        counts.wait_us,
        counts.logins,
    ]
}

/// Adds up each database.
pub fn totals(reports: &Reports, facts: &Facts) -> Totals {
    let pools = pools_by(reports, |shard, pool| (facts.database(shard, &pool.database), String::new()));
    pools.into_iter().map(|((database, _), pool)| (database, pool.counted)).collect()
}

/// Change between two looks: per second, and per transaction or query for the times.
pub fn averages(before: Counts, after: Counts, between: Duration) -> Counts {
    let grown = after.since(before);
    let seconds = between.as_secs_f64().max(1e-3);
    let per_second = |count: u64| (count as f64 / seconds) as u64;
    Counts {
        transaction_us: grown.transaction_us.checked_div(grown.transactions).unwrap_or(0),
        query_us: grown.query_us.checked_div(grown.queries).unwrap_or(0),
        ..grown.with(grown, |count, _| per_second(count))
    }
}

/// `SHOW STATS`
pub fn stats(totals: &Totals, averages: &Totals) -> Table {
    let rows = totals.iter().map(|(database, totals)| {
        let averages = averages.get(database).copied().unwrap_or_default();
        let numbers = numbers(*totals).into_iter().chain(numbers(averages)).map(|number| Some(number.to_string()));
        std::iter::once(Some(database.clone())).chain(numbers).collect()
    });
    Table { columns: STATS, rows: rows.collect() }
}

/// `SHOW STATS_TOTALS`, `SHOW STATS_AVERAGES`
pub fn stats_of(totals: &Totals) -> Table {
    let rows = totals.iter().map(|(database, totals)| {
        let numbers = numbers(*totals).into_iter().map(|number| Some(number.to_string()));
        std::iter::once(Some(database.clone())).chain(numbers).collect()
    });
    Table { columns: STATS_TOTALS, rows: rows.collect() }
}

/// `SHOW TOTALS`
pub fn all_totals(totals: &Totals, averages: &Totals) -> Table {
    let sum = |totals: &Totals| {
        let sum = totals.values().fold(Counts::default(), |sum, one| sum.with(*one, u64::wrapping_add));
        numbers(sum)
    };
    let numbers = sum(totals).into_iter().chain(sum(averages));
    let rows = STATS.iter().skip(1).zip(numbers).map(|(column, number)| row![column.name, number]);
    Table { columns: const { &[text("name"), int8("value")] }, rows: rows.collect() }
}

/// PgBouncer's order since 1.24; `reserve_pool` is its name for `reserve_pool_size` before that.
const DATABASES: &[Column] = &[
    text("name"),
    text("host"),
    int4("port"),
    text("database"),
    text("force_user"),
    int4("pool_size"),
    int4("min_pool_size"),
    int4("reserve_pool_size"),
    int4("server_lifetime"),
    text("pool_mode"),
    text("load_balance_hosts"),
    int4("max_connections"),
    int4("current_connections"),
    int4("max_client_connections"),
    int4("current_client_connections"),
    int4("paused"),
    int4("disabled"),
    int4("reserve_pool"),
    text("shard"),
];

/// `SHOW DATABASES`: those used since the start. `host` is the primary's.
pub fn databases(reports: &Reports, facts: &Facts) -> Table {
    let mut known: BTreeMap<(ShardName, String), Pool> = BTreeMap::new();
    for (shard, report) in reports {
        for pool in &report.pools {
            known.entry((shard.clone(), pool.database.to_string())).or_default().add(pool);
        }
    }
    let mode = mode_of(reports);
    let limits = &facts.limits;
    let rows = known.into_iter().map(|((shard, database), pool)| {
        let primary = facts.shards.iter().find(|(name, _)| *name == shard).and_then(|(_, snapshot)| snapshot.primary());
        let name = facts.database(&shard, &database);
        let (paused, disabled) = (facts.is_paused(&name), facts.disabled.contains(&name));
        row![
            name,
            primary.map(|node| node.address.ip().to_string()),
            primary.map_or(0, |node| node.address.port()),
            database,
            None::<String>,
            limits.size,
            0_u8,
            0_u8,
            limits.server_lifetime.as_secs(),
            mode,
            None::<String>,
            limits.max_servers_per_database,
            pool.in_use + pool.idle + pool.opening,
            limits.max_clients_per_database,
            pool.active + pool.waiting,
            paused,
            disabled,
            0_u8,
            shard.to_string(),
        ]
    });
    Table { columns: DATABASES, rows: rows.collect() }
}

const SOCKETS: &[Column] = &[
    text("type"),
    text("user"),
    text("database"),
    text("replication"),
    text("state"),
    text("addr"),
    int4("port"),
    text("local_addr"),
    int4("local_port"),
    text("connect_time"),
    text("request_time"),
    int8("wait"),
    int8("wait_us"),
    int4("close_needed"),
    text("ptr"),
    text("link"),
    int4("remote_pid"),
    text("tls"),
    text("application_name"),
    int4("prepared_statements"),
    int8("id"),
];

/// Clients that replicate are relayed, not pooled: they are in none of these tables.
const NO_REPLICATION: &str = "none";

/// `SHOW CLIENTS`: `id` is the process id the client was told, `link` that of its server.
pub fn clients(reports: &Reports, facts: &Facts) -> Table {
    let clients = reports.iter().flat_map(|(shard, report)| report.clients.iter().map(move |client| (shard, client)));
    let rows = clients.map(|(shard, client)| {
        let (wait, wait_us) = seconds(client.waited.unwrap_or_default());
        let state = match (client.server, client.waited) {
            (Some(_), _) => "active",
            (None, Some(_)) => "waiting",
            (None, None) => "idle",
        };
        row![
            "C",
            client.facts.identity.user.to_string(),
            facts.database(shard, &client.facts.identity.database),
            NO_REPLICATION,
            state,
            // As Incoming::accept says it.
            if client.facts.address.port() == 0 { "unix".to_owned() } else { client.facts.address.ip().to_string() },
            client.facts.address.port(),
            client.facts.local.map(|local| local.ip().to_string()),
            client.facts.local.map(|local| local.port()),
            at(client.facts.connected),
            None::<String>,
            wait,
            wait_us,
            0_u8,
            client.facts.id.to_string(),
            client.server.map_or_else(String::new, |pid| pid.to_string()),
            None::<u32>,
            client.facts.tls.unwrap_or_default(),
            client.facts.application.to_string(),
            None::<u32>,
            client.facts.id,
        ]
    });
    Table { columns: SOCKETS, rows: rows.collect() }
}

/// `SHOW SERVERS`: `remote_pid` is the server's process id, `link` that of its client.
pub fn servers(reports: &Reports, facts: &Facts, now: SystemTime) -> Table {
    let servers = reports.iter().flat_map(|(shard, report)| report.servers.iter().map(move |server| (shard, server)));
    let rows = servers.map(|(shard, server)| {
        let state = match (server.client, server.being_cancelled) {
            (_, true) => "being_canceled",
            (Some(_), false) => "active",
            (None, false) => "idle",
        };
        row![
            "S",
            server.user.to_string(),
            facts.database(shard, &server.database),
            NO_REPLICATION,
            state,
            server.node.address.ip().to_string(),
            server.node.address.port(),
            None::<String>,
            None::<u16>,
            now.checked_sub(server.age).map(at),
            None::<String>,
            0_u8,
            0_u8,
            0_u8,
            server.pid.to_string(),
            server.client.map_or_else(String::new, |id| id.to_string()),
            server.pid,
            "",
            "",
            None::<u32>,
            server.pid,
        ]
    });
    Table { columns: SOCKETS, rows: rows.collect() }
}

/// `SHOW SOCKETS`, `SHOW ACTIVE_SOCKETS`: clients and servers; `active` leaves out the idle ones.
pub fn sockets(reports: &Reports, facts: &Facts, now: SystemTime, active: bool) -> Table {
    let mut rows = clients(reports, facts).rows;
    rows.extend(servers(reports, facts, now).rows);
    let idle: Field = Some("idle".to_owned());
    rows.retain(|row| !active || row.get(4) != Some(&idle));
    Table { columns: SOCKETS, rows }
}

/// `SHOW LISTS`
pub fn lists(reports: &Reports, facts: &Facts) -> Table {
    let pools = pools_by(reports, |shard, pool| (facts.database(shard, &pool.database), pool.user.to_string()));
    let databases: BTreeSet<&String> = pools.keys().map(|(database, _)| database).collect();
    let users: BTreeSet<&String> = pools.keys().map(|(_, user)| user).collect();
    let sum = |count: fn(&Pool) -> usize| pools.values().map(count).sum::<usize>();
    let used = sum(|pool| pool.active + pool.waiting);
    let rows = [
        ("databases", databases.len()),
        ("users", users.len()),
        ("peers", facts.peers.len()),
        ("pools", pools.len()),
        ("free_clients", facts.limits.max_clients.saturating_sub(used)),
        ("used_clients", used),
        ("login_clients", facts.logging_in),
        ("free_servers", sum(|pool| pool.idle)),
        ("used_servers", sum(|pool| pool.in_use)),
        ("dns_names", 0),
        ("dns_zones", 0),
        ("dns_queries", 0),
        ("dns_pending", 0),
    ];
    let rows = rows.into_iter().map(|(list, items)| row![list, items]);
    Table { columns: const { &[text("list"), int4("items")] }, rows: rows.collect() }
}

const USERS: &[Column] = &[
    text("name"),
    text("pool_size"),
    text("reserve_pool_size"),
    text("pool_mode"),
    int4("max_user_connections"),
    int4("current_connections"),
    int4("max_user_client_connections"),
    int4("current_client_connections"),
];

/// `SHOW USERS`: those seen since the start.
pub fn users(reports: &Reports, facts: &Facts) -> Table {
    let pools = pools_by(reports, |_, pool| (pool.user.to_string(), String::new()));
    let mode = mode_of(reports);
    let limits = &facts.limits;
    let rows = pools.into_iter().map(|((user, _), pool)| {
        row![
            user,
            None::<String>,
            None::<String>,
            mode,
            limits.max_servers_per_user,
            pool.in_use + pool.idle + pool.opening,
            limits.max_clients_per_user,
            pool.active + pool.waiting,
        ]
    });
    Table { columns: USERS, rows: rows.collect() }
}

/// `SHOW PEERS`: the other proxies of the fleet. A cancel request is handed over on a connection of its own, without a pool.
pub fn peers(facts: &Facts) -> Table {
    let rows = facts
        .peers
        .iter()
        .map(|(number, address)| row![*number, address.ip().to_string(), address.port(), None::<u32>]);
    let columns = const { &[int4("peer_id"), text("host"), int4("port"), int4("pool_size")] };
    Table { columns, rows: rows.collect() }
}

/// `SHOW DNS_HOSTS`: none, as nodes are known by their addresses.
pub fn dns_hosts() -> Table {
    Table { columns: const { &[text("hostname"), int8("ttl"), text("addrs")] }, rows: Vec::new() }
}

/// `SHOW DNS_ZONES`: none, as nodes are known by their addresses.
pub fn dns_zones() -> Table {
    Table { columns: const { &[text("zonename"), int8("serial"), int4("count")] }, rows: Vec::new() }
}

/// `SHOW STATE`
pub fn state(facts: &Facts) -> Table {
    let active = facts.paused.is_empty();
    let rows = vec![
        row!["active", if active { "yes" } else { "no" }],
        row!["paused", if active { "no" } else { "yes" }],
        row!["suspended", "no"],
    ];
    Table { columns: const { &[text("key"), text("value")] }, rows }
}

const TOPOLOGY: &[Column] = &[
    text("shard"),
    int8("generation"),
    text("role"),
    text("peer"),
    text("addr"),
    int4("port"),
    text("state"),
    text("position"),
    int8("lag_ms"),
    text("zookeeper"),
    text("own_login"),
];

/// `SHOW TOPOLOGY`: each shard's nodes as this proxy knows them.
pub fn topology(facts: &Facts) -> Table {
    let mut rows = Vec::new();
    for (shard, snapshot) in &facts.shards {
        let own_login = |node: PeerId| match facts.own_login_refused.get(&(shard.clone(), node)) {
            Some(cause) => format!("refused: {cause}"),
            None => "ok".to_owned(),
        };
        let zookeeper = if snapshot.state_is_current { "current" } else { "stale" };
        let named = snapshot.reign.map(|reign| crate::topology::Node::of(reign.primary));
        if let Some(node) = named {
            let confirmed = snapshot.primary() == Some(node);
            let position = snapshot.positions.last().filter(|_| confirmed).map(|sample| sample.lsn.to_string());
            let state = if confirmed { "serving" } else { "unavailable" };
            rows.push(row![
                shard.to_string(),
                snapshot.generation,
                "primary",
                node.id.to_string(),
                node.address.ip().to_string(),
                node.address.port(),
                state,
                position,
                None::<u64>,
                zookeeper,
                own_login(node.id),
            ]);
        }
        for standby in &snapshot.standbys {
            let role = if standby.role == manatee_shared::cluster::Role::Sync { "sync" } else { "async" };
            rows.push(row![
                shard.to_string(),
                snapshot.generation,
                role,
                standby.node.id.to_string(),
                standby.node.address.ip().to_string(),
                standby.node.address.port(),
                if standby.fit { "serving" } else { "lagging" },
                standby.replayed.lsn.to_string(),
                u64::try_from(standby.lag.as_millis()).unwrap_or(u64::MAX),
                zookeeper,
                own_login(standby.node.id),
            ]);
        }
        if named.is_none() {
            rows.push(row![
                shard.to_string(),
                0_u8,
                None::<String>,
                None::<String>,
                None::<String>,
                None::<u16>,
                "unknown",
                None::<String>,
                None::<u64>,
                zookeeper,
                None::<String>,
            ]);
        }
    }
    Table { columns: TOPOLOGY, rows }
}

/// `SHOW MEM`: of the process, in bytes, from /proc.
pub fn memory() -> Table {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let rows = [("resident", "VmRSS:"), ("resident_peak", "VmHWM:"), ("data", "VmData:")].map(|(name, key)| {
        let kilobytes = status
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
            .unwrap_or(0);
        row![name, 1024_u32, kilobytes, 0_u8, kilobytes * 1024]
    });
    Table {
        columns: const { &[text("name"), int4("size"), int8("used"), int8("free"), int8("memtotal")] },
        rows: rows.into(),
    }
}

/// `SHOW VERSION`
pub fn version() -> Table {
    let rows = vec![row![concat!("manatee-proxy ", env!("CARGO_PKG_VERSION"))]];
    Table { columns: const { &[text("version")] }, rows }
}

/// `SHOW CONFIG`, of rows (key, value, default, whether it can change without a restart).
pub fn config(entries: Vec<(String, String, String, bool)>) -> Table {
    let rows = entries
        .into_iter()
        .map(|(key, value, default, changeable)| row![key, value, default, if changeable { "yes" } else { "no" }]);
    Table {
        columns: const { &[text("key"), text("value"), text("default"), text("changeable")] },
        rows: rows.collect(),
    }
}

#[cfg(test)]
#[path = "show_tests.rs"]
mod tests;
