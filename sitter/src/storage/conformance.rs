//! Duties of every kind of storage, whatever it is made of; and those of the kinds with snapshots
//! besides. Run for both kinds: `zfs` on a pool of its own, over a file.

use std::path::Path;
use std::time::Duration;

use manatee_tests::zpool::Pool;

use super::progress::Progress;
use super::pull::Client;
use super::*;
use crate::host::Layout;
use crate::host::osuser::OsUser;

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none()) || !folder.exists()
}

/// A data directory as far as storage looks.
fn fill(staging: &Path, number: u32) {
    std::fs::write(staging.join("PG_VERSION"), "15\n").unwrap();
    for folder in ["global", "pg_wal", "pg_tblspc", "pg_replslot/old"] {
        std::fs::create_dir_all(staging.join(folder)).unwrap();
    }
    std::fs::write(staging.join("global/pg_control"), "").unwrap();
    std::fs::write(staging.join("postmaster.pid"), "4711\n").unwrap();
    write(staging, number);
}

fn write(data: &Path, number: u32) {
    std::fs::write(data.join("number"), number.to_string()).unwrap();
}

fn read(data: &Path) -> String {
    std::fs::read_to_string(data.join("number")).unwrap()
}

async fn conforms(storage: &dyn Storage, layout: &Layout) {
    storage.attach().await.unwrap();
    assert!(storage.set_aside("nothing").await.unwrap().is_none());
    let staging = storage.stage().await.unwrap();
    std::fs::write(staging.join("half"), "").unwrap();
    let staging = storage.stage().await.unwrap();
    assert!(!staging.join("half").exists(), "an earlier attempt is gone");
    for number in 0..3 {
        let staging = storage.stage().await.unwrap();
        fill(&staging, number);
        assert!(is_empty(&layout.data()), "nothing is data before it is published");
        storage.publish().await.unwrap();
        assert_eq!(read(&layout.data()), number.to_string());
        storage.attach().await.unwrap();
        storage.stage().await.unwrap();
        assert!(matches!(storage.publish().await, Err(Error::DataPresent)), "data is never overwritten");
        let place = storage.set_aside("test").await.unwrap().expect("a place");
        assert_eq!(read(&place), number.to_string());
        assert!(is_empty(&layout.data()));
    }
    assert_eq!(storage.prune_aside(2).await.unwrap(), 1, "the oldest is forgotten");
    assert_eq!(std::fs::read_dir(layout.isolated()).unwrap().count(), 2);
    if let Some(snapshots) = storage.snapshots() {
        go_back(storage, snapshots, layout).await;
    }
}

/// To the first of three moments, while the data stays; then on as if nothing had been.
async fn go_back(storage: &dyn Storage, snapshots: &dyn Snapshots, layout: &Layout) {
    assert!(snapshots.list().await.unwrap().is_empty());
    fill(&storage.stage().await.unwrap(), 0);
    storage.publish().await.unwrap();
    let mut taken = Vec::new();
    for number in 1..4 {
        write(&layout.data(), number);
        taken.push(snapshots.take().await.unwrap());
    }
    assert_eq!(snapshots.list().await.unwrap(), taken);
    assert!(taken.iter().all(|snapshot| snapshot.name.len() == 13));
    write(&layout.data(), 4);

    let staging = snapshots.stage_snapshot(&taken[0]).await.unwrap();
    assert_eq!((read(&staging), read(&layout.data())), ("1".to_owned(), "4".to_owned()));
    assert!(!staging.join("postmaster.pid").exists() && is_empty(&staging.join("pg_replslot")), "no server ran here");
    assert!(layout.data().join("postmaster.pid").exists(), "of the data nothing was removed");
    assert_eq!(snapshots.destroy(&taken[0]).await.unwrap(), Destroyed::InUse);
    // Another moment instead.
    let staging = snapshots.stage_snapshot(&taken[1]).await.unwrap();
    assert_eq!(read(&staging), "2");
    write(&staging, 20);
    let place = storage.set_aside("rolled-back").await.unwrap().expect("a place");
    storage.publish().await.unwrap();
    assert_eq!((read(&layout.data()), read(&place)), ("20".to_owned(), "4".to_owned()));
    assert_eq!(snapshots.list().await.unwrap(), taken[..2], "the snapshots up to there stay, those after are aside");
    assert_eq!(snapshots.destroy(&taken[1]).await.unwrap(), Destroyed::InUse, "what is aside is made from it");
    assert_eq!(snapshots.destroy(&taken[0]).await.unwrap(), Destroyed::Gone);
    assert_eq!(snapshots.destroy(&taken[0]).await.unwrap(), Destroyed::Gone, "twice is once");
    storage.prune_aside(0).await.unwrap();
    assert_eq!(snapshots.destroy(&taken[1]).await.unwrap(), Destroyed::Gone);
    assert_eq!(read(&layout.data()), "20");
}

fn folder() -> (tempfile::TempDir, Layout) {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(dir.path().to_owned());
    std::fs::create_dir(layout.run()).unwrap();
    (dir, layout)
}

#[tokio::test]
async fn directory_conforms() {
    let (_dir, layout) = folder();
    let user = OsUser::resolve("postgres").unwrap();
    conforms(&Directory::new(layout.clone(), "/nowhere".into(), user, Progress::new()), &layout).await;
}

fn zfs(pool: &Pool, number: u8, layout: &Layout) -> Zfs {
    let properties = [("recordsize", "8K"), ("atime", "off"), ("compression", "on")];
    Zfs::new(zfs::Parts {
        me: format!("10.0.0.{number}:5432:12345").parse().unwrap(),
        layout: layout.clone(),
        bin_dir: "/nowhere".into(),
        user: OsUser::resolve("postgres").unwrap(),
        dataset: format!("{}/shard/peer{number}", pool.name()),
        properties: properties.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        progress: Progress::new(),
        client: Client::new(None),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zfs_conforms() {
    let Some(pool) = Pool::for_test(256) else { return };
    let (_dir, layout) = folder();
    let storage = zfs(&pool, 1, &layout);
    conforms(&storage, &layout).await;
    let told = pool.zfs(&[
        "get",
        "-H",
        "-o",
        "value",
        "recordsize,atime,mountpoint",
        &format!("{}/shard/peer1/data", pool.name()),
    ]);
    assert_eq!(told.unwrap().split_whitespace().collect::<Vec<_>>()[..2], ["8K", "off"]);

    // As after a boot that did not mount it.
    pool.zfs(&["unmount", &format!("{}/shard/peer1/data", pool.name())]).unwrap();
    assert!(is_empty(&layout.data()));
    storage.attach().await.unwrap();
    assert_eq!(read(&layout.data()), "20");

    // What a copy is being made from stays, whoever wants it gone.
    let request = StreamRequest {
        peer: "10.0.0.2:5432:12345".parse().unwrap(),
        system_identifier: "1".to_owned(),
        snapshots: vec![],
        resume: None,
        open_zfs: false,
    };
    let snapshots = storage.snapshots().unwrap();
    let stream = snapshots.send(&request).await.unwrap();
    let snapshot = stream.snapshot.clone();
    assert_eq!(snapshots.destroy(&snapshot).await.unwrap(), Destroyed::InUse);
    let second = snapshots.send(&request).await.unwrap();
    drop((stream, second));
    let released = async {
        while snapshots.destroy(&snapshot).await.unwrap() == Destroyed::InUse {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), released).await.expect("released");
    drop(storage);
}
