//! Orders to the session threads, and what they report: everything that looks at or changes all
//! threads goes through here. A thread answers between two of its sessions' steps.

use std::sync::Arc;
use std::time::Duration;

use manatee_shared::ids::ShardName;
use tokio::sync::{mpsc, oneshot};

use crate::config::Config;
use crate::pool::census::Report;
use crate::pool::control::Scope;
use crate::room::Scarce;

/// Orders that may wait for one thread: more than all consoles and scrapers together have.
const MAX_ORDERS: usize = 64;
/// Longest wait for a thread's answer. One that is busy for longer is left out.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// Shard, and those of its sessions that are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionTarget {
    /// All shards if none.
    pub shard: Option<ShardName>,
    /// Databases that are meant.
    pub scope: Scope,
}

/// Order to a thread. Each answers with a number.
#[derive(Clone, Debug)]
pub enum ThreadAction {
    /// Keep new transactions waiting.
    Pause(SessionTarget),
    /// The end of a pause; answers 1 if there was one.
    Resume(SessionTarget),
    /// Close what is idle; answers how many servers sessions have.
    Release(SessionTarget),
    /// Answers how many servers are in use that are older than this.
    CountUsed(SessionTarget, Duration),
    /// Have servers replaced once they are free.
    Reconnect(SessionTarget),
    /// End clients and servers.
    Kill(SessionTarget),
    /// End one client; answers 1 if it was there.
    KillClient(u32),
    /// Close the server that has been idle for longest, where a server has no connection left to give; answers 1 if
    /// there was one.
    MakeRoom(ShardName, Scarce),
    /// Take over a changed configuration.
    Reconfigure(Arc<Config>),
}

/// An order, and where its answer goes.
pub(crate) enum ThreadCommand {
    /// Report of what there is, by shard.
    Report { all: bool, reply: oneshot::Sender<Vec<(ShardName, Report)>> },
    /// An action.
    Do(ThreadAction, oneshot::Sender<usize>),
}

/// All session threads, as those who give orders see them.
#[derive(Clone, Default)]
pub struct SessionThreads {
    members: Arc<[mpsc::Sender<ThreadCommand>]>,
}

impl SessionThreads {
    /// Of these threads.
    pub(crate) fn new(members: Vec<mpsc::Sender<ThreadCommand>>) -> Self {
        Self { members: members.into() }
    }

    /// A thread's place for orders.
    pub(crate) fn channel() -> (mpsc::Sender<ThreadCommand>, mpsc::Receiver<ThreadCommand>) {
        mpsc::channel(MAX_ORDERS)
    }

    /// Reports of all threads, by shard and thread. `all`: with every client and server.
    pub async fn report(&self, all: bool) -> Vec<(ShardName, Report)> {
        self.ask(|reply| ThreadCommand::Report { all, reply }).await.into_iter().flatten().collect()
    }

    /// Has all threads do it; the sum of their answers.
    pub async fn order(&self, action: ThreadAction) -> usize {
        self.ask(|reply| ThreadCommand::Do(action.clone(), reply)).await.into_iter().sum()
    }

    async fn ask<T>(&self, order: impl Fn(oneshot::Sender<T>) -> ThreadCommand) -> Vec<T> {
        let deadline = tokio::time::Instant::now() + ANSWER_LIMIT;
        let mut replies = Vec::with_capacity(self.members.len());
        for member in self.members.iter() {
            let (sender, reply) = oneshot::channel();
            // Cancel-safe: an order not queued in time is not given.
            let sent = tokio::time::timeout_at(deadline, member.send(order(sender))).await;
            if matches!(sent, Ok(Ok(()))) {
                replies.push(reply);
            }
        }
        let mut answers = Vec::with_capacity(replies.len());
        for reply in replies {
            // A late answer is dropped.
            match tokio::time::timeout_at(deadline, reply).await {
                Ok(Ok(answer)) => answers.push(answer),
                Ok(Err(_)) => {}
                Err(_) => tracing::warn!("a session thread did not answer in time"),
            }
        }
        answers
    }
}
