//! The tasks of a running sitter, and which of them ends it: whatever ends first ends the process. What is dropped leaves
//! PostgreSQL as it is.
//!
//! | what ends | because |
//! |---|---|
//! | the driver | it was told to stop and PostgreSQL is stopped, or a task it listens to is gone |
//! | the API | its port is lost |
//! | [`foreign_data`], [`no_zookeeper`] | the configuration is wrong, so that this sitter can be of no use |
//! | the wait for SIGUSR2 | the next sitter is to take over: PostgreSQL and the session are left as they are |
//! | the reload (SIGHUP) | it cannot listen |
//! | an upkeep | it must not: a sitter without it would look healthy |
//! | the bound on an orderly stop | PostgreSQL does not stop in time |

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use manatee_shared::config::ZkSettings;
use manatee_shared::zk::{Coordination, Session, StateNode, View};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::api;
use crate::data::LocalData;
use crate::driver::Fatal;
use crate::machine::local::{Data, Local};

/// Between two looks at data whose shard has lost its state.
const SURVEY_PAUSE: Duration = Duration::from_secs(5);

/// Number of session timeouts for which a sitter without data waits for ZooKeeper: longer than an ensemble
/// takes to elect a leader.
const NO_ZOOKEEPER_SESSIONS: u32 = 5;

/// A task, and what it ends with.
pub type Task<'a, T = ()> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// All that runs beside each other.
pub struct Supervised<'a> {
    /// The driver: ends when the machine is done.
    pub driver: Task<'a, Result<(), Fatal>>,
    /// [`serve_api`].
    pub api: Task<'a, anyhow::Error>,
    /// [`foreign_data`].
    pub foreign_data: Task<'a, anyhow::Error>,
    /// [`no_zookeeper`].
    pub no_zookeeper: Task<'a, anyhow::Error>,
    /// Reloads; returns why it does not go on.
    pub hangups: Task<'a, anyhow::Error>,
    /// Ends when this process is to make room for the next sitter.
    pub leave: Task<'a>,
    /// Tasks that must not end, with their names.
    pub upkeep: Vec<(&'static str, Task<'a>)>,
    /// Cancelled when the sitter is to stop in an orderly way.
    pub stop: CancellationToken,
    /// Longest time for that.
    pub stop_bound: Duration,
}

/// End of a sitter.
#[derive(Debug)]
pub enum End {
    /// In an orderly way.
    Stopped,
    /// For the next sitter on this host.
    Left,
    /// It cannot go on.
    Failed(anyhow::Error),
}

/// Runs everything until one of it ends. `stopping` is called once, when an orderly stop begins. Each branch may be
/// dropped: its work is in the tasks, and the tasks leave PostgreSQL as it is.
pub async fn until_the_end(parts: Supervised<'_>, stopping: impl FnOnce()) -> End {
    let Supervised { driver, api, foreign_data, no_zookeeper, hangups, leave, upkeep, stop, stop_bound } = parts;
    tokio::select! {
        result = driver => match result {
            Ok(()) => End::Stopped,
            Err(fatal) => End::Failed(fatal.into()),
        },
        problem = api => End::Failed(problem),
        problem = foreign_data => End::Failed(problem),
        problem = no_zookeeper => End::Failed(problem),
        problem = hangups => End::Failed(problem),
        () = leave => End::Left,
        name = first_to_end(upkeep) => End::Failed(anyhow!("{name} has ended")),
        () = async { stop.cancelled().await; stopping(); tokio::time::sleep(stop_bound).await } => {
            End::Failed(anyhow!("the stop took longer than {stop_bound:?}: exiting, PostgreSQL is left as it is"))
        }
    }
}

/// The name of the first task that ends.
async fn first_to_end(tasks: Vec<(&'static str, Task<'_>)>) -> &'static str {
    let named = tasks.into_iter().map(|(name, task)| async move {
        task.await;
        name
    });
    match named.collect::<FuturesUnordered<_>>().next().await {
        Some(name) => name,
        None => std::future::pending().await,
    }
}

/// An error with its causes in one line, without those that it has quoted already.
pub fn one_line(problem: &anyhow::Error) -> String {
    problem.chain().map(ToString::to_string).fold(String::new(), |line, cause| match line {
        line if line.is_empty() => cause,
        line if line.contains(&cause) => line,
        line => format!("{line}: {cause}"),
    })
}

/// Serves the API on all its ports; returns what ended it.
pub async fn serve_api(listeners: Vec<TcpListener>, router: axum::Router) -> anyhow::Error {
    let mut servers = tokio::task::JoinSet::new();
    for listener in listeners {
        servers.spawn(api::serve(listener, router.clone()));
    }
    match servers.join_next().await {
        Some(Ok(Err(problem))) => anyhow::Error::from(problem).context("the API has failed"),
        _ => anyhow!("the API has ended"),
    }
}

/// Rule 10: returns once the shard is known to be another than the one our data is of.
pub async fn foreign_data(mut view: watch::Receiver<View>, local: watch::Receiver<Local>) -> anyhow::Error {
    let identifier = view
        .wait_for(|view| view.session == Session::Connected)
        .await
        .map(|view| view.state.valid().and_then(|(_, state)| state.system_identifier.clone()));
    let data = local.borrow().data.clone();
    if let (Ok(Some(wanted)), Data::Present(found)) = (identifier, data)
        && found.0 != wanted
    {
        return anyhow!(
            "`peer.dir`: the data directory is of another shard (system identifier {}, this shard has {wanted}); \
             correct `shard` or `peer.dir`, or move the data away",
            found.0
        );
    }
    std::future::pending().await
}

/// A sitter with data looks after its PostgreSQL without ZooKeeper for as long as it takes (rule 9).
/// One without can do nothing: most likely its configuration is wrong. Returns once that is certain.
pub async fn no_zookeeper(
    mut view: watch::Receiver<View>,
    local: watch::Receiver<Local>,
    config: &ZkSettings,
) -> anyhow::Error {
    let limit = config.session_timeout * NO_ZOOKEEPER_SESSIONS;
    let connected = view.wait_for(|view| view.session == Session::Connected);
    // What it yields locks the view: nothing of it may be kept.
    let in_time = tokio::time::timeout(limit, connected).await.is_ok();
    if !in_time && local.borrow().data == Data::Absent {
        return anyhow!(
            "ZooKeeper at {} did not answer within {limit:?}, and there is no PostgreSQL here to look after; \
             correct `zookeeper.servers`, or see that one of them runs and can be reached from this host",
            config.servers.join(",")
        );
    }
    std::future::pending().await
}

/// Once the cluster state turns out to be lost, finds out how far the data here goes, for the
/// operator who restores it. A server that runs says so by itself.
pub async fn survey_when_lost(zk: Arc<dyn Coordination>, data: Arc<LocalData>) {
    let (mut view, mut local) = (zk.view(), data.local());
    loop {
        let lost = |view: &View| view.session == Session::Connected && view.state == StateNode::Absent;
        if view.wait_for(lost).await.is_err() {
            return;
        }
        if let Err(problem) = data.survey().await {
            warn!("cannot tell how far the WAL here goes: {:#}", anyhow::Error::from(problem));
        }
        tokio::select! {
            changed = local.changed() => if changed.is_err() { return },
            changed = view.changed() => if changed.is_err() { return },
        }
        // What changes all the time is not looked at all the time.
        tokio::time::sleep(SURVEY_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    use std::future::{pending, ready};

    use manatee_shared::cluster::{ClusterState, Peer};

    use super::*;
    use crate::machine::action::ActionKind;
    use crate::machine::local::{Server, SystemIdentifier};

    fn idle() -> Supervised<'static> {
        Supervised {
            driver: Box::pin(pending()),
            api: Box::pin(pending()),
            foreign_data: Box::pin(pending()),
            no_zookeeper: Box::pin(pending()),
            hangups: Box::pin(pending()),
            leave: Box::pin(pending()),
            upkeep: vec![("what goes on", Box::pin(pending()))],
            stop: CancellationToken::new(),
            stop_bound: Duration::from_secs(3600),
        }
    }

    fn text(end: End) -> String {
        match end {
            End::Failed(problem) => one_line(&problem),
            end => format!("{end:?}"),
        }
    }

    #[tokio::test]
    async fn whatever_ends_first_ends_the_sitter_with_its_reason() {
        let never = || panic!("no stop was asked for");
        let done = Supervised { driver: Box::pin(ready(Ok(()))), ..idle() };
        assert_eq!(text(until_the_end(done, never).await), "Stopped");
        let panicked = Supervised { driver: Box::pin(ready(Err(Fatal::ActionPanicked(ActionKind::Rejoin)))), ..idle() };
        assert_eq!(text(until_the_end(panicked, never).await), "the action `rejoin` has panicked");
        let gone: (&'static str, Task<'_>) = ("the snapshotter", Box::pin(ready(())));
        let lost = Supervised { upkeep: vec![("the API", Box::pin(pending())), gone], ..idle() };
        assert_eq!(text(until_the_end(lost, never).await), "the snapshotter has ended");
    }

    #[tokio::test]
    async fn a_stop_that_takes_too_long_is_given_up() {
        let parts = Supervised { stop_bound: Duration::ZERO, ..idle() };
        parts.stop.cancel();
        let mut told = 0;
        let end = until_the_end(parts, || told += 1).await;
        assert_eq!(
            (text(end).as_str(), told),
            ("the stop took longer than 0ns: exiting, PostgreSQL is left as it is", 1)
        );
    }

    fn local(data: Data) -> watch::Receiver<Local> {
        let server = Server::Down { crashed: false, standby: false };
        watch::channel(Local::new(data, server)).1
    }

    #[tokio::test]
    async fn data_of_another_shard_ends_it_and_ones_own_does_not() {
        let json = serde_json::json!({"generation": 1, "initWal": "0/1", "systemIdentifier": "7",
            "primary": Peer::new("10.0.0.1:5432:1".parse().unwrap(), "a"),
            "sync": Peer::new("10.0.0.2:5432:1".parse().unwrap(), "b"), "async": []});
        let state = Arc::new(ClusterState::parse(json.to_string().as_bytes()).unwrap());
        let state = StateNode::Valid { version: 1, state };
        let view = watch::Sender::new(View { session: Session::Connected, state, ..View::unknown() });
        let present = |system: &str| Data::Present(SystemIdentifier(system.to_owned()));
        let problem = foreign_data(view.subscribe(), local(present("8"))).await;
        assert!(problem.to_string().contains("system identifier 8, this shard has 7"), "{problem}");
        for data in [present("7"), Data::Absent] {
            let waiting = foreign_data(view.subscribe(), local(data));
            assert!(tokio::time::timeout(Duration::from_millis(50), waiting).await.is_err(), "nothing is wrong");
        }
    }

    #[tokio::test]
    async fn without_zookeeper_only_a_sitter_without_data_gives_up() {
        let view = watch::Sender::new(View::unknown());
        let config = ZkSettings {
            session_timeout: Duration::from_millis(1),
            ..ZkSettings::new(vec!["10.0.0.9:2181".to_owned()])
        };
        let problem = no_zookeeper(view.subscribe(), local(Data::Absent), &config).await;
        assert!(problem.to_string().contains("10.0.0.9:2181 did not answer"), "{problem}");
        let has_data = local(Data::Present(SystemIdentifier("7".to_owned())));
        let waiting = no_zookeeper(view.subscribe(), has_data, &config);
        assert!(tokio::time::timeout(Duration::from_millis(50), waiting).await.is_err(), "rule 9");
    }
}
