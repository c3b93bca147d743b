//! Which ZooKeeper and which shard: options, then environment, then the sitter's configuration.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use manatee_shared::config::{self, ZkSettings};
use manatee_shared::ids::ShardName;
use manatee_shared::zk::client::ZkCoordination;
use manatee_shared::zk::{Coordination, View};
use serde::Deserialize;

/// Read when nothing else says where ZooKeeper is.
const DEFAULT_CONFIG: &str = "/etc/manatee/sitter.toml";

/// How long an operator waits for ZooKeeper before being told.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Options that every command has.
#[derive(Clone, Debug, Default, Args)]
pub struct Connection {
    /// ZooKeeper's addresses, separated by commas [env: ZK_IPS]
    #[arg(short, long, value_name = "HOST:PORT,…")]
    pub zk: Option<String>,
    /// Name of the shard [env: SHARD]
    #[arg(short, long, value_name = "NAME")]
    pub shard: Option<String>,
    /// A sitter's configuration, to take both from [env: MANATEE_SITTER_CONFIG]
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// [`Connection`] for a command whose `-s` is something else.
#[derive(Clone, Debug, Default, Args)]
pub struct LongConnection {
    /// ZooKeeper's addresses, separated by commas [env: ZK_IPS]
    #[arg(short, long, value_name = "HOST:PORT,…")]
    zk: Option<String>,
    /// Name of the shard [env: SHARD]
    #[arg(long, value_name = "NAME")]
    shard: Option<String>,
    /// A sitter's configuration, to take both from [env: MANATEE_SITTER_CONFIG]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl From<LongConnection> for Connection {
    fn from(LongConnection { zk, shard, config }: LongConnection) -> Self {
        Self { zk, shard, config }
    }
}

/// What matters here of a sitter's configuration; the sitter checks the rest.
#[derive(Deserialize)]
struct SitterConfig {
    shard: ShardName,
    zookeeper: ZkSettings,
}

/// Where to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// How to reach ZooKeeper.
    pub zookeeper: ZkSettings,
    /// The shard.
    pub shard: ShardName,
}

impl Connection {
    /// `self`, and where it says nothing, `outer`.
    fn over(self, outer: &Self) -> Self {
        Self {
            zk: self.zk.or_else(|| outer.zk.clone()),
            shard: self.shard.or_else(|| outer.shard.clone()),
            config: self.config.or_else(|| outer.config.clone()),
        }
    }

    /// Where to look, given the environment and whether the default configuration exists.
    fn target(self, environment: impl Fn(&str) -> Option<String>, default: Option<&Path>) -> anyhow::Result<Target> {
        let zk = self.zk.or_else(|| environment("ZK_IPS"));
        let shard = self.shard.or_else(|| environment("SHARD"));
        let named = self.config.or_else(|| environment("MANATEE_SITTER_CONFIG").map(PathBuf::from));
        let complete = zk.is_some() && shard.is_some();
        let path = named.or_else(|| default.filter(|_| !complete).map(Path::to_owned));
        let config: Option<SitterConfig> = path.as_deref().map(config::load).transpose()?;
        let (configured, configured_shard) = config.map(|config| (config.zookeeper, config.shard)).unzip();
        let shard = match (shard, configured_shard) {
            (Some(name), _) => name.parse()?,
            (None, Some(name)) => name,
            (None, None) => bail!("no shard is named; give --shard, SHARD, or --config with a sitter's configuration"),
        };
        let zookeeper = match (zk, configured) {
            (Some(servers), configured) => {
                let servers = servers.split(',').map(|server| server.trim().to_owned()).collect();
                ZkSettings { servers, ..configured.unwrap_or_else(|| ZkSettings::new(vec![])) }
            }
            (None, Some(configured)) => configured,
            (None, None) => {
                bail!("no ZooKeeper is named; give --zk, ZK_IPS, or --config with a sitter's configuration")
            }
        };
        Ok(Target { zookeeper, shard })
    }

    /// Connects, and makes sure that the shard exists. Creates nothing.
    pub async fn open(self, outer: &Self) -> anyhow::Result<Shard> {
        let default = Some(Path::new(DEFAULT_CONFIG)).filter(|path| path.exists());
        let environment = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let target = self.over(outer).target(environment, default)?;
        let coordination = ZkCoordination::connect(&target.zookeeper, &target.shard)?;
        let view = coordination.ready(CONNECT_TIMEOUT).await?;
        if !coordination.shard_exists().await? {
            let shards = coordination.shards().await?;
            bail!("{}", no_such_shard(&target, &shards));
        }
        Ok(Shard { target, coordination, view })
    }
}

fn no_such_shard(target: &Target, shards: &[String]) -> String {
    let there = match shards {
        [] => "there are none".to_owned(),
        shards => format!("there are: {}", shards.join(", ")),
    };
    format!(
        "shard `{}` is not in ZooKeeper at {} under {} ({there}); check --shard and --zk",
        target.shard,
        target.zookeeper.ensemble(),
        target.zookeeper.root
    )
}

/// A shard that exists, and what ZooKeeper says of it.
pub struct Shard {
    /// Where it is.
    pub target: Target,
    /// The session.
    pub coordination: ZkCoordination,
    /// What was there when it was opened.
    pub view: View,
}

impl Shard {
    /// Ends the session.
    pub async fn close(self) {
        self.coordination.close().await;
    }

    /// The history, with a message that says where.
    pub async fn history(&self) -> anyhow::Result<Vec<manatee_shared::zk::HistoryEntry>> {
        self.coordination
            .history()
            .await
            .with_context(|| format!("cannot read the history of shard `{}`", self.target.shard))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    fn connection(zk: &str, shard: &str) -> Connection {
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Connection { zk: given(zk), shard: given(shard), config: None }
    }

    #[test]
    fn options_win_over_the_environment() {
        let environment = |name: &str| Some(if name == "SHARD" { "env" } else { "env:1" }.to_owned());
        let environment = |name: &str| environment(name).filter(|_| name != "MANATEE_SITTER_CONFIG");
        let target = connection("a:1, b:2", "").target(environment, None).unwrap();
        assert_eq!(target.zookeeper.servers, ["a:1", "b:2"]);
        assert_eq!(target.shard.as_str(), "env");
        let both = connection("", "inner").over(&connection("outer:1", "outer"));
        assert_eq!((both.zk.as_deref(), both.shard.as_deref()), (Some("outer:1"), Some("inner")));
    }

    #[test]
    fn a_sitters_configuration_has_both() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            file.path(),
            "shard = \"x\"\nrejoin = \"auto\"\n[zookeeper]\nservers = [\"c:3\"]\nroot = \"/r\"\n",
        )
        .unwrap();
        let target = connection("", "").target(|_| None, Some(file.path())).unwrap();
        assert_eq!((target.shard.as_str(), target.zookeeper.root.as_str()), ("x", "/r"));
        let target = connection("a:1", "").target(|_| None, Some(file.path())).unwrap();
        assert_eq!((target.zookeeper.servers, target.zookeeper.root), (vec!["a:1".to_owned()], "/r".to_owned()));
    }

    #[test]
    fn what_is_missing_is_said_with_the_remedy() {
        let error = connection("a:1", "").target(|_| None, None).unwrap_err().to_string();
        assert_eq!(error, "no shard is named; give --shard, SHARD, or --config with a sitter's configuration");
        let error = connection("", "x").target(|_| None, None).unwrap_err().to_string();
        assert!(error.starts_with("no ZooKeeper is named"), "{error}");
        let target = connection("a:1", "x").target(|_| None, None).unwrap();
        assert_eq!(
            no_such_shard(&target, &["y".to_owned(), "z".to_owned()]),
            "shard `x` is not in ZooKeeper at a:1 under /manatee (there are: y, z); check --shard and --zk"
        );
    }
}
