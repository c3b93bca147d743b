//! Settings of PostgreSQL that Manatee owns stay in force (rule 2).

use std::time::{Duration, Instant};

use manatee_sitter::machine::local::{Recovery, Synchronous};

use super::{config, follow, shard};
use crate::peer::TestPeer;

/// Within this a loosened setting must be in force again, on a busy machine.
const BOUND: Duration = Duration::from_secs(5);

async fn setting(peer: &TestPeer, name: &str) -> String {
    let client = peer.client().await.unwrap();
    let row = client.query_one("SELECT current_setting($1)", &[&name]).await.unwrap();
    row.get(0)
}

/// Waits until a new session sees `name` as `wanted`.
async fn in_force(peer: &TestPeer, name: &str, wanted: &str) {
    let begin = Instant::now();
    loop {
        let found = setting(peer, name).await;
        if found == wanted {
            println!("{name} in force again within {:?}", begin.elapsed());
            return;
        }
        assert!(begin.elapsed() < BOUND, "{name} is still '{found}'");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alter_system_cannot_loosen_what_manatee_owns() {
    let (primary, [standby]) = shard().await;
    let waits = config(Recovery::Primary, Synchronous::Peer(standby.id), &[standby.id]);
    primary.postgres.configure(&waits).await.unwrap();
    let names = setting(&primary, "synchronous_standby_names").await;
    assert!(names.contains(&standby.id.to_string()), "{names}");

    primary.sql("ALTER SYSTEM SET work_mem = '5MB'").await;
    primary.sql("ALTER SYSTEM SET synchronous_standby_names = ''").await;
    primary.sql("ALTER SYSTEM SET synchronous_commit = off").await;
    primary.sql("SELECT pg_reload_conf()").await;
    in_force(&primary, "synchronous_standby_names", &names).await;
    in_force(&primary, "synchronous_commit", "on").await;
    primary.until("the confirmation", |local| local.loosened.is_empty() && local.config.as_ref() == Some(&waits)).await;
    let altered = std::fs::read_to_string(primary.data_dir().join("postgresql.auto.conf")).unwrap();
    assert!(altered.contains("work_mem") && !altered.contains("synchronous"), "{altered}");
    in_force(&primary, "work_mem", "5MB").await;

    // What has no effect while the server runs is not left for its next start either.
    primary.sql("ALTER SYSTEM SET fsync = off").await;
    primary.sql("SELECT pg_reload_conf()").await;
    assert_eq!(setting(&primary, "fsync").await, "on");
    primary.sql("ALTER SYSTEM SET max_slot_wal_keep_size = 1").await;
    let begin = Instant::now();
    while std::fs::read_to_string(primary.data_dir().join("postgresql.auto.conf")).unwrap().contains("max_slot") {
        assert!(begin.elapsed() < BOUND);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_cannot_be_led_elsewhere_by_alter_system() {
    let (primary, [standby]) = shard().await;
    let following = follow(&primary, &[]);
    standby.postgres.configure(&following).await.unwrap();
    standby.sql("ALTER SYSTEM SET primary_conninfo = 'host=203.0.113.1'").await;
    standby.sql("SELECT pg_reload_conf()").await;
    let begin = Instant::now();
    while setting(&standby, "primary_conninfo").await.contains("203.0.113.1") {
        assert!(begin.elapsed() < BOUND);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    standby.until("the confirmation", |local| local.config.as_ref() == Some(&following)).await;
    standby.streaming().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_after_our_include_do_not_stay() {
    let (primary, [standby]) = shard().await;
    let waits = config(Recovery::Primary, Synchronous::Peer(standby.id), &[standby.id]);
    primary.postgres.configure(&waits).await.unwrap();
    let names = setting(&primary, "synchronous_standby_names").await;
    let main = primary.data_dir().join("postgresql.conf");
    let text = std::fs::read_to_string(&main).unwrap();
    // Appended, and then without our file at all.
    for edited in [format!("{text}synchronous_standby_names = ''\n"), "work_mem = '6MB'\n".to_owned()] {
        std::fs::write(&main, edited).unwrap();
        primary.sql("SELECT pg_reload_conf()").await;
        in_force(&primary, "synchronous_standby_names", &names).await;
        primary
            .until("the confirmation", |local| local.loosened.is_empty() && local.config.as_ref() == Some(&waits))
            .await;
    }
}

/// The next sitter has other settings: they are applied to the server that it finds, without a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changed_in_the_sitters_configuration_is_applied_to_a_running_server() {
    let peer = TestPeer::new();
    peer.data.adopt().await.unwrap();
    peer.data.initialise().await.unwrap();
    let alone = config(Recovery::Primary, Synchronous::Nobody, &[]);
    peer.postgres.start(&alone).await.unwrap();
    let mut settings = peer.settings.clone();
    settings.hba.insert(0, "host all somebody all reject".to_owned());
    settings.parameters.insert("work_mem".to_owned(), "7MB".to_owned());
    settings.parameters.insert("max_connections".to_owned(), "90".to_owned());
    let next = manatee_sitter::postgres::Postgres::new(settings, peer.id).unwrap();
    assert!(next.adopt().await.unwrap());
    let local = next.local().borrow().clone();
    assert!(local.outdated && local.config.as_ref() == Some(&alone), "{local:?}");
    next.configure(&alone).await.unwrap();
    assert!(!next.local().borrow().outdated);
    in_force(&peer, "work_mem", "7MB").await;
    let hba = std::fs::read_to_string(peer.settings.layout().hba()).unwrap();
    assert!(hba.contains("somebody"), "{hba}");
    let mut condition = next.condition();
    let pending = condition.wait_for(|condition| condition.pending_restart == ["max_connections"]);
    tokio::time::timeout(BOUND * 4, pending).await.expect("what needs a restart is shown").unwrap();
}
