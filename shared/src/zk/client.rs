//! The real ZooKeeper client: one shard as seen by one process.
//!
//! A *keeper* task owns the session: it connects, registers the election node, keeps the view
//! current and opens a new session after an expiry, for ever. Operations run in the callers' tasks
//! on a clone of the session's client; only writes of the state get a task of their own
//! ([`write`]), because their outcome matters even if the caller has stopped waiting.
//!
//! The view stays current by one recursive persistent watch on the shard's folder (which need
//! not exist yet) tells that something changed; everything is then read again, all requests in one
//! go. Persistent watches can lose events across a reconnection, so everything is also read after
//! each, and once a second as a safety net. A new session may land on a server that lags behind,
//! so it syncs with the leader first. Needs ZooKeeper 3.6 or later.

mod access;
mod nodes;
mod rehearsal;
mod session;
mod write;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use zookeeper_client::{Client, Error};

use super::{Coordination, HistoryEntry, Over, Session, StateNode, Version, View, ZkError};
use crate::cluster::{ClusterState, Peer};
use crate::config::ZkSettings;
use crate::ids::ShardName;
use access::Access;
use nodes::Paths;

/// Number of history entries that are asked for at once.
const HISTORY_BATCH: usize = 100;

/// Longest wait of [`Coordination::close`] for the server's word.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Settings that can never work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`zookeeper.{key}`: {problem}")]
pub struct ConnectError {
    key: &'static str,
    problem: String,
}

/// The shard could not be read in the time given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreachable {
    /// No session.
    #[error(
        "ZooKeeper at {ensemble} cannot be reached: {problem}; \
         check that it runs, and the addresses under `zookeeper.servers` (manatee-adm: --zk)"
    )]
    Away {
        /// Its addresses.
        ensemble: String,
        /// Problem.
        problem: String,
    },
    /// A session, but no right to read.
    #[error("ZooKeeper at {ensemble}: {DENIED}")]
    Denied {
        /// Its addresses.
        ensemble: String,
    },
}

/// `NOAUTH`: what there is was created by another user, or we say none.
const DENIED: &str =
    "access denied: the shard's nodes are another user's; check `zookeeper.auth_file` (manatee-adm: --config)";

/// `AUTHFAILED`, or a session without a user where one is asked for.
const REFUSED: &str = "it does not take who we say we are; check `zookeeper.auth_file` and `zookeeper.auth_scheme`";

/// A shard in a real ZooKeeper. Dropping it ends the session.
pub struct ZkCoordination {
    shared: Arc<Shared>,
    keeper: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

/// State that the keeper, the writes and the callers share.
struct Shared {
    settings: ZkSettings,
    access: Access,
    paths: Paths,
    view: watch::Sender<View>,
    live: watch::Sender<Live>,
    /// Peer to announce. Set by callers, acted on by the keeper.
    wanted: watch::Sender<Option<Peer>>,
    /// One write at a time: the next is decided from the outcome of the last.
    writing: Arc<tokio::sync::Mutex<()>>,
    order: Order,
    stop: CancellationToken,
}

/// The session as it is; the keeper's, but for `write`.
#[derive(Clone)]
struct Live {
    /// None between sessions.
    client: Option<Client>,
    link: Session,
    /// Our election node in this session, and whom it announces.
    registered: Option<(Peer, String)>,
    write: WriteInFlight,
    /// Reason why there is no connection.
    problem: Problem,
}

/// Reason why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Problem {
    #[error("{0}")]
    Away(String),
    #[error("{DENIED}")]
    Denied,
}

impl From<&str> for Problem {
    fn from(problem: &str) -> Self {
        Self::Away(problem.to_owned())
    }
}

/// Whether a write of ours may still come true although nobody waits for it any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WriteInFlight {
    None,
    Awaited,
    /// Until this is settled the view says `Disconnected`, so that nothing is decided on it.
    InDoubt,
}

/// Keeps the shown state from going back in time. A session answers in the order of its requests,
/// so each request gets a ticket as it is sent, and an answer older than the newest shown is dropped.
#[derive(Default)]
struct Order(Mutex<(u64, u64)>);

impl Order {
    /// Sends by `send` and returns the ticket with what it returned.
    fn sending<T>(&self, send: impl FnOnce() -> T) -> (u64, T) {
        let mut order = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        order.0 += 1;
        (order.0, send())
    }

    /// Calls `show` unless something newer has been shown.
    fn showing(&self, ticket: u64, show: impl FnOnce()) {
        let mut order = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if ticket > order.1 {
            order.1 = ticket;
            show();
        }
    }
}

impl Shared {
    /// Changes what is known of the session, and shows it.
    fn update(&self, change: impl FnOnce(&mut Live)) {
        let mut session = Session::Disconnected;
        self.live.send_modify(|live| {
            change(live);
            session = match live.write {
                WriteInFlight::InDoubt => Session::Disconnected,
                WriteInFlight::None | WriteInFlight::Awaited => live.link,
            };
            // Shown while `live` is locked, so that two changes are shown in their order.
            self.view.send_if_modified(|view| {
                let changed = view.session != session;
                view.session = session;
                changed
            });
        });
    }

    fn show_state(&self, ticket: u64, state: StateNode) {
        self.order.showing(ticket, || {
            self.view.send_if_modified(|view| {
                let changed = view.state != state;
                view.state = state;
                changed
            });
        });
    }

    /// Shows what ZooKeeper refuses, and logs it when it changes.
    fn show_refused(&self, refused: Option<String>) {
        self.view.send_if_modified(|view| {
            let changed = view.refused != refused;
            match (&view.refused, &refused) {
                (None, None) => {}
                (Some(before), None) => tracing::info!(before, "ZooKeeper takes what a takeover writes again"),
                (_, Some(refused)) if changed => {
                    tracing::error!(refused, "not ready for a takeover: ZooKeeper's rights")
                }
                (_, Some(_)) => {}
            }
            view.refused = refused;
            changed
        });
    }

    /// The session's client, if operations have a chance.
    fn connected(&self) -> Result<Client, ZkError> {
        let live = self.live.borrow();
        match (&live.client, live.link) {
            (Some(client), Session::Connected) => Ok(client.clone()),
            _ => Err(ZkError::Unknown(format!("not connected: {}", live.problem))),
        }
    }

    /// Bound on an operation: after this the session is over anyway.
    fn operation_timeout(&self) -> Duration {
        self.settings.session_timeout
    }

    /// Waits for `operation`, bounded. Safe to give up on reads at any point; of the writes only
    /// those that may as well happen late go through here.
    async fn bounded<T>(&self, operation: impl Future<Output = Result<T, Error>>) -> Result<T, ZkError> {
        match tokio::time::timeout(self.operation_timeout(), operation).await {
            Ok(result) => result.map_err(zk_error),
            Err(_) => Err(ZkError::Unknown(format!("nothing within {:?}", self.operation_timeout()))),
        }
    }
}

/// Whether `error` is the server's own answer, which says that the request was not carried out and will not be.
///
/// Everything else is doubtful: the client library fails the requests under way with whatever ended their
/// connection. Only an orderly end of file is `ConnectionLoss`; silence and a reset are `Custom`, an answer that cannot be
/// read is `UnmarshalError` or `UnexpectedError`, and `AuthFailed`, `NoHosts`, `Timeout`, `SessionExpired`, `SessionMoved` and
/// `ClientClosed` may be about the session's end after the request was sent. A code that this library does not know says nothing
/// either; nor will an error that it learns later.
fn is_refusal(error: &Error) -> bool {
    matches!(
        error,
        Error::BadArguments(_)
            | Error::BadVersion
            | Error::InvalidAcl
            | Error::MarshallingError
            | Error::NoAuth
            | Error::NoChildrenForEphemerals
            | Error::NoNode
            | Error::NoWatcher
            | Error::NodeExists
            | Error::NotEmpty
            | Error::NotReadOnly
            | Error::QuotaExceeded
            | Error::ReconfigDisabled
            // Turned away before it is looked at (`PrepRequestProcessor`).
            | Error::Throttled
            | Error::Unimplemented
    )
}

fn zk_error(error: Error) -> ZkError {
    match error {
        Error::NoAuth => ZkError::Denied(DENIED),
        Error::AuthFailed => ZkError::Denied(REFUSED),
        error if is_refusal(&error) => ZkError::Refused(error.to_string()),
        error => ZkError::Unknown(error.to_string()),
    }
}

impl ZkCoordination {
    /// Starts connecting, on the current tokio runtime, and returns at once; the view says when it
    /// is connected. Nothing is created in ZooKeeper before [`Coordination::join`] or
    /// [`Coordination::write_state`].
    pub fn connect(settings: &ZkSettings, shard: &ShardName) -> Result<Self, ConnectError> {
        settings.check().map_err(|(key, problem)| ConnectError { key, problem })?;
        let live = Live {
            client: None,
            link: Session::Disconnected,
            registered: None,
            write: WriteInFlight::None,
            problem: "no server has answered yet".into(),
        };
        let shared = Arc::new(Shared {
            settings: settings.clone(),
            access: Access::read(settings)?,
            paths: Paths::new(&settings.root, shard),
            view: watch::Sender::new(View::unknown()),
            live: watch::Sender::new(live),
            wanted: watch::Sender::new(None),
            writing: Arc::default(),
            order: Order::default(),
            stop: CancellationToken::new(),
        });
        let keeper = tokio::spawn(session::keep(shared.clone()));
        Ok(Self { shared, keeper: Mutex::new(Some(keeper)) })
    }

    /// Waits until the shard has been read, at most `within`.
    pub async fn ready(&self, within: Duration) -> Result<View, Unreachable> {
        let mut view = self.view();
        let connected = view.wait_for(|view| view.session == Session::Connected);
        // Only waits; nothing is lost when it is given up.
        match tokio::time::timeout(within, connected).await {
            Ok(Ok(view)) => Ok(view.clone()),
            Ok(Err(_)) | Err(_) => {
                let ensemble = self.shared.settings.ensemble();
                Err(match self.shared.live.borrow().problem.clone() {
                    Problem::Away(problem) => Unreachable::Away { ensemble, problem },
                    Problem::Denied => Unreachable::Denied { ensemble },
                })
            }
        }
    }

    /// The bytes of the `state` node as they are; none without the node.
    pub async fn raw_state(&self) -> Result<Option<Vec<u8>>, ZkError> {
        let client = self.shared.connected()?;
        let read = async {
            match client.get_data(&self.shared.paths.state).await {
                Ok((data, _)) => Ok(Some(data)),
                Err(Error::NoNode) => Ok(None),
                Err(error) => Err(error),
            }
        };
        self.shared.bounded(read).await
    }

    /// Waits, at most `within`, until it is certain what became of a write whose outcome was [`ZkError::Unknown`].
    /// Without a timely answer it is still that.
    pub async fn find_out(&self, over: Over, state: &ClusterState, within: Duration) -> Result<Version, ZkError> {
        write::find_out(&self.shared, over, state, within).await
    }

    /// Whether any node is at `path`, which is absolute and valid.
    pub async fn node_exists(&self, path: &str) -> Result<bool, ZkError> {
        let client = self.shared.connected()?;
        self.shared.bounded(client.check_stat(path)).await.map(|stat| stat.is_some())
    }

    /// Whether the shard has a folder.
    pub async fn shard_exists(&self) -> Result<bool, ZkError> {
        let client = self.shared.connected()?;
        self.shared.bounded(client.check_stat(&self.shared.paths.shard)).await.map(|stat| stat.is_some())
    }

    /// Names of all shards under the root, sorted.
    pub async fn shards(&self) -> Result<Vec<String>, ZkError> {
        let client = self.shared.connected()?;
        let read = async {
            match client.list_children(&self.shared.settings.root).await {
                Err(Error::NoNode) => Ok(Vec::new()),
                result => result,
            }
        };
        let mut names = self.shared.bounded(read).await?;
        names.sort();
        Ok(names)
    }
}

#[async_trait]
impl Coordination for ZkCoordination {
    fn view(&self) -> watch::Receiver<View> {
        self.shared.view.subscribe()
    }

    async fn join(&self, peer: Peer) -> Result<(), ZkError> {
        let (mut live, mut view) = (self.shared.live.subscribe(), self.shared.view.subscribe());
        self.shared.wanted.send_replace(Some(peer.clone()));
        let registered = async {
            live.wait_for(|live| live.registered.as_ref().is_some_and(|(registered, _)| *registered == peer)).await?;
            // The caller is to find itself in what it looks at next.
            view.wait_for(|view| view.active.contains_key(&peer.id)).await.map(drop)
        };
        // The keeper goes on trying when we stop waiting.
        match tokio::time::timeout(self.shared.operation_timeout(), registered).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(ZkError::Unknown(format!("not registered yet: {}", self.shared.live.borrow().problem))),
        }
    }

    async fn leave(&self) -> Result<(), ZkError> {
        let mut live = self.shared.live.subscribe();
        self.shared.wanted.send_replace(None);
        let gone = live.wait_for(|live| live.registered.is_none());
        // The keeper goes on trying when we stop waiting.
        match tokio::time::timeout(self.shared.operation_timeout(), gone).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(ZkError::Unknown(format!("still registered: {}", self.shared.live.borrow().problem))),
        }
    }

    async fn write_state(&self, over: Over, state: &ClusterState) -> Result<Version, ZkError> {
        write::write(&self.shared, over, state).await
    }

    async fn history(&self) -> Result<Vec<HistoryEntry>, ZkError> {
        let client = self.shared.connected()?;
        let folder = &self.shared.paths.history;
        let list = async {
            match client.list_children(folder).await {
                Err(Error::NoNode) => Ok(Vec::new()),
                result => result,
            }
        };
        let mut names: Vec<(u64, String)> = self.shared.bounded(list).await?.into_iter().filter_map(numbered).collect();
        names.sort();
        let mut entries = Vec::with_capacity(names.len());
        for batch in names.chunks(HISTORY_BATCH) {
            let paths: Vec<_> = batch.iter().map(|(_, name)| format!("{folder}/{name}")).collect();
            // Requests leave when these are made, not when they are awaited.
            let reads: Vec<_> = paths.iter().map(|path| client.get_data(path)).collect();
            for ((zk_sequence, name), read) in batch.iter().zip(reads) {
                let (data, stat) = self.shared.bounded(read).await?;
                // Not validated: `manatee-adm verify` is to see what is wrong in here.
                match serde_json::from_slice(&data) {
                    Ok(state) => {
                        let time = Timestamp::from_millisecond(stat.ctime).unwrap_or(Timestamp::UNIX_EPOCH);
                        entries.push(HistoryEntry { zk_sequence: *zk_sequence, time, state });
                    }
                    Err(error) => tracing::warn!(entry = name, %error, "unreadable history entry skipped"),
                }
            }
        }
        Ok(entries)
    }

    async fn close(&self) {
        self.shared.stop.cancel();
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(keeper) = keeper {
            // The keeper bounds its own wait; this is for one that hangs in an operation.
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, keeper).await;
        }
    }
}

impl Drop for ZkCoordination {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

/// Sequence of a history entry `<generation>-<sequence>`; none for version 1's longer names.
fn numbered(name: String) -> Option<(u64, String)> {
    let (generation, sequence) = name.split_once('-')?;
    generation.parse::<u64>().ok()?;
    Some((sequence.parse().ok()?, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_servers_own_answer_is_a_refusal() {
        use Error::*;
        let answers = [
            BadArguments(&"server error"),
            BadVersion,
            InvalidAcl,
            MarshallingError,
            NoChildrenForEphemerals,
            NoNode,
            NoWatcher,
            NodeExists,
            NotEmpty,
            NotReadOnly,
            QuotaExceeded,
            ReconfigDisabled,
            Throttled,
            Unimplemented,
        ];
        for error in answers {
            assert!(is_refusal(&error) && matches!(zk_error(error.clone()), ZkError::Refused(_)), "{error:?}");
        }
        assert!(is_refusal(&NoAuth) && matches!(zk_error(NoAuth), ZkError::Denied(_)));
        let doubtful = [
            ClientClosed,
            ConnectionLoss,
            NoHosts,
            RuntimeInconsistent,
            SessionExpired,
            SessionMoved,
            Timeout,
            UnexpectedError("an answer to nothing".to_owned()),
            UnexpectedErrorCode(-4),
            UnmarshalError { entity: "reply", reason: &"too short" },
        ];
        for error in doubtful {
            assert!(!is_refusal(&error) && matches!(zk_error(error.clone()), ZkError::Unknown(_)), "{error:?}");
        }
        assert!(!is_refusal(&AuthFailed), "also said of a reconnection, after a write was sent");
    }

    #[test]
    fn only_entries_of_this_format_are_history() {
        assert_eq!(numbered("3-0000000012".to_owned()), Some((12, "3-0000000012".to_owned())));
        for name in ["1405378955344-10.77.77.7-assumeLeader-master-null-null-0000000002", "x-1", "3", ""] {
            assert_eq!(numbered(name.to_owned()), None, "{name}");
        }
    }

    #[test]
    fn an_older_answer_never_replaces_a_newer() {
        let order = Order::default();
        let ((first, ()), (second, ())) = (order.sending(|| ()), order.sending(|| ()));
        let mut shown = Vec::new();
        order.showing(second, || shown.push(2));
        order.showing(first, || shown.push(1));
        assert_eq!(shown, [2]);
    }
}
