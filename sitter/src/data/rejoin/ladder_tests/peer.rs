//! The peers that the tests of the ladder are made of.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use manatee_shared::cluster::{Peer as Named, Role};
use manatee_shared::config::Secret as Token;
use manatee_shared::zk::Session;
use manatee_tests::binaries::postgres_folder;
use manatee_tests::zpool::Pool;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};

use super::*;
use crate::api::{self, Api};
use crate::data::{DataSettings, LocalData};
use crate::driver::status::Status;
use crate::machine::local::{Local, Server};
use crate::postgres::{Postgres, Secret, Settings};
use crate::status::{CopyMethod, CopyState};
use crate::storage::StorageSettings;

const TOKEN: &str = "a token of the shard's";
/// Longest wait for anything, in seconds: for machines that are slower than most.
const PATIENCE: &str = "MANATEE_TEST_PATIENCE";

/// By default for zfs-fuse, on which everything is slow, and slower beside others.
fn patience() -> Duration {
    Duration::from_secs(std::env::var(PATIENCE).ok().and_then(|text| text.parse().ok()).unwrap_or(120))
}

/// Repeats an action that failed for the moment, as the sitter's machine does. On a busy machine PostgreSQL may well
/// not answer for the half second after which it counts as hung, and who is hung gives no data.
pub(super) async fn again<T, F: Future<Output = Result<T, Error>>>(action: impl Fn() -> F) -> T {
    let deadline = Instant::now() + patience();
    loop {
        match action().await {
            Ok(done) => return done,
            Err(error) if is_passing(&error) && Instant::now() < deadline => {
                eprintln!("once more, because: {error}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Whether a failure may be over by itself: a wait that was too short, or somebody who did not answer.
pub(super) fn is_passing(error: &Error) -> bool {
    match error {
        Error::Timeout { .. }
        | Error::ConnectTimeout { .. }
        | Error::NotAnswering
        | Error::Busy
        | Error::SourceNotFit { .. } => true,
        // Class 57 is "operator intervention", of which a statement's timeout is one.
        Error::Query { source, .. } => source.code().is_none_or(|state| state.code().starts_with("57")),
        _ => false,
    }
}

/// Status of a peer as its API knows it.
fn known(id: PeerId, role: Role, local: &Local) -> Arc<Status> {
    let mut status = Status::nothing(Named::new(id, "test"), "demo".parse().unwrap(), Instant::now());
    (status.role, status.report.local, status.report.zk.session) = (role, local.clone(), Session::Connected.into());
    Arc::new(status)
}

/// A peer with its API; what its status says follows its PostgreSQL. Its server is killed at the end.
pub(super) struct Peer {
    pub(super) id: PeerId,
    pub(super) postgres: Arc<Postgres>,
    pub(super) data: Arc<LocalData>,
    pub(super) settings: Settings,
    pub(super) dataset: String,
    role: watch::Sender<Role>,
    /// Status as its API knows it.
    status: watch::Receiver<Arc<Status>>,
    tasks: Vec<JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

impl Peer {
    pub(super) async fn new(pool: &Pool, role: Role) -> Self {
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
            start_wait: patience(),
            confirm_timeout: patience(),
            promote_timeout: patience(),
            stop_timeout: patience(),
            parameters: [("shared_buffers", "16MB"), ("wal_init_zero", "off"), ("wal_recycle", "off")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            ..Settings::new(dir.path().join("p"), postgres_folder().unwrap(), Secret::new("repl"), Secret::new("proxy"))
        };
        std::fs::create_dir(&settings.dir).unwrap();
        let dataset = format!("{}/peer{number}", pool.name());
        let storage = StorageSettings::Zfs {
            dataset: dataset.clone(),
            properties: properties.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        };
        let of_data = DataSettings { storage, api_token: Some(Token::new(TOKEN)), ..DataSettings::default() };
        let postgres = Arc::new(Postgres::new(settings.clone(), id).unwrap());
        let data = Arc::new(LocalData::new(postgres.clone(), &of_data));
        data.adopt().await.unwrap();
        let sender = watch::Sender::new(known(id, role, &postgres.local().borrow()));
        let (role, status) = (watch::Sender::new(role), sender.subscribe());
        let mut peer = Self { id, postgres, data, settings, dataset, role, status, tasks: vec![], _dir: dir };
        peer.serve(listener, sender);
        peer
    }

    fn serve(&mut self, listener: TcpListener, sender: watch::Sender<Arc<Status>>) {
        let (id, mut local, mut role) = (self.id, self.postgres.local(), self.role.subscribe());
        let router = api::router(Api {
            status: self.status.clone(),
            metrics: Arc::new(String::new),
            progress: self.data.progress(),
            control: self.data.clone(),
            token: Some(Token::new(TOKEN)),
            transfers: Api::transfers(),
        });
        self.tasks.push(tokio::spawn(async move {
            loop {
                tokio::select! {
                    Ok(()) = local.changed() => {}
                    Ok(()) = role.changed() => {}
                    else => return,
                }
                sender.send_replace(known(id, *role.borrow_and_update(), &local.borrow_and_update()));
            }
        }));
        self.tasks.push(tokio::spawn(async move {
            let _ = api::serve(listener, router).await;
        }));
    }

    /// Has another role from now on, also in the eyes of those who ask it for data.
    pub(super) async fn becomes(&self, role: Role) {
        self.role.send_replace(role);
        self.status.clone().wait_for(|status| status.role == role).await.unwrap();
    }

    async fn until(&self, what: &str, wanted: impl Fn(&Local) -> bool) {
        let mut local = self.postgres.local();
        let waiting = tokio::time::timeout(patience(), local.wait_for(|local| wanted(local))).await;
        assert!(waiting.is_ok(), "{what} did not come: {:?}", self.postgres.local().borrow());
    }

    async fn client(&self) -> Client {
        let mut config = tokio_postgres::Config::new();
        config.host_path(self.settings.layout().run()).port(self.id.pg_port).user("postgres").dbname("postgres");
        let (client, connection) = config.connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    pub(super) async fn sql(&self, sql: &str) {
        self.client().await.batch_execute(sql).await.unwrap();
    }

    async fn count(&self) -> i64 {
        self.client().await.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get(0)
    }

    pub(super) async fn start(&self, recovery: Recovery, slots: &[PeerId]) {
        let config = ServerConfig {
            recovery,
            synchronous: if recovery == Recovery::Primary { Synchronous::Nobody } else { Synchronous::Impossible },
            gate: Gate::Open,
            slots: slots.iter().copied().collect::<BTreeSet<_>>(),
        };
        again(|| self.postgres.start(&config)).await;
    }

    /// End of a primary's WAL, asked of itself: what was last observed may be from before the last write, and on
    /// a busy machine it is none when PostgreSQL counts as hung for a moment.
    async fn flushed(&self) -> WalPosition {
        let sql = "SELECT pg_current_wal_flush_lsn()::text, pg_walfile_name(pg_current_wal_flush_lsn())";
        let row = self.client().await.query_one(sql, &[]).await.unwrap();
        let timeline = u32::from_str_radix(&row.get::<_, &str>(1)[..8], 16).unwrap();
        WalPosition { timeline: Timeline(timeline), lsn: row.get::<_, &str>(0).parse().unwrap() }
    }

    /// Follows, and has everything that the primary has.
    pub(super) async fn follows(&self, primary: &Self) {
        self.start(Recovery::Follow(primary.id), &[]).await;
        let flushed = primary.flushed().await;
        self.until("streaming", |local| match &local.server {
            Server::Standby(standby) => {
                let received = standby.received.is_some_and(|received| received.timeline == flushed.timeline);
                standby.streaming && received && standby.replayed >= flushed.lsn
            }
            _ => false,
        })
        .await;
        assert_eq!(self.count().await, primary.count().await);
    }

    /// Out of recovery by an operator's hand, and then writes of its own.
    pub(super) async fn diverges(&self, primary: &Self) {
        let detached = ServerConfig {
            recovery: Recovery::Detached,
            synchronous: Synchronous::Nobody,
            gate: Gate::Open,
            slots: BTreeSet::new(),
        };
        again(|| self.postgres.configure(&detached)).await;
        let alone = ServerConfig { recovery: Recovery::Primary, ..detached };
        again(|| self.postgres.promote(&alone, None)).await;
        self.sql("INSERT INTO t SELECT -g FROM generate_series(1, 1000) g").await;
        primary.sql("INSERT INTO t SELECT g FROM generate_series(1, 10) g").await;
        self.postgres.stop(StopMode::Immediate).await.unwrap();
    }

    pub(super) async fn rejoins(&self, primary: &Self, from: Rung) -> Rejoined {
        again(|| self.data.rejoin(primary.id, from, None, true)).await
    }

    pub(super) async fn bootstraps(&self, source: &Self) -> Rung {
        again(|| self.data.bootstrap(source.id, true)).await
    }

    pub(super) async fn snapshot(&self) -> crate::storage::Snapshot {
        self.data.storage().snapshots().unwrap().take().await.unwrap()
    }

    pub(super) fn aside(&self) -> usize {
        std::fs::read_dir(self.settings.layout().isolated()).unwrap().count()
    }

    pub(super) fn method(&self) -> (CopyMethod, CopyState) {
        let restore = self.data.progress().restore().expect("a copy");
        assert!(restore.completed > 0 && restore.rate > 0, "{restore:?}");
        (*restore.method.known().expect("one of ours"), restore.done)
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
