use super::*;
use crate::pool::census::{Counts, Histogram, NodeReport};
use crate::topology::Node;

/// Headings of PgBouncer 1.18 (Debian 12), as it printed them.
const PGBOUNCER: [(&str, &str); 9] = [
    (
        "STATS",
        "database|total_xact_count|total_query_count|total_received|total_sent|total_xact_time|total_query_time|total_wait_time|avg_xact_count|avg_query_count|avg_recv|avg_sent|avg_xact_time|avg_query_time|avg_wait_time",
    ),
    ("STATS_TOTALS", "database|xact_count|query_count|bytes_received|bytes_sent|xact_time|query_time|wait_time"),
    (
        "POOLS",
        "database|user|cl_active|cl_waiting|cl_active_cancel_req|cl_waiting_cancel_req|sv_active|sv_active_cancel|sv_being_canceled|sv_idle|sv_used|sv_tested|sv_login|maxwait|maxwait_us|pool_mode",
    ),
    (
        "DATABASES",
        "name|host|port|database|force_user|pool_size|min_pool_size|reserve_pool|pool_mode|max_connections|current_connections|paused|disabled",
    ),
    (
        "CLIENTS",
        "type|user|database|state|addr|port|local_addr|local_port|connect_time|request_time|wait|wait_us|close_needed|ptr|link|remote_pid|tls|application_name",
    ),
    ("LISTS", "list|items"),
    ("USERS", "name|pool_mode"),
    ("VERSION", "version"),
    ("MEM", "name|size|used|free|memtotal"),
];

/// Headings of PgBouncer 1.25 in its order, as its documentation has them.
const PGBOUNCER_NOW: [(&str, &str); 4] = [
    (
        "DATABASES",
        "name|host|port|database|force_user|pool_size|min_pool_size|reserve_pool_size|server_lifetime|pool_mode|load_balance_hosts|max_connections|current_connections|max_client_connections|current_client_connections|paused|disabled",
    ),
    (
        "CLIENTS",
        "type|user|database|replication|state|addr|port|local_addr|local_port|connect_time|request_time|wait|wait_us|close_needed|ptr|link|remote_pid|tls|application_name|prepared_statements|id",
    ),
    (
        "USERS",
        "name|pool_size|reserve_pool_size|pool_mode|max_user_connections|current_connections|max_user_client_connections|current_client_connections",
    ),
    ("PEERS", "peer_id|host|port|pool_size"),
];

fn facts() -> Facts {
    Facts {
        logging_in: 1,
        disabled: BTreeSet::new(),
        paused: [Some("app".to_owned())].into(),
        limits: config::Pool { max_clients: 100, ..config::Pool::default() },
        peers: [(2, "10.0.0.9:6432".parse().expect("address"))].into(),
        threads: 2,
        default_shard: "demo".parse().expect("name"),
        aliases: BTreeMap::new(),
        own_login_refused: BTreeMap::new(),
        shards: vec![("demo".parse().expect("name"), std::sync::Arc::new(Snapshot::unknown()))],
    }
}

fn report(user: &str, node: u8, counted: u64) -> Report {
    let node = Node::of(format!("10.0.0.{node}:5432:1").parse().expect("id"));
    let pool = PoolReport {
        user: user.into(),
        database: "app".into(),
        clients_active: 2,
        clients_waiting: 1,
        longest_wait: Duration::from_micros(1_500_000),
        clients_bound: 1,
        bound_by: Default::default(),
        canceled_in_use: 1,
        canceled_idle: 0,
        counted: Counts { queries: counted, logins: counted, ..Counts::default() },
        nodes: vec![NodeReport { node, size: 10, in_use: 2, idle: 3, opening: 1 }],
    };
    Report {
        mode: Mode::Transaction,
        pools: vec![pool],
        departed: Counts::default(),
        clients: Vec::new(),
        servers: Vec::new(),
        held: 0,
        on_primary: Histogram::default(),
        on_standby: Histogram::default(),
    }
}

fn reports() -> Vec<(ShardName, Report)> {
    let shard = |name: &str| name.parse().expect("name");
    vec![
        (shard("demo"), report("alice", 1, 5)),
        (shard("demo"), report("alice", 2, 7)),
        (shard("demo"), report("bob", 1, 1)),
        (shard("other"), report("alice", 3, 100)),
    ]
}

fn field<'a>(table: &'a Table, row: usize, name: &str) -> &'a str {
    let column = table.columns.iter().position(|column| column.name == name).expect(name);
    table.rows[row][column].as_deref().unwrap_or("NULL")
}

#[test]
fn pgbouncers_columns_are_all_there() {
    let (reports, facts) = (reports(), facts());
    let totals = totals(&reports, &facts);
    for (subject, headings) in PGBOUNCER {
        let table = match subject {
            "STATS" => stats(&totals, &Totals::new()),
            "STATS_TOTALS" => stats_of(&totals),
            "POOLS" => pools(&reports, &facts),
            "DATABASES" => databases(&reports, &facts),
            "CLIENTS" => clients(&reports, &facts),
            "LISTS" => lists(&reports, &facts),
            "USERS" => users(&reports, &facts),
            "VERSION" => version(),
            _ => memory(),
        };
        let names: Vec<&str> = table.columns.iter().map(|column| column.name).collect();
        for heading in headings.split('|') {
            assert!(names.contains(&heading), "SHOW {subject} has no {heading}");
        }
        for row in &table.rows {
            assert_eq!(row.len(), table.columns.len(), "SHOW {subject}");
        }
    }
}

#[test]
fn columns_come_in_the_order_of_todays_pgbouncer() {
    let (reports, facts) = (reports(), facts());
    for (subject, headings) in PGBOUNCER_NOW {
        let table = match subject {
            "DATABASES" => databases(&reports, &facts),
            "CLIENTS" => clients(&reports, &facts),
            "USERS" => users(&reports, &facts),
            _ => peers(&facts),
        };
        let names: Vec<&str> = table.columns.iter().map(|column| column.name).collect();
        let wanted: Vec<&str> = headings.split('|').collect();
        assert_eq!(names[..wanted.len()], wanted, "SHOW {subject}");
    }
    assert_eq!(peers(&facts).rows, [row![2_u32, "10.0.0.9", 6432_u16, None::<u32>]]);
}

#[test]
fn limits_are_those_of_the_configuration() {
    let pool = config::Pool {
        max_servers_per_user: 7,
        max_servers_per_database: 8,
        max_clients_per_user: 9,
        max_clients_per_database: 11,
        ..config::Pool::default()
    };
    let (reports, facts) = (reports(), Facts { limits: pool, ..facts() });
    let databases = databases(&reports, &facts);
    assert_eq!(
        ["max_connections", "max_client_connections", "server_lifetime"].map(|name| field(&databases, 0, name)),
        ["8", "11", "3600"]
    );
    let users = users(&reports, &facts);
    assert_eq!(["max_user_connections", "max_user_client_connections"].map(|name| field(&users, 0, name)), ["7", "9"]);
}

#[test]
fn servers_with_a_cancel_under_way_are_neither_active_nor_idle() {
    let pools = pools(&reports(), &facts());
    // Two threads with two servers in use and three idle each; one of each thread is being cancelled.
    assert_eq!(["sv_active", "sv_being_canceled", "sv_idle"].map(|name| field(&pools, 0, name)), ["2", "2", "6"]);
}

#[test]
fn threads_and_nodes_are_added_up() {
    let (reports, facts) = (reports(), facts());
    let pools = pools(&reports, &facts);
    assert_eq!(pools.rows.len(), 3, "alice and bob on app, alice on the other shard's");
    assert_eq!(
        (field(&pools, 0, "user"), field(&pools, 0, "cl_active"), field(&pools, 0, "sv_idle")),
        ("alice", "4", "6")
    );
    assert_eq!((field(&pools, 0, "maxwait"), field(&pools, 0, "maxwait_us")), ("1", "500000"));
    assert_eq!(field(&pools, 2, "database"), "other/app");
    let totals = totals(&reports, &facts);
    assert_eq!(totals["app"], Counts { queries: 13, logins: 13, ..Counts::default() });
    let databases = databases(&reports, &facts);
    assert_eq!((field(&databases, 0, "paused"), field(&databases, 1, "paused")), ("1", "0"));
    let lists = lists(&reports, &facts);
    assert_eq!(lists.rows[0], row!["databases", 2_u8]);
    assert_eq!(nodes(&reports, &facts).rows.len(), 4);
}

#[test]
fn averages_are_per_second_or_per_query() {
    let before = Counts::default();
    let after = Counts {
        assignments: 20,
        transactions: 10,
        queries: 40,
        received: 1000,
        sent: 2000,
        transaction_us: 5000,
        query_us: 8000,
        wait_us: 600,
        logins: 4,
    };
    let expected = Counts {
        assignments: 10,
        transactions: 5,
        queries: 20,
        received: 500,
        sent: 1000,
        transaction_us: 500,
        query_us: 200,
        wait_us: 300,
        logins: 2,
    };
    assert_eq!(averages(before, after, Duration::from_secs(2)), expected);
    assert_eq!(averages(after, before, Duration::ZERO), Counts::default(), "a restart of the counters is no burst");
}

#[test]
fn a_shard_of_which_nothing_is_known_is_still_listed() {
    let table = topology(&facts());
    assert_eq!((table.rows.len(), field(&table, 0, "state"), field(&table, 0, "zookeeper")), (1, "unknown", "stale"));
}
