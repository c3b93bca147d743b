//! A database host: a sitter, its PostgreSQL, and what can befall them.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use manatee_shared::ids::PeerId;
use nix::sys::signal::Signal;
use tokio_postgres::NoTls;

use crate::clock::Clock;
use crate::disk::Disk;
use crate::process::{self, Launch, Process};

/// Condition of a host as the lab made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// Sitter started (it may have ended by itself).
    On,
    /// Processes killed; the network as it was.
    Killed,
    /// Link down, then processes killed.
    PoweredOff,
    /// Sitter told to stop (SIGTERM).
    Stopped,
    /// All processes stopped (SIGSTOP).
    Paused,
}

/// One host. All its processes are killed when it is dropped.
#[derive(Debug)]
pub struct Host {
    /// Number, from 1.
    pub number: usize,
    /// Identity of its sitter.
    pub id: PeerId,
    /// Folder of everything of it.
    pub dir: PathBuf,
    /// Power of the host.
    pub power: Power,
    /// Whether its link is down.
    pub cut: bool,
    /// A file system of its own.
    disk: Option<Disk>,
    /// A clock of its own.
    clock: Option<Clock>,
    launch: Launch,
    sitter: Option<Process>,
}

/// Content of a host's configuration file.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// Name of the shard.
    pub shard: String,
    /// Address of the host.
    pub ip: Ipv4Addr,
    /// PostgreSQL's port, the sitter's API's, and its status server's.
    pub ports: [u16; 3],
    /// `ip:port` of ZooKeeper's servers.
    pub zookeeper: Vec<String>,
    /// As the sitter's configuration spells it: `4s`.
    pub session_timeout: String,
    /// Folder of the secrets.
    pub secrets: PathBuf,
    /// Folder of PostgreSQL's programs.
    pub postgres: PathBuf,
    /// OS user for PostgreSQL.
    pub os_user: String,
    /// Whether it gets a file system of its own.
    pub disk: bool,
    /// Whether it gets a clock of its own.
    pub clock: bool,
    /// More settings of PostgreSQL.
    pub parameters: Vec<(String, String)>,
    /// Whether clients need no password.
    pub trusts: bool,
    /// The ZFS dataset that keeps its data; None: a plain folder.
    pub dataset: Option<String>,
}

impl HostConfig {
    /// The sitter's configuration file; see `config/sitter.toml`.
    fn render(&self, number: usize, dir: &Path) -> String {
        let [pg_port, backup_port, status_port] = self.ports;
        let secrets = self.secrets.display();
        format!(
            r#"shard = "{shard}"
[peer]
ip = "{ip}"
pg_port = {pg_port}
backup_port = {backup_port}
status_port = {status_port}
zone_id = "peer{number}"
dir = "{dir}"
[zookeeper]
servers = {zookeeper:?}
session_timeout = "{session_timeout}"
[postgres]
bin_dir = "{postgres}"
os_user = "{os_user}"
replication_password_file = "{secrets}/replication.password"
proxy_password_file = "{secrets}/proxy.password"
max_slot_wal_keep_size = "64MiB"
{hba}[postgres.parameters]
shared_buffers = "32MB"
{parameters}{storage}
[api]
token_file = "{secrets}/api.token"
[log]
filter = "info"
"#,
            shard = self.shard,
            hba = if self.trusts { "hba = [\"host all all 0.0.0.0/0 trust\"]\n" } else { "" },
            storage = self.render_storage(),
            ip = self.ip,
            dir = dir.display(),
            zookeeper = self.zookeeper,
            session_timeout = self.session_timeout,
            postgres = self.postgres.display(),
            os_user = self.os_user,
            parameters =
                self.parameters.iter().map(|(name, value)| format!("{name} = {value:?}\n")).collect::<String>(),
        )
    }
}

impl HostConfig {
    /// The rest of `[postgres.parameters]`, and what keeps the data.
    fn render_storage(&self) -> String {
        let Some(dataset) = &self.dataset else { return "[storage]\nkind = \"directory\"".to_owned() };
        // Files that are never overwritten in place gain nothing from being written or kept beforehand. Few
        // snapshots, often: a rejoin is to find some from before and some from after a divergence.
        format!(
            r#"wal_init_zero = "off"
wal_recycle = "off"
[storage]
kind = "zfs"
dataset = "{dataset}"
[snapshots]
interval = "5s"
kept = 6"#
        )
    }
}

impl Host {
    /// Writes the configuration of host `number` under `lab`; starts nothing.
    pub fn new(
        number: usize,
        lab: &Path,
        sitter: &Path,
        namespace: Option<String>,
        config: &HostConfig,
    ) -> Result<Self> {
        let name = format!("peer{number}");
        let dir = lab.join(&name);
        fs::create_dir_all(&dir)?;
        let disk = config.disk.then(|| Disk::create(&lab.join(format!("{name}.disk")), &dir)).transpose()?;
        let clock = config.clock.then(|| Clock::create(&lab.join(format!("{name}.clock")), &config.postgres));
        let clock = clock.transpose()?;
        let mut config = config.clone();
        if let Some(clock) = &clock {
            config.postgres = clock.programs();
        }
        let config_path = lab.join(format!("{name}.toml"));
        fs::write(&config_path, config.render(number, &dir))?;
        let [pg_port, backup_port, _] = config.ports;
        Ok(Self {
            number,
            id: PeerId { ip: config.ip.into(), pg_port, backup_port },
            launch: Launch {
                name: format!("{name}'s sitter"),
                program: sitter.to_owned(),
                args: vec!["--config".into(), config_path.into()],
                dir: dir.clone(),
                log: lab.join("logs").join(format!("{name}.log")),
                namespace,
                env: clock.as_ref().map(Clock::environment).unwrap_or_default(),
            },
            dir,
            disk,
            clock,
            power: Power::Stopped,
            cut: false,
            sitter: None,
        })
    }

    /// `peer1`.
    pub fn name(&self) -> String {
        format!("peer{}", self.number)
    }

    /// The sitter's log.
    pub fn log(&self) -> &Path {
        &self.launch.log
    }

    /// Configuration file of the sitter.
    pub fn config_path(&self) -> PathBuf {
        self.dir.with_extension("toml")
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Starts the sitter, as its service manager would. Nothing happens if it runs.
    pub fn start_sitter(&mut self) -> Result<()> {
        if self.sitter.as_mut().is_none_or(|sitter| sitter.ended().is_some()) {
            self.sitter = Some(Process::start(&self.launch)?);
        }
        self.power = Power::On;
        Ok(())
    }

    /// Waits until its sitter answers; an error with the end of its log if it has ended instead.
    pub async fn answers(&mut self, limit: Duration) -> Result<()> {
        let url = format!("http://{}/status", std::net::SocketAddr::new(self.id.ip, self.id.backup_port));
        let client = reqwest::Client::builder().timeout(Duration::from_secs(1)).build()?;
        let deadline = Instant::now() + limit;
        loop {
            self.check()?;
            if client.get(&url).send().await.is_ok() {
                return Ok(());
            }
            anyhow::ensure!(
                Instant::now() < deadline,
                "{}'s sitter runs, but has not answered for {limit:?}",
                self.name()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Its own file system.
    pub fn disk(&mut self) -> Result<&mut Disk> {
        self.disk.as_mut().context("this lab's hosts have no file systems of their own: start it with --disks")
    }

    /// Its clock goes wrong by this many seconds from now on; 0: right again.
    pub fn shift_clock(&mut self, seconds: i64) -> Result<()> {
        let clock = self.clock.as_ref();
        clock.context("this lab's hosts have no clocks of their own: start it with --clocks")?.shift(seconds)
    }

    /// Undoes what was done to its disk and its clock.
    pub fn relieve(&mut self) -> Result<()> {
        if let Some(clock) = &self.clock {
            clock.shift(0)?;
        }
        let Some(disk) = &self.disk else { return Ok(()) };
        if !disk.is_broken() {
            return disk.relieve();
        }
        self.kill();
        self.disk.as_mut().map_or(Ok(()), Disk::repair)
    }

    /// A second sitter with the same configuration.
    pub fn second_sitter(&self) -> Result<Process> {
        let name = format!("{}'s second sitter", self.name());
        Process::start(&Launch { name, log: self.launch.log.with_extension("second.log"), ..self.launch.clone() })
    }

    /// Its sitter may end by itself from now on.
    pub fn may_end(&mut self) {
        self.power = Power::Stopped;
    }

    /// An error with the end of its log if the sitter ended although nobody told it to.
    pub fn check(&mut self) -> Result<()> {
        match (&mut self.sitter, self.power) {
            (Some(sitter), Power::On) => sitter.check(),
            _ => Ok(()),
        }
    }

    fn running_sitter(&mut self) -> Result<&mut Process> {
        let sitter = self.sitter.as_mut().context("the sitter is not running")?;
        anyhow::ensure!(sitter.ended().is_none(), "the sitter is not running");
        Ok(sitter)
    }

    /// Process id of the running sitter.
    pub fn sitter_pid(&mut self) -> Option<i32> {
        let sitter = self.sitter.as_mut()?;
        if sitter.ended().is_none() { Some(sitter.pid()) } else { None }
    }

    /// Process id of the running postmaster.
    pub fn postmaster_pid(&self) -> Option<i32> {
        let text = fs::read_to_string(self.data_dir().join("postmaster.pid")).ok()?;
        let pid: i32 = text.lines().next()?.trim().parse().ok()?;
        // The file outlives a killed postmaster, and its number may be somebody else's by now.
        let inside = fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&self.dir));
        (inside && process::alive(pid)).then_some(pid)
    }

    /// All processes of the host, the sitter first.
    pub fn processes(&mut self) -> Vec<i32> {
        let sitter = self.sitter_pid();
        let others = process::find(&self.dir, self.launch.namespace.as_deref());
        sitter.into_iter().chain(others.into_iter().filter(|&pid| Some(pid) != sitter)).collect()
    }

    /// SIGKILLs everything on the host at once: nobody gets to say good-bye.
    pub fn kill(&mut self) {
        let processes = self.processes();
        process::signal_all(&processes, Signal::SIGKILL);
        self.reap();
        self.power = Power::Killed;
    }

    /// SIGKILLs the sitter alone.
    pub fn kill_sitter(&mut self) -> Result<()> {
        self.running_sitter()?.kill();
        Ok(())
    }

    /// SIGKILLs the postmaster alone.
    pub fn kill_postmaster(&self) -> Result<i32> {
        let pid = self.postmaster_pid().context("PostgreSQL is not running")?;
        process::signal_all(&[pid], Signal::SIGKILL);
        Ok(pid)
    }

    /// SIGTERM to the sitter: a planned stop.
    pub fn stop_sitter(&mut self) -> Result<()> {
        self.running_sitter()?.signal(Signal::SIGTERM);
        self.power = Power::Stopped;
        Ok(())
    }

    /// SIGUSR2 to the sitter: it leaves PostgreSQL to the next one. Waits for its end.
    pub async fn replace_sitter(&mut self) -> Result<()> {
        let sitter = self.running_sitter()?;
        sitter.signal(Signal::SIGUSR2);
        sitter.wait(Duration::from_secs(10)).await?;
        self.start_sitter()
    }

    /// Replaces `from` in the sitter's configuration and sends SIGHUP: it takes that over in place.
    pub fn reconfigure(&mut self, from: &str, to: &str) -> Result<()> {
        let path = self.config_path();
        let text = std::fs::read_to_string(&path)?;
        anyhow::ensure!(text.contains(from), "{}: there is no `{from}`", path.display());
        std::fs::write(&path, text.replacen(from, to, 1))?;
        self.running_sitter()?.signal(Signal::SIGHUP);
        Ok(())
    }

    /// The same with another program: a new binary.
    pub async fn upgrade_sitter(&mut self, program: &Path) -> Result<()> {
        self.launch.program = program.to_owned();
        self.replace_sitter().await
    }

    /// Waits for the end of a sitter that was told to stop.
    pub async fn sitter_ended(&mut self, limit: Duration) -> Result<()> {
        match &mut self.sitter {
            Some(sitter) => sitter.wait(limit).await.map(|_| ()),
            None => Ok(()),
        }
    }

    /// SIGSTOPs every process, the sitter first.
    pub fn pause(&mut self) {
        process::signal_all(&self.processes(), Signal::SIGSTOP);
        self.power = Power::Paused;
    }

    /// Lets a paused host go on.
    pub fn resume(&mut self) {
        self.resume_all();
        self.power = Power::On;
    }

    /// Lets whatever was stopped go on.
    pub fn resume_all(&mut self) {
        process::signal_all(&self.processes(), Signal::SIGCONT);
    }

    /// SIGSTOPs the sitter alone.
    pub fn pause_sitter(&mut self) -> Result<()> {
        self.running_sitter()?.signal(Signal::SIGSTOP);
        Ok(())
    }

    /// SIGSTOPs the postmaster alone: its children go on.
    pub fn pause_postmaster(&self) -> Result<()> {
        let pid = self.postmaster_pid().context("PostgreSQL is not running")?;
        process::signal_all(&[pid], Signal::SIGSTOP);
        Ok(())
    }

    /// SIGSTOPs, or lets go on, the child of the postmaster that shows this title: `checkpointer`.
    pub fn signal_child(&self, title: &str, signal: Signal) -> Result<()> {
        let postmaster = self.postmaster_pid().context("PostgreSQL is not running")?;
        let pid = process::child_titled(postmaster, &format!("postgres: {title}"))
            .with_context(|| format!("{}: PostgreSQL has no {title}", self.name()))?;
        process::signal_all(&[pid], signal);
        Ok(())
    }

    /// Records that the link was taken down before the processes were killed.
    pub fn powered_off(&mut self) {
        self.kill();
        self.power = Power::PoweredOff;
        self.cut = true;
    }

    /// Makes sure that nothing of the host runs.
    fn reap(&mut self) {
        if let Some(disk) = &self.disk {
            // What hangs in the kernel cannot be killed.
            let _ = disk.thaw();
        }
        if let Some(sitter) = &mut self.sitter {
            sitter.kill();
        }
        process::kill_everything(&self.dir, self.launch.namespace.as_deref());
    }

    /// A superuser session over the Unix socket: works whatever the network and the gate say.
    pub async fn superuser(&self, database: &str) -> Result<tokio_postgres::Client> {
        let mut config = tokio_postgres::Config::new();
        config
            .host_path(self.dir.join("run"))
            .port(self.id.pg_port)
            .user("postgres")
            .dbname(database)
            .application_name("manatee-lab")
            .connect_timeout(Duration::from_secs(2));
        let (client, connection) =
            config.connect(NoTls).await.with_context(|| format!("{}: no superuser session", self.name()))?;
        // Ends when the client is dropped.
        tokio::spawn(async move { drop(connection.await) });
        Ok(client)
    }

    /// Stops in order: SIGTERM to the sitter, then a fast shutdown of a PostgreSQL that stayed.
    pub async fn shut_down(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        if self.power == Power::Paused {
            self.resume();
        }
        if self.stop_sitter().is_ok() {
            self.sitter_ended(limit).await?;
        }
        if let Some(pid) = self.postmaster_pid() {
            process::signal_all(&[pid], Signal::SIGINT);
            while process::alive(pid) {
                if Instant::now() > deadline {
                    bail!("{}: PostgreSQL did not shut down within {limit:?}", self.name());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.reap();
    }
}
