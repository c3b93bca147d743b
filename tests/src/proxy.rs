//! A proxy of the lab.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::process::{Launch, Process};

/// Content of a proxy's configuration file.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// Name of the shard.
    pub shard: String,
    /// Port for clients.
    pub port: u16,
    /// `/metrics`, `/topology`.
    pub http_port: u16,
    /// `ip:port` of ZooKeeper's servers.
    pub zookeeper: Vec<String>,
    /// `4s`.
    pub session_timeout: String,
    /// Folder of the secrets.
    pub secrets: PathBuf,
    /// Ports of all proxies, in order.
    pub fleet: Vec<u16>,
    /// Servers of one session thread, all of which may be bound, for clients without passwords; None: the defaults.
    pub servers: Option<usize>,
}

/// Longest stay of clients with a process that was replaced, in seconds.
pub const DRAIN_S: u64 = 8;

/// A proxy. Killed when dropped.
#[derive(Debug)]
pub struct ProxyProcess {
    /// Port for clients, at 127.0.0.1.
    pub port: u16,
    /// `/metrics`, `/topology`, at 127.0.0.1.
    pub http_port: u16,
    launch: Launch,
    upgrade_socket: PathBuf,
    process: Option<Process>,
    /// Replaced, and not ended yet.
    predecessor: Option<Process>,
}

impl ProxyProcess {
    /// Writes the configuration of proxy `number` under `lab`; starts nothing.
    pub fn new(number: usize, lab: &Path, proxy: &Path, config: &ProxyConfig) -> Result<Self> {
        let name = format!("proxy{number}");
        let dir = lab.join(&name);
        fs::create_dir_all(&dir)?;
        let config_path = lab.join(format!("{name}.toml"));
        let address = Ipv4Addr::LOCALHOST;
        // Sessions are few and the machine is shared with three databases: two threads do.
        let (workers, pool, auth) = match config.servers {
            None => (2, String::new(), String::new()),
            Some(servers) => {
                let rules = lab.join(format!("{name}.hba"));
                fs::write(&rules, "host all all 127.0.0.1/32 trust\n")?;
                let pool = format!("size = {servers}\nunbound_percent = 0\n");
                (1, pool, format!("hba_file = {rules:?}\n"))
            }
        };
        let text = format!(
            r#"workers = {workers}
[listen]
address = "{address}:{port}"
http = "{address}:{http_port}"
upgrade_drain = "{DRAIN_S}s"
[pool]
max_clients = 12000
{pool}[zookeeper]
servers = {zookeeper:?}
session_timeout = "{session_timeout}"
[shard]
name = "{shard}"
[shards]
discover = true
[auth]
password_file = "{secrets}/proxy.password"
{auth}[admin]
admin_users = ["app"]
{fleet}[log]
filter = "info"
"#,
            fleet = render_fleet(number, &config.fleet),
            port = config.port,
            http_port = config.http_port,
            zookeeper = config.zookeeper,
            session_timeout = config.session_timeout,
            shard = config.shard,
            secrets = config.secrets.display(),
        );
        fs::write(&config_path, text)?;
        let upgrade_socket = dir.join("upgrade.sock");
        Ok(Self {
            port: config.port,
            http_port: config.http_port,
            launch: Launch {
                log: lab.join("logs").join(format!("{name}.log")),
                name,
                program: proxy.to_owned(),
                args: vec![
                    "--config".into(),
                    config_path.into(),
                    "--upgrade-socket".into(),
                    upgrade_socket.clone().into(),
                ],
                dir,
                namespace: None,
                env: Vec::new(),
            },
            upgrade_socket,
            process: None,
            predecessor: None,
        })
    }

    /// `proxy1`.
    pub fn name(&self) -> &str {
        &self.launch.name
    }

    /// Its log.
    pub fn log(&self) -> &Path {
        &self.launch.log
    }

    /// Starts it. Nothing happens if it runs.
    pub fn start(&mut self) -> Result<()> {
        if self.process.as_mut().is_none_or(|process| process.ended().is_some()) {
            self.process = Some(Process::start(&self.launch)?);
        }
        Ok(())
    }

    /// Process id, while it runs.
    pub fn pid(&mut self) -> Option<i32> {
        let process = self.process.as_mut()?;
        if process.ended().is_none() { Some(process.pid()) } else { None }
    }

    /// Replaces it in place by a process of `program`, which takes the listeners over: a new binary.
    pub async fn upgrade(&mut self, program: &Path) -> Result<()> {
        let mut old = self.process.take().context("the proxy is not running")?;
        let _ = fs::remove_file(&self.upgrade_socket);
        self.launch.program = program.to_owned();
        let mut launch = self.launch.clone();
        launch.args.push("--upgrade".into());
        let mut new = Process::start(&launch)?;
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.upgrade_socket.exists() {
            new.check()?;
            if Instant::now() > deadline {
                bail!("the new process does not ask for the listeners");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        old.signal(Signal::SIGQUIT);
        (self.process, self.predecessor) = (Some(new), Some(old));
        Ok(())
    }

    /// Waits for the end of the process that was replaced.
    pub async fn predecessor_ended(&mut self, limit: Duration) -> Result<()> {
        if let Some(mut old) = self.predecessor.take() {
            let status = old.wait(limit).await?;
            anyhow::ensure!(status.success(), "the process that was replaced ended with {status}");
        }
        Ok(())
    }

    /// Waits until it has ended in order, because it was told to.
    pub async fn ended(&mut self, limit: Duration) -> Result<()> {
        let process = self.process.as_mut().context("the proxy is not running")?;
        let status = process.wait(limit).await?;
        self.process = None;
        anyhow::ensure!(status.success(), "the proxy ended with {status}");
        Ok(())
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// An error with the end of its log if it ended although nobody told it to.
    pub fn check(&mut self) -> Result<()> {
        self.process.as_mut().map_or(Ok(()), Process::check)
    }

    /// Body of a GET.
    pub async fn http(&self, path: &str) -> Result<String> {
        let url = format!("http://127.0.0.1:{}{path}", self.http_port);
        let client = reqwest::Client::builder().timeout(Duration::from_secs(2)).build()?;
        Ok(client.get(url).send().await?.error_for_status()?.text().await?)
    }
}

/// The sections that let a cancel reach the right one wherever it arrives.
fn render_fleet(number: usize, ports: &[u16]) -> String {
    if ports.len() < 2 {
        return String::new();
    }
    let peers = ports.iter().zip(1..).filter(|(_, other)| *other != number);
    let peers: String = peers.map(|(port, other)| format!("{other} = \"127.0.0.1:{port}\"\n")).collect();
    format!("[fleet]\nnumber = {number}\n[fleet.peers]\n{peers}")
}
