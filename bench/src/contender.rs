//! Contenders that are measured: each a process of its own with a configuration written here, in front of the
//! same shard.

use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use manatee_tests::lab::{APP, SHARD};
use manatee_tests::ports;
use manatee_tests::process::{Launch, Process, tail};
use rustix::process::{Pid, Signal, kill_process};

use crate::cpu;
use crate::pgbench::{Address, Load, Workload};
use crate::shard::Shard;

/// Server connections per node that each pool may open: all together stay within the servers'
/// `max_connections`.
pub const POOL_SIZE: u32 = 30;
/// Processes of Pgpool-II: each serves one client.
const PGPOOL_CHILDREN: u32 = 70;
/// Clients that may connect to those with a pool.
const MAX_CLIENTS: u32 = 12_000;
/// Above this, those that need one server connection per client are not asked.
const MAX_UNPOOLED: u32 = 64;
/// Longest time until the first client of one is answered.
const START_LIMIT: Duration = Duration::from_secs(20);

/// Contenders that can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
pub enum Kind {
    /// The primary itself.
    Direct,
    /// A standby itself.
    DirectStandby,
    /// HAProxy, TCP mode, to the primary.
    Haproxy,
    /// PgBouncer, transaction pooling, to the primary.
    Pgbouncer,
    /// Pgpool-II, balancing reads over all nodes.
    Pgpool,
    /// A relay of our own that looks at nothing: what it costs to pass bytes on at all.
    Relay,
    /// manatee-proxy with everything sent to the primary.
    ManateeNosplit,
    /// manatee-proxy as it comes: reads go to the standbys.
    Manatee,
}

impl Kind {
    /// All, in the order of the tables.
    pub const ALL: [Self; 8] = [
        Self::Direct,
        Self::DirectStandby,
        Self::Haproxy,
        Self::Pgbouncer,
        Self::Pgpool,
        Self::Relay,
        Self::ManateeNosplit,
        Self::Manatee,
    ];

    /// Name in tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::DirectStandby => "direct-standby",
            Self::Haproxy => "haproxy",
            Self::Pgbouncer => "pgbouncer",
            Self::Pgpool => "pgpool",
            Self::Relay => "relay",
            Self::ManateeNosplit => "manatee-nosplit",
            Self::Manatee => "manatee",
        }
    }

    /// Whether it can carry this load at all.
    pub fn takes(self, load: Load) -> bool {
        let pools = matches!(self, Self::Pgbouncer | Self::Manatee | Self::ManateeNosplit);
        let ends_tls = pools || self == Self::Pgpool;
        let writes = load.workload == Workload::Writes;
        (pools || load.clients <= MAX_UNPOOLED) && (!load.tls || ends_tls) && !(writes && self == Self::DirectStandby)
    }

    /// Whether it is a process of its own.
    pub fn is_proxy(self) -> bool {
        !matches!(self, Self::Direct | Self::DirectStandby)
    }

    /// Whether it takes in more clients than it has server connections.
    pub fn pools(self) -> bool {
        matches!(self, Self::Pgbouncer | Self::Manatee | Self::ManateeNosplit)
    }
}

/// Places of the programs that are not Debian's, and the command lines of those that can be told theirs.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `manatee-proxy`, release build.
    pub proxy: PathBuf,
    /// `manatee-relay`, release build.
    pub relay: PathBuf,
    /// `pgbouncer`.
    pub pgbouncer: PathBuf,
    /// Server connections per node that each pool may open.
    pub pool_size: u32,
    /// Session threads of manatee-proxy and of the relay; 0: as they choose.
    pub threads: u32,
    /// Whether manatee-proxy serves all shards there are, or the lab's alone.
    pub all_shards: bool,
}

/// One that is measured, running. Killed when dropped.
#[derive(Debug)]
pub struct Contender {
    /// Kind of contender.
    pub kind: Kind,
    /// Its address.
    pub address: Address,
    /// For messages.
    log: PathBuf,
    /// Version it reports, if asked.
    pub version: String,
    process: Option<Process>,
    /// A second PgBouncer that pools by session, where the version has no prepared statements
    /// under transaction pooling (before 1.21).
    by_session: Option<Box<Contender>>,
}

impl Contender {
    /// Starts `kind` in front of `shard` and waits until it serves.
    pub async fn start(kind: Kind, shard: &Shard, programs: &Programs) -> Result<Self> {
        let folder = shard.lab.dir().join("bench");
        fs::create_dir_all(&folder)?;
        let setup = Setup { kind, shard, programs, folder };
        let mut contender = match kind {
            Kind::Direct | Kind::DirectStandby => Self {
                kind,
                address: Address { at: shard.nodes[usize::from(kind == Kind::DirectStandby)], pid: None },
                log: shard.lab.dir().join("logs"),
                version: "15".to_owned(),
                process: None,
                by_session: None,
            },
            Kind::Haproxy => setup.haproxy()?,
            Kind::Pgbouncer => setup.pgbouncer("transaction")?,
            Kind::Pgpool => setup.pgpool()?,
            Kind::Relay => setup.relay()?,
            Kind::ManateeNosplit => setup.manatee(false)?,
            Kind::Manatee => setup.manatee(true)?,
        };
        contender.ready(shard).await?;
        if kind == Kind::Pgbouncer && !has_prepared_statements(&contender.version) {
            let mut second = setup.pgbouncer("session")?;
            second.ready(shard).await?;
            contender.by_session = Some(Box::new(second));
        }
        Ok(contender)
    }

    /// Address to send this load to.
    pub fn address_for(&self, load: Load) -> Address {
        match &self.by_session {
            Some(second) if load.workload == Workload::Prepared => second.address,
            _ => self.address,
        }
    }

    /// An error with the end of its log if it has ended.
    pub fn check(&mut self) -> Result<()> {
        self.process.as_mut().map_or(Ok(()), Process::check)
    }

    async fn ready(&mut self, shard: &Shard) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            self.check()?;
            let mut psql = shard.pgbench.command("psql", self.address.at);
            let output = psql.args(["-X", "-c", "select 1", APP]).output().await?;
            if output.status.success() {
                return Ok(());
            }
            if Instant::now() > deadline {
                let words = String::from_utf8_lossy(&output.stderr).into_owned();
                bail!("{} does not serve: {}\n{}", self.kind.name(), words.trim(), tail(&self.log, 15));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        // Pgpool-II is many processes, which outlive their parent when that is killed.
        let running = self.process.as_mut().is_some_and(|process| process.ended().is_none());
        let family = self.address.pid.filter(|_| running).and_then(|pid| cpu::family(pid).ok()).unwrap_or_default();
        for pid in family.into_iter().filter_map(|pid| Pid::from_raw(i32::try_from(pid).ok()?)) {
            // One that has ended meanwhile needs nothing.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// Whether this version of PgBouncer keeps prepared statements under transaction pooling.
fn has_prepared_statements(version: &str) -> bool {
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (1, 21)
}

/// Requirements for starting one.
struct Setup<'a> {
    kind: Kind,
    shard: &'a Shard,
    programs: &'a Programs,
    folder: PathBuf,
}

impl Setup<'_> {
    fn port(&self) -> Result<u16> {
        ports::free(Ipv4Addr::LOCALHOST, &mut Vec::new())
    }

    /// Writes a file that whoever runs as PostgreSQL's user can read too.
    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
        Ok(path)
    }

    /// Certificate and key for TLS, made once.
    fn certificate(&self) -> Result<(PathBuf, PathBuf)> {
        let (certificate, key) = (self.folder.join("tls.crt"), self.folder.join("tls.key"));
        if !certificate.exists() {
            let made = std::process::Command::new("openssl")
                .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"])
                .arg("-keyout")
                .arg(&key)
                .arg("-out")
                .arg(&certificate)
                .output()
                .context("running openssl")?;
            anyhow::ensure!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
            // A throw-away key that PgBouncer, under another user, has to read.
            fs::set_permissions(&key, fs::Permissions::from_mode(0o644))?;
        }
        Ok((certificate, key))
    }

    fn start(&self, name: &str, port: u16, program: &Path, args: Vec<OsString>, version: String) -> Result<Contender> {
        let log = self.shard.lab.dir().join("logs").join(format!("bench-{name}.log"));
        let launch = Launch {
            name: name.to_owned(),
            program: program.to_owned(),
            args,
            dir: self.folder.clone(),
            log: log.clone(),
            namespace: None,
            env: Vec::new(),
        };
        let process = Process::start(&launch)?;
        let address =
            Address { at: SocketAddr::from((Ipv4Addr::LOCALHOST, port)), pid: u32::try_from(process.pid()).ok() };
        Ok(Contender { kind: self.kind, address, log, version, process: Some(process), by_session: None })
    }

    fn haproxy(&self) -> Result<Contender> {
        let port = self.port()?;
        let config = self.write(
            "haproxy.cfg",
            &format!(
                "global\n  maxconn 2000\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  \
                 timeout server 1h\nlisten postgresql\n  bind 127.0.0.1:{port}\n  server primary {}\n",
                self.shard.nodes[0]
            ),
        )?;
        let program = Path::new("/usr/sbin/haproxy");
        self.start("haproxy", port, program, vec!["-db".into(), "-f".into(), config.into()], version_of(program, "-v"))
    }

    fn pgbouncer(&self, mode: &str) -> Result<Contender> {
        let (port, name) = (self.port()?, format!("pgbouncer-{mode}"));
        let program = &self.programs.pgbouncer;
        let version = version_of(program, "--version");
        let (certificate, key) = self.certificate()?;
        let users = self.write("users.txt", &format!("\"{APP}\" \"{}\"\n", self.shard.verifier))?;
        let size = if mode == "session" { MAX_UNPOOLED } else { self.programs.pool_size };
        let (idle, statements) = match (mode, has_prepared_statements(&version)) {
            ("session", _) => ("server_idle_timeout = 1\n", ""),
            (_, true) => ("", "max_prepared_statements = 512\n"),
            (_, false) => ("", ""),
        };
        let primary = self.shard.nodes[0];
        let config = self.write(
            &format!("{name}.ini"),
            &format!(
                "[databases]\n{APP} = host={} port={} dbname={APP}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
                 listen_port = {port}\nunix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {}\n\
                 pool_mode = {mode}\ndefault_pool_size = {size}\nmax_client_conn = {MAX_CLIENTS}\n\
                 server_tls_sslmode = disable\nclient_tls_sslmode = allow\nclient_tls_cert_file = {}\n\
                 client_tls_key_file = {}\nignore_startup_parameters = extra_float_digits\n\
                 log_connections = 0\nlog_disconnections = 0\n{idle}{statements}",
                primary.ip(),
                primary.port(),
                users.display(),
                certificate.display(),
                key.display(),
            ),
        )?;
        if rustix::process::geteuid().is_root() {
            // It refuses to run as root.
            let words = ["--reuid", "postgres", "--regid", "postgres", "--clear-groups", "--pdeathsig", "KILL", "--"];
            let mut args: Vec<OsString> = words.iter().map(OsString::from).collect();
            args.extend([program.into(), config.into()]);
            return self.start(&name, port, Path::new("/usr/bin/setpriv"), args, version);
        }
        self.start(&name, port, program, vec![config.into()], version)
    }

    fn pgpool(&self) -> Result<Contender> {
        let port = self.port()?;
        let pcp_port = ports::free(Ipv4Addr::LOCALHOST, &mut vec![port])?;
        let (certificate, key) = self.certificate()?;
        let folder = self.folder.display();
        let backends: String = self
            .shard
            .nodes
            .iter()
            .enumerate()
            .map(|(index, node)| {
                let flag = if index == 0 { "ALWAYS_PRIMARY|DISALLOW_TO_FAILOVER" } else { "DISALLOW_TO_FAILOVER" };
                format!(
                    "backend_hostname{index} = '{}'\nbackend_port{index} = {}\nbackend_weight{index} = 1\n\
                     backend_flag{index} = '{flag}'\n",
                    node.ip(),
                    node.port()
                )
            })
            .collect();
        self.write("pool_passwd", &format!("{APP}:TEXT{}\n", self.shard.lab.password))?;
        let hba = self.write("pool_hba.conf", "host all all 127.0.0.1/32 scram-sha-256\n")?;
        let pcp = self.write("pcp.conf", "")?;
        let config = self.write(
            "pgpool.conf",
            &format!(
                "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{folder}'\n\
                 pcp_listen_addresses = '127.0.0.1'\npcp_port = {pcp_port}\npcp_socket_dir = '{folder}'\n\
                 wd_ipc_socket_dir = '{folder}'\npid_file_name = '{folder}/pgpool-{port}.pid'\nlogdir = '{folder}'\n\
                 work_dir = '{folder}'\nbackend_clustering_mode = 'streaming_replication'\n{backends}\
                 num_init_children = {PGPOOL_CHILDREN}\nmax_pool = 1\nload_balance_mode = on\n\
                 enable_pool_hba = on\npool_passwd = 'pool_passwd'\nfailover_on_backend_error = off\n\
                 sr_check_period = 0\nhealth_check_period = 0\nssl = on\nssl_cert = '{}'\nssl_key = '{}'\n",
                certificate.display(),
                key.display(),
            ),
        )?;
        let program = Path::new("/usr/sbin/pgpool");
        let args = ["-n".into(), "-f".into(), config.into(), "-a".into(), hba.into(), "-F".into(), pcp.into()].to_vec();
        self.start("pgpool", port, program, args, version_of(program, "--version"))
    }

    fn relay(&self) -> Result<Contender> {
        let port = self.port()?;
        let mut args: Vec<OsString> = vec![format!("127.0.0.1:{port}").into(), self.shard.nodes[0].to_string().into()];
        args.extend(["--threads".into(), self.programs.threads.to_string().into()]);
        self.start("relay", port, &self.programs.relay, args, env!("CARGO_PKG_VERSION").to_owned())
    }

    fn manatee(&self, split: bool) -> Result<Contender> {
        let (port, name) = (self.port()?, self.kind.name());
        let (certificate, key) = self.certificate()?;
        let config = self.write(
            &format!("{name}.toml"),
            &format!(
                "workers = {}\n[listen]\naddress = \"127.0.0.1:{port}\"\n[zookeeper]\nservers = {:?}\n\
                 [shard]\nname = \"{SHARD}\"\n[auth]\npassword_file = \"{}/proxy.password\"\n[tls]\n\
                 certificate_file = \"{}\"\nkey_file = \"{}\"\n[pool]\nsize = {}\nmax_servers_per_node = 0\n\
                 max_clients = {MAX_CLIENTS}\n[routing]\nsplit = {split}\n[shards]\ndiscover = {}\n[log]\nfilter = \"warn\"\n",
                self.programs.threads,
                self.shard.lab.zookeeper.addresses(),
                self.shard.secrets().display(),
                certificate.display(),
                key.display(),
                self.programs.pool_size,
                self.programs.all_shards,
            ),
        )?;
        let program = &self.programs.proxy;
        self.start(name, port, program, vec!["--config".into(), config.into()], version_of(program, "--version"))
    }
}

/// The first word with a digit and a dot in what a program says of its version.
fn version_of(program: &Path, option: &str) -> String {
    let said = std::process::Command::new(program).arg(option).output();
    let text = said.map(|output| String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned());
    let text = text.unwrap_or_default();
    let is_version = |word: &&str| word.contains('.') && word.starts_with(|first: char| first.is_ascii_digit());
    text.split([' ', '\n', ',']).find(is_version).unwrap_or("unknown").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prepared_statements_came_with_1_21() {
        assert!(!has_prepared_statements("1.18.0"));
        assert!(has_prepared_statements("1.21.0") && has_prepared_statements("1.24.1"));
        assert!(!has_prepared_statements("unknown"));
    }

    #[test]
    fn nobody_is_asked_for_more_than_it_can_do() {
        let load = |clients, tls| Load { workload: Workload::Simple, clients, tls };
        assert!(Kind::Direct.takes(load(64, false)) && !Kind::Direct.takes(load(1000, false)));
        assert!(!Kind::Relay.takes(load(1, true)) && Kind::Pgpool.takes(load(1, true)));
        assert!(Kind::Manatee.takes(load(1000, true)));
    }
}
