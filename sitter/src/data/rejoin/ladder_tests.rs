#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
//! Every rung of the ladder, on real servers that really diverged, over ZFS and the peers' real API.

mod peer;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use manatee_shared::cluster::Role;
use manatee_tests::zpool::Pool;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use self::peer::{Peer, again};
use super::*;
use crate::status::{CopyMethod, CopyState};

/// Of a copy that is interrupted: several times what pipes and sockets hold, so that `zfs receive` has a good part of it,
/// and less than the smallest copy, which is PostgreSQL's own catalogs, compressed.
const BEGUN_BYTES: u64 = 6 << 20;

/// A primary with a table, and a standby copied from it.
async fn shard(pool: &Pool) -> (Peer, Peer) {
    let (primary, standby) = (Peer::new(pool, Role::Primary).await, Peer::new(pool, Role::Async(0)).await);
    again(|| primary.data.initialise()).await;
    primary.start(Recovery::Primary, &[standby.id]).await;
    primary.sql("CREATE TABLE t AS SELECT g AS n FROM generate_series(1, 20000) g").await;
    assert_eq!(standby.bootstraps(&primary).await, Rung::Copy);
    assert_eq!(standby.method(), (CopyMethod::ZfsFull, CopyState::Done));
    standby.follows(&primary).await;
    (primary, standby)
}

/// Goes back to a snapshot from before a divergence, and follows from there.
async fn rolls_back(other: &Peer, primary: &Peer) {
    let newest = other.snapshot().await;
    other.diverges(primary).await;
    assert_eq!(other.rejoins(primary, Rung::Rollback).await, Rejoined::Held(Rung::Rollback));
    let list = other.data.storage().snapshots().unwrap().list().await.unwrap();
    assert!(list.contains(&newest), "{list:?}");
    other.follows(primary).await;
}

/// Is copied in full, because an operator says so; that is interrupted, and taken up again: where ZFS can, from where
/// it was. Returns how many data sets are aside then.
async fn is_rebuilt(pool: &Pool, other: &Peer, primary: &Peer) -> usize {
    let aside = other.aside();
    other.data.order_rebuild().await.unwrap();
    assert_eq!(other.postgres.local().borrow().data, Data::Incomplete);
    let progress = other.data.progress();
    let uuid = progress.restore().map(|restore| restore.uuid);
    let begun = async {
        loop {
            let restore = progress.restore().filter(|restore| Some(&restore.uuid) != uuid.as_ref());
            if restore.is_some_and(|restore| restore.completed > BEGUN_BYTES) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        done = other.bootstraps(primary) => panic!("it was not interrupted: {done:?}"),
        () = begun => {}
    }
    let broken = progress.restore().unwrap();
    assert_eq!(broken.done, CopyState::Failed);
    assert_eq!(other.bootstraps(primary).await, Rung::Copy);
    let whole = progress.restore().unwrap();
    println!("of {:?} bytes {} were sent, then {}", broken.size, broken.completed, whole.completed);
    let resumes = pool.zfs(&["version"]).is_ok();
    let method = if resumes { CopyMethod::ZfsResumed } else { CopyMethod::ZfsFull };
    assert_eq!(other.method(), (method, CopyState::Done));
    if resumes {
        assert!(broken.size.is_some_and(|size| whole.completed < size), "{broken:?} {whole:?}");
    }
    // Before a copy all but the newest are forgotten.
    let kept = aside.min(1) + 1;
    assert_eq!(other.aside(), kept);
    other.follows(primary).await;
    kept
}

/// Steps that a peer on ZFS cannot do without, and no more: short enough for an emulated machine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bootstraps_and_rolls_back() {
    let Some(pool) = Pool::for_test(4096) else { return };
    let (primary, standby) = shard(&pool).await;
    rolls_back(&standby, &primary).await;
    assert_eq!(standby.aside(), 1, "what diverged is set aside");
    is_rebuilt(&pool, &standby, &primary).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_rung_holds_on_real_divergence_and_leads_to_the_next_when_interrupted() {
    let Some(pool) = Pool::for_test(4096) else { return };
    let (primary, other) = shard(&pool).await;

    // As it is: merely stopped, also when it crashed.
    other.postgres.stop(StopMode::Immediate).await.unwrap();
    assert_eq!(other.rejoins(&primary, Rung::AsIs).await, Rejoined::Held(Rung::AsIs));
    other.follows(&primary).await;
    let before = other.snapshot().await;

    // Rewind; what it overwrites is in a snapshot.
    other.diverges(&primary).await;
    assert_eq!(other.rejoins(&primary, Rung::AsIs).await, Rejoined::Held(Rung::Rewind));
    let snapshots = other.data.storage().snapshots().unwrap();
    let overwritten = snapshots.list().await.unwrap().last().cloned().unwrap();
    assert!(overwritten.name > before.name);
    other.follows(&primary).await;

    // A rewind that is interrupted when it has begun to write leaves data that is never started, and the next
    // rung: back to the newest snapshot from before the divergence, which is not the one before the rewind.
    other.diverges(&primary).await;
    let marker = other.settings.layout().incomplete();
    tokio::select! {
        rejoined = other.rejoins(&primary, Rung::Rewind) => panic!("it was not interrupted: {rejoined:?}"),
        () = async { while !marker.exists() { tokio::time::sleep(Duration::from_millis(1)).await } } => {}
    }
    let as_standby = ServerConfig {
        recovery: Recovery::Follow(primary.id),
        synchronous: Synchronous::Impossible,
        gate: Gate::Closed,
        slots: BTreeSet::new(),
    };
    assert!(matches!(other.postgres.start(&as_standby).await, Err(Error::DataNotFit(_))));
    assert_eq!(other.bootstraps(&primary).await, Rung::Rollback);
    assert_eq!(other.aside(), 1, "what diverged is set aside");
    other.follows(&primary).await;

    // Rollback by itself. A sync must not: it is marked instead.
    rolls_back(&other, &primary).await;
    let list = snapshots.list().await.unwrap();
    assert!(list.contains(&before), "{list:?}");
    other.diverges(&primary).await;
    let as_sync = again(|| other.data.rejoin(primary.id, Rung::Rollback, None, false)).await;
    assert_eq!(as_sync, Rejoined::NeedsCopy);
    assert_eq!(other.postgres.local().borrow().data, Data::Incomplete);

    // What changed since the snapshot that both have; first from a source that breaks off, then from one that is not
    // fit, then from one that is.
    let (broken, served) = breaks_off(&primary).await;
    assert!(other.data.storage().fetch(&broken).await.is_err());
    assert!(served.await.unwrap().contains("Bearer"), "it was asked with the token");
    assert!(!other.data.progress().is_copying());
    primary.becomes(Role::Deposed).await;
    let refused = again(|| async {
        match other.data.bootstrap(primary.id, true).await {
            Ok(rung) => panic!("it was not refused: {rung:?}"),
            Err(Error::SourceNotFit { problem, .. }) => Ok(problem),
            Err(error) => Err(error),
        }
    });
    let refused = refused.await;
    assert!(refused.contains("deposed"), "{refused}");
    primary.becomes(Role::Primary).await;
    assert_eq!(other.bootstraps(&primary).await, Rung::Incremental);
    assert_eq!(other.method(), (CopyMethod::ZfsIncremental, CopyState::Done));
    other.follows(&primary).await;

    let kept = is_rebuilt(&pool, &other, &primary).await;

    // And the other way round: the standby gives as well.
    assert_eq!(primary.data.storage().prune_aside(0).await.unwrap(), 0);
    assert_eq!(other.data.storage().prune_aside(0).await.unwrap(), kept);
    let third = Peer::new(&pool, Role::Unassigned).await;
    assert_eq!(third.bootstraps(&other).await, Rung::Copy);
    // As the machine gives every peer that is there one.
    primary.start(Recovery::Primary, &[other.id, third.id]).await;
    third.follows(&primary).await;
}

/// A source that answers like a peer, sends half of nothing and is gone. Returns what it was asked.
async fn breaks_off(primary: &Peer) -> (crate::storage::Source, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let served = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 64 << 10];
        let read = stream.read(&mut request).await.unwrap();
        let answer = "HTTP/1.1 200 OK\r\nmanatee-snapshot: 1\r\nmanatee-dataset: x\r\ntransfer-encoding: chunked\r\n\r\n\
                      5\r\nhello\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8_lossy(&request[..read]).replace("bearer", "Bearer")
    });
    let Data::Present(system) = primary.postgres.local().borrow().data.clone() else { panic!("no data") };
    let peer = PeerId { backup_port: port, ip: Ipv4Addr::LOCALHOST.into(), ..primary.id };
    (
        crate::storage::Source {
            peer,
            slot: "none".to_owned(),
            system,
            incremental: true,
            conninfo: String::new(),
            tablespaces: Vec::new(),
        },
        served,
    )
}

/// Not a test of what must hold on a busy machine: prints the throughput of a copy through the API beside that of
/// `zfs send | zfs receive` on the same pool, in turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: run it alone, with --nocapture"]
async fn throughput_beside_a_raw_pipe() {
    let pool = Pool::for_test(20 << 10).expect("a pool");
    let primary = Peer::new(&pool, Role::Primary).await;
    primary.data.initialise().await.unwrap();
    primary.start(Recovery::Primary, &[]).await;
    // Random text does not compress.
    let rows = "CREATE TABLE t AS SELECT g AS n, string_agg(md5(random()::text || g), '') AS x \
                FROM generate_series(1, 20000) g, generate_series(1, 200) GROUP BY g; CHECKPOINT";
    primary.sql(&format!("SET statement_timeout = 0; {rows}")).await;
    let snapshot = primary.snapshot().await;
    let dataset = primary.dataset.clone();
    let mut ratios = Vec::new();
    for round in 0..5 {
        // Below a peer's dataset, so that it is stored as the other copy is: compressed, which costs more than the copy.
        let target = format!("{dataset}/raw{round}");
        let begin = Instant::now();
        let line = format!("zfs send {dataset}/data@{} | zfs receive {target}", snapshot.name);
        let status = std::process::Command::new("sh").arg("-c").arg(&line).stdin(Stdio::null()).status().unwrap();
        let raw = begin.elapsed();
        assert!(status.success());
        pool.zfs(&["destroy", "-r", &target]).unwrap();

        let other = Peer::new(&pool, Role::Unassigned).await;
        other.data.bootstrap(primary.id, true).await.unwrap();
        let restore = other.data.progress().restore().unwrap();
        let api = restore.ended.unwrap().duration_since(restore.started).unsigned_abs();
        let mb = restore.completed as f64 / 1e6;
        let ratio = raw.as_secs_f64() / api.as_secs_f64();
        println!(
            "round {round}: {mb:.0} MB; raw pipe {:.1} MB/s, API {:.1} MB/s, ratio {ratio:.2}",
            mb / raw.as_secs_f64(),
            mb / api.as_secs_f64()
        );
        ratios.push(ratio);
    }
    ratios.sort_by(f64::total_cmp);
    println!("median ratio {:.2}", ratios[2]);
}
