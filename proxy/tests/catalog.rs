//! The catalog as it is read from a real server: it says what the routing table expects, and follows changes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]

#[allow(dead_code, reason = "serves other tests as well")]
#[path = "session/harness.rs"]
mod harness;
#[path = "routing/render.rs"]
mod render;
#[path = "routing/table.rs"]
mod table;

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use harness::Postgres;
use manatee_proxy::catalog::{self, Loader};
use manatee_proxy::own_role::OwnRole;
use manatee_proxy::pool::Catalogs as _;
use manatee_proxy::route::{Access, Classifier, SqlContext};
use manatee_proxy::topology::{self, Primary, Snapshot, monitor};
use render::{all_rows, render};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(30);

fn settings() -> monitor::Settings {
    monitor::Settings {
        shard: "test".parse().expect("name"),
        servers: std::sync::Arc::default(),
        own: Arc::new(OwnRole::new("postgres", "")),
        poll_interval: Duration::from_millis(100),
        max_lag: Duration::from_secs(10),
    }
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_servers_own_catalog_says_what_the_table_expects_and_is_followed() {
    let server = Postgres::primary().unwrap();
    server.psql(include_str!("data/catalog.sql")).unwrap();
    let (publisher, topology, _suspicions) = topology::channel();
    let (loader, requests) = Loader::new();
    let stop = CancellationToken::new();
    let serving =
        tokio::spawn(catalog::serve(settings(), topology, requests, Duration::from_millis(100), stop.clone()));
    let slot = loader.of("postgres");
    assert!(Arc::ptr_eq(&slot, &loader.of("postgres")), "one slot for each database");
    // Nobody to ask yet.
    assert!(slot.load().is_none());
    publisher
        .publish(Snapshot { primary: Some(Primary { node: server.node(), timeline: None }), ..Snapshot::unknown() });
    until("the first catalog", || slot.load().is_some()).await;

    let mut classifier = Classifier::new(7, 4096, slot.clone());
    let mut wrong = String::new();
    for (text, expected) in all_rows() {
        let found = render(&classifier.classify(text.as_bytes(), SqlContext::default()));
        if found != *expected {
            writeln!(wrong, "{text}\n  expected {expected}\n  found    {found}").unwrap();
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");

    let mut reads_only =
        |text: &str| classifier.classify(text.as_bytes(), SqlContext::default()).access == Access::ReadOnly;
    for (change, text) in [
        ("CREATE FUNCTION late() RETURNS int LANGUAGE sql STABLE AS 'SELECT 1'", "SELECT late()"),
        ("ALTER FUNCTION app.reader() VOLATILE", "SELECT app.reader()"),
        (
            "CREATE OR REPLACE VIEW public.plain_view AS SELECT id, volatile_fn(1)::text AS name FROM t",
            "SELECT * FROM public.plain_view",
        ),
        ("ALTER TABLE t SET UNLOGGED", "SELECT * FROM t"),
        ("ALTER TABLE t SET LOGGED", "SELECT * FROM t"),
    ] {
        let before = reads_only(text);
        server.psql(&format!("{change};")).unwrap();
        until(change, || reads_only(text) != before).await;
    }
    stop.cancel();
    tokio::time::timeout(DEADLINE, serving).await.unwrap().unwrap();
}
