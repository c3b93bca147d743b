//! A real PostgreSQL in a temporary folder, gone when dropped.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// The folder that MANATEE_POSTGRES_BIN names, or the newest PostgreSQL Debian installed.
fn bin_dir() -> PathBuf {
    if let Some(folder) = std::env::var_os("MANATEE_POSTGRES_BIN") {
        return folder.into();
    }
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .expect("PostgreSQL is installed")
        .map(|entry| entry.expect("entry").path().join("bin"))
        .collect();
    versions.sort();
    versions.pop().expect("a version")
}

/// A program of PostgreSQL's, as a user it accepts to run as.
pub(crate) fn program(name: &str) -> Command {
    let path = bin_dir().join(name);
    if !nix::unistd::geteuid().is_root() {
        return Command::new(path);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--pdeathsig=KILL"]).arg(path);
    command
}

pub(crate) struct Postgres {
    child: Child,
    pub(crate) port: u16,
    folder: TempDir,
}

impl Postgres {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("manatee-login-").tempdir_in("/tmp").expect("folder");
        if nix::unistd::geteuid().is_root() {
            let user = nix::unistd::User::from_name("postgres").expect("users").expect("user postgres");
            nix::unistd::chown(folder.path(), Some(user.uid), Some(user.gid)).expect("chown");
        }
        let data = folder.path().join("data");
        let initdb = program("initdb")
            .args(["-U", "postgres", "-A", "trust", "--no-sync", "-D"])
            .arg(&data)
            .stdout(Stdio::null())
            .status();
        assert!(initdb.expect("initdb").success());
        std::fs::write(
            data.join("pg_hba.conf"),
            "local all all trust\nhost all oldtimer 127.0.0.1/32 md5\nhost all,replication all 127.0.0.1/32 scram-sha-256\n",
        )
        .expect("hba");
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("free").port();
        let child = program("postgres")
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(folder.path())
            .args(["-p", &port.to_string(), "-h", "127.0.0.1", "-F", "-c", "wal_level=logical"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("postgres");
        let postgres = Self { child, port, folder };
        let deadline = Instant::now() + Duration::from_secs(60);
        while postgres.admin().await.is_err() {
            assert!(Instant::now() < deadline, "PostgreSQL did not start");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        postgres
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// As superuser, over the socket.
    pub(crate) async fn admin(&self) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::Config::new()
            .host_path(self.folder.path())
            .port(self.port)
            .user("postgres")
            .connect(tokio_postgres::NoTls)
            .await?;
        tokio::spawn(connection);
        Ok(client)
    }

    pub(crate) async fn run(&self, sql: &str) {
        self.admin().await.expect("connection").batch_execute(sql).await.expect(sql);
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Immediate shutdown: it takes its children along.
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).expect("pid"));
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGQUIT);
        let _ = self.child.wait();
    }
}
