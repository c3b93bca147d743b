//! The keeper: opens sessions one after the other and keeps the view current in each.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use zookeeper_client::{
    AddWatchMode, Client, CreateMode, Error, EventType, PersistentWatcher, SessionState, WatchedEvent,
};

use super::rehearsal::{self, Rights, Writes};
use super::{CLOSE_TIMEOUT, Problem, Shared, nodes};
use crate::cluster::{ClusterState, Peer};
use crate::zk::{ActivePeer, Session, StateNode, ZkError};

/// Pause between attempts to open a session: short, because a restarted ZooKeeper should be found
/// at once, and cheap, because there are few peers.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Interval of reading everything again although no watch has fired.
const SAFETY_NET: Duration = Duration::from_secs(1);

/// Runs until told to stop. Owns the session.
pub(super) async fn keep(shared: Arc<Shared>) {
    let mut complained = false;
    while !shared.stop.is_cancelled() {
        let cluster = shared.settings.ensemble();
        let connecting = shared.access.connect(&shared.settings);
        // A connection given up half-way is closed by being dropped.
        let Some(connected) = shared.stop.run_until_cancelled(connecting).await else { return };
        match connected {
            Ok(client) => {
                complained = false;
                tracing::info!(
                    ensemble = cluster,
                    session = %client.session_id(),
                    timeout = ?client.session_timeout(),
                    "ZooKeeper session opened"
                );
                // In a task of its own: the client library's panics must count as an expiry, not
                // end the keeper.
                let session = tokio::spawn(Keeper::run(shared.clone(), client));
                if let Err(error) = session.await {
                    tracing::error!(%error, "the ZooKeeper session's task failed");
                }
                end_session(&shared);
            }
            Err(error) => {
                let problem = describe(&error);
                if !complained {
                    tracing::warn!(ensemble = cluster, problem, "cannot reach ZooKeeper; trying on");
                    complained = true;
                }
                shared.update(|live| live.problem = Problem::Away(problem));
            }
        }
        shared.stop.run_until_cancelled(tokio::time::sleep(RETRY_PAUSE)).await;
    }
}

/// The library's errors in words for operators.
fn describe(error: &Error) -> String {
    match error {
        Error::NoHosts => "no server answers".to_owned(),
        Error::Timeout => "no server answered in time".to_owned(),
        Error::AuthFailed => super::REFUSED.to_owned(),
        error => error.to_string(),
    }
}

fn problem(error: &ZkError) -> Problem {
    match error {
        ZkError::Denied(_) => Problem::Denied,
        error => Problem::Away(error.to_string()),
    }
}

/// Forgets the session. Whoever still holds a clone of the client keeps it for one operation only.
fn end_session(shared: &Shared) {
    let expired = !shared.stop.is_cancelled();
    shared.update(|live| {
        live.client = None;
        live.registered = None;
        live.link = if expired { Session::Expired } else { Session::Disconnected };
        live.problem = "the session is over".into();
    });
    if expired {
        tracing::warn!("the ZooKeeper session is over; opening a new one");
    }
}

/// One session.
struct Keeper {
    shared: Arc<Shared>,
    client: Client,
    /// Election nodes already read: their content never changes.
    known: HashMap<String, ActivePeer>,
    /// The wish of the caller has not been carried out yet.
    unsettled: bool,
    /// The server may lag behind its leader: first connection, or another server than before.
    unsynced: bool,
    /// As last read.
    rights: Rights,
    /// The last rehearsal: with which rights, and when.
    rehearsed: Option<(Rights, Instant)>,
}

/// Whether the session goes on.
enum Next {
    Continue,
    Over,
}

impl Keeper {
    async fn run(shared: Arc<Shared>, client: Client) {
        let mut states = client.state_watcher();
        let keeper = Self {
            shared: shared.clone(),
            client,
            known: HashMap::new(),
            unsettled: true,
            unsynced: true,
            rights: Rights::default(),
            rehearsed: None,
        };
        if shared.stop.run_until_cancelled(keeper.serve()).await.is_none() {
            // Told to stop: `serve`'s clone of the client went with it. The last one gone, the
            // session is closed, which is worth a short wait: others then see us leave at once.
            shared.update(|live| live.client = None);
            let closed = async { while !states.changed().await.is_terminated() {} };
            let _ = timeout(CLOSE_TIMEOUT, closed).await;
        }
    }

    async fn serve(mut self) {
        // The folder need not exist: such a watch is on a path, not on a node.
        let watch = self.client.watch(&self.shared.paths.shard, AddWatchMode::PersistentRecursive);
        let mut watcher = match timeout(self.shared.operation_timeout(), watch).await {
            Ok(Ok(watcher)) => watcher,
            Ok(Err(error)) => return tracing::warn!(%error, "cannot watch the shard; is ZooKeeper older than 3.6?"),
            Err(_) => return tracing::warn!("ZooKeeper accepted a session, but does not answer"),
        };
        self.shared.update(|live| live.client = Some(self.client.clone()));
        let mut wanted = self.shared.wanted.subscribe();
        let mut ticks = interval(SAFETY_NET);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Each branch is cancel-safe: a channel's `recv`, a watch's `changed`, an interval's tick.
            let next = tokio::select! {
                event = watcher.changed() => self.handle(event, &mut watcher).await,
                changed = wanted.changed() => {
                    self.unsettled = true;
                    if changed.is_err() { Next::Over } else { self.refresh().await }
                }
                _ = ticks.tick() => self.refresh().await,
            };
            if let Next::Over = next {
                // The client goes before the watcher, which would otherwise ask for its removal.
                drop(self);
                return;
            }
        }
    }

    /// Takes `event` and all that wait behind it together: one reading answers them all.
    async fn handle(&mut self, event: WatchedEvent, watcher: &mut PersistentWatcher) -> Next {
        let mut newest = Some(event);
        let mut nodes_changed = false;
        let mut link = None;
        while let Some(event) = newest {
            match (event.event_type, event.session_state) {
                (EventType::Session, state) if state.is_terminated() => return Next::Over,
                (EventType::Session, state) => link = Some(state),
                _ => nodes_changed = true,
            }
            newest = watcher.changed().now_or_never();
        }
        match link {
            Some(SessionState::Disconnected) => {
                tracing::warn!("connection to ZooKeeper lost; reconnecting");
                self.shared.update(|live| {
                    live.link = Session::Disconnected;
                    live.problem = "the connection was lost".into();
                });
                Next::Continue
            }
            Some(_) => {
                // What is shown must be current before it is called connected.
                self.shared.update(|live| live.link = Session::Disconnected);
                (self.unsynced, self.rehearsed) = (true, None);
                self.refresh().await
            }
            None if nodes_changed => self.refresh().await,
            None => Next::Continue,
        }
    }

    /// Carries out a pending wish and reads everything. Only what was read is ever called connected.
    async fn refresh(&mut self) -> Next {
        if self.client.state() == SessionState::Disconnected {
            // Requests would only queue up; the reconnection is an event of its own.
            return Next::Continue;
        }
        if self.unsynced {
            let sync = self.client.sync(&self.shared.paths.shard);
            if let Err(error) = self.shared.bounded(sync).await {
                // Lost again, or a server that hangs; the next event or tick tries again.
                tracing::debug!(%error, "cannot sync with ZooKeeper's leader");
                return Next::Continue;
            }
            self.unsynced = false;
        }
        if self.unsettled {
            let wanted = self.shared.wanted.borrow().clone();
            let started = Instant::now();
            match self.settle(wanted).await {
                Ok(()) => self.unsettled = false,
                Err(error) => {
                    tracing::warn!(%error, after = ?started.elapsed(), "cannot change our election node yet; trying on");
                    if let ZkError::Denied(_) = error {
                        let election = &self.shared.paths.election;
                        self.shared.show_refused(Some(format!(
                            "ZooKeeper does not let us register under {election}: {error}"
                        )));
                    }
                    self.shared.update(|live| live.problem = problem(&error));
                }
            }
        }
        match self.read_all().await {
            Ok(()) => {
                if self.shared.live.borrow().link != Session::Connected {
                    tracing::info!("ZooKeeper is connected");
                    self.shared.update(|live| live.link = Session::Connected);
                }
                self.rehearse().await;
            }
            Err(error) => {
                // Asked again every second: said once, until something else is the matter.
                let problem = problem(&error);
                if problem == Problem::Denied && self.shared.live.borrow().problem != problem {
                    tracing::error!(%error, "cannot read the shard from ZooKeeper");
                } else {
                    tracing::debug!(%error, "cannot read the shard from ZooKeeper");
                }
                if problem == Problem::Denied {
                    self.shared.show_refused(Some(format!("ZooKeeper does not let us read the shard: {error}")));
                    // What is shown is not kept current any more.
                    self.shared.update(|live| live.link = Session::Disconnected);
                    self.rehearsed = None;
                }
                self.shared.update(|live| live.problem = problem);
            }
        }
        Next::Continue
    }

    /// Finds out whether ZooKeeper would take what a takeover writes, if that may have changed.
    async fn rehearse(&mut self) {
        let shared = self.shared.clone();
        let registered = shared.live.borrow().registered.clone();
        let state = shared.view.borrow().state.valid().map(|(version, state)| (version, state.clone()));
        let (Some((peer, node)), Some((version, state))) = (registered, state) else { return };
        let fresh = |(rights, at): &(Rights, Instant)| *rights == self.rights && at.elapsed() < rehearsal::PERIOD;
        if self.rehearsed.as_ref().is_some_and(fresh) {
            return;
        }
        let writes = Writes {
            node: &node,
            announcement: nodes::announcement(&peer),
            election_prefix: shared.paths.election_prefix(peer.id),
            version,
            state: state.to_json(),
            history_prefix: shared.paths.history_prefix(state.generation),
        };
        match rehearsal::rehearse(&shared, &self.client, &writes).await {
            Ok(refused) => {
                self.rehearsed = Some((self.rights, Instant::now()));
                shared.show_refused(refused);
            }
            // Tried again with the next reading.
            Err(error) => tracing::debug!(%error, "whether ZooKeeper takes what a takeover writes is not known"),
        }
    }

    async fn read_all(&mut self) -> Result<(), ZkError> {
        let shared = self.shared.clone();
        let paths = &shared.paths;
        // All requests leave together, as the futures are made.
        let (ticket, (state, election, history)) = shared.order.sending(|| {
            let client = &self.client;
            (client.get_data(&paths.state), client.get_children(&paths.election), client.check_stat(&paths.history))
        });
        let (state, state_rights) = match shared.bounded(state.map(Ok)).await? {
            Ok((data, stat)) => (parse(stat.version, &data, &shared), rehearsal::rights(Some(&stat))),
            Err(Error::NoNode) => (StateNode::Absent, None),
            Err(error) => return Err(super::zk_error(error)),
        };
        let (names, election_rights) = match shared.bounded(election.map(Ok)).await? {
            Ok((names, stat)) => (names, rehearsal::rights(Some(&stat))),
            Err(Error::NoNode) => (Vec::new(), None),
            Err(error) => return Err(super::zk_error(error)),
        };
        let history = shared.bounded(history).await?;
        let has_history = history.as_ref().is_some_and(|stat| stat.num_children > 0);
        self.rights = [state_rights, election_rights, rehearsal::rights(history.as_ref())];
        self.read_election(&names).await?;
        self.notice_lost_registration(&names);

        let mut active = std::collections::BTreeMap::new();
        for peer in self.known.values() {
            let newest = active.entry(peer.peer.id).or_insert_with(|| peer.clone());
            if newest.sequence < peer.sequence {
                *newest = peer.clone();
            }
        }
        shared.view.send_if_modified(|view| {
            let changed = view.active != active || view.has_history != Some(has_history);
            view.active = active;
            view.has_history = Some(has_history);
            changed
        });
        shared.show_state(ticket, state);
        Ok(())
    }

    /// Makes `known` what `names` lists.
    async fn read_election(&mut self, names: &[String]) -> Result<(), ZkError> {
        self.known.retain(|name, _| names.contains(name));
        let new: Vec<_> = names
            .iter()
            .filter(|name| nodes::election_node(name).is_some() && !self.known.contains_key(*name))
            .map(|name| (name, format!("{}/{name}", self.shared.paths.election)))
            .collect();
        let reads: Vec<_> = new.iter().map(|(_, path)| self.client.get_data(path)).collect();
        let mut found = Vec::new();
        for ((name, _), read) in new.iter().zip(reads) {
            match self.shared.bounded(read.map(Ok)).await? {
                Ok((data, _)) => found.extend(nodes::active_peer(name, &data).map(|peer| ((*name).clone(), peer))),
                // Gone since it was listed.
                Err(Error::NoNode) => {}
                Err(error) => return Err(super::zk_error(error)),
            }
        }
        self.known.extend(found);
        Ok(())
    }

    /// Somebody else removed our node: another sitter with our id, or an operator. It is not
    /// re-created in this session unless the caller joins again, lest two sitters fight for ever.
    fn notice_lost_registration(&self, names: &[String]) {
        let path = self.shared.live.borrow().registered.as_ref().map(|(_, path)| path.clone());
        let Some(path) = path else { return };
        if !names.iter().any(|name| path.ends_with(&format!("/{name}"))) {
            tracing::warn!(node = path, "somebody removed our election node");
            self.shared.update(|live| live.registered = None);
        }
    }

    /// Makes our election node what the caller wants.
    async fn settle(&mut self, wanted: Option<Peer>) -> Result<(), ZkError> {
        let registered = self.shared.live.borrow().registered.clone();
        match (wanted, registered) {
            (Some(peer), Some((registered, _))) if peer == registered => Ok(()),
            (Some(peer), other) => {
                if let Some((other, path)) = other.filter(|(other, _)| other.id != peer.id) {
                    self.unregister(&other, &path).await?;
                }
                let path = self.register(&peer).await?;
                tracing::info!(node = path, "registered in the election");
                self.shared.update(|live| live.registered = Some((peer, path)));
                Ok(())
            }
            (None, Some((peer, path))) => {
                self.unregister(&peer, &path).await?;
                tracing::info!(node = path, "left the election");
                self.shared.update(|live| live.registered = None);
                Ok(())
            }
            (None, None) => Ok(()),
        }
    }

    /// Announces `peer`, and then removes what other sessions left of it. An earlier attempt of this
    /// session that came through unnoticed is taken over.
    async fn register(&mut self, peer: &Peer) -> Result<String, ZkError> {
        let shared = self.shared.clone();
        let paths = &shared.paths;
        for folder in [&paths.election, &paths.history] {
            let options = CreateMode::Persistent.with_acls(shared.access.acls());
            shared.bounded(self.client.mkdir(folder, &options)).await?;
        }
        let prefix = paths.election_prefix(peer.id);
        let (mut ours, mut stale) = (Vec::new(), Vec::new());
        for path in self.nodes_of(peer).await? {
            let stat = shared.bounded(self.client.check_stat(&path)).await?;
            let owner = stat.map_or(0, |stat| stat.ephemeral_owner);
            if owner == self.client.session_id().0 { &mut ours } else { &mut stale }.push(path);
        }
        let data = nodes::announcement(peer);
        let path = match ours.pop() {
            Some(path) => {
                shared.bounded(self.client.set_data(&path, &data, None)).await?;
                self.known.retain(|name, _| !path.ends_with(&format!("/{name}")));
                path
            }
            None => {
                let options = CreateMode::EphemeralSequential.with_acls(shared.access.acls());
                let (_, sequence) = shared.bounded(self.client.create(&prefix, &data, &options)).await?;
                format!("{prefix}{sequence}")
            }
        };
        stale.append(&mut ours);
        for path in stale {
            tracing::info!(node = path, "removing an election node that an earlier process of this peer left");
            self.delete(&path).await?;
        }
        Ok(path)
    }

    async fn unregister(&mut self, peer: &Peer, path: &str) -> Result<(), ZkError> {
        self.delete(path).await?;
        // What attempts to register that seemed to fail may have left.
        for path in self.nodes_of(peer).await? {
            let stat = self.shared.bounded(self.client.check_stat(&path)).await?;
            if stat.is_some_and(|stat| stat.ephemeral_owner == self.client.session_id().0) {
                self.delete(&path).await?;
            }
        }
        Ok(())
    }

    /// Paths of the peer's election nodes, oldest first.
    async fn nodes_of(&self, peer: &Peer) -> Result<Vec<String>, ZkError> {
        let folder = &self.shared.paths.election;
        let mut names: Vec<_> = self
            .shared
            .bounded(self.client.list_children(folder))
            .await?
            .into_iter()
            .filter_map(|name| Some((nodes::election_node(&name)?, name)))
            .filter(|((id, _), _)| *id == peer.id)
            .map(|((_, sequence), name)| (sequence, format!("{folder}/{name}")))
            .collect();
        names.sort();
        Ok(names.into_iter().map(|(_, path)| path).collect())
    }

    async fn delete(&self, path: &str) -> Result<(), ZkError> {
        match self.shared.bounded(self.client.delete(path, None).map(Ok)).await? {
            Ok(()) | Err(Error::NoNode) => Ok(()),
            Err(error) => Err(super::zk_error(error)),
        }
    }
}

/// Content of the `state` node; what is shown already is not parsed again.
fn parse(version: i32, data: &[u8], shared: &Shared) -> StateNode {
    match ClusterState::parse(data) {
        Ok(state) => {
            let state = Arc::new(state);
            // Keep the very same state where nothing changed, so that readers can compare cheaply.
            match shared.view.borrow().state.valid() {
                Some((shown, same)) if shown == version && *same == state => {
                    StateNode::Valid { version, state: same.clone() }
                }
                _ => StateNode::Valid { version, state },
            }
        }
        Err(error) => {
            let source = std::error::Error::source(&error).map_or(String::new(), |source| format!(": {source}"));
            StateNode::Corrupt { version, problem: format!("{error}{source}") }
        }
    }
}
