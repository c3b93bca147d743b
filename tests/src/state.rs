//! State of the shard in ZooKeeper, read independently of the code under test.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use manatee_shared::cluster::ClusterState;
use manatee_shared::invariants;
use tokio::sync::Mutex;
use zookeeper_client::{Acls, Client, CreateMode, Error};

/// Longest time for one reading.
const LIMIT: Duration = Duration::from_secs(3);

/// Reads state and history. Its session is opened on demand, and again after it is lost.
pub struct StateReader {
    servers: String,
    shard_path: String,
    client: Mutex<Option<Client>>,
}

impl std::fmt::Debug for StateReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StateReader").field("servers", &self.servers).finish_non_exhaustive()
    }
}

impl StateReader {
    /// Reads `/manatee/<shard>` from `servers` (`ip:port`).
    pub fn new(servers: &[String], shard: &str) -> Self {
        Self { servers: servers.join(","), shard_path: format!("/manatee/{shard}"), client: Mutex::new(None) }
    }

    /// The state; None: there is none yet.
    pub async fn state(&self) -> Result<Option<ClusterState>> {
        match self.read(&format!("{}/state", self.shard_path)).await? {
            Some(bytes) => Ok(Some(ClusterState::parse(&bytes)?)),
            None => Ok(None),
        }
    }

    /// The state as it is written.
    pub async fn raw(&self) -> Result<Vec<u8>> {
        self.read(&format!("{}/state", self.shard_path)).await?.context("the shard has no state yet")
    }

    /// Writes a state, whatever there is: what an operator does by hand.
    pub async fn replace(&self, state: &ClusterState) -> Result<()> {
        let client = self.client().await?;
        let path = format!("{}/state", self.shard_path);
        within(client.set_data(&path, &state.to_json(), None)).await.map(drop)
    }

    /// Puts `bytes` in place of the state, whatever they are; returns what was there.
    pub async fn replace_raw(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        let path = format!("{}/state", self.shard_path);
        let before = self.raw().await?;
        within(self.client().await?.set_data(&path, bytes, None)).await?;
        Ok(before)
    }

    /// Makes another shard of the same peers, by copying the state: for what only looks at it.
    pub async fn copy_to(&self, shard: &str) -> Result<()> {
        let client = self.client().await?;
        let bytes = self.read(&format!("{}/state", self.shard_path)).await?.context("there is no state to copy")?;
        let options = CreateMode::Persistent.with_acls(Acls::anyone_all());
        within(client.create(&format!("/manatee/{shard}"), b"", &options)).await?;
        within(client.create(&format!("/manatee/{shard}/state"), &bytes, &options)).await.map(drop)
    }

    /// All states that ever were, in order.
    pub async fn history(&self) -> Result<Vec<ClusterState>> {
        let folder = format!("{}/history", self.shard_path);
        let client = self.client().await?;
        let mut names = within(client.list_children(&folder)).await?;
        names.sort_by_key(|name| name.rsplit_once('-').and_then(|(_, sequence)| sequence.parse::<u64>().ok()));
        let mut states = Vec::new();
        for name in names {
            let bytes = self.read(&format!("{folder}/{name}")).await?.context("a history entry vanished")?;
            states.push(ClusterState::parse(&bytes).with_context(|| format!("history entry {name}"))?);
        }
        Ok(states)
    }

    /// An error naming each rule that any change in the history broke.
    pub async fn check_history(&self) -> Result<()> {
        let states = self.history().await?;
        let mut problems = Vec::new();
        let mut old = None;
        for new in &states {
            let violations = invariants::check_transition(old, new);
            if !violations.is_empty() {
                problems.push(format!("generation {}: {}", new.generation, invariants::join(&violations)));
            }
            old = Some(new);
        }
        if !problems.is_empty() {
            bail!("the shard's history breaks the rules: {}", problems.join(" / "));
        }
        Ok(())
    }

    async fn read(&self, path: &str) -> Result<Option<Vec<u8>>> {
        let client = self.client().await?;
        match tokio::time::timeout(LIMIT, client.get_data(path)).await {
            Ok(Ok((bytes, _))) => Ok(Some(bytes)),
            Ok(Err(Error::NoNode)) => Ok(None),
            Ok(Err(error)) => {
                *self.client.lock().await = None;
                Err(error).context("cannot read from ZooKeeper")
            }
            Err(_) => {
                *self.client.lock().await = None;
                bail!("ZooKeeper did not answer within {LIMIT:?}")
            }
        }
    }

    async fn client(&self) -> Result<Client> {
        let mut client = self.client.lock().await;
        if let Some(client) = &*client {
            return Ok(client.clone());
        }
        let connect = Client::connector().with_session_timeout(Duration::from_secs(10)).connect(&self.servers);
        let new = within(connect).await?;
        *client = Some(new.clone());
        Ok(new)
    }
}

async fn within<T>(operation: impl Future<Output = Result<T, Error>>) -> Result<T> {
    tokio::time::timeout(LIMIT, operation)
        .await
        .map_err(|_| anyhow::anyhow!("ZooKeeper did not answer within {LIMIT:?}"))?
        .context("ZooKeeper refused")
}
