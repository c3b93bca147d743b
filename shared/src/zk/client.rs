//! The real ZooKeeper client. Being written: the signatures stand.

use async_trait::async_trait;
use tokio::sync::watch;

use super::{Coordination, HistoryEntry, Version, View, ZkError};
use crate::cluster::{ClusterState, Peer};
use crate::config::ZkSettings;
use crate::ids::ShardName;

/// Settings that can never work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`zookeeper.{key}`: {problem}")]
pub struct ConnectError {
    key: &'static str,
    problem: String,
}

/// A shard in a real ZooKeeper.
pub struct ZkCoordination {
    view: watch::Sender<View>,
}

impl ZkCoordination {
    /// Starts connecting, on the current tokio runtime, and returns at once; the view says when it
    /// is connected. Never creates anything before [`Coordination::join`].
    pub fn connect(settings: &ZkSettings, _shard: &ShardName) -> Result<Self, ConnectError> {
        settings.check().map_err(|(key, problem)| ConnectError { key, problem })?;
        Ok(Self { view: watch::Sender::new(View::unknown()) })
    }
}

#[async_trait]
impl Coordination for ZkCoordination {
    fn view(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }
    async fn join(&self, _peer: Peer) -> Result<(), ZkError> {
        Err(ZkError::Refused("being written".to_owned()))
    }
    async fn leave(&self) -> Result<(), ZkError> {
        Err(ZkError::Refused("being written".to_owned()))
    }
    async fn write_state(&self, _expected: Option<Version>, _state: &ClusterState) -> Result<Version, ZkError> {
        Err(ZkError::Refused("being written".to_owned()))
    }
    async fn history(&self) -> Result<Vec<HistoryEntry>, ZkError> {
        Err(ZkError::Refused("being written".to_owned()))
    }
    async fn close(&self) {}
}
