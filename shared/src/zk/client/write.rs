//! Writing the state: one transaction, whose outcome is found out even if nobody waits any more.
//!
//! A request given to the client library cannot be taken back: dropped while disconnected it is
//! still sent after the reconnection, and one that was sent may be carried out although the answer
//! was lost. So a write runs in a task of its own until its outcome is known, one write at a time,
//! and until then:
//!
//! - It can only succeed on the version it was decided from ([`Over`]) and while the election node of the
//!   session that sent it exists. If it comes late, nothing else was written in between.
//! - A caller that stopped waiting ([`ZkError::Unknown`]) sees `Disconnected` in the view until the
//!   outcome is known, so it keeps what it prepared for the write (rule 3: a primary that names a
//!   new sync must go on waiting for both) and decides nothing new.
//!
//! The outcome of a doubtful write is found out by order: in the same session, requests are carried out
//! in their order and a server refuses those of a connection that the session has left, so after a
//! reconnection `sync` and a read tell. In a new session, registering has removed the election node
//! that the old transaction requires, so from then on it fails, and a read tells. If others wrote since,
//! the history tells who wrote over the version that the write was decided from.
//!
//! Only the server's own answer counts as a refusal ([`is_refusal`]).

use std::sync::Arc;

use tokio::time::{Instant, timeout, timeout_at};
use zookeeper_client::{Client, CreateMode, Error, MultiWriteError, SessionId};

use super::{Shared, WriteInFlight, is_refusal, numbered, zk_error};
use crate::cluster::ClusterState;
use crate::zk::outcome::Verdict;
use crate::zk::{Over, Session, StateNode, Version, ZkError};

/// See [`crate::zk::Coordination::write_state`].
pub(super) async fn write(shared: &Arc<Shared>, over: Over, state: &ClusterState) -> Result<Version, ZkError> {
    let bound = shared.operation_timeout();
    let Ok(turn) = timeout(bound, shared.writing.clone().lock_owned()).await else {
        return Err(ZkError::Unknown("the outcome of an earlier write is still not known".to_owned()));
    };
    let write = Write { shared: shared.clone(), over, state: Arc::new(state.clone()) };
    shared.update(|live| live.write = WriteInFlight::Awaited);
    let abandon = Abandon(shared);
    let task = tokio::spawn(async move {
        let result = write.run().await;
        write.shared.update(|live| live.write = WriteInFlight::None);
        drop(turn);
        result
    });
    // Not waiting any longer does not end the task; `abandon` then puts the view in doubt.
    let result = match timeout(bound, task).await {
        Ok(Ok(result)) => result,
        Ok(Err(error)) => Err(ZkError::Unknown(format!("the write's task failed: {error}"))),
        Err(_) => Err(ZkError::Unknown(format!("no answer to the write within {bound:?}"))),
    };
    drop(abandon);
    result
}

/// See [`super::ZkCoordination::find_out`].
pub(super) async fn find_out(
    shared: &Arc<Shared>,
    over: Over,
    state: &ClusterState,
    within: std::time::Duration,
) -> Result<Version, ZkError> {
    let deadline = Instant::now() + within;
    let unknown = || ZkError::Unknown(format!("no answer within {within:?}"));
    // The task of the write has ended then, and with it any doubt of its own.
    let Ok(_turn) = timeout_at(deadline, shared.writing.clone().lock_owned()).await else { return Err(unknown()) };
    let look = Write { shared: shared.clone(), over, state: Arc::new(state.clone()) };
    // Waits and reads only: may be given up anywhere.
    timeout_at(deadline, look.until_certain(None)).await.unwrap_or_else(|_| Err(unknown()))
}

/// Guard that marks the write as in doubt when the caller stops waiting, in whatever way, before the outcome is known.
struct Abandon<'a>(&'a Shared);

impl Drop for Abandon<'_> {
    fn drop(&mut self) {
        self.0.update(|live| {
            if live.write == WriteInFlight::Awaited {
                live.write = WriteInFlight::InDoubt;
            }
        });
    }
}

struct Write {
    shared: Arc<Shared>,
    over: Over,
    state: Arc<ClusterState>,
}

impl Write {
    async fn run(&self) -> Result<Version, ZkError> {
        let client = self.shared.connected().map_err(before_it_was_sent)?;
        let joined = self.shared.wanted.borrow().is_some();
        let node = self.shared.live.borrow().registered.as_ref().map(|(_, path)| path.clone());
        if joined && node.is_none() {
            return Err(ZkError::NotRegistered);
        }
        if !joined {
            // Only an operator's tool writes without having joined; the folders may be missing.
            let folder = CreateMode::Persistent.with_acls(self.shared.access.acls());
            self.shared.bounded(client.mkdir(&self.shared.paths.history, &folder)).await.map_err(before_it_was_sent)?;
        }
        match self.commit(&client, node.as_deref()).await {
            Err(MultiWriteError::RequestFailed { source }) if !is_refusal(&source) => {
                let session = client.session_id();
                // The session must be free to end.
                drop(client);
                tracing::warn!(problem = %source, "no answer to a write of the state; finding out what became of it");
                self.shared.update(|live| live.write = WriteInFlight::InDoubt);
                self.until_certain(Some(session)).await
            }
            Err(MultiWriteError::RequestFailed { source }) => Err(zk_error(source)),
            Err(MultiWriteError::OperationFailed { index, source }) => Err(match (index, source) {
                (0, Error::NoNode) if node.is_some() => ZkError::NotRegistered,
                (_, Error::BadVersion | Error::NodeExists | Error::NoNode | Error::NotEmpty) => ZkError::Conflict,
                (_, source) => zk_error(source),
            }),
            Ok(()) => Ok(self.version()),
        }
    }

    /// Version of the node if the write succeeds.
    fn version(&self) -> Version {
        // ZooKeeper's own counter wraps around the same way.
        self.over.version().map_or(0, |version| version.wrapping_add(1))
    }

    async fn commit(&self, client: &Client, node: Option<&str>) -> Result<(), MultiWriteError> {
        let (json, paths) = (self.state.to_json(), &self.shared.paths);
        let mut writer = client.new_multi_writer();
        if let Some(node) = node {
            writer.add_check_version(node, -1)?;
        }
        let persistent = CreateMode::Persistent.with_acls(self.shared.access.acls());
        match self.over {
            Over::Version(version) => writer.add_set_data(&paths.state, &json, Some(version))?,
            Over::Lost => writer.add_create(&paths.state, &json, &persistent)?,
            Over::Nothing => {
                writer.add_create(&paths.state, &json, &persistent)?;
                // A transaction cannot check for children, but a folder with any cannot be deleted: the whole
                // fails if there is a history, however old the view is that the first state was decided from.
                writer.add_delete(&paths.history, None)?;
                writer.add_create(&paths.history, b"", &persistent)?;
            }
        }
        let options = CreateMode::PersistentSequential.with_acls(self.shared.access.acls());
        writer.add_create(&paths.history_prefix(self.state.generation), &json, &options)?;
        let (ticket, commit) = self.shared.order.sending(|| writer.commit());
        commit.await?;
        // Shown before the caller knows, so that it decides its next step from what it wrote.
        let shown = StateNode::Valid { version: self.version(), state: self.state.clone() };
        self.shared.show_state(ticket, shown);
        Ok(())
    }

    /// Waits, as long as it takes, until it is certain whether the write happened. `session`: the one that sent it.
    async fn until_certain(&self, session: Option<SessionId>) -> Result<Version, ZkError> {
        let mut live = self.shared.live.subscribe();
        let stop = self.shared.stop.clone();
        loop {
            let certain = live.wait_for(|live| {
                let same = session.is_some() && live.client.as_ref().map(Client::session_id) == session;
                let fenced = live.registered.is_some() || self.shared.wanted.borrow().is_none();
                live.link == Session::Connected && (same || fenced)
            });
            let client = match stop.run_until_cancelled(certain).await {
                Some(Ok(live)) => live.client.clone(),
                Some(Err(_)) | None => None,
            };
            let Some(client) = client else {
                return Err(ZkError::Unknown("stopped before the outcome of the write was known".to_owned()));
            };
            match self.look(&client).await {
                Ok(result) => return result,
                Err(error) => tracing::debug!(%error, "cannot read the state to find out about a write"),
            }
            // Lost again at once: do not spin on a link that is not yet seen as lost.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    /// Compares what is there with what was to be written.
    async fn look(&self, client: &Client) -> Result<Result<Version, ZkError>, ZkError> {
        let path = &self.shared.paths.state;
        self.shared.bounded(client.sync(path)).await?;
        let read = async {
            match client.get_data(path).await {
                Ok((data, stat)) => Ok(Some((data, stat.version))),
                Err(Error::NoNode) => Ok(None),
                Err(error) => Err(error),
            }
        };
        let found = self.shared.bounded(read).await?;
        let seen = found.map(|(data, version)| (version, data == self.state.to_json()));
        Ok(match Verdict::of(self.over, seen) {
            Verdict::Written(version) => Ok(version),
            Verdict::NotWritten => Err(ZkError::NotWritten("the connection to ZooKeeper was lost before".to_owned())),
            Verdict::History(since) if self.was_replaced(client, since).await? => Ok(self.version()),
            Verdict::History(_) | Verdict::Conflict => Err(ZkError::Conflict),
        })
    }

    /// Whether ours was written, and then replaced: by the history, in which it is the entry so many from the end.
    async fn was_replaced(&self, client: &Client, since: usize) -> Result<bool, ZkError> {
        let folder = &self.shared.paths.history;
        let names = self.shared.bounded(client.list_children(folder)).await?;
        let mut names: Vec<_> = names.into_iter().filter_map(numbered).collect();
        names.sort();
        let place = names.len().checked_sub(since);
        let Some((_, name)) = place.and_then(|place| names.get(place)) else { return Ok(false) };
        let (data, _) = self.shared.bounded(client.get_data(&format!("{folder}/{name}"))).await?;
        Ok(data == self.state.to_json())
    }
}

/// The transaction was not sent at all.
fn before_it_was_sent(error: ZkError) -> ZkError {
    match error {
        ZkError::Unknown(problem) => ZkError::NotWritten(problem),
        error => error,
    }
}
