//! Roles of the peers in a shard: the client library for Rust programs.
//!
//! A [`TopologyWatcher`] keeps the newest [`Topology`] in a watch channel. It never creates
//! anything in ZooKeeper, may be started before the shard exists, and keeps the last topology when
//! ZooKeeper is gone: unknown is not down. It never guesses a primary.
//!
//! ```no_run
//! use manatee_shared::{config::ZkSettings, topology::TopologyWatcher};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let settings = ZkSettings::new(vec!["127.0.0.1:2181".to_owned()]);
//! let watcher = TopologyWatcher::spawn(&settings, &"demo".parse()?)?;
//! let mut topology = watcher.topology();
//! while topology.changed().await.is_ok() {
//!     if let Some(topology) = topology.borrow_and_update().as_ref() {
//!         println!("{:?}", topology.chain_urls());
//!     }
//! }
//! # Ok(())
//! # }
//! ```

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::cluster::{ClusterState, Peer, Role};
use crate::config::ZkSettings;
use crate::ids::{PeerId, ShardName};
use crate::lsn::{Lsn, Timeline, WalPosition};
use crate::zk::client::{ConnectError, ZkCoordination};
use crate::zk::{Coordination, Session, StateNode, Version, View, ZkError};

/// Whether what is shown is known to be current.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "status")]
pub enum Freshness {
    /// ZooKeeper is connected and the state is readable.
    Fresh,
    /// ZooKeeper is out of reach, or the state is missing or unreadable: this is the last that was known.
    Stale {
        /// Since when.
        since: Timestamp,
    },
}

/// A shard as the cluster state describes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Topology {
    /// Name of the shard.
    pub shard: ShardName,
    /// Version of the `state` node: rises with every change.
    pub version: Version,
    /// Number of the current (primary, sync) pair.
    pub generation: u64,
    /// The one peer that may acknowledge writes.
    pub primary: Peer,
    /// Has every acknowledged write; none only in one-node-write mode.
    #[serde(rename = "sync")]
    pub sync_peer: Option<Peer>,
    /// Further peers in replication order.
    #[serde(rename = "async")]
    pub async_peers: Vec<Peer>,
    /// Former primaries that serve nothing until they are rejoined.
    pub deposed: Vec<Peer>,
    /// Position of the primary when the generation began.
    pub init_wal: Lsn,
    /// Timeline of `init_wal`, where the state knows it.
    pub init_wal_timeline: Option<Timeline>,
    /// Peers with a live election node, in election order.
    pub active: Vec<PeerId>,
    /// An operator stopped topology changes.
    pub frozen: bool,
    /// The primary accepts writes with no sync.
    pub one_node_write_mode: bool,
    /// The sync is about to be promoted as planned: clients should begin nothing new on the primary
    /// until it is, but not wait for ever.
    #[serde(default)]
    pub handing_over: bool,
    /// Whether this is current.
    pub zookeeper: Freshness,
}

impl Topology {
    fn new(shard: &ShardName, version: Version, state: &ClusterState, view: &View, zookeeper: Freshness) -> Self {
        Self {
            shard: shard.clone(),
            version,
            generation: state.generation,
            primary: state.primary.clone(),
            sync_peer: state.sync_peer.clone(),
            async_peers: state.async_peers.clone(),
            deposed: state.deposed.clone(),
            init_wal: state.init_wal,
            init_wal_timeline: state.init_wal_timeline,
            active: view.in_election_order().into_iter().map(|active| active.peer.id).collect(),
            frozen: state.is_frozen(),
            one_node_write_mode: state.one_node_write_mode,
            handing_over: state.hand_over().is_some(),
            zookeeper,
        }
    }

    /// Primary, sync and asyncs in replication order.
    pub fn chain(&self) -> impl Iterator<Item = &Peer> {
        std::iter::once(&self.primary).chain(&self.sync_peer).chain(&self.async_peers)
    }

    /// Their PostgreSQL URLs: what node-manatee's `topology` event carried.
    pub fn chain_urls(&self) -> Vec<&str> {
        self.chain().map(|peer| peer.pg_url.as_str()).collect()
    }

    /// Role of `id`.
    pub fn role_of(&self, id: PeerId) -> Role {
        let place = self.chain().position(|peer| peer.id == id);
        match place {
            Some(0) => Role::Primary,
            Some(1) if self.sync_peer.is_some() => Role::Sync,
            Some(place) => Role::Async(place - 1 - usize::from(self.sync_peer.is_some())),
            None if self.deposed.iter().any(|peer| peer.id == id) => Role::Deposed,
            None => Role::Unassigned,
        }
    }

    /// Begin of the generation, if the state knows the timeline.
    pub fn init_position(&self) -> Option<WalPosition> {
        self.init_wal_timeline.map(|timeline| WalPosition { timeline, lsn: self.init_wal })
    }

    /// Whether this is known to be current.
    pub fn is_fresh(&self) -> bool {
        self.zookeeper == Freshness::Fresh
    }

    /// Topology to show after `view`, having shown `previous`. Pure.
    pub fn next(previous: Option<&Self>, view: &View, shard: &ShardName, now: Timestamp) -> Option<Self> {
        let stale = match previous.map(|topology| topology.zookeeper) {
            Some(Freshness::Stale { since }) => Freshness::Stale { since },
            _ => Freshness::Stale { since: now },
        };
        let zookeeper = if view.session == Session::Connected { Freshness::Fresh } else { stale };
        match &view.state {
            StateNode::Valid { version, state } => Some(Self::new(shard, *version, state, view, zookeeper)),
            StateNode::Unread | StateNode::Absent | StateNode::Corrupt { .. } => {
                Some(Self { zookeeper: stale, ..previous?.clone() })
            }
        }
    }
}

/// Keeps the newest [`Topology`]. Dropping it ends the session.
pub struct TopologyWatcher {
    coordination: Arc<ZkCoordination>,
    topology: watch::Receiver<Option<Topology>>,
    task: tokio::task::JoinHandle<()>,
}

impl TopologyWatcher {
    /// Starts watching on the current tokio runtime. Returns at once, whether ZooKeeper is
    /// reachable or not; fails only for settings that can never work.
    pub fn spawn(settings: &ZkSettings, shard: &ShardName) -> Result<Self, ConnectError> {
        let coordination = Arc::new(ZkCoordination::connect(settings, shard)?);
        let (sender, topology) = watch::channel(None);
        let task = tokio::spawn(follow(coordination.view(), shard.clone(), sender));
        Ok(Self { coordination, topology, task })
    }

    /// The newest topology; none until the shard has been read once.
    pub fn topology(&self) -> watch::Receiver<Option<Topology>> {
        self.topology.clone()
    }

    /// ZooKeeper as seen: tells an absent or unreadable state from a missing connection.
    pub fn view(&self) -> watch::Receiver<View> {
        self.coordination.view()
    }

    /// Names of all shards under the root, sorted; not all need be shards.
    ///
    /// # Errors
    /// When ZooKeeper does not answer.
    pub async fn shards(&self) -> Result<Vec<String>, ZkError> {
        self.coordination.shards().await
    }

    /// Ends the session in an orderly way.
    pub async fn close(&self) {
        self.coordination.close().await;
    }
}

impl Drop for TopologyWatcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Turns views into topologies until the view's owner is gone.
async fn follow(mut view: watch::Receiver<View>, shard: ShardName, sender: watch::Sender<Option<Topology>>) {
    loop {
        let newest = view.borrow_and_update().clone();
        sender.send_if_modified(|topology| {
            let next = Topology::next(topology.as_ref(), &newest, &shard, Timestamp::now());
            let changed = next != *topology;
            *topology = next;
            changed
        });
        if view.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zk::ActivePeer;

    fn peer(number: u8) -> Peer {
        Peer::new(format!("10.0.0.{number}:5432:12345").parse().expect("id"), format!("peer{number}"))
    }

    fn view(session: Session) -> View {
        let json = serde_json::json!({"generation": 2, "primary": peer(1), "sync": peer(2), "async": [peer(3)],
            "deposed": [peer(4)], "initWal": "0/00000010", "initWalTimeline": 1});
        let state = ClusterState::parse(json.to_string().as_bytes()).expect("valid");
        let active =
            [3, 1].map(|number| (peer(number).id, ActivePeer { sequence: 10 - u64::from(number), peer: peer(number) }));
        View {
            session,
            state: StateNode::Valid { version: 7, state: Arc::new(state) },
            active: active.into_iter().collect(),
            has_history: Some(true),
            refused: None,
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("time")
    }

    #[test]
    fn the_last_topology_outlives_everything() {
        let shard: ShardName = "1.test".parse().expect("name");
        assert_eq!(Topology::next(None, &View::unknown(), &shard, at(0)), None, "never guessed");
        let fresh = Topology::next(None, &view(Session::Connected), &shard, at(1)).expect("topology");
        assert!(fresh.is_fresh());
        assert_eq!(fresh.active, [peer(3).id, peer(1).id], "in election order");
        let roles = [1, 2, 3, 4, 5].map(|number| fresh.role_of(peer(number).id));
        assert_eq!(roles, [Role::Primary, Role::Sync, Role::Async(0), Role::Deposed, Role::Unassigned]);

        let stale = Topology::next(Some(&fresh), &view(Session::Disconnected), &shard, at(2)).expect("topology");
        assert_eq!(stale, Topology { zookeeper: Freshness::Stale { since: at(2) }, ..fresh.clone() });
        let later = Topology::next(Some(&stale), &view(Session::Expired), &shard, at(3)).expect("topology");
        assert_eq!(later, stale, "stale since the beginning");
        for gone in [StateNode::Absent, StateNode::Corrupt { version: 8, problem: String::new() }] {
            let view = View { state: gone, ..view(Session::Connected) };
            assert_eq!(Topology::next(Some(&fresh), &view, &shard, at(2)), Some(stale.clone()));
        }
        assert_eq!(Topology::next(Some(&stale), &view(Session::Connected), &shard, at(4)), Some(fresh));
    }

    #[test]
    fn json_round_trips() {
        let shard: ShardName = "1.test".parse().expect("name");
        let topology = Topology::next(None, &view(Session::Disconnected), &shard, at(1)).expect("topology");
        let json = serde_json::to_value(&topology).expect("json");
        assert_eq!(json["zookeeper"], serde_json::json!({"status": "stale", "since": "1970-01-01T00:00:01Z"}));
        assert_eq!(json["sync"]["pgUrl"], "tcp://postgres@10.0.0.2:5432/postgres");
        assert_eq!(serde_json::from_value::<Topology>(json).expect("topology"), topology);
    }
}
