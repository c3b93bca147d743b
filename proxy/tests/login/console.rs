//! The console, by psql and by drivers.

use std::process::Command;
use std::time::{Duration, Instant};

use tokio_postgres::{Client, NoTls, SimpleQueryMessage, SimpleQueryRow};

use crate::Bench;

/// Long enough for anything that is going to happen.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) async fn connect(bench: &Bench, user: &str, password: &str, database: &str) -> Client {
    let (client, connection) = bench.client(user, password).dbname(database).connect(NoTls).await.expect("connection");
    tokio::spawn(connection);
    client
}

async fn rows(client: &Client, command: &str) -> Vec<SimpleQueryRow> {
    let messages = client.simple_query(command).await.unwrap_or_else(|error| panic!("{command}: {error}"));
    let rows = messages.into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    rows.collect()
}

async fn code(client: &Client, command: &str) -> String {
    let error = client.simple_query(command).await.expect_err(command);
    error.code().map_or_else(|| error.to_string(), |code| code.code().to_owned())
}

async fn pid(client: &Client) -> String {
    rows(client, "SELECT pg_backend_pid()").await[0].get(0).expect("pid").to_owned()
}

pub(crate) async fn console(bench: &Bench) {
    rights(bench).await;
    let boss = connect(bench, "boss", "boss's", "manatee").await;
    tables(bench, &boss).await;
    psql(bench);
    pausing(bench, &boss).await;
    killing(bench, &boss).await;
    renewing(bench, &boss).await;
    reloading(bench, &boss).await;
}

async fn rights(bench: &Bench) {
    assert_eq!(bench.refused(bench.client("alice", "secret").dbname("manatee")).await.0, "28000");
    assert_eq!(bench.refused(bench.client("boss", "wrong").dbname("manatee")).await.0, "28P01");
    let watcher = connect(bench, "watcher", "secret", "manatee").await;
    assert_eq!(rows(&watcher, "SHOW VERSION").await.len(), 1);
    for command in ["PAUSE", "RELOAD", "KILL postgres", "SHUTDOWN", "DISABLE postgres"] {
        assert_eq!(code(&watcher, command).await, "42501", "{command}");
    }
    assert_eq!(code(&watcher, "SELECT 1").await, "42601");
    assert_eq!(rows(&watcher, "SHOW STATE").await.len(), 3, "an error does not end the console");
}

/// Tables that PgBouncer's Prometheus exporter asks for, read as it reads them.
async fn tables(bench: &Bench, boss: &Client) {
    let alice = connect(bench, "alice", "secret", "postgres").await;
    rows(&alice, "SELECT 1").await;
    for command in ["SHOW STATS", "SHOW DATABASES;", "SHOW STATS_TOTALS;", "SHOW POOLS;"] {
        let rows = rows(boss, command).await;
        let label = if command.contains("DATABASES") { "name" } else { "database" };
        let row = rows.iter().find(|row| row.get(label) == Some("postgres")).unwrap_or_else(|| panic!("{command}"));
        if command.contains("STATS_TOTALS") {
            let count = |name: &str| row.get(name).expect(name).parse::<u64>().expect("number");
            assert!(count("query_count") >= 1 && count("xact_count") >= 1 && count("bytes_sent") > 0);
        }
    }
    let pools = rows(boss, "SHOW POOLS").await;
    let is_ours = |row: &&SimpleQueryRow| row.get("user") == Some("alice") && row.get("database") == Some("postgres");
    let pool = pools.iter().find(is_ours).expect("alice's pool");
    assert_eq!((pool.get("cl_active"), pool.get("pool_mode")), (Some("1"), Some("transaction")));
    // Those who left before go soon; consoles are no clients.
    let begun = Instant::now();
    loop {
        let lists = rows(boss, "SHOW LISTS;").await;
        let used = lists.iter().find(|row| row.get("list") == Some("used_clients")).expect("used_clients");
        if used.get("items") == Some("1") {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "used_clients: {:?}", used.get("items"));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let config = rows(boss, "SHOW CONFIG;").await;
    let most = config.iter().find(|row| row.get("key") == Some("max_client_conn")).expect("max_client_conn");
    assert_eq!((most.len(), most.get("value")), (4, Some("10000")));
    let clients = rows(boss, "SHOW CLIENTS").await;
    assert_eq!(clients[0].get("user"), Some("alice"));
    let topology = rows(boss, "SHOW TOPOLOGY").await;
    assert_eq!((topology[0].get("role"), topology[0].get("state")), (Some("primary"), Some("serving")));
    for subject in "ACTIVE_SOCKETS MEM NODES SERVERS SOCKETS STATE STATS_AVERAGES TOTALS USERS HELP".split(' ') {
        boss.simple_query(&format!("SHOW {subject}")).await.unwrap_or_else(|error| panic!("{subject}: {error}"));
    }
    // Extended protocol, binary results.
    let pools = boss.query("SHOW POOLS", &[]).await.expect("pools");
    let is_ours = |row: &&tokio_postgres::Row| (row.get(0), row.get(1)) == ("postgres", "alice");
    let pool = pools.iter().find(is_ours).expect("alice's pool");
    assert_eq!(pool.get::<_, i64>("cl_active"), 1);
    assert!(boss.query("SHOW NONSENSE", &[]).await.is_err());
    assert_eq!(boss.query("SHOW VERSION", &[]).await.expect("after an error").len(), 1);
}

fn psql(bench: &Bench) {
    let conninfo = format!("host=127.0.0.1 port={} user=boss dbname=manatee", bench.proxy.port());
    let output = Command::new("psql")
        .arg(conninfo)
        .args(["-X", "-c", "SHOW POOLS", "-c", "SHOW HELP", "-c", ";", "-c", "SHOW LISTS; SHOW VERSION"])
        .env("PGPASSWORD", "boss's")
        .output()
        .expect("psql");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("cl_active") && text.contains("Console usage") && text.contains("manatee-proxy"), "{text}");
}

async fn pausing(bench: &Bench, boss: &Client) {
    let alice = connect(bench, "alice", "secret", "postgres").await;
    rows(&alice, "BEGIN").await;
    // A transaction that is open is waited for.
    let pause = boss.simple_query("PAUSE postgres");
    tokio::pin!(pause);
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut pause).await.is_err());
    rows(&alice, "COMMIT").await;
    tokio::time::timeout(PATIENCE, pause).await.expect("paused").expect("paused");
    assert_eq!(code(boss, "PAUSE postgres").await, "55000");
    {
        let waiting = alice.simple_query("SELECT 1");
        tokio::pin!(waiting);
        assert!(tokio::time::timeout(Duration::from_millis(200), &mut waiting).await.is_err());
        let pools = rows(boss, "SHOW POOLS").await;
        let pool = pools.iter().find(|row| row.get("cl_waiting") == Some("1")).expect("alice waits");
        assert_eq!((pool.get("database"), pool.get("sv_idle")), (Some("postgres"), Some("0")));
        rows(boss, "RESUME postgres").await;
        tokio::time::timeout(PATIENCE, waiting).await.expect("resumed").expect("served");
    }
    for command in ["PAUSE", "KILL", "DISABLE", "RECONNECT", "WAIT_CLOSE"] {
        assert_eq!(code(boss, &format!("{command} nosuch")).await, "3D000", "{command}");
    }
    // One that nobody has used yet.
    rows(boss, "PAUSE template1; RESUME template1").await;
    assert_eq!(rows(&connect(bench, "boss", "boss's", "pgbouncer").await, "SHOW VERSION").await.len(), 1);
    assert_eq!(code(boss, "RESUME").await, "55000");
    rows(boss, "PAUSE").await;
    rows(boss, "RESUME").await;
    rows(boss, "DISABLE postgres").await;
    assert_eq!(bench.refused(&bench.client("alice", "secret")).await.0, "55000");
    rows(&alice, "SELECT 1").await;
    rows(boss, "ENABLE postgres").await;
    connect(bench, "alice", "secret", "postgres").await;
}

async fn killing(bench: &Bench, boss: &Client) {
    let alice = connect(bench, "alice", "secret", "postgres").await;
    let other = connect(bench, "oldtimer", "secret", "postgres").await;
    rows(&other, "SELECT 1").await;
    let clients = rows(boss, "SHOW CLIENTS").await;
    let client = clients.iter().find(|row| row.get("user") == Some("oldtimer")).expect("oldtimer");
    rows(boss, &format!("KILL_CLIENT {}", client.get("id").expect("id"))).await;
    assert!(other.simple_query("SELECT 1").await.is_err(), "it is gone");
    rows(&alice, "SELECT 1").await;
    assert_eq!(code(boss, "KILL_CLIENT 1").await, "55000");
    // In the middle of a query.
    {
        let asleep = alice.simple_query("SELECT pg_sleep(60)");
        tokio::pin!(asleep);
        assert!(tokio::time::timeout(Duration::from_millis(200), &mut asleep).await.is_err());
        tokio::time::timeout(PATIENCE, boss.simple_query("KILL postgres")).await.expect("killed").expect("killed");
        assert_eq!(asleep.await.expect_err("killed").code().expect("told").code(), "57P01");
    }
    rows(boss, "RESUME postgres").await;
    rows(&connect(bench, "alice", "secret", "postgres").await, "SELECT 1").await;
}

async fn renewing(bench: &Bench, boss: &Client) {
    let alice = connect(bench, "alice", "secret", "postgres").await;
    let before = pid(&alice).await;
    assert_eq!(before, pid(&alice).await);
    rows(boss, "RECONNECT postgres").await;
    rows(boss, "WAIT_CLOSE").await;
    assert_ne!(before, pid(&alice).await);
}

async fn reloading(bench: &Bench, boss: &Client) {
    let value = async |key: &str| {
        let config = rows(boss, "SHOW CONFIG").await;
        config.iter().find(|row| row.get("key") == Some(key)).and_then(|row| row.get("value").map(str::to_owned))
    };
    let write = |pool: &str| {
        let text = crate::configuration(bench.postgres.folder(), &[("pool", pool.to_owned())]);
        std::fs::write(&bench.config, text).expect("write");
    };
    write("size = 3");
    rows(boss, "RELOAD").await;
    assert_eq!(value("pool.size").await.as_deref(), Some("3"));
    assert_eq!(rows(boss, "SHOW DATABASES").await[0].get("pool_size"), Some("3"));
    write("size = 0");
    assert_eq!(code(boss, "RELOAD").await, "55000");
    assert_eq!(value("pool.size").await.as_deref(), Some("3"), "the old configuration stays");
    write("");
    rows(boss, "RELOAD").await;
    assert_eq!(value("pool.size").await.as_deref(), Some("40"));
}
