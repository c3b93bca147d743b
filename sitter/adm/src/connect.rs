//! Choice of ZooKeeper and shard: options, then environment, then the sitter's configuration.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use manatee_shared::cluster::ClusterState;
use manatee_shared::config::{self, ZkSettings};
use manatee_shared::ids::ShardName;
use manatee_shared::invariants;
use manatee_shared::zk::client::ZkCoordination;
use manatee_shared::zk::{Coordination, Over, View, ZkError};
use serde::Deserialize;

use super::cluster::valid_state;

/// Read when nothing else says where ZooKeeper is.
const DEFAULT_CONFIG: &str = "/etc/manatee/sitter.toml";

/// Longest wait for ZooKeeper before the operator is told.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest time for finding out what became of a write without an answer: longer than ZooKeeper's choice of a new
/// leader.
const FIND_OUT: Duration = Duration::from_secs(15);

/// Attempts at a change when others write at the same time. Sitters write once an event.
const CHANGE_TRIES: usize = 5;

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

/// Part of a sitter's configuration that matters here; the sitter checks the rest.
#[derive(Deserialize)]
struct SitterConfig {
    shard: ShardName,
    zookeeper: ZkSettings,
}

/// ZooKeeper and shard to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Connection to ZooKeeper.
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

    /// Target, given the environment and whether the default configuration exists.
    fn target(self, environment: impl Fn(&str) -> Option<String>, default: Option<&Path>) -> anyhow::Result<Target> {
        match self.sources(environment, default)? {
            (_, None) => bail!("no shard is named; give --shard, SHARD, or --config with a sitter's configuration"),
            (None, _) => bail!("no ZooKeeper is named; give --zk, ZK_IPS, or --config with a sitter's configuration"),
            (Some(zookeeper), Some(shard)) => Ok(Target { zookeeper, shard }),
        }
    }

    /// Sources that name ZooKeeper and shard.
    fn sources(
        self,
        environment: impl Fn(&str) -> Option<String>,
        default: Option<&Path>,
    ) -> anyhow::Result<(Option<ZkSettings>, Option<ShardName>)> {
        let zk = self.zk.or_else(|| environment("ZK_IPS"));
        let shard = self.shard.or_else(|| environment("SHARD"));
        let named = self.config.or_else(|| environment("MANATEE_SITTER_CONFIG").map(PathBuf::from));
        let complete = zk.is_some() && shard.is_some();
        let path = named.or_else(|| default.filter(|_| !complete).map(Path::to_owned));
        let config: Option<SitterConfig> = path.as_deref().map(config::load).transpose()?;
        let (configured, configured_shard) = config.map(|config| (config.zookeeper, config.shard)).unzip();
        let shard = shard.map(|name| name.parse()).transpose()?.or(configured_shard);
        let zookeeper = match (zk, configured) {
            (Some(servers), configured) => {
                let servers = servers.split(',').map(|server| server.trim().to_owned()).collect();
                Some(ZkSettings { servers, ..configured.unwrap_or_else(|| ZkSettings::new(vec![])) })
            }
            (None, configured) => configured,
        };
        Ok((zookeeper, shard))
    }

    /// Connects to ZooKeeper for what is about no shard in particular; with the shard that is named, if any.
    pub async fn reach(self, outer: &Self) -> anyhow::Result<(ZkSettings, ZkCoordination, Option<ShardName>)> {
        let (zookeeper, shard) = self.over(outer).sources(environment, default_config())?;
        let Some(zookeeper) = zookeeper else {
            bail!("no ZooKeeper is named; give --zk, ZK_IPS, or --config with a sitter's configuration")
        };
        // Its folder need not exist.
        let anywhere = shard.clone().map_or_else(|| "-".parse(), Ok)?;
        let coordination = ZkCoordination::connect(&zookeeper, &anywhere)?;
        coordination.ready(CONNECT_TIMEOUT).await?;
        Ok((zookeeper, coordination, shard))
    }

    /// Target according to these options, `outer`, the environment, and a sitter's configuration.
    pub fn resolve(self, outer: &Self) -> anyhow::Result<Target> {
        self.over(outer).target(environment, default_config())
    }

    /// The sitter's configuration that is named, or stands where it is looked for.
    pub fn sitter_config(&self, outer: &Self) -> Option<PathBuf> {
        let named = self.clone().over(outer).config.or_else(|| environment("MANATEE_SITTER_CONFIG").map(PathBuf::from));
        named.or_else(|| default_config().map(Path::to_owned))
    }

    /// Connects, and makes sure that the shard exists. Creates nothing.
    pub async fn open(self, outer: &Self) -> anyhow::Result<Shard> {
        let target = self.resolve(outer)?;
        let coordination = ZkCoordination::connect(&target.zookeeper, &target.shard)?;
        let view = coordination.ready(CONNECT_TIMEOUT).await?;
        if !coordination.shard_exists().await? {
            let shards = coordination.shards().await?;
            bail!("{}", no_such_shard(&target, &shards));
        }
        Ok(Shard { target, coordination, view })
    }
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn default_config() -> Option<&'static Path> {
    Some(Path::new(DEFAULT_CONFIG)).filter(|path| path.exists())
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
    /// Its place.
    pub target: Target,
    /// The session.
    pub coordination: ZkCoordination,
    /// View when it was opened.
    pub view: View,
}

impl Shard {
    /// Ends the session.
    pub async fn close(self) {
        self.coordination.close().await;
    }

    /// Writes what `change` makes of the newest state, by compare-and-set and with its history entry,
    /// as the sitters do. A change that breaks the rules is not written; if somebody else was
    /// quicker, `change` is asked again with what they wrote.
    pub async fn change(
        &self,
        mut change: impl FnMut(&ClusterState) -> anyhow::Result<ClusterState>,
    ) -> anyhow::Result<ClusterState> {
        let mut view = self.coordination.view();
        for _ in 0..CHANGE_TRIES {
            let (version, old) = valid_state(&view.borrow().clone(), self.target.shard.as_str())?;
            let new = change(&old)?;
            if self.write(Over::Version(version), Some(&old), &new).await? {
                return Ok(new);
            }
            let newer = view.wait_for(|view| view.state.valid().is_some_and(|(found, _)| found != version));
            // Only waits. A view that does not move on is looked at once more all the same.
            let _ = tokio::time::timeout(CONNECT_TIMEOUT, newer).await;
        }
        bail!("the state of shard `{}` changes all the time; see `manatee-adm history`", self.target.shard)
    }

    /// Writes `new` over `old`, as it was found; false if somebody else was quicker.
    pub async fn write(&self, over: Over, old: Option<&ClusterState>, new: &ClusterState) -> anyhow::Result<bool> {
        let violations = invariants::check_transition(old, new);
        if !violations.is_empty() {
            bail!("not written, for it breaks the rules: {}", invariants::join(&violations));
        }
        let mut outcome = self.coordination.write_state(over, new).await;
        if let Err(ZkError::Unknown(problem)) = &outcome {
            eprintln!("manatee-adm: it may have been written ({problem}); finding out, for at most {FIND_OUT:?}");
            outcome = self.coordination.find_out(over, new, FIND_OUT).await;
        }
        match outcome {
            Ok(_) => Ok(true),
            Err(ZkError::Conflict) => Ok(false),
            Err(ZkError::Unknown(problem)) => {
                bail!(
                    "it may have been written, and may still be: {problem}; look with `manatee-adm history` before \
                     trying again"
                )
            }
            Err(ZkError::NotWritten(problem)) => bail!("it was not written: {problem}; try again"),
            Err(error) => Err(error).context("not written"),
        }
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
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
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
