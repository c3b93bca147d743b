//! All that can be found out about a shard, whatever state it is in: ZooKeeper's word, the last
//! state of the history, and the sitters' own.

use std::collections::BTreeMap;

use manatee_shared::cluster::{ClusterState, Peer};
use manatee_shared::ids::PeerId;
use manatee_shared::invariants;
use manatee_shared::zk::{HistoryEntry, View};

use super::cluster::{Answer, Cluster, ask_all};
use super::connect::Shard;
use crate::report::SitterStatus;

/// A shard in any condition, as read once.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// ZooKeeper's addresses.
    pub zookeeper: String,
    /// Name of the shard.
    pub shard: String,
    /// View of ZooKeeper now.
    pub view: View,
    /// The newest entry of the history, if that is a valid state.
    pub last: Option<HistoryEntry>,
    /// Answers of the sitters that are registered or listed, now or in `last`.
    pub answers: BTreeMap<PeerId, Answer>,
}

impl Evidence {
    /// Reads and asks.
    pub async fn gather(shard: &Shard) -> anyhow::Result<Self> {
        let last = shard.history().await?.pop().filter(|entry| invariants::check_state(&entry.state).is_empty());
        let listed = |state: &ClusterState| state.everyone().map(|peer| peer.id).collect::<Vec<_>>();
        let present = shard.view.state.valid().map(|(_, state)| listed(state)).unwrap_or_default();
        let past = last.as_ref().map(|entry| listed(&entry.state)).unwrap_or_default();
        let active = shard.view.active.keys().copied();
        Ok(Self {
            zookeeper: shard.target.zookeeper.ensemble(),
            shard: shard.target.shard.to_string(),
            view: shard.view.clone(),
            last,
            answers: ask_all(active.chain(present).chain(past)).await?,
        })
    }

    /// The shard as the listings show it, while its state is valid.
    pub fn cluster(&self) -> Option<Cluster> {
        let (version, state) = self.view.state.valid()?;
        Some(Cluster {
            zookeeper: self.zookeeper.clone(),
            shard: self.shard.clone(),
            version,
            state: state.clone(),
            view: self.view.clone(),
            answers: self.answers.clone(),
        })
    }

    /// Answer of the sitter of `id`, if there is one.
    pub fn status(&self, id: PeerId) -> Option<&SitterStatus> {
        self.answers.get(&id)?.as_ref().ok()
    }

    /// A peer's name, wherever it is known from.
    pub fn name(&self, id: PeerId) -> String {
        let active = self.view.active.get(&id).map(|active| &active.peer);
        let state = self.view.state.valid().map(|(_, state)| &**state);
        let states = state.into_iter().chain(self.last.as_ref().map(|entry| &entry.state));
        let mut listed = states.flat_map(ClusterState::everyone);
        let peer = active.or_else(|| listed.find(|peer| peer.id == id));
        peer.map_or_else(|| id.to_string(), |peer: &Peer| peer.zone_id.clone())
    }
}
