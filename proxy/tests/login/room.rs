//! Room at the node itself: idle servers of roles that do nothing, and of databases that are to be dropped, do not
//! stand in anybody's way.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio_postgres::Client;

use crate::Bench;
use crate::console::connect;

const PATIENCE: Duration = Duration::from_secs(30);
/// Clients of each role, each of which has a server at the same time.
const CLIENTS: usize = 20;

async fn soon<T>(what: &str, wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

/// Six roles one after the other need more servers together than the node has connections (100 by default), each by
/// itself far fewer: the ones that lie idle make room, on whichever thread they are.
pub(crate) async fn a_full_node(bench: &Bench) {
    for number in 0..6 {
        bench.postgres.run(&format!("CREATE ROLE tenant{number} LOGIN PASSWORD 'secret'")).await;
    }
    for number in 0..6 {
        let role = format!("tenant{number}");
        let clients = join_all((0..CLIENTS).map(|_| connect(bench, &role, "secret", "postgres"))).await;
        let begun = clients.iter().map(|client| client.batch_execute("BEGIN; SELECT 1"));
        for result in soon(&role, join_all(begun)).await {
            result.expect("a server");
        }
        for result in join_all(clients.iter().map(|client| client.batch_execute("COMMIT"))).await {
            result.expect("commit");
        }
    }
}

/// A client of the database comes and goes: its server stays behind in the pool.
async fn visit(bench: &Bench, database: &str) {
    let client = connect(bench, "alice", "secret", database).await;
    client.batch_execute("SELECT 1").await.expect("a query");
}

async fn is_shown(boss: &Client, database: &str) -> bool {
    let pools = boss.query("SHOW POOLS", &[]).await.expect("pools");
    pools.iter().any(|row| row.get::<_, &str>("database") == database)
}

/// What test runners do all the time, in both protocols.
pub(crate) async fn databases_come_and_go(bench: &Bench) {
    bench.postgres.run("ALTER ROLE alice CREATEDB").await;
    let alice = connect(bench, "alice", "secret", "postgres").await;
    let boss = connect(bench, "boss", "boss's", "manatee").await;
    alice.batch_execute("CREATE DATABASE fresh").await.expect("create");
    visit(bench, "fresh").await;
    alice.batch_execute("ALTER DATABASE fresh RENAME TO renamed").await.expect("rename");
    visit(bench, "renamed").await;
    alice.execute("CREATE DATABASE copy TEMPLATE renamed", &[]).await.expect("copy");
    visit(bench, "renamed").await;
    visit(bench, "copy").await;
    alice.execute("DROP DATABASE renamed", &[]).await.expect("drop");
    assert!(is_shown(&boss, "copy").await);
    alice.batch_execute("DROP DATABASE copy").await.expect("drop");
    // By the next look at its functions at the latest.
    let begun = Instant::now();
    while is_shown(&boss, "copy").await || is_shown(&boss, "fresh").await {
        assert!(begun.elapsed() < 2 * PATIENCE, "dropped databases stay in SHOW POOLS");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // One that is made again under the name begins anew.
    alice.batch_execute("CREATE DATABASE copy").await.expect("create");
    visit(bench, "copy").await;
    alice.batch_execute("DROP DATABASE copy").await.expect("drop");
}
