//! Habits of drivers: named statements, portals, pipelines, COPY, cancel.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{SinkExt, TryStreamExt};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls};

use super::harness::Proxy;

pub(crate) async fn connect(proxy: &Proxy) -> Client {
    let config = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", proxy.port);
    let (client, connection) = tokio_postgres::connect(&config, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

fn code(error: &tokio_postgres::Error) -> &str {
    error.code().map_or("", |code| code.code())
}

/// More clients than servers: a statement is rarely run on the server where it was prepared.
pub(crate) async fn statements_follow_their_client(proxy: &Proxy) {
    let mut clients = Vec::new();
    for number in 0..6_i32 {
        let client = connect(proxy).await;
        let shared = client.prepare("select $1::int + 1").await.unwrap();
        let own = client.prepare(&format!("select $1::text || '{number}'")).await.unwrap();
        clients.push((number, client, shared, own));
    }
    for round in 0..20_i32 {
        for (number, client, shared, own) in &clients {
            let numbers: [&(dyn ToSql + Sync); 1] = [&round];
            let texts: [&(dyn ToSql + Sync); 1] = [&"n"];
            let (sum, text) = tokio::join!(client.query_one(shared, &numbers), client.query_one(own, &texts));
            assert_eq!(sum.unwrap().get::<_, i32>(0), round + 1);
            assert_eq!(text.unwrap().get::<_, String>(0), format!("n{number}"));
        }
    }
}

/// A pipeline with an error in it goes on behind the Sync; other clients do not notice.
pub(crate) async fn errors_stay_where_they_are(proxy: &Proxy) {
    let (one, other) = (connect(proxy).await, connect(proxy).await);
    let bad = one.prepare("select 1 / $1::int").await.unwrap();
    for _ in 0..10 {
        let zero: [&(dyn ToSql + Sync); 1] = [&0_i32];
        let (failed, fine) = tokio::join!(one.query(&bad, &zero), other.query_one("select 7", &[]));
        assert_eq!(code(&failed.unwrap_err()), "22012");
        assert_eq!(fine.unwrap().get::<_, i32>(0), 7);
        assert_eq!(code(&one.prepare("selec").await.unwrap_err()), "42601");
        assert_eq!(one.query_one(&bad, &[&1]).await.unwrap().get::<_, i32>(0), 1);
    }
}

pub(crate) async fn portals_and_transactions(proxy: &Proxy) {
    let mut client = connect(proxy).await;
    let transaction = client.transaction().await.unwrap();
    let portal = transaction.bind("select generate_series(1, 5)", &[]).await.unwrap();
    let mut counts = Vec::new();
    for _ in 0..3 {
        counts.push(transaction.query_portal(&portal, 2).await.unwrap().len());
    }
    assert_eq!(counts, [2, 2, 1]);
    transaction.rollback().await.unwrap();
}

pub(crate) async fn copy_both_ways(proxy: &Proxy) {
    let client = connect(proxy).await;
    client.batch_execute("drop table if exists copied; create table copied (a int, b text)").await.unwrap();
    let mut sink = std::pin::pin!(client.copy_in::<_, bytes::Bytes>("copy copied from stdin").await.unwrap());
    for chunk in 0..200 {
        let rows: String = (0..500).map(|row| format!("{row}\t{chunk} some text to fill the line\n")).collect();
        sink.send(rows.into()).await.unwrap();
    }
    assert_eq!(sink.as_mut().finish().await.unwrap(), 100_000);
    let stream = client.copy_out("copy copied to stdout").await.unwrap();
    let bytes: usize = stream.try_fold(0, async |sum, chunk| Ok(sum + chunk.len())).await.unwrap();
    assert!(bytes > 3_000_000, "{bytes}");

    let mut sink = std::pin::pin!(client.copy_in::<_, bytes::Bytes>("copy copied from stdin").await.unwrap());
    sink.send("not a number\tx\n".into()).await.unwrap();
    assert_eq!(code(&sink.as_mut().finish().await.unwrap_err()), "22P02");
    assert_eq!(client.query_one("select count(*) from copied", &[]).await.unwrap().get::<_, i64>(0), 100_000);
    // Larger than any buffer on the way.
    let row = client.query_one("select repeat('x', 20000000)", &[]).await.unwrap();
    assert_eq!(row.get::<_, String>(0).len(), 20_000_000);
    let long = "y".repeat(5_000_000);
    let row = client.query_one("select length($1::text)", &[&long]).await.unwrap();
    assert_eq!(row.get::<_, i32>(0), 5_000_000);
}

pub(crate) async fn a_cancel_hits_its_query_only(proxy: &Proxy) {
    let (client, other) = (connect(proxy).await, connect(proxy).await);
    let token = client.cancel_token();
    // While the query to be cancelled is seen to run, the other client has one of its own.
    let cancel = async {
        let running = "select 1 from pg_stat_activity where state = 'active' and query = 'select pg_sleep(60)'";
        let seen = async { while other.query_opt(running, &[]).await.unwrap().is_none() {} };
        tokio::time::timeout(Duration::from_secs(30), seen).await.unwrap();
        tokio::join!(other.batch_execute("select pg_sleep(0.5)"), token.cancel_query(NoTls))
    };
    let (sleeping, (undisturbed, cancelled)) = tokio::join!(client.batch_execute("select pg_sleep(60)"), cancel);
    cancelled.unwrap();
    assert_eq!(code(&sleeping.unwrap_err()), "57014");
    undisturbed.unwrap();
    client.batch_execute("select 1").await.unwrap();
}

/// A table changes under a prepared statement: who knew it before is told, others are not disturbed.
pub(crate) async fn changed_tables(proxy: &Proxy) {
    let (old, new) = (connect(proxy).await, connect(proxy).await);
    old.batch_execute("drop table if exists changing; create table changing (a int)").await.unwrap();
    let statement = old.prepare("select * from changing").await.unwrap();
    old.query(&statement, &[]).await.unwrap();
    old.batch_execute("alter table changing add b int").await.unwrap();
    assert_eq!(code(&old.query(&statement, &[]).await.unwrap_err()), "0A000");
    let fresh = new.prepare("select * from changing").await.unwrap();
    assert_eq!(fresh.columns().len(), 2);
    new.query(&fresh, &[]).await.unwrap();
    old.batch_execute("drop table changing").await.unwrap();
}

/// Two clients with different settings on one server.
pub(crate) async fn settings_follow_their_client(proxy: &Proxy) {
    let (one, other) = (connect(proxy).await, connect(proxy).await);
    one.batch_execute("set application_name = 'one'; set search_path = 'one', public").await.unwrap();
    other.batch_execute("set work_mem = '7MB'").await.unwrap();
    for _ in 0..5 {
        let show = async |client: &Client, name: &str| {
            client.query_one(&format!("show {name}"), &[]).await.unwrap().get::<_, String>(0)
        };
        assert_eq!(show(&one, "application_name").await, "one");
        assert_eq!(show(&one, "search_path").await, "one, public");
        assert_eq!(show(&other, "search_path").await, "\"$user\", public");
        assert_eq!(show(&other, "work_mem").await, "7MB");
        assert_eq!(show(&one, "work_mem").await, "4MB");
    }
}

/// A client that leaves in a transaction takes nothing with it.
pub(crate) async fn a_vanished_client_is_rolled_back(proxy: &Proxy) {
    let client = connect(proxy).await;
    client.batch_execute("drop table if exists vanished; create table vanished (a int)").await.unwrap();
    let leaver = connect(proxy).await;
    leaver.batch_execute("begin; insert into vanished values (1)").await.unwrap();
    drop(leaver);
    for _ in 0..3 {
        assert_eq!(client.query_one("select count(*) from vanished", &[]).await.unwrap().get::<_, i64>(0), 0);
    }
    client.batch_execute("set lock_timeout = '5s'; drop table vanished").await.unwrap();
}

/// Even numbers write, odd ones read; the errors, and how many writes were acknowledged. What
/// is acknowledged is counted in `done` as it happens.
pub(crate) async fn keep_working(
    client: Client,
    number: i32,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
) -> (Vec<String>, usize) {
    let (mut errors, mut acknowledged) = (Vec::new(), 0);
    for round in 0_i32.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let result = if number % 2 == 0 {
            client.execute("insert into written values ($1, $2)", &[&number, &round]).await
        } else {
            client.execute("select * from written where number = $1 limit 1", &[&round]).await
        };
        match result {
            Ok(_) => {
                acknowledged += usize::from(number % 2 == 0);
                done.fetch_add(usize::from(number % 2 == 0), Ordering::Relaxed);
            }
            Err(error) => errors.push(format!("client {number}: {error:?}")),
        }
    }
    (errors, acknowledged)
}
