//! Settings that a standby needs as high as its primary's, changed on the primary alone (P-4).

use manatee_sitter::machine::action::StopMode;
use manatee_sitter::machine::capacity::{Capacities, Capacity, Override};
use manatee_sitter::machine::local::{Local, Recovery, Server, ServerConfig, Synchronous};
use manatee_sitter::postgres::Postgres;

use super::peer::TestPeer;
use super::{config, follow, until_some};

/// Value that both have at first.
const BEFORE: u32 = 40;
/// Value that the primary has later.
const RAISED: u32 = 60;

async fn pair() -> (TestPeer, TestPeer) {
    let (primary, [standby]) = super::shard_of(|| {
        TestPeer::with(|(settings, _)| {
            settings.parameters.insert("max_connections".into(), BEFORE.to_string());
            // What the sitter must know does not depend on how PostgreSQL logs.
            settings.parameters.insert("log_error_verbosity".into(), "terse".into());
        })
    })
    .await;
    (primary, standby)
}

/// The primary as it starts with another value in its files.
async fn restart_with(primary: &TestPeer, value: u32, config: &ServerConfig) -> Postgres {
    primary.postgres.stop(StopMode::Fast).await.unwrap();
    let mut settings = primary.settings.clone();
    settings.parameters.insert("max_connections".into(), value.to_string());
    let other = Postgres::new(settings, primary.id).unwrap();
    other.adopt().await.unwrap();
    other.start(config).await.unwrap();
    other
}

fn runs_with(local: &Local) -> Option<u32> {
    local.capacities.map(|capacities| capacities.get(Capacity::MaxConnections))
}

fn is_short(local: &Local) -> bool {
    matches!(&local.server, Server::Standby(standby) if standby.replay.short_of.is_some())
}

async fn is_promoted(standby: &TestPeer) {
    standby.sql("INSERT INTO t VALUES (2)").await;
    let client = standby.client().await.unwrap();
    let row = client.query_one("SELECT count(*) FROM t", &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 2, "what was acknowledged is there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_has_less_than_its_primary_is_restarted_with_it_and_takes_over() {
    let (primary, standby) = pair().await;
    let waits = config(Recovery::Primary, Synchronous::Peer(standby.id), &[standby.id]);
    let raised = restart_with(&primary, RAISED, &waits).await;
    assert_eq!(runs_with(&raised.local().borrow()), Some(RAISED));
    // Received and acknowledged, but not replayed.
    primary.sql("CREATE TABLE t (n int); INSERT INTO t VALUES (1)").await;
    let local = standby.until("the shortfall", is_short).await;
    let Server::Standby(status) = local.server else { panic!("a standby") };
    let short = status.replay.short_of.unwrap();
    assert_eq!((short.setting, short.has, short.needs), (Capacity::MaxConnections, BEFORE, RAISED));
    assert!(status.replay.paused && status.streaming, "{status:?}");

    raised.stop(StopMode::Immediate).await.unwrap();
    standby.postgres.stop(StopMode::Fast).await.unwrap();
    let detached = config(Recovery::Detached, Synchronous::Impossible, &[]);
    standby.postgres.start(&detached).await.unwrap();
    assert_eq!(runs_with(&standby.local()), Some(RAISED));
    let mut condition = standby.postgres.condition();
    let given = Override { setting: Capacity::MaxConnections, runs: RAISED, configured: BEFORE };
    let told = condition.wait_for(|condition| condition.overridden == [given]);
    tokio::time::timeout(std::time::Duration::from_secs(20), told).await.expect("it is told").unwrap();
    standby.postgres.promote(&config(Recovery::Primary, Synchronous::Nobody, &[]), None).await.unwrap();
    is_promoted(&standby).await;
}

/// Nobody saw the pause before: the promotion fails, and succeeds after a start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promotion_that_ends_the_server_succeeds_after_its_next_start() {
    let (primary, standby) = pair().await;
    let waits = config(Recovery::Primary, Synchronous::Peer(standby.id), &[standby.id]);
    let raised = restart_with(&primary, RAISED, &waits).await;
    primary.sql("CREATE TABLE t (n int); INSERT INTO t VALUES (1)").await;
    standby.until("the shortfall", is_short).await;
    raised.stop(StopMode::Immediate).await.unwrap();
    let detached = config(Recovery::Detached, Synchronous::Impossible, &[]);
    standby.postgres.configure(&detached).await.unwrap();
    let promoted = config(Recovery::Primary, Synchronous::Nobody, &[]);
    standby.postgres.promote(&promoted, None).await.unwrap_err();
    standby.until("the end", |local| local.server == Server::Down { crashed: true, standby: true }).await;
    standby.postgres.start(&detached).await.unwrap();
    standby.postgres.promote(&promoted, None).await.unwrap();
    is_promoted(&standby).await;
}

/// Lowered everywhere: the standby may have less only once the primary has less and that was replayed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_is_lowered_after_its_primary_whatever_its_files_say() {
    const LOWERED: u32 = 30;
    let (primary, standby) = pair().await;
    let lower_standby = async || {
        standby.postgres.stop(StopMode::Fast).await.unwrap();
        let mut settings = standby.settings.clone();
        settings.parameters.insert("max_connections".into(), LOWERED.to_string());
        let other = Postgres::new(settings, standby.id).unwrap();
        other.adopt().await.unwrap();
        other.start(&follow(&primary, &[primary.id])).await.unwrap();
        other
    };
    let before = lower_standby().await;
    assert_eq!(runs_with(&before.local().borrow()), Some(BEFORE));
    drop(before);
    let lowered = restart_with(&primary, LOWERED, &config(Recovery::Primary, Synchronous::Nobody, &[standby.id])).await;
    primary.sql("CREATE TABLE t (n int)").await;
    let client = standby.client().await.unwrap();
    until_some("the replay", async || client.batch_execute("SELECT FROM t").await.ok()).await;
    standby.postgres.adopt().await.unwrap();
    let after = lower_standby().await;
    assert_eq!(runs_with(&after.local().borrow()), Some(LOWERED));
    drop(lowered);
}

/// Raised everywhere, and the primary is restarted first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_is_raised_after_its_standbys_whatever_its_files_say() {
    let (primary, standby) = pair().await;
    primary.postgres.stop(StopMode::Fast).await.unwrap();
    let mut settings = primary.settings.clone();
    settings.parameters.insert("max_connections".into(), RAISED.to_string());
    let alone = config(Recovery::Primary, Synchronous::Nobody, &[standby.id]);
    let start = async |standbys| {
        let raised = Postgres::new(settings.clone(), primary.id).unwrap();
        raised.adopt().await.unwrap();
        raised.standbys().send_replace(standbys);
        raised.start(&alone).await.unwrap();
        let runs = runs_with(&raised.local().borrow());
        raised.stop(StopMode::Fast).await.unwrap();
        runs
    };
    let standbys = standby.local().capacities;
    assert!(standbys.is_some());
    assert_eq!(start(standbys).await, Some(BEFORE));
    assert_eq!(start(Capacities::of(|_| Some(1))).await, Some(BEFORE), "never less than it had");
    assert_eq!(start(Capacities::of(|_| Some(RAISED))).await, Some(RAISED));
}
