//! Room at the node itself: idle servers of roles that do nothing, and of databases that are to be dropped, do not
//! stand in anybody's way.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use manatee_shared::cluster::Peer;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::Bench;
use crate::console::connect;
use crate::rules::configure;

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

/// Statements of test runners, in both protocols.
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

/// A client that tries again after it was held in vain is not held for as long once more.
pub(crate) async fn holds_in_a_row(bench: &Bench) {
    configure(bench, &[("hold", "timeout = \"4s\"".to_owned())]).await;
    let alice = connect(bench, "alice", "secret", "postgres").await;
    let elsewhere = Peer::new("127.0.0.9:5432:1".parse().expect("id"), "two");
    let here = bench.state.borrow().as_ref().expect("state").primary.clone();
    name_primary(bench, &elsewhere);
    let mut waits = Vec::new();
    for _ in 0..3 {
        let begun = Instant::now();
        let answer = soon("an answer", alice.batch_execute("SELECT 1")).await;
        assert_eq!(answer.expect_err("no primary").code().map(SqlState::code), Some("57P03"));
        waits.push(begun.elapsed());
    }
    assert!(waits[1] < waits[0] / 2 && waits[2] < waits[0] / 2, "{waits:?}");
    name_primary(bench, &here);
    soon("the primary", alice.batch_execute("SELECT 1")).await.expect("served again");
    configure(bench, &[]).await;
}

fn name_primary(bench: &Bench, primary: &Peer) {
    bench.state.send_modify(|state| {
        if let Some(state) = state {
            (state.version, state.generation) = (state.version + 1, state.generation + 1);
            state.primary = primary.clone();
        }
    });
}

/// At the end of the proxy, clients hear of it, at work or not.
pub(crate) async fn the_end(bench: &Bench) {
    let (idle, busy) =
        (connect(bench, "alice", "secret", "postgres").await, connect(bench, "alice", "secret", "postgres").await);
    let asleep = busy.batch_execute("SELECT pg_sleep(60)");
    tokio::pin!(asleep);
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut asleep).await.is_err());
    bench.shared.send_everybody_away().await;
    let told = soon("last words", asleep).await.expect_err("ended");
    assert_eq!(told.code().map(SqlState::code), Some("57P01"));
    assert!(idle.is_closed() || idle.batch_execute("SELECT 1").await.is_err());
}
