//! Readers of a standby that hold up replay, when that standby takes over.

use manatee_sitter::machine::action::StopMode;
use manatee_sitter::machine::local::{Local, Obstacle, Recovery, Server, Synchronous};
use tokio_postgres::Client;

use super::peer::TestPeer;
use super::{config, until_some};

/// A primary and a standby whose readers are never cancelled by PostgreSQL itself, with a table.
async fn pair(feedback: &str) -> (TestPeer, TestPeer) {
    let (primary, [standby]) = super::shard_of(|| {
        TestPeer::with(|(settings, _)| {
            for (name, value) in [("max_standby_streaming_delay", "-1"), ("hot_standby_feedback", feedback)] {
                settings.parameters.insert(name.into(), value.into());
            }
        })
    })
    .await;
    primary.sql("CREATE TABLE t AS SELECT g AS n FROM generate_series(1, 1000) g").await;
    (primary, standby)
}

/// A transaction at rest on the standby that has read the table.
async fn reader(standby: &TestPeer) -> Client {
    let reader = standby.client().await.unwrap();
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM t";
    until_some("the table", async || {
        let done = reader.batch_execute(begin).await.is_ok();
        if !done {
            reader.batch_execute("ROLLBACK").await.unwrap();
        }
        done.then_some(())
    })
    .await;
    reader
}

fn waits_for(obstacle: Obstacle) -> impl Fn(&Local) -> bool {
    move |local| matches!(&local.server, Server::Standby(standby) if standby.replay.waits_for == Some(obstacle))
}

/// Takes over while replay waits, and shows that nothing that was received is missing.
async fn take_over(primary: &TestPeer, standby: &TestPeer) {
    primary.postgres.stop(StopMode::Immediate).await.unwrap();
    standby.postgres.configure(&config(Recovery::Detached, Synchronous::Impossible, &[])).await.unwrap();
    standby.postgres.promote(&config(Recovery::Primary, Synchronous::Nobody, &[]), None).await.unwrap();
    standby.sql("INSERT INTO last VALUES (2)").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_of_a_reader_does_not_hold_a_takeover_up() {
    let (primary, standby) = pair("on").await;
    let reader = reader(&standby).await;
    primary.sql("ALTER TABLE t ADD COLUMN x int; CREATE TABLE last (n int)").await;
    standby.until("a wait for the lock", waits_for(Obstacle::Lock)).await;
    // Who is not in the way stays.
    let bystander = standby.client().await.unwrap();
    bystander.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class").await.unwrap();
    take_over(&primary, &standby).await;
    assert!(reader.batch_execute("SELECT 1").await.is_err(), "the reader was ended");
    bystander.batch_execute("SELECT 1").await.expect("the bystander was left alone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_a_reader_does_not_hold_a_takeover_up() {
    let (primary, standby) = pair("off").await;
    let reader = reader(&standby).await;
    primary.sql("DELETE FROM t").await;
    primary.sql("VACUUM t").await;
    primary.sql("CREATE TABLE last (n int)").await;
    standby.until("a wait for the snapshot", waits_for(Obstacle::Snapshot)).await;
    take_over(&primary, &standby).await;
    assert!(reader.batch_execute("SELECT 1").await.is_err(), "the reader was ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_replay_is_shown_and_ends_with_a_takeover() {
    let (primary, standby) = pair("on").await;
    standby.sql("SELECT pg_wal_replay_pause()").await;
    primary.sql("CREATE TABLE last (n int)").await;
    standby.until("a pause", |local| matches!(&local.server, Server::Standby(standby) if standby.replay.paused)).await;
    take_over(&primary, &standby).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_replay_waits_for_can_be_ended_without_a_takeover() {
    let (primary, standby) = pair("on").await;
    assert_eq!(standby.postgres.clear_replay().await.unwrap(), None);
    let reader = reader(&standby).await;
    primary.sql("ALTER TABLE t ADD COLUMN x int; CREATE TABLE last (n int)").await;
    standby.until("a wait for the lock", waits_for(Obstacle::Lock)).await;
    assert_eq!(standby.postgres.clear_replay().await.unwrap(), Some(Obstacle::Lock));
    let client = standby.client().await.unwrap();
    until_some("replay", async || client.batch_execute("SELECT FROM last").await.ok()).await;
    assert!(reader.batch_execute("SELECT 1").await.is_err(), "the reader was ended");
}
