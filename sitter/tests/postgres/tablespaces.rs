//! Copies of data that has tablespaces, to hosts where their folders are not empty.

use std::path::Path;

use manatee_sitter::machine::local::{Gate, Recovery, ServerConfig, Synchronous};
use manatee_sitter::postgres::Error;

use super::peer::TestPeer;
use super::{config, follow, until_some};

/// A folder that PostgreSQL may use for a tablespace.
fn folder(path: &Path) {
    std::fs::create_dir(path).unwrap();
    if nix::unistd::geteuid().is_root() {
        let user = nix::unistd::User::from_name("postgres").unwrap().unwrap();
        nix::unistd::chown(path, Some(user.uid), Some(user.gid)).unwrap();
    }
}

/// Folders that copies made in it.
fn made(space: &Path) -> usize {
    let names = std::fs::read_dir(space).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("manatee-")).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_finds_room_beside_what_is_in_a_tablespace() {
    let (primary, standby) = (TestPeer::new(), TestPeer::new());
    primary.data.adopt().await.unwrap();
    primary.data.initialise().await.unwrap();
    primary.postgres.start(&config(Recovery::Primary, Synchronous::Nobody, &[standby.id])).await.unwrap();
    let space = primary.dir.path().join("space");
    folder(&space);
    primary.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display())).await;
    primary.sql("CREATE TABLE t TABLESPACE fast AS SELECT 1 AS n; CHECKPOINT").await;
    standby.data.adopt().await.unwrap();
    for round in 0..4 {
        if round > 0 {
            standby.data.order_rebuild().await.unwrap();
        }
        // The folder is the source's own here, and never empty.
        standby.data.bootstrap(primary.id, true).await.unwrap();
        let following = follow(&primary, &[]);
        standby.postgres.start(&ServerConfig { gate: Gate::Open, ..following }).await.unwrap();
        standby.streaming().await;
        let client = standby.client().await.unwrap();
        let count = until_some("the table", async || client.query_one("SELECT count(*) FROM t", &[]).await.ok()).await;
        assert_eq!(count.get::<_, i64>(0), 1);
    }
    // Of the data in use, of what it replaced, and of what was kept besides when it came.
    assert_eq!(
        made(&space),
        2 + manatee_sitter::data::DataSettings::default().isolated_kept,
        "earlier copies are gone"
    );
    primary.sql("INSERT INTO t VALUES (2)").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_without_the_folder_is_told_which_one() {
    let (primary, standby) = (TestPeer::new(), TestPeer::new());
    primary.data.adopt().await.unwrap();
    primary.data.initialise().await.unwrap();
    primary.postgres.start(&config(Recovery::Primary, Synchronous::Nobody, &[standby.id])).await.unwrap();
    let space = primary.dir.path().join("space");
    folder(&space);
    primary.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display())).await;
    standby.data.adopt().await.unwrap();
    let hidden = primary.dir.path().join("hidden");
    std::fs::rename(&space, &hidden).unwrap();
    let refused = standby.data.bootstrap(primary.id, true).await;
    std::fs::rename(&hidden, &space).unwrap();
    let said = refused.as_ref().map_err(ToString::to_string).unwrap_err();
    assert!(matches!(refused, Err(Error::DataNotFit(_))) && said.contains(&space.display().to_string()), "{said}");
}
