//! A whole shard on one machine.

use std::fs::{self, DirBuilder, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use manatee_shared::cluster::{ClusterState, Role};

use crate::binaries::{self, Binaries};
use crate::host::{Host, HostConfig, Power};
use crate::network::{Machine, Namespaces, Network, Size};
use crate::process::{Launch, Process};
use crate::proxy::{ProxyConfig, ProxyProcess};
use crate::reaper::Reaper;
use crate::runfile::RunFile;
use crate::state::StateReader;
use crate::zookeeper::ZooKeeper;
use crate::zpool::Pool;
use crate::{health, ports, process};

/// Name of the lab's shard.
pub const SHARD: &str = "demo";
/// Role and database of the demo.
pub const APP: &str = "app";
/// Pause between two looks at something awaited.
const POLL: Duration = Duration::from_millis(50);

/// Storage of a host's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Storage {
    /// A plain folder.
    Directory,
    /// A dataset of ZFS.
    Zfs,
}

/// Size of the pool of a lab on ZFS, MiB. The file is sparse.
const POOL_MIB: u64 = 16 << 10;

/// Options of a lab.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Database hosts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=9))]
    pub peers: u8,
    /// Proxies; with 0 the shard is reached by its Unix sockets only
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=9))]
    pub proxies: u8,
    /// ZooKeeper servers: 1 or 3
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=3))]
    pub zookeepers: u8,
    /// A network namespace for each host, so that it can be cut off (needs root)
    #[arg(long, value_enum, default_value_t = Namespaces::Auto)]
    pub netns: Namespaces,
    /// Folder for data and logs, new or empty, kept at the end; default: a temporary one
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Port of the first proxy; default: a free one
    #[arg(long)]
    pub port: Option<u16>,
    /// ZooKeeper session timeout of sitters and proxies
    #[arg(long, default_value = "4s")]
    pub zk_session_timeout: String,
    /// Storage of the databases' data. zfs: a pool over a file, of OpenZFS or zfs-fuse (needs root)
    #[arg(long, value_enum, default_value_t = Storage::Directory)]
    pub storage: Storage,
    /// Folder of manatee-sitter, manatee-proxy and manatee-adm; default: beside this program
    #[arg(long)]
    pub bin_dir: Option<PathBuf>,
    /// Folder of an older version's programs: the shard begins with them (row 42)
    #[arg(long)]
    pub old_bin_dir: Option<PathBuf>,
    /// Keep the temporary folder (data and logs) at the end
    #[arg(long)]
    pub keep: bool,
    /// A small file system for each host, which can be full, hang or fail (needs root)
    #[arg(long)]
    pub disks: bool,
    /// A clock for each host, which can go wrong (needs libfaketime)
    #[arg(long)]
    pub clocks: bool,
    /// More settings of PostgreSQL
    #[arg(skip)]
    pub parameters: Vec<(String, String)>,
    /// Few servers for each proxy, shared by none of its threads, and no passwords: many short sessions that have to
    /// wait for each other. Empty: as in production
    #[arg(skip)]
    pub pools: Vec<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            peers: 3,
            proxies: 1,
            zookeepers: 1,
            netns: Namespaces::Auto,
            dir: None,
            port: None,
            zk_session_timeout: "4s".to_owned(),
            storage: Storage::Directory,
            bin_dir: None,
            old_bin_dir: None,
            keep: false,
            disks: false,
            clocks: false,
            parameters: Vec::new(),
            pools: Vec::new(),
        }
    }
}

/// A shard: ZooKeeper, hosts, proxies, and the network between them.
///
/// Dropping it ends every process and removes links, namespaces and the temporary folder: the
/// fields are dropped in this order.
#[derive(Debug)]
pub struct Lab {
    /// The proxies.
    pub proxies: Vec<ProxyProcess>,
    /// The database hosts, numbered from 1.
    pub hosts: Vec<Host>,
    /// ZooKeeper.
    pub zookeeper: ZooKeeper,
    /// The network between them.
    pub network: Network,
    /// Reader of ZooKeeper's state.
    pub state: StateReader,
    /// Manatee's programs.
    pub binaries: Binaries,
    /// Those of an older version, if the shard began with them.
    pub old_binaries: Option<Binaries>,
    /// Password of the role [`APP`].
    pub password: String,
    /// Keeps the hosts' data, in a lab on ZFS.
    pub pool: Option<Pool>,
    folder: Folder,
    _run_file: RunFile,
    _reaper: Reaper,
}

/// The lab's folder; removed at the end if it is temporary.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    temporary: bool,
}

impl Folder {
    fn create(options: &Options, number: u8) -> Result<Self> {
        let (path, temporary) = match &options.dir {
            Some(dir) => (std::path::absolute(dir)?, false),
            None => {
                let name = format!("mtlab{number}-{:06x}", fastrand::u32(..0x100_0000));
                (std::env::temp_dir().join(name), true)
            }
        };
        if temporary {
            // `create` fails if somebody put something there: /tmp is everybody's.
            DirBuilder::new().create(&path)?;
        } else {
            fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
            ensure!(fs::read_dir(&path)?.next().is_none(), "{} is not empty: give a new folder", path.display());
        }
        // PostgreSQL's OS user has to get through.
        fs::set_permissions(&path, Permissions::from_mode(0o755))?;
        fs::create_dir(path.join("logs"))?;
        Ok(Self { path, temporary: temporary && !options.keep })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.temporary {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

impl Lab {
    /// Starts everything, and waits for ZooKeeper only.
    pub async fn start(options: &Options) -> Result<Self> {
        binaries::check_system()?;
        let binaries = Binaries::find(options.bin_dir.as_deref())?;
        let old_binaries = options.old_bin_dir.as_deref().map(|dir| Binaries::find(Some(dir))).transpose()?;
        let port = proxy_port(options.port)?;
        let reaper = Reaper::start()?;
        let mut run_file = RunFile::claim()?;
        let with_namespaces = options.netns.resolve()?;
        let size = Size { peers: usize::from(options.peers), zookeepers: usize::from(options.zookeepers) };
        let folder = Folder::create(options, run_file.number())?;
        run_file.record(&folder.path, folder.temporary, with_namespaces.then_some(size))?;
        let network = Network::create(run_file.number(), size, with_namespaces)?;
        let secrets = write_secrets(&folder.path)?;
        let logs = folder.path.join("logs");
        let mut zookeeper = ZooKeeper::start(&folder.path, &logs, &network)?;
        let state = StateReader::new(&zookeeper.addresses(), SHARD);
        zookeeper.ready(Duration::from_secs(20)).await?;

        let mut lab = Self {
            proxies: Vec::new(),
            hosts: Vec::new(),
            zookeeper,
            network,
            state,
            binaries,
            old_binaries,
            password: secret(),
            pool: (options.storage == Storage::Zfs).then(|| Pool::create(POOL_MIB)).transpose()?,
            folder,
            _run_file: run_file,
            _reaper: reaper,
        };
        for number in 1..=size.peers {
            let mut host = lab.new_host(number, options, &secrets)?;
            host.start_sitter()?;
            lab.hosts.push(host);
        }
        let mut taken = vec![port];
        let mut fleet = vec![port];
        while fleet.len() < usize::from(options.proxies) {
            fleet.push(ports::free([127, 0, 0, 1].into(), &mut taken)?);
        }
        let program = lab.old_binaries.as_ref().unwrap_or(&lab.binaries).proxy.clone();
        for (number, &port) in (1..=usize::from(options.proxies)).zip(&fleet) {
            let config = ProxyConfig {
                shard: SHARD.to_owned(),
                port,
                http_port: ports::free([127, 0, 0, 1].into(), &mut taken)?,
                zookeeper: lab.zookeeper.addresses(),
                session_timeout: options.zk_session_timeout.clone(),
                secrets: secrets.clone(),
                fleet: fleet.clone(),
                servers: options.pools.get(number - 1).copied(),
            };
            let mut proxy = ProxyProcess::new(number, &lab.folder.path, &program, &config)?;
            proxy.start()?;
            lab.proxies.push(proxy);
        }
        Ok(lab)
    }

    fn new_host(&self, number: usize, options: &Options, secrets: &Path) -> Result<Host> {
        let ip = self.network.address(Machine::Host(number));
        let mut taken = Vec::new();
        // A host of its own has the usual ports to itself.
        let ports = if self.network.has_namespaces() {
            [5432, 12345, 5433]
        } else {
            [ports::free(ip, &mut taken)?, ports::free(ip, &mut taken)?, ports::free(ip, &mut taken)?]
        };
        let config = HostConfig {
            shard: SHARD.to_owned(),
            ip,
            ports,
            zookeeper: self.zookeeper.addresses(),
            session_timeout: options.zk_session_timeout.clone(),
            secrets: secrets.to_owned(),
            postgres: binaries::postgres_folder()?,
            os_user: "postgres".to_owned(),
            disk: options.disks,
            clock: options.clocks,
            parameters: options.parameters.clone(),
            trusts: !options.pools.is_empty(),
            dataset: self.pool.as_ref().map(|pool| format!("{}/peer{number}", pool.name())),
        };
        Host::new(
            number,
            &self.folder.path,
            &self.old_binaries.as_ref().unwrap_or(&self.binaries).sitter,
            self.network.namespace(Machine::Host(number)),
            &config,
        )
    }

    /// Starts everything and waits until [`APP`] can write through the first proxy. Returns how
    /// long that took, from nothing.
    pub async fn up(options: &Options) -> Result<(Self, Duration)> {
        let begin = Instant::now();
        let mut lab = Self::start(options).await?;
        match lab.make_writable(begin + Duration::from_secs(60)).await {
            Ok(()) => Ok((lab, begin.elapsed())),
            Err(error) => Err(lab.explain(error)),
        }
    }

    async fn make_writable(&mut self, deadline: Instant) -> Result<()> {
        self.until(deadline, "no database could be created", async |lab| lab.create_database().await).await?;
        if self.proxies.is_empty() {
            return Ok(());
        }
        self.until(deadline, "no write succeeded through the proxy", async |lab| {
            let client = lab.connect(0).await?;
            client.batch_execute("create table if not exists lab_ready (at timestamptz)").await?;
            client.batch_execute("insert into lab_ready values (now())").await?;
            Ok(())
        })
        .await
    }

    async fn create_database(&mut self) -> Result<()> {
        let state = self.current().await?;
        let primary = self.host_in(&state, Role::Primary)?;
        let client = primary.superuser("postgres").await?;
        // A commit waits for the sync, for ever if need be: repeat rather than wait.
        client.batch_execute("set statement_timeout = '5s'").await?;
        let role = client.query_opt("select from pg_roles where rolname = $1", &[&APP]).await?;
        if role.is_none() {
            client.batch_execute(&format!("create role {APP} login password '{}'", self.password)).await?;
        }
        let database = client.query_opt("select from pg_database where datname = $1", &[&APP]).await?;
        if database.is_none() {
            client.batch_execute(&format!("create database {APP} owner {APP}")).await?;
        }
        Ok(())
    }

    /// Repeats `attempt` until it succeeds; at `deadline`, or if a program of the lab ended by
    /// itself, fails with `what` and the last error.
    pub async fn until<T>(
        &mut self,
        deadline: Instant,
        what: &str,
        mut attempt: impl AsyncFnMut(&mut Self) -> Result<T>,
    ) -> Result<T> {
        loop {
            let limit = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(100));
            // An attempt given up half way is one that failed: attempts can be repeated.
            let error = match tokio::time::timeout(limit, attempt(self)).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(error)) => error,
                Err(_) => anyhow::anyhow!("no answer"),
            };
            self.check()?;
            if Instant::now() >= deadline {
                return Err(error.context(what.to_owned()));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// An error if a sitter or a proxy ended though nobody told it to.
    pub fn check(&mut self) -> Result<()> {
        self.hosts.iter_mut().try_for_each(Host::check)?;
        self.proxies.iter_mut().try_for_each(ProxyProcess::check)
    }

    /// The state as ZooKeeper has it now.
    pub async fn current(&self) -> Result<ClusterState> {
        self.state.state().await?.context("the shard has no state yet")
    }

    /// Index in `hosts` of the one with `role`.
    pub fn index_in(&self, state: &ClusterState, role: Role) -> Result<usize> {
        let index = self.hosts.iter().position(|host| state.role_of(host.id) == role);
        let place = match role {
            Role::Async(index) => format!("async{index}"),
            other => other.to_string(),
        };
        index.with_context(|| format!("no peer is {place} now"))
    }

    /// The host with `role`.
    pub fn host_in(&self, state: &ClusterState, role: Role) -> Result<&Host> {
        Ok(&self.hosts[self.index_in(state, role)?])
    }

    /// Waits until all peers are in the chain and stream; returns that state.
    pub async fn whole(&mut self, limit: Duration) -> Result<ClusterState> {
        let what = format!("the shard is not whole after {limit:?}");
        self.until(Instant::now() + limit, &what, async |lab| {
            let state = lab.current().await?;
            health::check(&lab.hosts, &state).await?;
            Ok(state)
        })
        .await
    }

    /// libpq-style parameters of proxy `index` for [`APP`].
    pub fn client_config(&self, index: usize) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config
            .host("127.0.0.1")
            // Port 0 refuses: a lab without proxies has nothing to connect to.
            .port(self.proxies.get(index).map_or(0, |proxy| proxy.port))
            .user(APP)
            .password(&self.password)
            .dbname(APP)
            .application_name("lab")
            .ssl_mode(tokio_postgres::config::SslMode::Disable)
            .connect_timeout(Duration::from_secs(10));
        config
    }

    /// The same with the other proxies to fall back on, in turn.
    pub fn fleet_config(&self, index: usize) -> tokio_postgres::Config {
        let mut config = self.client_config(index);
        for number in 1..self.proxies.len() {
            let other = &self.proxies[(index + number) % self.proxies.len()];
            config.host("127.0.0.1").port(other.port);
        }
        config
    }

    /// The same for host `index` itself.
    pub fn direct_config(&self, index: usize) -> tokio_postgres::Config {
        let id = self.hosts[index].id;
        let mut config = tokio_postgres::Config::new();
        config
            .host(id.ip.to_string())
            .port(id.pg_port)
            .user(APP)
            .password(&self.password)
            .dbname(APP)
            .application_name("lab")
            .ssl_mode(tokio_postgres::config::SslMode::Disable)
            .connect_timeout(Duration::from_secs(2));
        config
    }

    /// A backup of host `index` that is stopped before it has read anything.
    pub fn stuck_backup(&self, index: usize) -> Result<Process> {
        let id = self.hosts[index].id;
        let password = fs::read_to_string(self.folder.path.join("secrets/replication.password"))?;
        let mut backup = Process::start(&Launch {
            name: "a backup".to_owned(),
            program: binaries::postgres_folder()?.join("pg_receivewal"),
            args: ["-h", &id.ip.to_string(), "-p", &id.pg_port.to_string(), "-U", "manatee_replication", "-D", "."]
                .map(Into::into)
                .to_vec(),
            dir: self.folder.path.join("logs"),
            log: self.folder.path.join("logs/backup.log"),
            namespace: None,
            env: vec![("PGPASSWORD".into(), password.trim().into())],
        })?;
        std::thread::sleep(Duration::from_millis(500));
        backup.check()?;
        backup.signal(nix::sys::signal::Signal::SIGSTOP);
        Ok(backup)
    }

    /// A session of [`APP`] through proxy `index`.
    pub async fn connect(&self, index: usize) -> Result<tokio_postgres::Client> {
        let (client, connection) = self.client_config(index).connect(tokio_postgres::NoTls).await?;
        // Ends when the client is dropped.
        tokio::spawn(async move { drop(connection.await) });
        Ok(client)
    }

    /// Cuts power of host `index`: first its link goes, then its processes, so that nothing it
    /// would say at its end gets out.
    pub fn power_off(&mut self, index: usize) -> Result<()> {
        self.network.cut(self.hosts[index].number)?;
        self.hosts[index].powered_off();
        Ok(())
    }

    /// Cuts host `index` off from everyone.
    pub fn cut(&mut self, index: usize) -> Result<()> {
        self.network.cut(self.hosts[index].number)?;
        self.hosts[index].cut = true;
        Ok(())
    }

    /// Undoes whatever was done to host `index`: link up, processes running.
    pub fn heal(&mut self, index: usize) -> Result<()> {
        let host = &mut self.hosts[index];
        host.relieve()?;
        if host.power == Power::PoweredOff {
            self.network.reboot(host.number)?;
        } else if host.cut {
            self.network.heal(host.number)?;
        }
        host.cut = false;
        host.resume_all();
        match host.power {
            Power::Paused => host.resume(),
            Power::On | Power::Killed | Power::PoweredOff | Power::Stopped => host.start_sitter()?,
        }
        Ok(())
    }

    /// Drops everything between host `index` and each of `others`.
    pub fn separate(&mut self, index: usize, others: &[Machine]) -> Result<()> {
        self.network.separate(Machine::Host(self.hosts[index].number), others)
    }

    /// Undoes whatever was done to anything.
    pub async fn heal_all(&mut self) -> Result<()> {
        self.network.mend()?;
        for index in 0..self.hosts.len() {
            if self.hosts[index].power == Power::Stopped {
                self.hosts[index].sitter_ended(Duration::from_secs(30)).await?;
            }
            self.heal(index)?;
        }
        self.proxies.iter_mut().try_for_each(ProxyProcess::start)?;
        self.zookeeper.restart()?;
        self.zookeeper.ready(Duration::from_secs(20)).await
    }

    /// The lab's folder.
    pub fn dir(&self) -> &Path {
        &self.folder.path
    }

    /// Whether the folder goes with the lab.
    pub fn set_keep(&mut self, keep: bool) {
        self.folder.temporary = !keep;
    }

    /// Adds the ends of all logs to an error.
    pub fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let logs = self.hosts.iter().map(Host::log).chain(self.proxies.iter().map(ProxyProcess::log));
        let tails: Vec<String> = logs.map(|log| process::tail(log, 25)).collect();
        anyhow::anyhow!("{error:#}\nEnds of the logs:\n{}", tails.join("\n"))
    }

    /// Ends in order, so that a kept folder holds clean databases.
    pub async fn shut_down(mut self) -> Result<()> {
        self.proxies.clear();
        for host in &mut self.hosts {
            host.shut_down(Duration::from_secs(15)).await?;
        }
        Ok(())
    }
}

fn proxy_port(wanted: Option<u16>) -> Result<u16> {
    let address = [127, 0, 0, 1].into();
    match wanted {
        None => ports::free(address, &mut Vec::new()),
        Some(port) if ports::is_free(address, port) => Ok(port),
        Some(port) => bail!("port {port} at {address} is busy: give another one with --port"),
    }
}

fn write_secrets(lab: &Path) -> Result<PathBuf> {
    let secrets = lab.join("secrets");
    DirBuilder::new().mode(0o700).create(&secrets)?;
    for name in ["replication.password", "proxy.password", "api.token"] {
        let mut file = fs::File::options().create_new(true).write(true).mode(0o600).open(secrets.join(name))?;
        writeln!(file, "{}", secret())?;
    }
    Ok(secrets)
}

/// A password for a lab: of this machine only, for as long as the lab lives.
fn secret() -> String {
    std::iter::repeat_with(fastrand::alphanumeric).take(20).collect()
}
