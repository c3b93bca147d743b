//! Rows that VACUUM may remove, and the holders that keep it from doing so.

use manatee_shared::ids::PeerId;
use manatee_sitter::machine::local::{HorizonHolder, Recovery, ServerConfig, Synchronous};
use manatee_sitter::postgres::slot_name;
use tokio_postgres::Client;

use super::peer::TestPeer;
use super::{config, follow, shard, until_some};

/// Whether the slot of `peer` is in use, the oldest transaction it keeps, and its WAL.
async fn slot(session: &Client, peer: PeerId) -> (bool, Option<String>, String) {
    let sql = "SELECT active, xmin::text, restart_lsn::text FROM pg_replication_slots WHERE slot_name = $1::text::name";
    let row = session.query_one(sql, &[&slot_name(peer)]).await.unwrap();
    (row.get(0), row.get(1), row.get(2))
}

/// Waits until the slot of `peer` keeps an old transaction, of a standby that streams.
async fn used(at: &TestPeer, peer: PeerId) {
    let session = at.client().await.unwrap();
    until_some("feedback", async || slot(&session, peer).await.1).await;
}

/// Waits until it keeps none, and checks that it keeps the same WAL.
async fn unused(at: &TestPeer, peer: PeerId) {
    let session = at.client().await.unwrap();
    let wal = until_some("the end of the stream", async || {
        let (active, _, wal) = slot(&session, peer).await;
        (!active).then_some(wal)
    })
    .await;
    let after = until_some("a slot that keeps no transaction", async || {
        let (_, transaction, wal) = slot(&session, peer).await;
        transaction.is_none().then_some(wal)
    })
    .await;
    assert_eq!(wal, after, "the WAL that the peer may need stays");
}

/// Makes rows that are dead, and waits for a VACUUM that removes them: a moment after the last feedback of a standby.
async fn vacuumed(primary: &TestPeer) {
    let session = primary.client().await.unwrap();
    session.batch_execute("UPDATE t SET n = n + 1").await.unwrap();
    until_some("a VACUUM that removes what is dead", async || {
        session.batch_execute("VACUUM t").await.unwrap();
        let left = "SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 't'";
        let left: i64 = session.query_one(left, &[]).await.unwrap().get(0);
        (left == 0).then_some(())
    })
    .await;
}

fn moved(upstream: &TestPeer) -> ServerConfig {
    follow(upstream, &[])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_nobody_streams_from_do_not_hold_vacuum() {
    let (primary, [first, second]) = shard().await;
    primary.sql("CREATE TABLE t AS SELECT g AS n FROM generate_series(1, 100) g").await;
    used(&primary, second.id).await;
    // As in every shard: whoever comes in follows the primary first, and goes below the sync then.
    second.postgres.configure(&moved(&first)).await.unwrap();
    first.followed_by(second.id).await;
    unused(&primary, second.id).await;
    vacuumed(&primary).await;
    // A standby's slots hold it up as well, by that standby's own feedback.
    used(&first, second.id).await;
    second.postgres.configure(&moved(&primary)).await.unwrap();
    primary.followed_by(second.id).await;
    unused(&first, second.id).await;
    vacuumed(&primary).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_keeps_the_oldest_transaction_is_named() {
    let primary = TestPeer::with(|(settings, _)| {
        settings.parameters.insert("max_prepared_transactions".into(), "2".into());
    });
    primary.data.adopt().await.unwrap();
    primary.data.initialise().await.unwrap();
    primary.postgres.start(&config(Recovery::Primary, Synchronous::Nobody, &[])).await.unwrap();
    let named = async |holder: HorizonHolder, name: &str| {
        let mut condition = primary.postgres.condition();
        let found = condition.wait_for(|condition| {
            let horizon = condition.horizon.as_ref();
            horizon.is_some_and(|horizon| horizon.holder == holder && horizon.name.contains(name))
        });
        let found = tokio::time::timeout(std::time::Duration::from_secs(20), found).await;
        assert!(found.is_ok(), "{holder:?} {name} is not named: {:?}", primary.postgres.condition().borrow());
    };
    primary.sql("CREATE TABLE t (n int)").await;
    let reader = primary.client().await.unwrap();
    reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM t").await.unwrap();
    named(HorizonHolder::Transaction, "of postgres in postgres").await;
    reader.batch_execute("COMMIT").await.unwrap();
    primary.sql("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'left'").await;
    named(HorizonHolder::PreparedTransaction, "'left' of postgres in postgres").await;
}
