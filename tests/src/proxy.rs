//! A proxy of the lab.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::process::{Launch, Process};

/// What a proxy's configuration file says.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// Name of the shard.
    pub shard: String,
    /// Where clients connect.
    pub port: u16,
    /// `/metrics`, `/topology`.
    pub http_port: u16,
    /// `ip:port` of ZooKeeper's servers.
    pub zookeeper: Vec<String>,
    /// `4s`.
    pub session_timeout: String,
    /// Folder of the secrets.
    pub secrets: PathBuf,
}

/// A proxy. Killed when dropped.
#[derive(Debug)]
pub struct ProxyProcess {
    /// Where clients connect, at 127.0.0.1.
    pub port: u16,
    /// `/metrics`, `/topology`, at 127.0.0.1.
    pub http_port: u16,
    launch: Launch,
    process: Option<Process>,
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
        let text = format!(
            r#"workers = 2
[listen]
address = "{address}:{port}"
http = "{address}:{http_port}"
[zookeeper]
servers = {zookeeper:?}
session_timeout = "{session_timeout}"
[shard]
name = "{shard}"
[shards]
discover = true
[auth]
password_file = "{secrets}/proxy.password"
[admin]
admin_users = ["app"]
[log]
filter = "info"
"#,
            port = config.port,
            http_port = config.http_port,
            zookeeper = config.zookeeper,
            session_timeout = config.session_timeout,
            shard = config.shard,
            secrets = config.secrets.display(),
        );
        fs::write(&config_path, text)?;
        Ok(Self {
            port: config.port,
            http_port: config.http_port,
            launch: Launch {
                log: lab.join("logs").join(format!("{name}.log")),
                name,
                program: proxy.to_owned(),
                args: vec!["--config".into(), config_path.into()],
                dir,
                namespace: None,
                env: Vec::new(),
            },
            process: None,
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
        let client = reqwest::Client::builder().timeout(std::time::Duration::from_secs(2)).build()?;
        Ok(client.get(url).send().await?.error_for_status()?.text().await?)
    }
}
