#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
//! Every rung of the ladder, on real servers that really diverged, over ZFS and the peers' real API.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use manatee_shared::cluster::{Peer as Named, Role};
use manatee_shared::config::Secret as Token;
use manatee_tests::binaries::postgres_folder;
use manatee_tests::zpool::Pool;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};

use super::*;
use crate::api::{self, Api};
use crate::backup::progress::{Method, Outcome, Restore};
use crate::driver::status::Status;
use crate::machine::local::{Local, Server};
use crate::postgres::{Postgres, Secret, Settings, StorageSettings};

const TOKEN: &str = "a token of the shard's";
/// Everything on zfs-fuse is slow, and slower beside others.
const PATIENCE: Duration = Duration::from_secs(120);

/// A peer with its API; what its status says follows its PostgreSQL. Its server is killed at the end.
struct Peer {
    id: PeerId,
    postgres: Arc<Postgres>,
    settings: Settings,
    role: watch::Sender<Role>,
    tasks: Vec<JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

impl Peer {
    async fn new(pool: &Pool, role: Role) -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let host = u8::try_from(std::process::id() % 200).unwrap();
        let ip = Ipv4Addr::new(127, 150 + number, host, 1);
        let listener = TcpListener::bind(SocketAddr::from((ip, 0))).await.unwrap();
        let backup_port = listener.local_addr().unwrap().port();
        let free = TcpListener::bind(SocketAddr::from((ip, 0))).await.unwrap();
        let pg_port = free.local_addr().unwrap().port();
        drop(free);
        let id = PeerId { ip: ip.into(), pg_port, backup_port };
        let dir = tempfile::Builder::new().prefix("mnt").tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let properties = [("recordsize", "16K"), ("compression", "on"), ("atime", "off")];
        let settings = Settings {
            start_wait: PATIENCE,
            confirm_timeout: PATIENCE,
            stop_timeout: PATIENCE,
            parameters: [("shared_buffers", "16MB"), ("wal_init_zero", "off"), ("wal_recycle", "off")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            storage: StorageSettings::Zfs {
                dataset: format!("{}/peer{number}", pool.name()),
                properties: properties.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            },
            api_token: Some(Token::new(TOKEN)),
            ..Settings::new(dir.path().join("p"), postgres_folder().unwrap(), Secret::new("repl"), Secret::new("proxy"))
        };
        std::fs::create_dir(&settings.dir).unwrap();
        let postgres = Arc::new(Postgres::new(settings.clone(), id).unwrap());
        postgres.adopt().await.unwrap();
        let mut peer = Self { id, postgres, settings, role: watch::Sender::new(role), tasks: vec![], _dir: dir };
        peer.serve(listener);
        peer
    }

    fn serve(&mut self, listener: TcpListener) {
        let status = |role: Role, local: &Local| {
            let mut status = Status::nothing(Named::new(self.id, "test"), "demo".parse().unwrap(), Instant::now());
            (status.role, status.local, status.zk.session) = (role, local.clone(), "connected");
            Arc::new(status)
        };
        let (mut local, mut role) = (self.postgres.local(), self.role.subscribe());
        let (sender, receiver) = watch::channel(status(*role.borrow(), &local.borrow()));
        let id = self.id;
        self.tasks.push(tokio::spawn(async move {
            loop {
                tokio::select! {
                    Ok(()) = local.changed() => {}
                    Ok(()) = role.changed() => {}
                    else => return,
                }
                let mut status = Status::nothing(Named::new(id, "test"), "demo".parse().unwrap(), Instant::now());
                let (role, local) = (*role.borrow_and_update(), local.borrow_and_update().clone());
                (status.role, status.local, status.zk.session) = (role, local, "connected");
                sender.send_replace(Arc::new(status));
            }
        }));
        let router = api::router(Api {
            status: receiver,
            metrics: Arc::new(String::new),
            progress: self.postgres.progress(),
            control: self.postgres.clone(),
            token: Some(Token::new(TOKEN)),
            transfers: Api::transfers(),
        });
        self.tasks.push(tokio::spawn(async move {
            let _ = api::serve(listener, router).await;
        }));
    }

    async fn until(&self, what: &str, wanted: impl Fn(&Local) -> bool) {
        let mut local = self.postgres.local();
        let waiting = tokio::time::timeout(PATIENCE, local.wait_for(|local| wanted(local))).await;
        assert!(waiting.is_ok(), "{what} did not come: {:?}", self.postgres.local().borrow());
    }

    async fn client(&self) -> Client {
        let mut config = tokio_postgres::Config::new();
        config.host_path(self.settings.layout().run()).port(self.id.pg_port).user("postgres").dbname("postgres");
        let (client, connection) = config.connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    async fn sql(&self, sql: &str) {
        self.client().await.batch_execute(sql).await.unwrap();
    }

    async fn count(&self) -> i64 {
        self.client().await.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get(0)
    }

    async fn start(&self, recovery: Recovery, slots: &[PeerId]) {
        let config = ServerConfig {
            recovery,
            synchronous: if recovery == Recovery::Primary { Synchronous::Nobody } else { Synchronous::Impossible },
            gate: Gate::Open,
            slots: slots.iter().copied().collect::<BTreeSet<_>>(),
        };
        self.postgres.start(&config).await.unwrap();
    }

    /// Follows, and has everything that the primary has.
    async fn follows(&self, primary: &Self) {
        self.start(Recovery::Follow(primary.id), &[]).await;
        let Server::Primary(status) = primary.postgres.local().borrow().server.clone() else { panic!("not a primary") };
        self.until("streaming", |local| match &local.server {
            Server::Standby(standby) => {
                let received = standby.received.is_some_and(|received| received.timeline == status.flushed.timeline);
                standby.streaming && received && standby.replayed >= status.flushed.lsn
            }
            _ => false,
        })
        .await;
        assert_eq!(self.count().await, primary.count().await);
    }

    /// Out of recovery by an operator's hand, and then writes of its own.
    async fn diverges(&self, primary: &Self) {
        let detached = ServerConfig {
            recovery: Recovery::Detached,
            synchronous: Synchronous::Nobody,
            gate: Gate::Open,
            slots: BTreeSet::new(),
        };
        self.postgres.configure(&detached).await.unwrap();
        let alone = ServerConfig { recovery: Recovery::Primary, ..detached };
        self.postgres.promote(&alone, None).await.unwrap();
        self.sql("INSERT INTO t SELECT -g FROM generate_series(1, 1000) g").await;
        primary.sql("INSERT INTO t SELECT g FROM generate_series(1, 10) g").await;
        self.postgres.stop(StopMode::Immediate).await.unwrap();
    }

    async fn rejoins(&self, primary: &Self, from: Rung) -> Rejoined {
        self.postgres.rejoin(primary.id, from, None, true).await.unwrap()
    }

    async fn snapshot(&self) -> crate::storage::Snapshot {
        self.postgres.storage().snapshots().unwrap().take().await.unwrap()
    }

    fn aside(&self) -> usize {
        std::fs::read_dir(self.settings.layout().isolated()).unwrap().count()
    }

    fn method(&self) -> (Method, Outcome) {
        let restore = self.postgres.progress().restore().expect("a copy");
        assert!(restore.completed > 0 && restore.rate > 0, "{restore:?}");
        (restore.method, restore.done)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        if let Some(pid) = self.postgres.pid().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::QUIT);
            let deadline = Instant::now() + Duration::from_secs(10);
            while rustix::process::test_kill_process(pid).is_ok() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
                let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::NOHANG);
            }
        }
    }
}

/// A primary with a table, and a standby copied from it.
async fn shard(pool: &Pool) -> (Peer, Peer) {
    let (primary, standby) = (Peer::new(pool, Role::Primary).await, Peer::new(pool, Role::Async(0)).await);
    primary.postgres.initialise().await.unwrap();
    primary.start(Recovery::Primary, &[standby.id]).await;
    primary.sql("CREATE TABLE t AS SELECT g AS n FROM generate_series(1, 20000) g").await;
    assert_eq!(standby.postgres.bootstrap(primary.id, true).await.unwrap(), Rung::Copy);
    assert_eq!(standby.method(), (Method::ZfsFull, Outcome::Done));
    standby.follows(&primary).await;
    (primary, standby)
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
    let snapshots = other.postgres.storage().snapshots().unwrap();
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
    assert_eq!(other.postgres.bootstrap(primary.id, true).await.unwrap(), Rung::Rollback);
    assert_eq!(other.aside(), 1, "what diverged is set aside");
    other.follows(&primary).await;

    // Rollback by itself. A sync must not: it is condemned instead.
    let newest = other.snapshot().await;
    other.diverges(&primary).await;
    assert_eq!(other.rejoins(&primary, Rung::Rollback).await, Rejoined::Held(Rung::Rollback));
    let list = snapshots.list().await.unwrap();
    assert!(list.contains(&newest) && list.contains(&before), "{list:?}");
    other.follows(&primary).await;
    other.diverges(&primary).await;
    let as_sync = other.postgres.rejoin(primary.id, Rung::Rollback, None, false).await.unwrap();
    assert_eq!(as_sync, Rejoined::Condemned);
    assert_eq!(other.postgres.local().borrow().data, Data::Incomplete);

    // What changed since the snapshot that both have; first from a source that breaks off, then from one that is not
    // fit, then from one that is.
    let (broken, served) = breaks_off(&primary).await;
    assert!(other.postgres.storage().fetch(&broken).await.is_err());
    assert!(served.await.unwrap().contains("Bearer"), "it was asked with the token");
    assert!(!other.postgres.progress().is_copying());
    primary.role.send_replace(Role::Deposed);
    let refused = other.postgres.bootstrap(primary.id, true).await.unwrap_err().to_string();
    assert!(refused.contains("deposed"), "{refused}");
    primary.role.send_replace(Role::Primary);
    assert_eq!(other.postgres.bootstrap(primary.id, true).await.unwrap(), Rung::Incremental);
    assert_eq!(other.method(), (Method::ZfsIncremental, Outcome::Done));
    other.follows(&primary).await;

    // In full, because an operator says so; and that too is taken up again after an interruption.
    let aside = other.aside();
    other.postgres.order_rebuild().await.unwrap();
    assert_eq!(other.postgres.local().borrow().data, Data::Incomplete);
    let progress = other.postgres.progress();
    let uuid = progress.restore().unwrap().uuid;
    tokio::select! {
        done = other.postgres.bootstrap(primary.id, true) => panic!("it was not interrupted: {done:?}"),
        () = async {
            let has_begun = |restore: &Restore| restore.uuid != uuid && restore.completed > 1 << 20;
            while !progress.restore().as_ref().is_some_and(has_begun) { tokio::task::yield_now().await }
        } => {}
    }
    assert_eq!(progress.restore().unwrap().done, Outcome::Failed);
    assert_eq!(other.postgres.bootstrap(primary.id, true).await.unwrap(), Rung::Copy);
    // Where ZFS can, from where it was.
    let method = if pool.zfs(&["version"]).is_ok() { Method::ZfsResumed } else { Method::ZfsFull };
    assert_eq!((other.method(), other.aside()), ((method, Outcome::Done), aside.min(1) + 1));
    other.follows(&primary).await;

    // And the other way round: the standby gives as well.
    assert_eq!(primary.postgres.storage().prune_aside(0).await.unwrap(), 0);
    assert_eq!(other.postgres.storage().prune_aside(0).await.unwrap(), aside.min(1) + 1);
    let third = Peer::new(&pool, Role::Unassigned).await;
    assert_eq!(third.postgres.bootstrap(other.id, true).await.unwrap(), Rung::Copy);
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
        crate::storage::Source { peer, slot: "none".to_owned(), system, incremental: true, conninfo: String::new() },
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
    primary.postgres.initialise().await.unwrap();
    primary.start(Recovery::Primary, &[]).await;
    // Random text does not compress.
    let rows = "CREATE TABLE t AS SELECT g AS n, string_agg(md5(random()::text || g), '') AS x \
                FROM generate_series(1, 20000) g, generate_series(1, 200) GROUP BY g; CHECKPOINT";
    primary.sql(&format!("SET statement_timeout = 0; {rows}")).await;
    let snapshot = primary.snapshot().await;
    let dataset = match &primary.settings.storage {
        StorageSettings::Zfs { dataset, .. } => dataset.clone(),
        StorageSettings::Directory => panic!("not on ZFS"),
    };
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
        other.postgres.bootstrap(primary.id, true).await.unwrap();
        let restore = other.postgres.progress().restore().unwrap();
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
