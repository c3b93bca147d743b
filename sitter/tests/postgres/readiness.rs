//! The sitters' own sessions depend on nothing that an operator may change, and what a takeover needs is tried all the
//! time (rule 11).

use std::time::Duration;

use manatee_sitter::machine::action::StopMode;
use manatee_sitter::machine::local::{Recovery, Synchronous};
use manatee_sitter::machine::readiness::{Need, Unready};
use manatee_sitter::postgres::Postgres;

use super::{config, follow, shard};
use crate::peer::TestPeer;

/// Two rehearsals, on a busy machine.
const TOLD: Duration = Duration::from_secs(40);

/// Waits until what is not ready is as `wanted`.
async fn unready(postgres: &Postgres, what: &str, wanted: impl Fn(&[Unready]) -> bool) -> Vec<Unready> {
    let mut condition = postgres.condition();
    let waiting = condition.wait_for(|condition| wanted(&condition.unready));
    match tokio::time::timeout(TOLD, waiting).await {
        Ok(found) => found.unwrap().unready.clone(),
        Err(_) => panic!("{what}: {:?}", postgres.condition().borrow().unready),
    }
}

/// Everything that ALTER ROLE and ALTER DATABASE can set against sessions.
const HOSTILE: &str = "\
    ALTER ROLE ALL SET default_transaction_isolation = 'serializable';\
    ALTER ROLE postgres SET default_transaction_read_only = on;\
    ALTER ROLE postgres SET session_preload_libraries = 'no_such_library';\
    ALTER ROLE ALL SET search_path = 'nowhere';\
    ALTER ROLE manatee_replication SET default_transaction_isolation = 'serializable';\
    ALTER ROLE manatee_replication SET idle_session_timeout = 1;\
    CREATE ROLE somebody; ALTER ROLE postgres SET role = 'somebody';\
    ALTER DATABASE postgres SET statement_timeout = 1;\
    ALTER DATABASE postgres SET lock_timeout = 1;\
    ALTER DATABASE postgres SET client_min_messages = 'debug5';\
    ALTER DATABASE postgres SET row_security = off;\
    ALTER DATABASE postgres SET jit = on;\
    ALTER DATABASE postgres SET idle_session_timeout = 1;\
    ALTER DATABASE postgres SET idle_in_transaction_session_timeout = 1;";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_of_roles_and_databases_do_not_reach_the_sitters_sessions() {
    let (primary, [standby]) = shard().await;
    let waits = config(Recovery::Primary, Synchronous::Peer(standby.id), &[standby.id]);
    primary.postgres.configure(&waits).await.unwrap();
    primary.sql(HOSTILE).await;
    let at = primary.primary().flushed.lsn;
    standby
        .until(
            "the replay",
            |local| matches!(&local.server, manatee_sitter::machine::local::Server::Standby(s) if s.replayed >= at),
        )
        .await;
    // New sessions on both: the standby restarts, detaches and takes over.
    standby.postgres.stop(StopMode::Fast).await.unwrap();
    standby.postgres.start(&follow(&primary, &[primary.id])).await.unwrap();
    standby.streaming().await;
    primary.followed_by(standby.id).await;
    primary.postgres.stop(StopMode::Immediate).await.unwrap();
    let detached = config(Recovery::Detached, Synchronous::Impossible, &[primary.id]);
    standby.postgres.configure(&detached).await.unwrap();
    let alone = config(Recovery::Primary, Synchronous::Nobody, &[primary.id]);
    standby.postgres.promote(&alone, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_lets_nobody_in_stops_neither_restart_nor_rejoin_nor_takeover() {
    let (primary, [standby]) = shard().await;
    let waits = config(Recovery::Primary, Synchronous::Peer(standby.id), &[standby.id]);
    primary.postgres.configure(&waits).await.unwrap();
    let client = primary.client().await.unwrap();
    client.batch_execute("CREATE DATABASE app").await.unwrap();
    client.batch_execute("REVOKE CONNECT ON DATABASE postgres, template1 FROM PUBLIC").await.unwrap();
    let mut app = tokio_postgres::Config::new();
    app.host(primary.id.ip.to_string()).port(primary.id.pg_port).dbname("app").user("postgres");
    app.password(crate::peer::SUPERUSER_PASSWORD);
    let (app, connection) = app.connect(tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    app.batch_execute("ALTER DATABASE postgres ALLOW_CONNECTIONS false").await.unwrap();
    let at = primary.primary().flushed.lsn;
    standby
        .until(
            "the replay",
            |local| matches!(&local.server, manatee_sitter::machine::local::Server::Standby(s) if s.replayed >= at),
        )
        .await;
    standby.postgres.stop(StopMode::Fast).await.unwrap();
    standby.postgres.start(&follow(&primary, &[primary.id])).await.unwrap();
    primary.followed_by(standby.id).await;
    // It takes over, and the former primary rejoins by pg_rewind.
    primary.postgres.stop(StopMode::Immediate).await.unwrap();
    let detached = config(Recovery::Detached, Synchronous::Impossible, &[primary.id]);
    standby.postgres.configure(&detached).await.unwrap();
    let alone = config(Recovery::Primary, Synchronous::Nobody, &[primary.id]);
    standby.postgres.promote(&alone, None).await.unwrap();
    let rejoined =
        primary.data.rejoin(standby.id, manatee_sitter::machine::action::Rung::Rewind, None, true).await.unwrap();
    assert!(matches!(rejoined, manatee_sitter::data::Rejoined::Held(_)), "{rejoined:?}");
    primary.postgres.start(&follow(&standby, &[standby.id])).await.unwrap();
    primary.streaming().await;
    standby.followed_by(primary.id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_primary_puts_manatees_roles_right() {
    let (primary, [standby]) = shard().await;
    let waits = config(Recovery::Primary, Synchronous::Peer(standby.id), &[standby.id]);
    primary.postgres.configure(&waits).await.unwrap();
    // A sync whose session is old streams on; a new one would not be let in.
    primary
        .sql(
            "ALTER ROLE manatee_replication PASSWORD 'another'; ALTER ROLE manatee_proxy NOLOGIN; \
             REVOKE pg_read_all_stats FROM manatee_replication; \
             REVOKE EXECUTE ON FUNCTION pg_catalog.pg_ls_waldir() FROM manatee_replication; \
             REVOKE CONNECT ON DATABASE postgres FROM PUBLIC, manatee_replication, manatee_proxy; \
             DROP FUNCTION manatee.role_verifier(text)",
        )
        .await;
    let deadline = std::time::Instant::now() + TOLD;
    let login = |user: &str, password: &str| {
        let mut config = tokio_postgres::Config::new();
        config
            .host(primary.id.ip.to_string())
            .port(primary.id.pg_port)
            .user(user)
            .password(password)
            .dbname("postgres");
        async move {
            config.connect(tokio_postgres::NoTls).await.map(|(client, connection)| {
                tokio::spawn(connection);
                client
            })
        }
    };
    let proxy = loop {
        match login("manatee_proxy", "proxypass").await {
            Ok(proxy) if proxy.query("SELECT * FROM manatee.role_verifier('postgres')", &[]).await.is_ok() => {
                break proxy;
            }
            Ok(_) | Err(_) => assert!(std::time::Instant::now() < deadline, "not put right"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    drop(proxy);
    let log = std::fs::read_to_string(primary.settings.layout().log()).unwrap();
    assert!(!log.contains("SCRAM-SHA-256$"), "{log}");
    // A restart of the standby needs all of it.
    standby.postgres.stop(StopMode::Fast).await.unwrap();
    standby.postgres.start(&follow(&primary, &[primary.id])).await.unwrap();
    primary.followed_by(standby.id).await;
    unready(&primary.postgres, "all is well again", <[Unready]>::is_empty).await;
}

/// The proxies come in by the database that is left, and find there what they look roles up with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_primary_lets_proxies_look_roles_up_where_the_database_postgres_is_closed() {
    let (primary, [standby]) = shard().await;
    let waits = config(Recovery::Primary, Synchronous::Peer(standby.id), &[standby.id]);
    primary.postgres.configure(&waits).await.unwrap();
    primary.sql("CREATE DATABASE app").await;
    let connect = async |user: &str, password: &str, database: &str| {
        let mut config = tokio_postgres::Config::new();
        config.host(primary.id.ip.to_string()).port(primary.id.pg_port);
        config.user(user).password(password).dbname(database);
        let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        Ok::<_, tokio_postgres::Error>(client)
    };
    let app = connect("postgres", crate::peer::SUPERUSER_PASSWORD, "app").await.unwrap();
    app.batch_execute("ALTER DATABASE postgres ALLOW_CONNECTIONS false").await.unwrap();
    let deadline = std::time::Instant::now() + TOLD;
    loop {
        let proxy = connect("manatee_proxy", "proxypass", "template1").await.unwrap();
        if proxy.query("SELECT * FROM manatee.role_verifier('postgres')", &[]).await.is_ok() {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "roles cannot be looked up");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    unready(&primary.postgres, "ready", <[Unready]>::is_empty).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_would_fail_a_takeover_is_told_before() {
    let (primary, [standby]) = shard().await;
    let waits = config(Recovery::Primary, Synchronous::Peer(standby.id), &[standby.id]);
    primary.postgres.configure(&waits).await.unwrap();
    // A misspelt parameter, and a rule that is none.
    let main = standby.data_dir().join("postgresql.conf");
    let text = std::fs::read_to_string(&main).unwrap();
    std::fs::write(&main, format!("work_memm = '8MB'\n{text}")).unwrap();
    let found = unready(&standby.postgres, "the file", |unready| !unready.is_empty()).await;
    assert_eq!(found[0].need, Need::Configuration, "{found:?}");
    assert!(found[0].detail.contains("work_memm") && found[0].detail.contains("line 1"), "{found:?}");
    std::fs::write(&main, text).unwrap();
    unready(&standby.postgres, "ready again", <[Unready]>::is_empty).await;
    let hba = standby.settings.layout().hba();
    let text = std::fs::read_to_string(&hba).unwrap();
    std::fs::write(&hba, format!("{text}hots all all all trust\n")).unwrap();
    let found = unready(&standby.postgres, "the rules", |unready| !unready.is_empty()).await;
    assert_eq!(found[0].need, Need::AccessRules, "{found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_misspelt_parameter_is_left_out_and_told() {
    let peer = TestPeer::with(|(settings, _)| {
        settings.parameters.insert("work_memm".into(), "8MB".into());
        settings.parameters.insert("work_mem".into(), "eight".into());
        settings.parameters.insert("maintenance_work_mem".into(), "80MB".into());
    });
    peer.data.adopt().await.unwrap();
    peer.data.initialise().await.unwrap();
    let alone = config(Recovery::Primary, Synchronous::Nobody, &[]);
    peer.postgres.start(&alone).await.unwrap();
    // Also a change of role by reload.
    let closed = manatee_sitter::machine::local::ServerConfig {
        gate: manatee_sitter::machine::local::Gate::Closed,
        ..alone.clone()
    };
    peer.postgres.configure(&closed).await.unwrap();
    peer.postgres.configure(&alone).await.unwrap();
    let client = peer.client().await.unwrap();
    let row =
        client.query_one("SELECT current_setting('maintenance_work_mem'), current_setting('work_mem')", &[]).await;
    let row = row.unwrap();
    assert_eq!((row.get::<_, &str>(0), row.get::<_, &str>(1)), ("80MB", "4MB"));
    let found = unready(&peer.postgres, "it is told", |unready| !unready.is_empty()).await;
    assert_eq!(found[0].need, Need::Parameters, "{found:?}");
    assert!(
        found[0].detail.contains("work_memm") && found[0].detail.contains("postgres.parameters.work_mem:"),
        "{found:?}"
    );
}
