//! A peer under test: the manager of a real PostgreSQL.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use manatee_shared::ids::PeerId;
use manatee_sitter::data::{DataSettings, LocalData};
use manatee_sitter::machine::local::{Local, PrimaryStatus, Server, StandbyStatus};
use manatee_sitter::postgres::{Postgres, Secret, Settings};
use tokio_postgres::{Client, NoTls};

pub(crate) const SUPERUSER_PASSWORD: &str = "correct horse";

/// A peer: its manager, and a folder that goes with it. The server is killed at the end.
pub(crate) struct TestPeer {
    pub(crate) id: PeerId,
    pub(crate) postgres: Arc<Postgres>,
    pub(crate) data: LocalData,
    pub(crate) settings: Settings,
    pub(crate) dir: tempfile::TempDir,
    /// Ends the server when this process is killed: it waits for the end of its input.
    _watchman: std::process::Child,
}

/// PostgreSQL is made to outlive its sitter; here it must not outlive the test.
pub(crate) fn watchman(dir: &Path) -> std::process::Child {
    let script = "read _; d=$0/p/data; p=$(head -n 1 $d/postmaster.pid) && [ \"$(readlink /proc/$p/cwd)\" = $d ] \
                  && kill -9 $p; rm -rf $0";
    std::process::Command::new("setsid")
        .args(["sh", "-c", script])
        .arg(dir)
        .stdin(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

impl TestPeer {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    /// One with other settings.
    pub(crate) fn with(change: impl FnOnce((&mut Settings, PeerId))) -> Self {
        // Addresses of their own for the peers of one test and of tests beside it.
        static NEXT: AtomicU8 = AtomicU8::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let host = u8::try_from(std::process::id() % 200).unwrap();
        let ip = Ipv4Addr::new(127, 100 + number, host, 1);
        let port = TcpListener::bind(SocketAddr::from((ip, 0))).unwrap().local_addr().unwrap().port();
        let id: PeerId = format!("{ip}:{port}:12345").parse().unwrap();
        let dir = tempfile::Builder::new().prefix("mnt").tempdir_in("/tmp").unwrap();
        // PostgreSQL's user must get through to what is below.
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let bin_dir = manatee_tests::binaries::postgres_folder().unwrap();
        let mut settings = Settings {
            superuser_password: Some(Secret::new(SUPERUSER_PASSWORD)),
            start_wait: Duration::from_secs(20),
            parameters: [("shared_buffers".to_owned(), "16MB".to_owned())].into(),
            ..Settings::new(dir.path().join("p"), bin_dir, Secret::new("repl:pass\\word"), Secret::new("proxypass"))
        };
        change((&mut settings, id));
        let postgres = Arc::new(Postgres::new(settings.clone(), id).unwrap());
        let data = LocalData::new(postgres.clone(), &DataSettings::default());
        let _watchman = watchman(dir.path());
        Self { id, postgres, data, settings, dir, _watchman }
    }

    pub(crate) fn local(&self) -> Local {
        self.postgres.local().borrow().clone()
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.settings.layout().data()
    }

    pub(crate) fn standby(&self) -> StandbyStatus {
        match self.local().server {
            Server::Standby(status) => status,
            other => panic!("not a standby: {other:?}"),
        }
    }

    pub(crate) fn primary(&self) -> PrimaryStatus {
        match self.local().server {
            Server::Primary(status) => status,
            other => panic!("not a primary: {other:?}"),
        }
    }

    /// Waits for a state, with a deadline.
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(&Local) -> bool) -> Local {
        let mut local = self.postgres.local();
        let waiting = local.wait_for(|local| wanted(local));
        match tokio::time::timeout(Duration::from_secs(20), waiting).await {
            Ok(local) => local.unwrap().clone(),
            Err(_) => panic!("{what} did not come: {:?}\n{}", self.local(), log(&self.settings)),
        }
    }

    pub(crate) async fn streaming(&self) {
        self.until("streaming", |local| matches!(&local.server, Server::Standby(standby) if standby.streaming)).await;
    }

    /// Waits until a peer follows under its own name.
    pub(crate) async fn followed_by(&self, peer: PeerId) {
        let follows = |local: &Local| match &local.server {
            Server::Primary(PrimaryStatus { downstreams, .. }) | Server::Standby(StandbyStatus { downstreams, .. }) => {
                downstreams.iter().any(|down| down.peer == peer && down.streaming)
            }
            _ => false,
        };
        self.until("a follower", follows).await;
    }

    pub(crate) async fn client(&self) -> Result<Client, tokio_postgres::Error> {
        let config = format!(
            "host={} port={} user=postgres dbname=postgres password='{SUPERUSER_PASSWORD}' connect_timeout=5",
            self.id.ip, self.id.pg_port
        );
        let (client, connection) = tokio_postgres::connect(&config, NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    pub(crate) async fn sql(&self, text: &str) {
        let client = self.client().await.expect("connection");
        let done = tokio::time::timeout(Duration::from_secs(20), client.batch_execute(text)).await;
        done.expect("an answer in time").expect(text);
    }
}

pub(crate) fn log(settings: &Settings) -> String {
    let text = std::fs::read_to_string(settings.layout().log()).unwrap_or_default();
    text.lines().rev().take(30).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
}

impl Drop for TestPeer {
    fn drop(&mut self) {
        let pid_file = std::fs::read_to_string(self.data_dir().join("postmaster.pid")).unwrap_or_default();
        let pid = pid_file.lines().next().and_then(|line| line.trim().parse().ok());
        if let Some(pid) = pid.filter(|&pid: &i32| works_in(pid, &self.data_dir())) {
            // SIGQUIT: children end with it.
            let pid = nix::unistd::Pid::from_raw(pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGQUIT);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT);
            let deadline = Instant::now() + Duration::from_secs(5);
            while works_in(pid.as_raw(), &self.data_dir()) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let _ = self.dir.path();
    }
}

pub(crate) fn works_in(pid: i32, data: &Path) -> bool {
    std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data)
}
