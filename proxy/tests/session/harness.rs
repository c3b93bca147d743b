//! Real PostgreSQL servers, and sessions served over real sockets in front of them. The login is
//! left out: whoever connects is let in, and servers trust everybody.

use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use arc_swap::ArcSwapOption;
use bytes::BytesMut;
use manatee_proxy::auth::{Access, Client, Identity, Opened, Secret};
use manatee_proxy::cancel::Registry;
use manatee_proxy::driver;
use manatee_proxy::pool::{Catalogs, Limits, Mode, Settings, Worker};
use manatee_proxy::route::Catalog;
use manatee_proxy::topology::consistency::Consistency;
use manatee_proxy::topology::{self, Node, Primary, Publisher, Reign, Sample, Snapshot, Standby, Topology};
use manatee_proxy::wire::backend::{self, TxStatus};
use manatee_proxy::wire::put_message;
use manatee_shared::cluster::Role;
use manatee_shared::ids::PeerId;
use manatee_shared::lsn::Lsn;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

const BIN: &str = "/usr/lib/postgresql/15/bin";
const DEADLINE: Duration = Duration::from_secs(30);

/// Waits for a state, with a deadline.
pub(crate) fn until(mut reached: impl FnMut() -> bool) {
    let began = Instant::now();
    while !reached() {
        assert!(began.elapsed() < DEADLINE, "not reached in time");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A PostgreSQL server in a temporary folder; killed when dropped.
pub(crate) struct Postgres {
    pub(crate) port: u16,
    folder: tempfile::TempDir,
    child: Option<Child>,
}

fn free_port() -> Result<u16> {
    Ok(StdListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn path(program: &str) -> String {
    let folder = std::env::var("MANATEE_POSTGRES_BIN").unwrap_or_else(|_| BIN.to_owned());
    format!("{folder}/{program}")
}

/// `program` of PostgreSQL as an ordinary user: it refuses to run as root.
fn command(program: &str) -> Command {
    let path = path(program);
    if nix::unistd::geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--pdeathsig=KILL", &path]);
        command
    } else {
        Command::new(path)
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

impl Postgres {
    fn folder() -> Result<tempfile::TempDir> {
        let folder = tempfile::tempdir()?;
        if nix::unistd::geteuid().is_root() {
            run(Command::new("chown").arg("postgres").arg(folder.path()))?;
        }
        Ok(folder)
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A new, empty primary.
    pub(crate) fn primary() -> Result<Self> {
        let mut server = Self { port: free_port()?, folder: Self::folder()?, child: None };
        run(command("initdb").args(["-U", "postgres", "-A", "trust", "-N", "-E", "UTF8", "-D"]).arg(server.data()))?;
        server.start()?;
        Ok(server)
    }

    /// A streaming standby of `primary`.
    pub(crate) fn standby_of(primary: &Self) -> Result<Self> {
        let mut server = Self { port: free_port()?, folder: Self::folder()?, child: None };
        run(command("pg_basebackup")
            .args(["-h", "127.0.0.1", "-U", "postgres", "-c", "fast", "-R", "-p", &primary.port.to_string(), "-D"])
            .arg(server.data()))?;
        server.start()?;
        Ok(server)
    }

    fn start(&mut self) -> Result<()> {
        let mut postgres = command("postgres");
        postgres.arg("-D").arg(self.data());
        for setting in [
            format!("port={}", self.port),
            "listen_addresses=127.0.0.1".to_owned(),
            format!("unix_socket_directories={}", self.folder.path().display()),
            "fsync=off".to_owned(),
            "max_connections=60".to_owned(),
            "max_standby_streaming_delay=1s".to_owned(),
            "logging_collector=off".to_owned(),
        ] {
            postgres.args(["-c", &setting]);
        }
        let log = std::fs::File::create(self.folder.path().join("log"))?;
        let child = postgres.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0).spawn()?;
        self.child = Some(child);
        let began = Instant::now();
        loop {
            let ready = command("pg_isready").args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()]).status()?;
            if ready.success() {
                return Ok(());
            }
            ensure!(began.elapsed() < DEADLINE, "postgres did not start: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Contents of its log.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn node(&self) -> Node {
        Node::of(PeerId { ip: Ipv4Addr::LOCALHOST.into(), pg_port: self.port, backup_port: self.port })
    }

    pub(crate) fn promote(&self) -> Result<()> {
        run(command("pg_ctl").args(["promote", "-w", "-D"]).arg(self.data()))
    }

    /// SIGQUIT to the postmaster: everybody is cut off at once.
    pub(crate) fn crash(&mut self) -> Result<()> {
        run(command("pg_ctl").args(["stop", "-m", "immediate", "-D"]).arg(self.data()))?;
        self.child = None;
        Ok(())
    }

    /// Clients are sent away, standbys get the rest of the WAL.
    pub(crate) fn stop_fast(&mut self) -> Result<()> {
        run(command("pg_ctl").args(["stop", "-m", "fast", "-D"]).arg(self.data()))?;
        self.child = None;
        Ok(())
    }

    pub(crate) fn psql(&self, sql: &str) -> Result<String> {
        psql(self.port, sql)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = command("pg_ctl").args(["stop", "-m", "immediate", "-D"]).arg(self.data()).output();
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Runs SQL by psql, one string as one Query each; stdout and stderr, trimmed.
pub(crate) fn psql(port: u16, sql: &str) -> Result<String> {
    let output = Command::new(path("psql"))
        .args(["-XAtq", "-h", "127.0.0.1", "-U", "postgres", "-d", "postgres", "-p", &port.to_string(), "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .and_then(|mut child| {
            use std::io::Write;
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(sql.as_bytes())?;
            }
            child.wait_with_output()
        })?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    Ok(text.trim().to_owned())
}

struct OneCatalog(Arc<ArcSwapOption<Catalog>>);

impl Catalogs for OneCatalog {
    fn of(&self, _database: &str) -> Arc<ArcSwapOption<Catalog>> {
        self.0.clone()
    }
}

/// Proxy and the servers behind it.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    publisher: Publisher,
    catalog: Arc<ArcSwapOption<Catalog>>,
    snapshot: Mutex<Snapshot>,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// Settings a test may change.
pub(crate) struct Setup {
    pub(crate) mode: Mode,
    pub(crate) size: usize,
    pub(crate) consistency: Consistency,
    pub(crate) hold_timeout: Duration,
    pub(crate) query_wait_timeout: Duration,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            mode: Mode::Transaction,
            size: 8,
            consistency: Consistency::Eventual,
            hold_timeout: Duration::from_secs(10),
            query_wait_timeout: Duration::from_secs(10),
        }
    }
}

impl Proxy {
    /// Serves on a free port; nothing is known of any node yet.
    pub(crate) fn start(setup: Setup, catalog: Option<Catalog>) -> Result<Self> {
        let (publisher, topology, suspicions) = topology::channel();
        let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        listener.set_nonblocking(true)?;
        let stop = CancellationToken::new();
        let catalog = Arc::new(ArcSwapOption::from(catalog.map(Arc::new)));
        let catalogs = Arc::new(OneCatalog(catalog.clone()));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().stack_size(64 << 20).spawn(move || {
            let _suspicions = suspicions;
            let Ok(runtime) =
                tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default())
            else {
                return;
            };
            let serve = serve(listener, setup, topology, catalogs);
            runtime.block_on(async {
                tokio::select! {
                    result = serve => println!("serving ended: {result:?}"),
                    () = stopped.cancelled() => {}
                }
            });
        })?;
        Ok(Self { port, publisher, catalog, snapshot: Mutex::new(Snapshot::unknown()), stop, thread: Some(thread) })
    }

    /// Has it know another catalog.
    pub(crate) fn learn(&self, catalog: Catalog) {
        self.catalog.store(Some(Arc::new(catalog)));
    }

    /// Says who is primary (with a generation) and who is standby.
    pub(crate) fn topology(&self, generation: u64, named: Node, primary: Option<&Postgres>, standbys: &[&Postgres]) {
        let mut snapshot = self.snapshot.lock().unwrap();
        snapshot.sequence += 1;
        snapshot.generation = generation;
        snapshot.reign = Some(Reign { primary: named.id, since_generation: generation });
        snapshot.primary = primary.map(|server| Primary { node: server.node(), timeline: None });
        snapshot.standbys = standbys
            .iter()
            .map(|server| Standby {
                node: server.node(),
                role: Role::Sync,
                replayed: Sample { started: Instant::now(), lsn: Lsn(1) },
                lag: Duration::ZERO,
                fit: true,
            })
            .collect();
        self.publisher.publish(snapshot.clone());
    }

    pub(crate) fn psql(&self, sql: &str) -> Result<String> {
        psql(self.port, sql)
    }

    pub(crate) fn pgbench(&self, arguments: &[&str]) -> Result<String> {
        pgbench(self.port, arguments)
    }
}

pub(crate) fn pgbench(port: u16, arguments: &[&str]) -> Result<String> {
    let output = Command::new(path("pgbench"))
        .args(["-h", "127.0.0.1", "-U", "postgres", "-p", &port.to_string()])
        .args(arguments)
        .arg("postgres")
        .output()?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{text}");
    Ok(text)
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(listener: StdListener, setup: Setup, topology: Topology, catalogs: Arc<dyn Catalogs>) -> Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let settings = Settings {
        mode: setup.mode,
        size: setup.size,
        unbound_percent: 25,
        limits: Limits::NONE,
        query_wait_timeout: setup.query_wait_timeout,
        server_idle_timeout: Duration::from_secs(60),
        server_lifetime: Duration::from_secs(600),
        connect_timeout: Duration::from_secs(5),
        split: true,
        consistency: setup.consistency,
        hold_timeout: setup.hold_timeout,
        hold_standby_timeout: setup.hold_timeout,
        hold_max_clients: 100,
        hold_max_bytes: 1 << 20,
    };
    let worker = Worker::new("test", settings, topology, Arc::default(), catalogs, 42);
    tokio::task::spawn_local(worker.clone().maintain());
    let registry = Registry::new();
    loop {
        let (stream, address) = listener.accept().await?;
        let (worker, registry) = (worker.clone(), registry.clone());
        tokio::task::spawn_local(async move {
            let _ = stream.set_nodelay(true);
            match admit(stream, address, &registry).await {
                Ok(Some((stream, client))) => driver::run(stream, client, worker, ()).await,
                Ok(None) => {}
                Err(error) => println!("not admitted: {error:#}"),
            }
        });
    }
}

/// Lets anybody in.
async fn admit(
    mut stream: TcpStream,
    address: SocketAddr,
    registry: &Arc<Registry>,
) -> Result<Option<(TcpStream, Client)>> {
    const SSL_REQUEST: u32 = 80_877_103;
    const GSS_REQUEST: u32 = 80_877_104;
    const CANCEL_REQUEST: u32 = 80_877_102;
    loop {
        let length = stream.read_u32().await? as usize;
        ensure!((8..10_000).contains(&length), "startup of {length} bytes");
        let mut body = vec![0; length - 4];
        stream.read_exact(&mut body).await?;
        let code = u32::from_be_bytes(body[..4].try_into()?);
        match code {
            SSL_REQUEST | GSS_REQUEST => stream.write_all(b"N").await?,
            CANCEL_REQUEST => {
                let pid = u32::from_be_bytes(body[4..8].try_into()?);
                registry.cancel(pid, &body[8..]).await;
                return Ok(None);
            }
            _ => {
                let mut texts =
                    body[4..].split(|byte| *byte == 0).map(|text| String::from_utf8_lossy(text).into_owned());
                let mut startup = Vec::new();
                while let (Some(name), Some(value)) = (texts.next(), texts.next()) {
                    if !name.is_empty() && name != "user" && name != "database" {
                        startup.push((name, value));
                    }
                }
                let cancel = registry.register(false)?;
                let mut out = BytesMut::new();
                put_message(&mut out, b'R', |out| out.extend_from_slice(&[0; 4]));
                let asked = startup.iter().find(|(name, _)| name == "client_encoding");
                let encoding = asked.map_or("UTF8", |(_, value): &(String, String)| value.as_str());
                let reported: Vec<_> = [
                    ("server_version", "15.0"),
                    ("client_encoding", encoding),
                    ("standard_conforming_strings", "on"),
                    ("integer_datetimes", "on"),
                ]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into();
                for (name, value) in &reported {
                    backend::put_parameter_status(&mut out, name.as_bytes(), value.as_bytes());
                }
                put_message(&mut out, b'K', |out| {
                    out.extend_from_slice(&cancel.pid.to_be_bytes());
                    out.extend_from_slice(cancel.secret());
                });
                backend::put_ready(&mut out, TxStatus::Idle);
                stream.write_all(&out).await?;
                let identity = Arc::new(Identity {
                    user: "postgres".into(),
                    database: "postgres".into(),
                    role: None,
                    secrets: Secret::None.into(),
                });
                let client = Client {
                    address,
                    local: None,
                    tls: None,
                    access: Access::ReadWrite,
                    identity,
                    startup,
                    reported,
                    cancel,
                    opened: Opened::Nothing,
                };
                return Ok(Some((stream, client)));
            }
        }
    }
}

/// The catalog of a server's database.
pub(crate) fn catalog(server: &Postgres) -> Result<Catalog> {
    let sql = format!("{};", manatee_proxy::route::volatility::CATALOG_SQL.trim().trim_end_matches(';'));
    let output = Command::new(path("psql"))
        .args(["-XAtq", "-F", "\u{1}", "-R", "\u{2}", "-h", "127.0.0.1", "-U", "postgres", "-d", "postgres"])
        .args(["-p", &server.port.to_string(), "-c", &sql])
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let rows = text.trim_end_matches('\n').split('\u{2}').filter_map(|row| {
        let columns: Vec<&str> = row.split('\u{1}').collect();
        <[&str; 5]>::try_from(columns).ok()
    });
    Ok(Catalog::from_rows(rows))
}
