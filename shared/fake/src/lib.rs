//! A ZooKeeper in memory, for the simulation and for tests: no I/O, no clock, no tasks.
//!
//! One [`FakeZooKeeper`] is shared by several [`FakeSession`]s, one per simulated process. The
//! core is synchronous (`*_now`), so that a simulation in virtual time decides what happens when;
//! a thin [`Coordination`] lies over it. Semantics are those of the real client: compare-and-set,
//! history in the same transaction, writes refused without the own election node, a view that
//! stands still while disconnected, re-registration in a new session.
//!
//! Faults of the network in a single request are the caller's to play: for an answer that is lost,
//! call [`FakeSession::write_now`], [`FakeSession::disconnect`], and report [`ZkError::Unknown`].

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use jiff::Timestamp;
use manatee_shared::cluster::{ClusterState, Peer};
use manatee_shared::zk::{ActivePeer, Coordination, HistoryEntry, Over, Session, StateNode, Version, View, ZkError};
use tokio::sync::watch;

/// The server: what a shard's folder holds, and which sessions are alive.
#[derive(Clone)]
pub struct FakeZooKeeper(Arc<Mutex<Core>>);

struct Core {
    now: Timestamp,
    state: StateNode,
    history: Vec<HistoryEntry>,
    next_sequence: u64,
    next_session: u64,
    /// Election nodes by sequence: (owner, peer).
    election: BTreeMap<u64, (u64, Peer)>,
    sessions: BTreeSet<u64>,
    clients: Vec<Arc<Mutex<Client>>>,
    /// Counts what was published.
    revision: u64,
}

struct Client {
    session: u64,
    wanted: Option<Peer>,
    node: Option<u64>,
    view: watch::Sender<View>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in here panics half-way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for FakeZooKeeper {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeZooKeeper {
    /// An empty one, at the beginning of time.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Core {
            now: Timestamp::UNIX_EPOCH,
            state: StateNode::Absent,
            history: Vec::new(),
            next_sequence: 0,
            next_session: 1,
            election: BTreeMap::new(),
            sessions: BTreeSet::new(),
            clients: Vec::new(),
            revision: 0,
        })))
    }

    /// Sets the time that new history entries carry.
    pub fn set_time(&self, now: Timestamp) {
        lock(&self.0).now = now;
    }

    /// A new process's client, not connected yet.
    pub fn session(&self) -> FakeSession {
        let client = Client { session: 0, wanted: None, node: None, view: watch::Sender::new(View::unknown()) };
        let client = Arc::new(Mutex::new(client));
        lock(&self.0).clients.push(client.clone());
        FakeSession { server: self.clone(), client }
    }

    /// The `state` node as it is.
    pub fn state(&self) -> StateNode {
        lock(&self.0).state.clone()
    }

    /// Rises whenever anything changed that a client could see: cheaper to ask for than a view.
    pub fn revision(&self) -> u64 {
        lock(&self.0).revision
    }

    /// The history entries after the first `count`.
    pub fn history_after(&self, count: usize) -> Vec<HistoryEntry> {
        lock(&self.0).history.get(count..).unwrap_or_default().to_vec()
    }

    /// Everything ever written.
    pub fn history_now(&self) -> Vec<HistoryEntry> {
        lock(&self.0).history.clone()
    }

    /// Peers with an election node.
    pub fn active(&self) -> BTreeMap<manatee_shared::ids::PeerId, ActivePeer> {
        lock(&self.0).active()
    }

    /// Somebody else's hand: replaces the state past all rules, without history.
    pub fn tamper(&self, state: StateNode) {
        let mut core = lock(&self.0);
        core.state = state;
        core.publish();
    }

    /// Somebody else's hand: removes the state and, if `history_too`, all traces that the shard ever was.
    pub fn wipe(&self, history_too: bool) {
        let mut core = lock(&self.0);
        core.state = StateNode::Absent;
        if history_too {
            core.history.clear();
        }
        core.publish();
    }
}

impl Core {
    fn active(&self) -> BTreeMap<manatee_shared::ids::PeerId, ActivePeer> {
        // In rising order, so that the highest sequence of a peer stays.
        let entries = self.election.iter();
        entries.map(|(&sequence, (_, peer))| (peer.id, ActivePeer { sequence, peer: peer.clone() })).collect()
    }

    fn view(&self, session: Session) -> View {
        View {
            session,
            state: self.state.clone(),
            active: self.active(),
            has_history: Some(!self.history.is_empty()),
            refused: None,
        }
    }

    /// Shows the present to every connected client.
    fn publish(&mut self) {
        self.revision += 1;
        // Clients of processes that are gone.
        self.clients.retain(|client| Arc::strong_count(client) > 1);
        for client in &self.clients {
            let client = lock(client);
            if client.view.borrow().session == Session::Connected {
                client.show(self.view(Session::Connected));
            }
        }
    }

    fn register(&mut self, client: &mut Client) {
        let Some(peer) = client.wanted.clone() else { return };
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.election.retain(|_, (_, other)| other.id != peer.id);
        self.election.insert(sequence, (client.session, peer));
        client.node = Some(sequence);
    }

    fn end_session(&mut self, session: u64) {
        self.sessions.remove(&session);
        self.election.retain(|_, (owner, _)| *owner != session);
    }
}

impl Client {
    fn show(&self, view: View) {
        self.view.send_if_modified(|shown| {
            let changed = *shown != view;
            *shown = view;
            changed
        });
    }

    fn link(&self) -> Session {
        self.view.borrow().session
    }

    fn set_link(&self, session: Session) {
        let view = View { session, ..self.view.borrow().clone() };
        self.show(view);
    }

    fn require_connected(&self) -> Result<(), ZkError> {
        match self.link() {
            Session::Connected => Ok(()),
            _ => Err(ZkError::Unknown("not connected".to_owned())),
        }
    }
}

/// One process's client.
#[derive(Clone)]
pub struct FakeSession {
    server: FakeZooKeeper,
    client: Arc<Mutex<Client>>,
}

impl FakeSession {
    /// The newest view, as [`Coordination::view`] shows it.
    pub fn view_now(&self) -> View {
        lock(&self.client).view.borrow().clone()
    }

    /// The session as the newest view shows it.
    pub fn link(&self) -> Session {
        lock(&self.client).link()
    }

    /// The network lets us through. Takes up the session if it still lives (and a first one if
    /// there was none yet); shows `Expired` if it does not, and opens a new one at the next call.
    pub fn connect(&self) {
        let mut core = lock(&self.server.0);
        {
            let mut client = lock(&self.client);
            if client.session != 0 && !core.sessions.contains(&client.session) && client.link() != Session::Expired {
                client.node = None;
                client.set_link(Session::Expired);
                return;
            }
            if !core.sessions.contains(&client.session) {
                client.session = core.next_session;
                core.next_session += 1;
                core.sessions.insert(client.session);
                core.register(&mut client);
            }
            client.show(core.view(Session::Connected));
        }
        core.publish();
    }

    /// The network is gone: the view stands still. The session lives on until [`Self::expire`].
    pub fn disconnect(&self) {
        let client = lock(&self.client);
        if client.link() == Session::Connected {
            client.set_link(Session::Disconnected);
        }
    }

    /// The server gives the session up: the election node goes. We learn of it at once if
    /// connected, else at the next [`Self::connect`].
    pub fn expire(&self) {
        let mut core = lock(&self.server.0);
        {
            let mut client = lock(&self.client);
            core.end_session(client.session);
            if client.link() == Session::Connected {
                client.node = None;
                client.set_link(Session::Expired);
            }
        }
        core.publish();
    }

    /// [`Coordination::join`], now.
    pub fn join_now(&self, peer: Peer) -> Result<(), ZkError> {
        let mut core = lock(&self.server.0);
        {
            let mut client = lock(&self.client);
            client.wanted = Some(peer);
            client.require_connected()?;
            core.register(&mut client);
        }
        core.publish();
        Ok(())
    }

    /// [`Coordination::leave`], now.
    pub fn leave_now(&self) -> Result<(), ZkError> {
        let mut core = lock(&self.server.0);
        {
            let mut client = lock(&self.client);
            client.wanted = None;
            client.require_connected()?;
            if let Some(sequence) = client.node.take() {
                core.election.remove(&sequence);
            }
        }
        core.publish();
        Ok(())
    }

    /// [`Coordination::write_state`], now.
    pub fn write_now(&self, over: Over, state: &ClusterState) -> Result<Version, ZkError> {
        let mut core = lock(&self.server.0);
        {
            let client = lock(&self.client);
            client.require_connected()?;
            let registered = client.node.is_some_and(|sequence| core.election.contains_key(&sequence));
            if client.wanted.is_some() && !registered {
                return Err(ZkError::NotRegistered);
            }
        }
        let current = match &core.state {
            StateNode::Unread | StateNode::Absent => None,
            StateNode::Valid { version, .. } | StateNode::Corrupt { version, .. } => Some(*version),
        };
        if current != over.version() || (over == Over::Nothing && !core.history.is_empty()) {
            return Err(ZkError::Conflict);
        }
        let version = current.map_or(0, |version| version + 1);
        core.state = StateNode::Valid { version, state: Arc::new(state.clone()) };
        let entry = HistoryEntry { zk_sequence: core.history.len() as u64, time: core.now, state: state.clone() };
        core.history.push(entry);
        core.publish();
        Ok(version)
    }

    /// [`Coordination::history`], now.
    pub fn read_history_now(&self) -> Result<Vec<HistoryEntry>, ZkError> {
        lock(&self.client).require_connected()?;
        Ok(self.server.history_now())
    }

    /// [`Coordination::close`], now; also what becomes of a process that ends in an orderly way.
    /// A process that dies is [`Self::disconnect`] and, later, [`Self::expire`].
    pub fn close_now(&self) {
        let mut core = lock(&self.server.0);
        {
            let mut client = lock(&self.client);
            core.end_session(client.session);
            (client.session, client.node, client.wanted) = (0, None, None);
            client.set_link(Session::Disconnected);
        }
        core.publish();
    }
}

#[async_trait]
impl Coordination for FakeSession {
    fn view(&self) -> watch::Receiver<View> {
        lock(&self.client).view.subscribe()
    }

    async fn join(&self, peer: Peer) -> Result<(), ZkError> {
        self.join_now(peer)
    }

    async fn leave(&self) -> Result<(), ZkError> {
        self.leave_now()
    }

    async fn write_state(&self, over: Over, state: &ClusterState) -> Result<Version, ZkError> {
        self.write_now(over, state)
    }

    async fn history(&self) -> Result<Vec<HistoryEntry>, ZkError> {
        self.read_history_now()
    }

    async fn close(&self) {
        self.close_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use manatee_shared::lsn::Lsn;

    fn peer(number: u8) -> Peer {
        Peer::new(format!("10.0.0.{number}:5432:12345").parse().expect("id"), format!("peer{number}"))
    }

    fn state(generation: u64) -> ClusterState {
        ClusterState {
            generation,
            primary: peer(1),
            sync_peer: Some(peer(2)),
            async_peers: vec![],
            deposed: vec![],
            init_wal: Lsn::ZERO,
            init_wal_timeline: None,
            freeze: None,
            one_node_write_mode: false,
            promote: None,
            system_identifier: None,
            reason: None,
            extra: Default::default(),
        }
    }

    fn two() -> (FakeZooKeeper, FakeSession, FakeSession) {
        let server = FakeZooKeeper::new();
        let (one, two) = (server.session(), server.session());
        for (session, number) in [(&one, 1), (&two, 2)] {
            session.connect();
            session.join_now(peer(number)).expect("join");
        }
        (server, one, two)
    }

    #[test]
    fn writes_compare_and_set_with_history_and_everyone_sees_them() {
        let (server, one, two) = two();
        assert_eq!(two.view_now().has_history, Some(false));
        assert_eq!(one.write_now(Over::Nothing, &state(1)).expect("first"), 0);
        assert!(matches!(two.write_now(Over::Nothing, &state(1)), Err(ZkError::Conflict)));
        assert_eq!(two.write_now(Over::Version(0), &state(2)).expect("second"), 1);
        assert_eq!(one.view_now().state.valid().map(|(version, _)| version), Some(1));
        assert_eq!(one.view_now().has_history, Some(true));
        let entries = server.history_now();
        assert_eq!(
            entries.iter().map(|entry| (entry.zk_sequence, entry.state.generation)).collect::<Vec<_>>(),
            [(0, 1), (1, 2)]
        );
    }

    #[test]
    fn a_first_state_is_not_written_over_a_history() {
        let (server, one, two) = two();
        one.write_now(Over::Nothing, &state(1)).expect("first");
        server.wipe(false);
        assert!(matches!(two.write_now(Over::Nothing, &state(1)), Err(ZkError::Conflict)));
        assert_eq!(two.write_now(Over::Lost, &state(1)).expect("restored"), 0);
        server.wipe(true);
        assert_eq!(two.write_now(Over::Nothing, &state(1)).expect("no trace is left"), 0);
    }

    #[test]
    fn a_session_expires_unseen_and_a_new_one_registers_again() {
        let (_, one, two) = two();
        one.disconnect();
        assert_eq!(two.view_now().active.len(), 2);
        one.expire();
        assert_eq!((one.view_now().session, one.view_now().active.len()), (Session::Disconnected, 2));
        assert_eq!(two.view_now().active.len(), 1);
        assert!(matches!(one.write_now(Over::Nothing, &state(1)), Err(ZkError::Unknown(_))));
        one.connect();
        assert_eq!(one.view_now().session, Session::Expired);
        one.connect();
        assert_eq!(one.view_now().session, Session::Connected);
        let order: Vec<_> = two.view_now().in_election_order().iter().map(|active| active.peer.id).collect();
        assert_eq!(order, [peer(2).id, peer(1).id], "at the end of the queue");
    }

    #[test]
    fn without_the_own_election_node_nothing_is_written() {
        let (server, one, two) = two();
        let twin = server.session();
        twin.connect();
        twin.join_now(peer(1)).expect("join");
        assert!(matches!(one.write_now(Over::Nothing, &state(1)), Err(ZkError::NotRegistered)));
        two.leave_now().expect("leave");
        assert_eq!(two.write_now(Over::Nothing, &state(1)).expect("never joined may write"), 0);
    }
}
