//! All that the listings show of a shard: its state from ZooKeeper, and each sitter's own word.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use futures_util::future::join_all;
use manatee_shared::cluster::{ClusterState, Peer, Role};
use manatee_shared::ids::PeerId;
use manatee_shared::zk::{StateNode, Version, View};

use super::connect::Shard;
use crate::machine::local::Server;
use crate::report::SitterStatus;

/// Longest wait for a sitter's answer. One that is down must not hold up the operator.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// A peer's own word, or why there is none.
pub type Answer = Result<SitterStatus, String>;

/// A shard, as read once.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// ZooKeeper's addresses.
    pub zookeeper: String,
    /// Name of the shard.
    pub shard: String,
    /// Version of the state.
    pub version: Version,
    /// The state.
    pub state: Arc<ClusterState>,
    /// All that ZooKeeper says.
    pub view: View,
    /// Answers of the sitters; empty if they were not asked.
    pub answers: BTreeMap<PeerId, Answer>,
}

impl Cluster {
    /// From ZooKeeper alone. Fails with one line if there is no valid state.
    pub fn from_zookeeper(shard: &Shard) -> anyhow::Result<Self> {
        let (version, state) = valid_state(&shard.view, shard.target.shard.as_str())?;
        Ok(Self {
            zookeeper: shard.target.zookeeper.ensemble(),
            shard: shard.target.shard.to_string(),
            version,
            state,
            view: shard.view.clone(),
            answers: BTreeMap::new(),
        })
    }

    /// From ZooKeeper and every sitter that is listed or has announced itself.
    pub async fn gather(shard: &Shard) -> anyhow::Result<Self> {
        let mut cluster = Self::from_zookeeper(shard)?;
        let listed = cluster.state.everyone().map(|peer| peer.id);
        cluster.answers = ask_all(listed.chain(cluster.view.active.keys().copied())).await?;
        Ok(cluster)
    }

    /// The listed peer that `name` means: its name, its id, its address, or the beginning of one
    /// peer's name only.
    pub fn find(&self, name: &str) -> anyhow::Result<(Role, &Peer)> {
        let whole = |peer: &Peer| peer.zone_id == name || peer.id.to_string() == name || peer.ip == name;
        let found: Vec<_> = self.listed().filter(|(_, peer)| whole(peer)).collect();
        let begins = || self.listed().filter(|(_, peer)| peer.zone_id.starts_with(name)).collect();
        let found = if found.is_empty() { begins() } else { found };
        match found.as_slice() {
            [one] => Ok(*one),
            [] => bail!("no peer of shard `{}` is called `{name}`; there are: {}", self.shard, self.names()),
            _ => bail!("`{name}` could be several peers of shard `{}`; there are: {}", self.shard, self.names()),
        }
    }

    /// Names of all listed peers, for messages.
    pub fn names(&self) -> String {
        self.listed().map(|(role, peer)| format!("{} ({role})", peer.zone_id)).collect::<Vec<_>>().join(", ")
    }

    /// Peers in the order of the listings: the chain, then the deposed, with their roles.
    pub fn listed(&self) -> impl Iterator<Item = (Role, &Peer)> {
        self.state.everyone().map(|peer| (self.state.role_of(peer.id), peer))
    }

    /// Follower of `id`: the next in the chain.
    pub fn downstream_of(&self, id: PeerId) -> Option<&Peer> {
        self.state.chain().skip_while(|peer| peer.id != id).nth(1)
    }

    /// Upstream of `id`: the one before it in the chain.
    pub fn upstream_of(&self, id: PeerId) -> Option<&Peer> {
        self.state.chain().zip(self.state.chain().skip(1)).find(|(_, next)| next.id == id).map(|(peer, _)| peer)
    }

    /// State of the PostgreSQL of `id`, if its sitter answers.
    pub fn server(&self, id: PeerId) -> Option<&Server> {
        self.answers.get(&id)?.as_ref().ok().map(|status| &status.local.server)
    }
}

/// Asks the sitters of all `ids` at once.
pub async fn ask_all(ids: impl Iterator<Item = PeerId>) -> anyhow::Result<BTreeMap<PeerId, Answer>> {
    let client = reqwest::Client::builder().timeout(ANSWER_TIMEOUT).no_proxy().build()?;
    let ids: BTreeSet<_> = ids.collect();
    let answers = join_all(ids.iter().map(|id| ask(&client, *id))).await;
    Ok(ids.into_iter().zip(answers).collect())
}

/// The state and its version, or why there is none and what to do.
pub fn valid_state(view: &View, shard: &str) -> anyhow::Result<(Version, Arc<ClusterState>)> {
    match &view.state {
        StateNode::Valid { version, state } => Ok((*version, state.clone())),
        StateNode::Corrupt { problem, .. } => bail!(
            "the state of shard `{shard}` cannot be used: {problem}; see it with `manatee-adm zk-state`, \
             and what to do with `manatee-adm explain`"
        ),
        StateNode::Absent | StateNode::Unread if view.has_history == Some(true) => bail!(
            "the state of shard `{shard}` is lost, though it has a history; no peer will set the shard up anew: \
             see what to do with `manatee-adm explain`"
        ),
        StateNode::Absent | StateNode::Unread => bail!(
            "shard `{shard}` is not set up yet: {} of the 2 peers needed have announced themselves; \
             start the sitters, or see their logs",
            view.active.len()
        ),
    }
}

/// Asks one sitter.
async fn ask(client: &reqwest::Client, id: PeerId) -> Answer {
    // Derived from the id: the state's `backupUrl` may be of another's making.
    let url = format!("{}/status", Peer::new(id, "").backup_url);
    let answer = async { client.get(&url).send().await?.error_for_status()?.json::<SitterStatus>().await };
    answer.await.map_err(|error| innermost(&error))
}

/// The cause at the bottom: "connection refused" says more than "error sending request".
fn innermost(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return format!("no answer within {} s", ANSWER_TIMEOUT.as_secs());
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
pub(super) mod samples {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    use super::*;
    use crate::machine::action::ActionKind;
    use crate::machine::local::{Data, Downstream, Local, PrimaryStatus, Replay, StandbyStatus, SystemIdentifier};
    use crate::report::{DecisionStatus, RoleName, SettingsStatus, ZkStatus};
    use manatee_shared::lsn::Timeline;
    use manatee_shared::lsn::{Lsn, TimelineHistory, WalPosition};
    use manatee_shared::zk::{ActivePeer, Session};

    /// Peer 1 to 5; the names of the first three are those in the manual's example.
    pub(crate) fn peer(number: u8) -> Peer {
        let names = ["bb348824", "a376df2b", "09957297"];
        let name = names
            .get(usize::from(number) - 1)
            .map_or(format!("peer{number}"), |name| format!("{name}-97cd-4c37-9f47-e07bc3e7af53"));
        Peer::new(format!("10.0.0.{number}:5432:12345").parse().unwrap(), name)
    }

    fn downstream(number: u8, sync_priority: u32) -> Downstream {
        let at = |lsn: &str| lsn.parse::<Lsn>().unwrap();
        Downstream {
            peer: peer(number).id,
            streaming: true,
            sent: at("0/671FEDF8"),
            write: at("0/671FEDF8"),
            flush: at("0/671FEDF8"),
            replay: at("0/671FE9F0"),
            sync_priority,
        }
    }

    fn position() -> WalPosition {
        WalPosition { timeline: Timeline(1), lsn: "0/671FEDF8".parse().unwrap() }
    }

    pub(crate) fn standby(downstreams: Vec<Downstream>) -> Server {
        Server::Standby(StandbyStatus {
            received: Some(position()),
            replayed: position().lsn,
            history: TimelineHistory::default(),
            streaming: true,
            upstream_silent_ms: Some(0),
            receiver_stopped: false,
            not_streaming_ms: 0,
            cannot_follow: None,
            receiver_error: None,
            receiver_failure: None,
            replay: Replay::default(),
            downstreams,
        })
    }

    pub(crate) fn answer(server: Server) -> Answer {
        let data = Data::Present(SystemIdentifier("7".to_owned()));
        let local = Local::new(data, server);
        Ok(SitterStatus {
            id: peer(1).id,
            zone_id: peer(1).zone_id,
            shard: "1.moray".parse().unwrap(),
            version: "0.1.0".to_owned(),
            role: RoleName::Unassigned.into(),
            generation: Some(3),
            decision: says("all is well"),
            in_flight: None,
            local,
            zk: ZkStatus { session: Session::Connected.into(), state_version: None, problem: None, active: vec![] },
            last_failure: None,
            settings: SettingsStatus::default(),
            newest_generation: Some(3),
            peers: BTreeMap::new(),
            pending_restart: Vec::new(),
            overridden: Vec::new(),
            weak_commits: Vec::new(),
            breach: None,
            unready: Vec::new(),
            older: false,
            outside_of_dataset: None,
            horizon: None,
            stopping: false,
        })
    }

    /// A decision of a sitter of 0.1.0, which has no code.
    pub(crate) fn says(reason: &str) -> DecisionStatus {
        DecisionStatus {
            action: ActionKind::Wait.into(),
            code: None,
            blocker: None,
            reason: reason.to_owned(),
            since_ms: 0,
        }
    }

    /// The healthy shard of the manual's example.
    pub(crate) fn healthy() -> Cluster {
        let json = serde_json::json!({"generation": 3, "primary": peer(1), "sync": peer(2), "async": [peer(3)],
            "initWal": "0/671FEDF8", "initWalTimeline": 1, "systemIdentifier": "7"});
        let state = Arc::new(ClusterState::parse(json.to_string().as_bytes()).unwrap());
        let active =
            [1, 2, 3].map(|number| (peer(number).id, ActivePeer { sequence: u64::from(number), peer: peer(number) }));
        let primary = Server::Primary(PrimaryStatus { flushed: position(), downstreams: vec![downstream(2, 1)] });
        let servers = [(1, primary), (2, standby(vec![downstream(3, 0)])), (3, standby(vec![]))];
        Cluster {
            zookeeper: "10.0.0.9:2181".to_owned(),
            shard: "1.moray".to_owned(),
            version: 4,
            view: View {
                session: Session::Connected,
                state: StateNode::Valid { version: 4, state: state.clone() },
                active: active.into_iter().collect(),
                has_history: Some(true),
                refused: None,
            },
            state,
            answers: servers.into_iter().map(|(number, server)| (peer(number).id, answer(server))).collect(),
        }
    }

    /// The same with its state changed.
    pub(crate) fn with_state(change: impl FnOnce(&mut ClusterState)) -> Cluster {
        let mut cluster = healthy();
        change(Arc::make_mut(&mut cluster.state));
        cluster
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    use super::samples::*;
    use super::*;

    #[test]
    fn the_chain_has_neighbours() {
        let cluster = healthy();
        assert_eq!(cluster.downstream_of(peer(1).id).map(|peer| peer.id), Some(peer(2).id));
        assert_eq!(cluster.downstream_of(peer(3).id), None);
        assert_eq!(cluster.upstream_of(peer(3).id).map(|peer| peer.id), Some(peer(2).id));
        assert_eq!(cluster.upstream_of(peer(1).id), None);
        assert_eq!(cluster.upstream_of(peer(5).id), None);
    }

    #[test]
    fn peers_are_found_by_whatever_names_one() {
        let cluster = healthy();
        let found = |name| cluster.find(name).map(|(_, peer)| peer.id).map_err(|error| error.to_string());
        for name in ["bb348824-97cd-4c37-9f47-e07bc3e7af53", "bb34", "10.0.0.1:5432:12345", "10.0.0.1"] {
            assert_eq!(found(name), Ok(peer(1).id), "{name}");
        }
        assert!(found("x").unwrap_err().contains("is called `x`; there are: bb348824"));
        assert!(found("").unwrap_err().contains("could be several"));
    }

    #[test]
    fn a_state_that_is_not_there_is_said_with_the_remedy() {
        let message = |state: StateNode, has_history| {
            let view = View { state, has_history: Some(has_history), ..View::unknown() };
            valid_state(&view, "x").unwrap_err().to_string()
        };
        assert!(message(StateNode::Absent, false).starts_with("shard `x` is not set up yet: 0 of the 2 peers"));
        assert!(message(StateNode::Absent, true).contains("is lost, though it has a history"));
        let corrupt = StateNode::Corrupt { version: 1, problem: "there is no sync".to_owned() };
        assert!(message(corrupt, true).starts_with("the state of shard `x` cannot be used: there is no sync; see"));
    }
}
